"""What Ray costs on one machine: the same job with `--engine local` and `--engine ray`, in turn.

    python benchmarks/bench_ray.py FOLDER --json benchmarks/results/bulk_ray.json

FOLDER is that of ``bench_bulk.py``, whose smaller image store is scored; it is made if needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from bench_bulk import DIM, score
from machine import describe_machine, use_fast_blas, write_result
from make_embeddings import make_missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_fast_blas(given.threads)
    folder = given.folder
    make_missing(folder, given.entries, given.classes, DIM, {"few": given.images})
    runs: dict[str, list[dict[str, Any]]] = {"local": [], "ray": []}
    for _ in range(given.rounds):
        for engine, listed in runs.items():
            more = ["--engine", engine]
            listed.append(score(folder, "few", f"{engine}-scores", given.threads, *more))
            print(engine, listed[-1]["seconds"], flush=True)
    seconds = {engine: [run["seconds"] for run in listed] for engine, listed in runs.items()}
    rate = {
        engine: round(median(run["scoring_rows_per_second"] for run in listed))
        for engine, listed in runs.items()
    }
    names = sorted(p.name for p in (folder / "local-scores").glob("*.parquet"))
    same = all(
        (folder / "local-scores" / name).read_bytes() == (folder / "ray-scores" / name).read_bytes()
        for name in names
    )
    write_result(
        given.json,
        {
            "machine": describe_machine(given.threads),
            "images": runs["local"][0]["rows"],
            "entries": given.entries,
            "classes": given.classes,
            "dim": DIM,
            "files": len(names),
            "byte_identical": same,
            "local_seconds": seconds["local"],
            "ray_seconds": seconds["ray"],
            "overhead_seconds": round(median(seconds["ray"]) - median(seconds["local"]), 2),
            "images_per_second_while_scoring": rate,
            "ray_over_local_while_scoring": round(rate["ray"] / rate["local"], 3),
        },
    )


if __name__ == "__main__":
    main()
