"""Embeddings in numpy's files, read in batches from any file system; nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import InvalidInputError
from bliss_index.store.columns import NPY_ERRORS
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_part import ColumnNames, EmbeddingBatch, RowStream, SourcePart

if TYPE_CHECKING:
    from bliss_index.store.source_parquet import ParquetPart

_ARRAY_NAME = "embeddings"
_HEADER_BYTES = 1 << 16
_SKIP_BYTES = 1 << 20
_WHOLE_BYTES = 256 << 20
_DEFLATE_RATIO = 1032  # the most that deflate can make of a byte
_LOCAL_HEADER = struct.Struct("<4s22xHH")
# What damaged archives raise besides: unknown compression, a password, an absurd size.
_ARCHIVE_ERRORS = (
    *NPY_ERRORS,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class NpyPart(SourcePart):
    """An (n, d) array in a ``.npy`` file, perhaps with clip-retrieval's metadata of its rows."""

    stored: np.dtype[Any]
    offset: int
    by_column: bool = False  # numpy's Fortran order
    metadata: ParquetPart | None = None

    @classmethod
    def open(cls, file: SourceFile) -> NpyPart:
        """Read the header.

        Raises
        ------
        InvalidInputError
            It does not hold a two-dimensional array of floats, or it is truncated.
        """
        with file.open() as stream:
            return cls._of(file, stream, stream.size(), file.name)

    @classmethod
    def _of(cls, file: SourceFile, stream: Any, size: int, name: str, at: int = 0) -> NpyPart:
        """The array of which a stream of `size` bytes is at the beginning, `at` in the file."""
        (rows, dim), stored, offset, by_column = _read_header(stream, name)
        promised = offset + rows * dim * stored.itemsize
        if size < promised:
            raise InvalidInputError(
                f"{name} has {size} bytes, its header promises {promised}: truncated"
            )
        if size > promised:
            raise InvalidInputError(
                f"{name} has {size} bytes, its header promises {promised}, of {rows} rows; what "
                "follows would be left out. Several arrays saved into one file are read by as many "
                "numpy.load(stream) in a row: save them again as one, numpy.concatenate(arrays)"
            )
        dtype = "float16" if stored.itemsize == 2 else "float32"
        return cls(file, rows, dim, dtype, stored, at + offset, by_column)

    @property
    def has_keys(self) -> bool:
        return self.metadata is not None and self.metadata.has_keys

    @property
    def carried(self) -> pa.Schema | None:
        return None if self.metadata is None else self.metadata.carried

    def row_bytes(self, carried: bool = True) -> int:
        others = 0 if self.metadata is None else self.metadata.row_bytes(carried)
        return self.dim * self.stored.itemsize + others

    def held(self, carried: bool = True) -> int:
        return 0 if self.metadata is None else self.metadata.held(carried)

    def cuts(self, rows: int, size: int, *, carried: bool = True) -> list[int]:
        if self.metadata is None:
            return super().cuts(rows, size, carried=carried)
        return self.metadata.groups.cuts(rows, size, carried, self.dim * self.stored.itemsize)

    def origin(self, row: int) -> int:
        return row if self.metadata is None else self.metadata.origin(row)

    def stream(self, origin: int, carried: bool) -> RowStream:
        tables = None if self.metadata is None else self.metadata.stream(origin, carried)
        return _ArrayStream(self, origin, self.file.open(), tables)

    def stamp(self) -> list[Any]:
        other = [] if self.metadata is None else self.metadata.file.stamp()
        return [*self.file.stamp(), *other]


@dataclass(frozen=True)
class DeflatedPart(NpyPart):
    """The array ``embeddings`` of a ``.npz`` file that is compressed: read from its beginning."""

    def held(self, carried: bool = True) -> int:
        # zlib's window and zipfile's buffers; an array by columns is decompressed whole.
        return (4 << 20) + (2 * self.rows * self.row_bytes() if self.by_column else 0)

    def origin(self, row: int) -> int:
        return 0

    def stream(self, origin: int, carried: bool) -> RowStream:
        stack = contextlib.ExitStack()
        _, file = stack.enter_context(_member(self.file))
        stream = _ArrayStream(self, 0, file, stack)
        if self.by_column:
            with _refused(self.name):
                stream.file = io.BytesIO(file.read())
        return stream


class _ArrayStream:
    """Rows of an array; of a compressed one they are asked for in the order of the file."""

    def __init__(self, part: NpyPart, at: int, file: Any, beside: Any) -> None:
        self._part, self.at, self.file, self._beside = part, at, file, beside

    def read(self, count: int) -> EmbeddingBatch:
        part = self._part
        size = part.stored.itemsize
        with _refused(part.name):
            if part.by_column:
                places = ((column * part.rows + self.at) * size for column in range(part.dim))
                data = b"".join(self._bytes(place, count * size) for place in places)
            else:
                data = self._bytes(self.at * part.dim * size, count * part.dim * size)
        self.at += count
        batch = _NOTHING_BESIDE if part.metadata is None else self._beside.read(count)
        return replace(batch, embeddings=_matrix(part, data, count))

    def _bytes(self, place: int, count: int) -> bytes:
        self.file.seek(self._part.offset + place)
        data: bytes = self.file.read(count)
        return data

    def close(self) -> None:
        self.file.close()
        if self._beside is not None:
            self._beside.close()


