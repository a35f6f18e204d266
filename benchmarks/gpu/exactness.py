"""Whether the search on the device finds what float64 brute force finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from bliss_index.search import reference_search
from bliss_index.search.device.backend import DeviceBackend
from bliss_index.search.device.codes import BFLOAT16
from bliss_index.search.device.engine import choose_engine, torch_engine
from bliss_index.synthetic import clip_like
from gpu.suite import Suite


def exactness(suite: Suite) -> list[dict[str, Any]]:
    """Ids and similarities against float64 brute force."""
    cases: list[tuple[str, int, int, int]] = [
        ("clip", size, dim, k)
        for size in ((1_000, 20_000, 100_000) if not suite.small else (300, 1_500))
        for dim in ((512, 768) if not suite.small else (64,))
        for k in (1, 10, 100)
    ]
    cases += [(kind, suite.size(20_000, 900), 512 if not suite.small else 64, 10)
              for kind in ("duplicates", "near ties", "sorted", "any norm")]  # fmt: skip
    if not suite.small:
        cases.append(("clip", 1_000_000, 512, 10))
    found = []
    engines = (
        suite.engine,
        choose_engine(suite.device, cases[0][2], BFLOAT16),
        torch_engine("compared"),
    )
    for kind, size, dim, k in cases:
        entries, queries = exactness_data(kind, size, dim, 32 if size > 200_000 else 128)
        expected = reference_search(entries, queries, k)
        for engine in engines:
            backend = DeviceBackend(entries, k, device=str(suite.device), engine=engine)
            values, ids, counted = backend.search(queries, 0)
            found.append({
                "data": kind, "entries": size, "dim": dim, "k": k, "queries": len(queries),
                "engine": engine.proposals.name,
                "same_ids": bool((ids == expected[1]).all()),
                "same_similarities": bool((values.astype(np.float32) == expected[0]).all()),
                "candidates_per_query": round(counted.candidates_per_query, 1),
                "rescored_per_query": round(counted.rescored / len(queries), 1),
                "full_rows": counted.full_rows, "resolved": counted.resolved,
            })  # fmt: skip
    return found


def exactness_data(kind: str, size: int, dim: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Entries and queries of some kind."""
    entries = clip_like(size, dim, "text", 1, np.float16)
    queries = clip_like(count, dim, "image", 2, np.float16)
    rng = np.random.default_rng(3)
    if kind == "duplicates":
        entries[size // 2 :] = entries[rng.integers(0, 50, size - size // 2)]
    elif kind == "near ties":
        entries = (entries[:1] + 1e-7 * rng.standard_normal((size, dim))).astype(np.float32)
        queries = queries.astype(np.float32)
    elif kind == "sorted":
        entries = entries[np.argsort(entries.astype(np.float32) @ queries[0].astype(np.float32))]
    elif kind == "any norm":
        entries = entries.astype(np.float64) * 10 ** rng.uniform(-6, 6, (size, 1))
        queries = queries.astype(np.float64) * 10 ** rng.uniform(-6, 6, (count, 1))
    return entries, queries
