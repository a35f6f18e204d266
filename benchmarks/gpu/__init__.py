"""The rows of ``gpu_suite.py``, and the processes that run them."""
