"""Rows of numbers as nearest-neighbour benchmarks keep them.

``.fvecs``, ``.bvecs`` and ``.ivecs``: each row is its dimension, an int32, and the values.
``.fbin``, ``.u8bin``, ``.i8bin`` and ``.ibin``: rows and dimension, two uint32, then the values.
All are little-endian.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from bliss_index.errors import InvalidInputError
from bliss_index.store.formats.arrays import ArrayReader, Block
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames

_ROWS = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4"}
_BLOCKS = {".fbin": "<f4", ".u8bin": "u1", ".i8bin": "i1", ".ibin": "<i4"}
_SAMPLE_ROWS = 256


class VectorsReader(ArrayReader):
    """Rows each of which begins with its dimension."""

    def check(self, data: bytes, first_row: int) -> None:
        block = self.block
        count = len(data) // block.row_bytes
        words = np.frombuffer(data, np.uint8, count * block.row_bytes).reshape(count, -1)
        dims = np.ascontiguousarray(words[:, : block.before]).view("<i4").ravel()
        if (wrong := np.flatnonzero(dims != block.dim)).size:
            raise InvalidInputError(
                f"{self.name}, row {first_row + wrong[0]}: the dimension is {dims[wrong[0]]}, in "
                f"row 0 it is {block.dim}"
            )


def open_vectors(file: SourceFile, _columns: ColumnNames, _texts: bool) -> ArrayReader:
    """Open a file of rows; it has no columns to choose from.

    Raises
    ------
    InvalidInputError
        Its size is not that of whole rows, or it holds numbers of neighbours.
    """
    suffix = PurePosixPath(file.name).suffix.lower()
    with file.open() as stream:
        size = stream.size()
        head = stream.read(8)
    if suffix in _ROWS:
        stored = np.dtype(_ROWS[suffix])
        dim = int(np.frombuffer(head[:4].ljust(4, b"\0"), "<i4")[0])
        block = Block(0, dim, stored, 0, before=4)
        rows = size // block.row_bytes if dim > 0 else 0
        promised = rows * block.row_bytes
        if dim < 1 or size != promised or not rows:
            raise InvalidInputError(
                f"{file.name} has {size} bytes, and its first row is said to have {dim} values of "
                f"type {stored.name}; that is no whole number of rows"
            )
        block = Block(rows, dim, stored, 0, before=4)
        reader: ArrayReader = VectorsReader.of(file, block)
    else:
        stored = np.dtype(_BLOCKS[suffix])
        rows, dim = map(int, np.frombuffer(head.ljust(8, b"\0"), "<u4"))
        block = Block(rows, dim, stored, 8)
        promised = 8 + block.size
        if dim < 1 or size != promised:
            raise InvalidInputError(
                f"{file.name} has {size} bytes; {rows} rows of {dim} values of type "
                f"{stored.name}, as it says, take {promised}"
            )
        reader = ArrayReader.of(file, block)
    if stored == "<i4":
        _refuse_neighbours(reader)
    return reader


def _refuse_neighbours(reader: ArrayReader) -> None:
    """Refuse rows of different whole numbers from 0 on: which neighbours, not embeddings."""
    for batch in reader.batches(_SAMPLE_ROWS, count=_SAMPLE_ROWS):
        ordered = np.sort(batch.embeddings, axis=1)
        if (ordered >= 0).all() and (np.diff(ordered, axis=1) > 0).all():
            raise InvalidInputError(
                f"{reader.name} holds the numbers of nearest neighbours, as benchmarks keep them "
                "beside their vectors, and no embeddings; name the file of vectors"
            )
