"""A local page on which people look at scored images, judge them, and see what follows."""
