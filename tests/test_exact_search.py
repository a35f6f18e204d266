"""Exact search against float64 brute force, on every backend that runs here."""

from __future__ import annotations

import os
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bliss_index.errors import InvalidInputError
from bliss_index.search import (
    ExactSearch,
    SearchStatistics,
    TopKSearch,
    available_backends,
    exact_search,
    reference_search,
)
from bliss_index.search.certificate.ordering import exact_dot

Array = npt.NDArray[Any]
BACKENDS = [
    name for name, text in available_backends().items() if not text.startswith("unavailable")
]
TYPES = [np.float16, np.float32, np.float64]
REALDATA = os.environ.get("BLISS_INDEX_REALDATA", "")


def random_rows(seed: int, rows: int, dim: int, dtype: Any = np.float32) -> Array:
    values = np.random.default_rng(seed).standard_normal((rows, dim))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(dtype)


def exact_order(vocabulary: Array, queries: Array, k: int) -> tuple[Array, Array]:
    """Order by rational arithmetic: independent of every line under test."""
    similarities = np.empty((len(queries), k), dtype=np.float32)
    ids = np.empty((len(queries), k), dtype=np.int64)
    entries = [[Fraction(float(v)) for v in row] for row in vocabulary]
    for i, query in enumerate(queries):
        x = [Fraction(float(v)) for v in query]
        values = [
            float(sum((a * b for a, b in zip(x, t, strict=True)), Fraction(0))) for t in entries
        ]
        order = sorted(range(len(values)), key=lambda w: (-values[w], w))[:k]
        ids[i] = order
        similarities[i] = np.array([values[w] for w in order]).astype(np.float32)
    return similarities, ids


def assert_same(found: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int64


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_reference_follows_rational_arithmetic(dtype: Any, scale: float) -> None:
    vocabulary = (random_rows(0, 40, 7) * scale).astype(dtype)
    vocabulary[20:30] = vocabulary[3]
    queries = random_rows(1, 9, 7, dtype)
    for k in (1, 5, 40):
        assert_same(reference_search(vocabulary, queries, k), exact_order(vocabulary, queries, k))


def test_exact_dot_rounds_once() -> None:
    x, t = np.array([1e140, 1.0, -1e140]), np.array([1e140, 2.0**-60, 1e140])
    assert exact_dot(x, t) == 2.0**-60
    # A half-way case that a second rounding would get wrong: 1 + 2**-53 + 2**-106.
    x = np.array([1.0, 2.0**-53, 2.0**-53])
    assert exact_dot(x, np.array([1.0, 1.0, 2.0**-53])) == 1.0 + 2.0**-52


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 7, 10, 1000, 20_011])
def test_equals_reference(backend: str, dtype: Any, size: int) -> None:
    vocabulary = random_rows(size, size, 24, dtype)
    queries = random_rows(1, 33, 24, dtype)
    for k in {1, min(10, size), min(300, size)}:
        search = exact_search(vocabulary, k, backend=backend)
        assert_same(search.search(queries), reference_search(vocabulary, queries, k))
        assert (search.size, search.dim, search.k, search.name) == (size, 24, k, "exact")
        assert search.backend == backend
        assert isinstance(search, TopKSearch)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [1, 2, 3, 15, 16, 17, 31, 48, 100, 512, 768])
def test_any_dimension(backend: str, dim: int) -> None:
    vocabulary, queries = random_rows(2, 611, dim), random_rows(3, 20, dim)
    found = exact_search(vocabulary, 10, backend=backend).search(queries)
    assert_same(found, reference_search(vocabulary, queries, 10))


@pytest.mark.parametrize("backend", BACKENDS)
def test_largest_k(backend: str) -> None:
    vocabulary, queries = random_rows(2, 5000, 32), random_rows(3, 6, 32)
    found = exact_search(vocabulary, 2048, backend=backend).search(queries)
    assert_same(found, reference_search(vocabulary, queries, 2048))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("types", [(a, b) for a in TYPES for b in TYPES if a is not b])
