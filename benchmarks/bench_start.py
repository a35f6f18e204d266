"""Starting: from the start of the process to its end, beside Python with nothing to do."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["score", "--help"], ["info", "."]], ids=" ".join
)
def test_start(paired, arguments):
    def run(*words: str):
        return lambda: subprocess.run(
            [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    ways = {"bliss-index": run("-m", "bliss_index", *arguments), "python": run("-c", "pass")}
    paired(ways, rounds=9)
