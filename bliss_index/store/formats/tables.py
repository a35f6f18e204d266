"""Embeddings in tables: their rows in batches, with keys, texts and other columns beside them."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa

from bliss_index.errors import InvalidInputError
from bliss_index.store.carried import too_large
from bliss_index.store.columns import texts_of
from bliss_index.store.formats.table_columns import (
    TableColumns,
    different_names,
    matrix_of,
    plain_list,
)
from bliss_index.store.source_reader import (
    BATCH_BYTES,
    BATCH_ROWS,
    EmbeddingBatch,
    RowStream,
    SourceReader,
)

MISSING_KEY = "missing_key"
# Values of other columns may be far larger than a dictionary of them says.
_CARRIED_ROWS = 256
_MOST_BYTES = 8 * BATCH_BYTES


@dataclass(frozen=True)
class RowGroups:
    """Sizes of the pieces in which a table is stored: row groups, record batches.

    Attributes
    ----------
    rows, own, others
        Rows of each, and bytes without compression: of embeddings, keys and texts; of the columns
        that are carried.
    """

    rows: tuple[int, ...]
    own: tuple[int, ...]
    others: tuple[int, ...]

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
class TableReader(SourceReader):
    """The rows of one table.

    A null embedding, one of another length than most of the first have, and a null key are rows
    with an error, not the end of the file. A file without any embedding has dimension 0 by itself,
    and that of the others in a folder.
    """

    columns: TableColumns
    groups: RowGroups
    layout: ClassVar[str]

    @abstractmethod
    def reading(
        self, group: int, names: list[str] | None, rows: int
    ) -> AbstractContextManager[Iterator[pa.RecordBatch]]:
        """Open it, and read columns, by default all, from a group on, at most `rows` at once."""

    @property
    def has_keys(self) -> bool:
        return self.columns.key is not None

    @property
    def carried(self) -> pa.Schema:
        return self.columns.carried

    @property
    def taken(self) -> frozenset[str]:
        return frozenset((*self.columns.names, *self.carried.names))

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
        own = self.columns
        errors: dict[int, tuple[str, str]] = {}
        matrix = np.empty((table.num_rows, 0))
        if own.embedding is not None:
            column = table.column(own.embedding).combine_chunks()
            matrix = matrix_of(plain_list(column), self.dim, own.values, errors)
        keys, texts = (
            None if name is None else texts_of(table.column(name), self._named(name), first_row)
            for name in (own.key, own.text)
        )
        for row, value in enumerate(keys or ()):
            if value is None:
                errors[row] = (MISSING_KEY, f"column {own.key!r} is null")
        others = [i for i, name in enumerate(table.column_names) if name not in own.names]
        carried = table.select(others)
        carried = carried.rename_columns(different_names(carried.column_names))
        return EmbeddingBatch(matrix, keys, texts, errors, carried)

    def _named(self, column: str) -> str:
        return f"{self.name}: column {column!r}"


class _BatchStream:
    """Rows of a table, piece by piece, from the beginning of a group on."""

    def __init__(self, reader: TableReader, origin: int, carried: bool) -> None:
        self._reader, self.at = reader, origin
        names: list[str] | None = reader.columns.names
        rows = min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, reader.groups.row_bytes(carried))))
        if carried and reader.carries:
            names = None  # all there are
            rows = min(rows, _CARRIED_ROWS)
        self._stack = contextlib.ExitStack()
        self._nothing = names == []
        self._batches: Iterator[pa.RecordBatch] = iter(())
        if not self._nothing:
            reading = reader.reading(reader.groups.at(origin), names, rows)
            self._batches = self._stack.enter_context(reading)
        self._rest: pa.RecordBatch | None = None
        # More would be values that are kept once in the file and meant many times.
        self._row_bytes = reader.groups.row_bytes(carried)
        self._most = max(_MOST_BYTES, 2 * max(reader.groups.bytes(carried), default=0))

    def read(self, count: int) -> EmbeddingBatch:
        waiting, rows, size = [], 0, 0
        with readable(self._reader.name, self._reader.layout):
            while rows < count and (batch := self._rest or next(self._batches, None)) is not None:
                waiting.append(batch.slice(0, count - rows))
                size += waiting[-1].nbytes
                if size > (most := self._most + 2 * count * self._row_bytes):
                    raise too_large(self._reader.name, batch, size, most)
                self._rest = batch.slice(count - rows) if batch.num_rows > count - rows else None
                rows += waiting[-1].num_rows
            first, self.at = self.at, self.at + count
            if self._nothing:
                return EmbeddingBatch(np.empty((count, 0)))
            if not waiting:
                raise InvalidInputError(f"{self._reader.name} ends before row {self.at - 1}")
            return self._reader.batch(pa.Table.from_batches(waiting), first)

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def readable(name: str, layout: str) -> Iterator[None]:
    """Turn whatever a library says of a damaged file into our error."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{name} cannot be read as {layout}: {error}") from error
