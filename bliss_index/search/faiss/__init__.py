"""FAISS's indexes: building, tuning, searching, on processors and GPUs."""
