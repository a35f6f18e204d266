"""The exact search's kernels for GPUs in Triton."""
