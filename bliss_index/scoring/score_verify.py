"""Proves that a scores directory is complete: rows out = rows in, hashes, keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow.compute as pc

from bliss_index.errors import BlissError, CorruptStoreError
from bliss_index.jobs.description import JobDescription
from bliss_index.jobs.part import Part, Plan
from bliss_index.jobs.record import Record
from bliss_index.scoring.score_inputs import InputPart, JobInput, open_input
from bliss_index.scoring.score_work import MANIFEST_NAME
from bliss_index.scoring.scores_directory import read_job, read_plan, read_scores_file
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.directory import content_sha256
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.schema import OK
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.verify import VerificationReport, add_leftovers

_READ_ROWS = 8192


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
    directory = open_directory(path)
    job = read_job(directory)
    plan = read_plan(directory, job)
    report = VerificationReport(directory.uri)
    found = _input(directory.uri, job, plan, images, columns, report)
    registry = KeyRegistry()
    named = set()
    for part in plan:
        source = found.find(part) if found is not None else None
        try:
            record = _record(directory, part)
            named.add(record.file)
            _check_part(directory, part, record, source, registry, report)
        except BlissError as error:
            report.add(f"part {part.name}: {error}")
            continue
        if progress is not None:
            progress(part.rows)
    add_leftovers(directory, named, report)
    known = all(part.rows >= 0 for part in plan)
    if known and report.rows != plan.rows and report.ok:
        report.add(f"{report.rows} rows are scored, the input has {plan.rows}")
    if MANIFEST_NAME not in directory.names() and report.ok:
        report.add(f"it has no {MANIFEST_NAME}: run the command that makes it again, to its end")
    return report


def _input(
    path: str,
    job: JobDescription,
    plan: Plan,
    given: str | Path | None,
    columns: ColumnNames | None,
    report: VerificationReport,
) -> JobInput | None:
    """Open the input; say in the report why that cannot be done."""
    recorded = str(job.facts.get("images"))
    location = job.find(recorded) if given is None else str(given)
    if given is None and "://" in recorded:
        report.unchecked.append(
            f"the input is at {recorded}, says {path}; what a file names is not contacted, so its "
            f"hashes and the keys in their order were not compared: --images {recorded} does that"
        )
        return None
    if given is None and not Path(location).exists():
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
    parts = [source.planned(index) for index, source in enumerate(images.parts)]
    there = {(part.name, part.rows) for part in parts}
    if any((part.name, part.rows) not in there for part in plan if part.rows >= 0):
        difference = _first_difference(plan, parts)
        report.add(f"{location} is not what was scored: {difference}")
        return None
    return images


def _first_difference(scored: Iterable[Part], found: Iterable[Part]) -> str:
    """Name the first part in which two lists of names and rows differ."""
    for before, now in itertools.zip_longest(scored, found):
        if _described(before) != _described(now):
            break
    return f"{_described(before)} was scored, {_described(now)} is there"


def _described(part: Part | None) -> str:
    return "no further part" if part is None else f"{part.name} with {part.rows} rows"


def _record(directory: Directory, part: Part) -> Record:
    try:
        return Record.read(directory, part.index)
    except FileNotFoundError:
        raise CorruptStoreError("it is not scored; run the job again") from None


def _check_part(
    directory: Directory,
    part: Part,
    record: Record,
    source: InputPart | None,
    registry: KeyRegistry,
    report: VerificationReport,
) -> None:
    output = record.file
    try:
        digest = content_sha256(directory, output)
    except FileNotFoundError:
        raise CorruptStoreError(f"{output} is missing; run the job again") from None
    if digest != record.sha256:
        raise CorruptStoreError(
            f"{output} has SHA-256 {digest}, its record says {record.sha256}: altered; "
            "remove it and run the job again"
        )
    if part.rows >= 0 and record.rows != part.rows:
        raise CorruptStoreError(f"{record.rows} rows are scored, the input has {part.rows}")
    table = read_scores_file(directory, output, record.rows, ["key", "anomaly_score", "status"])
    good = pc.equal(table.column("status"), OK)
    if not good.equals(pc.is_valid(table.column("anomaly_score"))):
        raise CorruptStoreError(f"{output}: rows with a score are not those of status 'ok'")
    keys = table.column("key").to_pylist()
    if source is not None:
        found = source.sha256()
        if found != record.input:
            raise CorruptStoreError(
                f"it was scored with SHA-256 {record.input}, the input has {found} now"
            )
        given = [key for batch in source.read(_READ_ROWS) for key in batch.keys.to_pylist()]
        if given != keys:
            raise CorruptStoreError("keys are not those of the input, in its order")
    repeated = registry.register(keys)
    scored = good.to_numpy()
    twice = [row for row in repeated.nonzero()[0] if scored[row]]
    if twice:
        report.add(
            f"part {part.name}: {len(twice)} scored rows have a key that occurred before, the "
            f"first is {keys[twice[0]]!r} in row {twice[0]}"
        )
    report.files += 1
    report.rows += record.rows
    report.bad_rows += record.bad_rows
