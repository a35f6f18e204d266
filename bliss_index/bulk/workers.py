"""Processes that score parts; one that dies takes nothing with it."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bliss_index.bulk.blas import one_blas_thread
from bliss_index.bulk.inputs import JobInput, open_input
from bliss_index.bulk.records import PartRecord, require_same
from bliss_index.bulk.score_part import PartScorer
from bliss_index.bulk.settings import ScoreSettings, ScoringInputs
from bliss_index.errors import BlissError, OutputError
from bliss_index.store.source_part import ColumnNames

_ATTEMPTS = 2
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


@dataclass(frozen=True)
class WorkerTask:
    """All that a process needs to score parts of a job.

    `identity` is what must not change while it runs: a process opens everything anew.
    """

    location: str
    columns: ColumnNames
    directory: str
    settings: ScoreSettings
    batch_rows: int
    identity: dict[str, Any]


@dataclass(frozen=True)
class PartResult:
    """What became of a part: a record, or the reason why there is none.

    `stops` says that the reason is not the part's own, so that others would fare no better.
    """

    index: int
    record: PartRecord | None
    reason: str = ""
    stops: bool = False


def job_identity(inputs: ScoringInputs, images: JobInput) -> dict[str, Any]:
    """Everything that decides the scores of a job."""
    return {**inputs.result_settings(), "images": images.identity}


class PartWorker:
    """Opens a job's inputs once, then scores parts by number. Also the state of a Ray actor."""

    def __init__(
        self,
        task: WorkerTask,
        progress: Callable[[int], None] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        inputs = ScoringInputs.open(task.settings)
        entries = inputs.corpus.texts() if task.settings.explain else None
        self._input = open_input(task.location, task.columns)
        require_same(task.identity, job_identity(inputs, self._input), task.directory)
        self._scorer = PartScorer(
            inputs.job_scorer(),
            Path(task.directory),
            batch_rows=task.batch_rows,
            entries=entries,
            threshold=inputs.threshold,
            normal_scores=None if inputs.normal is None else inputs.normal.scores,
            progress=progress,
            notify=notify,
        )

    def score(self, index: int) -> PartResult:
        """Score one part; what is wrong with it becomes a reason, not an exception."""
        part = self._input.parts[index]
        try:
            with one_blas_thread():
                return PartResult(index, self._scorer.score_part(part, index))
        except OutputError as error:
            return PartResult(index, None, str(error), stops=True)
        except (BlissError, OSError, MemoryError) as error:
            return PartResult(index, None, f"{type(error).__name__}: {error}")


def score_in_processes(
    task: WorkerTask,
    pending: Sequence[int],
    *,
    workers: int,
    devices: Sequence[str],
    progress: Callable[[int], None],
    notify: Callable[[str], None],
) -> Iterator[PartResult]:
    """Score parts in several processes, each taking the next pending one.

    A part whose process dies is tried once more in a new process, then given up with the reason.

    Parameters
    ----------
    task
        The job.
    pending
        Numbers of the parts to score.
    workers, devices
        Processes, and the devices that they take in turn.
    progress, notify
        Called with rows just scored, and with sentences to be shown.

    Yields
    ------
    A result for every pending part, in the order they finish.
    """
    waiting = deque((index, 0) for index in pending)
    pool: list[_Worker] = []
    try:
        for number in range(min(workers, len(waiting))):
            settings = replace(task.settings, device=devices[number % len(devices)])
            pool.append(_Worker(replace(task, settings=settings)))
        while waiting or any(worker.busy for worker in pool):
            for worker in pool:
                if waiting and not worker.busy:
                    worker.start_part(*waiting.popleft())
            ready = multiprocessing.connection.wait([w.connection for w in pool if w.busy])
            for worker in [w for w in pool if w.connection in ready]:
                message = worker.receive()
                if isinstance(message, PartResult):
                    yield message
                elif isinstance(message, int):
                    progress(message)
                elif isinstance(message, str):
                    notify(message)
                else:
                    index, attempt = worker.index, worker.attempt + 1
                    reason = worker.restart()
                    notify(f"part {index}: its process ended ({reason})")
                    if attempt < _ATTEMPTS:
                        waiting.appendleft((index, attempt))
                    else:
                        yield PartResult(index, None, f"its process ended twice ({reason})")
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """The parent's view of a process."""

    def __init__(self, task: WorkerTask) -> None:
        self._task = task
        self.busy = False
        self.index = -1
        self.attempt = 0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_worker_main, args=(theirs, self._task, os.getpid()), daemon=True
        )
        self._process.start()
        theirs.close()

    def start_part(self, index: int, attempt: int) -> None:
        self.index, self.attempt, self.busy = index, attempt, True
        # A process that is dead already is noticed when it is waited for.
        with suppress(OSError):
            self.connection.send(index)

    def receive(self) -> Any:
        """Return a result, a number of rows, a notice; None if the process is dead."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(message, BlissError):
            raise message
        self.busy = not isinstance(message, PartResult)
        return message

    def restart(self) -> str:
        """Replace a dead process; return how it ended."""
        self._process.join()
        code = self._process.exitcode or 0
        self.connection.close()
        self.busy = False
        self._start()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _worker_main(
    connection: multiprocessing.connection.Connection, task: WorkerTask, parent: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _die_with(parent)
    try:
        worker = PartWorker(task, progress=connection.send, notify=connection.send)
    except BlissError as error:
        connection.recv()
        connection.send(error)
        return
    while True:
        try:
            index = connection.recv()
        except EOFError:
            return
        connection.send(worker.score(index))


def _die_with(parent: int) -> None:
    """End this process when its parent does, even if the parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
