"""Every row of the suite that checks and times a GPU, rehearsed on tiny sizes without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUITE = Path(__file__).parent.parent / "benchmarks" / "gpu_suite.py"


@pytest.mark.slow
def test_every_row_can_be_rehearsed(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    pytest.importorskip("faiss")
    path = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(SUITE), "--rehearse", "--json", str(path), "--seconds", "900"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(path.read_text())
    assert found["rehearsal"]
    assert [row for row in found["rows"] if "error" in row] == []
    assert found["skipped"] == []
    assert done.returncode == 0, done.stdout + done.stderr
    listed = subprocess.run(
        [sys.executable, str(SUITE), "--plan", "--rehearse"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    names = [f"{row['group']}: {row['name']}" for row in found["rows"]]
    assert [line.split(" s  ", 1)[1].split("  (", 1)[0] for line in listed[: len(names)]] == names
    assert all(f"{name}: " in done.stdout for name in names)
    groups: dict[str, list[Any]] = {}
    for row in found["rows"]:
        groups.setdefault(row["group"], []).append(row["result"])
    checked = groups["exactness"] + groups["exactness-rest"]
    assert all(result["exact"] for result in (*checked, *groups["main"]))
    engines = {result["engine"].split(" on ")[0] for result in checked}
    assert engines == {"triton int8", "triton bfloat16", "torch int8"}
    assert all("triton" in result["engine"] for result in groups["growth"] + groups["tiles"])
    for result in groups["searches"] + groups["faiss"]:
        assert result["exact"]
        assert min(result["images_per_second"].values()) > 0
    rivals = groups["faiss"][0]["times_as_fast_as"]
    assert {"faiss flat float32", "faiss flat float32, certified"} < set(rivals)
    assert groups["stages"][0]["kernels"]
    assert groups["calibration"][0]["largest_relative_difference"] < 1e-6
