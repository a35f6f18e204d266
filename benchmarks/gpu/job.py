"""A whole job against what limits it: the disk, copies to the device, the search alone."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bliss_index.bulk import JobOptions, ScoreSettings, run_job
from bliss_index.calibration import Calibration
from bliss_index.search.device.backend import DeviceBackend
from bliss_index.store import ModelIdentity, StoreWriter
from bliss_index.synthetic import clip_like
from gpu.normal_classes import random_calibration
from gpu.suite import Suite


def end_to_end(suite: Suite) -> dict[str, Any]:
    """A job from memory-mapped float16 shards to Parquet, against disk, copies and search alone."""
    size, dim = suite.size(100_000, 500), 512 if not suite.small else 64
    rows, classes = suite.size(2_000_000, 300), 10
    model = ModelIdentity("ViT-B-32", "openai")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        entries = clip_like(size, dim, "text", 1, np.float16)
        with StoreWriter(place / "corpus", kind="text", model=model, dim=dim) as writer:
            names = [f"word {i}" for i in range(size)]
            writer.append(names, entries, texts=names)
        part = clip_like(suite.size(262_144, 100), dim, "image", 2, np.float16)
        with StoreWriter(place / "images", kind="image", model=model, dim=dim,
                         rows_per_shard=suite.size(262_144, 100)) as writer:  # fmt: skip
            for start in range(0, rows, len(part)):
                keys = [f"image {i}" for i in range(start, min(rows, start + len(part)))]
                writer.append(keys, part[: len(keys)])
        made = random_calibration(classes, dim)
        Calibration(made.classes, made.class_embeddings, made.moments, model).save(place / "normal")
        settings = ScoreSettings(
            str(place / "corpus"), str(place / "normal"), device=str(suite.device),
            search="cuda" if suite.device.type == "cuda" else "native",
        )  # fmt: skip
        summary = run_job(place / "images", place / "scores", settings, JobOptions())
        began = time.perf_counter()
        read = sum(int(np.fromfile(p, np.uint8).size) for p in (place / "images").glob("*.arrow"))
        disk = time.perf_counter() - began
    pinned = torch.from_numpy(part)
    if suite.device.type == "cuda":
        pinned = pinned.pin_memory()
    copying = suite.seconds(lambda: pinned.to(suite.device, non_blocking=True))
    backend = DeviceBackend(entries, 10, device=str(suite.device), engine=suite.engine)
    there = suite.tensor(part)
    backend.search_tensors(there[:4096])
    search = suite.seconds(lambda: backend.search_tensors(there), 3)
    limits = {
        "disk (cached)": read / disk / (dim * 2),
        "copies": len(part) / copying,
        "search": len(part) / search,
    }
    slowest = min(limits, key=lambda name: limits[name])
    return {
        "images": rows, "entries": size, "classes": classes,
        "images_per_second": summary.rows_per_second,
        "limits_images_per_second": {name: round(rate) for name, rate in limits.items()},
        "slowest": slowest,
        "share_of_slowest": round(summary.rows_per_second / limits[slowest], 3),
    }  # fmt: skip
