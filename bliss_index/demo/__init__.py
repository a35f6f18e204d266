"""The embedded example: drawn scenes, the tiny model, and the whole chain on them."""
