"""The native engine's own switches: kernels, block sizes, capacities, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_torch_proposals import KINDS, data

from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.errors import InvalidInputError
from bliss_index.search import reference_search
from bliss_index.search.duplicates import find_duplicates
from bliss_index.search.native.backend import NativeBackend, load_native, why_unfit

native, found_kernel = load_native()
KERNELS = [] if native is None else native.kernel_names()
Array = npt.NDArray[Any]


def rows(seed: int, count: int, dim: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(dtype)


def require_native() -> None:
    if native is None:
        pytest.skip(f"native backend: {found_kernel}")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dim", [3, 17, 64, 200])
def test_every_kernel_equals_the_reference(kernel: str, dtype: Any, dim: int) -> None:
    vocabulary, queries = rows(0, 1111, dim, dtype), rows(1, 77, dim, dtype)
    vocabulary = np.unique(vocabulary, axis=0)
    backend = NativeBackend(vocabulary, 10, threads=2, kernel=kernel)
    values, ids, statistics = backend.search(queries, 0)
    similarities, expected = reference_search(vocabulary, queries, 10)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values.astype(np.float32), similarities)
    assert statistics.queries == 77
    assert kernel in backend.description


def assert_exact(kernel: str, vocabulary: Array, queries: Array, k: int, **tuning: int) -> Any:
    """Compare with float64 brute force; return the counters."""
    backend = NativeBackend(vocabulary, k, threads=2, kernel=kernel, **tuning)
    values, ids, counted = backend.search(queries, 0)
    similarities, expected = reference_search(vocabulary, queries, k)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values.astype(np.float32), similarities)
    return counted


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 97, 2047])
def test_panels_that_are_not_full(kernel: str, size: int) -> None:
    for dim, count in [(1, 3), (63, 33), (64, 32), (65, 1)]:
        vocabulary, queries = rows(20, size, dim), rows(21, count, dim)
        assert_exact(kernel, vocabulary, queries, min(size, 3))
        assert_exact(kernel, vocabulary, queries, min(size, 2048))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_products_lie_in_their_intervals(kernel: str, dtype: Any, kind: str) -> None:
    """Of every pair, not only of those that are rescored; before and after a centre is found."""
    if kind == "any norm" and dtype is np.float16:
        pytest.skip("float16 has no such norms")
    entries, queries = data(kind, dtype)
    queries[0] = 0
    known = queries.any(axis=1)
    backend = NativeBackend(entries, 3, threads=1, kernel=kernel, capacity=len(entries))
    wide, rows = entries.astype(np.longdouble), queries.astype(np.longdouble)
    true = rows @ (wide - wide.mean(0)).T
    norms = np.linalg.norm(rows.astype(float), axis=1)[:, None]
    lengths = np.linalg.norm(wide.astype(float), axis=1)
    roundings = 1e-14 * norms * (lengths + np.linalg.norm(wide.mean(0).astype(float)))
    widths = []
    for _ in range(2):
        lower, upper = backend.intervals(queries)
        assert np.isnan(lower[~known]).all()
        assert np.isnan(upper[~known]).all()
        assert (lower[known] <= (true + roundings)[known]).all()
        assert (upper[known] >= (true - roundings)[known]).all()
        widths.append(np.median((upper - lower)[known]))
        backend.search(queries, 0)  # which finds the centre of the queries
    if kind == "clip":
        assert widths[1] < 0.9 * widths[0]
        assert widths[1] < 0.1 * np.median(norms) * np.median(lengths)


def test_intervals_need_room_for_all_entries() -> None:
    require_native()
    backend = NativeBackend(rows(0, 2000, 16), 3, threads=1)
    with pytest.raises(InvalidInputError, match="intervals of 2000 entries need a capacity"):
        backend.intervals(rows(1, 2, 16))


def hard_data(case: str) -> tuple[Array, Array]:
    rng = np.random.default_rng(22)
    vocabulary, queries = rows(23, 2500, 48), rows(24, 70, 48)
    if case == "near ties":
        vocabulary = (vocabulary[:1] + 1e-7 * vocabulary).astype(np.float32)
    if case == "a huge entry":
        vocabulary[77] *= 1e5
        vocabulary[1234] *= 1e-5
    if case == "any norm":
        vocabulary = np.ldexp(vocabulary, rng.integers(-30, 30, (2500, 1)))
        queries = np.ldexp(queries, rng.integers(-80, 80, (70, 1)))
    if case == "outliers":
        vocabulary[:, 5], queries[:, 5], vocabulary[:, 8] = 10.0, -30.0, 1e3
    if case == "a lattice":
        vocabulary, queries = np.rint(vocabulary * 2), np.rint(queries * 2)
    if case == "equal entries":
        vocabulary = vocabulary[rng.integers(0, 12, 2500)]
    if case == "zero queries":
        queries[::3] = 0
    if case == "float64":
        return vocabulary.astype(np.float64) * np.pi, queries.astype(np.float64) / np.pi
    return vocabulary.astype(np.float32), queries.astype(np.float32)


HARD = ["near ties", "a huge entry", "any norm", "outliers", "a lattice", "equal entries",
        "zero queries", "float64"]  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", HARD)
def test_hard_data(kernel: str, case: str) -> None:
    vocabulary, queries = hard_data(case)
    for k in (1, 10, 100):
        assert_exact(kernel, vocabulary, queries, k)


@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_that_do_not_fit(kernel: str) -> None:
    # Two far ends make the quantisation step coarse; the rest cannot be told apart by it.
    vocabulary, queries = 1e-9 * rows(27, 2500, 16), rows(28, 70, 16)
    vocabulary[:2] = [[1e6] * 16, [-1e6] * 16]
    queries -= queries.mean(axis=1, keepdims=True)
    counted = assert_exact(kernel, vocabulary, queries, 5, capacity=64)
    assert counted.full_rows == len(queries)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_queries_with_many_near_entries_are_searched_again(kernel: str, dtype: Any) -> None:
    # Clusters that the integer pass cannot look into: more entries than the first room holds, as
    # many as the second does.
    clusters = np.repeat(rows(31, 30, 32, np.float64), 200, axis=0)
    vocabulary = np.unique((clusters + 3e-3 * rows(32, 6000, 32)).astype(dtype), axis=0)
    queries = (rows(33, 300, 32, np.float64) + clusters[::20]).astype(dtype)
    queries[7] = 0
    for k in (3, 5):
        counted = assert_exact(kernel, vocabulary, queries, k, capacity=64)
        assert len(queries) // 2 < counted.second_rows <= len(queries)
        assert counted.full_rows == 0
        assert assert_exact(kernel, vocabulary, queries, k, capacity=1024).second_rows == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_bad_rows_are_named_beside_rows_that_are_searched_again(kernel: str) -> None:
    clusters = np.repeat(rows(31, 30, 32), 200, axis=0)
    vocabulary = clusters + 3e-3 * rows(32, 6000, 32)
    queries = rows(33, 300, 32) + clusters[::20]
    queries[[3, 250]] = np.nan
    backend = NativeBackend(vocabulary, 5, threads=2, kernel=kernel, capacity=64)
    with pytest.raises(InvalidInputError, match=r"row\(s\) 1003, 1250"):
        backend.search(queries, 1000)


@pytest.mark.parametrize("kernel", KERNELS)
def test_calls_at_the_same_time(kernel: str) -> None:
    vocabulary, queries = rows(25, 3000, 40), rows(26, 700, 40)
    backend = NativeBackend(vocabulary, 10, threads=2, kernel=kernel)
    expected = reference_search(vocabulary, queries, 10)[1]
    found: list[Array] = []
    workers = [
        threading.Thread(target=lambda: found.append(backend.search(queries, 0)[1]))
        for _ in range(5)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 5
    for ids in found:
        np.testing.assert_array_equal(ids, expected)


@pytest.mark.skipif("amx-int8" not in KERNELS, reason="no AMX here")
def test_without_permission_for_amx_the_next_kernel_serves() -> None:
    # Linux refuses the tile registers to a process whose signal stack could not hold them.
    code = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer(8192)
stack = Stack(ctypes.addressof(room), 0, len(room))
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
from bliss_index.search import _native
print(*_native.kernel_names())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["avx512-vnni", "avx2"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_codes_at_their_limits(kernel: str) -> None:
    # Every code is at the end of its range: sums of 16-bit pairs must not saturate.
    signs = np.sign(rows(2, 300, 4096))
    queries = np.concatenate([signs[:40], -signs[:8], np.ones((1, 4096), dtype=np.float32)])
    backend = NativeBackend(signs, 5, threads=1, kernel=kernel)
    values, ids, _ = backend.search(queries, 0)
    similarities, expected = reference_search(signs, queries, 5)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values.astype(np.float32), similarities)


@pytest.mark.parametrize("kernel", KERNELS)
def test_block_capacity_and_threads_change_nothing(kernel: str) -> None:
    vocabulary, queries = rows(3, 4000, 24), rows(4, 500, 24)
    expected = reference_search(vocabulary, queries, 7)[1]
    for query_block, capacity, threads in [(8, 0, 1), (16, 64, 3), (1024, 100, 2), (96, 56, 5)]:
        backend = NativeBackend(
            vocabulary, 7, threads=threads, kernel=kernel,
            query_block=query_block, capacity=capacity,
        )  # fmt: skip
        np.testing.assert_array_equal(backend.search(queries, 0)[1], expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_sorted_vocabulary(kernel: str) -> None:
    vocabulary, queries = rows(5, 9000, 16), rows(6, 40, 16)
    for order in (1, -1):
        by_score = vocabulary[np.argsort(order * (vocabulary @ queries[0]))]
        backend = NativeBackend(by_score, 10, threads=1, kernel=kernel)
        expected = reference_search(by_score, queries, 10)[1]
        np.testing.assert_array_equal(backend.search(queries, 0)[1], expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_candidate_lies_within_the_bound(kernel: str) -> None:
    # Where the bound holds, no search ever misses an entry: look for one in many small cases.
    rng = np.random.default_rng(7)
    for trial in range(60):
        dim = int(rng.integers(2, 90))
        spectrum = 10.0 ** -rng.uniform(0, 4, dim)
        vocabulary = (rng.standard_normal((200, dim)) * spectrum + rng.standard_normal(dim)).astype(
            np.float32
        )
        queries = (rng.standard_normal((40, dim)) / spectrum).astype(np.float32)
        queries *= (10.0 ** rng.uniform(-6, 6, (40, 1))).astype(np.float32)
        backend = NativeBackend(vocabulary, 3, threads=1, kernel=kernel)
        expected = reference_search(vocabulary, queries, 3)[1]
        np.testing.assert_array_equal(backend.search(queries, 0)[1], expected, f"trial {trial}")


def test_kernel_that_does_not_exist() -> None:
    require_native()
    with pytest.raises(InvalidInputError, match="'sse9' cannot run here"):
        NativeBackend(rows(8, 9, 4), 2, threads=1, kernel="sse9")


def test_unfit_vocabulary_is_told() -> None:
    assert "70000 is above 65536" in why_unfit(np.empty((1, 70000), dtype=np.float16))
    assert why_unfit(np.empty((5, 512), dtype=np.float16)) == ""


def test_memory_is_stated() -> None:
    require_native()
    for least, most in [(1000, 16_000), (17_000, 50_000)]:  # from 16,384 on there is more room
        small = NativeBackend(rows(9, least, 64), 5, threads=1).memory_bytes
        large = NativeBackend(rows(9, most, 64), 5, threads=1).memory_bytes
        assert (most - least) * 64 < large - small < (most - least) * (64 + 64)


def test_interrupt_stops_a_long_search() -> None:
    require_native()
    backend = NativeBackend(rows(10, 60_000, 128), 5, threads=1)
    queries = np.tile(rows(11, 20_000, 128), (15, 1))  # far more work than the signal waits for
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    start = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        backend.search(queries, 0)
    timer.join()
    assert time.monotonic() - start < 30


def test_duplicates_are_found_by_value() -> None:
    matrix = rows(12, 200, 5)
    assert find_duplicates(matrix) is None
    matrix[[7, 150, 199]] = matrix[3]
    matrix[90] = matrix[80]
    sets = find_duplicates(matrix)
    assert sets is not None
    assert sets.first.size == 196
    members = [
        sets.members[a:b].tolist()
        for a, b in zip(sets.starts[:-1], sets.starts[1:], strict=True)
        if b - a > 1
    ]
    assert members == [[3, 7, 150, 199], [80, 90]]


def test_rows_with_equal_digests_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from bliss_index.search import duplicates

    monkeypatch.setattr(
        duplicates, "row_digests", lambda matrix: np.zeros(len(matrix), dtype=np.uint64)
    )
    matrix = rows(13, 6, 5)
    assert find_duplicates(matrix) is None
    matrix[4] = matrix[0]
    sets = find_duplicates(matrix)
    assert sets is not None
    assert sets.first.tolist() == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("kernel", KERNELS)
def test_few_near_entries_are_not_searched_in_full(kernel: str) -> None:
    """Of 2,000 entries in six heaps, those of an image's own heap are all candidates."""
    entries = clustered(2000, 512, 2, dtype=np.float16)
    counted = assert_exact(kernel, entries, clip_like(512, 512, "image", 1), 10)
    assert counted.second_rows > 0
    assert counted.full_rows <= 1
