"""What a manifest says of the files of a job, and how that is held and written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import CorruptStoreError
from bliss_index.jobs.description import FORMAT_VERSION
from bliss_index.jobs.record import MOST, OUTPUT_NAME, Record, output_name
from bliss_index.storage import Directory
from bliss_index.storage.files import json_bytes, output_error

_FILE = np.dtype(
    [
        ("done", "?"), ("arrow", "?"), ("rows", "i8"), ("bad_rows", "i8"), ("bytes", "i8"),
        ("sha256", "u1", 32),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class PartFile:
    """A file of a complete job: name, rows, bytes, hash and bad rows."""

    file: str
    rows: int
    bytes: int
    sha256: str
    bad_rows: int = 0

    @classmethod
    def of(cls, record: Record) -> PartFile:
        """The file that a record names."""
        return cls(record.file, record.rows, record.bytes, record.sha256, record.bad_rows)


class Files:
    """The files of the parts that are done, in 58 bytes each; iterates in the order of the parts.

    Parameters
    ----------
    size : int, default=1024
        Parts to begin with.

    Attributes
    ----------
    rows, bad_rows : int
        Of all of them.
    """

    def __init__(self, size: int = 1024) -> None:
        self._table = np.zeros(size, _FILE)
        self._count = 0
        self.rows = 0
        self.bad_rows = 0

    def add(self, index: int, record: Record) -> None:
        """Remember the file of a part."""
        if index >= len(self._table):
            self._table = np.concatenate([self._table, np.zeros(index + 1, _FILE)])
        digest = np.frombuffer(bytes.fromhex(record.sha256), np.uint8)
        arrow = record.file.endswith(".arrow")
        self._table[index] = (True, arrow, record.rows, record.bad_rows, record.bytes, digest)
        self._count += 1
        self.rows += record.rows
        self.bad_rows += record.bad_rows

    def __len__(self) -> int:
        return self._count

    def __contains__(self, index: int) -> bool:
        return index < len(self._table) and bool(self._table["done"][index])

    def missing(self, size: int) -> npt.NDArray[np.intp]:
        """Numbers of the parts, of so many, that are not done."""
        return np.flatnonzero(~self._table["done"][:size])

    def __getitem__(self, index: int) -> PartFile:
        if index not in self:
            raise KeyError(index)
        _, arrow, rows, bad_rows, size, sha256 = self._table[index].item()
        digest = bytes(sha256).hex()
        name = output_name(index, digest, "arrow" if arrow else "parquet")
        return PartFile(name, rows, size, digest, bad_rows)

    def __iter__(self) -> Iterator[PartFile]:
        return (self[int(index)] for index in np.flatnonzero(self._table["done"]))


def is_written(directory: Directory, name: str, files: Iterable[PartFile]) -> bool:
    """Whether a manifest stands that lists these files and no others."""
    try:
        stands = memoryview(directory.mapped(name))
    except FileNotFoundError:
        return False
    begin = re.search(rb'\n  "parts": \[', stands)
    at = len(stands) if begin is None else begin.end()
    for line in _lines(files):
        if stands[at : at + len(line)] != line:
            return False
        at += len(line)
    return bytes(stands[at : at + 1]) == b"]" and bytes(stands[-3:]) == b"\n}\n"


def write_manifest(
    directory: Directory, name: str, files: Iterable[PartFile], facts: Mapping[str, Any]
) -> None:
    """Write what is in a directory that is complete."""
    rows = bad_rows = 0
    for file in files:
        rows += file.rows
        bad_rows += file.bad_rows
    text = json_bytes(
        {"format_version": FORMAT_VERSION, "rows": rows, "bad_rows": bad_rows, "parts": [], **facts}
    )
    before, found, after = text.partition(b'\n  "parts": [')
    content = directory.new_file()
    try:
        content.sink.write(before + found)
        for line in _lines(files):
            content.sink.write(line)
        content.sink.write(after)
        content.commit(name)
    except OSError as error:
        raise output_error(f"{directory.uri}/{name}", error) from error
    finally:
        content.discard()


def _lines(files: Iterable[PartFile]) -> Iterator[bytes]:
    """The files as they stand in a manifest, one a line."""
    end = ""
    for file in files:
        yield f"{end}\n    {json.dumps(vars(file), sort_keys=True)}".encode()
        end = ","
    if end:
        yield b"\n  "


def read_files(values: Mapping[str, Any], name: str) -> tuple[PartFile, ...]:
    """Read the files that a manifest lists.

    Raises
    ------
    CorruptStoreError
        The manifest is damaged or contradicts itself; it is named.
    """
    listed = values.get("parts")
    if not isinstance(listed, list):
        raise CorruptStoreError(f"{name} is damaged: 'parts' is {type(listed).__name__}")
    files = tuple(_file(index, item, name) for index, item in enumerate(listed))
    for total, counted in (
        ("rows", sum(file.rows for file in files)),
        ("bad_rows", sum(file.bad_rows for file in files)),
    ):
        if values.get(total) != counted:
            raise CorruptStoreError(
                f"{name} is damaged: {values.get(total)!r} {total}, but {counted} in its parts"
            )
    return files


def _file(index: int, item: Any, name: str) -> PartFile:
    try:
        file = PartFile(**item)
    except TypeError as error:
        raise CorruptStoreError(f"{name} is damaged: part {index} is {item!r}") from error
    for field in ("rows", "bytes", "bad_rows"):
        value = getattr(file, field)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST:
            raise CorruptStoreError(f"{name} is damaged: {field} of part {index} is {value!r}")
    if not isinstance(file.sha256, str) or not isinstance(file.file, str):
        raise CorruptStoreError(f"{name} is damaged: part {index} is {item!r}")
    match = OUTPUT_NAME.fullmatch(file.file)
    if match is None or int(match[1]) != index:
        raise CorruptStoreError(f"{name} is damaged: part {index} is named {file.file!r}")
    return file
