"""Normal classes: random ones for the other rows, and the time their tables take."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from bliss_index.calibration import Calibration, calibrate
from bliss_index.calibration.moments import ClassMoments
from bliss_index.scoring.device_scorer import DeviceTables
from gpu.bench import Bench, to_host

_COMPARED = 100


def tables(bench: Bench, entries: int, dim: int, classes: int, images: int) -> dict[str, Any]:
    """Time the tables of classes of so many images each, for all entries."""
    texts = to_host(bench.draw(entries, dim, "text", 1))
    rows = to_host(bench.draw(images, dim, "image", 2))
    began = time.perf_counter()
    moments = ClassMoments.of(rows)
    one = time.perf_counter() - began
    labels = to_host(bench.draw(classes, dim, "text", 3, torch.float64))
    normal = Calibration(tuple(map(str, range(classes))), labels, (moments,) * classes)
    made = DeviceTables(texts, normal, bench.device)
    bench.wait()
    began = time.perf_counter()
    made.require(torch.arange(entries, device=bench.device))
    bench.wait()
    seconds = time.perf_counter() - began
    _, sigma = normal.statistics(texts[:_COMPARED])
    scale = made.scale[:_COMPARED].cpu().numpy()
    return {
        "moments_of_all_classes_seconds_on_host": round(one * classes, 2),
        "tables_seconds": round(seconds, 3),
        "largest_relative_difference": float(np.abs(scale * sigma - 1).max()),
        "tera_operations_per_second": round(2e-12 * entries * classes * dim * dim / seconds, 2),
    }


def random_calibration(bench: Bench, classes: int, dim: int, images: int = 32) -> Calibration:
    """Classes of few images each."""
    texts = to_host(bench.draw(classes, dim, "text", 5, torch.float64))
    rows = to_host(bench.draw(classes * images, dim, "image", 6))
    return calibrate([(rows, np.repeat(np.arange(classes), images))], texts)
