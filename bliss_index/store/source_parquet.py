"""Embeddings in Parquet files: a list column, with keys, texts and other columns beside it."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_index.errors import InvalidInputError, listed
from bliss_index.store.columns import texts_of
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_part import (
    BATCH_BYTES,
    BATCH_ROWS,
    ColumnNames,
    EmbeddingBatch,
    RowStream,
    SourcePart,
)

MISSING_EMBEDDING = "missing_embedding"
WRONG_DIMENSION = "wrong_dimension"
MISSING_KEY = "missing_key"
EMBEDDING_COLUMNS = ("embedding", "embeddings", "image_embedding", "text_embedding", "vector")
KEY_COLUMNS = ("key", "id", "image_path", "path", "url")
TEXT_COLUMNS = ("text", "caption", "word", "name", "label")
_BUFFER_BYTES = 1 << 20
# Values of other columns may be far larger than a dictionary of them says.
_CARRIED_ROWS = 256


@dataclass(frozen=True)
class RowGroups:
    """Sizes of a file's row groups.

    Attributes
    ----------
    rows, own, others
        Rows of each, and bytes without compression: of embeddings, keys and texts; of the columns
        that are carried.
    """

    rows: tuple[int, ...]
    own: tuple[int, ...]
    others: tuple[int, ...]

    @classmethod
    def of(cls, table: pq.ParquetFile, carried: Sequence[str]) -> RowGroups:
        """Read them from the footer."""
        sizes: list[tuple[int, int, int]] = []
        for number in range(table.metadata.num_row_groups):
            group = table.metadata.row_group(number)
            parts = [0, 0]
            for chunk in map(group.column, range(group.num_columns)):
                root = chunk.path_in_schema.split(".")[0]
                parts[root in carried] += chunk.total_uncompressed_size
            sizes.append((group.num_rows, *parts))
        return cls(*zip(*sizes, strict=True)) if sizes else cls((), (), ())

    @cached_property
    def starts(self) -> list[int]:
        """Their first rows, and the end."""
        return list(itertools.accumulate(self.rows, initial=0))

    def bytes(self, carried: bool) -> list[int]:
        """What has to be read of each."""
        return [o + (c if carried else 0) for o, c in zip(self.own, self.others, strict=True)]

    def row_bytes(self, carried: bool) -> int:
        """Bytes of a row in the group where they are most, on average."""
        pairs = zip(self.bytes(carried), self.rows, strict=True)
        return max((-(-size // rows) for size, rows in pairs if rows), default=0)

    def at(self, row: int) -> int:
        """Number of the group with a row."""
        return max(0, bisect.bisect_right(self.starts, row) - 1)

    def cuts(self, rows: int, size: int, carried: bool, least: int) -> list[int]:
        """Cut at row groups; one that is too large, by rows or bytes, within it.

        A row has at least `least` bytes, whatever it takes in the file.
        """
        cuts, at, room_rows, room_bytes = [0], 0, rows, size
        for count, own in zip(self.rows, self.bytes(carried), strict=True):
            taken = max(own, count * least)
            if at > cuts[-1] and (count > room_rows or taken > room_bytes):
                cuts.append(at)
                room_rows, room_bytes = rows, size
            pieces = max(1, -(-count // (2 * rows)), -(-taken // size))
            if pieces > 1:
                step = max(1, -(-count // pieces))
                cuts.extend(range(at + step, at + count, step))
                room_rows = room_bytes = 0
            at += count
            room_rows -= count
            room_bytes -= taken
        return [*cuts, at] if at > cuts[-1] or len(cuts) == 1 else cuts


@dataclass(frozen=True)
class ParquetPart(SourcePart):
    """The rows of one Parquet file.

    A null embedding, one of another length than most of the first have, and a null key are rows
    with an error, not the end of the file. A file without any embedding has dimension 0 by itself,
    and that of the others in a folder.
    """

    columns: tuple[str | None, str | None, str | None]
    others: pa.Schema
    groups: RowGroups

    @classmethod
    def open(
        cls, file: SourceFile, wanted: ColumnNames, *, texts: bool = True, embedded: bool = True
    ) -> ParquetPart:
        """Read the schema and find the columns.

        Without `texts`, a text column is carried; without `embedded` it describes rows whose
        embeddings are elsewhere.

        Raises
        ------
        InvalidInputError
            It is not a Parquet file, or the columns are missing or unclear.
        """
        with _opened(file) as table:
            schema = table.schema_arrow
            embedding = _embedding_column(file, schema, wanted.embedding) if embedded else None
            key = _column(file, schema.names, wanted.key, KEY_COLUMNS)
            text = _column(file, schema.names, wanted.text, TEXT_COLUMNS) if texts else None
            dim, dtype = 0, "float32"
            if embedding is not None:
                kind = _storage(schema.field(schema.names.index(embedding)).type)
                dtype = "float16" if kind.value_type == pa.float16() else dtype
                dim = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
                dim = dim or _usual_length(table, embedding)
            names = (embedding, key, text)
            for name in names:
                if schema.names.count(name) > 1:
                    raise InvalidInputError(f"{file.name} has two columns {name!r}; rename one")
            others = [field for field in schema if field.name not in names]
            groups = RowGroups.of(table, [field.name for field in others])
            carried = pa.schema(
                field.with_name(name)
                for field, name in zip(others, _different([f.name for f in others]), strict=True)
            )
            return cls(file, table.metadata.num_rows, dim, dtype, names, carried, groups)

    @property
    def has_keys(self) -> bool:
        return self.columns[1] is not None

    @property
    def carried(self) -> pa.Schema:
        return self.others

    def row_bytes(self, carried: bool = True) -> int:
        return max(self.dim * 4, self.groups.row_bytes(carried))

    def held(self, carried: bool = True) -> int:
        return max(self.groups.bytes(carried), default=0)

    def cuts(self, rows: int, size: int, *, carried: bool = True) -> list[int]:
        return self.groups.cuts(rows, size, carried, 4 * self.dim)

    def origin(self, row: int) -> int:
        return self.groups.starts[self.groups.at(row)]

    def stream(self, origin: int, carried: bool) -> RowStream:
        return _BatchStream(self, origin, carried)

    def batch(self, table: pa.Table, first_row: int) -> EmbeddingBatch:
        """Rows of a table with the columns that were asked for, from `first_row` of the file on."""
        embedding, key, text = self.columns
        errors: dict[int, tuple[str, str]] = {}
        matrix = np.empty((table.num_rows, 0))
        if embedding is not None:
            column = table.column(embedding).combine_chunks()
            column = column.storage if isinstance(column, pa.ExtensionArray) else column
            matrix = _matrix(column, self.dim, errors)
        keys, texts = (
            None if name is None else texts_of(table.column(name), self._named(name), first_row)
            for name in (key, text)
        )
        for row, value in enumerate(keys or ()):
            if value is None:
                errors[row] = (MISSING_KEY, f"column {key!r} is null")
        others = [i for i, name in enumerate(table.column_names) if name not in self.columns]
        carried = table.select(others)
        carried = carried.rename_columns(_different(carried.column_names))
        return EmbeddingBatch(matrix, keys, texts, errors, carried)

    def _named(self, column: str) -> str:
        return f"{self.name}: column {column!r}"


class _BatchStream:
    """Rows of a Parquet file, page by page, from the beginning of a row group on."""

    def __init__(self, part: ParquetPart, origin: int, carried: bool) -> None:
        self._part, self.at = part, origin
        names: list[str] | None = [name for name in part.columns if name is not None]
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, part.groups.row_bytes(carried))))
        if carried and part.carries:
            names = None  # all there are
            rows = min(rows, _CARRIED_ROWS)
        self._stack = contextlib.ExitStack()
        table = self._stack.enter_context(_opened(part.file))
        groups = range(part.groups.at(origin), len(part.groups.rows))
        self._batches = (
            batch
            for group in (() if names == [] else groups)
            for batch in table.iter_batches(rows, [group], columns=names)
        )
        self._nothing = names == []
        self._rest: pa.RecordBatch | None = None

    def read(self, count: int) -> EmbeddingBatch:
        waiting, rows = [], 0
        with _readable(self._part.file):
            while rows < count and (batch := self._rest or next(self._batches, None)) is not None:
                waiting.append(batch.slice(0, count - rows))
                self._rest = batch.slice(count - rows) if batch.num_rows > count - rows else None
                rows += waiting[-1].num_rows
            first, self.at = self.at, self.at + count
            if self._nothing:
                return EmbeddingBatch(np.empty((count, 0)))
            if not waiting:
                raise InvalidInputError(f"{self._part.name} ends before row {self.at - 1}")
            return self._part.batch(pa.Table.from_batches(waiting), first)

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[pq.ParquetFile]:
    with _readable(file), pq.ParquetFile(file.open(), buffer_size=_BUFFER_BYTES) as table:
        yield table


@contextlib.contextmanager
def _readable(file: SourceFile) -> Iterator[None]:
    """Turn whatever pyarrow says of a damaged file into our error."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{file.name} cannot be read as Parquet: {error}") from error


