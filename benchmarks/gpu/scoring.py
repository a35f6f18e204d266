"""Whole scoring against its search alone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bliss_index.scoring.device_scorer import DeviceScorer
from gpu.bench import Bench, to_host
from gpu.normal_classes import random_calibration


def scoring(
    bench: Bench, entries: int, dim: int, k: int, queries: int, classes: int
) -> dict[str, Any]:
    """Images per second of the search alone and with the scores of so many classes."""
    texts = to_host(bench.draw(entries, dim, "text", 1))
    images = bench.draw(queries, dim, "image", 2)
    search = _Search(bench, texts, k)
    scorer = DeviceScorer(
        search, texts, random_calibration(bench, classes, dim), engine=bench.engine()
    )
    began = time.perf_counter()
    scorer.score_tensors(images)
    bench.wait()
    first = time.perf_counter() - began
    seconds = bench.in_turn({
        "search": lambda: scorer.find(images),
        "scoring": lambda: scorer.score_tensors(images),
    })  # fmt: skip
    return {
        "engine": search.description,
        "first_pass_seconds": round(first, 3),
        "search_images_per_second": round(queries / seconds["search"], 1),
        "scoring_images_per_second": round(queries / seconds["scoring"], 1),
        "added_to_search": round(seconds["scoring"] / seconds["search"] - 1, 3),
    }


class _Search:
    """A backend as a search, without the check for duplicates."""

    name = "exact"

    def __init__(self, bench: Bench, entries: npt.NDArray[Any], k: int) -> None:
        self.size, self.dim = entries.shape
        self.k = k
        self.device = bench.device
        self._backend = bench.backend(entries, k)
        self.description = self._backend.description

    def search(self, queries: npt.NDArray[Any], /) -> Any:
        values, ids, _ = self._backend.search(queries, 0)
        return values.astype(np.float32), ids

    def search_tensors(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids, _ = self._backend.search_tensors(queries)
        return values.float(), ids
