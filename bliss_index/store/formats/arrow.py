"""Embeddings in Arrow's own files: IPC files, of which Feather is one, and streams.

Polars, pandas and DuckDB write files; Hugging Face's data sets are streams.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from bliss_index.errors import InvalidInputError
from bliss_index.store.formats.others import in_front
from bliss_index.store.formats.table_columns import TableColumns
from bliss_index.store.formats.tables import RowGroups, TableReader, readable
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames

_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"
_ENDS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")
_DROP_BYTES = 32 << 20
_FOOTER_END = struct.Struct("<i6s")
_BLOCK = struct.Struct("<qi4xq")
_ABSENT = ("a stream without its end mark, as if it was cut between two batches", "write it again")
_MORE = ("more than one stream in a file", "write one file of each")


@dataclass(frozen=True)
class ArrowReader(TableReader):
    """The rows of one IPC file or stream.

    Attributes
    ----------
    in_place
        Whether its columns are read where they lie in the file: it is local, without compression.
    """

    in_place: bool
    layout = "Arrow"

    def held(self, carried: bool = True) -> int:
        return _DROP_BYTES if self.in_place else super().held(carried)

    @contextlib.contextmanager
    def reading(
        self, group: int, names: list[str] | None, rows: int
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        with _mapped(self.file) as source:
            yield self._slices(source, group, names, rows)

    def _slices(
        self, source: _Mapped, group: int, names: list[str] | None, rows: int
    ) -> Iterator[pa.RecordBatch]:
        wanted = None
        if names is not None and not self.in_place:  # or Arrow copies what it could leave there
            wanted = [source.schema.names.index(name) for name in names]
        dropped = 0
        for batch in source.batches(wanted, group):
            if names is not None and self.in_place:
                batch = batch.select(names)
            for start in range(0, batch.num_rows, rows):
                piece = batch.slice(start, rows)
                piece.validate(full=True)
                yield piece
                dropped += piece.nbytes
                if dropped > _DROP_BYTES:
                    source.drop()
                    dropped = 0


def open_arrow(file: SourceFile, columns: ColumnNames, texts: bool) -> ArrowReader:
    """Open an IPC file or stream.

    The rows of every batch are counted, for which files with compression are read once.

    Raises
    ------
    InvalidInputError
        It is none, is cut or damaged, or as of :meth:`TableColumns.find`.
    """
    with _mapped(file) as source:
        schema = source.schema
        found = TableColumns.find(file.name, schema, columns, texts=texts, embedded=True)
        sizes, in_place, dim = [], True, 0
        for batch in source.batches(None):
            batch.validate()
            bytes_of = [0, 0]
            for name, column in zip(schema.names, batch.columns, strict=True):
                bytes_of[name not in found.names] += column.nbytes
            sizes.append((batch.num_rows, *bytes_of))
            in_place = in_place and all(map(source.holds, batch.columns))
            if not dim:
                pieces = (batch.slice(start, 1024) for start in range(0, batch.num_rows, 1024))
                dim = found.dimension(file.name, map(_valid, pieces))
            source.drop()
        groups = RowGroups(*zip(*sizes, strict=True)) if sizes else RowGroups((), (), ())
        dim = dim or found.size
        return ArrowReader(file, sum(groups.rows), dim, found.dtype, found, groups, in_place)


def _valid(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)
    return batch


class _Mapped:
    """An opened file; what is local is mapped, and pages that were read can be given back."""

    def __init__(self, file: SourceFile, stack: contextlib.ExitStack) -> None:
        self._name = file.name
        self._map: mmap.mmap | None = None
        if isinstance(file.filesystem, pafs.LocalFileSystem):
            with open(file.path, "rb") as opened:
                self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            self._data = pa.py_buffer(self._map)
            self._stream: Any = pa.BufferReader(self._data)
        else:
            self._stream = stack.enter_context(file.open())
        start = self._stream.read(len(_FILE))
        if start.startswith(_FEATHER_1):
            raise InvalidInputError(
                f"{file.name} is Feather version 1, which holds no lists; write it again: "
                "import pandas; pandas.read_feather(old).to_feather(new)"
            )
        self._is_file = start == _FILE
        self.schema: pa.Schema = self._opened(None).schema
        if self._is_file:
            self._require_one_file()

    def _opened(self, columns: Sequence[int] | None) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
        self._stream.seek(0)
        how = pa.ipc.open_file if self._is_file else pa.ipc.open_stream
        return how(self._stream, options=options)

    def batches(self, columns: Sequence[int] | None, first: int = 0) -> Iterator[pa.RecordBatch]:
        """Its batches from one on, with some of the columns."""
        reader = self._opened(columns)
        if self._is_file:
            yield from map(reader.get_batch, range(first, reader.num_record_batches))
            return
        for number, batch in enumerate(reader):
            if number >= first:
                yield batch
        self._require_end()

    def _require_one_file(self) -> None:
        """Refuse a file with another in front: its own footer is the only one that is read."""
        size = self._stream.size()
        self._stream.seek(size - _FOOTER_END.size)
        length, _ = _FOOTER_END.unpack(self._stream.read(_FOOTER_END.size))
        begin = size - _FOOTER_END.size - length
        self._stream.seek(begin)
        end = blocks_end(self._stream.read(length))
        before = begin - end - len(_ENDS[0])
        if not end or before < len(_FILE):
            return
        self._stream.seek(before - len(_FILE))
        if self._stream.read(2 * len(_FILE)) == 2 * _FILE:
            raise InvalidInputError(in_front(self._name, before))

    def _require_end(self) -> None:
        """Refuse a stream that may go on, or behind which there is more."""
        end = self._stream.tell()
        self._stream.seek(max(0, end - 8))
        if not self._stream.read(8).endswith(_ENDS):
            problem, remedy = _ABSENT
        elif self._stream.read(1):
            problem, remedy = _MORE
        else:
            return
        raise InvalidInputError(f"{self._name} ends at byte {end} with {problem}; {remedy}")

    def holds(self, column: pa.Array) -> bool:
        """Whether a column lies in the file as it is."""
        if self._map is None:
            return False
        begin, end = self._data.address, self._data.address + self._data.size
        buffers = [buffer for buffer in column.buffers() if buffer is not None and buffer.size]
        return all(begin <= buffer.address <= end for buffer in buffers)

    def drop(self) -> None:
        """Give the pages that were read back."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def blocks_end(footer: bytes) -> int:
    """Where the last block of an Arrow file ends, by its footer; 0 where there is none.

    The footer is a table of flatbuffers: (version, schema, dictionaries, record batches). A block
    is its offset, the length of its metadata and that of its body.
    """

    def number(kind: str, at: int) -> int:
        return int(struct.unpack_from(kind, footer, at)[0])

    end = 0
    with contextlib.suppress(struct.error):  # it was valid to pyarrow
        table = number("<I", 0)
        fields = table - number("<i", table)
        for field in (2, 3):
            place = 4 + 2 * field
            step = number("<H", fields + place) if place < number("<H", fields) else 0
            if not step:
                continue
            blocks = table + step + number("<I", table + step)
            for at in range(number("<I", blocks)):
                offset, metadata, body = _BLOCK.unpack_from(footer, blocks + 4 + at * _BLOCK.size)
                end = max(end, offset + metadata + body)
    return end


@contextlib.contextmanager
def _mapped(file: SourceFile) -> Iterator[_Mapped]:
    with contextlib.ExitStack() as stack, readable(file.name, ArrowReader.layout):
        yield _Mapped(file, stack)
