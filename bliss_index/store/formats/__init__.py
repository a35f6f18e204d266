"""Layouts of embeddings that people have, one a module.

``arrays`` and ``tables`` are what they share: rows of one block of numbers, and rows of columns.
:mod:`bliss_index.store.sources` lists them.
"""
