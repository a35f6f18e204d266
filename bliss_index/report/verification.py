"""Checks any directory that this package writes: a store, a calibration or scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bliss_index.calibration import Calibration
from bliss_index.calibration.files import CALIBRATION_FORMAT
from bliss_index.errors import BlissError, InvalidInputError, StoreError
from bliss_index.jobs.description import JOB_NAME, MANIFEST_NAME, JobDescription
from bliss_index.scoring.score_verify import verify_scores
from bliss_index.storage.directory import LocalDirectory
from bliss_index.storage.files import read_json
from bliss_index.store import EmbeddingStore, VerificationReport, verify_store
from bliss_index.store.source_part import ColumnNames


def directory_kind(path: Path) -> str:
    """Say what a directory is: "store", "calibration" or "scores".

    Raises
    ------
    StoreError
        It is none of these.
    """
    if (path / JOB_NAME).is_file():
        kind = JobDescription.read(LocalDirectory(path)).kind
        if kind not in ("scores", "store"):
            raise StoreError(f"{path} holds {kind!r}, which this version does not know")
        return kind
    if (path / MANIFEST_NAME).is_file():
        manifest = read_json(path / MANIFEST_NAME)
        return "calibration" if manifest.get("format") == CALIBRATION_FORMAT else "store"
    raise StoreError(
        f"{path} is not a store, calibration or scores directory: it has neither {MANIFEST_NAME} "
        f"nor {JOB_NAME}"
    )


def verify_directory(
    path: Path,
    columns: ColumnNames | None = None,
    progress: Callable[[int], None] | None = None,
    images: str | Path | None = None,
) -> VerificationReport:
    """Verify a store with its indexes, a calibration or scores.

    Parameters
    ----------
    path
        The directory.
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
        report = VerificationReport(str(path))
        try:
            report.rows = len(Calibration.load(path).classes)
        except BlissError as error:
            report.add(str(error))
        report.files = 1
        return report
    report = verify_store(path, progress)
    if report.ok:
        _verify_indexes(path, report)
    return report


def _verify_indexes(path: Path, report: VerificationReport) -> None:
    from bliss_index.search.faiss.index import index_records, verify_index

    store = EmbeddingStore.open(path)
    try:
        for record in index_records(store):
            verify_index(store, record)
            report.files += 1
    except BlissError as error:
        report.add(str(error))
