"""Pairs of nearly equal directions among very many, found by signs of random projections.

Embeddings are centred first: what all images share says nothing of two of them. Two rows are near
whose centred cosine is at least :data:`NEAREST`; of different photos hardly any two are, while most
are near to themselves saved again (``benchmarks/study_near.py``). Pairs are looked for where 28
signs agree, in four tables, so that some are missed; every pair that is found is compared in full.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

NEAREST = 0.99
_TABLES, _BITS = 4, 28
_NEXT = 4  # of a bucket, so many that follow are looked at
_MOST_DIFFERENT = 16  # signs of 112; at the limit 5 differ on average
_PAIRS_AT_ONCE = 1 << 16
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


class NearRows:
    """Finds near rows of a matrix that is read in parts, twice.

    Parameters
    ----------
    rows : int
        Of the matrix.
    mean : (d,) float64 array
        Of its rows.
    """

    def __init__(self, rows: int, mean: npt.NDArray[np.float64]) -> None:
        self._mean = mean.astype(np.float32)
        rng = np.random.default_rng(20240717)
        self._planes = rng.standard_normal((mean.size, _TABLES * _BITS), dtype=np.float32)
        self._signs = np.zeros((rows, _TABLES), dtype=np.uint32)
        self._used = np.zeros(rows, dtype=bool)
        self._wanted = np.empty(0, np.int64)

    def sign(self, start: int, part: npt.NDArray[np.floating], used: npt.NDArray[np.bool_]) -> None:
        """Take the signs of rows from `start` on, of which some are to be compared."""
        positive = (part.astype(np.float32) - self._mean) @ self._planes > 0
        weights = 1 << np.arange(_BITS, dtype=np.int64)
        end = start + len(part)
        self._signs[start:end] = positive.reshape(len(part), _TABLES, _BITS) @ weights
        self._used[start:end] = used

    def candidates(self) -> npt.NDArray[np.int64]:
        """Return (p, 2) rows that may be near, the smaller first, by the larger."""
        rows = np.flatnonzero(self._used)
        found = [np.empty((0, 2), np.int64)]
        for table in range(_TABLES):
            keys = self._signs[rows, table]
            order = np.argsort(keys, kind="stable")
            for step in range(1, _NEXT + 1):
                one, other = order[:-step], order[step:]
                same = keys[one] == keys[other]
                pairs = np.stack([rows[one[same]], rows[other[same]]], axis=1)
                different = self._signs[pairs[:, 0]] ^ self._signs[pairs[:, 1]]
                count = _ONES[different.view(np.uint8)].sum(axis=1, dtype=np.int64)
                found.append(np.sort(pairs[count <= _MOST_DIFFERENT], axis=1))
        pairs = np.unique(np.concatenate(found)[:, ::-1], axis=0)[:, ::-1]
        self._wanted = np.unique(pairs)
        return pairs

    def first_of_each(
        self,
        pairs: npt.NDArray[np.int64],
        parts: Iterator[tuple[int, npt.NDArray[np.floating]]],
    ) -> dict[int, int]:
        """Return rows that are near to an earlier one, and that one, which is near to no earlier.

        Parameters
        ----------
        pairs : (p, 2) int64 array
            As of :meth:`candidates`.
        parts : iterator of (int, array)
            First row and content of the parts of the matrix.
        """
        if not len(pairs):
            return {}
        with tempfile.TemporaryFile(prefix="bliss-near-") as file:  # there may be many
            shape = (self._wanted.size, self._mean.size)
            kept = np.memmap(file, np.float32, "w+", shape=shape)
            for start, part in parts:
                begin, end = np.searchsorted(self._wanted, [start, start + len(part)])
                own = part[self._wanted[begin:end] - start].astype(np.float32) - self._mean
                kept[begin:end] = own / np.maximum(
                    np.linalg.norm(own, axis=1, keepdims=True), np.finfo(np.float32).tiny
                )
            place = np.searchsorted(self._wanted, pairs)
            near = [np.empty((0, 2), np.int64)]
            for at in range(0, len(place), _PAIRS_AT_ONCE):
                some = place[at : at + _PAIRS_AT_ONCE]
                cosine = np.einsum("ij,ij->i", kept[some[:, 0]], kept[some[:, 1]])
                near.append(some[cosine >= NEAREST])
            first: dict[int, int] = {}
            for one, other in np.concatenate(near).tolist():
                leader = first.get(one, one)
                if other not in first and (
                    leader == one or float(kept[leader] @ kept[other]) >= NEAREST
                ):
                    first[other] = leader
            del kept
        rows = self._wanted.tolist()
        return {rows[other]: rows[leader] for other, leader in first.items()}
