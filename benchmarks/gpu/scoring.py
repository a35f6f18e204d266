"""Whole scoring against its search alone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from bliss_index.device_scoring import DeviceScorer
from bliss_index.search.device.backend import DeviceBackend
from bliss_index.synthetic import clip_like
from gpu.normal_classes import random_calibration
from gpu.suite import Suite


def scoring(suite: Suite) -> list[dict[str, Any]]:
    """Whole scoring against its search alone."""
    size, count, dim = (
        suite.size(100_000, 500),
        suite.size(65_536, 64),
        512 if not suite.small else 64,
    )
    entries = clip_like(size, dim, "text", 1, np.float16)
    queries = suite.tensor(clip_like(count, dim, "image", 2, np.float16))
    found = []
    for classes in (10, 100, 1000) if not suite.small else (3,):
        scorer = DeviceScorer(
            _TensorBackend(suite, entries, 10), entries, random_calibration(classes, dim),
            engine=suite.engine,
        )  # fmt: skip
        began = time.perf_counter()
        scorer.score_tensors(queries)
        suite.wait()
        first = time.perf_counter() - began
        seconds = suite.in_turn({
            "search": lambda s=scorer: s.find(queries),
            "scoring": lambda s=scorer: s.score_tensors(queries),
        }, 3)  # fmt: skip
        found.append({
            "classes": classes,
            "first_pass_seconds": round(first, 3),
            "search_images_per_second": round(count / seconds["search"]),
            "scoring_images_per_second": round(count / seconds["scoring"]),
            "added_to_search": round(seconds["scoring"] / seconds["search"] - 1, 3),
        })  # fmt: skip
    return found


class _TensorBackend:
    """A backend as a search, without the check for duplicates."""

    name = "exact"

    def __init__(self, suite: Suite, entries: np.ndarray, k: int) -> None:
        self.size, self.dim = entries.shape
        self.k = k
        self.device = suite.device
        self._backend = DeviceBackend(entries, k, device=str(suite.device), engine=suite.engine)

    def search(self, queries: np.ndarray, /) -> Any:
        values, ids, _ = self._backend.search(queries, 0)
        return values.astype(np.float32), ids

    def search_tensors(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids, _ = self._backend.search_tensors(queries)
        return values.float(), ids
