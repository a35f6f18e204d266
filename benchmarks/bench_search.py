"""Exact top-k search against what else there is on a CPU, in turn and in one run.

    python benchmarks/bench_search.py --json benchmarks/results/search_cpu_xeon.json
    python benchmarks/bench_search.py --entries 20000 --dims 512 --ks 10 --rounds 9

Every round times each way once, one after the other, on the same queries; medians are reported,
and the median over the rounds of each way's time divided by ours. Ways that take much longer than
ours get fewer queries, as many as fit the time, and fewer rounds. With --append the results are
added to those of earlier runs on the same processor.
Data: see bliss_index.bench.synthetic.clip_like.

"native" is the best kernel of the machine, the others of its kernels have ways of their own. faiss
runs with its best setting here: OpenBLAS's AVX-512 kernels, as many threads as ours, and
distance_compute_blas_threshold = 1.

Memory: what the process has more after building a search and using it once than before, and the
peak meanwhile, beside the bytes that the search states (packed entries and workspaces).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, use_fast_blas, write_result

from bliss_index.bench.synthetic import clip_like

Search = Callable[[np.ndarray], Any]
KERNELS = ("avx512-vnni", "avx2")
WAYS = ("native", "avx512-vnni", "torch", "flat", "fp16", "int8", "bf16", "usearch", "authors")
_QUERY_BUDGET = 1.2e9  # queries x entries of one call
_FAST = ("native", "avx512-vnni", "avx2", "torch", "flat", "bf16")
_SECONDS = {True: 2.0, False: 0.7}  # of one call of a fast way, and of a slow one
_SLOW_ROUNDS = 3
_AT_LEAST = 0.2  # seconds that are timed together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--entries", type=int, nargs="+", default=[2_000, 20_000, 100_000, 1_000_000]
    )
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 768])
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=(*WAYS, "avx2"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--append", action="store_true", help="keep what the JSON file holds")
    given = parser.parse_args()
    use_fast_blas(given.threads)
    warm_up(given.threads)
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
                if given.json:  # at once: a later configuration may run out of time
                    write_result(given.json, joined(given, results))
    if not given.json:
        write_result(None, joined(given, results))


def warm_up(threads: int) -> None:
    """Load the libraries, so that memory measured later is that of a search."""
    small = clip_like(64, 32, "text", 1)
    prepare("native", small, 1, threads)(small)  # type: ignore[misc]


def joined(given: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Put results beside those of earlier runs; the same configuration replaces or completes."""
    machine = describe_machine(given.threads)
    commands = [machine.pop("command")]
    if not (given.append and given.json and given.json.exists()):
        return {"machine": machine, "commands": commands, "results": results}
    earlier = json.loads(given.json.read_text())
    for name in ("processor", "processors", "threads"):
        if earlier["machine"][name] != machine[name]:
            raise SystemExit(
                f"{given.json} is of {name} {earlier['machine'][name]!r}, this is "
                f"{machine[name]!r}: give another file"
            )
    known = {(r["entries"], r["dim"], r["k"]): r for r in earlier["results"]}
    known |= {(r["entries"], r["dim"], r["k"]): r for r in results}
    commands = list(dict.fromkeys([*earlier["commands"], *commands]))
    ordered = [known[key] for key in sorted(known, key=lambda key: (key[1], key[0], key[2]))]
    return {"machine": machine, "commands": commands, "results": ordered}


def measure(entries: int, dim: int, k: int, given: argparse.Namespace) -> dict[str, Any]:
    """Time all ways on one vocabulary."""
    vocabulary = clip_like(entries, dim, "text", 1)
    queries = clip_like(int(min(16384, max(512, _QUERY_BUDGET / entries))), dim, "image", 2)
    ways: dict[str, Search] = {}
    natives: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    for name in given.ways:
        before = start_memory()
        search = prepare(name, vocabulary, k, given.threads)
        if search is None:
            continue
        ways[name] = search
        if name in ("native", *KERNELS):
            natives[name] = search.__self__  # type: ignore[attr-defined]
            search(queries)
            memory[name] = grown_memory(before)
    counts = {}
    for name, search in ways.items():  # also the warm-up
        trial = queries[:256] if name in _FAST else queries[:16]
        search(trial[:16])
        began = time.perf_counter()
        search(trial)
        fitting = _SECONDS[name in _FAST] * len(trial) / (time.perf_counter() - began)
        counts[name] = int(min(len(queries), max(16, fitting)))
    per_query: dict[str, list[float]] = {name: [] for name in ways}
    kernel: dict[str, list[float]] = {name: [] for name in natives}
    for round_ in range(given.rounds):
        for name, search in ways.items():
            if name not in _FAST and round_ >= _SLOW_ROUNDS:
                continue
            part = queries[: counts[name]]
            per_query[name].append(seconds_of_a_call(search, part) / len(part))
        for name, search in natives.items():
            kernel[name].append(search._backend.kernel_rate(min(len(queries), 4096)))
    ours = per_query.get("native") or next(iter(per_query.values()))
    found = {}
    for name, seconds in per_query.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds, ours, strict=False)]
        found[name] = {
            "queries_per_second": round(1 / median(seconds), 1),
            "slowest": round(1 / max(seconds), 1),
            "fastest": round(1 / min(seconds), 1),
            "times_slower": round(median(ratios), 3),
            "queries": counts[name],
        }
    result: dict[str, Any] = {
        "entries": entries, "dim": dim, "k": k, "seconds_at_least": _AT_LEAST, "ways": found,
    }  # fmt: skip
    for name, search in natives.items():
        rate = 2 * entries * dim / median(per_query[name])
        shares = [
            2 * entries * dim / s / r for s, r in zip(per_query[name], kernel[name], strict=True)
        ]
        result.setdefault("kernels", {})[name] = {
            "runs_on": search.describe(),
            "giga_operations_per_second": round(rate / 1e9),
            "kernel_alone": round(median(kernel[name]) / 1e9),
            "share_of_kernel": round(median(shares), 3),
            "candidates_per_query": round(search.statistics.candidates_per_query, 1),
            "full_rows": search.statistics.full_rows,
            "stated_mib": round(search.memory_bytes / 2**20, 1),
            **memory[name],
        }
    return result


def seconds_of_a_call(search: Search, queries: np.ndarray) -> float:
    """Seconds of one call; of short ones the mean of several, after one that does not count.

    Threads of the way before spin for some 10 ms after their last product, on the processors that
    this way needs.
    """
    began = time.perf_counter()
    search(queries)
    once = time.perf_counter() - began
    if once >= _AT_LEAST:
        return once
    calls = math.ceil(_AT_LEAST / once)
    began = time.perf_counter()
    for _ in range(calls):
        search(queries)
    return (time.perf_counter() - began) / calls


def start_memory() -> float:
    """Resident MiB now, and start the system's record of the peak anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def grown_memory(before: float) -> dict[str, float]:
    """Resident MiB more than before, now and at the peak in between."""
    return {
        "grown_mib": round(resident("VmRSS") - before, 1),
        "peak_mib": round(resident("VmHWM") - before, 1),
    }


def resident(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def prepare(name: str, vocabulary: np.ndarray, k: int, threads: int) -> Search | None:
    """Build one way; None where it is not installed, or would need too much memory."""
    if name in ("native", "torch", *KERNELS):
        from bliss_index.search import exact_search
        from bliss_index.search.native.backend import NativeBackend

        if name in KERNELS:
            search = exact_search(vocabulary, k, backend="native", threads=threads)
            search._backend = NativeBackend(vocabulary, k, threads=threads, kernel=name)
            return search.search
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
