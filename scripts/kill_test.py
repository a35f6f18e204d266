"""Kill a scoring job with SIGKILL at random moments until it has survived enough, then compare.

    python scripts/kill_test.py --kills 50
    python scripts/kill_test.py --kills 50 --workers 2
    python scripts/kill_test.py --kills 10 --engine ray --workers 2 --seed 5

Ends with exit code 0 if the same command continued after every kill, and its final Parquet files
are those of a run that nobody interrupted, byte for byte, with no temporary file left. With --json,
the result is added to those that the file holds already.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from bulk_fixtures import kill_at_random, make_job, outputs, score_command
from machine import describe_machine

from bliss_index.bulk import run_job, verify_scores

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
    ray = given.engine == "ray"
    shards = given.shards or 16 * given.kills
    at_kill: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), shards=shards, rows=ROWS, entries=40_000, dim=256)
        run_job(job.images, job.folder / "whole", job.settings())
        out = job.folder / "killed"
        command = score_command(job, out, "--workers", given.workers, "--engine", given.engine)
        rng = np.random.default_rng(given.seed)
        least, most = (4.0, 14.0) if ray else (0.3, 2.5)
        began = time.perf_counter()
        kills = kill_at_random(
            command, rng, least=least, most=most, kills=given.kills,
            killed=lambda: at_kill.append(len(list(out.glob("_records/*.json")))),
        )  # fmt: skip
        seconds = time.perf_counter() - began
        # `outputs` also refuses whatever is left over.
        same = outputs(job.folder / "whole") == outputs(out)
        report = verify_scores(out)
    result = {
        "engine": given.engine,
        "workers": given.workers,
        "seed": given.seed,
        "kills": kills,
        "kills_while_parts_were_scored": int((np.diff([0, *at_kill]) > 0).sum()),
        "parts": shards,
        "rows": shards * ROWS,
        "parts_done_at_each_kill": at_kill,
        "byte_identical": same,
        "temporary_files_left": 0,
        "verified": report.ok,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(result))
    if given.json is not None:
        add_to(given.json, result)
    sys.exit(0 if same and report.ok and kills == given.kills else 1)


def add_to(path: Path, result: dict[str, object]) -> None:
    """Append a run to those of a result file."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    machine = describe_machine(1)
    runs.append({**result, "command": machine.pop("command"), "commit": machine.pop("commit")})
    path.write_text(json.dumps({"machine": machine, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
