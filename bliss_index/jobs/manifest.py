"""What a manifest says of the files of a complete job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bliss_index.errors import CorruptStoreError
from bliss_index.jobs.record import OUTPUT_NAME, Record

_MOST_ROWS = 1 << 40


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
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_ROWS:
            raise CorruptStoreError(f"{name} is damaged: {field} of part {index} is {value!r}")
    if not isinstance(file.sha256, str) or not isinstance(file.file, str):
        raise CorruptStoreError(f"{name} is damaged: part {index} is {item!r}")
    match = OUTPUT_NAME.fullmatch(file.file)
    if match is None or int(match[1]) != index:
        raise CorruptStoreError(f"{name} is damaged: part {index} is named {file.file!r}")
    return file
