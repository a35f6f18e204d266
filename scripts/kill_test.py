"""Kill a scoring job with SIGKILL at random moments until it has survived enough, then compare.

    python scripts/kill_test.py --kills 50
    python scripts/kill_test.py --kills 50 --workers 2
    python scripts/kill_test.py --kills 10 --engine ray --workers 2

Ends with exit code 0 if the same command continued after every kill, and its final Parquet files
are those of a run that nobody interrupted, byte for byte, with no temporary file left.
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

from bulk_fixtures import kill_at_random, make_job, outputs, score_command

from bliss_index.bulk import run_job, verify_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engine", default="local", choices=["local", "ray"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    ray = given.engine == "ray"
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), shards=16 * given.kills, rows=2000, entries=8000, dim=64)
        run_job(job.images, job.folder / "whole", job.settings())
        more = ["--workers", given.workers, "--engine", given.engine]
        command = score_command(job, job.folder / "killed", *more)
        rng = np.random.default_rng(given.seed)
        least, most = (4.0, 14.0) if ray else (0.3, 1.4)
        began = time.perf_counter()
        kills = kill_at_random(command, rng, least=least, most=most, kills=given.kills)
        same = outputs(job.folder / "whole") == outputs(job.folder / "killed")
        report = verify_scores(job.folder / "killed")
    result = {
        "kills": kills,
        "workers": given.workers,
        "engine": given.engine,
        "parts": 16 * given.kills,
        "byte_identical": same,
        "verified": report.ok,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(result))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if same and report.ok and kills == given.kills else 1)


if __name__ == "__main__":
    main()
