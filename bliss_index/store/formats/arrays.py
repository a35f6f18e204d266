"""Embeddings as one block of numbers in a file: rows at fixed places, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import InvalidInputError, listed
from bliss_index.store.formats.table_columns import usual_names
from bliss_index.store.formats.tables import TableReader
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import EmbeddingBatch, RowStream, SourceReader

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""The upper half of a float32, for which numpy has no type."""


@dataclass(frozen=True)
class Block:
    """Where and how the numbers of an (n, d) array lie in a file.

    Attributes
    ----------
    rows, dim
        Its shape.
    stored
        Type of a value: floating point, integer, or :data:`BFLOAT16`.
    offset
        Bytes before the first one.
    before
        Bytes before the values of every row.
    by_column
        Whether it is stored column by column, numpy's Fortran order.
    """

    rows: int
    dim: int
    stored: np.dtype[Any]
    offset: int
    before: int = 0
    by_column: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.before + self.dim * self.stored.itemsize

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes

    def matrix(self, data: bytes, count: int) -> npt.NDArray[Any]:
        """Rows of their bytes, in this machine's byte order; fewer where some are missing."""
        count = min(count, len(data) // self.row_bytes)
        kind = self.stored
        if self.before:
            words = np.frombuffer(data, np.uint8, count * self.row_bytes).reshape(count, -1)
            values = np.ascontiguousarray(words[:, self.before :]).view(kind)
        else:
            values = np.frombuffer(data, kind, count * self.dim)
        if kind == BFLOAT16:
            wide = values["bfloat16"].astype(np.uint32) << 16
            values = wide.view(np.float32)
        elif kind.kind in "iu":
            values = values.astype(np.float32 if kind.itemsize <= 2 else np.float64)
        else:
            values = values.astype(kind.newbyteorder("="), copy=False)
        return values.reshape(self.dim, count).T if self.by_column else values.reshape(count, -1)


@dataclass(frozen=True)
class ArrayReader(SourceReader):
    """An array in a file, perhaps with a table that says what its rows are."""

    block: Block
    metadata: TableReader | None = None

    @classmethod
    def of(cls, file: SourceFile, block: Block, **more: Any) -> ArrayReader:
        """Make a reader of a block."""
        dtype = "float16" if block.stored == np.float16 else "float32"
        return cls(file, block.rows, block.dim, dtype, block, **more)

    @property
    def has_keys(self) -> bool:
        return self.metadata is not None and self.metadata.has_keys

    @property
    def carried(self) -> pa.Schema | None:
        return None if self.metadata is None else self.metadata.carried

    @property
    def taken(self) -> frozenset[str]:
        return frozenset(() if self.metadata is None else self.metadata.taken)

    def row_bytes(self, carried: bool = True) -> int:
        others = 0 if self.metadata is None else self.metadata.row_bytes(carried)
        return self.block.row_bytes + others

    def held(self, carried: bool = True) -> int:
        return 0 if self.metadata is None else self.metadata.held(carried)

    def cuts(self, rows: int, size: int, *, carried: bool = True) -> list[int]:
        if self.metadata is None:
            return super().cuts(rows, size, carried=carried)
        return self.metadata.groups.cuts(rows, size, carried, self.block.row_bytes)

    def origin(self, row: int) -> int:
        return row if self.metadata is None else self.metadata.origin(row)

    def stream(self, origin: int, carried: bool) -> RowStream:
        tables = None if self.metadata is None else self.metadata.stream(origin, carried)
        return ArrayStream(self, origin, self.file.open(), tables)

    def stamp(self) -> list[Any]:
        other = [] if self.metadata is None else self.metadata.file.stamp()
        return [*self.file.stamp(), *other]

    def check(self, data: bytes, first_row: int) -> None:
        """Look at rows as they are read; InvalidInputError where they are none."""

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        """Turn whatever a damaged file raises into our error."""
        try:
            yield
        except InvalidInputError:
            raise
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{self.name} cannot be read: {error}") from error


class ArrayStream:
    """Rows of an array; of a compressed one they are asked for in the order of the file."""

    def __init__(self, reader: ArrayReader, at: int, file: Any, beside: Any) -> None:
        self._reader, self.at, self.file, self._beside = reader, at, file, beside

    def read(self, count: int) -> EmbeddingBatch:
        reader, block = self._reader, self._reader.block
        size = block.stored.itemsize
        with reader.refused():
            if block.by_column:
                places = ((column * block.rows + self.at) * size for column in range(block.dim))
                data = b"".join(self._bytes(place, count * size) for place in places)
            else:
                data = self._bytes(self.at * block.row_bytes, count * block.row_bytes)
            reader.check(data, self.at)
        self.at += count
        batch = _NOTHING_BESIDE if reader.metadata is None else self._beside.read(count)
        return replace(batch, embeddings=block.matrix(data, count))

    def _bytes(self, place: int, count: int) -> bytes:
        self.file.seek(self._reader.block.offset + place)
        data: bytes = self.file.read(count)
        return data

    def close(self) -> None:
        self.file.close()
        if self._beside is not None:
            self._beside.close()


def choose(
    file: str,
    wanted: str | None,
    arrays: Mapping[str, str],
    fitting: Mapping[str, Any],
    texts: bool = False,
) -> str:
    """Choose one of the arrays of a file.

    Parameters
    ----------
    file
        Its name, for messages.
    wanted
        Which one; None for one with a usual name, else the only one that can be embeddings.
    arrays, fitting
        All by name, in words; those that are two-dimensional and of numbers.
    texts
        Whether embeddings of texts are wanted, where a file has both.

    Raises
    ------
    InvalidInputError
        There is none of the name, or several may be meant; all are named.
    """
    if wanted is None:
        usual = [name for name in ("embeddings", *usual_names(texts)) if name in arrays]
        wanted = next(iter(usual or (fitting if len(fitting) == 1 else ())), None)
    if wanted is not None and wanted in arrays:
        return wanted
    has = listed([f"{name} {what}" for name, what in arrays.items()]) or "none"
    if wanted is None and len(fitting) > 1:
        raise InvalidInputError(
            f"{file} has {len(fitting)} arrays that may be the embeddings: {has}; name one with "
            "--embedding-column"
        )
    what = "'embeddings'" if wanted is None else repr(wanted)
    raise InvalidInputError(f"{file} has no array {what}; it has {has}")


def require_block(name: str, shape: tuple[int, ...], kind: str) -> tuple[int, int]:
    """Rows and dimension of an array; InvalidInputError where it is no matrix of floats."""
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 1:
        raise InvalidInputError(f"{name} holds an array of shape {shape}, expected (rows, dim)")
    if kind not in FLOATS:
        raise InvalidInputError(
            f"{name} holds values of type {kind}, expected {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
        )
    return int(shape[0]), int(shape[1])


FLOATS = ("float16", "float32", "float64", "bfloat16")
_NOTHING_BESIDE = EmbeddingBatch(np.empty((0, 0)))
