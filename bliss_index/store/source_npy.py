"""Embeddings in numpy's files, read in batches from any file system; nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.storage.hashing import Between
from bliss_index.store.columns import NPY_ERRORS
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_part import BATCH_ROWS, EmbeddingBatch, as_float, even_cuts

if TYPE_CHECKING:
    from bliss_index.store.source_parquet import MetadataTable

_ARRAY_NAME = "embeddings"
# What damaged archives raise besides: unknown compression, a password, an absurd size.
_ARCHIVE_ERRORS = (
    *NPY_ERRORS,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class NpyPart:
    """An (n, d) array in a ``.npy`` file, perhaps with clip-retrieval's metadata of its rows."""

    file: SourceFile
    rows: int
    dim: int
    stored: np.dtype[Any]
    offset: int
    by_column: bool = False  # numpy's Fortran order
    metadata: MetadataTable | None = None

    @classmethod
    def open(cls, file: SourceFile) -> NpyPart:
        """Read the header.

        Raises
        ------
        InvalidInputError
            It does not hold a two-dimensional array of floats, or it is truncated.
        """
        with file.open() as stream:
            shape, stored, offset, by_column = _read_header(stream, file.name)
            size = stream.size()
        wanted = offset + shape[0] * shape[1] * stored.itemsize
        if size < wanted:
            raise InvalidInputError(
                f"{file.name} has {size} bytes, its header promises {wanted}: truncated"
            )
        return cls(file, shape[0], shape[1], stored, offset, by_column)

    def with_metadata(self, table: MetadataTable) -> NpyPart:
        """The same rows with keys, texts and other columns of a table."""
        return replace(self, metadata=table)

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def dtype(self) -> str:
        return "float16" if self.stored.itemsize == 2 else "float32"

    @property
    def held(self) -> int:
        return 0 if self.metadata is None else self.metadata.held

    def cuts(self, rows: int, size: int) -> list[int]:
        if self.metadata is not None:
            return self.metadata.cuts(rows, size)
        return even_cuts(self.rows, rows)

    def batches(
        self,
        rows: int = BATCH_ROWS,
        *,
        start: int = 0,
        count: int | None = None,
        carried: bool = True,
    ) -> Iterator[EmbeddingBatch]:
        end = self.rows if count is None else min(self.rows, start + count)
        tables: Iterator[EmbeddingBatch] = iter(())
        if self.metadata is not None:
            tables = self.metadata.batches(rows, start=start, count=end - start, carried=carried)
        with self.file.open() as stream:
            for first in range(start, end, rows):
                matrix = self._read(stream, first, min(rows, end - first))
                batch = next(tables, None)
                yield replace(batch or _NO_METADATA, embeddings=as_float(matrix, self.name))

    def _read(self, stream: Any, start: int, count: int) -> npt.NDArray[Any]:
        """Rows from `start` on, shape (count, dim)."""
        size = self.stored.itemsize
        if not self.by_column:
            stream.seek(self.offset + start * self.dim * size)
            data = stream.read(count * self.dim * size)
        else:
            columns = []
            for column in range(self.dim):
                stream.seek(self.offset + (column * self.rows + start) * size)
                columns.append(stream.read(count * size))
            data = b"".join(columns)
        if len(data) != count * self.dim * size:
            raise InvalidInputError(f"{self.name} ends within row {start + count - 1}")
        values = np.frombuffer(data, dtype=self.stored)
        return values.reshape(self.dim, count).T if self.by_column else values.reshape(count, -1)

    def sha256(self, between: Between | None = None) -> str:
        digest = self.file.sha256(between)
        if self.metadata is None:
            return digest
        return f"{digest}+{self.metadata.file.sha256(between)}"

    def stamp(self) -> list[Any]:
        other = [] if self.metadata is None else self.metadata.file.stamp()
        return [*self.file.stamp(), *other]


@dataclass(frozen=True)
class ArrayPart:
    """An (n, d) array in memory."""

    file: SourceFile
    array: npt.NDArray[Any]

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def rows(self) -> int:
        return int(self.array.shape[0])

    @property
    def dim(self) -> int:
        return int(self.array.shape[1])

    @property
    def dtype(self) -> str:
        return "float16" if self.array.dtype.itemsize == 2 else "float32"

    @property
    def held(self) -> int:
        return int(self.array.nbytes)

    def cuts(self, rows: int, size: int) -> list[int]:
        return even_cuts(self.rows, rows)

    def batches(
        self,
        rows: int = BATCH_ROWS,
        *,
        start: int = 0,
        count: int | None = None,
        carried: bool = True,
    ) -> Iterator[EmbeddingBatch]:
        end = self.rows if count is None else min(self.rows, start + count)
        for first in range(start, end, rows):
            yield EmbeddingBatch(self.array[first : min(end, first + rows)])

    def sha256(self, between: Between | None = None) -> str:
        return self.file.sha256(between)

    def stamp(self) -> list[Any]:
        return self.file.stamp()


def read_npz(file: SourceFile) -> ArrayPart:
    """Read the array ``embeddings`` of a ``.npz`` file into memory.

    Raises
    ------
    InvalidInputError
        It cannot be read as such a file, or has no array of that name.
    """
    try:
        with file.open() as stream, np.load(stream, allow_pickle=False) as arrays:
            if _ARRAY_NAME not in arrays.files:
                raise InvalidInputError(
                    f"{file.name} has no array {_ARRAY_NAME!r}; it has "
                    f"{', '.join(arrays.files) or 'none'}. Write numpy.savez(path, embeddings=...)"
                )
            array = arrays[_ARRAY_NAME]
    except InvalidInputError:
        raise
    except _ARCHIVE_ERRORS as error:
        raise InvalidInputError(f"{file.name} cannot be read as .npz: {error}") from error
    if array.ndim != 2:
        raise InvalidInputError(
            f"{file.name}: {_ARRAY_NAME} has shape {array.shape}, expected (rows, dim)"
        )
    return ArrayPart(file, as_float(array, file.name))


_NO_METADATA = EmbeddingBatch(np.empty((0, 0)))


def _read_header(stream: Any, name: str) -> tuple[tuple[int, int], np.dtype[Any], int, bool]:
    """Shape, type, offset of the values, and whether they are stored column by column."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"format version {version} is not known")
    except NPY_ERRORS as error:
        raise InvalidInputError(f"{name} cannot be read as .npy: {error}") from error
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 1:
        raise InvalidInputError(f"{name} holds an array of shape {shape}, expected (rows, dim)")
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise InvalidInputError(
            f"{name} holds values of type {dtype}, expected float16, float32 or float64"
        )
    return (int(shape[0]), int(shape[1])), dtype, int(stream.tell()), bool(fortran)
