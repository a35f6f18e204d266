"""Proves that a scores directory is complete: rows out = rows in, hashes, keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.fs as pafs

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
from bliss_index.store.source_file import resolve
from bliss_index.store.source_part import ColumnNames
from bliss_index.store.verify import VerificationReport

_READ_ROWS = 8192

Parts = tuple[tuple[str, int], ...]


def verify_scores(
    path: str | Path,
    columns: ColumnNames | None = None,
    progress: Callable[[int], None] | None = None,
    images: str | Path | None = None,
) -> VerificationReport:
    """Check a scores directory against its records, and against its input where that still is.

    An input that has gone is no problem of the scores: the report says then, under `unchecked`,
    what was not compared.

    Parameters
    ----------
    path
        The directory.
    columns
        Of Parquet input, as they were given to ``score``.
    progress
        Called with the number of rows just checked.
    images
        Where the input is now; by default where it was scored.

    Raises
    ------
    StoreError, CorruptStoreError
        There are no scores, or their job cannot be read. Everything else is reported.
    """
    directory = Path(path)
    manifest = JobManifest.read(directory)
    report = VerificationReport(str(directory))
    found = _input(manifest, images, columns, report)
    earlier: list[int] = []

    def keys_of(index: int) -> list[str]:
        rows = manifest.parts[index][1]
        table = read_scores(directory / output_name(index), rows, ["key"])
        return list(table.column("key").to_pylist())

    registry = KeyRegistry(lambda: (keys_of(index) for index in earlier))
    for index, (name, rows) in enumerate(manifest.parts):
        part = found.parts[index] if found is not None else None
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
    manifest: JobManifest,
    given: str | Path | None,
    columns: ColumnNames | None,
    report: VerificationReport,
) -> JobInput | None:
    """Open the input; say in the report why that cannot be done."""
    location = manifest.find(manifest.location) if given is None else str(given)
    if given is None and _is_gone(location):
        report.unchecked.append(
            f"the input is not at {location} any more: its hashes and the keys in their order were "
            "not compared; --images names its new place"
        )
        return None
    try:
        images = open_input(location, columns)
    except BlissError as error:
        report.add(f"the input cannot be read, hashes and keys were not compared: {error}")
        return None
    parts = tuple((part.name, part.rows) for part in images.parts)
    if parts != manifest.parts:
        report.add(f"{location} is not what was scored: {_first_difference(manifest.parts, parts)}")
        return None
    return images


def _is_gone(location: str) -> bool:
    """Whether there is nothing under a location; of one that does not answer nobody knows."""
    try:
        filesystem, path = resolve(location)
        return bool(filesystem.get_file_info(path).type == pafs.FileType.NotFound)
    except (BlissError, OSError):
        return False


def _first_difference(scored: Parts, found: Parts) -> str:
    """Name the first part in which two lists of names and rows differ."""
    for before, now in itertools.zip_longest(scored, found):
        if before != now:
            break
    else:
        raise ValueError("the parts are the same")
    return f"{_described(before)} was scored, {_described(now)} is there"


def _described(part: tuple[str, int] | None) -> str:
    return "no further part" if part is None else f"{part[0]} with {part[1]} rows"


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
