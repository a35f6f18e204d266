"""What an engine is given, and what a process needs to work on a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bliss_index.jobs.description import require_same
from bliss_index.jobs.listener import JobListener
from bliss_index.jobs.options import JobOptions
from bliss_index.jobs.part import Part
from bliss_index.jobs.work import Notify, Progress, Work, Worker
from bliss_index.storage import open_directory


@dataclass(frozen=True)
class WorkerTask:
    """A work, where its output goes, and what must not change while it runs.

    Attributes
    ----------
    work : Work
    output : str
        Path or URI of the directory.
    settings : dict
        Of the job. A process opens everything anew, and what it finds must be the same.
    """

    work: Work
    output: str
    settings: dict[str, Any]

    def open(self, device: str, progress: Progress, notify: Notify) -> Worker:
        """Open a worker in this process.

        Raises
        ------
        JobError
            Something was replaced since the job began; both values are named.
        """
        require_same(self.settings, self.work.settings(), self.output)
        return self.work.open(open_directory(self.output), device, progress, notify)


@dataclass(frozen=True)
class Run:
    """What an engine is given: parts to do, how, and whom to tell.

    An engine yields an outcome for every pending part, in the order they finish. A part whose
    process dies is tried once more, then given up with the reason.

    Attributes
    ----------
    task : WorkerTask
    parts : sequence of Part
        All parts of the job.
    pending : sequence of int
        Numbers of those to do.
    options : JobOptions
    listener : JobListener
        Hears of rows that are finished, and of what should be known.
    died : callable
        Called with the number of a part whose process died, and how.
    stopped : callable
        Says whether no more parts are to be begun.
    """

    task: WorkerTask
    parts: Sequence[Part]
    pending: Sequence[int]
    options: JobOptions
    listener: JobListener
    died: Callable[[int, str], None]
    stopped: Callable[[], bool]

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that the workers take in turn; at least one."""
        return self.options.devices or ("auto",)

    def begun(self) -> Iterator[Part]:
        """Yield pending parts one after another, until the job is stopped."""
        for index in self.pending:
            if self.stopped():
                return
            yield self.parts[index]
