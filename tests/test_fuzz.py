"""Mutated files give typed errors: no other exception, no crash, no hang.

BLISS_INDEX_FUZZ sets the mutations of each kind of file; the default keeps the tests quick.
scripts/fuzz_test.py does thousands and keeps count.
"""

from __future__ import annotations

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


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files(folder, target):
    command = [sys.executable, str(Path(__file__).with_name("fuzz_target.py"))]
    command += [str(folder), target, str(COUNT), "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30 + COUNT / 5
    )
    at = (folder / "progress").read_text().strip()
    assert done.returncode == 0, f"mutation {at} of {target}: {done.stderr[-2000:]}"
    if int(done.stdout) < 0:
        pytest.skip("what writes it is not installed")
    assert int(done.stdout) > COUNT / 50
