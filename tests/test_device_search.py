"""The search that stays on a device, on CPU tensors: torch's products, and Triton's interpreter."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_torch_proposals import KINDS, brute_force, data

from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.devices import find_gpu
from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.search import exact_search, reference_search
from bliss_index.search.certificate.ordering import exact_dot, to_float32
from bliss_index.search.device import engine as engines
from bliss_index.search.device.backend import DeviceBackend, DeviceOptions
from bliss_index.search.device.base import DeviceEngine
from bliss_index.search.device.codes import (
    BFLOAT16,
    FORMATS,
    INT8,
    CodeFormat,
    EntryCodes,
    Rotation,
)
from bliss_index.search.device.engine import torch_engine, torch_score_kernel
from bliss_index.search.device.internal import Internal
from bliss_index.search.device.proposals import TorchProposals, _bounds, _place, block_size
from bliss_index.search.inputs import require_tensor

CPU = torch.device("cpu")


def triton_engine(queries: int = 16, entries: int = 32, form: str = "int8") -> DeviceEngine:
    """Triton's kernels with small tiles: on CPU tensors where no GPU is (see conftest)."""
    pytest.importorskip("triton")
    from bliss_index.search.triton.proposals import TileShape, TritonProposals

    shape = TileShape(queries, entries, warps=4, stages=2)
    return engines.triton_engine(TritonProposals(shape, FORMATS[form]))


def interpreted() -> str:
    """Device on which Triton's kernels run here."""
    return "cpu" if find_gpu()[0] is None else "cuda"


def assert_exact(
    backend: DeviceBackend, entries: Any, queries: Any, k: int, right: Any = None
) -> Any:
    """Search; compare with the top k that is known to be right, or with that of float64."""
    values, ids, counted = backend.search(queries, 0)
    similarities, expected = right or reference_search(entries, queries, k)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(to_float32(values), similarities)
    assert counted.queries == len(queries)
    return counted


@pytest.mark.parametrize("codes", list(FORMATS))
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_top_k_is_that_of_float64(dtype: Any, kind: str, codes: str) -> None:
    dtype = np.float64 if kind == "any norm" else dtype
    entries, queries = data(kind, dtype)
    for k in (1, 10):
        backend = DeviceBackend(entries, k, device="cpu", options=DeviceOptions(codes=codes))
        assert f"torch {codes}" in backend.description
        assert_exact(backend, entries, queries, k, brute_force(kind, dtype, k))


@pytest.mark.parametrize("size", [1, 2, 7, 129, 1000, 20_011])
def test_any_size_and_number_of_results(size: int) -> None:
    entries, queries = clip_like(size, 40, "text", 1), clip_like(33, 40, "image", 2)
    for k in {1, min(size, 10), min(size, 300)}:
        backend = DeviceBackend(entries, k, device="cpu", engine=torch_engine())
        assert_exact(backend, entries, queries, k)


@pytest.mark.parametrize("dim", [1, 3, 63, 64, 65, 100, 192, 768])
def test_any_dimension(dim: int) -> None:
    rng = np.random.default_rng(3)
    entries, queries = rng.standard_normal((700, dim)), rng.standard_normal((40, dim))
    for dtype in (np.float32, np.float64):
        backend = DeviceBackend(entries.astype(dtype), 5, device="cpu", engine=torch_engine())
        assert_exact(backend, entries.astype(dtype), queries.astype(dtype), 5)


@pytest.mark.parametrize(("codes", "most"), [("int8", 70), ("bfloat16", 30)])
def test_clip_like_data_leaves_few_candidates(codes: str, most: int) -> None:
    entries = clip_like(20_000, 128, "text", 1, np.float16)
    queries = clip_like(200, 128, "image", 2, np.float16)
    backend = DeviceBackend(entries, 10, device="cpu", options=DeviceOptions(codes=codes))
    counted = assert_exact(backend, entries, queries, 10)
    assert counted.full_rows == 0
    assert counted.candidates < most * counted.queries


