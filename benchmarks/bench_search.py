"""Exact top-k search beside what else there is on a processor.

The yardstick is faiss.IndexFlatIP with its best setting here: OpenBLAS's AVX-512 kernels, as many
threads as ours, distance_compute_blas_threshold = 1. "authors" is the order of operations of the
paper's scripts: the whole matrix, sorted and argsorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import THREADS

from bliss_index.bench.synthetic import clip_like, clustered

Search = Callable[[np.ndarray], Any]
slow = pytest.mark.slow
# Entries, d, k and data: sizes at the default first, then what else changes the time.
SIZES = [
    (2_000, 512, 10, "clip"),
    (20_000, 512, 10, "clip"),
    pytest.param(100_000, 512, 10, "clip", marks=slow),
    pytest.param(1_000_000, 512, 10, "clip", marks=slow),
    (20_000, 768, 10, "clip"),
    (20_000, 512, 1, "clip"),
    (20_000, 512, 100, "clip"),
    (20_000, 512, 10, "clustered"),
    pytest.param(100_000, 512, 10, "clustered", marks=slow),
    pytest.param(1_000_000, 512, 10, "clustered", marks=slow),
]


@pytest.mark.benchmark(group="search")
@pytest.mark.parametrize(("entries", "dim", "k", "data"), SIZES)
def test_search(paired, scale, benchmark, entries, dim, k, data):
    size = scale(entries)
    vocabulary = clip_like(size, dim, "text", 1) if data == "clip" else clustered(size, dim, 1)
    queries = clip_like(scale(16_384), dim, "image", 2)
    ways = dict(searches(vocabulary, min(k, size)))
    ours = ways["native"]
    paired(ways, queries, entries=size, dim=dim, k=k, data=data)
    ours(queries[:1024])
    counted = ours.__self__.statistics
    benchmark.extra_info["candidates_per_query"] = round(counted.candidates_per_query, 1)
    benchmark.extra_info["rows_searched_in_full"] = counted.full_rows / counted.queries
    benchmark.extra_info["runs_on"] = ours.__self__.describe()


def searches(vocabulary: np.ndarray, k: int) -> Iterator[tuple[str, Search]]:
    """Ours, faiss's flat index, then every other way that is installed."""
    import faiss
    import torch

    from bliss_index.search import exact_search

    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    faiss.cvar.distance_compute_blas_threshold = 1
    yield "native", exact_search(vocabulary, k, backend="native", threads=THREADS).search
    kinds = faiss.ScalarQuantizer
    dim, product = vocabulary.shape[1], faiss.METRIC_INNER_PRODUCT
    for name, index in (
        ("flat", faiss.IndexFlatIP(dim)),
        ("fp16", faiss.IndexScalarQuantizer(dim, kinds.QT_fp16, product)),
        ("int8", faiss.IndexScalarQuantizer(dim, kinds.QT_8bit, product)),
    ):
        index.train(vocabulary[:20_000])
        index.add(vocabulary)
        yield name, lambda queries, index=index: index.search(queries, k)
    yield "torch", exact_search(vocabulary, k, backend="torch", threads=THREADS).search
    entries = torch.from_numpy(vocabulary).to(torch.bfloat16).T
    rows = max(1, int(2e8 // len(vocabulary)))

    def bfloat16(queries: np.ndarray) -> None:
        for part in torch.from_numpy(queries).to(torch.bfloat16).split(rows):
            (part @ entries).topk(k, dim=1)

    yield "bf16", bfloat16
    try:
        from usearch.index import MetricKind
        from usearch.index import search as exact
    except ImportError:
        pass
    else:
        yield (
            "usearch",
            lambda queries: exact(
                vocabulary, queries, k, MetricKind.IP, exact=True, threads=THREADS
            ),
        )

    def authors(queries: np.ndarray) -> None:
        for start in range(0, len(queries), 256):
            similarity = queries[start : start + 256] @ vocabulary.T
            np.sort(similarity, axis=1)
            np.argsort(similarity, axis=1)[:, -k:]

    if len(vocabulary) <= 100_000:
        yield "authors", authors
