"""The exact search's kernels for GPUs of compute capability 9.0, in CUDA C++."""
