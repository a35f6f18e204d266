"""Runs commands of bliss-index: in this process, or in one of their own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import traceback

import pytest

from bliss_index.cli import app


def run(*arguments, cwd=None, code=0, columns=200):
    """Run a command as its process would, in this one; return (stdout, stderr).

    What a process has of its own (signals, its start, what it leaves behind) needs `run_apart`.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bliss-index", *map(str, arguments)])
        patch.setattr(app, "end_when_interrupted", lambda: None)  # it is for a whole process
        patch.setenv("COLUMNS", str(columns))
        if cwd is not None:
            patch.chdir(cwd)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                app.run()
                ended = 0
            except SystemExit as end:
                ended = end.code or 0
            except Exception:
                traceback.print_exc()
                ended = 1
    texts = out.buffer.getvalue().decode(), err.buffer.getvalue().decode()
    return checked(ended, code, *texts)


def run_apart(*arguments, cwd=None, code=0):
    """Run a command in a process of its own; return (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "bliss_index", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=120, check=False,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    return checked(done.returncode, code, done.stdout, done.stderr)


def checked(ended, code, out, err):
    """Return what a command wrote, if it ended as it should."""
    assert ended == code, out + err
    assert "Traceback" not in err, err
    return out, err
