"""Embeddings in Parquet files: a list column, with keys, texts and other columns beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_index.errors import InvalidInputError
from bliss_index.storage.hashing import Between
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_part import BATCH_ROWS, ColumnNames, EmbeddingBatch

MISSING_EMBEDDING = "missing_embedding"
WRONG_DIMENSION = "wrong_dimension"
MISSING_KEY = "missing_key"
EMBEDDING_COLUMNS = ("embedding", "embeddings", "image_embedding", "text_embedding", "vector")
KEY_COLUMNS = ("key", "id", "image_path", "path", "url")
TEXT_COLUMNS = ("text", "caption", "word", "name", "label")


@dataclass(frozen=True)
class ParquetPart:
    """The rows of one Parquet file.

    A null embedding, one of another length than the first, and a null key are rows with an error,
    not the end of the file.
    """

    file: SourceFile
    rows: int
    dim: int
    dtype: str
    columns: tuple[str, str | None, str | None]
    carried: tuple[str, ...]
    group_bytes: int = 0

    @classmethod
    def open(cls, file: SourceFile, wanted: ColumnNames, *, texts: bool = True) -> ParquetPart:
        """Read the schema and find the columns; without `texts`, a text column is carried.

        Raises
        ------
        InvalidInputError
            It is not a Parquet file, or the columns are missing or unclear.
        """
        with _opened(file) as table:
            schema = table.schema_arrow
            lists = [f.name for f in schema if _is_vector(f.type)]
            embedding = wanted.embedding or _named(lists, EMBEDDING_COLUMNS)
            if embedding is None and len(lists) == 1:
                embedding = lists[0]
            if embedding is None or embedding not in lists:
                wanted_names = EMBEDDING_COLUMNS if embedding is None else (embedding,)
                raise InvalidInputError(
                    f"{file.name} has no column {' or '.join(map(repr, wanted_names))} with lists "
                    "of floats; its columns are "
                    f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"
                )
            key = _column(file, schema.names, wanted.key, KEY_COLUMNS)
            text = _column(file, schema.names, wanted.text, TEXT_COLUMNS) if texts else None
            kind = schema.field(embedding).type
            half = kind.value_type == pa.float16()
            dim = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
            if dim == 0:
                dim = _first_length(table, embedding)
            if dim < 1:
                raise InvalidInputError(f"{file.name}: column {embedding!r} holds no embedding")
            carried = tuple(n for n in schema.names if n not in (embedding, key, text))
            names = (embedding, key, text)
            rows, largest = table.metadata.num_rows, _largest_group(table, set(schema.names))
        return cls(file, rows, dim, "float16" if half else "float32", names, carried, largest)

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def held(self) -> int:
        """Bytes of the largest row group."""
        return self.group_bytes

    def cuts(self, rows: int, size: int) -> list[int]:
        with _opened(self.file) as table:
            return _cuts(table, rows, size, set(self.carried))

    def batches(
        self,
        rows: int = BATCH_ROWS,
        *,
        start: int = 0,
        count: int | None = None,
        carried: bool = True,
    ) -> Iterator[EmbeddingBatch]:
        embedding, key, text = self.columns
        others = list(self.carried) if carried else []
        wanted = [*others, *(name for name in self.columns if name is not None)]
        with _opened(self.file) as table:
            for batch in _range(table, rows, wanted, start, count):
                errors: dict[int, tuple[str, str]] = {}
                matrix = _matrix(batch.column(embedding), self.dim, errors)
                keys = None if key is None else _strings(batch.column(key))
                errors.update(_missing(keys, key))
                texts = None if text is None else _strings(batch.column(text))
                metadata = pa.Table.from_batches([batch]).select(others)
                yield EmbeddingBatch(matrix, keys, texts, errors, metadata)

    def sha256(self, between: Between | None = None) -> str:
        return self.file.sha256(between)

    def stamp(self) -> list[Any]:
        return self.file.stamp()


@dataclass(frozen=True)
class MetadataTable:
    """clip-retrieval's Parquet file beside an array: keys and texts of its rows."""

    file: SourceFile
    rows: int
    key: str | None
    text: str | None
    carried: tuple[str, ...]
    group_bytes: int = 0

    @classmethod
    def open(cls, file: SourceFile, wanted: ColumnNames, *, texts: bool = True) -> MetadataTable:
        """Read the schema and find the columns; without `texts`, a text column is carried."""
        with _opened(file) as table:
            names = table.schema_arrow.names
            key = _column(file, names, wanted.key, KEY_COLUMNS)
            text = _column(file, names, wanted.text, TEXT_COLUMNS) if texts else None
            carried = tuple(n for n in names if n not in (key, text))
            largest = _largest_group(table, set(names))
            return cls(file, table.metadata.num_rows, key, text, carried, largest)

    @property
    def name(self) -> str:
        """Its name within the source."""
        return self.file.name

    @property
    def held(self) -> int:
        """Bytes of the largest row group."""
        return self.group_bytes

    def cuts(self, rows: int, size: int) -> list[int]:
        """Rows at which to cut; see :meth:`SourcePart.cuts`."""
        with _opened(self.file) as table:
            return _cuts(table, rows, size, set(self.carried))

    def batches(
        self, rows: int, *, start: int = 0, count: int | None = None, carried: bool = True
    ) -> Iterator[EmbeddingBatch]:
        """Read rows in order, without embeddings, in batches of exactly `rows` but the last."""
        self_carried = list(self.carried) if carried else []
        wanted = [*self_carried, *(name for name in (self.key, self.text) if name is not None)]
        if not wanted:
            return
        with _opened(self.file) as table:
            waiting: list[pa.RecordBatch] = []
            for batch in _range(table, rows, wanted, start, count):
                waiting.append(batch)
                while sum(b.num_rows for b in waiting) >= rows:
                    whole = pa.Table.from_batches(waiting)
                    yield self._batch(whole.slice(0, rows))
                    waiting = whole.slice(rows).to_batches()
            if sum(b.num_rows for b in waiting):
                yield self._batch(pa.Table.from_batches(waiting))

    def _batch(self, table: pa.Table) -> EmbeddingBatch:
        keys = None if self.key is None else _strings(table.column(self.key))
        texts = None if self.text is None else _strings(table.column(self.text))
        metadata = table.select([name for name in self.carried if name in table.column_names])
        return EmbeddingBatch(np.empty((0, 0)), keys, texts, _missing(keys, self.key), metadata)


