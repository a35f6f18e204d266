"""Whether `bliss-index bench` tells the truth: its images/s against those of a real `score`.

    python benchmarks/study_agreement.py FOLDER --json benchmarks/results/bench_agreement.json

Both are run as a person runs them, in turn, several times. FOLDER takes about 1 GB. A job's rate
is that of its parts (rows over the seconds in their records), as in `bench`; its whole time is
compared with the time that `bench` expects for as many images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from machine import describe_machine, score, use_fast_blas, write_result
from make_embeddings import make_missing

DIM, ENTRIES, CLASSES = 512, 20_000, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=655_360)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_fast_blas(given.threads)
    folder = given.folder
    make_missing(folder, ENTRIES, CLASSES, DIM, {"images": given.images})
    benches, scores = [], []
    for _ in range(given.rounds):
        benches.append(bench(folder, given.threads))
        scores.append(score(folder, "images", "scores", given.threads))
        print(benches[-1]["job"], scores[-1]["scoring_rows_per_second"], flush=True)
    said = median(b["job"] for b in benches)
    done = median(s["scoring_rows_per_second"] for s in scores)
    expected = median(b["job_start_seconds"] + given.images / b["job"] for b in benches)
    seconds = median(s["seconds"] for s in scores)
    write_result(
        given.json,
        {
            "machine": describe_machine(given.threads),
            "images": given.images,
            "entries": ENTRIES,
            "classes": CLASSES,
            "dim": DIM,
            "k": 10,
            "bench_images_per_second": [b["job"] for b in benches],
            "score_images_per_second": [round(s["scoring_rows_per_second"], 1) for s in scores],
            "score_over_bench": round(done / said, 3),
            "expected_seconds": round(expected, 2),
            "score_seconds": seconds,
            "seconds_over_expected": round(seconds / expected, 3),
            "bench_takes_seconds": [b["seconds"] for b in benches],
            "searches_per_second": [b["search"] for b in benches],
        },
    )


def bench(folder: Path, threads: int) -> dict[str, Any]:
    """Run ``bliss-index bench`` with its defaults; return its report and how long it took."""
    command = [sys.executable, "-m", "bliss_index", "bench", "--json", "--threads", str(threads),
               "--folder", str(folder / "bench")]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    report["seconds"] = round(time.perf_counter() - began, 1)
    return report


if __name__ == "__main__":
    main()
