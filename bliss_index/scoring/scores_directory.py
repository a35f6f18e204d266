"""Reads a scores directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_index.errors import CorruptStoreError, StoreError
from bliss_index.jobs.description import (
    JOB_NAME,
    SCREEN_KIND,
    JobDescription,
    require_format,
)
from bliss_index.jobs.job import missing_part
from bliss_index.jobs.manifest import PartFile, read_files
from bliss_index.jobs.part import Plan
from bliss_index.scoring.score_work import MANIFEST_NAME, SCORES_FORMAT
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.files import parse_json

SCORE_COLUMNS = (
    "key", "anomaly_score", "nearest_class", "internal_score", "external_score", "status", "error",
)  # fmt: skip
"""Columns that all scores have."""


@dataclass(frozen=True)
class ScoresDirectory:
    """Scores of a complete job, one Parquet file per input part.

    Attributes
    ----------
    directory : Directory
        Where they are.
    job : JobDescription
        What it was begun with.
    manifest : dict
        What its manifest says.
    files : tuple of PartFile
        One per part.
    """

    directory: Directory
    job: JobDescription
    manifest: dict[str, Any]
    files: tuple[PartFile, ...]

    @classmethod
    def open(cls, path: str | Path) -> ScoresDirectory:
        """Open a directory whose job is complete.

        Raises
        ------
        StoreError
            It holds no scores, or its job is not complete.
        CorruptStoreError
            Its job or manifest is damaged.
        """
        directory = open_directory(path)
        job = read_job(directory)
        try:
            data = directory.read(MANIFEST_NAME)
        except FileNotFoundError:
            part = missing_part(directory, read_plan(directory, job))
            missing = "its end" if part is None else f"part {part.name}"
            raise StoreError(
                f"{directory.uri} is not complete: {missing} is not scored. Run the command "
                "that makes it again; it continues where it stopped."
            ) from None
        name = f"{directory.uri}/{MANIFEST_NAME}"
        manifest = parse_json(data, name)
        require_format(name, manifest, SCORES_FORMAT)
        return cls(directory, job, manifest, read_files(manifest, name))

    @property
    def path(self) -> str:
        """Path or URI of the directory."""
        return self.directory.uri

    @cached_property
    def plan(self) -> Plan:
        """The parts of the input."""
        return read_plan(self.directory, self.job)

    @property
    def location(self) -> str:
        """Where the images were when they were scored."""
        return str(self.job.facts.get("images"))

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(file.rows for file in self.files)

    @property
    def bad_rows(self) -> int:
        """Rows without a score."""
        return sum(file.bad_rows for file in self.files)

    @cached_property
    def flagged(self) -> int | None:
        """Images at or above the threshold, counted by reading all; None without one."""
        if self.job.settings.get("threshold") is None:
            return None
        tables = self.iter_tables(["flag"])
        return sum(pc.sum(table.column("flag")).as_py() or 0 for table in tables)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the normal classes."""
        return tuple(self.job.facts.get("classes", ()))

    def iter_tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read one part after another.

        Raises
        ------
        CorruptStoreError
            A file is missing, damaged, or has other rows than its record says.
        """
        for file in self.files:
            yield self.read(file, columns)

    def read(self, file: PartFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part, as :meth:`iter_tables` does."""
        return read_scores_file(self.directory, file.file, file.rows, columns)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all parts into memory."""
        tables = list(self.iter_tables(columns))
        if not tables:
            raise StoreError(f"{self.path} holds no parts")
        return pa.concat_tables(tables)


def read_job(directory: Directory) -> JobDescription:
    """Read the description of a scoring job.

    Raises
    ------
    StoreError
        There is none.
    """
    try:
        job = JobDescription.read(directory)
    except FileNotFoundError:
        job = None
    if job is not None and job.kind == SCREEN_KIND:
        raise StoreError(
            f"{directory.uri} is a whole run of 'bliss-index screen', its scores are in "
            f"{directory.uri}/scores; name that directory"
        )
    if job is None or job.kind != "scores":
        raise StoreError(
            f"{directory.uri} is not a scores directory: it has no {JOB_NAME} of one. "
            "Make one with 'bliss-index score'."
        )
    return job


def read_plan(directory: Directory, job: JobDescription) -> Plan:
    """Read the parts of a scoring job."""
    if job.plan is None:
        raise CorruptStoreError(f"{directory.uri}/{JOB_NAME} names no plan")
    return Plan.read(directory, job.plan)


def read_scores_file(
    directory: Directory, file: str, rows: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read one Parquet file of scores and check its number of rows."""
    path = f"{directory.uri}/{file}"
    try:
        with directory.open(file) as source:
            table = pq.read_table(source, columns=None if columns is None else list(columns))
        names = table.column_names  # of a damaged file they may be no UTF-8, as its texts may
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptStoreError(f"{path} cannot be read: {error}") from error
    if table.num_rows != rows:
        raise CorruptStoreError(f"{path} holds {table.num_rows} rows, its manifest says {rows}")
    missing = set(columns or SCORE_COLUMNS) - set(names)
    if missing:
        raise CorruptStoreError(f"{path} has no column {sorted(missing)[0]!r}; it has {names}")
    return table


def read_scores(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the scores of a complete job, or of a whole screen, into memory.

    Parameters
    ----------
    path : str or Path
        Scores directory, or the directory of a screen; local or a URI.
    columns : sequence of str, default=None
        Which columns; None for all.

    Returns
    -------
    pyarrow.Table
        A row for every image, in the order of the input; ``.to_pandas()`` makes a DataFrame.

    Raises
    ------
    StoreError
        It holds no scores, or its job is not complete.
    CorruptStoreError
        A file is missing or damaged, or has no such column.
    """
    directory = open_directory(path)
    try:
        kind = JobDescription.read(directory).kind
    except FileNotFoundError:
        kind = ""
    where = f"{directory.uri}/scores" if kind == SCREEN_KIND else path
    return ScoresDirectory.open(where).table(columns)
