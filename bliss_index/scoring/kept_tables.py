"""Tables of a calibration for a vocabulary, kept beside the calibration for the next job.

They depend on these two only. ``<calibration>/tables/<corpus>.<hash>.tables`` holds the numbers of
the K entries that occurred, ascending, (K,) int64, and their rows, (K, 2, C) float32, both
little-endian: the scales of all classes and then their shifts
(:class:`bliss_index.scoring.tables.ExternalTables`). ``<corpus>`` is the beginning of the
vocabulary's content hash.

Whatever is here can be computed again. So what is stale, damaged or of another version is never
used and never an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import Calibration
from bliss_index.errors import BlissError, CorruptStoreError, OutputError
from bliss_index.scoring.native_kernel import score_kernel_available
from bliss_index.scoring.tables import ExternalTables, KnownRows
from bliss_index.search.protocol import Corpus
from bliss_index.storage import open_directory
from bliss_index.storage.directory import LocalDirectory, read_named
from bliss_index.storage.kept import KeptFiles, write_arrays

TABLES = KeptFiles("tables", "tables", format_version=1, what="the tables")
KEPT_FROM_SECONDS = 1.0
"""What computing the rows must have taken for them to be kept."""
MOST_BYTES = 2 << 30
"""What is kept at most."""

_ROWS_AT_ONCE = 4096
_LOGGER = logging.getLogger("bliss_index")


@dataclass(frozen=True)
class TablesRecord:
    """What ``<corpus>.json`` says of a file of tables.

    Attributes
    ----------
    file, sha256
        The file's name and its SHA-256.
    corpus, calibration
        Content hashes of what they are of.
    rows, entries, classes
        Entries whose rows are there, entries of the vocabulary, classes.
    computed_by
        "compiled" or "numpy", which may differ in the last bit of a number.
    prior
        Mean variances over the vocabulary; None where the calibration does not shrink.
    """

    file: str
    sha256: str
    corpus: str
    calibration: str
    rows: int
    entries: int
    classes: int
    computed_by: str
    prior: list[float] | None


def read_tables(location: str | Path, calibration: Calibration, corpus: Corpus) -> KnownRows | None:
    """Map the rows that are kept; None where there are none of just these two.

    Parameters
    ----------
    location
        Directory of the calibration, or its URI.
    calibration, corpus
        What the tables are of.
    """
    try:
        return _read(location, calibration, corpus)[1]
    except (BlissError, FileNotFoundError) as error:
        _LOGGER.warning("%s; the tables are computed anew", error)
        return None


def _read(
    location: str | Path, calibration: Calibration, corpus: Corpus
) -> tuple[TablesRecord | None, KnownRows | None]:
    def current() -> TablesRecord | None:
        records = tables_records(location)
        return next((r for r in records if _is_current(r, calibration, corpus)), None)

    def mapped(record: TablesRecord | None) -> tuple[TablesRecord | None, KnownRows | None]:
        if record is None:
            return None, None
        shape = (record.rows, 2, record.classes)
        size = 8 * record.rows * (1 + record.classes)
        content = TABLES.mapped(location, record.file, record.sha256, size)
        ids = content[: 8 * record.rows].view("<i8")
        rows = content[8 * record.rows :].view("<f4").reshape(shape)
        ascending = (np.diff(ids) > 0).all() and ids[0] >= 0 and ids[-1] < record.entries
        if not ascending:
            raise CorruptStoreError(
                f"{TABLES.path(location, record.file)}: its entries are not ascending numbers "
                f"below {record.entries}"
            )
        prior = None if record.prior is None else np.array(record.prior)
        return record, KnownRows(ids, rows, prior)

    return read_named(current, mapped)


def tables_records(location: str | Path) -> list[TablesRecord]:
    """Read the records of all vocabularies; those of another format version are left out.

    Raises
    ------
    CorruptStoreError
        A record is damaged.
    """

    def record(name: str, **values: Any) -> TablesRecord:
        found = TablesRecord(**values)
        numbers = (found.rows, found.entries, found.classes)
        if (
            not str(found.corpus).startswith(name)
            or not all(type(number) is int and number > 0 for number in numbers)
            or found.rows > found.entries
            or (found.prior is not None and len(found.prior) != found.classes)
        ):
            raise ValueError("its fields do not fit each other")
        return found

    return TABLES.described(location, record)


def keep_tables(
    tables: ExternalTables, location: str | Path, calibration: Calibration, corpus: Corpus
) -> TablesRecord | None:
    """Keep the rows of a finished job beside a local calibration, if they took long to compute.

    What another job has kept meanwhile stays. A folder that cannot be written to is no error.

    Returns
    -------
    The record of what stands there now; None where nothing was written.
    """
    if tables.seconds < KEPT_FROM_SECONDS or not isinstance(
        open_directory(location), LocalDirectory
    ):
        return None
    known = np.flatnonzero(tables.places >= 0)
    rows = 0

    def content() -> Iterator[npt.NDArray[Any]]:
        nonlocal rows
        before = None
        with suppress(BlissError, FileNotFoundError):
            before = _read(location, calibration, corpus)[1]
        ids = known if before is None else np.union1d(known, before.ids)
        rows = ids.size
        yield ids.astype("<i8")
        for start in range(0, rows, _ROWS_AT_ONCE):
            part = ids[start : start + _ROWS_AT_ONCE]
            own = tables.places[part] >= 0
            out = np.empty((part.size, *tables.fresh.shape[1:]), dtype="<f4")
            out[own] = tables.rows(part[own])
            if before is not None:
                out[~own] = before.rows[np.searchsorted(before.ids, part[~own])]
            yield out

    if known.size * 8 * (1 + len(calibration.classes)) > MOST_BYTES:
        return None
    prior = tables.prior
    facts = {
        "corpus": corpus.content_hash,
        "calibration": calibration.content_hash,
        "entries": corpus.rows,
        "classes": len(calibration.classes),
        "computed_by": _computed_by(),
        "prior": None if prior is None else prior.tolist(),
    }
    try:
        values = TABLES.write(
            location,
            corpus.content_hash[:16],
            lambda sink: write_arrays(sink, content()),
            lambda: {**facts, "rows": rows},
        )
    except OutputError as error:
        _LOGGER.info("the tables are not kept: %s", error)
        return None
    tables.seconds = 0.0  # a worker may come back with more
    return TablesRecord(**values)


def verify_tables(location: str | Path) -> list[TablesRecord]:
    """Compare all files with their records; return the records.

    Raises
    ------
    CorruptStoreError
        A record or a file is damaged, or a file is missing.
    """
    records = tables_records(location)
    for record in records:
        again = f"remove {TABLES.path(location, '')}; the next job computes them again"
        TABLES.verify(location, record.file, record.sha256, again)
    return records


def _is_current(record: TablesRecord, calibration: Calibration, corpus: Corpus) -> bool:
    made_of = (record.corpus, record.calibration, record.computed_by)
    shape = (record.entries, record.classes)
    return shape == (corpus.rows, len(calibration.classes)) and made_of == (
        corpus.content_hash, calibration.content_hash, _computed_by(),
    )  # fmt: skip


def _computed_by() -> str:
    return "compiled" if score_kernel_available() else "numpy"
