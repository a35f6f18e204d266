"""Makes stores of embeddings that people already have."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import CorruptStoreError, InvalidInputError, listed
from bliss_index.jobs import JobListener, JobOptions, Outcome, Part, Plan, Record, run
from bliss_index.jobs.memory import MemoryPlan, fit_memory
from bliss_index.jobs.part import Growth, grown
from bliss_index.jobs.work import Notify, Progress
from bliss_index.storage import Directory
from bliss_index.storage.cache import local_file
from bliss_index.storage.hashing import file_sha256
from bliss_index.store.columns import read_names
from bliss_index.store.identity import ModelIdentity
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.manifest import StoreManifest
from bliss_index.store.normalise import reasons_of, unit_rows
from bliss_index.store.schema import OK, carried_names
from bliss_index.store.shards import ShardColumns
from bliss_index.store.source_part import ColumnNames, EmbeddingBatch, SourcePart
from bliss_index.store.sources import EmbeddingSource, open_source
from bliss_index.store.store_work import StoreWork
from bliss_index.store.writer import ROWS_PER_SHARD

CARRIED_BYTES = 256 << 20
"""Bytes of carried columns that a part holds at most, about."""

_BATCH_ROWS = 8192


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
        Of Parquet files.
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
    summary = run(work, output, options, listener)
    repeated = 0
    if summary.complete and options.task is None:
        repeated = StoreManifest.read(output).repeated_keys["count"]
    return ImportSummary(
        str(output), kind, work.source.dim, summary.rows, summary.bad_rows, summary.status,
        summary.facts.get("dropped", 0), repeated, summary.complete, summary.failed,
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
        self.names()

    def names(self) -> tuple[list[str] | None, list[str] | None]:
        """Read the keys and texts that were given; InvalidInputError where lengths differ."""
        rows = self.source.rows
        keys = None if self.keys is None else read_names(self.keys, "key", rows=rows)
        texts = None if self.texts is None else read_names(self.texts, "text", rows=rows)
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
                **{
                    name: None if path is None else [Path(path).name, file_sha256(local_file(path))]
                    for name, path in given.items()
                },
            },
        )

    def facts(self) -> dict[str, Any]:
        return {"imported_from": self.location}

    def parts(self) -> Iterator[Part]:
        index = first_row = 0
        for source in self.source.parts:
            cuts = source.cuts(self.rows_per_shard, CARRIED_BYTES)
            stamp = json.dumps(source.stamp())
            for start, end in itertools.pairwise(cuts):
                detail = {"file": source.name, "start": start, "first_row": first_row + start}
                name = source.name if len(cuts) == 2 else f"{source.name}[{start}:{end}]"
                yield Part(index, name, end - start, stamp, json.dumps(detail))
                index += 1
            first_row += source.rows

    def grown(self, kept: Plan, now: Plan) -> Growth:
        growth, row = grown(kept, now), kept.rows
        parts = []
        for part in growth.parts:
            detail = json.loads(part.detail)
            parts.append(replace(part, detail=json.dumps({**detail, "first_row": row})))
            row += part.rows
        return replace(growth, parts=parts)

    def is_same(self, part: Part, record: Record) -> str:
        found = hashlib.sha256()
        for batch in _read(self.source, part):
            _add_to_hash(found, batch)
        if found.hexdigest() == record.input:
            return ""
        return (
            f"{part.name} was imported with SHA-256 {record.input}, now it has "
            f"{found.hexdigest()}: it was replaced since"
        )

    def memory(self, workers: int, budget: int | None) -> MemoryPlan:
        dim = self.source.dim
        rows = min(2 * self.rows_per_shard, max(part.rows for part in self.source.parts))
        return fit_memory(
            {
                "source": max(part.held for part in self.source.parts),
                "shard": rows * (4 * dim * (2 if self.dtype == "float16" else 4) + 600),
                "carried columns": 3 * CARRIED_BYTES if self.source.carries else 0,
            },
            "batches of {} rows",
            dim * 24 + 600,
            workers=workers,
            budget=budget,
            least=_BATCH_ROWS,
            most=_BATCH_ROWS,
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
        schema = _metadata_schema(work.source) if work.of_kind == "image" else None
        self._columns = ShardColumns(work.of_kind, work.source.dim, work.dtype, schema)

    def run(self, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Import parts, one after the other; bad input ends the job."""
        for part in parts:
            try:
                record = self._import(part)
            except (CorruptStoreError, OSError, MemoryError) as error:
                yield Outcome.failed(part.index, error)
                continue
            yield Outcome(part.index, record)

    def _import(self, part: Part) -> Record:
        work, began = self._work, time.perf_counter()
        source = _source_of(work.source, part)
        stamp = source.stamp()
        detail = json.loads(part.detail)
        row = first_row = int(detail["first_row"])
        given, dropped, tables = hashlib.sha256(), 0, []
        for batch in _read(work.source, part):
            _add_to_hash(given, batch)
            rows = _prepare(
                batch, source.name, row, work.dtype, work.of_kind, self._keys, self._texts
            )
            row += len(rows.keys)
            if work.of_kind == "text":
                kept = _only_good(rows, row - len(rows.keys), work.drop_bad_rows)
                dropped += len(rows.keys) - len(kept.keys)
                rows = kept
            tables.append(self._table(rows))
            self._progress(batch.embeddings.shape[0])
        if row - first_row != part.rows or source.stamp() != stamp:
            raise CorruptStoreError(
                f"{part.name} was replaced while it was imported: {row - first_row} rows of "
                f"{part.rows} were read"
            )
        table = pa.concat_tables(tables)
        registry = KeyRegistry(lambda: ())
        repeated = registry.register(table.column("key").to_pylist())
        table = self._columns.settled(table, repeated, first_row)
        return self._columns.commit(
            self._directory,
            part,
            table,
            given=given.hexdigest(),
            began=began,
            facts={"dropped": dropped} if dropped else {},
        )

    def _table(self, rows: _Rows) -> pa.Table:
        if rows.texts is not None:
            return self._columns.table(rows.keys, rows.embeddings, texts=rows.texts)
        return self._columns.table(
            rows.keys,
            rows.embeddings,
            status=rows.status.tolist(),
            error=rows.error,
            metadata=None if rows.metadata is None else _carried(rows.metadata),
        )


