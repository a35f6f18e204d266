"""Data that a search may find hard, made of embeddings of the usual kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = ("clip", "duplicates", "near ties", "sorted", "any norm", "clustered")
_COPIES = 300
_COPY_DISTANCE = 0.03

Pair = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def make_case(kind: str, entries: npt.NDArray[Any], queries: npt.NDArray[Any]) -> Pair:
    """Change entries (W, d) and queries (n, d), both float16, into some kind of data.

    "duplicates", "sorted" and "clustered" stay float16; "near ties" become float32 and
    "any norm" float64.
    """
    size, dim = entries.shape
    rng = np.random.default_rng(3)
    if kind == "duplicates":
        entries = entries.copy()
        entries[size // 2 :] = entries[rng.integers(0, 50, size - size // 2)]
    elif kind == "near ties":
        entries = (entries[:1] + 1e-7 * rng.standard_normal((size, dim))).astype(np.float32)
        queries = queries.astype(np.float32)
    elif kind == "sorted":
        entries = entries[np.argsort(entries.astype(np.float32) @ queries[0].astype(np.float32))]
    elif kind == "any norm":
        entries = entries.astype(np.float64) * 10 ** rng.uniform(-6, 6, (size, 1))
        queries = queries.astype(np.float64) * 10 ** rng.uniform(-6, 6, (len(queries), 1))
    elif kind == "clustered":
        rows = entries[np.arange(size) // _COPIES].astype(np.float32)
        rows += (_COPY_DISTANCE / dim**0.5) * rng.standard_normal((size, dim), dtype=np.float32)
        entries = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    elif kind != "clip":
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return entries, queries
