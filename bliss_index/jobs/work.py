"""What a kind of work has to say to be run as a job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bliss_index.errors import BlissError, OutputError
from bliss_index.jobs.manifest import PartFile
from bliss_index.jobs.memory import MemoryPlan
from bliss_index.jobs.part import Growth, Part, Plan
from bliss_index.jobs.record import Record
from bliss_index.storage import Directory

Progress = Callable[[int], None]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a part: a record, or the reason why there is none.

    Attributes
    ----------
    index : int
    record : Record or None
    reason : str, default=''
    stops : bool, default=False
        Whether the reason is not the part's own, so that others would fare no better.
    """

    index: int
    record: Record | None
    reason: str = ""
    stops: bool = False

    @classmethod
    def failed(cls, index: int, error: Exception) -> Outcome:
        """Say why a part could not be done; a mistake of ours is raised."""
        if isinstance(error, OutputError):
            return cls(index, None, str(error), stops=True)
        if isinstance(error, BlissError | OSError | MemoryError):
            return cls(index, None, f"{type(error).__name__}: {error}")
        raise error


class Worker(Protocol):
    """Does parts, in the process in which it was opened."""

    def run(self, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Do parts in order.

        They are asked for by a thread of the worker's own, perhaps, so that it may read the next
        one and commit the last while it computes this one.
        """
        ...


class Work(Protocol):
    """What is to be done. Picklable; holds paths and settings, no open files.

    Attributes
    ----------
    kind : str
        Names the work, such as "scores".
    command : str
        What makes one, for messages.
    manifest_name : str
        Of the file that is written last.
    statistics_name : str
        Of the file with the summary of the last run; "" for none.
    incidental : tuple of str
        Settings that may differ where all is done already: they change the last digits at most.
    threads : int
        Of one worker.
    """

    kind: str
    command: str
    manifest_name: str
    statistics_name: str

    @property
    def incidental(self) -> tuple[str, ...]: ...

    @property
    def threads(self) -> int: ...

    def settings(self) -> dict[str, Any]:
        """Everything that can change a byte of the output, JSON-ready.

        Asked in every process that works; the answers must agree.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What else to remember of the job: where inputs are, names; JSON-ready."""
        ...

    def parts(self) -> Iterator[Part]:
        """List the parts of the input as it is now, in order."""
        ...

    def grown(self, kept: Plan, now: Plan) -> Growth:
        """Say how the input differs from what was planned; mostly :func:`jobs.part.grown`."""
        ...

    def is_same(self, part: Part, record: Record) -> str:
        """Say why the input of a part that is done is not what it was; '' where it is.

        Asked where the fingerprint has changed.
        """
        ...

    def memory(self, workers: int, budget: int | None) -> MemoryPlan:
        """Plan memory; JobError, naming both sizes, where it does not suffice."""
        ...

    def prepared(self, pending: Sequence[Part], rows: int, batch_rows: int, notify: Notify) -> Work:
        """Decide what is decided once for all processes, before they start."""
        ...

    def open(self, directory: Directory, device: str, progress: Progress, notify: Notify) -> Worker:
        """Open everything in the process that works."""
        ...

    def manifest(self, directory: Directory, files: Iterable[PartFile]) -> Mapping[str, Any]:
        """What the manifest says besides the parts; called once all are done."""
        ...
