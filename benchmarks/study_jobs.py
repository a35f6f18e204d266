"""What the engine of jobs itself costs: a work of a line a part, of more and more parts.

    python benchmarks/study_jobs.py --parts 1000 10000 100000 --json benchmarks/results/jobs.json

Start is planning and writing the plan, resume finds half of the parts done, finish writes the
manifest. Every run (first half, second half, again) has a process of its own, whose peak memory is
noted beside that of a job of one part. On a busy machine, compare the CPU's seconds. Files are
synced, so the time of a part is that of the disk, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
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


def timed_run(parts: int, folder: Path, task: str | None) -> dict[str, float]:
    """Run; return seconds until it was planned, of its parts, after them, of CPU, and peak MiB."""
    clock = _Clock()
    began, computed = time.perf_counter(), time.process_time()
    run(TrivialWork(parts), folder, JobOptions(task=task), clock)
    return {
        "start": clock.planned_at - began,
        "parts": clock.last - clock.planned_at,
        "finish": time.perf_counter() - clock.last,
        "all": time.perf_counter() - began,
        "cpu": time.process_time() - computed,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def apart(parts: int, folder: Path, task: str | None = None) -> dict[str, float]:
    """Run in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(timed_run, parts, folder, task).result()


def measure(parts: int, folder: Path) -> dict[str, Any]:
    """Run a job in two halves, and once more when it is complete."""
    first, second, again = apart(parts, folder, "0/2"), apart(parts, folder), apart(parts, folder)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "parts": parts,
        "ms_a_part": round(1000 * (first["parts"] + second["parts"]) / parts, 3),
        "bytes_written_a_part": round(written / parts, 1),
        "start_s": round(first["start"], 3),
        "resume_half_done_s": round(second["start"], 3),
        "finish_s": round(second["finish"], 3),
        "run_again_s": round(again["all"], 3),
        "cpu_s_both_halves": round(first["cpu"] + second["cpu"], 3),
        "cpu_s_run_again": round(again["cpu"], 3),
        "peak_mib": [round(one["peak"]) for one in (first, second, again)],
    }


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--folder", help="where to write; the system's for temporary files")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = []
    for parts in [1, *given.parts]:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found.append(measure(parts, Path(folder) / "job"))
            command = ["df", "--output=source,fstype", folder]
            disk = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            print(found[-1], flush=True)
        if given.json:  # after every job: the last one takes most of the time
            on = disk.split()[-2:]
            write_result(
                given.json, {"machine": describe_machine(1), "output_on": on, "jobs": found}
            )


if __name__ == "__main__":
    main()
