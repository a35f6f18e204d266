"""The exact search against what else there is on a GPU, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from bliss_index.search.device.backend import DeviceBackend, DeviceOptions
from bliss_index.synthetic import clip_like
from gpu.suite import Suite


def searches(suite: Suite) -> list[dict[str, Any]]:
    """Queries per second, device-resident, of all ways in turn."""
    found = []
    sizes = (100_000, 20_000, 1_000_000, 1_000) if not suite.small else (1_000,)
    for size in sizes:
        for dim in (512, 768) if not suite.small else (64,):
            entries = clip_like(size, dim, "text", 1, np.float16)
            count = suite.size(int(min(262_144, 2e10 // size)), 64)
            queries = suite.tensor(clip_like(count, dim, "image", 2, np.float16))
            for k in (10, 1, 100):
                if suite.left < 120 and (k != 10 or dim != 512):
                    continue
                found.append(compare(suite, entries, queries, k))
    return found


def compare(suite: Suite, entries: np.ndarray, queries: torch.Tensor, k: int) -> dict[str, Any]:
    """Time all ways on one vocabulary."""
    size, dim = entries.shape
    count = queries.shape[0]
    backend = DeviceBackend(entries, k, device=str(suite.device), engine=suite.engine)
    backend.search_tensors(queries[:4096])
    ways: dict[str, Callable[[], Any]] = {"exact": lambda: backend.search_tensors(queries)}
    calls = {"exact": count}
    if suite.engine.proposals.name == "triton int8":
        options = DeviceOptions(codes="bfloat16")
        wide = DeviceBackend(entries, k, device=str(suite.device), options=options)
        wide.search_tensors(queries[:4096])
        ways["exact, by bfloat16 products"] = lambda: wide.search_tensors(queries)
        calls["exact, by bfloat16 products"] = count
    bf16 = suite.tensor(entries).to(torch.bfloat16)
    rows = max(64, int(2e9 // (2 * size)))
    part = min(count, 16 * rows)
    ways["torch bfloat16 + topk"] = lambda: _matmul_topk(queries[:part], bf16, k, rows)
    calls["torch bfloat16 + topk"] = part
    for name, call in _faiss_ways(suite, entries, queries[:part], k):
        ways[name], calls[name] = call, part
    seconds = suite.in_turn(ways, 3)
    rates = {name: calls[name] / s for name, s in seconds.items()}
    return {
        "entries": size, "dim": dim, "k": k,
        "queries_per_second": {name: round(rate) for name, rate in rates.items()},
        "times_slower": {name: round(rates["exact"] / rate, 2) for name, rate in rates.items()},
        "tera_operations_per_second": round(2e-12 * rates["exact"] * size * dim, 1),
    }  # fmt: skip


def _matmul_topk(queries: torch.Tensor, entries: torch.Tensor, k: int, rows: int) -> None:
    for part in torch.split(queries.to(torch.bfloat16), rows):
        (part @ entries.T).topk(k, dim=1)


def _faiss_ways(
    suite: Suite, entries: np.ndarray, queries: torch.Tensor, k: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """faiss's flat GPU index, as it is (not rescored), in float32 and float16 storage."""
    try:
        import faiss
    except (ImportError, RuntimeError):
        return
    from bliss_index.search.device.faiss_tensors import FaissTensorSearch
    from bliss_index.search.faiss_build import build_index
    from bliss_index.search.faiss_gpu import gpu_count, place_index
    from bliss_index.search.faiss_search import FaissSearch

    on_gpu = suite.device.type == "cuda" and gpu_count(faiss) > 0
    if not on_gpu and not suite.small:
        return
    flat = build_index(entries, "flat", k=k)
    scaled = queries.float().contiguous()
    for storage in ("float32", "float16") if on_gpu else ("float32",):
        search = flat
        if on_gpu:
            index, placement = place_index(flat.index, "flat", "cuda:0", storage=storage)
            search = FaissSearch(index, entries, k, kind="flat", placement=placement)
        tensors = FaissTensorSearch(search, suite.engine)
        yield f"faiss flat {storage}", lambda t=tensors: t.propose(scaled, k)
        yield f"faiss flat {storage}, certified", lambda t=tensors: t.search_tensors(queries)
