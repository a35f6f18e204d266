"""The steps of ``gpu_suite.py``: what is checked and timed on a GPU."""
