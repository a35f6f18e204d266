"""Scores of torch's products: within their bound of the true ones, and the same top k from each."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.search import reference_search
from bliss_index.search.certificate.ordering import to_float32
from bliss_index.search.torch import backend as torch_backend
from bliss_index.search.torch import proposals
from bliss_index.search.torch.backend import TorchBackend
from bliss_index.search.torch.candidates import find_candidates
from bliss_index.search.torch.proposals import Bfloat16Scores, Float32Scores, Proposal

PRECISIONS = ["float32", "bfloat16"]


def data(kind: str, dtype: Any) -> tuple[Any, Any]:
    """Entries and queries of some kind."""
    rng = np.random.default_rng(4)
    if kind == "clip":
        return clip_like(3001, 96, "text", 1, dtype), clip_like(130, 96, "image", 2, dtype)
    if kind == "near ties":
        entries = rng.standard_normal((1, 40)) + 1e-7 * rng.standard_normal((2000, 40))
        return entries.astype(dtype), rng.standard_normal((60, 40)).astype(dtype)
    if kind == "near ties far below float32":
        entries = rng.standard_normal((1, 40)) + 1e-12 * rng.standard_normal((2000, 40))
        # The host decides all of them, which takes long; still more than one tile of 32.
        return entries.astype(dtype), rng.standard_normal((34, 40)).astype(dtype)
    if kind == "queries in a heap":
        centre = rng.standard_normal(64)
        entries = rng.standard_normal((2500, 64))
        return entries.astype(dtype), (centre + 1e-3 * rng.standard_normal((64, 64))).astype(dtype)
    if kind == "constant coordinates":
        entries, queries = rng.standard_normal((1500, 33)), rng.standard_normal((50, 33))
        entries[:, :5] = 20.0
        queries[:, 3:9] = -7.0
        return entries.astype(dtype), queries.astype(dtype)
    if kind == "roundings that add up":  # of a query, along an entry
        signs = rng.choice([-1.0, 1.0], (60, 64))
        return np.concatenate([signs, -signs]).astype(dtype), (signs * (1 + 2.0**-9.2)).astype(
            dtype
        )
    if kind == "roundings of entries that add up":  # along a query
        signs = rng.choice([-1.0, 1.0], (60, 64))
        entries = np.concatenate([signs, -signs]) * (1 + 2.0**-9.2)
        return entries.astype(dtype), signs.astype(dtype)
    if kind == "roundings of queries across the entries":  # which their centre says nothing of
        signs = np.repeat(rng.choice([-1.0, 1.0], (120, 32)), 2, axis=1) * np.tile([1.0, -1.0], 32)
        return signs.astype(dtype), (1 + 0.9 * 2.0**-25 * signs[:60]).astype(dtype)
    scale = 10.0 ** rng.uniform(-6, 6, 1500)
    entries = rng.standard_normal((1500, 24)) * scale[:, None]
    queries = rng.standard_normal((50, 24)) * 10.0 ** rng.uniform(-6, 6, (50, 1))
    queries[7] = 0
    return entries.astype(dtype), queries.astype(dtype)


@cache
def brute_force(kind: str, dtype: Any, k: int) -> tuple[Any, Any]:
    """The top k of the data of a kind, in float64; not to be changed."""
    return reference_search(*data(kind, dtype), k)


KINDS = ["clip", "near ties", "near ties far below float32", "queries in a heap",
         "constant coordinates", "roundings that add up",
         "roundings of entries that add up", "roundings of queries across the entries",
         "any norm"]  # fmt: skip


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_top_k_is_that_of_float64(precision: str, dtype: Any, kind: str) -> None:
    entries, queries = data(kind, dtype)
    # Several tiles of entries; one, with few blocks for k, and with many.
    for k, tile in ((1, (32, 900)), (10, (32, 900)), (100, (32, 5000)), (10, None)):
        backend = TorchBackend(entries, k, precision=precision, tile=tile)
        values, ids, _ = backend.search(queries, 0)
        similarities, expected = brute_force(kind, dtype, k)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(to_float32(values), similarities)


def scores_of(precision: str, kind: str, most: int | None = None) -> tuple[Any, Any, Any]:
    """Scores of the entries of some kind; entries and queries as they are multiplied."""
    entries, queries = data(kind, np.float64)
    entries = entries[:most]
    exponent = int(np.frexp(np.abs(entries).max())[1])
    scaled = np.ldexp(entries, -exponent)
    rows = np.ldexp(queries, -np.frexp(np.abs(queries).max(1))[1][:, None])
    if precision == "bfloat16":
        return Bfloat16Scores(entries, exponent), scaled, rows
    single = scaled.astype(np.float32)
    return Float32Scores(single, torch.device("cpu")), single.astype(np.float64), rows


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_allow_for_sums_in_any_order(precision: str, kind: str) -> None:
    """No narrower than what the codes lose, exactly, and what n sums in float32 may lose.

    A score is within its bound of the true one but for a term of the query's: so no two of a
    query's are further apart than twice the bound.
    """
    scores, scaled, rows = scores_of(precision, kind, 500)
    for _ in range(2):  # the first batch may set the centre
        proposal = scores.propose(rows)
        q, t = (x.double().numpy().astype(np.longdouble)
                for x in (proposal.queries, proposal.entries))  # fmt: skip
        gap = q @ t.T - rows.astype(np.longdouble) @ scaled.astype(np.longdouble).T
        terms = int((np.abs(t).max(0) > 0).sum())
        summing = terms * 2.0**-24 * (np.abs(q) @ np.abs(t).T)
        assert ((gap + summing).max(1) - (gap - summing).min(1) <= 2 * proposal.bounds).all()
        assert scores.memory_bytes == proposal.entries.numel() * proposal.entries.element_size()


def test_bounds_allow_for_coarse_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch rounds both factors of a float32 product by a unit, and all upwards."""
    unit = 2.0**-8
    monkeypatch.setattr(proposals, "factor_unit", lambda device: unit)
    signs = np.random.default_rng(4).choice([-1.0, 1.0], (60, 64)).astype(np.float32)
    bounds = Float32Scores(signs, torch.device("cpu")).propose(signs).bounds
    assert (bounds >= 64 * ((1 + unit) ** 2 - 1) + 64 * 2.0**-24 * 64).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_within_their_bounds(precision: str, kind: str) -> None:
    """Of the differences to the first entry: what is the same for all entries cancels."""
    scores, scaled, rows = scores_of(precision, kind)
    for _ in range(2):  # the first batch may set the centre
        proposal = scores.propose(rows)
        found = (proposal.queries @ proposal.entries.T).double().numpy()
        bound = proposal.unit * np.abs(found) + proposal.bounds[:, None]
        true = rows @ scaled.T
        gap = np.abs((found - found[:, :1]) - (true - true[:, :1]))
        roundings = 1e-13 * np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(scaled, axis=1)
        assert (gap <= bound + bound[:, :1] + roundings).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_that_is_asked_for_multiplies(precision: str) -> None:
    backend = TorchBackend(clip_like(100, 16, "text", 1), 3, precision=precision)
    assert precision in backend.description
    assert isinstance(
        backend._scores, {"float32": Float32Scores, "bfloat16": Bfloat16Scores}[precision]
    )


