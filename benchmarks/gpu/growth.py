"""How the time of a search grows with the vocabulary and with the images."""

from __future__ import annotations

import time
from typing import Any

from gpu.bench import Bench

_MOST_AT_ONCE = 262_144


def growth(bench: Bench, grows: str, entries: int, dim: int, k: int, images: int) -> dict[str, Any]:
    """Seconds for so many images on the device; batches beyond the first repeat it.

    ``grows`` is the curve that the point belongs to: "vocabulary" or "images".
    """
    queries = bench.draw(min(images, _MOST_AT_ONCE), dim, "image", 2)
    backend = bench.backend(bench.draw(entries, dim, "text", 1), k)
    bench.warm(backend, queries)
    began = time.perf_counter()
    for start in range(0, images, queries.shape[0]):
        backend.search_tensors(queries[: min(queries.shape[0], images - start)])
    bench.wait()
    seconds = time.perf_counter() - began
    return {
        "engine": backend.description, "grows": grows, "entries": entries, "images": images,
        "seconds": seconds, "images_per_second": round(images / seconds, 1),
    }  # fmt: skip
