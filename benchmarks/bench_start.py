"""Time that ``bliss-index --help`` takes, from the start of the process to its end.

python benchmarks/bench_start.py --json benchmarks/results/start.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from machine import describe_machine, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    command = [Path(sys.executable).with_name("bliss-index"), "--help"]
    seconds = []
    for _ in range(given.runs + 1):  # the first fills the file cache
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(round(time.perf_counter() - began, 3))
    result = {
        "benchmark": "start",
        "machine": describe_machine(1),
        "seconds": seconds[1:],
        "median": float(np.median(seconds[1:])),
    }
    write_result(given.json, result)


if __name__ == "__main__":
    main()
