"""Near rows: every set is near by the definition, and most of what is near is found."""

from __future__ import annotations

import numpy as np
import pytest
from bulk_fixtures import unit

from bliss_index.review import near_images as near_module
from bliss_index.review.near_images import NEAREST, NearRows


def found(matrix, used=None, part=700):
    used = np.ones(len(matrix), bool) if used is None else used
    near = NearRows(len(matrix), matrix[used].mean(axis=0, dtype=np.float64))
    parts = [(at, matrix[at : at + part]) for at in range(0, len(matrix), part)]
    for start, rows in parts:
        near.sign(start, rows, used[start : start + len(rows)])
    return near.first_of_each(near.candidates(), iter(parts))


def cosines(matrix, used=slice(None)):
    centred = unit(matrix.astype(np.float64) - matrix[used].mean(axis=0, dtype=np.float64))
    return centred @ centred.T


@pytest.fixture(scope="module")
def matrix():
    """2,000 different rows around a common direction, 600 that are near to some, in any order."""
    rng = np.random.default_rng(5)
    common = 2 * unit(rng.normal(size=64))
    rows = unit(rng.normal(size=(2000, 64)))
    copied = rows[rng.integers(0, 2000, 600)]
    distance = rng.uniform(0.0, 0.2, 600)[:, None]
    copies = unit(copied + distance * unit(rng.normal(size=(600, 64))))
    return rng.permutation(unit(common + np.concatenate([rows, copies]))).astype(np.float16)


def test_sets_are_near_by_the_definition_and_most_are_found(matrix):
    first = found(matrix)
    cosine = cosines(matrix)
    for row, leader in first.items():
        assert leader < row and leader not in first
        assert cosine[row, leader] >= NEAREST - 1e-4
    earlier = np.tril(cosine, -1)
    for least, share in ((0.9975, 0.97), (0.991, 0.85)):
        near = np.flatnonzero(earlier.max(axis=1) >= least)
        assert len(near) > 100
        assert np.mean([row in first for row in near]) > share


def test_rows_that_are_not_used_and_parts_change_nothing(matrix):
    assert found(matrix, part=700) == found(matrix, part=3000)
    used = np.arange(len(matrix)) % 3 != 0
    first = found(matrix, used)
    assert first and all(used[row] and used[leader] for row, leader in first.items())


def test_many_pairs_are_compared_in_pieces(matrix, monkeypatch):
    whole = found(matrix)
    monkeypatch.setattr(near_module, "_PAIRS_AT_ONCE", 7)
    assert found(matrix) == whole


def test_random_rows_have_no_near_ones():
    rng = np.random.default_rng(0)
    assert found(unit(rng.normal(size=(3000, 32))).astype(np.float32)) == {}
    assert found(np.ones((1, 8), np.float32)) == {}
