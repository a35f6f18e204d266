"""Kill a scoring job with SIGKILL over its whole life until it has survived enough, then compare.

    python scripts/kill_test.py --kills 50
    python scripts/kill_test.py --kills 50 --workers 2
    python scripts/kill_test.py --kills 10 --engine ray --workers 2 --seed 5

A fifth of the kills come at random moments of the job's start, the others from its first part to
near its last, at random moments within a part; an uninterrupted run says how long both take.

Ends with exit code 0 if the same command continued after every kill, and its final Parquet files
are those of a run that nobody interrupted, byte for byte, with no temporary file left. With --json,
the result is added to those that the file holds already.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from bulk_fixtures import (
    Job,
    kill_over_its_life,
    make_job,
    outputs,
    parts_done,
    score_command,
    wait_for,
)
from machine import describe_machine

from bliss_index.scoring import verify_scores

ROWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, help="of the job [default: 16 a kill]")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    shards = given.shards or 16 * given.kills
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), shards=shards, rows=ROWS, entries=40_000, dim=256)
        more = ("--workers", given.workers, "--engine", given.engine)
        start, part = time_whole(score_command(job, job.folder / "whole", *more), job, shards)
        out = job.folder / "killed"
        began = time.perf_counter()
        kills = kill_over_its_life(
            score_command(job, out, *more), out, np.random.default_rng(given.seed),
            parts=shards, kills=given.kills, start_seconds=start, part_seconds=part,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        # `outputs` also refuses whatever is left over.
        same = outputs(job.folder / "whole") == outputs(out)
        report = verify_scores(out)
    result = {
        "engine": given.engine,
        "workers": given.workers,
        "seed": given.seed,
        "kills": len(kills),
        "kills_while_starting": sum(kill.while_starting for kill in kills),
        "kills_while_scoring": sum(not kill.while_starting for kill in kills),
        "parts": shards,
        "rows": shards * ROWS,
        "seconds_to_first_part_uninterrupted": round(start, 2),
        "seconds_a_part_uninterrupted": round(part, 4),
        "parts_done_at_each_kill": [kill.parts_done for kill in kills],
        "seconds_to_each_kill": [kill.seconds for kill in kills],
        "byte_identical": same,
        "temporary_files_left": 0,
        "verified": report.ok,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(result))
    if given.json is not None:
        add_to(given.json, result)
    sys.exit(0 if same and report.ok and len(kills) == given.kills else 1)


def time_whole(command: list[str], job: Job, shards: int) -> tuple[float, float]:
    """Run a job that nobody interrupts; return seconds to its first part, and for each after it."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: parts_done(job.folder / "whole") or process.poll(), 300)
    start = time.perf_counter() - began
    if process.wait():
        sys.exit(f"the uninterrupted run ended with exit code {process.returncode}")
    return start, (time.perf_counter() - began - start) / shards


def add_to(path: Path, result: dict[str, object]) -> None:
    """Append a run to those of a result file."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    machine = describe_machine(1)
    runs.append({**result, "command": machine.pop("command"), "commit": machine.pop("commit")})
    path.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
