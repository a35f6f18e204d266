"""One value a row, out of the files that people keep keys, texts and labels in."""

from __future__ import annotations

import csv
import itertools
import math
import re
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_index.errors import InvalidInputError, listed
from bliss_index.storage.cache import local_file
from bliss_index.store.formats.parquet_footer import require_one_file

_SUFFIXES = ".txt, .csv, .tsv, .npy or .parquet"

KEY_COLUMNS = ("key", "id", "image_path", "path", "url")
"""Columns of a table that name its rows: the first that is there."""

_NAMES_OF_FILES = ("__key__", "file", "file_name", "filename", "filepath", "image", "image_id")

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
        header) and ``.parquet``: the first of `names` that is a column, in whatever case, else the
        only column besides that with the keys: ``key``, or the first of those that name images or
        rows in other tables (``id``, ``path``, ``file_name``, ...). Bytes are UTF-8.
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
            with pq.ParquetFile(file) as table, pa.OSFile(str(file)) as stream:
                require_one_file(str(file), stream, table.metadata.serialized_size)
                return _from_table(file, _parquet_columns(table.read()), names)
        if file.suffix == ".txt":
            text = file.read_text(encoding="utf-8-sig")
            lines = text.removesuffix("\n").split("\n") if text else []
            require_no_table(lines, file)
            return Column(file, lines)
    except (OSError, OverflowError, ValueError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{file} cannot be read: {error}") from error
    raise InvalidInputError(f"{file} is of an unknown type; expected {_SUFFIXES}")


def read_names(path: str | Path, name: str, *, rows: int | None = None) -> list[str]:
    """Read a column of texts in row order; see :func:`read_names_and_keys`."""
    names: list[str] = read_names_and_keys(path, name, rows=rows).values
    return names


def read_names_and_keys(path: str | Path, name: str, *, rows: int | None = None) -> Column:
    """Read a column of texts in row order, and the keys beside them where there are any.

    Raises
    ------
    InvalidInputError
        As :func:`read_column`; also where the number of values is not `rows`, or one is missing.
    """
    column = read_column(path, (name, "text", "name", "key"))
    if rows is not None:
        without_blank_end(column.values, rows)
    if rows is not None and len(column.values) != rows:
        raise InvalidInputError(
            f"{path} holds {len(column.values)} values, the embeddings have {rows} rows"
        )
    for row, value in enumerate(column.values):
        if value is None or value != value:
            raise InvalidInputError(f"{path}: the value in row {row} is missing")
    return replace(column, values=[number_text(value) for value in column.values])


def without_blank_end(values: list[Any], rows: int, blank: tuple[Any, ...] = ("",)) -> None:
    """Take blank lines at the end of a file away where there are more values than rows."""
    while len(values) > rows and values[-1] in blank:
        values.pop()


def number_text(value: Any) -> str:
    """Write a value as a key: 7.0 is 7, as a table writes it that had a value missing."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value)


def texts_of(column: pa.Array | pa.ChunkedArray, name: str, first_row: int = 0) -> list[str | None]:
    """Write a column of a table as texts: bytes are UTF-8, whole numbers have no point.

    Parameters
    ----------
    column
        Of any type but lists, structs and the like.
    name
        Of the file and the column, for messages.
    first_row
        Number of its first row there.

    Raises
    ------
    InvalidInputError
        Bytes are no UTF-8, with the row; or the values are no texts.
    """
    kind = column.type
    if isinstance(column, pa.ChunkedArray):
        parts = iter(column.chunks)
        starts = itertools.accumulate(map(len, column.chunks), initial=first_row)
        return [text for part in parts for text in texts_of(part, name, next(starts))]
    if isinstance(kind, pa.UuidType):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if isinstance(kind, pa.BaseExtensionType):
        return texts_of(column.storage, name, first_row)
    if pa.types.is_dictionary(kind):
        return texts_of(column.dictionary_decode(), name, first_row)
    if is_text(kind) or _is_bytes(kind):
        large = pa.large_binary()
        values = column.cast(large).to_pylist() if is_text(kind) else column.to_pylist()
        return [_decoded(v, f"{name}, row {first_row + i}") for i, v in enumerate(values)]
    if pa.types.is_nested(kind):
        raise InvalidInputError(f"{name} holds values of type {kind}, expected texts or numbers")
    texts: list[str | None] = pc.cast(column, pa.string()).to_pylist()
    if pa.types.is_floating(kind):
        for row, value in enumerate(column.to_pylist()):
            if value is not None and math.isnan(value):
                texts[row] = None
            elif value is not None and value.is_integer():
                texts[row] = str(int(value))
    return texts


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's types of texts."""
    test = pa.types
    return bool(test.is_string(kind) or test.is_large_string(kind) or test.is_string_view(kind))


def is_text_or_bytes(kind: pa.DataType) -> bool:
    """Whether values are texts, or bytes that may be, as they are or in a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_text(kind) or _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    test = pa.types
    return bool(
        test.is_binary(kind)
        or test.is_large_binary(kind)
        or test.is_binary_view(kind)
        or test.is_fixed_size_binary(kind)
    )


def _decoded(value: bytes | None, where: str) -> str | None:
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{where}: the bytes {value[:40]!r} are no UTF-8 ({error.reason} at byte "
            f"{error.start}); write the column as texts"
        ) from error


SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


def csv_reader(lines: Iterable[str], path: Path) -> Any:
    """Read a table whose first line is its header, by ``csv.reader``.

    The separator is that of the name, tab for ``.tsv`` and comma otherwise; where the header has
    none of it, the one that header and second line have equally often, of comma, semicolon, tab
    and bar.

    Raises
    ------
    InvalidInputError
        It is not clear what separates the columns.
    """
    rest = iter(lines)
    begin = list(itertools.islice(rest, 2))
    usual = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]] else ","
    if begin and (said := re.fullmatch(r"sep=([,;|\t])\r?\n?", begin[0])):  # Excel writes it
        return csv.reader(itertools.chain(begin[1:], rest), delimiter=said[1], strict=True)
    widths = [{mark: _width(line, mark) for mark in SEPARATORS} for line in begin]
    separator = usual
    if begin and widths[0][usual] == 1:
        others = [mark for mark in SEPARATORS if widths[0][mark] > 1]
        equal = [mark for mark in others if widths[-1][mark] in (widths[0][mark], 0)]
        if others and len(equal) != 1:
            found = " and ".join(SEPARATORS[mark] for mark in others)
            raise InvalidInputError(
                f"{path}: expected columns separated by {SEPARATORS[usual]}s, but the header "
                f"{begin[0].strip()!r} has none, and {found} "
                f"in another number than the next line; write it with {SEPARATORS[usual]}s, or the "
                "header in quotes"
            )
        separator = equal[0] if others else usual
    return csv.reader(itertools.chain(begin, rest), delimiter=separator, strict=True)


def _width(line: str, separator: str) -> int:
    return len(next(csv.reader([line], delimiter=separator), []))


def require_no_table(lines: Sequence[str], path: Path) -> None:
    """Refuse lines that all have columns where each should be one value; both are named."""
    filled = [line for line in lines if line.strip()]
    for mark in ("\t", ";", "|"):
        counts = {line.count(mark) for line in filled}
        if len(counts) == 1 and counts != {0} and (mark == "\t" or len(filled) > 1):
            raise InvalidInputError(
                f"{path} should hold one value a line, and every line has {counts.pop()} "
                f"{SEPARATORS[mark]}(s), as {filled[0].strip()[:60]!r} has; it is a table: name it "
                ".csv or .tsv and give it a header, such as 'key' and 'label', or keep one column"
            )


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
    if array.dtype.kind == "S":
        return [_decoded(value, f"{file}, row {row}") for row, value in enumerate(array.tolist())]
    if array.dtype.kind in "VO":
        raise InvalidInputError(f"{file} holds values of type {array.dtype}, expected texts")
    if file.stat().st_size > array.offset + array.nbytes:
        raise InvalidInputError(
            f"{file} has {file.stat().st_size} bytes, its header promises "
            f"{array.offset + array.nbytes}; several arrays saved into one file are read by as "
            "many numpy.load(stream) in a row: save them again as one, numpy.concatenate(arrays)"
        )
    return list((array.astype(str) if array.dtype.kind in "mM" else array).tolist())


def _csv_columns(file: Path) -> dict[str, Any]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv_reader(text, file)
        header = [name.strip() for name in next(reader, [])]
        _require_different(file, header, header)
        columns: dict[str, list[str]] = {name: [] for name in header}
        blank = 0
        for row in reader:
            if not row:
                blank += 1  # at the end of the file it says nothing
                continue
            if blank and len(header) == 1:
                columns[header[0]] += [""] * blank
            blank = 0
            if len(row) != len(header):
                raise InvalidInputError(
                    f"{file}, line {reader.line_num}: {len(row)} fields, the header has "
                    f"{len(header)}"
                )
            for name, value in zip(header, row, strict=True):
                columns[name].append(value)
        if len(header) == 1:
            columns[header[0]] += [""] * blank
    return columns


def _parquet_columns(table: pa.Table) -> dict[str, Any]:
    """Columns by name; one of which there are two is None."""
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        columns[name] = None if name in columns else column
    return columns


def _require_different(file: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if list(names).count(name) > 1:
            raise InvalidInputError(f"{file} has two columns {name!r}; rename one")


def _from_table(file: Path, columns: dict[str, Any], names: Sequence[str]) -> Column:
    lowered = [name.strip().lower() for name in columns]
    known = {low: name for low, name in zip(lowered, columns, strict=True)
             if name == low or lowered.count(low) == 1}  # fmt: skip
    named = [known[name] for name in (*KEY_COLUMNS, *_NAMES_OF_FILES) if name in known]
    key = named[0] if named else None
    if names[0] == "key" and key is not None:  # keys are what is asked for
        return Column(file, _texts(file, key, columns))
    found = [known[name] for name in names if name in known and known[name] != key]
    others = [name for name in columns if name != key]
    if found:
        name = found[0]
    elif len(others) == 1:
        name = others[0]
    elif not others and key is not None:  # nothing else is there
        return Column(file, _texts(file, key, columns))
    else:
        raise InvalidInputError(
            f"{file} has no column {' or '.join(map(repr, names))}; its columns are "
            f"{listed(columns) or 'none'}"
        )
    keys = None
    if key is not None:
        keys = [str(text) for text in _texts(file, key, columns)]
    return Column(file, _values(file, name, columns), keys)


def _values(file: Path, name: str, columns: dict[str, Any]) -> list[Any]:
    column = columns[name]
    if isinstance(column, list):
        return column
    if column is None:
        raise InvalidInputError(f"{file} has two columns {name!r}; rename one")
    if is_text_or_bytes(column.type):
        return list(texts_of(column, f"{file}: column {name!r}"))
    return list(column.to_pylist())


def _texts(file: Path, name: str, columns: dict[str, Any]) -> list[Any]:
    column = columns[name]
    if column is None or isinstance(column, list):
        return _values(file, name, columns)
    return list(texts_of(column, f"{file}: column {name!r}"))
