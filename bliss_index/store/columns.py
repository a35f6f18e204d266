"""One value a row, out of the files that people keep keys, texts and labels in."""

from __future__ import annotations

import csv
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bliss_index.errors import InvalidInputError
from bliss_index.storage.cache import local_file

_SUFFIXES = ".txt, .csv, .tsv, .npy or .parquet"

# What numpy's parser of headers raises on damaged ones.
NPY_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    SyntaxError,
    RecursionError,
    tokenize.TokenError,
    OSError,
    EOFError,
)


@dataclass(frozen=True)
class Column:
    """Values of a file, row by row, and the keys beside them if it has a column of that name.

    Attributes
    ----------
    path
        The file.
    values
        Texts or numbers.
    keys
        As many identifiers; None where the values are in row order.
    """

    path: Path
    values: list[Any]
    keys: list[str] | None = None


def read_column(path: str | Path, names: Sequence[str]) -> Column:
    """Read a column.

    Parameters
    ----------
    path
        ``.txt``: a value a line; ``.npy``: a one-dimensional array; ``.csv``, ``.tsv`` (with a
        header) and ``.parquet``: the first of `names` that is a column, else the only column;
        their column ``key`` gives the keys.
    names
        Columns to look for.

    Raises
    ------
    InvalidInputError
        The file is missing, cannot be read, or has no such column; all columns are named.
    """
    file = local_file(path)
    if not file.is_file():
        raise InvalidInputError(f"{file} {'is a directory' if file.is_dir() else 'does not exist'}")
    try:
        if file.suffix == ".npy":
            return Column(file, _array(file))
        if file.suffix in (".csv", ".tsv"):
            return _from_table(file, _csv_columns(file), names)
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            return _from_table(file, {n: table.column(n) for n in table.column_names}, names)
        if file.suffix == ".txt":
            text = file.read_text(encoding="utf-8-sig")
            return Column(file, text.removesuffix("\n").split("\n") if text else [])
    except (OSError, UnicodeDecodeError, ValueError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{file} cannot be read: {error}") from error
    raise InvalidInputError(f"{file} is of an unknown type; expected {_SUFFIXES}")


def read_names(path: str | Path, name: str, *, rows: int | None = None) -> list[str]:
    """Read a column of texts in row order.

    Raises
    ------
    InvalidInputError
        As :func:`read_column`; also where the number of values is not `rows`, or one is missing.
    """
    column = read_column(path, (name, "text", "name", "key"))
    if rows is not None and len(column.values) != rows:
        raise InvalidInputError(
            f"{path} holds {len(column.values)} values, the embeddings have {rows} rows"
        )
    for row, value in enumerate(column.values):
        if value is None:
            raise InvalidInputError(f"{path}: the value in row {row} is missing")
    return [str(value) for value in column.values]


def names_bytes(path: str | None, rows: int) -> int:
    """Bytes that a column of texts takes in memory while it is read: the file, and its texts."""
    return 0 if path is None else 6 * Path(path).stat().st_size + 64 * rows


def _array(file: Path) -> list[Any]:
    try:
        array = np.load(file, allow_pickle=False, mmap_mode="r")
    except NPY_ERRORS as error:
        hint = ""
        if "object" in str(error).lower():
            hint = "; it holds pickled objects, which are not read: save array.astype(str)"
        raise InvalidInputError(f"{file} is not a readable .npy file: {error}{hint}") from error
    if array.ndim != 1:
        raise InvalidInputError(
            f"{file} holds an array of shape {array.shape}, expected one value a row"
        )
    return list(array.tolist())


def _csv_columns(file: Path) -> dict[str, list[str]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, delimiter="\t" if file.suffix == ".tsv" else ",")
        header = next(reader, [])
        if len(set(header)) != len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InvalidInputError(f"{file} has two columns {twice!r}; rename one")
        columns: dict[str, list[str]] = {name: [] for name in header}
        for row in reader:
            if len(row) != len(header):
                raise InvalidInputError(
                    f"{file}, line {reader.line_num}: {len(row)} fields, the header has "
                    f"{len(header)}"
                )
            for name, value in zip(header, row, strict=True):
                columns[name].append(value)
    return columns


def _from_table(file: Path, columns: dict[str, Any], names: Sequence[str]) -> Column:
    if names[0] == "key" and "key" in columns:  # keys are what is asked for
        return Column(file, _listed(columns["key"]))
    found = [name for name in names if name in columns and name != "key"]
    others = [name for name in columns if name != "key"]
    if found:
        name = found[0]
    elif len(others) == 1:
        name = others[0]
    elif not others and "key" in names and "key" in columns:
        return Column(file, _listed(columns["key"]))
    else:
        raise InvalidInputError(
            f"{file} has no column {' or '.join(map(repr, names))}; its columns are "
            f"{', '.join(columns) or 'none'}"
        )
    keys = None
    if "key" in columns:
        keys = [str(key) for key in _listed(columns["key"])]
    return Column(file, _listed(columns[name]), keys)


def _listed(values: Any) -> list[Any]:
    return list(values.to_pylist() if isinstance(values, pa.ChunkedArray) else values)
