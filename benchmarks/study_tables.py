"""Whole `score` commands with few and with many classes: tables computed anew, kept, and found.

    python benchmarks/study_tables.py --json benchmarks/results/tables.json

The numbers of classes and the three ways alternate: "anew" with --no-keep-search and no tables
beside the calibration, "first" which keeps what it computed, "later" which maps that. The search
is prepared before. Files are in the page cache. "agree" says that all ways wrote the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, set_fast_blas, write_result
from study_prepared import DIM, THREADS, score, write

from bliss_index.bench.measure import make_calibration
from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.search.native.backend import load_native
from bliss_index.search.prepared import corpus_search, save_prepared
from bliss_index.store import EmbeddingStore

WAYS = ("anew", "first", "later")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_fast_blas(THREADS)
    result: dict[str, Any] = {
        "benchmark": "tables",
        "machine": describe_machine(THREADS),
        "kernel": load_native()[1],
        "images": given.images,
        "entries": given.entries,
        "rounds": given.rounds,
        "classes": {},
    }
    with tempfile.TemporaryDirectory(prefix="bliss-tables-") as folder:
        place = Path(folder)
        write(place / "images", "image", clip_like(given.images, DIM, "image", 5, dtype=np.float16))
        write(place / "corpus", "text", clustered(given.entries, DIM, 1, dtype=np.float16))
        corpus = EmbeddingStore.open(place / "corpus")
        save_prepared(corpus_search(corpus), corpus)
        for classes in given.classes:
            make_calibration(classes, DIM).save(place / f"calibration-{classes}")
        times: dict[tuple[int, str], list[tuple[float, float]]] = {}
        hashes: dict[int, set[str]] = {}
        for _ in range(given.rounds):
            for classes in given.classes:
                calibration = place / f"calibration-{classes}"
                (place / "calibration").unlink(missing_ok=True)
                (place / "calibration").symlink_to(calibration)
                for way in WAYS:
                    if way != "later":
                        shutil.rmtree(calibration / "tables", ignore_errors=True)
                    more = ["--no-keep-search"] if way == "anew" else []
                    times.setdefault((classes, way), []).append(score(place, more))
                    hashes.setdefault(classes, set()).add(digest(place / "scores"))
                found = result["classes"][str(classes)] = {
                    "agree": len(hashes[classes]) == 1,
                    "tables_bytes": sum(
                        path.stat().st_size for path in calibration.glob("tables/*.tables")
                    ),
                    **{way: medians(times[classes, way]) for way in WAYS},
                }
                print(classes, json.dumps(found), flush=True)
        write_result(given.json, result)


def medians(taken: list[tuple[float, float]]) -> dict[str, float]:
    """Seconds on the clock and of the processor."""
    clock, processor = zip(*taken, strict=True)
    return {
        "seconds": round(median(clock), 3),
        "processor_seconds": round(median(processor), 3),
    }


def digest(scores: Path) -> str:
    """SHA-256 over the files of scores."""
    total = hashlib.sha256()
    for path in sorted(scores.glob("*.parquet")):
        total.update(path.read_bytes())
    return total.hexdigest()


if __name__ == "__main__":
    main()