@pytest.mark.parametrize(("size", "block"), [(300, 10), (3000, 401), (3000, 1500), (3000, 3000)])
def test_streamed_vocabularies(size: int, block: int) -> None:
    entries, queries = clip_like(size, 48, "text", 1), clip_like(70, 48, "image", 2)
    entries[size // 2 : size // 2 + 10] = entries[:10]  # equal entries in different blocks
    options = DeviceOptions(rows=64, block=block)
    backend = DeviceBackend(entries, 10, device="cpu", options=options, engine=torch_engine())
    assert_exact(backend, entries, queries, 10)
    assert ("blocks of" in backend.description) == (block < 3000)


def test_too_many_near_ties_are_searched_in_full() -> None:
    entries, queries = data("near ties far below float32", np.float64)
    options = DeviceOptions(capacity=3)
    backend = DeviceBackend(entries, 2, device="cpu", options=options, engine=torch_engine())
    assert assert_exact(backend, entries, queries, 2).full_rows > len(queries) // 2


@pytest.mark.parametrize("codes", list(FORMATS))
@pytest.mark.parametrize("k", [10, 100])
def test_near_entries_are_searched_with_more_room(codes: str, k: int) -> None:
    entries = clustered(12_000, 128, 1, dtype=np.float16)
    queries = clip_like(100, 128, "image", 2, np.float16)
    options = DeviceOptions(codes=codes)
    backend = DeviceBackend(entries, k, device="cpu", options=options)
    counted = assert_exact(backend, entries, queries, k)
    assert counted.full_rows == 0
    assert counted.second_rows > 0 or codes == "bfloat16" or k > 10


@pytest.mark.parametrize("codes", list(FORMATS))
def test_near_entries_through_tritons_kernels(codes: str) -> None:
    entries = clustered(6000, 64, 1, dtype=np.float16)
    queries = clip_like(8, 64, "image", 2, np.float16)
    backend = DeviceBackend(entries, 10, device=interpreted(), engine=triton_engine(form=codes))
    counted = assert_exact(backend, entries, queries, 10)
    assert counted.full_rows == 0
    assert counted.second_rows > 0 or codes == "bfloat16"


def test_room_grows_until_ranking_would_be_slow() -> None:
    engine: DeviceEngine | None = torch_engine()
    rooms = []
    while engine is not None:
        rooms.append([engine.room(k) for k in (1, 10, 100, 2048)])
        engine = DeviceEngine.widened(engine, 10)
    assert rooms == [
        [256, 256, 2048, 32768], [2048, 2048, 4096, 32768], [8192, 8192, 8192, 32768]
    ]  # fmt: skip
    assert torch_engine().widened(2048) is None


def test_zero_queries_and_zero_entries() -> None:
    rng = np.random.default_rng(0)
    entries = rng.standard_normal((500, 20)).astype(np.float32)
    queries = rng.standard_normal((40, 20)).astype(np.float32)
    entries[[0, 3, 499]] = 0
    queries[[0, 17, 39]] = 0
    assert_exact(
        DeviceBackend(entries, 10, device="cpu", engine=torch_engine()), entries, queries, 10
    )
    assert_exact(
        DeviceBackend(entries * 0, 10, device="cpu", engine=torch_engine()),
        entries * 0,
        queries,
        10,
    )


def test_batches_halve_when_memory_runs_out(caplog: pytest.LogCaptureFixture) -> None:
    class Scarce(TorchProposals):
        def find(self, queries: Any, *rest: Any) -> Any:
            if queries.codes.shape[0] > 100:
                raise torch.cuda.OutOfMemoryError("out of memory")
            return super().find(queries, *rest)

    entries, queries = clip_like(2000, 32, "text", 1), clip_like(450, 32, "image", 2)
    engine = replace(torch_engine(), proposals=Scarce())
    backend = DeviceBackend(entries, 5, device="cpu", engine=engine)
    with caplog.at_level(logging.WARNING, "bliss_index"):
        assert_exact(backend, entries, queries, 5)
    assert "going on with 64 queries" in caplog.text or "out of device memory" in caplog.text
    assert backend.chunk_rows <= 100


def test_memory_that_never_suffices_is_an_error() -> None:
    class Hopeless(TorchProposals):
        def find(self, *rest: Any) -> Any:
            raise torch.cuda.OutOfMemoryError("out of memory")

    engine = replace(torch_engine(), proposals=Hopeless())
    backend = DeviceBackend(clip_like(2000, 32, "text", 1), 5, device="cpu", engine=engine)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        backend.search(clip_like(200, 32, "image", 2), 0)


def test_tensors_in_and_out() -> None:
    entries, queries = clip_like(3000, 64, "text", 1), clip_like(90, 64, "image", 2)
    backend = DeviceBackend(entries, 7, device="cpu", engine=torch_engine())
    values, ids, _ = backend.search_tensors(torch.from_numpy(queries))
    similarities, expected = reference_search(entries, queries, 7)
    np.testing.assert_array_equal(ids.numpy(), expected)
    np.testing.assert_array_equal(values.float().numpy(), similarities)
    queries[[3, 50]] = np.nan
    with pytest.raises(InvalidInputError, match=r"NaN or infinity in row\(s\) 3, 50"):
        backend.search_tensors(torch.from_numpy(queries))
    with pytest.raises(InvalidInputError, match=r"row\(s\) 13, 60"):
        backend.search(queries, 10)
    with pytest.raises(InvalidInputError, match="tensors are searched on a GPU"):
        exact_search(entries, 7, backend="torch").search_tensors(torch.zeros((1, 64)))


@pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
def test_scores_are_within_their_bounds(form: CodeFormat) -> None:
    """Of the differences to the first entry: what is the same for all entries cancels."""
    for kind in KINDS:
        entries, queries = data(kind, np.float64)
        codes = EntryCodes(torch.from_numpy(entries), 256, 64, form)
        rows = torch.from_numpy(queries)
        for _ in range(2):
            prepared = codes.prepare(rows)
            products = prepared.codes.double() @ codes.codes.double().T
            lifts = prepared.alpha[:, None] * codes.lift
            assert lifts.abs().max() <= 2.0**21 * 1.001
            if form == BFLOAT16:
                assert (products.abs() + lifts.abs()).max() < 2.0**22
            scores = (products.float() + lifts) * codes.tile_step.repeat_interleave(codes.tile)
            bound = prepared.per_norm[:, None] * codes.norm
            bound += prepared.per_residual[:, None] * codes.residual + prepared.slack[:, None]
            known = slice(0, len(entries))
            found, bounds = scores[:, known].double().numpy(), bound[:, known].double().numpy()
            true = queries @ entries[codes.ids[known].numpy()].T
            # A query's scores are in a unit of their own: the slope of found over true.
            true -= true[:, :1]
            found -= found[:, :1]
            square = (true * true).sum(1)
            unit = np.where(square > 0, (true * found).sum(1) / np.where(square > 0, square, 1), 0)
            gap = np.abs(found - unit[:, None] * true)
            # The fitted unit is as wrong as the found values are.
            loose = 3 * (bounds + bounds[:, :1]) + 1e-12
            assert (gap <= loose).all(), kind
            codes.set_centre(rows.mean(0))


@pytest.mark.parametrize("dim", [64, 128, 192, 512, 768, 1024])
def test_the_rotation_keeps_inner_products(dim: int) -> None:
    a, b = torch.randn((5, dim), dtype=torch.float64), torch.randn((6, dim), dtype=torch.float64)
    rotation = Rotation(dim, CPU)
    torch.testing.assert_close(rotation.apply(a) @ rotation.apply(b).T, a @ b.T)
    spike = torch.zeros((1, dim))
    spike[0, 3] = 1
    assert rotation.apply(spike).abs().max() <= 8 / (dim & -dim) ** 0.5
    single = a.float()
    error = (rotation.apply(single).double() - rotation.apply(single.double())).norm(dim=1)
    assert (error <= rotation.growth * 2.0**-24 * single.double().norm(dim=1)).all()


def test_sums_of_half_precision_products_are_exact() -> None:
    """So that nothing of float16 stores is ever left to the host to decide."""
    rng = np.random.default_rng(1)
    entries = (rng.standard_normal((400, 96)) / 8).astype(np.float16)
    entries[200:300] = entries[100:200, ::-1]  # the same products in another order
    queries = np.repeat((rng.standard_normal((30, 48)) / 8).astype(np.float16), 2, axis=1)
    queries[:, :48] = queries[:, :47:-1]
    backend = DeviceBackend(entries, 20, device="cpu", engine=torch_engine())
    counted = assert_exact(backend, entries, queries, 20)
    assert counted.resolved == 0
    values, ids, _ = backend.search(queries, 0)
    assert (values[:, 1:] == values[:, :-1]).any()  # ties there are
    for row in range(30):
        exact = [exact_dot(queries[row], entries[w]) for w in ids[row]]
        assert values[row].tolist() == exact
    long = (entries * 100).astype(np.float16)
    assert_exact(
        DeviceBackend(long, 5, device="cpu", engine=torch_engine()), long, queries * 100, 5
    )


def test_places_in_blocks_are_all_places() -> None:
    for size in (8, 16, 32):
        block, index = torch.arange(40).repeat_interleave(size), torch.arange(size).repeat(40)
        places = _place(block, index, size)
        assert sorted(places.tolist()) == list(range(40 * size))
        # A block lies within four neighbouring ones.
        assert (places // (4 * size) == block // 4).all()


@pytest.mark.triton
@pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("dim", [40, 64, 100, 192, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_triton_prepares_queries_as_torch_does(
    dim: int, dtype: torch.dtype, form: CodeFormat
) -> None:
    engine = triton_engine()
    entries = torch.from_numpy(clip_like(300, dim, "text", 1)).to(interpreted())
    queries = torch.from_numpy(clip_like(21, dim, "image", 2)).to(interpreted()).to(dtype)
    queries[4] = 0
    queries[5] *= 1000
    if dtype == torch.float32:
        queries[6] *= 1e-30
    codes = EntryCodes(entries, 64, 16, form)
    largest = 1 if form == INT8 else 2.0  # one unit in the last place of the largest coordinate
    for _ in range(2):
        found, expected = engine.prepare(codes, queries), codes.prepare(queries)
        assert torch.equal(found.zero, expected.zero)
        assert found.extreme.nonzero()[:, 0].tolist() == ([6] if dtype == torch.float32 else [])
        plain = ~(found.zero | found.extreme)
        assert (found.codes[plain].float() - expected.codes[plain].float()).abs().max() <= largest
        for name in ("alpha", "per_norm", "per_residual", "slack"):
            mine, theirs = getattr(found, name)[plain], getattr(expected, name)[plain]
            if name == "per_norm" and form == BFLOAT16:
                # What was lost is measured, and the interpreter cuts off instead of rounding.
                assert (mine > 0.99 * theirs).all()
                assert (mine < 3 * theirs).all()
            else:
                torch.testing.assert_close(mine, theirs, rtol=5e-3, atol=1e-5)
        torch.testing.assert_close(found.unit[plain], expected.unit[plain], rtol=1e-5, atol=0)
        codes.set_centre(queries[10:].float().mean(0))


@pytest.mark.triton
@pytest.mark.parametrize(
    ("size", "dim", "k", "dtype"),
    [
        (700, 96, 5, np.float16),
        (200, 64, 100, np.float32),
        (130, 40, 1, np.float64),
        (1, 1, 1, np.float32),
    ],
)
def test_triton_kernels_against_brute_force(size: int, dim: int, k: int, dtype: Any) -> None:
    entries, queries = clip_like(size, dim, "text", 1), clip_like(18, dim, "image", 2)
    if dim == 1:
        entries, queries = np.ones((1, 1)), np.array([[2.0], [-1.0], [0.0]])
    entries, queries = entries.astype(dtype), queries.astype(dtype)
    backend = DeviceBackend(entries, k, device=interpreted(), engine=triton_engine())
    assert_exact(backend, entries, queries, k)


@pytest.mark.triton
@pytest.mark.parametrize("kind", ["near ties", "constant coordinates", "any norm"])
def test_triton_kernels_on_adversarial_data(kind: str) -> None:
    entries, queries = data(kind, np.float64)
    backend = DeviceBackend(entries[:600], 3, device=interpreted(), engine=triton_engine())
    assert_exact(backend, entries[:600], queries[:9], 3)


@pytest.mark.triton
@pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("block", [8, 16, 32])
def test_triton_proposals_are_those_of_torch(block: int, form: CodeFormat) -> None:
    engine = triton_engine(form=form.name)
    entries = torch.from_numpy(clip_like(500, 64, "text", 1)).to(interpreted())
    codes = EntryCodes(entries, 128, block, form)
    queries = torch.from_numpy(clip_like(20, 64, "image", 2)).to(interpreted())
    codes.set_centre(queries.mean(0))
    prepared = codes.prepare(queries)
    true = (queries.double() @ entries.double().T).topk(4).indices
    counts = []
    for proposals in (engine.proposals, TorchProposals(form)):
        found = proposals.find(prepared, codes, 4, 256)
        for row in range(20):
            places = found.places[row, : found.count[row]].long()
            names = codes.ids[places[places < 500]].tolist()
            assert len(set(names)) == len(names)
            assert set(true[row].tolist()) <= set(names)
        counts.append(int(found.count.sum()))
    # Triton's scores are rounded down by a few bits, and its threshold is found by halving.
    assert abs(counts[0] - counts[1]) < 0.2 * counts[1] + 4 * block


def assert_sampled(size: int, k: int) -> None:
    """The vocabulary is so large that some blocks give the threshold for the others."""
    from bliss_index.search.triton.proposals import TILE, _sample

    blocks = -(-size // TILE) * TILE // block_size(size, TILE, k)
    assert _sample(blocks, k, 16) < blocks


@pytest.mark.triton
@pytest.mark.parametrize(
    ("size", "dim", "k", "count", "form"),
    [
        (6800, 64, 10, 12, "int8"),
        (5000, 128, 3, 12, "int8"),
        (5000, 192, 1, 12, "int8"),
        (5000, 128, 3, 12, "bfloat16"),
        pytest.param(6800, 64, 10, 20, "bfloat16", marks=pytest.mark.slow),
        pytest.param(6800, 64, 10, 20, "int8", marks=pytest.mark.slow),
        pytest.param(5000, 192, 1, 12, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_triton_lists_the_blocks_that_reach_a_sample(
    size: int, dim: int, k: int, count: int, form: str
) -> None:
    """So large that a sample gives the threshold; one program or several for a query."""
    engine = triton_engine(16, 32, form)
    entries = clip_like(size, dim, "text", 1, np.float16)
    queries = clip_like(count, dim, "image", 2, np.float16)
    entries[4000:4040] = entries[4000]  # more equal entries than a block holds
    assert_sampled(size, k)
    backend = DeviceBackend(entries, k, device=interpreted(), engine=engine)
    counted = assert_exact(backend, entries, queries, k)
    assert counted.full_rows == 0
    # The products of the k most promising exclude some of the others: most, where bounds are wide.
    share = 0.8 if form == "int8" else 1.0
    assert k * count <= counted.rescored <= share * counted.candidates


@pytest.mark.parametrize("k", [1, 10, 50])
def test_lists_have_room_for_what_reaches_a_samples_threshold(k: int) -> None:
    """One list for a query, as on a GPU that has queries enough."""
    pytest.importorskip("triton")
    from bliss_index.search.triton.proposals import TILE, _room, _sample

    size = 40_000
    entries = torch.from_numpy(clip_like(size, 96, "text", 1, np.float16))
    queries = torch.from_numpy(clip_like(300, 96, "image", 2, np.float16))
    codes = EntryCodes(entries, TILE, block_size(size, TILE, k))
    codes.set_centre(queries.float().mean(0))
    prepared = codes.prepare(queries)
    best = TorchProposals()._block_best(prepared, codes)[0]
    bound = _bounds(prepared, codes)
    blocks = best.shape[1]
    sample = _sample(blocks, k, TILE // codes.block)
    assert sample < blocks
    threshold = (best - bound)[:, :sample].topk(k, dim=1).values[:, -1:]
    listed = (best + bound >= threshold)[:, sample:].sum(1)
    assert listed.max() < 0.9 * _room(blocks, sample, k, 1, 256)


@pytest.mark.parametrize(
    ("tiles", "at_once", "most"), [(512, 264, 1), (390, 264, 2), (160, 264, 3), (1, 264, 264)]
)
def test_a_product_is_cut_so_that_a_device_is_occupied(tiles: int, at_once: int, most: int) -> None:
    pytest.importorskip("triton")
    from bliss_index.search.triton.proposals import _sections

    sections, share = _sections(tiles, 31_250, 4, at_once)
    assert share % 4 == 0
    assert (sections - 1) * share < 31_250 <= sections * share
    assert 1 <= sections <= most
    programs = tiles * sections
    assert programs > 0.85 * (-(-programs // at_once) * at_once)


@pytest.mark.triton
def test_triton_counts_what_it_has_no_room_for() -> None:
    """Hundreds of entries as good as the best: such queries are searched in full."""
    entries = clip_like(5000, 64, "text", 1, np.float16)
    queries = clip_like(6, 64, "image", 2, np.float16)
    nearest = reference_search(entries, queries[:1], 1)[1][0, 0]
    entries[2000:4000] = entries[nearest]
    assert_sampled(5000, 5)
    backend = DeviceBackend(entries, 5, device=interpreted(), engine=triton_engine(32))
    counted = assert_exact(backend, entries, queries, 5)
    assert counted.full_rows > 0


@pytest.mark.triton
@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((16, 16), 18),
        ((16, 64), 6),
        ((32, 128), 6),
        pytest.param((64, 32), 18, marks=pytest.mark.slow),
        pytest.param((16, 64), 18, marks=pytest.mark.slow),
        pytest.param((32, 128), 18, marks=pytest.mark.slow),
    ],
)
def test_no_shape_of_tiles_changes_a_result(shape: tuple[int, int], count: int) -> None:
    entries = clip_like(4200, 64, "text", 1, np.float16)
    queries = clip_like(count, 64, "image", 2, np.float16)
    assert_sampled(4200, 3)
    backend = DeviceBackend(entries, 3, device=interpreted(), engine=triton_engine(*shape))
    assert_exact(backend, entries, queries, 3)


def test_tensors_of_bfloat16_are_searched_and_integers_refused() -> None:
    entries = clip_like(600, 32, "text", 1)
    queries = torch.from_numpy(clip_like(40, 32, "image", 2)).bfloat16()
    entries[100:200] = entries[:100]  # which the host has to decide
    backend = DeviceBackend(entries, 5, device="cpu", engine=torch_engine())
    _, ids, counted = backend.search_tensors(queries)
    expected = reference_search(entries, queries.float().numpy(), 5)[1]
    np.testing.assert_array_equal(ids.numpy(), expected)
    assert counted.resolved > 0
    with pytest.raises(InvalidInputError, match=r"must be floating-point numbers, got torch.int64"):
        require_tensor(torch.zeros((2, 32), dtype=torch.int64), 32, CPU)


def test_codes_that_do_not_fit_are_for_torch() -> None:
    pytest.importorskip("triton")
    from bliss_index.search.triton.proposals import TileShape, fitting_shape, why_too_long

    assert fitting_shape(512, 227 << 10) == TileShape()  # twice
    assert fitting_shape(256, 227 << 10) == TileShape(stages=3)
    assert fitting_shape(1024, 227 << 10) == TileShape()  # once
    for code_bytes, shared in ((768, 227 << 10), (1536, 227 << 10), (512, 99 << 10)):
        shape = fitting_shape(code_bytes, shared)
        assert shape is not None
        assert shape.shared_bytes(code_bytes) <= shared
    assert fitting_shape(8192, 99 << 10) is None
    assert why_too_long(768, INT8, CPU) == ""
    assert "codes of 65536 bytes" in why_too_long(65536, INT8, CPU)


@pytest.mark.triton
@pytest.mark.parametrize(("classes", "k"), [(1, 1), (3, 10), (1500, 4)])
def test_the_scoring_kernels_give_the_same_bits(classes: int, k: int) -> None:
    engine = triton_engine()
    rng = np.random.default_rng(5)
    n, size = 9, 50
    similarities = rng.random((n, k), dtype=np.float32)
    ids = rng.integers(0, size, (n, k))
    scale, shift = rng.random((2, size, classes), dtype=np.float32)
    products, mu = rng.standard_normal((n, classes)), rng.standard_normal(classes)
    sigma = rng.random(classes) + 0.5
    if classes > 2:  # equal totals: the first class wins
        for columns in (scale, shift, products, mu, sigma):
            columns[..., 2] = columns[..., 0]
    internal = (mu - products) / sigma
    arguments: list[Any] = [
        torch.from_numpy(a).to(interpreted())
        for a in (similarities, ids, scale, shift, products, mu, sigma)
    ]
    arguments[4:] = [Internal(*arguments[4:])]
    found = engine.score_kernel(*arguments, 0.37)
    for mine, theirs in zip(found, torch_score_kernel(*arguments, 0.37), strict=True):
        assert torch.equal(mine, theirs)
    total = np.zeros((n, classes))
    for j in range(k):  # in the order of the entries, every product and sum rounded by itself
        slope, offset = scale[ids[:, j]].astype(np.float64), shift[ids[:, j]]
        total += similarities[:, j, None].astype(np.float64) * slope - offset
    outer = total / k
    score = internal + 0.37 * outer
    winner = score.argmin(1)[:, None]
    expected = (
        np.take_along_axis(score, winner, 1),
        winner,
        np.take_along_axis(internal, winner, 1),
        np.take_along_axis(outer, winner, 1),
    )
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.cpu().numpy(), right[:, 0])


@pytest.mark.slow
def test_kernels_compile_for_gpus() -> None:
    """To machine code for two generations: the product in int8 tensor-core instructions."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "triton_compile.py")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert any(name.startswith("wgmma") and ".s8.s8" in name for name in facts["90"]["products"])
    assert any("s8.s8" in name for name in facts["80"]["products"])
    for capability in ("80", "90"):
        assert any("bf16" in name for name in facts[capability]["products"])
    for capability in facts.values():
        assert capability["spilled"] < 64  # bytes a thread
        assert capability["spare_shared"] >= 0  # what is reckoned is enough
        # Sums of scoring must not be fused: their bits are those of the other scoring kernels.
        assert capability["fused_in_score_kernel"] == 0


def test_shapes_of_tiles_are_checked() -> None:
    pytest.importorskip("triton")
    from bliss_index.search.triton.proposals import TileShape

    with pytest.raises(InvalidInputError, match="entries must be a power of two .* got 96"):
        TileShape(entries=96)
    with pytest.raises(InvalidInputError, match="queries must be .* from 16 to 1024, got 8"):
        TileShape(queries=8)
    with pytest.raises(InvalidInputError, match="codes must be one of int8, bfloat16, got 'int4'"):
        DeviceOptions(codes="int4")
    with pytest.raises(InvalidInputError, match="rows must be a whole number, at least 1, got 0"):
        DeviceOptions(rows=0)


@pytest.mark.skipif(find_gpu()[0] is not None, reason="there is a GPU")
def test_without_a_gpu_the_reason_is_named() -> None:
    entries = np.eye(4, dtype=np.float32)
    with pytest.raises(MissingDependencyError, match="'cuda' cannot be used: .*GPU"):
        exact_search(entries, 1, backend="cuda")
    with pytest.raises(MissingDependencyError, match="'cuda:1' cannot be used"):
        exact_search(entries, 1, device="cuda:1")
    with pytest.raises(InvalidInputError, match="'cuda' runs on a GPU, not on device 'cpu'"):
        exact_search(entries, 1, backend="cuda", device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(find_gpu()[0] is None, reason="no GPU")
@pytest.mark.parametrize("size", [1_000, 20_000, 100_000])
@pytest.mark.parametrize("dim", [512, 768])
def test_on_a_gpu(size: int, dim: int) -> None:
    entries = clip_like(size, dim, "text", 1, np.float16)
    queries = clip_like(500, dim, "image", 2, np.float16)
    for k in (1, 10, 100):
        for backend in ("cuda", "torch"):
            search = exact_search(entries, k, backend=backend, device="cuda")
            similarities, ids = search.search(queries)
            expected = reference_search(entries, queries, k)
            np.testing.assert_array_equal(ids, expected[1])
            np.testing.assert_array_equal(similarities, expected[0])
