"""Whether the search on the device finds what float64 brute force finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from gpu.bench import Bench, to_host
from gpu.cases import make_case
from gpu.reference import device_top_k, host_top_k


def exactness(
    bench: Bench, data: str, entries: int, dim: int, k: int, queries: int, codes: str
) -> dict[str, Any]:
    """Compare ids and similarities of one search with float64 brute force."""
    texts, images = make_case(
        data,
        to_host(bench.draw(entries, dim, "text", 1)),
        to_host(bench.draw(queries, dim, "image", 2)),
    )
    backend = bench.backend(texts, k, codes)
    values, ids, counted = backend.search(images, 0)
    if texts.dtype == np.float16:
        there = torch.from_numpy(texts).to(bench.device)
        expected = device_top_k(there, torch.from_numpy(images).to(bench.device), k)
    else:
        expected = host_top_k(texts, images, k)
    return {
        **expected.compare(ids, values),
        "engine": backend.description,
        "candidates_per_query": round(counted.candidates / queries, 1),
        "rescored_per_query": round(counted.rescored / queries, 1),
        "full_rows": counted.full_rows,
        "resolved": counted.resolved,
    }


def batch_exactness(
    bench: Bench, entries: int, dim: int, k: int, queries: int, checked: int
) -> dict[str, Any]:
    """Search tensors on the device at once, and check the results of some of them."""
    texts, images = bench.draw(entries, dim, "text", 1), bench.draw(queries, dim, "image", 2)
    backend = bench.backend(texts, k)
    values, ids, counted = backend.search_tensors(images)
    rows = spread_rows(queries, checked, bench.device)
    expected = device_top_k(texts, images[rows], k)
    return {
        **expected.compare(ids[rows].cpu().numpy(), values[rows].cpu().numpy()),
        "engine": backend.description,
        "candidates_per_query": round(counted.candidates / queries, 1),
        "rescored_per_query": round(counted.rescored / queries, 1),
        "full_rows": counted.full_rows,
    }


def spread_rows(count: int, wanted: int, device: torch.device) -> torch.Tensor:
    """Choose rows all over a batch, the first and the last among them."""
    steps = torch.linspace(0, count - 1, min(count, wanted), dtype=torch.float64)
    return steps.round().long().to(device)
