"""Sizes of the columns of a Parquet file, as its footer has them.

pyarrow has them too, but where a column's metadata contradict themselves or cannot be decrypted,
``RowGroupMetaData.column`` raises no error: it ends the process (26.0). So the footer is
taken apart here. It is in Thrift's compact protocol.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator
from typing import Any

from bliss_index.errors import InvalidInputError
from bliss_index.store.formats.others import in_front

_LENGTH = struct.Struct("<I4x")  # and "PAR1"
_MAGIC = 4
_SIGNATURE_BYTES = 28  # may follow what pyarrow counts
# Types of the protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_NUMBERS = (4, 5, 6)
# Fields of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_ROW_GROUPS, _COLUMNS, _META, _PATH, _UNCOMPRESSED = 4, 1, 3, 3, 6
_INDEXES = {4: 5, 6: 7}  # where an index of pages begins, and how long it is
_COMPRESSED, _PAGES, _DICTIONARY, _BLOOM, _BLOOM_LENGTH = 7, 9, 11, 14, 15
_TWO = b"PAR1PAR1"


def column_sizes(file: str, stream: Any, size: int, names: Collection[str]) -> list[list[int]]:
    """Bytes without compression of each row group: of other columns than `names`, and of those.

    Parameters
    ----------
    file
        For the message.
    stream
        The file, which pyarrow has opened without complaint.
    size
        Of its footer, as pyarrow says: what has to be read.
    names
        Of columns; one within them counts as they do.

    Raises
    ------
    InvalidInputError
        A column is encrypted, the footer is damaged, or the file is two, one after the other.
    """
    whole = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, whole - size - _LENGTH.size - _SIGNATURE_BYTES))
    content = bytes(stream.read())
    (length,) = _LENGTH.unpack(content[-_LENGTH.size :])
    begin = len(content) - _LENGTH.size - length
    reader = _Reader(content[max(0, begin) : -_LENGTH.size])
    sizes: list[list[int]] = []
    chosen = {name.encode() for name in names}
    try:
        for field, kind in reader.fields():
            if field != _ROW_GROUPS:
                reader.skip(kind)
                continue
            for _ in range(reader.length()):
                sizes.append(_row_group(reader, file, chosen))
    except IndexError as error:
        raise InvalidInputError(f"{file}: the footer of {length} bytes is damaged") from error
    before = whole - length - _LENGTH.size - reader.end
    if before > _MAGIC:  # bytes that nothing refers to, such as another file in front
        stream.seek(before - _MAGIC)
        if bytes(stream.read(len(_TWO))) == _TWO:
            raise InvalidInputError(in_front(file, before))
    return sizes


def require_one_file(file: str, stream: Any, size: int) -> None:
    """Refuse a file that is two, as :func:`column_sizes` does."""
    column_sizes(file, stream, size, ())


def _row_group(reader: _Reader, file: str, chosen: Collection[bytes]) -> list[int]:
    parts = [0, 0]
    for field, kind in reader.fields():
        if field != _COLUMNS:
            reader.skip(kind)
            continue
        for number in range(reader.length()):
            found, places = None, dict[int, int]()
            for inner, inner_kind in reader.fields():
                if inner == _META:
                    found = _column(reader)
                elif inner in _INDEXES or inner in _INDEXES.values():
                    places[inner] = reader.zigzag()
                else:
                    reader.skip(inner_kind)
            for start, size in _INDEXES.items():
                reader.refers(places.get(start, 0), places.get(size, 0))
            if found is None:
                raise InvalidInputError(
                    f"{file}: the footer says nothing of column {number}, which is encrypted; "
                    "write the file again without encryption"
                )
            root, uncompressed = found
            parts[root in chosen] += uncompressed
    return parts


def _column(reader: _Reader) -> tuple[bytes, int]:
    root, numbers = b"", dict[int, int]()
    for field, kind in reader.fields():
        if field == _PATH:
            path = [reader.binary() for _ in range(reader.length())]
            root = path[0] if path else b""
        elif kind in _NUMBERS:
            numbers[field] = reader.zigzag()
        else:
            reader.skip(kind)
    pages = numbers.get(_PAGES, 0)
    start = min(pages, numbers.get(_DICTIONARY, 0) or pages)
    reader.refers(start, numbers.get(_COMPRESSED, 0))
    reader.refers(numbers.get(_BLOOM, 0), numbers.get(_BLOOM_LENGTH, 0))
    return root, numbers.get(_UNCOMPRESSED, 0)


class _Reader:
    """Reads Thrift's compact protocol from the beginning on.

    Attributes
    ----------
    end
        Of all that was referred to in the file.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self.end = 0

    def refers(self, start: int, size: int) -> None:
        """Note how far what the footer refers to reaches."""
        self.end = max(self.end, start + size)

    def varint(self) -> int:
        data, at = self._data, self._at
        byte = data[at]
        at += 1
        if byte < 128:
            self._at = at
            return byte
        value, shift = byte & 127, 7
        while byte >= 128:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
        self._at = at
        return value

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def binary(self) -> bytes:
        size = self.varint()
        self._at += size
        return self._data[self._at - size : self._at]

    def length(self) -> int:
        """Of a list, which begins here."""
        return self._list()[0]

    def _list(self) -> tuple[int, int]:
        byte = self._data[self._at]
        self._at += 1
        return self.varint() if byte >> 4 == 15 else byte >> 4, byte & 15

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a structure; what is in it has to be read, too."""
        number = 0
        while byte := self._data[self._at]:
            self._at += 1
            number = number + (byte >> 4) if byte >> 4 else self.zigzag()
            yield number, byte & 15
        self._at += 1

    def skip(self, kind: int) -> None:
        """Pass over a value."""
        if kind in (_TRUE, _FALSE):
            return
        if kind == _BINARY:
            size = self.varint()  # which moves on by itself
            self._at += size
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner)
        elif kind in (_LIST, _SET):
            count, inner = self._list()
            for _ in range(count):
                self._skip_element(inner)
        elif kind == _MAP:
            count = self.varint()
            kinds = self._data[self._at] if count else 0
            self._at += bool(count)
            for _ in range(count):
                self._skip_element(kinds >> 4)
                self._skip_element(kinds & 15)
        elif kind == _BYTE:
            self._at += 1
        elif kind == _DOUBLE:
            self._at += 8
        else:
            self.varint()

    def _skip_element(self, kind: int) -> None:
        """A truth has a byte within a list, and none as a field."""
        self.skip(_BYTE if kind in (_TRUE, _FALSE) else kind)
