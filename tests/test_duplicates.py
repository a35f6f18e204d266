"""Identical entries are searched once, and stand in results as often as they are there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bliss_index.search.duplicates import Duplicates, find_duplicates


def best_rows(matrix: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows by value, and then by id."""
    scores = queries @ matrix.T.astype(np.float64)
    places = np.broadcast_to(np.arange(len(matrix)), scores.shape)
    order = np.lexsort((places, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("tied", [True, False])
def test_sets_become_rows(tied: bool) -> None:
    """Of one value or many, where sets tie and where they do not, for every number of results."""
    rng = np.random.default_rng(5)
    compared = 0
    for _ in range(60):
        different = int(rng.integers(1, 30))
        base = rng.integers(-2, 3, (different, 3)) if tied else rng.standard_normal((different, 3))
        base = np.unique(base.astype(np.float32), axis=0)
        size = int(rng.integers(len(base), 90))
        matrix = np.ascontiguousarray(base[rng.integers(0, len(base), size)])
        found = find_duplicates(matrix)
        if found is None:
            continue
        queries = rng.integers(-2, 3, (20, 3)).astype(np.float64)
        for k in {1, min(3, size), min(10, size), size}:
            values, sets = best_rows(matrix[found.first], queries, min(k, len(found.first)))
            expected = best_rows(matrix, queries, k)
            for mine, right in zip(found.expand(values, sets, k), expected, strict=True):
                np.testing.assert_array_equal(mine, right)
            compared += 1
    assert compared > 50


def test_tensors_keep_their_types() -> None:
    found = find_duplicates(np.array([[1.0], [2.0], [1.0]], dtype=np.float32))
    assert isinstance(found, Duplicates)
    values, ids = found.expand_tensors(torch.tensor([[2.0, 1.0]], dtype=torch.float64),
                                       torch.tensor([[1, 0]]), 2)  # fmt: skip
    assert (values.dtype, ids.dtype) == (torch.float64, torch.int64)
    assert ids.tolist() == [[1, 0]]
    none = found.expand(np.empty((0, 2)), np.empty((0, 2), dtype=np.int64), 2)
    assert none[1].shape == (0, 2)
