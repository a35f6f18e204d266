"""Reads a scores directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bliss_index.bulk.records import JobManifest, PartRecord, output_name, record_path
from bliss_index.errors import CorruptStoreError, StoreError

SCORE_COLUMNS = (
    "key", "anomaly_score", "nearest_class", "internal_score", "external_score", "status", "error",
)  # fmt: skip
"""Columns that all scores have."""


@dataclass(frozen=True)
class ScoresDirectory:
    """Scores of a complete job, one Parquet file per input part.

    Attributes
    ----------
    path
        The directory.
    manifest
        Its job.
    records
        One per part.
    """

    path: Path
    manifest: JobManifest
    records: tuple[PartRecord, ...]

    @classmethod
    def open(cls, path: str | Path) -> ScoresDirectory:
        """Open a directory whose job is complete.

        Raises
        ------
        StoreError
            It holds no scores, or its job is not complete.
        CorruptStoreError
            Its job or records are damaged.
        """
        directory = Path(path)
        manifest = JobManifest.read(directory)
        records = []
        for index, (name, _) in enumerate(manifest.parts):
            file = record_path(directory, index)
            if not file.exists():
                raise StoreError(
                    f"{directory} is not complete: part {name} is not scored. Run the command "
                    "that makes it again; it continues where it stopped."
                )
            records.append(PartRecord.read(file))
        return cls(directory, manifest, tuple(records))

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(record.rows for record in self.records)

    @property
    def bad_rows(self) -> int:
        """Rows without a score."""
        return sum(record.bad_rows for record in self.records)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the normal classes."""
        return self.manifest.classes

    def iter_tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read one part after another.

        Raises
        ------
        CorruptStoreError
            A file is missing, damaged, or has other rows than its record says.
        """
        for index, record in enumerate(self.records):
            yield read_scores(self.path / output_name(index), record.rows, columns)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all parts into memory."""
        tables = list(self.iter_tables(columns))
        if not tables:
            raise StoreError(f"{self.path} holds no parts")
        return pa.concat_tables(tables)


def read_scores(path: Path, rows: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file of scores and check its number of rows."""
    try:
        table = pq.read_table(path, columns=None if columns is None else list(columns))
        names = table.column_names  # of a damaged file they may be no UTF-8, as its texts may
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptStoreError(f"{path} cannot be read: {error}") from error
    if table.num_rows != rows:
        raise CorruptStoreError(f"{path} holds {table.num_rows} rows, its record says {rows}")
    missing = set(columns or SCORE_COLUMNS) - set(names)
    if missing:
        raise CorruptStoreError(f"{path} has no column {sorted(missing)[0]!r}; it has {names}")
    return table
