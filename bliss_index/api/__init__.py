"""The public face in Python: the detector, and the commands' steps as functions."""
