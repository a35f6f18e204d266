"""Read thousands of mutated copies of every kind of file that bliss_index reads, and keep count.

    python scripts/fuzz_test.py --count 1000 --json benchmarks/results/fuzz.json

Ends with exit code 0 if every one of them was read or refused with a typed error; a crash, another
exception and a hang (no end within --limit seconds a kind) are failures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from fuzz_target import TARGETS, make_files
from machine import describe_machine

TARGET = Path(__file__).parents[1] / "tests" / "fuzz_target.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="mutations of each kind of file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=list(TARGETS), help="by default all")
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    kinds: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        for target in given.kinds:
            command = [sys.executable, str(TARGET), name, target]
            began = time.perf_counter()
            try:
                done = subprocess.run(
                    [*command, str(given.count), str(given.seed)],
                    capture_output=True, text=True, check=False, timeout=given.limit,
                )  # fmt: skip
                failure = done.stderr[-2000:] if done.returncode else ""
                refused = int(done.stdout) if not done.returncode else None
            except subprocess.TimeoutExpired:
                failure, refused = f"no end within {given.limit} s", None
            seconds = round(time.perf_counter() - began, 1)
            kinds[target] = {
                "file": TARGETS[target][0], "mutations": given.count, "refused": refused,
                "seconds": seconds,
            }  # fmt: skip
            if failure:
                at = (folder / "progress").read_text().strip()
                kinds[target]["failure"] = f"mutation {at}: {failure}"
            print(target, kinds[target], flush=True)
    failures = sum("failure" in kind for kind in kinds.values())
    result = {
        "machine": describe_machine(1),
        "seed": given.seed,
        "mutations": sum(int(str(kind["mutations"])) for kind in kinds.values()),
        "failures": failures,
        "kinds": kinds,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
