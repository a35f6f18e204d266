"""Makes stores of embeddings that people already have."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import BlissError, CorruptStoreError, InvalidInputError, listed
from bliss_index.jobs import JobListener, JobOptions, Outcome, Part, Plan, Record, run
from bliss_index.jobs.memory import MemoryPlan, fit_memory
from bliss_index.jobs.part import Growth
from bliss_index.jobs.work import Notify, Progress
from bliss_index.storage import Directory
from bliss_index.storage.cache import local_file
from bliss_index.storage.hashing import file_sha256
from bliss_index.store.carried import as_carried, too_large
from bliss_index.store.columns import Column, names_bytes, read_names, read_names_and_keys
from bliss_index.store.identity import ModelIdentity
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.manifest import StoreManifest
from bliss_index.store.normalise import CHECK_BYTES
from bliss_index.store.schema import OK, carried_names
from bliss_index.store.shards import ShardColumns
from bliss_index.store.source_reader import (
    BATCH_BYTES,
    BATCH_ROWS,
    ColumnNames,
    ContentHash,
    EmbeddingBatch,
    Piece,
)
from bliss_index.store.sources import EmbeddingSource, grown_source, open_source
from bliss_index.store.store_work import StoreWork
from bliss_index.store.writer import ROWS_PER_SHARD

PART_BYTES = 96 << 20
"""Bytes of a part, about, carried columns among them."""


@dataclass(frozen=True)
class ImportSummary:
    """What was imported.

    Attributes
    ----------
    path, kind, dim
        The store.
    rows, bad_rows, status
        Rows in it, those among them that are quarantined, and rows by status.
    dropped
        Rows that were left out of a text store, on request.
    repeated_keys
        Keys of an image store that occur in several of its parts.
    complete
        Whether the store is whole; a task of an array makes a share of it.
    failed
        Name and reason of the parts that could not be read; the store is not complete then.
    skipped_files
        Files of a folder that were passed over, by reason.
    """

    path: str
    kind: str
    dim: int
    rows: int
    bad_rows: int
    status: dict[str, int]
    dropped: int = 0
    repeated_keys: int = 0
    complete: bool = True
    failed: tuple[tuple[str, str], ...] = ()
    skipped_files: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def import_embeddings(
    location: str | Path,
    output: str | Path,
    *,
    kind: str,
    model: ModelIdentity,
    keys: str | Path | None = None,
    texts: str | Path | None = None,
    dtype: str = "float16",
    prompt: str | None = None,
    columns: ColumnNames | None = None,
    drop_bad_rows: bool = False,
    rows_per_shard: int = ROWS_PER_SHARD,
    options: JobOptions | None = None,
    listener: JobListener | None = None,
) -> ImportSummary:
    """Normalise embeddings, check every row, and write them as a store.

    A row whose norm is 1 within rounding stays as it is. Rows of images without a direction (zero,
    NaN, infinite), without a key, or with one that is repeated in their part keep their place with
    a status and a reason; rows of texts like that are an error, unless they are to be dropped.

    Parameters
    ----------
    location
        As :func:`bliss_index.store.sources.open_source` takes it.
    output
        Directory of the store; an unfinished import of the same file is continued, a complete one
        left as it is.
    kind
        "image" or "text".
    model
        The model that made the embeddings, as declared.
    keys, texts
        Files with one key or text a row: ``.txt``, ``.csv``, ``.npy`` or ``.parquet``.
    dtype
        Storage type.
    prompt
        Template that texts were put into, for the record.
    columns
        Which columns of tables, or array of a file, to use.
    drop_bad_rows
        Leave bad rows of a text store out.
    rows_per_shard
        About the rows of a shard; none reaches over two files.
    options, listener
        How to run, and who hears of it.

    Raises
    ------
    InvalidInputError
        The input cannot be read, or lengths differ; both are named.
    JobError
        The output was begun with something else; both values are named.
    """
    work = ImportWork(
        str(location),
        kind,
        model,
        None if keys is None else str(keys),
        None if texts is None else str(texts),
        dtype,
        prompt,
        columns or ColumnNames(),
        drop_bad_rows,
        rows_per_shard,
    )
    work.require_valid()
    options = options or JobOptions()
    listener = listener or JobListener()
    for text in work.source.notices():
        listener.notice(text)
    summary = run(work, output, options, listener)
    repeated = 0
    if summary.complete and options.task is None:
        repeated = StoreManifest.read(output).repeated_keys["count"]
    return ImportSummary(
        str(output), kind, work.source.dim, summary.rows, summary.bad_rows, summary.status,
        summary.facts.get("dropped", 0), repeated, summary.complete, summary.failed,
        {reason: len(names) for reason, names in work.source.skipped.items()},
    )  # fmt: skip


@dataclass(frozen=True)
class ImportWork(StoreWork):
    """What to import; see :func:`import_embeddings`."""

    location: str
    of_kind: str
    model: ModelIdentity
    keys: str | None
    texts: str | None
    dtype: str
    prompt: str | None
    columns: ColumnNames
    drop_bad_rows: bool
    rows_per_shard: int

    command = "'bliss-index import'"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def require_valid(self) -> None:
        """Refuse settings that have no meaning together; InvalidInputError names them."""
        images = self.of_kind == "image"
        if images and self.texts is not None:
            raise InvalidInputError("an image store takes no texts; leave --texts out")
        if self.drop_bad_rows and images:
            raise InvalidInputError(
                "bad rows of images keep their place; drop them when they are used"
            )
        if images and self.columns.text is not None:
            raise InvalidInputError(
                f"an image store takes no texts; column {self.columns.text!r} is carried as it is, "
                "leave --text-column out"
            )
        if not self.source.rows:
            raise InvalidInputError(
                f"{self.location} holds 0 rows of embeddings; nothing to import"
            )
        if not images and self.texts is None:
            self._require_texts()
        unclear = self.source.unclear_order()
        if unclear and (self.keys or self.texts):
            raise InvalidInputError(
                f"{self.location}: {unclear}, and {self.keys or self.texts} may have been written "
                "in either order; rename the files so that both orders are one (emb_02, emb_10)"
            )
        self.names()

    def _require_texts(self) -> None:
        """Refuse a source without texts before anything is begun, so that --texts can be added."""
        reader = next((reader for reader in self.source.readers if reader.rows > 0), None)
        if reader is None:
            return
        try:
            stream = reader.stream(0, False)
            try:
                texts = stream.read(1).texts
            finally:
                stream.close()
        except BlissError:
            return  # a damaged file fails by itself, with its reason
        if texts is None:
            raise _no_texts(reader.name)

    def names(self) -> tuple[list[str] | None, Column | None]:
        """Read the keys and texts that were given; InvalidInputError where lengths differ."""
        rows = self.source.rows
        keys = None if self.keys is None else read_names(self.keys, "key", rows=rows)
        texts = None if self.texts is None else read_names_and_keys(self.texts, "text", rows=rows)
        return keys, texts

    @cached_property
    def source(self) -> EmbeddingSource:
        """The input, opened once a process."""
        return open_source(self.location, kind=self.of_kind, columns=self.columns)

    def described(self) -> StoreManifest:
        given = {"keys": self.keys, "texts": self.texts}
        return StoreManifest(
            kind=self.of_kind,
            model=self.model,
            dim=self.source.dim,
            dtype=self.dtype,
            prompt=self.prompt,
            attributes={
                "imported_from": Path(self.location).name,
                "rows_per_shard": self.rows_per_shard,
                "drop_bad_rows": self.drop_bad_rows,
                **self.columns.named(),
                **{
                    name: None if path is None else [Path(path).name, file_sha256(local_file(path))]
                    for name, path in given.items()
                },
            },
        )

    def facts(self) -> dict[str, Any]:
        return {"imported_from": self.location}

    def parts(self) -> Iterator[Part]:
        images = self.of_kind == "image"
        pieces = self.source.pieces(self.rows_per_shard, PART_BYTES, carried=images)
        for index, piece in enumerate(piece for piece in pieces if piece.rows):
            yield piece.planned(index)

    def grown(self, kept: Plan, now: Plan) -> Growth:
        return grown_source(kept, now)

    def batch_rows(self, piece: Piece) -> int:
        """Rows to read at once."""
        carried = self.of_kind == "image"
        return min(BATCH_ROWS, max(1, BATCH_BYTES // piece.reader.row_bytes(carried)))

    def is_same(self, part: Part, record: Record) -> str:
        piece = self.source.piece_of(part)
        found = piece.sha256(self.batch_rows(piece), carried=self.of_kind == "image")
        what = f"{part.name} was imported with SHA-256 {record.input}, now it has {found}"
        return "" if found == record.input else f"{what}: it was replaced since"

    def memory(self, workers: int, budget: int | None) -> MemoryPlan:
        dim, files = self.source.dim, self.source.readers
        images = self.of_kind == "image"
        carried = images and any(reader.carries for reader in files)
        wide = max(1, *(reader.row_bytes(images) for reader in files))
        rows = max(
            min(
                2 * self.rows_per_shard, reader.rows, 2 * PART_BYTES // reader.row_bytes(images) + 1
            )
            for reader in files
        )
        batch = min(BATCH_ROWS, max(1, BATCH_BYTES // wide))
        return fit_memory(
            {
                "source": max(reader.held(images) for reader in files),
                "names": sum(names_bytes(p, self.source.rows) for p in (self.keys, self.texts)),
                "shard": rows * (2 * dim * (2 if self.dtype == "float16" else 4) + 300),
                "carried columns": 3 * PART_BYTES if carried else 0,
                "checks": CHECK_BYTES,
            },
            "batches of {} rows",
            3 * wide + 4 * dim + 600,
            workers=workers,
            budget=budget,
            least=batch,
            most=batch,
            what=f"shards of {rows} rows of {dim} values",
            remedy="",
        )

    def open(
        self, directory: Directory, device: str, progress: Progress, notify: Notify
    ) -> ImportWorker:
        return ImportWorker(self, directory, progress)


class ImportWorker:
    """Imports parts; see :class:`bliss_index.jobs.Worker`."""

    def __init__(self, work: ImportWork, directory: Directory, progress: Progress) -> None:
        self._work = work
        self._directory = directory
        self._progress = progress
        self._keys, self._texts = work.names()
        self._text_keys = frozenset((self._texts and self._texts.keys) or ())
        self._carried = work.source.carried if work.of_kind == "image" else None
        schema = _carried_schema(self._carried) if self._carried else None
        self._columns = ShardColumns(work.of_kind, work.source.dim, work.dtype, schema)

    def run(self, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Import parts, one after the other; bad input ends the job."""
        for part in parts:
            try:
                record = self._import(part)
            except (CorruptStoreError, OSError, MemoryError) as error:
                yield Outcome.failed(part.index, error)
            else:
                yield Outcome(part.index, record)

    def _import(self, part: Part) -> Record:
        work, began = self._work, time.perf_counter()
        piece = work.source.piece_of(part)
        stamp, digest = piece.reader.stamp(), ContentHash()
        first_row = row = piece.first_row or 0
        tables, carried = [], 0
        images = work.of_kind == "image"
        for batch in piece.read(work.batch_rows(piece), digest, carried=images):
            carried += 0 if batch.metadata is None else batch.metadata.nbytes
            if carried > PART_BYTES * 3 // 2 and batch.metadata is not None:
                raise too_large(part.name, batch.metadata, carried, PART_BYTES)
            tables.append(self._table(batch, part.name, row))
            row += batch.embeddings.shape[0]
            self._progress(batch.embeddings.shape[0])
        if piece.reader.stamp() != stamp:
            raise CorruptStoreError(f"{part.name} was replaced while it was imported")
        table = pa.concat_tables(tables)
        dropped = row - first_row - table.num_rows
        return self._columns.commit(
            self._directory,
            part,
            self._columns.settled(table, KeyRegistry(), first_row),
            given=digest.hexdigest(),
            began=began,
            facts={"dropped": dropped} if dropped else {},
        )

    def _table(self, batch: EmbeddingBatch, name: str, first_row: int) -> pa.Table:
        unit, status, error = batch.checked(self._work.dtype)
        rows = range(first_row, first_row + len(status))
        if self._work.of_kind == "text":
            kept = self._kept(status, rows)
            keys = self._keys or list(map(str, rows))
            at = first_row if self._keys else 0
            texts = self._texts_of(batch, name, rows)
            return self._columns.table(
                [keys[at + row] for row in kept], unit[kept], texts=[texts[row] for row in kept]
            )
        given = (
            self._keys[rows.start : rows.stop] if self._keys else batch.keys or [None] * len(rows)
        )
        keys = [str(row) if key is None else key for row, key in zip(rows, given, strict=True)]
        metadata = None
        if self._carried:
            table = pa.table({}) if batch.metadata is None else batch.metadata
            columns = as_carried(table, len(rows), self._carried, name).columns
            metadata = pa.table(columns, schema=_carried_schema(self._carried))
        return self._columns.table(
            keys, unit, status=status.tolist(), error=error, metadata=metadata
        )

    def _kept(self, status: npt.NDArray[np.object_], rows: range) -> list[int]:
        """Rows of a text store that are good; the others are left out on request only."""
        good = status == OK
        if not good.all() and not self._work.drop_bad_rows:
            bad = [f"{rows[row]} ({status[row]})" for row in np.flatnonzero(~good)]
            raise InvalidInputError(
                f"embeddings of texts have no direction in row(s) {listed(bad)}; fix them, or "
                "leave them out: --drop-bad-rows and another --out"
            )
        kept: list[int] = np.flatnonzero(good).tolist()
        return kept

    def _require_same_keys(
        self, texts: Column, given: Sequence[str | None] | None, rows: range
    ) -> None:
        """Refuse texts in another order than the embeddings, where both have keys that say so.

        Keys of another kind, such as numbers beside names, say nothing.
        """
        if texts.keys is None or given is None:
            return
        for row, key in zip(rows, given, strict=True):
            if key != texts.keys[row] and key in self._text_keys:
                raise InvalidInputError(
                    f"{texts.path}: row {row} has the key {texts.keys[row]!r}, the embedding of "
                    f"that row the key {key!r}; write the texts in the order of the embeddings"
                )

    def _texts_of(self, batch: EmbeddingBatch, name: str, rows: range) -> list[str]:
        if self._texts is not None:
            given = self._keys[rows.start : rows.stop] if self._keys else batch.keys
            self._require_same_keys(self._texts, given, rows)
            return self._texts.values[rows.start : rows.stop]
        if batch.texts is None:
            raise _no_texts(name)
        missing = [row for row, text in zip(rows, batch.texts, strict=True) if text is None]
        if missing:
            raise InvalidInputError(
                f"{name}: {len(missing)} texts are null, the first in row {missing[0]}"
            )
        return [text for text in batch.texts if text is not None]


def _no_texts(name: str) -> InvalidInputError:
    return InvalidInputError(
        f"{name} holds no texts; a text store needs them: --texts FILE, one a row"
    )


def _carried_schema(carried: pa.Schema) -> pa.Schema:
    names = carried_names(carried.names)
    return pa.schema(column.with_name(n) for column, n in zip(carried, names, strict=True))
