"""A worker as the suite sees it: asked for one row at a time, killed when that takes too long."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu.protocol import from_line, to_line

_TAIL_BYTES = 3000
_POLL_SECONDS = 0.5


class WorkerLostError(Exception):
    """The worker is gone, and the row with it; the message says how."""


@dataclass(frozen=True)
class WorkerSetup:
    """How to start a worker.

    Attributes
    ----------
    context
        "module:function" that makes what every row is given.
    arguments
        Of that function.
    environment
        Variables to set; None removes one.
    paths
        Folders to import from, beside those of this process.
    start_seconds
        In which it has to be ready.
    """

    context: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str | None] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()
    start_seconds: float = 120.0

    def variables(self) -> dict[str, str]:
        """The environment of the worker."""
        changed = {**os.environ, **self.environment}
        paths = [*map(str, self.paths), os.environ.get("PYTHONPATH", "")]
        changed["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return {name: value for name, value in changed.items() if value is not None}


class WorkerProcess:
    """Start a worker and wait until it is ready.

    Raises
    ------
    WorkerLostError
        It was not ready in time, or ended.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker
        self._from = 0
        self._buffer = b""
        answers, theirs = os.pipe()
        self._answers = os.fdopen(answers, "rb", buffering=0)
        read, write = os.pipe()
        self._requests = os.fdopen(write, "wb", buffering=0)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpu.worker", str(theirs)],
                stdin=read, stdout=self._log, stderr=self._log,
                pass_fds=(theirs,), env=setup.variables(), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(theirs)
            os.close(read)
        opening = {"context": setup.context, "arguments": setup.arguments}
        try:
            self.has_cuda = bool(self.ask(opening, setup.start_seconds)["cuda"])
        except WorkerLostError as error:
            tail = self.log_tail()
            self.close()
            raise WorkerLostError(f"{error}\n{tail}".strip()) from None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises
        ------
        WorkerLostError
            There is none in time, or the worker ended. It is dead then.
        """
        self._from = os.fstat(self._log.fileno()).st_size
        deadline = time.monotonic() + seconds
        try:
            self._requests.write(to_line(request))
            line = self._line(deadline)
        except BrokenPipeError:
            line = b""
        if line is None:
            self.kill()
            raise WorkerLostError(f"no answer within {seconds:.0f} s: killed")
        if not line:
            self.kill()
            raise WorkerLostError(f"the worker ended: {_how(self._process.returncode)}")
        return from_line(line)

    def log_tail(self) -> str:
        """The end of what it printed since the last request."""
        size = os.fstat(self._log.fileno()).st_size
        start = max(self._from, size - _TAIL_BYTES)
        return os.pread(self._log.fileno(), size - start, start).decode(errors="replace")

    def kill(self) -> None:
        """End it with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it, and forget what it printed."""
        self.kill()
        with contextlib.suppress(OSError):  # of what it did not read
            self._requests.close()
        self._answers.close()
        self._log.close()

    def _line(self, deadline: float) -> bytes | None:
        """Read an answer: empty if the worker ended, None if time is up."""
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if select.select([self._answers], [], [], min(left, _POLL_SECONDS))[0]:
                piece = self._answers.read(1 << 16)
                if not piece:
                    # It may have closed the pipe and not ended yet.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(5)
                    return b""
                self._buffer += piece
            elif self._process.poll() is not None:
                return b""
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"