def _range(
    table: pq.ParquetFile, rows: int, columns: list[str], start: int, count: int | None
) -> Iterator[pa.RecordBatch]:
    """Read some rows of some columns; row groups outside are not touched."""
    end = table.metadata.num_rows if count is None else start + count
    at = 0
    for number in range(table.metadata.num_row_groups):
        size = table.metadata.row_group(number).num_rows
        if at < end and at + size > start:
            for batch in table.iter_batches(rows, [number], columns=columns):
                first, last = max(start - at, 0), min(end - at, batch.num_rows)
                if first < last:
                    yield batch.slice(first, last - first)
                at += batch.num_rows
                if at >= end:
                    return
        else:
            at += size


def _largest_group(table: pq.ParquetFile, columns: set[str]) -> int:
    """Bytes of the largest row group's columns, decoded."""
    return max(
        (_group_bytes(table.metadata.row_group(number), columns)
         for number in range(table.metadata.num_row_groups)),
        default=0,
    )  # fmt: skip


def _group_bytes(group: Any, columns: set[str]) -> int:
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] in columns
    )


def _cuts(table: pq.ParquetFile, rows: int, size: int, carried: set[str]) -> list[int]:
    """Cut at row groups; one that is too large, by rows or carried bytes, within it."""
    cuts, at, room_rows, room_bytes = [0], 0, rows, size
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        taken = _group_bytes(group, carried)
        if at > cuts[-1] and (group.num_rows > room_rows or taken > room_bytes):
            cuts.append(at)
            room_rows, room_bytes = rows, size
        pieces = max(1, -(-group.num_rows // (2 * rows)), -(-taken // size))
        if pieces > 1:
            step = -(-group.num_rows // pieces)
            cuts.extend(range(at + step, at + group.num_rows, step))
            room_rows = room_bytes = 0
        at += group.num_rows
        room_rows -= group.num_rows
        room_bytes -= taken
    return [*cuts, at] if at > cuts[-1] else cuts


def _missing(keys: list[str | None] | None, column: str | None) -> dict[int, tuple[str, str]]:
    """Note the rows without a key."""
    return {
        row: (MISSING_KEY, f"column {column!r} is null")
        for row, key in enumerate(keys or ())
        if key is None
    }


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; whatever pyarrow says of a damaged one becomes our error."""
    try:
        with pq.ParquetFile(file.open()) as table:
            yield table
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{file.name} cannot be read as Parquet: {error}") from error


def _is_vector(kind: pa.DataType) -> bool:
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _named(names: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in names), None)


def _column(
    file: SourceFile, names: Sequence[str], wanted: str | None, known: Sequence[str]
) -> str | None:
    if wanted is not None and wanted not in names:
        raise InvalidInputError(f"{file.name} has no column {wanted!r}; it has {', '.join(names)}")
    return wanted or _named(names, known)


def _first_length(table: pq.ParquetFile, name: str) -> int:
    for batch in table.iter_batches(batch_size=1024, columns=[name]):
        lengths = pc.drop_null(pc.list_value_length(batch.column(0)))
        if len(lengths):
            return int(lengths[0].as_py())
    return 0


def _matrix(column: pa.Array, dim: int, errors: dict[int, tuple[str, str]]) -> npt.NDArray[Any]:
    """Turn a list column into (n, dim), noting rows that are null or of another length."""
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    fits = lengths == dim
    for row in np.flatnonzero(~fits):
        if lengths[row] < 0:
            errors[int(row)] = (MISSING_EMBEDDING, "the embedding is null")
        else:
            reason = f"the embedding has dimension {lengths[row]}, not {dim}"
            errors[int(row)] = (WRONG_DIMENSION, reason)
    kept = column if fits.all() else column.filter(pa.array(fits))
    # A null value within an embedding becomes NaN, and its row is not finite.
    values = kept.flatten().to_numpy(zero_copy_only=False)
    matrix: npt.NDArray[Any] = np.zeros((len(column), dim), dtype=values.dtype)
    matrix[fits] = values.reshape(-1, dim)
    return matrix


def _strings(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    return list(pc.cast(column, pa.string()).to_pylist())
