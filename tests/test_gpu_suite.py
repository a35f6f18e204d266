"""The suite that times a GPU runs every step, here on tiny sizes without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).parent.parent / "benchmarks" / "gpu_suite.py"


@pytest.mark.slow
def test_every_step_runs_and_is_exact(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, SUITE, "--device", "cpu", "--small", "--json", result],
        env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    assert found["skipped"] == {}
    cases, engines = 10, 3
    assert len(found["exactness"]) == cases * engines
    assert {case["engine"] for case in found["exactness"]} == {"torch int8", "torch bfloat16"}
    assert all(case["same_ids"] and case["same_similarities"] for case in found["exactness"])
    for name in ("matrix_rates", "stages", "searches", "scoring", "end_to_end", "growth"):
        assert found[name], name
    assert found["calibration"]["largest_relative_difference"] < 1e-6
    assert found["machine"]["versions"]["torch"]
