"""Where a job stands: which of its parts are done, and what came of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from bliss_index.errors import CorruptStoreError, JobError, OutputError
from bliss_index.jobs.listener import JobListener
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
        self._directory = directory
        self._plan = plan
        self._options = options
        self._listener = listener
        self._failed: dict[int, str] = {}
        self._earlier = 0
        self._rows_now = 0
        self._repair = True
        self._status: Counter[str] = Counter()
        self._facts: Counter[str] = Counter()
        self.records: dict[int, Record] = {}
        self.taken = 0
        self.rows = 0
        self.bad_rows = 0

    def find_done(self, *, repair: bool = True) -> None:
        """Read the records of earlier runs; with `repair`, those that do not hold are removed."""
        self._repair = repair
        sizes = self._directory.names()
        names = self._directory.names(RECORD_FOLDER)
        for index in sorted(_indices(names)):
            if index >= len(self._plan):
                continue
            part = self._plan[index]
            try:
                record = Record.read(self._directory, index)
            except FileNotFoundError:
                continue
            except CorruptStoreError as error:
                self._again(index, str(error))
                continue
            size = sizes.get(record.file)
            if size != record.bytes:
                self._again(
                    index, f"{record.file} has {size} bytes, its record says {record.bytes}"
                )
            elif record.part != part.name or (
                part.rows >= 0 and record.rows + record.facts.get("dropped", 0) != part.rows
            ):
                self._again(
                    index,
                    f"{self._directory.uri}/{record_name(index)} is of {record.part} with "
                    f"{record.rows} rows, the plan says {part.rows}",
                )
            else:
                self._add(index, record)
        self._earlier = len(self.records)

    def _again(self, index: int, reason: str) -> None:
        self._listener.notice(f"{reason}; part {self._plan[index].name} is done again")
        if self._repair:
            self._directory.remove(record_name(index))

    def _add(self, index: int, record: Record) -> None:
        self.records[index] = record
        self.rows += record.rows
        self.bad_rows += record.bad_rows
        self._status.update(record.status)
        self._facts.update({k: v for k, v in record.facts.items() if isinstance(v, int)})

    def pending(self) -> list[int]:
        """Numbers of the parts that this run shall do; those that killed a process come last."""
        mine, tasks = self._options.task_numbers()
        left = [index for index in range(len(self._plan)) if index not in self.records]
        left = [index for index in left if index % tasks == mine]
        deadly = _indices(self._directory.names(DEATH_FOLDER))
        return sorted(left, key=lambda index: index in deadly) if deadly else left

    def note_death(self, index: int, reason: str) -> None:
        """Remember, for later runs too, that a part's process died."""
        count = sum(name.startswith(f"part-{index:08d}.") for name in
                    self._directory.names(DEATH_FOLDER))  # fmt: skip
        name = f"{DEATH_FOLDER}/part-{index:08d}.{count + 1}.txt"
        self._directory.create(name, f"{reason}\n".encode())

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
        share = self.bad_rows / self.rows if self.rows else 0.0
        if share > self._options.max_bad_fraction:
            raise JobError(
                f"{self.bad_rows} of {self.rows} rows are bad ({share:.2%}), --max-bad-fraction "
                f"allows {self._options.max_bad_fraction:.2%}; look at 'status' and 'error' in "
                f"{self._directory.uri}. What is done is kept."
            )

    @property
    def complete(self) -> bool:
        """Whether every part is done."""
        return len(self.records) == len(self._plan)

    def summary(self, seconds: float) -> JobSummary:
        """Sum up."""
        return JobSummary(
            output=self._directory.uri,
            rows=self.rows,
            bad_rows=self.bad_rows,
            status=dict(sorted(self._status.items())),
            parts=len(self._plan),
            parts_done=len(self.records),
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


def remove_leftovers(directory: Directory, records: dict[int, Record]) -> None:
    """Remove what killed runs and losers left behind, once a job is complete."""
    named = {record.file for record in records.values()}
    for name in directory.names():
        if OUTPUT_NAME.fullmatch(name) and name not in named:
            directory.remove(name)
    directory.tidy()


def _indices(names: dict[str, int]) -> set[int]:
    return {int(name[5:13]) for name in names if name.startswith("part-") and name[5:13].isdigit()}
