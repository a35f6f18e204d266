"""Proves that a scores directory is complete: rows out = rows in, hashes, keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc

from bliss_index.bulk.inputs import InputPart, JobInput, open_input
from bliss_index.bulk.records import (
    RECORD_FOLDER,
    JobManifest,
    PartRecord,
    output_name,
    record_path,
)
from bliss_index.bulk.scores import read_scores
from bliss_index.errors import BlissError, CorruptStoreError
from bliss_index.store.files import TEMPORARY_SUFFIX
from bliss_index.store.hashing import file_sha256
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.schema import OK
from bliss_index.store.source_part import ColumnNames
from bliss_index.store.verify import VerificationReport

_READ_ROWS = 8192


def verify_scores(
    path: str | Path,
    columns: ColumnNames | None = None,
    progress: Callable[[int], None] | None = None,
) -> VerificationReport:
    """Check a scores directory against its records, and against its input where that still is.

    Parameters
    ----------
    path
        The directory.
    columns
        Of Parquet input, as they were given to ``score``.
    progress
        Called with the number of rows just checked.

    Raises
    ------
    StoreError, CorruptStoreError
        There are no scores, or their job cannot be read. Everything else is reported.
    """
    directory = Path(path)
    manifest = JobManifest.read(directory)
    report = VerificationReport(str(directory))
    images = _input(manifest, columns, report)
    earlier: list[int] = []

    def keys_of(index: int) -> list[str]:
        rows = manifest.parts[index][1]
        table = read_scores(directory / output_name(index), rows, ["key"])
        return list(table.column("key").to_pylist())

    registry = KeyRegistry(lambda: (keys_of(index) for index in earlier))
    for index, (name, rows) in enumerate(manifest.parts):
        part = images.parts[index] if images is not None else None
        try:
            _check_part(directory, index, name, rows, part, registry, report)
        except BlissError as error:
            report.add(f"part {name}: {error}")
            continue
        earlier.append(index)
        if progress is not None:
            progress(rows)
    for folder in (directory, directory / RECORD_FOLDER):
        for leftover in sorted(folder.glob(f".*{TEMPORARY_SUFFIX}")):
            report.add(f"{leftover.name} is a temporary file of a job that was killed")
    if report.rows != manifest.rows and report.ok:
        report.add(f"{report.rows} rows are scored, the input has {manifest.rows}")
    return report


def _input(
    manifest: JobManifest, columns: ColumnNames | None, report: VerificationReport
) -> JobInput | None:
    try:
        images = open_input(manifest.find(manifest.location), columns)
    except BlissError as error:
        report.add(f"the input can no longer be read, keys were not compared: {error}")
        return None
    if tuple((part.name, part.rows) for part in images.parts) != manifest.parts:
        report.add(f"{manifest.location} has other parts now than when the job began")
        return None
    return images


def _check_part(
    directory: Path,
    index: int,
    name: str,
    rows: int,
    part: InputPart | None,
    registry: KeyRegistry,
    report: VerificationReport,
) -> None:
    file = record_path(directory, index)
    if not file.exists():
        raise CorruptStoreError("it is not scored; run the job again")
    record = PartRecord.read(file)
    output = directory / output_name(index)
    if not output.exists():
        raise CorruptStoreError(f"{output.name} is missing; run the job again")
    digest = file_sha256(output)
    if digest != record.sha256:
        raise CorruptStoreError(
            f"{output.name} has SHA-256 {digest}, its record says {record.sha256}: altered; "
            "remove it and run the job again"
        )
    if record.rows != rows:
        raise CorruptStoreError(f"{record.rows} rows are scored, the input has {rows}")
    table = read_scores(output, rows, ["key", "anomaly_score", "status"])
    good = pc.equal(table.column("status"), OK)
    if not good.equals(pc.is_valid(table.column("anomaly_score"))):
        raise CorruptStoreError(f"{output.name}: rows with a score are not those of status 'ok'")
    keys = table.column("key").to_pylist()
    if part is not None:
        found = part.sha256()
        if found != record.input_sha256:
            raise CorruptStoreError(
                f"it was scored with SHA-256 {record.input_sha256}, the input has {found} now"
            )
        given = [key for batch in part.read(_READ_ROWS) for key in batch.keys.to_pylist()]
        if given != keys:
            raise CorruptStoreError("keys are not those of the input, in its order")
    repeated = registry.register(keys)
    scored = good.to_numpy()
    twice = [row for row in repeated.nonzero()[0] if scored[row]]
    if twice:
        report.add(
            f"part {name}: {len(twice)} scored rows have a key that occurred before, the first is "
            f"{keys[twice[0]]!r} in row {twice[0]}"
        )
    report.files += 1
    report.rows += rows
    report.bad_rows += record.bad_rows
