"""Makes stores of embeddings that people already have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import InvalidInputError, listed
from bliss_index.storage.hashing import file_sha256
from bliss_index.store.columns import read_names
from bliss_index.store.complete import find_complete
from bliss_index.store.identity import ModelIdentity
from bliss_index.store.manifest import StoreManifest
from bliss_index.store.normalise import reasons_of, unit_rows
from bliss_index.store.reader import EmbeddingStore
from bliss_index.store.schema import OK, carried_names
from bliss_index.store.source_part import ColumnNames, EmbeddingBatch
from bliss_index.store.sources import EmbeddingSource, open_source
from bliss_index.store.writer import ROWS_PER_SHARD, StoreWriter


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
        Rows that this run left out of a text store, on request.
    """

    path: str
    kind: str
    dim: int
    rows: int
    bad_rows: int
    status: dict[str, int]
    dropped: int = 0

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
    progress: Callable[[int], None] | None = None,
) -> ImportSummary:
    """Normalise embeddings, check every row, and write them as a store.

    A row whose norm is 1 within rounding stays as it is. Rows of images without a direction (zero,
    NaN, infinite), without a key, or with a repeated one keep their place with a status and a
    reason; rows of texts like that are an error, unless they are to be dropped.

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
        Rows of every shard but the last.
    progress
        Called with the number of rows just read.

    Raises
    ------
    InvalidInputError
        The input cannot be read, or lengths differ; both are named.
    """
    if kind == "image" and texts is not None:
        raise InvalidInputError("an image store takes no texts; leave --texts out")
    if drop_bad_rows and kind == "image":
        raise InvalidInputError("bad rows of images keep their place; drop them when they are used")
    if kind == "image" and columns is not None and columns.text is not None:
        raise InvalidInputError(
            f"an image store takes no texts; column {columns.text!r} is carried as it is, leave "
            "--text-column out"
        )
    source = open_source(location, kind=kind, columns=columns)
    if not source.rows:
        raise InvalidInputError(f"{location} holds 0 rows of embeddings; nothing to import")
    given_keys = None if keys is None else read_names(keys, "key", rows=source.rows)
    given_texts = None if texts is None else read_names(texts, "text", rows=source.rows)
    schema = _metadata_schema(source) if kind == "image" else None
    wanted: dict[str, Any] = {
        "kind": kind,
        "model": model,
        "dim": source.dim,
        "dtype": dtype,
        "prompt": prompt,
        "attributes": {
            "imported_from": [[part.name, part.rows, part.sha256()] for part in source.parts],
            "keys": None if keys is None else [Path(keys).name, file_sha256(Path(keys))],
            "texts": None if texts is None else [Path(texts).name, file_sha256(Path(texts))],
        },
    }
    if (done := find_complete(output, **wanted)) is not None:
        return _summary(output, done, 0)
    dropped = first_row = 0
    with StoreWriter(output, metadata=schema, rows_per_shard=rows_per_shard, **wanted) as writer:
        committed = writer.rows  # of an import that was interrupted; its rows are read over again
        for name, batch in _batches(source):
            rows = _prepare(batch, name, first_row, dtype, kind, given_keys, given_texts)
            first_row += len(rows.keys)
            if kind == "text":
                kept = _only_good(rows, first_row - len(rows.keys), drop_bad_rows)
                dropped += len(rows.keys) - len(kept.keys)
                rows = kept
            skipped = min(committed, len(rows.keys))
            committed -= skipped
            _append(writer, rows, skipped)
            if progress is not None:
                progress(batch.embeddings.shape[0])
        manifest = writer.close()
    return _summary(output, manifest, dropped)


def _summary(output: str | Path, manifest: StoreManifest, dropped: int) -> ImportSummary:
    status: Counter[str] = Counter()
    for shard in EmbeddingStore(Path(output), manifest).iter_shards():
        status.update(shard.status)
    kind, dim = manifest.kind, manifest.dim
    return ImportSummary(
        str(output), kind, dim, manifest.rows, manifest.bad_rows, dict(status), dropped
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    keys: list[str]
    embeddings: npt.NDArray[Any]
    status: npt.NDArray[np.object_]
    error: list[str | None]
    texts: list[str] | None
    metadata: pa.Table | None


def _batches(source: EmbeddingSource) -> Iterator[tuple[str, EmbeddingBatch]]:
    for part in source.parts:
        for batch in part.batches():
            yield part.name, batch


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


def _append(writer: StoreWriter, rows: _Rows, skipped: int) -> None:
    if skipped == len(rows.keys):
        return
    rest = slice(skipped, None)
    if rows.texts is not None:
        writer.append(rows.keys[rest], rows.embeddings[rest], texts=rows.texts[rest])
        return
    metadata = None if rows.metadata is None else _carried(rows.metadata.slice(skipped))
    writer.append(
        rows.keys[rest],
        rows.embeddings[rest],
        status=rows.status[rest].tolist(),
        error=rows.error[rest],
        metadata=metadata,
    )


def _metadata_schema(source: EmbeddingSource) -> pa.Schema | None:
    """Columns to carry: those of the first batch that are not the store's own."""
    for _, batch in _batches(source):
        return None if batch.metadata is None else _carried(batch.metadata).schema
    return None


def _carried(table: pa.Table) -> pa.Table:
    return table.rename_columns(carried_names(table.column_names))
