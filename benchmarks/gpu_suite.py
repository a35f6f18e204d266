"""Everything about a GPU in one run: exactness first, then speed; JSON after every step.

    bash scripts/gpu_suite.sh gpu.json             # at most nine minutes
    python benchmarks/gpu_suite.py --device cpu --small --json try.json   # the same steps, tiny

Ways are timed in turn on the same queries, device-resident, with CUDA events; medians. Steps that
do not fit the time left are named under "skipped", with the reason. Data: clip_like, float16.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gpu.exactness import exactness
from gpu.growth import growth
from gpu.job import end_to_end
from gpu.kernels import matrix_rates, stages, tile_shapes
from gpu.normal_classes import calibration
from gpu.scoring import scoring
from gpu.searches import searches
from gpu.suite import Step, Suite

MOST_SECONDS = 520.0
STEPS: tuple[tuple[str, Step, float], ...] = (
    ("exactness", exactness, 60),
    ("matrix_rates", matrix_rates, 10),
    ("tile_shapes", tile_shapes, 60),
    ("stages", stages, 10),
    ("searches", searches, 60),
    ("scoring", scoring, 30),
    ("end_to_end", end_to_end, 60),
    ("calibration", calibration, 20),
    ("growth", growth, 30),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the steps")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    suite = Suite(given.device, given.small, given.json, given.seconds)
    for name, step, needed in STEPS:
        suite.run(name, step, 0 if given.small else needed)
    print(json.dumps({**suite.results, "skipped": suite.skipped}, indent=1))


if __name__ == "__main__":
    main()
