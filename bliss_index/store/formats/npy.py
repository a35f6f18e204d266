"""Embeddings in numpy's files, read in batches from any file system; nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bliss_index.errors import InvalidInputError
from bliss_index.store.columns import NPY_ERRORS
from bliss_index.store.formats.arrays import ArrayReader, ArrayStream, Block, choose, require_block
from bliss_index.store.formats.others import in_front
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames, RowStream

_HEADER_BYTES = 1 << 16
_SKIP_BYTES = 1 << 20
_WHOLE_BYTES = 256 << 20
_DEFLATE_RATIO = 1032  # the most that deflate can make of a byte
_LOCAL_HEADER = struct.Struct("<4s22xHH")
# What damaged archives raise besides: unknown compression, a password, an absurd size.
ARCHIVE_ERRORS = (
    *NPY_ERRORS,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def open_npy(file: SourceFile, _columns: ColumnNames, _texts: bool) -> ArrayReader:
    """Open an array of two dimensions; it has no columns to choose from.

    Raises
    ------
    InvalidInputError
        It does not hold a two-dimensional array of floats, it is truncated, or more follows.
    """
    with file.open() as stream:
        return ArrayReader.of(file, _block(stream, stream.size(), file.name))


def open_npz(file: SourceFile, columns: ColumnNames, texts: bool) -> ArrayReader:
    """Find an array of a ``.npz`` file, by its name, and compare its checksum.

    That reads it once, in small pieces: zip keeps the checksum of the whole alone.

    Raises
    ------
    InvalidInputError
        It cannot be read as such a file, it is not clear which array is meant, or that is damaged.
    """
    with _refused(file.name), file.open() as whole, zipfile.ZipFile(whole) as archive:
        require_one_archive(file.name, archive)
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        shapes = dict(zip(names, (_shape(archive, i) for i in archive.infolist()), strict=True))
        fitting = {n: s for n, s in shapes.items() if s.startswith("float") and s.count(",") == 1}
        wanted = choose(file.name, columns.embedding, shapes, fitting, texts)
        info = archive.infolist()[names.index(wanted)]
        _require_size(f"{file.name}: {wanted}", info)
        with archive.open(info) as stream:
            packed = info.compress_type != zipfile.ZIP_STORED
            name = f"{file.name}: {wanted}"
            block = _block(stream, info.file_size, name, 0 if packed else _place(file, info))
            if packed and block.by_column and block.size > _WHOLE_BYTES:
                raise InvalidInputError(
                    f"{name} is compressed column by column (Fortran order) and has {block.size} "
                    f"bytes, of which at most {_WHOLE_BYTES} are read like that; write "
                    "numpy.ascontiguousarray(array)"
                )
            while stream.read(_SKIP_BYTES):  # at its end, it compares
                pass
    unread = tuple(name for name in names if name != wanted)
    if packed:
        return DeflatedReader.of(file, block, unread=unread, member=info.filename)
    return NpzReader.of(file, block, unread=unread)


class NpzReader(ArrayReader):
    """An array of a ``.npz`` file."""

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        with _refused(self.name):
            yield


@dataclass(frozen=True)
class DeflatedReader(NpzReader):
    """An array of a ``.npz`` file that is compressed: read from its beginning."""

    member: str = ""

    def held(self, carried: bool = True) -> int:
        # zlib's window and zipfile's buffers; an array by columns is decompressed whole.
        return (4 << 20) + (2 * self.block.size if self.block.by_column else 0)

    def origin(self, row: int) -> int:
        return 0

    def stream(self, origin: int, carried: bool) -> RowStream:
        stack = contextlib.ExitStack()
        with self.refused():
            archive = zipfile.ZipFile(stack.enter_context(self.file.open()))
            file = stack.enter_context(stack.enter_context(archive).open(self.member))
            stream = ArrayStream(self, 0, file, stack)
            if self.block.by_column:
                stream.file = io.BytesIO(file.read())
        return stream


def require_one_archive(name: str, archive: zipfile.ZipFile) -> None:
    """Refuse a file with something before the archive, which zipfile passes over."""
    first = min((info.header_offset for info in archive.infolist()), default=0)
    if first:
        raise InvalidInputError(in_front(name, first))


def _shape(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """Type and shape of a member in words."""
    try:
        with archive.open(info) as stream:
            shape, dtype, _, _ = _header(stream.read(_HEADER_BYTES))
    except ARCHIVE_ERRORS:
        return "(unreadable)"
    return f"{dtype.name} {list(shape)}"


def _require_size(name: str, info: zipfile.ZipInfo) -> None:
    """Refuse a member that is compressed otherwise, or that claims more than it can hold."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidInputError(
            f"{name} is compressed by method {info.compress_type}; those of numpy.savez (0) and "
            "numpy.savez_compressed (8) are read"
        )
    most = info.compress_size
    if info.compress_type == zipfile.ZIP_DEFLATED:
        most = _DEFLATE_RATIO * (info.compress_size + 1)
    if info.file_size > most:
        raise InvalidInputError(
            f"{name} is said to have {info.file_size} bytes, the {info.compress_size} in the "
            f"archive hold at most {most}; write it again"
        )


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
    except ARCHIVE_ERRORS as error:
        kind = name.rpartition(".")[2]
        raise InvalidInputError(f"{name} cannot be read as .{kind}: {error}") from error


def _block(stream: Any, size: int, name: str, at: int = 0) -> Block:
    """The array of which a stream of `size` bytes is at the beginning, `at` in the file."""
    try:
        # Never more of it, whatever length it declares.
        shape, stored, offset, by_column = _header(stream.read(_HEADER_BYTES))
    except NPY_ERRORS as error:
        raise InvalidInputError(f"{name} cannot be read as .npy: {error}") from error
    rows, dim = require_block(name, shape, stored.name)
    block = Block(rows, dim, stored, at + offset, by_column=by_column)
    promised = offset + block.size
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
    return block


def _header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int, bool]:
    """Shape, type, offset of the values, and whether they are stored column by column."""
    header = io.BytesIO(content)
    version = np.lib.format.read_magic(header)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(header)
    else:
        raise ValueError(f"format version {version} is not known")
    return shape, dtype, int(header.tell()), bool(fortran)
