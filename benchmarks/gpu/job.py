"""A whole job against what limits it: the disk, copies to the device, the search alone."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bliss_index.calibration import Calibration
from bliss_index.scoring import JobOptions, ScoreSettings, run_job
from bliss_index.store import ModelIdentity, StoreWriter
from gpu.bench import Bench, to_host
from gpu.normal_classes import random_calibration

_MODEL = ModelIdentity("ViT-B-32", "openai")


def end_to_end(
    bench: Bench, entries: int, dim: int, k: int, images: int, shard: int, classes: int
) -> dict[str, Any]:
    """Score memory-mapped float16 shards into Parquet; rates of the job and of its limits."""
    texts = to_host(bench.draw(entries, dim, "text", 1))
    part = to_host(bench.draw(shard, dim, "image", 2))
    on_gpu = bench.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _write_stores(place, texts, part, images)
        normal = random_calibration(bench, classes, dim)
        Calibration(normal.classes, normal.class_embeddings, normal.moments, _MODEL).save(
            place / "normal"
        )
        settings = ScoreSettings(
            str(place / "corpus"), str(place / "normal"), k=k,
            device=str(bench.device), search="cuda" if on_gpu else "torch",
        )  # fmt: skip
        summary = run_job(place / "images", place / "scores", settings, JobOptions())
        began = time.perf_counter()
        read = sum(int(np.fromfile(p, np.uint8).size) for p in (place / "images").glob("*.arrow"))
        disk = time.perf_counter() - began
    host = torch.from_numpy(part)
    pinned = host.pin_memory() if on_gpu else host
    copying = bench.seconds(lambda: pinned.to(bench.device, non_blocking=True))
    there = pinned.to(bench.device)
    backend = bench.backend(texts, k)
    bench.warm(backend, there)
    search = bench.seconds(lambda: backend.search_tensors(there), 3)
    limits = {
        "disk (cached)": read / disk / (dim * 2),
        "copies": shard / copying,
        "search": shard / search,
    }
    slowest = min(limits, key=lambda name: limits[name])
    return {
        "engine": backend.description,
        "images_per_second": round(summary.rows_per_second, 1),
        "limits_images_per_second": {name: round(rate) for name, rate in limits.items()},
        "slowest": slowest,
        "share_of_slowest": round(summary.rows_per_second / limits[slowest], 3),
    }


def _write_stores(
    place: Path, texts: npt.NDArray[Any], part: npt.NDArray[Any], images: int
) -> None:
    """Write a corpus, and shards of images that all hold the same vectors."""
    with StoreWriter(place / "corpus", kind="text", model=_MODEL, dim=texts.shape[1]) as writer:
        names = [f"word {i}" for i in range(len(texts))]
        writer.append(names, texts, texts=names)
    with StoreWriter(
        place / "images", kind="image", model=_MODEL, dim=part.shape[1], rows_per_shard=len(part)
    ) as writer:
        for start in range(0, images, len(part)):
            keys = [f"image {i}" for i in range(start, min(images, start + len(part)))]
            writer.append(keys, part[: len(keys)])
