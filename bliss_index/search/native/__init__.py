"""The native exact search: C++ kernels for x86-64 and Arm, and their loading."""
