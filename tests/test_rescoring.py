"""The steps after candidates are found: float64 products of pairs, and the final order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bliss_index.search import reference_search
from bliss_index.search.certificate.ordering import dot_error, exact_dot, order_candidates
from bliss_index.search.native.backend import NativeBackend, load_native
from bliss_index.search.torch import rescoring as torch_rescoring
from bliss_index.search.torch.backend import TorchBackend
from bliss_index.search.torch.rescoring import PairProducts

native = load_native()[0]
KERNELS = [] if native is None else native.kernel_names()
TYPES = [np.float16, np.float32, np.float64]


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_products_of_pairs(sampled: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    entries = rng.standard_normal((300, 37)).astype(dtype)
    queries = rng.standard_normal((50, 37))
    if not sampled:
        monkeypatch.setattr(torch_rescoring, "has_sampled_products", lambda: False)
    products = PairProducts(torch.from_numpy(entries))
    kept = 300 * 37 * 8 if sampled and dtype is not np.float64 else 0
    assert products.memory_bytes == kept
    rows = rng.integers(0, 50, 1500)
    rows[rows == 7] = 8  # a query without pairs
    ids = rng.integers(0, 300, 1500)
    wide = entries.astype(np.float64)
    for order in (np.arange(1500), np.argsort(rows), np.arange(0)):
        found = products.of(torch.from_numpy(queries), rows[order], ids[order])
        expected = np.einsum("ij,ij->i", queries[rows[order]], wide[ids[order]])
        lengths = np.linalg.norm(queries[rows[order]], axis=1)
        error = dot_error(37, lengths * np.linalg.norm(wide[ids[order]], axis=1))
        assert (np.abs(found - expected) <= 2 * error).all()


def test_a_large_vocabulary_is_not_kept_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_rescoring, "_WIDE_NUMBERS", 100)
    assert PairProducts(torch.zeros((10, 10))).memory_bytes == 800
    assert PairProducts(torch.zeros((10, 11))).memory_bytes == 0


def test_torch_states_what_it_keeps_in_float64() -> None:
    entries = np.random.default_rng(1).standard_normal((2000, 64)).astype(np.float32)
    backend = TorchBackend(entries, 5, precision="float32")
    assert backend.memory_bytes >= 2000 * 64 * (4 + 8)


@pytest.mark.parametrize("spread", [0, 3, 60])
@pytest.mark.parametrize("levels", [1, 4, 0])
def test_candidates_are_ordered_by_the_exact_product(spread: int, levels: int) -> None:
    """Rows of any number of candidates, in any order, with ties and errors that hide the order."""
    rng = np.random.default_rng(spread + levels)
    n, k, dim = 40, 5, 6
    entries, queries = rng.standard_normal((90, dim)), rng.standard_normal((n, dim))
    if levels:
        entries, queries = np.rint(entries * levels), np.rint(queries * levels)
    entries, queries = entries.astype(np.float32), queries.astype(np.float32)
    counts = rng.integers(k, k + 1 + spread, n)
    rows = np.repeat(np.arange(n), counts)
    ids = np.concatenate([rng.permutation(90)[:count] for count in counts])
    shuffled = rng.permutation(rows.size)
    rows, ids = rows[shuffled], ids[shuffled]
    values = np.array([exact_dot(queries[i], entries[w]) for i, w in zip(rows, ids, strict=True)])
    errors = np.where(rows % 2, 1e-3, 1e-15)
    off = values + errors * rng.uniform(-1, 1, rows.size)
    found, chosen, resolved = order_candidates(
        rows, ids, off, errors, (n, k), lambda i, w: exact_dot(queries[i], entries[w])
    )
    for i in range(n):
        mine = [(-value, w) for value, w in zip(values[rows == i], ids[rows == i], strict=True)]
        best = sorted(mine)[:k]
        assert chosen[i].tolist() == [w for _, w in best]
        exact = np.array([-value for value, _ in best])
        np.testing.assert_array_equal(found[i].astype(np.float32), exact.astype(np.float32))
    assert resolved > 0


def test_equal_values_are_told_from_close_ones() -> None:
    x = np.array([1.0, 2.0**-30], dtype=np.float32)
    entries = np.array([[1, 0], [1, 2.0**-22], [0, 0], [1, 0]], dtype=np.float32)
    rows, ids = np.zeros(4, dtype=np.int64), np.arange(4)
    values, order, resolved = order_candidates(
        rows, ids, np.array([1.0, 1.0, 0.0, 1.0]), np.full(4, 1e-14), (1, 4),
        lambda _, w: exact_dot(x, entries[w]),
    )  # fmt: skip
    assert order.tolist() == [[1, 0, 3, 2]]
    assert values[0].tolist() == [1 + 2.0**-52, 1, 1, 0]
    assert resolved >= 3


def rescored(case: str) -> tuple[Any, Any]:
    """Few entries and many queries."""
    rng = np.random.default_rng(5)
    entries, queries = rng.standard_normal((211, 50)), rng.standard_normal((900, 50))
    if case == "any norm":
        entries = np.ldexp(entries, rng.integers(-30, 30, (211, 1)))
        queries = np.ldexp(queries, rng.integers(-80, 80, (900, 1)))
    if case == "a lattice":
        entries, queries = np.rint(entries * 2), np.rint(queries * 2)
    if case == "near ties":
        entries = entries[:1] + 1e-7 * entries
    if case == "zero queries":
        queries[::3] = 0
    return entries, queries


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("types", [(a, b) for a in TYPES for b in TYPES])
def test_entry_by_entry(kernel: str, types: tuple[Any, Any]) -> None:
    entries, queries = rescored("")
    entries, queries = entries.astype(types[0]), queries.astype(types[1])
    for k in (1, 20, 100):  # 100: not all queries at a time
        values, ids, counted = NativeBackend(entries, k, threads=2, kernel=kernel).search(
            queries, 0
        )
        similarities, expected = reference_search(entries, queries, k)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(values.astype(np.float32), similarities)
        assert counted.full_rows == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", ["any norm", "a lattice", "near ties", "zero queries"])
def test_entry_by_entry_with_hard_data(kernel: str, case: str) -> None:
    entries, queries = (part.astype(np.float32) for part in rescored(case))
    backend = NativeBackend(entries, 20, threads=1, kernel=kernel)
    values, ids, _ = backend.search(queries, 0)
    similarities, expected = reference_search(entries, queries, 20)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values.astype(np.float32), similarities)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scores_of_the_best_are_negative(precision: str) -> None:
    # A few far entries pull the mean away, and the k-th best score with it.
    rng = np.random.default_rng(6)
    entries = rng.standard_normal((2000, 32)) * 0.01 + 1
    entries[[3, 500, 1999]] = 1000 + rng.standard_normal((3, 32))
    queries = 1 + 0.01 * rng.standard_normal((70, 32))
    for sign in (1, -1):
        similarities, expected = reference_search(entries, sign * queries, 20)
        backend = TorchBackend(entries, 20, precision=precision)
        values, ids, _ = backend.search(sign * queries, 0)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_array_equal(values.astype(np.float32), similarities)