def _storage(kind: pa.DataType) -> pa.DataType:
    """What a tensor is stored as; any other type as it is."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_vector(kind: pa.DataType) -> bool:
    kind = _storage(kind)
    is_list = (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _different(names: Sequence[str]) -> list[str]:
    """Names of columns that are carried: the second 'x' is called 'x_2'."""
    taken, different = set(names), list[str]()
    for name in names:
        other, number = name, 2
        while other in different or (other != name and other in taken):
            other, number = f"{name}_{number}", number + 1
        different.append(other)
    return different


def _named(names: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in names), None)


def _column(
    file: SourceFile, names: Sequence[str], wanted: str | None, known: Sequence[str]
) -> str | None:
    if wanted is not None and wanted not in names:
        raise InvalidInputError(f"{file.name} has no column {wanted!r}; it has {listed(names)}")
    return wanted or _named(names, known)


def _embedding_column(file: SourceFile, schema: pa.Schema, wanted: str | None) -> str:
    lists = [field.name for field in schema if _is_vector(field.type)]
    found = wanted or _named(lists, EMBEDDING_COLUMNS) or (lists[0] if len(lists) == 1 else None)
    if found in lists:
        return str(found)
    names = EMBEDDING_COLUMNS if found is None else (found,)
    hint = f"; of {listed(lists)} name one with --embedding-column" if lists else ""
    raise InvalidInputError(
        f"{file.name} has no column {' or '.join(map(repr, names))} with lists of floats; its "
        f"columns are {listed([f'{field.name} ({field.type})' for field in schema])}{hint}"
    )


def open_parquet(file: SourceFile, columns: ColumnNames, texts: bool) -> ParquetPart:
    """Open a table with embeddings; errors as of :meth:`ParquetPart.open`."""
    return ParquetPart.open(file, columns, texts=texts)


def _usual_length(table: pq.ParquetFile, name: str) -> int:
    """The length that most of the first embeddings have; 0 where there are none."""
    for batch in table.iter_batches(batch_size=1024, columns=[name]):
        lengths = Counter(pc.list_value_length(batch.column(0)).to_pylist())
        found = [(count, length) for length, count in lengths.items() if length]
        if found:
            return int(max(found)[1])
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
