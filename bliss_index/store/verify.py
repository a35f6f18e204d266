"""Reads everything in a store and says what does not agree."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bliss_index.errors import CorruptStoreError
from bliss_index.jobs.description import JOB_NAME, MANIFEST_NAME, JobDescription
from bliss_index.jobs.part import PLAN_FOLDER, Plan
from bliss_index.jobs.record import OUTPUT_NAME, RECORD_FOLDER
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.files import TEMPORARY
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.manifest import StoreManifest, read_unfinished
from bliss_index.store.normalise import norm_defects
from bliss_index.store.reader import EmbeddingStore, Shard
from bliss_index.store.schema import OK

_MOST_PROBLEMS = 100


@dataclass
class VerificationReport:
    """What a verification found.

    Attributes
    ----------
    path
        What was verified.
    rows, bad_rows
        Rows read, and those among them that are quarantined.
    files
        Files read.
    problems
        A sentence for each disagreement, at most 100; empty when all is well.
    unchecked
        A sentence for each check that could not be made; no problem in itself.
    """

    path: str
    rows: int = 0
    bad_rows: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found amiss in what was checked."""
        return not self.problems

    def add(self, problem: str) -> None:
        """Note a disagreement."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "path": self.path,
            "ok": self.ok,
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "files": self.files,
            "problems": self.problems,
            "unchecked": self.unchecked,
        }


def verify_store(
    path: str | Path, progress: Callable[[int], None] | None = None
) -> VerificationReport:
    """Check hashes, row counts, norms, duplicate keys and leftovers of a store.

    Parameters
    ----------
    path
        Directory of the store, or its URI.
    progress
        Called with the number of rows just read.

    Raises
    ------
    StoreError, CorruptStoreError
        There is no store, or its manifest cannot be read. Everything else is reported.
    """
    directory = open_directory(path)
    report = VerificationReport(directory.uri)
    names = directory.names()
    if JOB_NAME in names and MANIFEST_NAME not in names:
        manifest = read_unfinished(directory)
        report.add(f"the store is not complete: {manifest.rows} rows are written so far")
    else:
        manifest = StoreManifest.read(path)
    store = EmbeddingStore(path, manifest)
    registry = KeyRegistry()
    for index, record in enumerate(store.shards):
        try:
            shard = store.shard(index)
        except CorruptStoreError as error:
            report.add(str(error))
            continue
        _check_rows(shard, record.file, record.bad_rows, registry, report)
        report.files += 1
        report.rows += shard.rows
        if progress is not None:
            progress(shard.rows)
    if JOB_NAME in names and (plan := JobDescription.read(directory).plan) is not None:
        try:
            Plan.read(directory, plan)
        except CorruptStoreError as error:
            report.add(str(error))
    add_leftovers(directory, {record.file for record in store.shards}, report)
    return report


def _check_rows(
    shard: Shard, file: str, bad_rows: int, registry: KeyRegistry, report: VerificationReport
) -> None:
    good = shard.good
    found_bad = int((~good).sum())
    report.bad_rows += found_bad
    if found_bad != bad_rows:
        report.add(f"{file}: {found_bad} rows are not ok, the manifest says {bad_rows}")
    defects = np.flatnonzero(good)[norm_defects(shard.embeddings[good])]
    if defects.size:
        report.add(
            f"{file}: {defects.size} embeddings are not of unit norm, the first in row {defects[0]}"
        )
    keys = shard.keys
    allowed = {row for row, code in enumerate(shard.status) if code != OK}
    repeated = [row for row in np.flatnonzero(registry.register(keys)) if row not in allowed]
    if repeated:
        report.add(
            f"{file}: {len(repeated)} keys occurred before, the first is {keys[repeated[0]]!r} in "
            f"row {repeated[0]}"
        )


def add_leftovers(
    directory: Directory,
    named: set[str],
    report: VerificationReport,
    content: re.Pattern[str] = OUTPUT_NAME,
    folders: Sequence[str] = ("", RECORD_FOLDER, PLAN_FOLDER),
) -> None:
    """Report files that no record names, in the first of the folders, and temporary ones."""
    for name in sorted(directory.names(folders[0])):
        if content.fullmatch(name) and name not in named:
            report.add(f"{name} is an orphan: no record names it; safe to remove")
    for folder in folders:
        for name in sorted(directory.names(folder)):
            if TEMPORARY.fullmatch(name):
                report.add(f"{name} is a temporary file of a job that was killed; safe to remove")
