"""How the time of a search grows with the vocabulary and with the images."""

from __future__ import annotations

import time

import numpy as np

from bliss_index.search.device.backend import DeviceBackend
from bliss_index.synthetic import clip_like
from gpu.suite import Suite


def growth(suite: Suite) -> dict[str, list[dict[str, float]]]:
    """Seconds as the vocabulary and the number of images grow."""
    dim = 512 if not suite.small else 64
    by_entries, by_images = [], []
    queries = suite.tensor(clip_like(suite.size(65_536, 64), dim, "image", 2, np.float16))
    base = clip_like(suite.size(1_000_000, 1_000), dim, "text", 1, np.float16)
    for size in (1_000, 10_000, 100_000, 1_000_000, 4_000_000) if not suite.small else (100, 1_000):
        if suite.left < 45 and not suite.small:
            break
        entries = base[:size]
        if size > len(base):
            entries = np.concatenate(
                [np.roll(base, shift, axis=1) for shift in range(size // len(base))]
            )
        count = int(min(len(queries), 6e10 // size))
        backend = DeviceBackend(entries, 10, device=str(suite.device), engine=suite.engine)
        backend.search_tensors(queries[:256])
        seconds = suite.seconds(lambda b=backend, n=count: b.search_tensors(queries[:n]), 3)
        by_entries.append({"entries": size, "images": count, "seconds": seconds})
        del backend
    backend = DeviceBackend(
        base[: suite.size(100_000, 1_000)], 10, device=str(suite.device), engine=suite.engine
    )
    backend.search_tensors(queries[:256])
    for count in (1_000, 10_000, 100_000, 1_000_000, 10_000_000) if not suite.small else (10, 100):
        if suite.left < 20 and not suite.small:
            break
        began = time.perf_counter()
        for start in range(0, count, len(queries)):
            backend.search_tensors(queries[: min(len(queries), count - start)])
        suite.wait()
        by_images.append({"images": count, "seconds": time.perf_counter() - began})
    return {"by_entries": by_entries, "by_images": by_images}
