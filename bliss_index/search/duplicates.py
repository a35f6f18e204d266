"""Identical entries: searched once, and put back into results afterwards.

A vocabulary with many identical vectors would make every one of them a candidate wherever one is.
Only the first of each set of identical rows is searched; its copies follow from it, because equal
vectors have equal inner products and ties are ordered by id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Duplicates:
    """Sets of identical rows.

    Attributes
    ----------
    first
        (U,) the first row of every set, ascending.
    starts, members
        Set u consists of the rows ``members[starts[u]:starts[u + 1]]``, ascending.
    """

    first: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]

    def expand(
        self, values: npt.NDArray[np.float64], sets: npt.NDArray[np.int64], k: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Turn the best sets of every query (n, min(k, U)) into its k best rows.

        ``values`` (n, min(k, U)) must be equal exactly where inner products are, so that members
        of different sets with equal values are merged by id.
        """
        n = sets.shape[0]
        out_values = np.empty((n, k))
        out_ids = np.empty((n, k), dtype=np.int64)
        sizes = np.minimum(np.diff(self.starts), k)
        counts = sizes[sets]
        plain = np.zeros(n, dtype=bool)
        if sets.shape[1] == k:
            plain = (counts == 1).all(axis=1)
            out_values[plain] = values[plain]
            out_ids[plain] = self.first[sets[plain]]
        for row in np.flatnonzero(~plain):
            # Sets after the k-th row matter only where they tie with it.
            needed = int(np.searchsorted(np.cumsum(counts[row]), k)) + 1
            while needed < sets.shape[1] and values[row, needed] == values[row, needed - 1]:
                needed += 1
            count = counts[row, :needed]
            offset = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
            ids = self.members[np.repeat(self.starts[sets[row, :needed]], count) + offset]
            score = np.repeat(values[row, :needed], count)
            order = np.lexsort((ids, -score))[:k]
            out_values[row], out_ids[row] = score[order], ids[order]
        return out_values, out_ids


def find_duplicates(matrix: npt.NDArray[Any]) -> Duplicates | None:
    """Find the sets of bytewise identical rows of a C-contiguous matrix; None if all differ."""
    size = matrix.shape[0]
    digests = _digests(matrix)
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    if first.size == size:
        return None
    leader = first[inverse]
    suspects = np.flatnonzero(leader != np.arange(size))
    for start in range(0, suspects.size, _ROWS_AT_ONCE):
        part = suspects[start : start + _ROWS_AT_ONCE]
        same = (_as_bytes(matrix[part]) == _as_bytes(matrix[leader[part]])).all(axis=1)
        # Rows that only share a digest stand for themselves.
        leader[part[~same]] = part[~same]
    if (leader == np.arange(size)).all():
        return None
    unique, sets = np.unique(leader, return_inverse=True)
    members = np.argsort(sets, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(sets, minlength=unique.size))])
    return Duplicates(unique.astype(np.int64), starts.astype(np.int64), members.astype(np.int64))


def _as_bytes(matrix: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(matrix).view(np.uint8)


def _digests(matrix: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """One number per row, equal for identical rows: a random linear form of its words."""
    words = matrix.view(np.dtype(f"u{matrix.itemsize}"))
    factors = np.random.default_rng(20240717).integers(
        1, 2**63, size=matrix.shape[1], dtype=np.uint64
    )
    factors |= np.uint64(1)
    digests = np.empty(matrix.shape[0], dtype=np.uint64)
    for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
        part = words[start : start + _ROWS_AT_ONCE].astype(np.uint64)
        digests[start : start + _ROWS_AT_ONCE] = part @ factors
    return digests
