"""Proposals of a FAISS index, rescored in float64 and brought into the final order."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.search.certificate.ordering import dot_error, exact_dot, order_candidates
from bliss_index.search.protocol import SearchStatistics

_PAIRS_AT_ONCE = 4096
_SCORES_AT_ONCE = 1 << 22


class Candidates:
    """The proposals of one batch of queries, rescored in float64."""

    def __init__(
        self,
        queries: npt.NDArray[Any],
        vocabulary: npt.NDArray[Any],
        norms: npt.NDArray[np.float64],
        k: int,
    ) -> None:
        self._queries = queries
        self._vocabulary = vocabulary
        self._entry_norms = norms
        self._k = k
        self._wide = queries.astype(np.float64)
        self._norms = np.linalg.norm(self._wide, axis=1)
        self.rows = queries.shape[0]
        self.exponents = np.frexp(np.abs(self._wide).max(axis=1, initial=0.0))[1]
        scaled = np.ldexp(self._wide, -self.exponents[:, None])
        self.scaled = np.ascontiguousarray(scaled, dtype=np.float32)
        self.scaled_norms = np.linalg.norm(scaled, axis=1)
        self._parts: list[tuple[npt.NDArray[Any], ...]] = []
        self._last: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
        self._full = 0

    def rescore(
        self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Score proposals in float64; return a lower bound of every row's k-th best."""
        values = np.empty(ids.shape)
        at_once = max(1, _PAIRS_AT_ONCE // ids.shape[1])
        for start in range(0, rows.size, at_once):
            part = slice(start, start + at_once)
            entries = self._vocabulary[np.maximum(ids[part], 0)].astype(np.float64)
            values[part] = np.einsum("nmd,nd->nm", entries, self._wide[rows[part]])
        values[ids < 0] = -np.inf
        errors = dot_error(
            self._wide.shape[1], self._norms[rows][:, None] * self._entry_norms[np.maximum(ids, 0)]
        )
        self._last = values, errors
        lower = np.asarray(values - errors)
        return np.asarray(np.partition(lower, -self._k, axis=1)[:, -self._k])

    def keep(
        self,
        rows: npt.NDArray[np.int64],
        ids: npt.NDArray[np.int64],
        chosen: npt.NDArray[np.bool_],
    ) -> None:
        """Keep the proposals just rescored of the rows that are ``chosen``."""
        values, errors = self._last
        row, column = np.nonzero(chosen[:, None] & (ids >= 0))
        self._parts.append((rows[row], ids[row, column], values[row, column], errors[row, column]))

    def scan(self, rows: npt.NDArray[np.int64]) -> None:
        """Score these rows against every entry; keep the entries that can be in their k best."""
        size = self._vocabulary.shape[0]
        self._full += rows.size
        for start in range(0, rows.size, max(1, _SCORES_AT_ONCE // size)):
            part = rows[start : start + max(1, _SCORES_AT_ONCE // size)]
            scores = np.empty((part.size, size))
            for first in range(0, size, _PAIRS_AT_ONCE):
                block = self._vocabulary[first : first + _PAIRS_AT_ONCE].astype(np.float64)
                scores[:, first : first + _PAIRS_AT_ONCE] = self._wide[part] @ block.T
            errors = dot_error(
                self._wide.shape[1], self._norms[part][:, None] * self._entry_norms[None, :]
            )
            kth = np.partition(scores - errors, size - self._k, axis=1)[:, size - self._k]
            row, entry = np.nonzero(scores + errors >= kth[:, None])
            self._parts.append((part[row], entry, scores[row, entry], errors[row, entry]))

    def ordered(
        self,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], SearchStatistics]:
        """Return values (n, k), ids (n, k) and the counters of this batch."""
        row, entry, value, error = (
            np.concatenate(column) for column in zip(*self._parts, strict=True)
        )
        values, ids, resolved = order_candidates(
            row.astype(np.int64),
            entry.astype(np.int64),
            value,
            error,
            (self.rows, self._k),
            lambda i, w: exact_dot(self._queries[i], self._vocabulary[w]),
        )
        return values, ids, SearchStatistics(self.rows, row.size, row.size, resolved, self._full)


def row_norms(matrix: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Upper bounds of the rows' Euclidean norms."""
    norms = np.empty(matrix.shape[0])
    for start in range(0, matrix.shape[0], _PAIRS_AT_ONCE):
        block = matrix[start : start + _PAIRS_AT_ONCE].astype(np.float64)
        norms[start : start + _PAIRS_AT_ONCE] = np.linalg.norm(block, axis=1)
    return norms * (1 + 1e-9)