def _source_of(source: EmbeddingSource, part: Part) -> SourcePart:
    return source.named(str(json.loads(part.detail)["file"]))


def _read(source: EmbeddingSource, part: Part) -> Iterator[EmbeddingBatch]:
    """Read the rows of a part."""
    start = int(json.loads(part.detail)["start"])
    yield from _source_of(source, part).batches(_BATCH_ROWS, start=start, count=part.rows)


def _add_to_hash(digest: Any, batch: EmbeddingBatch) -> None:
    """Add what was read to a hash: values, keys, texts and carried columns."""
    digest.update(np.ascontiguousarray(batch.embeddings).tobytes())
    digest.update(json.dumps([batch.keys, batch.texts], ensure_ascii=True).encode())
    if batch.metadata is not None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.metadata.schema) as writer:
            writer.write_table(batch.metadata.combine_chunks())
        digest.update(sink.getvalue())


@dataclass(frozen=True, eq=False)
class _Rows:
    keys: list[str]
    embeddings: npt.NDArray[Any]
    status: npt.NDArray[np.object_]
    error: list[str | None]
    texts: list[str] | None
    metadata: pa.Table | None


def _prepare(
    batch: EmbeddingBatch,
    name: str,
    first_row: int,
    dtype: str,
    kind: str,
    given_keys: Sequence[str] | None,
    given_texts: Sequence[str] | None,
) -> _Rows:
    n = batch.embeddings.shape[0]
    part = slice(first_row, first_row + n)
    unit, status = unit_rows(batch.embeddings, dtype)
    error = reasons_of(status)
    for row, (code, reason) in batch.errors.items():
        status[row], error[row] = code, reason
    numbers = [str(row) for row in range(first_row, first_row + n)]
    if given_keys is not None:
        keys = list(given_keys[part])
    elif batch.keys is not None and kind == "image":
        keys = [
            number if key is None else key for key, number in zip(batch.keys, numbers, strict=True)
        ]
    else:
        keys = numbers
    texts = None
    if kind == "text":
        texts = _texts_of(batch, name, given_texts, part)
        return _Rows(keys, unit, status, error, texts, None)
    return _Rows(keys, unit, status, error, None, batch.metadata)


def _texts_of(
    batch: EmbeddingBatch, name: str, given: Sequence[str] | None, part: slice
) -> list[str]:
    if given is not None:
        return list(given[part])
    if batch.texts is None:
        raise InvalidInputError(
            f"{name} holds no texts; a text store needs them: --texts FILE, one a row"
        )
    missing = [row for row, text in enumerate(batch.texts) if text is None]
    if missing:
        raise InvalidInputError(
            f"{name}: {len(missing)} texts are null, the first in row {part.start + missing[0]}"
        )
    return [text for text in batch.texts if text is not None]


def _only_good(rows: _Rows, first_row: int, drop: bool) -> _Rows:
    """Leave bad rows out, or refuse them."""
    good = rows.status == OK
    if good.all():
        return rows
    if not drop:
        bad = [f"{first_row + row} ({rows.status[row]})" for row in np.flatnonzero(~good)]
        raise InvalidInputError(
            f"embeddings of texts have no direction in row(s) {listed(bad)}; fix them, or leave "
            "them out with --drop-bad-rows"
        )
    kept = np.flatnonzero(good).tolist()
    texts = rows.texts or []
    return _Rows(
        [rows.keys[row] for row in kept],
        rows.embeddings[good],
        rows.status[good],
        [None] * len(kept),
        [texts[row] for row in kept],
        None,
    )


def _metadata_schema(source: EmbeddingSource) -> pa.Schema | None:
    """Columns to carry: those of the first batch that are not the store's own."""
    for part in source.parts:
        for batch in part.batches(1, count=1):
            return None if batch.metadata is None else _carried(batch.metadata).schema
    return None


def _carried(table: pa.Table) -> pa.Table:
    return table.rename_columns(carried_names(table.column_names))
