"""Mutated files give typed errors: no other exception, no crash, no hang.

BLISS_INDEX_FUZZ sets the mutations of each kind of file; the default keeps the tests quick.
scripts/fuzz_test.py does thousands and keeps count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_target import TARGETS, make_files

COUNT = int(os.environ.get("BLISS_INDEX_FUZZ", "150"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("faiss")
    folder = tmp_path_factory.mktemp("fuzz")
    make_files(folder)
    return folder


@pytest.fixture(scope="module")
def mutating(folder):
    """A process of its own that forks for each kind of file."""
    command = [sys.executable, str(Path(__file__).with_name("fuzz_target.py")), str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files(folder, mutating, target):
    print(json.dumps([target, COUNT, 1, 30 + COUNT // 5]), file=mutating.stdin, flush=True)
    code = int(mutating.stdout.readline())
    if code:
        at, errors = ((folder / name).read_text() for name in ("progress", "errors"))
        raise AssertionError(f"mutation {at.strip()} of {target}: {code}, {errors[-2000:]}")
    refused = int((folder / "refused").read_text())
    if refused < 0:
        pytest.skip("what writes it is not installed")
    assert refused > COUNT / 50
