"""What commands write: where it goes, what a terminal or a pipe can take of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import run

from bliss_index.cli import console
from bliss_index.store import ModelIdentity, StoreWriter

PROMPT = "ein schönes Bild: {} 日本"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A text store whose path is longer than a line, and whose prompt needs Unicode."""
    path = tmp_path_factory.mktemp("long" * 20) / ("store" * 10)
    with StoreWriter(
        path, kind="text", model=ModelIdentity("ViT-B-32", "openai"), dim=4, dtype="float32",
        prompt=PROMPT,
    ) as writer:  # fmt: skip
        writer.append(["a", "b"], np.eye(4, dtype=np.float32)[:2], texts=["é", "b"])
    return path


def run_apart(*arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "bliss_index", *map(str, arguments)],
        stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_under_stdout_is_one_clear_error(store, options):
    with open("/dev/full", "wb") as full:
        done = run_apart("info", store, *options, stdout=full)
    assert done.returncode == 1
    message = "error: cannot write the result on stdout: No space left on device\n"
    assert done.stderr.decode() == message


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_closed_stdout_wants_no_result(store, options):
    quoted = " ".join(f"'{part}'" for part in (sys.executable, "-m", "bliss_index", "info", store))
    done = subprocess.run(
        f"{quoted} {' '.join(options)} >&-", shell=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_encoding_without_the_letters(store):
    done = run_apart("info", store, "--json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("ascii"))["prompt"] == PROMPT
    done = run_apart("info", store, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "sch\\xf6nes" in done.stdout.decode("ascii")


def test_values_stay_on_their_line(store):
    lines = run("info", store, columns=40)[0].splitlines()
    assert lines[0] == str(store)
    found = next(line for line in lines if line.startswith("content hash"))
    assert len(found.split()[-1]) == 64
    model = lines.index(next(line for line in lines if line.startswith("model ")))
    assert lines[model].split() == ["model", "name:", "ViT-B-32"]


def test_a_table_is_folded_to_a_terminal_and_nowhere_else(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    cell = "word " * 60
    console.print_table("title " * 30, ["entry", "adds"], [[cell, "+0.1234"]])
    out = capsys.readouterr().out
    assert cell.strip() in out
    assert ("title " * 30).strip() in out
    monkeypatch.setenv("COLUMNS", "40")
    console.print_table("t", ["entry", "adds"], [[cell, "+0.1234"]])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 40
    assert "+0.1234" in out


def test_values_for_people():
    assert console.shown({"a": {"b": 1, "c": None}, "d": [1, 2]}) == "a:\n  b: 1\nd: 1, 2"
    assert [console.shown(v) for v in (True, None, [], {})] == ["yes", "none", "none", "none"]
    assert console.counts({"ok": 2, "zero_embedding": 1}) == "ok 2, zero_embedding 1"


def test_json_holds_no_nan(capsys):
    console.print_json({"a": float("nan"), "b": [1.5, float("inf")], "c": (True, "é")})
    out = capsys.readouterr().out
    assert "NaN" not in out
    assert json.loads(out) == {"a": None, "b": [1.5, None], "c": [True, "é"]}
