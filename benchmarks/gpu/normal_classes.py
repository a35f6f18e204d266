"""Normal classes: random ones for the other steps, and the time their tables take."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from bliss_index.calibration import Calibration, calibrate
from bliss_index.calibration.moments import ClassMoments
from bliss_index.device_scoring import DeviceTables
from bliss_index.synthetic import clip_like
from gpu.suite import Suite


def calibration(suite: Suite) -> dict[str, Any]:
    """Tables of 1000 classes x 1000 images for 100,000 entries."""
    classes, images = suite.size(1000, 3), suite.size(1000, 80)
    size, dim = suite.size(100_000, 300), 512 if not suite.small else 64
    entries = clip_like(size, dim, "text", 1, np.float16)
    rows = clip_like(images, dim, "image", 2, np.float16)
    began = time.perf_counter()
    moments = ClassMoments.of(rows)
    one = time.perf_counter() - began
    texts = clip_like(classes, dim, "text", 3, np.float64)
    names = tuple(map(str, range(classes)))
    normal = Calibration(names, texts, (moments,) * classes)
    tables = DeviceTables(entries, normal, suite.device)
    began = time.perf_counter()
    tables.require(torch.arange(size, device=suite.device))
    suite.wait()
    seconds = time.perf_counter() - began
    _, sigma = normal.statistics(entries[:100])
    difference = np.abs(tables.scale[:100].cpu().numpy() * sigma - 1).max()
    return {
        "classes": classes, "images_per_class": images, "entries": size,
        "moments_of_all_classes_seconds_on_host": round(one * classes, 2),
        "tables_seconds": round(seconds, 3),
        "largest_relative_difference": float(difference),
        "tera_flops": round(2e-12 * size * classes * dim * dim / seconds, 2),
    }  # fmt: skip


def random_calibration(classes: int, dim: int, images: int = 32) -> Calibration:
    """Classes of few images each."""
    texts = clip_like(classes, dim, "text", 5, np.float64)
    rows = clip_like(classes * images, dim, "image", 6, np.float16)
    return calibrate([(rows, np.repeat(np.arange(classes), images))], texts)
