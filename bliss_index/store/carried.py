"""Columns that are carried beside embeddings and images: those of several files as those of one."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from bliss_index.errors import InvalidInputError


def unified(files: Iterable[tuple[str, pa.Schema]]) -> pa.Schema | None:
    """Put the columns of files, each a name and a schema, together; None where there is no file.

    A column that one file lacks is null in its rows. Types that differ become one that holds
    all values, such as floats of integers; what does not fit it is refused as it is read.

    Raises
    ------
    InvalidInputError
        Types of a column differ and no type holds both.
    """
    schema: pa.Schema | None = None
    seen: dict[str, str] = {}
    for name, own in files:
        if schema is not None and own.equals(schema):
            continue
        schema = own if schema is None else _added(schema, own, seen, name)
        for column in own.names:
            seen.setdefault(column, name)
    return schema and pa.schema(column.with_nullable(True) for column in schema)


def as_carried(table: pa.Table, rows: int, schema: pa.Schema, name: str) -> pa.Table:
    """Write the columns of one file, of so many rows, as those of all.

    Raises
    ------
    InvalidInputError
        A value does not fit the type that all files have in common.
    """
    columns = []
    for wanted in schema:
        if wanted.name not in table.column_names:
            columns.append(pa.nulls(rows, wanted.type))
            continue
        column = table.column(wanted.name)
        columns.append(cast(column, wanted.type, f"{name}: column {wanted.name!r}"))
    return pa.table(columns, schema=schema)


def too_large(
    name: str, table: pa.Table | pa.RecordBatch, found: int, most: int
) -> InvalidInputError:
    """The error of columns that take more bytes than the file says, with the largest of them."""
    sizes = {column: table.column(column).nbytes for column in table.column_names}
    largest = max(sizes, key=lambda column: sizes[column])
    return InvalidInputError(
        f"other columns of {name} take more than {found} bytes, {sizes[largest]} of the last "
        f"{table.num_rows} rows in column {largest!r}, its footer says {most} at most; write it "
        "again with use_dictionary=False and row_group_size=1000, or without its large columns"
    )


def cast(
    column: pa.Array | pa.ChunkedArray, kind: pa.DataType, name: str
) -> pa.Array | pa.ChunkedArray:
    """Write a column in the type that the files have in common; InvalidInputError as above."""
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise InvalidInputError(
            f"{name} is of type {column.type}, with the other files' it becomes {kind}, which does "
            f"not hold all values ({error}); write the column with one type in all files, or leave "
            "it out"
        ) from error


def _added(schema: pa.Schema, own: pa.Schema, seen: dict[str, str], name: str) -> pa.Schema:
    """Put the columns of another file to those of earlier ones."""
    for column in own:
        if column.name not in schema.names:
            schema = schema.append(column.with_nullable(True))
            continue
        number = schema.names.index(column.name)
        before = schema.field(number)
        if before.type == column.type:
            continue
        kinds = [pa.schema([("x", _plain(kind))]) for kind in (before.type, column.type)]
        try:
            both = pa.unify_schemas(kinds, promote_options="permissive").field(0).type
            if pa.types.is_floating(both) and any(map(pa.types.is_decimal, _types(kinds))):
                raise pa.ArrowInvalid("decimals are no floats")  # which Arrow rounds
        except pa.ArrowException as error:
            raise InvalidInputError(
                f"column {column.name!r} is of type {before.type} in {seen[column.name]} and of "
                f"type {column.type} in {name}, and no type holds both; write it alike in all "
                "files, or leave it out"
            ) from error
        schema = schema.set(number, before.with_type(both).with_nullable(True))
    return schema


def _types(schemas: Iterable[pa.Schema]) -> list[pa.DataType]:
    return [schema.field(0).type for schema in schemas]


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, where others than Arrow's plain ones cannot be put together."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return pa.string() if pa.types.is_string_view(kind) else kind
