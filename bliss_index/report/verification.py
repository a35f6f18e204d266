"""Checks any directory that this package writes: a store, a calibration or scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bliss_index.calibration import Calibration
from bliss_index.calibration.files import (
    CALIBRATION_FORMAT,
    CLASSES_NAME,
    classes_file,
    read_calibration,
)
from bliss_index.errors import BlissError, InvalidInputError, StoreError
from bliss_index.jobs.description import JOB_NAME, MANIFEST_NAME, SCREEN_KIND, JobDescription
from bliss_index.scoring.kept_tables import TABLES, verify_tables
from bliss_index.scoring.score_verify import verify_scores
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.files import parse_json
from bliss_index.store import EmbeddingStore, VerificationReport, verify_store
from bliss_index.store.manifest import StoreManifest
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.verify import add_leftovers


def directory_kind(path: str | Path) -> str:
    """Say what a directory, or a URI, is: "store", "calibration" or "scores".

    Raises
    ------
    StoreError
        It is none of these.
    """
    directory = open_directory(path)
    names = directory.names()
    if JOB_NAME in names:
        kind = JobDescription.read(directory).kind
        if kind == SCREEN_KIND:
            raise StoreError(
                f"{path} is a whole run of 'bliss-index screen'; name a directory in it: "
                f"{path}/scores, {path}/photos or {path}/calibration"
            )
        if kind not in ("scores", "store"):
            raise StoreError(f"{path} holds {kind!r}, which this version does not know")
        return kind
    if MANIFEST_NAME in names:
        manifest = parse_json(directory.read(MANIFEST_NAME), f"{path}/{MANIFEST_NAME}")
        return "calibration" if manifest.get("format") == CALIBRATION_FORMAT else "store"
    raise StoreError(
        f"{path} is not a store, calibration or scores directory: it has neither {MANIFEST_NAME} "
        f"nor {JOB_NAME}"
    )


def verify_directory(
    path: str | Path,
    columns: ColumnNames | None = None,
    progress: Callable[[int], None] | None = None,
    images: str | Path | None = None,
) -> VerificationReport:
    """Verify a store with its indexes, a calibration or scores.

    Parameters
    ----------
    path
        The directory, or its URI. Nothing else is contacted.
    columns
        Columns of the Parquet files that were scored, as they were given to ``score``.
    progress
        Called with the number of rows just read.
    images
        Where the input of scores is now; by default where it was scored.

    Raises
    ------
    StoreError, CorruptStoreError
        The directory is none of ours, or does not say what it holds.
    InvalidInputError
        Images are given for something else than scores.
    """
    kind = directory_kind(path)
    if kind == "scores":
        return verify_scores(path, columns, progress, images)
    if images is not None:
        raise InvalidInputError(
            f"--images {images} names the input of scores, {path} is a {kind}; leave it out"
        )
    if kind == "calibration":
        return _verify_calibration(open_directory(path))
    report = verify_store(path, progress)
    if report.ok:
        _verify_indexes(path, report)
        _verify_prepared(path, report)
    return report


def _verify_calibration(directory: Directory) -> VerificationReport:
    report = VerificationReport(directory.uri, files=1)
    try:
        report.rows = len(Calibration(*read_calibration(directory)).classes)
        add_leftovers(directory, {classes_file(directory) or ""}, report, CLASSES_NAME, ("",))
        tables = {record.file for record in verify_tables(directory.uri)}
        report.files += len(tables)
        add_leftovers(directory, tables, report, TABLES.names, (TABLES.folder,))
    except BlissError as error:
        report.add(str(error))
    return report


def _verify_indexes(path: str | Path, report: VerificationReport) -> None:
    from bliss_index.search.index import (
        INDEXES,
        LISTS,
        index_records,
        verify_index,
    )

    directory = open_directory(path)
    store = EmbeddingStore(path, StoreManifest.read(path))
    try:
        records = index_records(store)
        for record in records:
            verify_index(store, record)
            report.files += 1
        named = {record.file for record in records}
        for files in (INDEXES, LISTS):
            add_leftovers(directory, named, report, files.names, (files.folder,))
    except BlissError as error:
        report.add(str(error))


def _verify_prepared(path: str | Path, report: VerificationReport) -> None:
    from bliss_index.search.prepared import CODES, verify_prepared

    store = EmbeddingStore(path, StoreManifest.read(path))
    try:
        records = verify_prepared(store)
        report.files += len(records)
        named = {record.file for record in records}
        add_leftovers(open_directory(path), named, report, CODES.names, (CODES.folder,))
    except BlissError as error:
        report.add(str(error))
