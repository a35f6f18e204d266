"""Where a job stands: which of its parts are done, and what came of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bliss_index.errors import CorruptStoreError, JobError, OutputError
from bliss_index.jobs.listener import JobListener
from bliss_index.jobs.manifest import Files
from bliss_index.jobs.options import JobOptions
from bliss_index.jobs.part import Plan
from bliss_index.jobs.record import OUTPUT_NAME, RECORD_FOLDER, Record, record_name
from bliss_index.jobs.work import Outcome
from bliss_index.storage import Directory

DEATH_FOLDER = "_deaths"


@dataclass(frozen=True)
class JobSummary:
    """What a run of a job did, and where the job stands.

    Attributes
    ----------
    output : str
        Directory of the output.
    rows, bad_rows, status
        Rows finished so far, those among them that are not "ok", and rows by status.
    parts, parts_done, parts_earlier : int
        Parts, those done, and those that an earlier run had done.
    rows_now, seconds, rows_per_second
        Of this run; the time includes opening and preparing everything.
    failed : tuple of (str, str)
        Name and reason of the parts that could not be done.
    complete : bool
        Whether every part is done.
    facts : dict of str to int
        Sums of what the work counted in its parts.
    """

    output: str
    rows: int
    bad_rows: int
    status: dict[str, int]
    parts: int
    parts_done: int
    parts_earlier: int
    rows_now: int
    seconds: float
    rows_per_second: float
    failed: tuple[tuple[str, str], ...]
    complete: bool
    facts: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


class JobState:
    """Which parts of a job are done; sums are kept as parts come in.

    Parameters
    ----------
    directory
        The job's output.
    plan
        Its parts.
    options
        How it runs.
    listener
        Hears of parts that are finished, have failed, or must be done again.
    """

    def __init__(
        self, directory: Directory, plan: Plan, options: JobOptions, listener: JobListener
    ) -> None:
        self.directory = directory
        self._plan = plan
        self._options = options
        self._listener = listener
        self._failed: dict[int, str] = {}
        self._earlier = 0
        self._rows_now = 0
        self._repair = True
        self._status: Counter[str] = Counter()
        self._facts: Counter[str] = Counter()
        self.files = Files(len(plan))
        self.taken = 0

    def find_done(self, *, repair: bool = True) -> None:
        """Read the records of earlier runs; with `repair`, those that do not hold are removed."""
        self._repair = repair
        sizes = _Sizes(self.directory)
        found = np.fromiter(_indices(self.directory, RECORD_FOLDER), np.int64)
        for index in np.sort(found[found < len(self._plan)]).tolist():
            part = self._plan[index]
            try:
                record = Record.read(self.directory, index)
            except FileNotFoundError:
                continue
            except CorruptStoreError as error:
                self._again(index, str(error))
                continue
            size = sizes.of(index, record.sha256)
            if size != record.bytes:
                self._again(
                    index, f"{record.file} has {size} bytes, its record says {record.bytes}"
                )
            elif record.part != part.name or (
                part.rows >= 0 and record.rows + record.facts.get("dropped", 0) != part.rows
            ):
                self._again(
                    index,
                    f"{self.directory.uri}/{record_name(index)} is of {record.part} with "
                    f"{record.rows} rows, the plan says {part.rows}",
                )
            else:
                self._add(index, record)
        self._earlier = len(self.files)

    def _again(self, index: int, reason: str) -> None:
        self._listener.notice(f"{reason}; part {self._plan[index].name} is done again")
        if self._repair:
            self.directory.remove(record_name(index))

    def _add(self, index: int, record: Record) -> None:
        self.files.add(index, record)
        self._status.update(record.status)
        self._facts.update({k: v for k, v in record.facts.items() if isinstance(v, int)})

    def pending(self) -> list[int]:
        """Numbers of the parts that this run shall do; those that killed a process come last."""
        mine, tasks = self._options.task_numbers()
        missing = self.files.missing(len(self._plan))
        left: list[int] = missing[missing % tasks == mine].tolist()
        deadly = set(_indices(self.directory, DEATH_FOLDER))
        return sorted(left, key=lambda index: index in deadly) if deadly else left

    def note_death(self, index: int, reason: str) -> None:
        """Remember, for later runs too, that a part's process died."""
        count = sum(name.startswith(f"part-{index:08d}.") for name in
                    self.directory.names(DEATH_FOLDER))  # fmt: skip
        name = f"{DEATH_FOLDER}/part-{index:08d}.{count + 1}.txt"
        self.directory.create(name, f"{reason}\n".encode())

    def take(self, outcome: Outcome) -> None:
        """Note what became of a part.

        Raises
        ------
        OutputError
            It could not be written.
        """
        self.taken += 1
        if outcome.stops:
            raise OutputError(outcome.reason)
        if outcome.record is None:
            self._failed[outcome.index] = outcome.reason
            self._listener.notice(f"{self._plan[outcome.index].name} failed: {outcome.reason}")
            return
        self._add(outcome.index, outcome.record)
        self._rows_now += outcome.record.rows
        self._listener.finished_part(outcome.record)

    def require_few_bad(self) -> None:
        """Stop the job when more rows are bad than was allowed.

        Raises
        ------
        JobError
            They are; both shares are named.
        """
        bad, rows = self.files.bad_rows, self.files.rows
        share = bad / rows if rows else 0.0
        if share > self._options.max_bad_fraction:
            raise JobError(
                f"{bad} of {rows} rows are bad ({share:.2%}), --max-bad-fraction "
                f"allows {self._options.max_bad_fraction:.2%}; look at 'status' and 'error' in "
                f"{self.directory.uri}. What is done is kept."
            )

    @property
    def complete(self) -> bool:
        """Whether every part is done."""
        return len(self.files) == len(self._plan)

    def summary(self, seconds: float) -> JobSummary:
        """Sum up."""
        return JobSummary(
            output=self.directory.uri,
            rows=self.files.rows,
            bad_rows=self.files.bad_rows,
            status=dict(sorted(self._status.items())),
            parts=len(self._plan),
            parts_done=len(self.files),
            parts_earlier=self._earlier,
            rows_now=self._rows_now,
            seconds=round(seconds, 3),
            rows_per_second=round(self._rows_now / seconds, 1) if seconds > 0 else 0.0,
            failed=tuple(
                (self._plan[index].name, reason) for index, reason in sorted(self._failed.items())
            ),
            complete=self.complete,
            facts=dict(sorted(self._facts.items())),
        )


