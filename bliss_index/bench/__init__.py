"""Measures this machine, and makes synthetic embeddings to measure with."""
