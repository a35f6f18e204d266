"""The bulk job against its search alone, its memory as images grow, and the same job on Ray.

    python benchmarks/bench_bulk.py FOLDER --json benchmarks/results/bulk_cpu.json

FOLDER takes about 2.5 GB. Every figure is of whole processes, run in turn (search, job, search,
job); "search" opens the same shards, checks their hashes, finds the top k, and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from machine import describe_machine, use_fast_blas, write_result
from make_embeddings import make_corpus, make_images

DIM = 512
SEARCH_ALONE = """
import sys, time
from bliss_index.search import exact_search
from bliss_index.store import EmbeddingStore
corpus, images, threads = sys.argv[1:]
search = exact_search(EmbeddingStore.open(corpus).embeddings(), 10, threads=int(threads))
began = time.perf_counter()
rows = 0
for shard in EmbeddingStore.open(images).iter_shards(check_hash=True):
    search.search(shard.embeddings)
    rows += shard.rows
print(rows / (time.perf_counter() - began))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ray", action="store_true", help="also time the job on Ray")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_fast_blas(given.threads)
    folder = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "calibration").exists():
        make_corpus(folder, given.entries, given.classes, DIM)
    for name, count in (("few", given.images // 10), ("many", given.images)):
        if not (folder / name).exists():
            make_images(folder / name, count, DIM)
    search_rates, job_rates, whole_rates, peaks = [], [], [], []
    for number in range(given.rounds):
        search_rates.append(search_alone(folder, "many", given.threads))
        job = score(folder, "many", f"round{number}", given.threads)
        job_rates.append(job["scoring_rows_per_second"])
        whole_rates.append(job["rows_per_second"])
        peaks.append(job["peak_mib"])
        print(f"search {search_rates[-1]:,.0f}/s, job {job_rates[-1]:,.0f}/s", flush=True)
    few = score(folder, "few", "few-scores", given.threads)
    result: dict[str, Any] = {
        "machine": describe_machine(given.threads),
        "images": given.images,
        "entries": given.entries,
        "classes": given.classes,
        "dim": DIM,
        "k": 10,
        "search_alone_images_per_second": [round(r) for r in search_rates],
        "job_images_per_second": [round(r) for r in job_rates],
        "job_images_per_second_with_start_up": [round(r) for r in whole_rates],
        "job_over_search": round(
            median(j / s for j, s in zip(job_rates, search_rates, strict=True)), 3
        ),
        "peak_mib": {str(given.images): max(peaks), str(given.images // 10): few["peak_mib"]},
        "peak_ratio": round(max(peaks) / few["peak_mib"], 3),
    }
    if given.ray:
        result["ray"] = on_ray(folder, few, given.threads)
    write_result(given.json, result)


def search_alone(folder: Path, images: str, threads: int) -> float:
    """Images per second of the search, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SEARCH_ALONE, folder / "corpus", folder / images, str(threads)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(done.stdout)


def score(folder: Path, images: str, out: str, threads: int, *more: str) -> dict[str, Any]:
    """Run ``bliss-index score``; return its summary, its peak memory and its rate while scoring."""
    shutil.rmtree(folder / out, ignore_errors=True)
    command = [
        sys.executable, "-m", "bliss_index", "score", str(folder / images),
        "--corpus", str(folder / "corpus"), "--calibration", str(folder / "calibration"),
        "--out", str(folder / out), "--threads", str(threads), "--json", *more,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    errors = process.stderr.read() if process.stderr else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(errors)
    summary: dict[str, Any] = json.loads(output)
    summary["peak_mib"] = round(usage.ru_maxrss / 1024, 1)
    records = [json.loads(p.read_text()) for p in (folder / out / "_records").iterdir()]
    summary["scoring_rows_per_second"] = summary["rows"] / sum(r["seconds"] for r in records)
    return summary


def on_ray(folder: Path, local: dict[str, Any], threads: int) -> dict[str, Any]:
    """The small job once more on Ray: the same bytes, and what it costs to get there."""
    began = time.perf_counter()
    score(folder, "few", "ray-scores", threads, "--engine", "ray")
    seconds = time.perf_counter() - began
    names = sorted(p.name for p in (folder / "few-scores").glob("*.parquet"))
    same = all(
        (folder / "few-scores" / n).read_bytes() == (folder / "ray-scores" / n).read_bytes()
        for n in names
    )
    return {
        "images": local["rows"],
        "byte_identical": same,
        "local_seconds": local["seconds"],
        "ray_seconds": round(seconds, 2),
        "overhead_seconds": round(seconds - local["seconds"], 2),
    }


if __name__ == "__main__":
    main()
