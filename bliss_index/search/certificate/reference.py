"""Brute force in float64: what every other search is measured against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bliss_index.search.certificate.ordering import (
    dot_error,
    exact_dot,
    order_candidates,
    to_float32,
)
from bliss_index.search.inputs import as_matrix, checked_rows, require_dim, require_k
from bliss_index.search.isolation import isolated

_BLOCK_BYTES = 64 << 20


@isolated
def reference_search(
    vocabulary: npt.ArrayLike, queries: npt.ArrayLike, k: int = 10
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Find the k entries with the largest inner products by float64 brute force.

    Slow and simple. Entries are ordered by the correctly rounded float64 inner product of the
    vectors as given (raw, never normalised), descending, ties by smaller id.

    Parameters
    ----------
    vocabulary
        (W, d) float16, float32 or float64.
    queries
        (n, d) float16, float32 or float64.
    k
        1 to min(W, 2048).

    Returns
    -------
    similarities (n, k) float32, ids (n, k) int64.

    Raises
    ------
    InvalidInputError
        Shapes or types do not fit, k exceeds W, or a row holds NaN or infinity.
    """
    entries = checked_rows(as_matrix(vocabulary, "vocabulary entries"), "vocabulary entries")
    rows = as_matrix(queries, "queries")
    require_dim(rows, entries.shape[1], "queries")
    require_k(k, entries.shape[0])
    rows = checked_rows(rows, "queries")

    entries64 = entries.astype(np.float64)
    norms = np.linalg.norm(entries64, axis=1)
    similarities = np.empty((rows.shape[0], k), dtype=np.float32)
    ids = np.empty((rows.shape[0], k), dtype=np.int64)
    at_once = max(1, _BLOCK_BYTES // (8 * entries.shape[0]))
    for start in range(0, rows.shape[0], at_once):
        block = rows[start : start + at_once]
        block64 = block.astype(np.float64)
        scores = block64 @ entries64.T
        errors = dot_error(
            entries.shape[1], np.linalg.norm(block64, axis=1)[:, None] * norms[None, :]
        )
        kth = np.partition(scores - errors, scores.shape[1] - k, axis=1)[:, -k]
        row, entry = np.nonzero(scores + errors >= kth[:, None])
        values, chosen, _ = order_candidates(
            row.astype(np.int64),
            entry.astype(np.int64),
            scores[row, entry],
            errors[row, entry],
            (block.shape[0], k),
            lambda i, w, block=block: exact_dot(block[i], entries[w]),  # type: ignore[misc]
        )
        similarities[start : start + at_once] = to_float32(values)
        ids[start : start + at_once] = chosen
    return similarities, ids
