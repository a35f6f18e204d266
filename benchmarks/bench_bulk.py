"""The bulk job against its search alone, and its memory as images grow.

    python benchmarks/bench_bulk.py FOLDER --json benchmarks/results/bulk_cpu.json

FOLDER takes about 2.5 GB. Throughput is paired in one process, a few shards at a time: their
hashes, the search alone (map a shard, find the top k), then the job on the same shards (all of
that, and everything else up to the committed Parquet files). Memory and times of whole runs are
those of `bliss-index score` in a process of its own. ``bench_ray.py`` compares with Ray.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, run_command, use_fast_blas, write_result
from make_embeddings import make_missing

DIM = 512
SHARDS_AT_ONCE = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_fast_blas(given.threads)
    folder = given.folder
    images = {"few": given.images // 10, "many": given.images}
    make_missing(folder, given.entries, given.classes, DIM, images)
    paired = pair_shards(folder, given.threads, given.rounds)
    print(f"job over search: {paired['job_over_search']}", flush=True)
    many = score(folder, "many", "many-scores", given.threads)
    few = score(folder, "few", "few-scores", given.threads)
    result: dict[str, Any] = {
        "machine": describe_machine(given.threads),
        "images": given.images,
        "entries": given.entries,
        "classes": given.classes,
        "dim": DIM,
        "k": 10,
        **paired,
        "whole_run_seconds": many["seconds"],
        "whole_run_images_per_second": many["rows_per_second"],
        "peak_mib": {str(given.images): many["peak_mib"], str(given.images // 10): few["peak_mib"]},
        "peak_ratio": round(many["peak_mib"] / few["peak_mib"], 3),
    }
    write_result(given.json, result)


def pair_shards(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Search some shards, then score them; what a vocabulary's tables cost is part of the job.

    Every round prepares everything anew, as a job does.
    """
    from bliss_index.jobs.blas import one_blas_thread
    from bliss_index.scoring.score_inputs import open_input
    from bliss_index.scoring.score_part import PartScorer
    from bliss_index.scoring.score_settings import ScoreSettings, ScoringInputs
    from bliss_index.storage import open_directory

    settings = ScoreSettings(
        str(folder / "corpus"), str(folder / "calibration"), search="native", threads=threads
    )
    out = folder / "paired-scores"
    shutil.rmtree(out, ignore_errors=True)
    directory = open_directory(out)
    sources = open_input(folder / "many").parts
    parts = [(source.planned(index), source) for index, source in enumerate(sources)]
    groups = [
        [parts[index] for index in numbers]
        for numbers in np.array_split(np.arange(len(parts)), max(1, len(parts) // SHARDS_AT_ONCE))
    ]
    checks, searches, jobs, images = [], [], [], []
    for _ in range(rounds):
        scorer = ScoringInputs.open(settings).make_scorer()
        shutil.rmtree(out, ignore_errors=True)  # or a part is found to be done already
        directory.make()
        part_scorer = PartScorer(scorer, directory, batch_rows=8192)
        for group in groups:
            images.append(sum(part.rows for _, part in group))
            began = time.perf_counter()
            for _, part in group:
                part.check()
            checks.append(time.perf_counter() - began)
            began = time.perf_counter()
            for _, part in group:
                for rows in part.read(8192, checked=False):
                    scorer.search.search(rows.embeddings)
            searches.append(time.perf_counter() - began)
            began = time.perf_counter()
            with one_blas_thread():
                for outcome in part_scorer.score_parts(group):
                    if outcome.error is not None:
                        raise outcome.error
            jobs.append(time.perf_counter() - began)
    checked = [check + search for check, search in zip(checks, searches, strict=True)]

    def rate(seconds: list[float]) -> int:
        return round(median(n / s for n, s in zip(images, seconds, strict=True)))

    def ratio(seconds: list[float]) -> float:
        return round(median(s / j for s, j in zip(seconds, jobs, strict=True)), 3)

    return {
        "search_alone_images_per_second": rate(searches),
        "check_and_search_images_per_second": rate(checked),
        "job_images_per_second": rate(jobs),
        "job_over_search": ratio(searches),
        "job_over_search_in_all": round(sum(searches) / sum(jobs), 3),
        "job_over_check_and_search": ratio(checked),
        "shards": len(parts),
        "groups_of_shards": len(groups),
        "rounds": rounds,
    }


def score(folder: Path, images: str, out: str, threads: int, *more: str) -> dict[str, Any]:
    """Run ``bliss-index score``; return its summary, its peak memory and its rate while scoring."""
    shutil.rmtree(folder / out, ignore_errors=True)
    summary, peak = run_command(
        "score", folder / images, "--corpus", folder / "corpus",
        "--calibration", folder / "calibration", "--out", folder / out, "--threads", threads, *more,
    )  # fmt: skip
    summary["peak_mib"] = peak
    records = [json.loads(p.read_text()) for p in (folder / out / "_records").iterdir()]
    summary["scoring_rows_per_second"] = summary["rows"] / sum(r["seconds"] for r in records)
    return summary


if __name__ == "__main__":
    main()
