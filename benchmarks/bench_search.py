"""Exact top-k search against what else there is on a CPU, in turn and in one run.

    python benchmarks/bench_search.py --json benchmarks/results/search_cpu.json
    python benchmarks/bench_search.py --entries 20000 --dims 512 --ks 10 --rounds 9

Every round times each way once, one after the other, on the same queries; medians are reported,
and the median over the rounds of each way's time divided by ours. Ways that take much longer than
ours get fewer queries, as many as fit the time. Data: see bliss_index.synthetic.clip_like.

faiss runs with its best setting here: OpenBLAS's AVX-512 kernels, as many threads as ours, and
distance_compute_blas_threshold = 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, use_fast_blas, write_result

from bliss_index.synthetic import clip_like

Search = Callable[[np.ndarray], Any]
WAYS = ("native", "torch", "flat", "fp16", "int8", "bf16", "usearch", "authors")
_QUERY_BUDGET = 6e8  # queries x entries of one call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--entries", type=int, nargs="+", default=[2_000, 20_000, 100_000, 1_000_000]
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 768])
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_fast_blas(given.threads)
    results = []
    for dim in given.dims:
        for entries in given.entries:
            for k in given.ks:
                result = measure(entries, dim, k, given)
                results.append(result)
                shown = ", ".join(
                    f"{name} {way['queries_per_second']:,.0f}/s (x{way['times_slower']:.2f})"
                    for name, way in result["ways"].items()
                )
                print(f"W={entries} d={dim} k={k}: {shown}", flush=True)
    write_result(given.json, {"machine": describe_machine(given.threads), "results": results})


def measure(entries: int, dim: int, k: int, given: argparse.Namespace) -> dict[str, Any]:
    """Time all ways on one vocabulary."""
    vocabulary = clip_like(entries, dim, "text", 1)
    queries = clip_like(int(min(16384, max(512, _QUERY_BUDGET / entries))), dim, "image", 2)
    ways: dict[str, Search] = {}
    exact = None
    for name in given.ways:
        search = prepare(name, vocabulary, k, given.threads)
        if search is None:
            continue
        if name == "native":
            exact = search.__self__  # type: ignore[attr-defined]
        ways[name] = search
    counts = {name: len(queries) for name in ways}
    first: dict[str, float] = {}
    for name, search in ways.items():  # also the warm-up
        search(queries[:64])
        began = time.perf_counter()
        search(queries[:256])
        first[name] = (time.perf_counter() - began) / 256
    for name in ways:  # at most two seconds a call for the slow ones
        counts[name] = int(min(len(queries), max(64, 2.0 / first[name])))
    per_query: dict[str, list[float]] = {name: [] for name in ways}
    kernel = []
    for _ in range(given.rounds):
        for name, search in ways.items():
            part = queries[: counts[name]]
            began = time.perf_counter()
            search(part)
            per_query[name].append((time.perf_counter() - began) / len(part))
        if exact is not None:
            kernel.append(exact._backend.kernel_rate(min(len(queries), 4096)))
    ours = per_query.get("native") or next(iter(per_query.values()))
    found = {}
    for name, seconds in per_query.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds, ours, strict=True)]
        found[name] = {
            "queries_per_second": round(1 / median(seconds), 1),
            "slowest": round(1 / max(seconds), 1),
            "fastest": round(1 / min(seconds), 1),
            "times_slower": round(median(ratios), 3),
            "queries": counts[name],
        }
    result: dict[str, Any] = {"entries": entries, "dim": dim, "k": k, "ways": found}
    if exact is not None:
        statistics = exact.statistics
        rate = 2 * entries * dim / median(ours)
        shares = [2 * entries * dim / s / r for s, r in zip(ours, kernel, strict=True)]
        result["native"] = {
            "giga_operations_per_second": round(rate / 1e9),
            "kernel_alone": round(median(kernel) / 1e9),
            "share_of_kernel": round(median(shares), 3),
            "candidates_per_query": round(statistics.candidates_per_query, 1),
            "full_rows": statistics.full_rows,
            "memory_mib": round(exact.memory_bytes / 2**20, 1),
        }
    return result


def prepare(name: str, vocabulary: np.ndarray, k: int, threads: int) -> Search | None:
    """Build one way; None where it is not installed, or would need too much memory."""
    if name in ("native", "torch"):
        from bliss_index.search import exact_search

        if name == "torch":
            import torch

            torch.set_num_threads(threads)
        return exact_search(vocabulary, k, backend=name, threads=threads).search
    if name in ("flat", "fp16", "int8"):
        return _faiss(name, vocabulary, k, threads)
    if name == "bf16":
        return _torch_bf16(vocabulary, k, threads)
    if name == "usearch":
        return _usearch(vocabulary, k, threads)
    return _authors(vocabulary, k) if len(vocabulary) <= 100_000 else None


def _faiss(name: str, vocabulary: np.ndarray, k: int, threads: int) -> Search | None:
    try:
        import faiss
    except ImportError:
        return None
    faiss.cvar.distance_compute_blas_threshold = 1
    faiss.omp_set_num_threads(threads)
    dim = vocabulary.shape[1]
    quantizer = faiss.ScalarQuantizer
    if name == "flat":
        index = faiss.IndexFlatIP(dim)
    else:
        kind = quantizer.QT_fp16 if name == "fp16" else quantizer.QT_8bit
        index = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(vocabulary[:20000])
    index.add(vocabulary)
    return lambda queries: index.search(queries, k)


def _torch_bf16(vocabulary: np.ndarray, k: int, threads: int) -> Search:
    import torch

    torch.set_num_threads(threads)
    entries = torch.from_numpy(vocabulary).to(torch.bfloat16).T

    def search(queries: np.ndarray) -> None:
        rows = max(1, int(2e8 // vocabulary.shape[0]))
        for part in torch.from_numpy(queries).to(torch.bfloat16).split(rows):
            (part @ entries).topk(k, dim=1)

    return search


def _usearch(vocabulary: np.ndarray, k: int, threads: int) -> Search | None:
    try:
        from usearch.index import MetricKind
        from usearch.index import search as exact
    except ImportError:
        return None
    return lambda queries: exact(vocabulary, queries, k, MetricKind.IP, exact=True, threads=threads)


def _authors(vocabulary: np.ndarray, k: int) -> Search:
    """The order of operations of the authors' scripts: the whole matrix, sorted and argsorted."""

    def search(queries: np.ndarray) -> None:
        for start in range(0, len(queries), 256):
            similarity = queries[start : start + 256] @ vocabulary.T
            np.sort(similarity, axis=1)
            np.argsort(similarity, axis=1)[:, -k:]

    return search


if __name__ == "__main__":
    main()
