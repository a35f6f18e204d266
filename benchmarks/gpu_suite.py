"""Everything about a GPU in one run: exactness first, then speed; the file is whole at any time.

    python benchmarks/gpu_suite.py --json gpu.json          # on a card
    python benchmarks/gpu_suite.py --plan                   # every row, and how long it may take
    python benchmarks/gpu_suite.py --rehearse               # every row, tiny, without a card

Rows run one after another in a process of their own kind, which is replaced when one dies, hangs or
breaks its device; the result file is replaced after every row. Ways to search are timed in turn on
the same queries, which lie on the device, with CUDA events; medians. Data: drawn like clip_like,
float16. The exit status is 0 if the main case was found to be exact and was timed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from gpu.plan import MAIN_GROUP, plan
from gpu.result_file import ResultFile
from gpu.row import Row, select
from gpu.runner import Runner, is_right
from gpu.worker_process import WorkerSetup
from machine import describe_machine, graphics_cards

MOST_SECONDS = 520.0
FOLDERS = (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file of the result")
    parser.add_argument("--plan", action="store_true", help="print the rows and run none")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the processor")
    parser.add_argument("--only", type=_names, default=[], metavar="GROUP[,GROUP]")
    parser.add_argument("--skip", type=_names, default=[], metavar="GROUP[,GROUP]")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="for all rows")
    given = parser.parse_args()
    try:
        rows = select(plan(), given.only, given.skip)
    except ValueError as error:
        parser.error(str(error))
    if given.rehearse:
        rows = [row.rehearsed() for row in rows]
    if given.plan:
        print_plan(rows)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    facts: dict[str, Any] = {
        "machine": {**describe_machine(0), "card": graphics_cards()},
        "rehearsal": given.rehearse,
        "seconds": given.seconds,
    }
    result = ResultFile(given.json, facts)
    Runner(worker_setup(given.rehearse), result, given.seconds).run(rows)
    sys.exit(exit_status(rows, result))


def worker_setup(rehearse: bool) -> WorkerSetup:
    """Say how workers are started; in a rehearsal they see no GPU and interpret the kernels."""
    environment: dict[str, str | None] = {"TRITON_INTERPRET": None}
    if rehearse:
        environment = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = {"device": "cpu" if rehearse else "cuda", "rehearsal": rehearse}
    return WorkerSetup("gpu.bench:Bench", arguments, environment, FOLDERS)


def exit_status(rows: list[Row], result: ResultFile) -> int:
    """0 if every row of the main case came home right; where none was asked for, every row."""
    judged = [row for row in rows if row.group == MAIN_GROUP] or rows
    right = {(row["group"], row["name"]) for row in result.rows if is_right(row)}
    return 0 if all((row.group, row.name) in right for row in judged) else 1


def print_plan(rows: list[Row]) -> None:
    """Print every row with the seconds that it may take, and the sums of the groups."""
    sums: dict[str, float] = {}
    for row in rows:
        sums[row.group] = sums.get(row.group, 0.0) + row.seconds
        needs = "" if row.cuda else "  (also without CUDA)"
        print(f"{row.seconds:5.0f} s  {row.group}: {row.name}{needs}")
    for group, seconds in sums.items():
        print(f"{seconds:5.0f} s at most in {group}")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    main()
