"""Where a job stands: which of its parts are done, and what came of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bliss_index.bulk.inputs import JobInput
from bliss_index.bulk.listener import JobListener
from bliss_index.bulk.options import JobOptions
from bliss_index.bulk.part_worker import PartResult
from bliss_index.bulk.records import PartRecord, output_name, record_path
from bliss_index.errors import CorruptStoreError, JobError, OutputError


@dataclass(frozen=True)
class JobSummary:
    """What a run of a job did, and where the job stands.

    Attributes
    ----------
    output
        Directory of the scores.
    rows, bad_rows, status
        Rows scored so far, those among them without a score, and rows by status.
    parts, parts_done, parts_earlier
        Input parts, those done, and those that an earlier run had done.
    rows_now, seconds, rows_per_second
        Of this run; the time includes opening and preparing everything.
    failed
        Name and reason of the parts that could not be scored.
    complete
        Whether every part is done.
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

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


class JobState:
    """Which parts of a job are done.

    Parameters
    ----------
    directory
        The job's output.
    images
        Its input.
    options
        How it runs.
    listener
        Hears of parts that are finished, have failed, or must be scored again.
    """

    def __init__(
        self, directory: Path, images: JobInput, options: JobOptions, listener: JobListener
    ) -> None:
        self._directory = directory
        self._images = images
        self._options = options
        self._listener = listener
        self._records: dict[int, PartRecord] = {}
        self._failed: dict[int, str] = {}
        self._earlier = 0
        self._rows_now = 0

    @property
    def rows(self) -> int:
        """Rows of the parts that are done."""
        return sum(record.rows for record in self._records.values())

    def find_done(self) -> None:
        """Read the records of earlier runs, and check that they still hold.

        Raises
        ------
        JobError
            A part was replaced after it was scored.
        """
        for index, part in enumerate(self._images.parts):
            path = record_path(self._directory, index)
            if not path.exists():
                continue
            try:
                record = PartRecord.read(path)
            except CorruptStoreError as error:
                self._listener.notice(f"{error}; part {part.name} is scored again")
                continue
            output = self._directory / output_name(index)
            size = output.stat().st_size if output.exists() else None
            if size != record.bytes:
                self._listener.notice(
                    f"{output.name} has {size} bytes, its record says {record.bytes}; "
                    f"part {part.name} is scored again"
                )
                continue
            if part.stamp() != record.input_stamp and part.sha256() != record.input_sha256:
                raise JobError(
                    f"{part.name} was scored with SHA-256 {record.input_sha256}, now it has "
                    f"{part.sha256()}: it was replaced since. Remove {path} to score it again, or "
                    "choose another output"
                )
            self._records[index] = record
        self._earlier = len(self._records)

    def pending(self) -> list[int]:
        """Return the numbers of the parts that this run shall score."""
        mine, tasks = self._options.task_numbers()
        return [
            index
            for index in range(len(self._images.parts))
            if index not in self._records and index % tasks == mine
        ]

    def take(self, result: PartResult) -> None:
        """Note what became of a part.

        Raises
        ------
        OutputError
            It could not be written.
        """
        if result.stops:
            raise OutputError(result.reason)
        if result.record is None:
            self._failed[result.index] = result.reason
            self._listener.notice(
                f"{self._images.parts[result.index].name} failed: {result.reason}"
            )
            return
        self._records[result.index] = result.record
        self._rows_now += result.record.rows
        self._listener.finished_part(result.record)

    def require_few_bad(self) -> None:
        """Stop the job when more rows are bad than was allowed.

        Raises
        ------
        JobError
            They are; both shares are named.
        """
        bad = sum(record.bad_rows for record in self._records.values())
        share = bad / self.rows if self.rows else 0.0
        if share > self._options.max_bad_fraction:
            raise JobError(
                f"{bad} of {self.rows} rows are bad ({share:.2%}), --max-bad-fraction allows "
                f"{self._options.max_bad_fraction:.2%}; look at 'status' and 'error' in "
                f"{self._directory}. What is done is kept."
            )

    def summary(self, seconds: float) -> JobSummary:
        """Sum up."""
        status: Counter[str] = Counter()
        for record in self._records.values():
            status.update(record.status)
        return JobSummary(
            output=str(self._directory),
            rows=self.rows,
            bad_rows=sum(record.bad_rows for record in self._records.values()),
            status=dict(sorted(status.items())),
            parts=len(self._images.parts),
            parts_done=len(self._records),
            parts_earlier=self._earlier,
            rows_now=self._rows_now,
            seconds=round(seconds, 3),
            rows_per_second=round(self._rows_now / seconds, 1) if seconds > 0 else 0.0,
            failed=tuple(
                (self._images.parts[index].name, reason)
                for index, reason in sorted(self._failed.items())
            ),
            complete=len(self._records) == len(self._images.parts),
        )
