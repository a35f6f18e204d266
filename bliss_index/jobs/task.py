"""What a process needs to work on a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bliss_index.jobs.description import require_same
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