def remove_leftovers(directory: Directory, files: Files) -> None:
    """Remove what killed runs and losers left behind, once a job is complete."""

    def is_left_over(name: str) -> bool:
        match = OUTPUT_NAME.fullmatch(name)
        if match is None:
            return False
        return int(match[1]) not in files or files[int(match[1])].file != name

    for name in [name for name, _ in directory.listed() if is_left_over(name)]:
        directory.remove(name)
    directory.tidy()


def _indices(directory: Directory, folder: str) -> Iterator[int]:
    for name, _ in directory.listed(folder):
        if name.startswith("part-") and name[5:13].isdigit():
            yield int(name[5:13])


class _Sizes:
    """Sizes of the output files of a directory, in 20 bytes each."""

    def __init__(self, directory: Directory) -> None:
        listed = (
            (int(match[1]), int(match[2], 16), size)
            for name, size in directory.listed()
            if (match := OUTPUT_NAME.fullmatch(name))
        )
        kind = np.dtype([("index", "u4"), ("hash", "u8"), ("size", "i8")])
        files = np.fromiter(listed, kind)
        self._files = files[np.argsort(files["index"], kind="stable")]

    def of(self, index: int, sha256: str) -> int | None:
        """Size of the file of a part that has this hash; None where there is none."""
        first = int(np.searchsorted(self._files["index"], np.uint32(index)))
        for number, digest, size in self._files[first:]:
            if number != index:
                break
            if digest == int(sha256[:16], 16):
                return int(size)
        return None
