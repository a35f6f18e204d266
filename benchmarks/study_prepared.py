"""Whole `score` commands of a thousand images: search prepared anew, kept, and found prepared.

    python benchmarks/study_prepared.py --json benchmarks/results/prepared.json

Vocabularies have the clusters of real ones. The three ways alternate: "anew" with
--no-keep-search and nothing beside the corpus, "first" which keeps what it packed, "later" which
maps that. Files are in the page cache. Processor time is of the command and its children. At the
end two processes map one prepared search, and say what of it each has for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, set_fast_blas, write_result

from bliss_index.bench.measure import MODEL, make_calibration
from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.search.native.backend import load_native
from bliss_index.search.prepared import corpus_search, save_prepared
from bliss_index.store import EmbeddingStore, StoreWriter

DIM, IMAGES, CLASSES, THREADS = 512, 1000, 10, 2
_AT_ONCE = 100_000

# What a process that searches has of the codes: mapped pages, and those it has for itself alone.
SHARE = """
import re, sys, time
import numpy as np
from bliss_index.search.prepared import corpus_search
from bliss_index.store import EmbeddingStore
search = corpus_search(EmbeddingStore.open(sys.argv[1]), 10, threads=1)
search.search(np.load(sys.argv[2])[:64])
print(flush=True)
sys.stdin.readline()
found = False
for line in open("/proc/self/smaps"):
    if re.match("[0-9a-f]+-", line):
        found = ".codes" in line
    elif found and line.split(":")[0] in ("Rss", "Pss", "Private_Dirty"):
        print(line.split()[0], line.split()[1], flush=True)
sys.stdin.readline()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_fast_blas(THREADS)
    result: dict[str, Any] = {
        "benchmark": "prepared",
        "machine": describe_machine(THREADS),
        "kernel": load_native()[1],
        "images": IMAGES,
        "classes": CLASSES,
        "rounds": given.rounds,
        "sizes": {},
    }
    with tempfile.TemporaryDirectory(prefix="bliss-prepared-") as folder:
        place = Path(folder)
        write(place / "images", "image", clip_like(IMAGES, DIM, "image", 5))
        np.save(place / "images.npy", clip_like(IMAGES, DIM, "image", 5))
        make_calibration(CLASSES, DIM).save(place / "calibration")
        for size in given.sizes:
            corpus = place / "corpus"
            write(corpus, "text", clustered(size, DIM, 1, dtype=np.float16))
            result["sizes"][str(size)] = found = measure(place, given.rounds)
            print(size, json.dumps(found), flush=True)
            shutil.rmtree(corpus)
        write_result(given.json, result)


def write(path: Path, kind: str, rows: np.ndarray) -> None:
    """Write a store in float16."""
    with StoreWriter(path, kind=kind, model=MODEL, dim=DIM) as writer:
        for start in range(0, len(rows), _AT_ONCE):
            names = [f"{i:08}" for i in range(start, min(len(rows), start + _AT_ONCE))]
            texts = names if kind == "text" else None
            writer.append(names, rows[start : start + _AT_ONCE], texts=texts)


def measure(place: Path, rounds: int) -> dict[str, Any]:
    """Run the three ways in turn; medians of seconds."""
    times: dict[str, list[tuple[float, float]]] = {"anew": [], "first": [], "later": []}
    search = place / "corpus" / "search"
    for _ in range(rounds):
        for way, taken in times.items():
            if way != "later":
                shutil.rmtree(search, ignore_errors=True)
                shutil.rmtree(place / "calibration" / "tables", ignore_errors=True)
            elif not search.exists():  # a small vocabulary is kept only where it is asked for
                corpus = EmbeddingStore.open(place / "corpus")
                save_prepared(corpus_search(corpus), corpus)
            taken.append(score(place, ["--no-keep-search"] if way == "anew" else []))
    ways = {
        way: {
            "seconds": round(median(seconds for seconds, _ in taken), 3),
            "processor_seconds": round(median(processor for _, processor in taken), 3),
        }
        for way, taken in times.items()
    }
    return {**ways, "codes_bytes": sum(f.stat().st_size for f in search.glob("*.codes")),
            "mapped_kib_of_two_processes": mapped(place)}  # fmt: skip


def score(place: Path, more: list[str]) -> tuple[float, float]:
    """Run the command; seconds on the clock and of the processor."""
    out = place / "scores"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "bliss_index", "score", str(place / "images"), "--corpus",
               str(place / "corpus"), "--calibration", str(place / "calibration"), "--out",
               str(out), "--threads", str(THREADS), *more]  # fmt: skip
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, os.times()
    processor = after.children_user + after.children_system
    return seconds, processor - before.children_user - before.children_system


def mapped(place: Path) -> list[dict[str, int]]:
    """What each of two processes that search at once has of the codes, in KiB."""
    command = [sys.executable, "-c", SHARE, str(place / "corpus"), str(place / "images.npy")]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for one in both:
        one.stdout.readline()  # it has searched
    answers = []
    for one in both:  # both are there while one looks
        one.stdin.write("look\n")
        one.stdin.flush()
        lines = [one.stdout.readline().split() for _ in range(3)]
        answers.append({name.rstrip(":"): int(value) for name, value in lines})
    for one in both:
        one.communicate()
    return answers


if __name__ == "__main__":
    main()