_NOTHING_BESIDE = EmbeddingBatch(np.empty((0, 0)))


def open_npy(file: SourceFile, _columns: ColumnNames, _texts: bool) -> NpyPart:
    """Open an array; it has no columns to choose from. Errors as of :meth:`NpyPart.open`."""
    return NpyPart.open(file)


def open_npz(file: SourceFile, _columns: ColumnNames, _texts: bool) -> NpyPart:
    """Find the array ``embeddings`` of a ``.npz`` file, and compare its checksum.

    That reads it once, in small pieces: zip keeps the checksum of the whole alone.

    Raises
    ------
    InvalidInputError
        It cannot be read as such a file, has no array of that name, or is damaged.
    """
    with _refused(file.name), _member(file) as (info, stream):
        kind = NpyPart if info.compress_type == zipfile.ZIP_STORED else DeflatedPart
        name = f"{file.name}: {_ARRAY_NAME}"
        at = 0 if kind is DeflatedPart else _place(file, info)
        part = kind._of(file, stream, info.file_size, name, at)
        if kind is DeflatedPart and part.by_column and part.rows * part.row_bytes() > _WHOLE_BYTES:
            raise InvalidInputError(
                f"{name} is compressed column by column (Fortran order) and has "
                f"{part.rows * part.row_bytes()} bytes, of which at most {_WHOLE_BYTES} are read "
                "like that; write numpy.ascontiguousarray(array)"
            )
        while stream.read(_SKIP_BYTES):  # at its end, it compares
            pass
        return part


@contextlib.contextmanager
def _member(file: SourceFile) -> Iterator[tuple[zipfile.ZipInfo, Any]]:
    """Open the array within the archive."""
    with _refused(file.name), file.open() as whole, zipfile.ZipFile(whole) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if _ARRAY_NAME not in names:
            raise InvalidInputError(
                f"{file.name} has no array {_ARRAY_NAME!r}; it has {', '.join(names) or 'none'}. "
                "Write numpy.savez(path, embeddings=...)"
            )
        info = archive.infolist()[names.index(_ARRAY_NAME)]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InvalidInputError(
                f"{file.name}: {_ARRAY_NAME} is compressed by method {info.compress_type}; those "
                "of numpy.savez (0) and numpy.savez_compressed (8) are read"
            )
        most = info.compress_size
        if info.compress_type == zipfile.ZIP_DEFLATED:
            most = _DEFLATE_RATIO * (info.compress_size + 1)
        if info.file_size > most:
            raise InvalidInputError(
                f"{file.name}: {_ARRAY_NAME} is said to have {info.file_size} bytes, the "
                f"{info.compress_size} in the archive hold at most {most}; write it again"
            )
        with archive.open(info) as stream:
            yield info, stream


def _place(file: SourceFile, info: zipfile.ZipInfo) -> int:
    """Where in the file the bytes of a member begin that is not compressed."""
    with file.open() as stream:
        stream.seek(info.header_offset)
        _, name, extra = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        return int(info.header_offset) + _LOCAL_HEADER.size + int(name) + int(extra)


@contextlib.contextmanager
def _refused(name: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into our error."""
    try:
        yield
    except InvalidInputError:
        raise
    except _ARCHIVE_ERRORS as error:
        kind = name.rpartition(".")[2]
        raise InvalidInputError(f"{name} cannot be read as .{kind}: {error}") from error


def _matrix(part: NpyPart, data: bytes, count: int) -> npt.NDArray[Any]:
    """Rows of their bytes, in this machine's byte order; fewer where some are missing."""
    values = np.frombuffer(
        data, part.stored, min(count * part.dim, len(data) // part.stored.itemsize)
    )
    values = values.astype(part.stored.newbyteorder("="), copy=False)
    if len(values) < count * part.dim:
        return values[: len(values) // part.dim * part.dim].reshape(-1, part.dim)
    return values.reshape(part.dim, count).T if part.by_column else values.reshape(count, -1)


def _read_header(stream: Any, name: str) -> tuple[tuple[int, int], np.dtype[Any], int, bool]:
    """Shape, type, offset of the values, and whether they are stored column by column."""
    header = io.BytesIO(stream.read(_HEADER_BYTES))  # never more, whatever length it declares
    try:
        version = np.lib.format.read_magic(header)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(header)
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
    return (int(shape[0]), int(shape[1])), dtype, int(header.tell()), bool(fortran)