def test_mixed_types(backend: str, types: tuple[Any, Any]) -> None:
    vocabulary, queries = random_rows(4, 500, 40, types[0]), random_rows(5, 12, 40, types[1])
    found = exact_search(vocabulary, 10, backend=backend).search(queries)
    assert_same(found, reference_search(vocabulary, queries, 10))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES)
def test_duplicates_come_in_order_of_id(backend: str, dtype: Any) -> None:
    vocabulary = random_rows(6, 3000, 32, dtype)
    vocabulary[100:2900:7] = vocabulary[50]
    vocabulary[[0, 47, 48, 95, 96, 2999]] = vocabulary[10]
    queries = np.concatenate([random_rows(7, 5, 32, dtype), vocabulary[[50, 10]]])
    for k in (1, 10, 500):
        found = exact_search(vocabulary, k, backend=backend).search(queries)
        assert_same(found, reference_search(vocabulary, queries, k))
    assert found[1][5, :3].tolist() == [50, 100, 107]
    assert found[1][6, :7].tolist() == [0, 10, 47, 48, 95, 96, 2999]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [3, 2500])
def test_all_entries_equal(backend: str, size: int) -> None:
    vocabulary = np.tile(random_rows(8, 1, 20), (size, 1))
    k = min(size, 100)
    _, ids = exact_search(vocabulary, k, backend=backend).search(random_rows(9, 4, 20))
    np.testing.assert_array_equal(ids, np.tile(np.arange(k), (4, 1)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gap", [1e-4, 1e-7, 1e-12, 1e-16])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_near_ties_overflow_the_bound(backend: str, gap: float, dtype: Any) -> None:
    rng = np.random.default_rng(10)
    vocabulary = random_rows(11, 1, 48, np.float64) + gap * rng.standard_normal((3000, 48))
    vocabulary = vocabulary.astype(dtype)
    queries = random_rows(12, 7, 48, dtype)
    search = exact_search(vocabulary, 10, backend=backend)
    assert_same(search.search(queries), reference_search(vocabulary, queries, 10))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_whose_bound_fails_are_counted(backend: str) -> None:
    # Two far ends make the quantisation step coarse; the rest cannot be told apart by it.
    rng = np.random.default_rng(13)
    vocabulary = (1e-9 * rng.standard_normal((4000, 16))).astype(np.float32)
    vocabulary[:2] = [[1e6] * 16, [-1e6] * 16]
    queries = np.zeros((5, 16), dtype=np.float32)
    queries[:, :2] = [1.0, -1.0]
    queries[:, 2:] = 1e-3 * rng.standard_normal((5, 14))
    queries -= queries.mean(axis=1, keepdims=True)
    search = exact_search(vocabulary, 100, backend=backend)
    assert_same(search.search(queries), reference_search(vocabulary, queries, 100))
    assert search.statistics.full_rows == 5
    assert search.statistics.queries == 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponents", [(-140, -100), (-40, 0), (0, 60), (60, 120), (-140, 120)])
def test_norms_of_any_size(backend: str, exponents: tuple[int, int]) -> None:
    rng = np.random.default_rng(14)

    def spread(rows: int) -> Array:
        powers = rng.integers(*exponents, size=(rows, 1))
        return np.ldexp(rng.standard_normal((rows, 20)), powers).astype(np.float32)

    vocabulary, queries = spread(400), spread(30)
    queries[3] = 0
    found = exact_search(vocabulary, 10, backend=backend).search(queries)
    assert_same(found, reference_search(vocabulary, queries, 10))
    wide = np.ldexp(vocabulary.astype(np.float64), 150)
    found = exact_search(wide, 10, backend=backend).search(queries)
    assert_same(found, reference_search(wide, queries, 10))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_huge_entry_among_small_ones(backend: str) -> None:
    vocabulary = random_rows(15, 2000, 64)
    vocabulary[77] *= 1e4
    vocabulary[1234] *= 1e-4
    queries = random_rows(16, 40, 64)
    found = exact_search(vocabulary, 10, backend=backend).search(queries)
    assert_same(found, reference_search(vocabulary, queries, 10))


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_and_outlier_coordinates(backend: str) -> None:
    vocabulary, queries = random_rows(17, 900, 64), random_rows(18, 50, 64)
    vocabulary[:, 5], queries[:, 5] = 10.0, -3.0
    vocabulary[:, 6], queries[:, 7] = 0.0, 0.0
    vocabulary[:, 8] = 1e3
    found = exact_search(vocabulary, 10, backend=backend).search(queries)
    assert_same(found, reference_search(vocabulary, queries, 10))


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthogonal_one_hot_rows(backend: str) -> None:
    vocabulary = np.eye(96, dtype=np.float32)[np.arange(500) % 96]
    queries = np.concatenate([np.eye(96, dtype=np.float32)[:4], random_rows(19, 3, 96)])
    found = exact_search(vocabulary, 60, backend=backend).search(queries)
    assert_same(found, reference_search(vocabulary, queries, 60))


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_are_entries(backend: str) -> None:
    vocabulary = random_rows(20, 1500, 128, np.float16)
    similarities, ids = exact_search(vocabulary, 1, backend=backend).search(vocabulary)
    np.testing.assert_array_equal(ids[:, 0], np.arange(1500))
    np.testing.assert_allclose(similarities[:, 0], 1.0, atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_do_not_depend_on_batches(backend: str) -> None:
    vocabulary, queries = random_rows(21, 2000, 40, np.float16), random_rows(22, 300, 40)
    search = exact_search(vocabulary, 10, backend=backend)
    whole = search.search(queries)
    for size in (1, 7, 64, 299):
        parts = [search.search(queries[i : i + size]) for i in range(0, 300, size)]
        joined = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        assert_same(joined, whole)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 400),
    dim=st.integers(1, 70),
    rows=st.integers(0, 60),
    levels=st.sampled_from([1, 2, 5, 0]),
    dtype=st.sampled_from(TYPES),
    tile=st.sampled_from([None, (8, 64), (24, 100), (64, 4096)]),
    threads=st.integers(1, 3),
    data=st.data(),
)
def test_any_tile_batch_and_threads_agree(
    seed: int,
    size: int,
    dim: int,
    rows: int,
    levels: int,
    dtype: Any,
    tile: tuple[int, int] | None,
    threads: int,
    data: st.DataObject,
) -> None:
    rng = np.random.default_rng(seed)
    vocabulary, queries = rng.standard_normal((size, dim)), rng.standard_normal((rows, dim))
    if levels:  # a coarse lattice is full of exact ties between different vectors
        vocabulary, queries = np.rint(vocabulary * levels), np.rint(queries * levels)
    vocabulary, queries = vocabulary.astype(dtype), queries.astype(dtype)
    k = data.draw(st.integers(1, size))
    expected = reference_search(vocabulary, queries, k)
    for backend in BACKENDS:
        search = ExactSearch(vocabulary, k, backend=backend, threads=threads, tile=tile)
        assert_same(search.search(queries), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_searches_run_beside_each_other(backend: str) -> None:
    vocabulary, queries = random_rows(23, 1000, 32), random_rows(24, 200, 32)
    search = exact_search(vocabulary, 10, backend=backend)
    expected = reference_search(vocabulary, queries, 10)
    results: list[tuple[Array, Array]] = []
    workers = [
        threading.Thread(target=lambda: results.append(search.search(queries))) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        assert_same(result, expected)
    assert search.statistics.queries == 800


@pytest.mark.parametrize("backend", BACKENDS)
def test_array_layouts(backend: str) -> None:
    vocabulary, queries = random_rows(25, 300, 32), random_rows(26, 20, 32)
    expected = reference_search(vocabulary, queries, 5)
    read_only = vocabulary.copy()
    read_only.flags.writeable = False
    for entries in (read_only, np.asfortranarray(vocabulary), vocabulary.astype(">f4")):
        search = exact_search(entries, 5, backend=backend)
        assert_same(search.search(np.asfortranarray(queries)), expected)
        assert_same(search.search(queries.astype(">f4")), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend: str) -> None:
    search = exact_search(random_rows(27, 30, 8), 4, backend=backend)
    similarities, ids = search.search(np.empty((0, 8), dtype=np.float32))
    assert similarities.shape == ids.shape == (0, 4)
    assert search.statistics == SearchStatistics()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_bad_queries_are_named(backend: str, dtype: Any, value: float) -> None:
    search = exact_search(random_rows(28, 50, 8, dtype), 4, backend=backend)
    queries = random_rows(29, 9000, 8, dtype)
    queries[[3, 8500], 2] = value
    with pytest.raises(InvalidInputError, match=r"queries hold NaN or infinity in row\(s\) 3"):
        search.search(queries)
    queries[3, 2] = 0
    with pytest.raises(InvalidInputError, match="8500"):
        search.search(queries)


def test_bad_entries_are_named() -> None:
    vocabulary = random_rows(30, 50, 8)
    vocabulary[41, 7] = np.nan
    with pytest.raises(InvalidInputError, match=r"vocabulary entries.* row\(s\) 41"):
        exact_search(vocabulary, 4)
    with pytest.raises(InvalidInputError, match=r"row 1 .*1e\+200"):
        exact_search(np.array([[1.0], [1e200]]), 1)


def test_errors_name_both_values() -> None:
    vocabulary = random_rows(31, 50, 8)
    with pytest.raises(InvalidInputError, match=r"k = 51 .* 50 entries"):
        exact_search(vocabulary, 51)
    with pytest.raises(InvalidInputError, match="1 and 2048, got 0"):
        exact_search(vocabulary, 0)
    with pytest.raises(InvalidInputError, match="1 and 2048, got 3000"):
        exact_search(np.zeros((4000, 2), dtype=np.float32), 3000)
    with pytest.raises(InvalidInputError, match="dimension 9, .* dimension 8"):
        exact_search(vocabulary, 4).search(random_rows(32, 3, 9))
    with pytest.raises(InvalidInputError, match=r"shape \(8,\)"):
        exact_search(vocabulary, 4).search(vocabulary[0])
    with pytest.raises(InvalidInputError, match=r"got str; of a store, give .*embeddings\(\)"):
        exact_search("corpus", 4)
    with pytest.raises(InvalidInputError, match="got int64"):
        exact_search(np.ones((3, 3), dtype=np.int64), 1)
    with pytest.raises(InvalidInputError, match="'cuda-magic'"):
        exact_search(vocabulary, 4, backend="cuda-magic")
    with pytest.raises(InvalidInputError, match="got 0"):
        exact_search(vocabulary, 4, threads=0)
    with pytest.raises(InvalidInputError, match="not on device 'cuda'"):
        exact_search(vocabulary, 4, backend="native", device="cuda")


def test_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = random_rows(33, 50, 8)
    monkeypatch.setenv("BLISS_INDEX_THREADS", "many")
    with pytest.raises(InvalidInputError, match="'many'"):
        exact_search(vocabulary, 4)
    monkeypatch.setenv("BLISS_INDEX_THREADS", "3")
    search = exact_search(vocabulary, 4)
    if search.backend == "native":
        assert "3 threads" in search.describe()


def test_description_and_memory() -> None:
    vocabulary = random_rows(34, 5000, 64)
    for backend in BACKENDS:
        search = exact_search(vocabulary, 4, backend=backend, threads=1)
        assert backend in search.describe()
        assert search.memory_bytes > 5000 * 64
        search.search(vocabulary[:100])
        assert search.statistics.candidates_per_query >= 4


@pytest.mark.skipif(not REALDATA, reason="BLISS_INDEX_REALDATA names no folder")
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_embeddings(backend: str) -> None:
    vocabulary = np.load(Path(REALDATA) / "text_vitb32.npz")["embeddings"]
    queries = np.load(Path(REALDATA) / "img_caltech101_test.npz")["embeddings"]
    unit = vocabulary.astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for entries in (vocabulary, unit):
        similarities, ids = reference_search(entries, queries, 100)
        for k in (1, 10, 100):
            search = exact_search(entries, k, backend=backend)
            assert_same(search.search(queries), (similarities[:, :k], ids[:, :k]))
            assert search.statistics.full_rows == 0
