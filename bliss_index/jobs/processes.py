"""Processes that do parts; one that dies is replaced, and its parts are tried again."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bliss_index.errors import BlissError
from bliss_index.jobs.part import Part
from bliss_index.jobs.task import Run, WorkerTask
from bliss_index.jobs.work import Notify, Outcome

_ATTEMPTS = 2
_WAIT_SECONDS = 1.0
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>

Died = Callable[[int, str], None]


def run_in_processes(run: Run) -> Iterator[Outcome]:
    """Do parts in several processes, each asking for the next pending one; see :class:`Run`.

    A process commits one part while it computes the next. One that reports nothing for the
    options' deadline is killed. A part whose process dies is tried once more, alone in a new
    process, then given up.
    """
    waiting = deque((index, 0) for index in run.pending)
    listener = run.listener
    pool: list[_Worker] = []
    try:
        for number in range(min(run.options.processes, len(waiting))):
            pool.append(_Worker(run.task, run.parts, run.devices[number % len(run.devices)]))
        while waiting or any(worker.parts for worker in pool):
            _hand_out(waiting, pool)
            began = time.monotonic()
            ready = multiprocessing.connection.wait(
                [worker.connection for worker in pool], _WAIT_SECONDS
            )
            # No more than was waited for: all may have been suspended for longer.
            waited = min(time.monotonic() - began, _WAIT_SECONDS)
            if run.stopped():
                waiting.clear()
            for worker in pool:
                if worker.connection not in ready:
                    worker.was_silent(waited, run.options.deadline)
                    continue
                message = worker.receive()
                if isinstance(message, Outcome):
                    yield message
                elif isinstance(message, int):
                    listener.advanced(message)
                elif isinstance(message, str):
                    listener.notice(message)
                elif message is None:
                    yield from _after_death(worker, waiting, listener.notice, run.died)
    finally:
        for worker in pool:
            worker.stop()


_Waiting = deque[tuple[int, int]]  # parts, and how many processes died of each


def _hand_out(waiting: _Waiting, pool: Sequence[_Worker]) -> None:
    """Give parts to those that ask, first to those that have none."""
    for worker in sorted(pool, key=lambda worker: len(worker.parts)):
        if not worker.asks:
            continue
        if waiting and worker.may_take(waiting[0][1]):
            worker.answer(*waiting.popleft())
        elif worker.parts:
            worker.answer(None)


def _after_death(
    worker: _Worker, waiting: _Waiting, notify: Notify, died: Died
) -> Iterator[Outcome]:
    """Replace a dead process; what it had is tried once more, or given up."""
    lost = list(worker.parts.items())
    if not lost and not worker.asks and waiting:
        lost = [waiting.popleft()]  # it died while it started, which must not go on forever
    reason = worker.restart()
    for index, deaths in reversed(lost):
        notify(f"part {index}: its process ended ({reason})")
        died(index, reason)
        if deaths + 1 < _ATTEMPTS:
            waiting.appendleft((index, deaths + 1))
        else:
            yield Outcome(index, None, f"its process ended twice ({reason})")


@dataclass(frozen=True)
class _Question:
    """A process has read all that it was given, and asks for another part."""


class _Worker:
    """The parent's view of a process.

    Attributes
    ----------
    parts
        Those in its hands, with the number of processes that died of each: the one that it
        commits, and the one that it searches.
    asks
        Whether it waits for an answer.
    """

    def __init__(self, task: WorkerTask, parts: Sequence[Part], device: str) -> None:
        self._task = task
        self._all = parts
        self._device = device
        self._start()

    def _start(self) -> None:
        self.parts: dict[int, int] = {}
        self.asks = False
        self._silent = 0.0
        self._reason = ""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_worker_main, args=(theirs, self._task, self._device, os.getpid()), daemon=False
        )
        self._process.start()
        theirs.close()

    def may_take(self, deaths: int) -> bool:
        """Whether it may have another part, of which so many processes died.

        One that may be deadly is tried alone: whatever else the process had would be lost with it,
        and be taken for deadly too.
        """
        return not self.parts or (deaths == 0 and not any(self.parts.values()))

    def answer(self, index: int | None, deaths: int = 0) -> None:
        """Give it a part, or tell it to finish what it has."""
        if index is not None:
            self.parts[index] = deaths
        self.asks = False
        # A process that is dead already is noticed when it is waited for.
        with suppress(OSError):
            self.connection.send(None if index is None else self._all[index])

    def receive(self) -> Any:
        """Return a result, a number of rows, a notice, a question; None if the process is dead."""
        self._silent = 0.0
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(message, BlissError):
            raise message
        if isinstance(message, Outcome):
            del self.parts[message.index]
        self.asks = self.asks or isinstance(message, _Question)
        return message

    def was_silent(self, seconds: float, deadline: float) -> None:
        """Count time in which nothing came of it, and kill it when that is too long."""
        if self.parts or not self.asks:
            self._silent += seconds
        if self._silent >= deadline:
            self._reason = f"no progress for {deadline:g} s"
            self._process.kill()

    def restart(self) -> str:
        """Replace a dead process; return how it ended."""
        self._process.join()
        code = self._process.exitcode or 0
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        reason = self._reason or ended
        self.connection.close()
        self._start()
        return reason

    def stop(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.join()


def _worker_main(
    connection: multiprocessing.connection.Connection, task: WorkerTask, device: str, parent: int
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    _die_with(parent)
    one_at_a_time = threading.Lock()

    def send(message: Any) -> None:
        with one_at_a_time:
            connection.send(message)

    def ask() -> Part | None:
        send(_Question())
        answer: Part | None = connection.recv()
        return answer

    def given(first: Part) -> Iterator[Part]:
        """Yield parts as long as one may be begun beside the last one's end."""
        part: Part | None = first
        while part is not None:
            yield part
            part = ask()

    with suppress(EOFError, ConnectionError):  # the parent wants no more
        try:
            worker = task.open(device, send, send)
        except BlissError as error:
            send(error)
            return
        while True:
            first = ask()
            if first is None:
                continue
            try:
                for outcome in worker.run(given(first)):
                    send(outcome)
            except BlissError as error:  # of the job: others would fare no better
                send(error)
                return


def _die_with(parent: int) -> None:
    """End this process when its parent does, even if the parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
