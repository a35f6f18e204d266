"""The exact search from 2,000 to ten million entries: rates, the worst query, searches in full.

    python benchmarks/study_sizes.py --json result.json

Entries are real texts and texts near them, where BLISS_INDEX_REALDATA names a folder of real
embeddings and d is theirs, and images real ones; else those of ``clustered`` and ``clip_like``.
Every kernel that runs here; of the slower ones up to `--slower` entries. `share_of_kernel` is how
much of the integer kernel's own rate the whole search reaches.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, use_fast_blas, write_result
from realdata import near_texts, real_images

from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.search.native.backend import NativeBackend, load_native

_PRODUCTS = 1 << 33  # of queries and entries that are timed
_SINGLE = 100
SIZES = [2000, 20_000, 100_000, 1_000_000, 4_000_000, 10_000_000]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 768])
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--slower", type=int, default=100_000, help="entries of slower kernels")
    parser.add_argument("--largest", type=int, default=10_000_000, help="numbers / 512 that fit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_fast_blas(given.threads)
    names = load_native()[0].kernel_names()
    rows: list[dict[str, Any]] = []
    result = {**describe_machine(given.threads), "rows": rows}
    for dim in given.dims:
        real = dim == 512 and "BLISS_INDEX_REALDATA" in os.environ
        images = real_images() if real else clip_like(8192, dim, "image", 1)
        for size in given.sizes:
            if size * dim > given.largest * 512:
                continue
            entries = near_texts(size, 1) if real else clustered(size, dim, 2, dtype=np.float16)
            for kernel in names if size <= given.slower else names[:1]:
                about = {"entries": size, "dim": dim, "real": real, "kernel": kernel}
                for found in searches(entries, images, kernel, given):
                    rows.append({**about, **found})
                    print(rows[-1], flush=True)
            write_result(given.json, result)


def searches(entries: np.ndarray, images: np.ndarray, kernel: str, given: Any) -> Any:
    """Figures for every k, of entries that are packed once."""
    packed, prepared = None, 0.0
    for k in given.ks:
        began = time.process_time()
        search = NativeBackend(
            entries, k, threads=given.threads, kernel=kernel, prepared=packed and packed[1]
        )
        prepared = prepared or time.process_time() - began
        packed = search.packed
        count = int(np.clip(_PRODUCTS // len(entries), 512, len(images)))
        search.search(images[:64], 0)
        seconds, processor = [], []
        for _ in range(given.rounds):
            wall, used = time.perf_counter(), time.process_time()
            counted = search.search(images[:count], 0)[2]
            seconds.append(time.perf_counter() - wall)
            processor.append(time.process_time() - used)
        single = []
        for image in images[-_SINGLE:]:
            wall = time.perf_counter()
            search.search(image[None], 0)
            single.append(time.perf_counter() - wall)
        rate = count / median(seconds)
        work = 2.0 * len(entries) * entries.shape[1]
        yield {
            "k": k, "images": count, "images_per_second": round(rate, 1),
            "processor_microseconds_an_image": round(1e6 * median(processor) / count, 2),
            "tera_operations_per_second": round(rate * work / 1e12, 3),
            "share_of_kernel": round(rate * work / search.kernel_rate(min(count, 4096)), 3),
            "candidates_an_image": round(counted.candidates / count, 1),
            "searched_again": counted.second_rows / count,
            "searched_in_full": counted.full_rows / count,
            "one_image_milliseconds": round(1e3 * median(single), 3),
            "worst_of_100_milliseconds": round(1e3 * max(single), 3),
            "prepare_processor_seconds": round(prepared, 3),
        }  # fmt: skip


if __name__ == "__main__":
    main()
