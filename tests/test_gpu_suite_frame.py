"""The suite's frame, with rows that hang, die, raise and print: none takes another's result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
BENCHMARKS = TESTS.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu.plan import MAIN_GROUP, plan  # noqa: E402
from gpu.result_file import ResultFile  # noqa: E402
from gpu.row import Row, select  # noqa: E402
from gpu.runner import Runner, is_right  # noqa: E402
from gpu.worker_process import WorkerSetup  # noqa: E402

SETUP = WorkerSetup("gpu_suite_rows:Nothing", paths=(BENCHMARKS, TESTS))


def row(function: str, name: str = "", seconds: float = 20, **parameters: Any) -> Row:
    return Row(
        "fake", name or function, f"gpu_suite_rows:{function}", parameters, seconds, cuda=False
    )


def run(path: Path, rows: list[Row], seconds: float = 100, setup: WorkerSetup = SETUP) -> Any:
    """Run rows; return the recorded ones by name, and the reasons of those skipped."""
    Runner(setup, ResultFile(path, {"machine": "this"}), seconds).run(rows)
    found = json.loads(path.read_text())
    assert found["machine"] == "this"
    skipped = {skipped["name"]: skipped["reason"] for skipped in found["skipped"]}
    return {row["name"]: row for row in found["rows"]}, skipped


def process(row: dict[str, Any]) -> int:
    return int(row["result"]["process"])


def test_rows_share_a_worker_and_are_recorded_with_their_parameters(tmp_path: Path) -> None:
    rows, skipped = run(tmp_path / "r.json", [row("good", "a", number=7), row("good", "b")])
    assert not skipped
    assert rows["a"]["result"]["number"] == 7
    assert rows["a"]["parameters"] == {"number": 7}
    assert rows["a"]["group"] == "fake"
    assert rows["a"]["seconds"] < 20
    assert process(rows["a"]) == process(rows["b"]) != os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_row_that_hangs_is_killed_at_its_deadline(tmp_path: Path) -> None:
    plan = [row("good", "before"), row("hang", seconds=1), row("good", "after")]
    began = time.monotonic()
    rows, _ = run(tmp_path / "r.json", plan)
    assert time.monotonic() - began < 20
    assert "no answer within 1 s: killed" in rows["hang"]["error"]
    assert "going to sleep" in rows["hang"]["error"]
    assert process(rows["before"]) != process(rows["after"])
    with pytest.raises(ProcessLookupError):
        os.kill(process(rows["before"]), 0)


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    plan = [row("leave", status=3), row("good", "between"), row("crash"), row("good", "after")]
    rows, _ = run(tmp_path / "r.json", plan)
    assert "exit status 3" in rows["leave"]["error"]
    assert "leaving now" in rows["leave"]["error"]
    assert "signal SIGSEGV" in rows["crash"]["error"]
    assert "about to crash" in rows["crash"]["error"]
    assert "leaving now" not in rows["crash"]["error"]
    assert process(rows["between"]) != process(rows["after"])


def test_an_exception_leaves_the_worker_alive(tmp_path: Path) -> None:
    rows, _ = run(tmp_path / "r.json", [row("good", "a"), row("raise_error"), row("good", "b")])
    assert "result" not in rows["raise_error"]
    assert rows["raise_error"]["error"].splitlines()[-1] == "ValueError: a plain error"
    assert process(rows["a"]) == process(rows["b"])


def test_an_error_that_breaks_the_device_ends_the_worker(tmp_path: Path) -> None:
    rows, _ = run(tmp_path / "r.json", [row("good", "a"), row("poison"), row("good", "b")])
    assert "result" not in rows["poison"]
    assert "illegal memory access" in rows["poison"]["error"]
    assert "index out of bounds" in rows["poison"]["error"]
    assert process(rows["a"]) != process(rows["b"])


def test_what_a_row_prints_is_no_answer(tmp_path: Path) -> None:
    rows, _ = run(tmp_path / "r.json", [row("chatter"), row("good")])
    assert rows["chatter"]["result"] == "x" * 300_000
    assert rows["good"]["result"]["number"] == 1


def test_rows_that_do_not_fit_or_cannot_run_are_skipped_with_the_reason(tmp_path: Path) -> None:
    plan = [
        row("good", "large", seconds=1000),
        row("good", "small"),
        row("unavailable"),
        Row("fake", "card", "gpu_suite_rows:good", {}, 20),
    ]
    rows, skipped = run(tmp_path / "r.json", plan)
    assert list(rows) == ["small"]
    assert skipped["large"] == "100 s left of 100 s, the row may take 1000 s"
    assert skipped["unavailable"] == "not on this card"
    assert skipped["card"] == "needs CUDA, and torch sees no GPU"
    setup = WorkerSetup("gpu_suite_rows:Nothing", {"has_cuda": True}, paths=SETUP.paths)
    assert list(run(tmp_path / "r.json", plan[-1:], setup=setup)[0]) == ["card"]


def test_workers_that_do_not_start_are_not_tried_for_ever(tmp_path: Path) -> None:
    setup = WorkerSetup("gpu_suite_rows:refuse", paths=SETUP.paths)
    rows, skipped = run(tmp_path / "r.json", [row("good", name) for name in "abcd"], setup=setup)
    assert list(rows) == ["a", "b"]
    assert "RuntimeError: no bench today" in rows["a"]["error"]
    assert set(skipped) == {"c", "d"}
    assert "did not start" in skipped["c"]


def test_a_killed_suite_leaves_what_it_has(tmp_path: Path) -> None:
    """And no worker behind it."""
    path = tmp_path / "r.json"
    script = tmp_path / "suite.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(BENCHMARKS)!r}]\n"
        "from pathlib import Path\n"
        "from test_gpu_suite_frame import row, run\n"
        f"run(Path({str(path)!r}), [row('good', 'a'), row('good', 'b'), row('hang')])\n"
    )
    suite = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL)
    try:
        names: list[str] = []
        deadline = time.monotonic() + 60
        while names != ["a", "b"] and time.monotonic() < deadline:
            time.sleep(0.05)
            if path.exists():  # whole at any time
                found = json.loads(path.read_text())
                names = [row["name"] for row in found["rows"]]
        assert names == ["a", "b"]
    finally:
        suite.send_signal(signal.SIGKILL)
        suite.wait()
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["a", "b"]
    worker = process(found["rows"][0])
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_results_are_right_unless_they_say_otherwise(tmp_path: Path) -> None:
    rows, _ = run(tmp_path / "r.json", [row("good"), row("wrong"), row("raise_error")])
    right = {name: is_right(row) for name, row in rows.items()}
    assert right == {"good": True, "wrong": False, "raise_error": False}


def test_the_plan_names_every_row_once_and_the_main_case_first() -> None:
    rows = plan()
    assert len({(row.group, row.name) for row in rows}) == len(rows)
    groups = list(dict.fromkeys(row.group for row in rows))
    assert groups[:2] == ["facts", MAIN_GROUP]
    assert [row.group for row in rows] == sorted(
        (row.group for row in rows), key=groups.index
    )  # groups are not interleaved
    for row in rows:
        assert set(row.small) <= set(row.parameters)
        assert json.loads(json.dumps(row.parameters)) == row.parameters
    assert {row.group for row in select(rows, ["main", "tiles"], ["tiles"])} == {"main"}
    with pytest.raises(ValueError, match="no group 'mian'; the groups are facts, main"):
        select(rows, ["mian"], [])


def test_the_suite_prints_its_plan_without_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['gpu_suite.py', '--plan', '--only', 'facts,main']; "
        f"sys.path.insert(0, {str(BENCHMARKS)!r}); "
        f"runpy.run_path({str(BENCHMARKS / 'gpu_suite.py')!r}, run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "  40 s  main: rate" in done.stdout
    assert "faiss" not in done.stdout
