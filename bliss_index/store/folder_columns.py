"""Columns that the folders of a path say, as Hive and Spark write them: ``year=2020/month=02/``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import unquote

import pyarrow as pa

from bliss_index.store.source_reader import SourceReader

NULL = "__HIVE_DEFAULT_PARTITION__"


def with_folder_columns(readers: Sequence[SourceReader]) -> tuple[SourceReader, ...]:
    """Give the readers of a source the columns that the folders of their files say.

    Values are whole numbers where all of a column are, as Python writes them, else texts, so that
    ``02`` stays what it is; Hive's name for a missing value is null. A column that a file has
    itself counts there.
    """
    said = [_values(reader.name) for reader in readers]
    kinds = {
        name: pa.int64() if all(_is_whole(values.get(name)) for values in said) else pa.string()
        for name in dict.fromkeys(name for values in said for name in values)
    }
    found = []
    for reader, values in zip(readers, said, strict=True):
        own = tuple(
            (name, pa.scalar(_value(values[name], kinds[name]), kinds[name]))
            for name in values
            if name not in reader.taken
        )
        found.append(replace(reader, folders=own) if own else reader)
    return tuple(found)


def _values(name: str) -> dict[str, str | None]:
    pairs = (folder.partition("=") for folder in name.split("/")[:-1])
    return {
        unquote(column): None if value == NULL else unquote(value)
        for column, equals, value in pairs
        if column and equals
    }


def _is_whole(text: str | None) -> bool:
    if text is None:
        return True
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(text)) == text and len(digits) < 19


def _value(text: str | None, kind: pa.DataType) -> str | int | None:
    return int(text) if text is not None and pa.types.is_integer(kind) else text
