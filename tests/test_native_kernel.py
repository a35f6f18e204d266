"""The native engine's own switches: kernels, block sizes, capacities, interruption."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bliss_index.errors import InvalidInputError
from bliss_index.search import reference_search
from bliss_index.search.duplicates import find_duplicates
from bliss_index.search.native_backend import NativeBackend, load_native, why_unfit

native, found_kernel = load_native()
KERNELS = [
    k for k in ("amx-int8", "avx512-vnni", "avx2") if native is not None and native.has_kernel(k)
]
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
    for query_block, capacity, threads in [(8, 0, 1), (16, 64, 3), (1024, 100, 2), (128, 56, 5)]:
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
    small = NativeBackend(rows(9, 1000, 64), 5, threads=1).memory_bytes
    large = NativeBackend(rows(9, 50_000, 64), 5, threads=1).memory_bytes
    assert 49_000 * 64 < large - small < 49_000 * (64 + 64)


def test_interrupt_stops_a_long_search() -> None:
    require_native()
    backend = NativeBackend(rows(10, 60_000, 128), 5, threads=1)
    queries = rows(11, 60_000, 128)  # far more work than the signal waits for
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
        duplicates, "_digests", lambda matrix: np.zeros(len(matrix), dtype=np.uint64)
    )
    matrix = rows(13, 6, 5)
    assert find_duplicates(matrix) is None
    matrix[4] = matrix[0]
    sets = find_duplicates(matrix)
    assert sets is not None
    assert sets.first.tolist() == [0, 1, 2, 3, 5]
