"""What the engine of jobs itself costs: a work of a line a part, of more and more parts.

    python benchmarks/bench_jobs.py --parts 1000 10000 100000 --json benchmarks/results/jobs.json

Start is planning and writing the plan, resume finds half of the parts done, finish writes the
manifest. Files are synced, so the time of a part is that of the disk, too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe_machine, write_result

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from job_fixtures import TrivialWork

from bliss_index.jobs import JobListener, JobOptions, Record, run


class _Clock(JobListener):
    """Notes when parts begin and end."""

    def __init__(self) -> None:
        self.planned_at = self.last = time.perf_counter()

    def planned(self, plan: Any, rows: int, rows_done: int) -> None:
        self.planned_at = self.last = time.perf_counter()

    def finished_part(self, record: Record) -> None:
        self.last = time.perf_counter()


def measure(parts: int, folder: Path) -> dict[str, Any]:
    """Run a job in two halves, and once more when it is complete."""
    times: dict[str, float] = {}
    began = time.perf_counter()
    first = _Clock()
    run(TrivialWork(parts), folder, JobOptions(task="0/2"), first)
    times["start_s"] = first.planned_at - began
    half = first.last - first.planned_at
    began = time.perf_counter()
    second = _Clock()
    run(TrivialWork(parts), folder, JobOptions(), second)
    times["resume_half_done_s"] = second.planned_at - began
    times["finish_s"] = time.perf_counter() - second.last
    began = time.perf_counter()
    run(TrivialWork(parts), folder, JobOptions())
    times["run_again_s"] = time.perf_counter() - began
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "parts": parts,
        "ms_a_part": round(1000 * (half + second.last - second.planned_at) / parts, 3),
        "bytes_written_a_part": round(written / parts, 1),
        **{name: round(value, 3) for name, value in times.items()},
    }


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", help="where to write; the system's for temporary files")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = []
    for parts in given.parts:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found.append(measure(parts, Path(folder) / "job"))
            print(found[-1], flush=True)
    if given.json:
        write_result(given.json, {"machine": describe_machine(1), "jobs": found})


if __name__ == "__main__":
    main()