def test_centring_leaves_few_candidates() -> None:
    entries, queries = clip_like(8000, 256, "text", 1), clip_like(256, 256, "image", 2)
    for precision in PRECISIONS:
        backend = TorchBackend(entries, 10, precision=precision)
        counted = backend.search(queries, 0)[2]
        assert counted.full_rows == 0
        assert counted.candidates < 20 * counted.queries


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("k", [10, 100])
def test_near_entries_are_not_searched_in_full(precision: str, k: int) -> None:
    entries, queries = clustered(6000, 256, 1), clip_like(200, 256, "image", 2)
    for tile in (None, (64, 1500)):
        backend = TorchBackend(entries, k, precision=precision, tile=tile)
        values, ids, counted = backend.search(queries, 0)
        assert counted.full_rows == 0
        assert counted.candidates < (2 * k + 150) * counted.queries
        assert counted.rescored < (2 * k + 40) * counted.queries
        similarities, expected = reference_search(entries, queries, k)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(to_float32(values), similarities)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [1, 40])
def test_any_room_gives_the_same(
    precision: str, kind: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that have too many candidates are multiplied in float64, together."""
    for name in ("_LEAST_ROOM", "_MOST_ROOM"):
        monkeypatch.setattr(torch_backend, name, room)
    monkeypatch.setattr(torch_backend, "_PER_RESULT", 0)
    entries, queries = data(kind, np.float32)
    backend = TorchBackend(entries, 10, precision=precision, tile=(32, 300))
    values, ids, counted = backend.search(queries, 0)
    similarities, expected = reference_search(entries, queries, 10)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(to_float32(values), similarities)
    assert counted.full_rows == len(queries) or room > 1


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("centre", [-3.0, -1.0, 0.0, 1.0, 3.0])
def test_candidates_are_all_that_the_bounds_leave(kind: torch.dtype, centre: float) -> None:
    """Whatever the sign of the scores, in one tile or several: by brute force."""
    rng = np.random.default_rng(7)
    scores = (centre + rng.standard_normal((40, 700))).astype(np.float32)
    scores[:, ::50] = 0.0
    scores[5] = np.rint(scores[5])
    scores[6], scores[7], scores[8] = 0.0, -0.0, 2.0**-130
    entries = torch.from_numpy(scores.T.copy()).to(kind)
    queries = torch.eye(40, dtype=kind)
    known = (queries @ entries.T).double().numpy()
    bounds = rng.uniform(0, 0.5, 40) * (rng.random(40) < 0.8)
    unit = 2.0**-8 if kind == torch.bfloat16 else 0.0
    proposal = Proposal(queries, entries, bounds, unit, np.zeros(40))
    lower = known - unit * np.abs(known) - bounds[:, None]
    upper = known + unit * np.abs(known) + bounds[:, None]
    for k, tile in ((1, 700), (10, 700), (10, 90), (30, 20), (300, 700)):
        (row, entry, score), left = find_candidates(proposal, k, tile, None)
        needed = upper >= np.partition(lower, 700 - k, axis=1)[:, 700 - k, None]
        found = np.zeros(needed.shape, dtype=bool)
        found[row, entry] = True
        assert (found | ~needed).all() and not left.size
        assert (np.diff(row) >= 0).all() and len(set(zip(row, entry, strict=True))) == row.size
        np.testing.assert_array_equal(score, known[row, entry])
        several = find_candidates(proposal, k, tile, 2 * k)
        crowded = np.flatnonzero(needed.sum(1) > 2 * k)
        assert set(crowded) <= set(several[1].tolist())
        assert not np.isin(several[0][0], several[1]).any()
