"""The columns of a shard, and the way from Arrow to numpy and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import CorruptStoreError, InvalidInputError

OK = "ok"
ZERO_EMBEDDING = "zero_embedding"
NONFINITE_EMBEDDING = "nonfinite_embedding"
DUPLICATE_KEY = "duplicate_key"
RESERVED_COLUMNS = ("key", "text", "status", "error", "embedding")


def shard_schema(kind: str, dim: int, dtype: str, metadata: pa.Schema | None = None) -> pa.Schema:
    """Columns of a shard: key, text or status and error, carried metadata, embedding."""
    fields = [pa.field("key", pa.string(), nullable=False)]
    if kind == "text":
        fields.append(pa.field("text", pa.string(), nullable=False))
    else:
        fields.append(pa.field("status", pa.string(), nullable=False))
        fields.append(pa.field("error", pa.string()))
    for field in metadata or ():
        if field.name in RESERVED_COLUMNS:
            raise InvalidInputError(
                f"metadata column {field.name!r} has the name of one of the store's own columns "
                f"({', '.join(RESERVED_COLUMNS)}); rename it"
            )
        fields.append(field)
    fields.append(pa.field("embedding", embedding_type(dim, dtype), nullable=False))
    return pa.schema(fields)


def carried_names(names: Sequence[str]) -> list[str]:
    """Names of other people's columns in a store: the store's own get 'source_' before them."""
    taken = {*names, *RESERVED_COLUMNS}
    result = []
    for name in names:
        carried = name
        if name in RESERVED_COLUMNS:
            carried = f"source_{name}"
            while carried in taken:
                carried = f"source_{carried}"
            taken.add(carried)
        result.append(carried)
    return result


def embedding_type(dim: int, dtype: str) -> pa.DataType:
    """Arrow type of an embedding column."""
    value = pa.float16() if dtype == "float16" else pa.float32()
    return pa.list_(pa.field("item", value, nullable=False), dim)


def embedding_column(matrix: npt.NDArray[Any], dim: int, dtype: str) -> pa.Array:
    """Turn a (n, dim) matrix into an embedding column; no copy where its dtype is the column's."""
    flat = pa.array(np.ascontiguousarray(matrix, dtype=dtype).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=embedding_type(dim, dtype))


def embedding_matrix(column: pa.Array, dim: int) -> npt.NDArray[Any]:
    """View a fixed-size-list column without nulls as a read-only (n, dim) matrix."""
    if column.null_count:
        raise InvalidInputError(f"{column.null_count} embeddings are null")
    values = column.flatten()
    if len(values) != len(column) * dim:
        raise InvalidInputError(
            f"embeddings hold {len(values)} values in {len(column)} rows, expected {dim} a row"
        )
    matrix: npt.NDArray[Any] = values.to_numpy(zero_copy_only=True).reshape(len(column), dim)
    return matrix


def write_shard(sink: Any, schema: pa.Schema, columns: Sequence[pa.Array]) -> None:
    """Write one record batch as an Arrow IPC file, uncompressed so that readers can map it."""
    batch = pa.record_batch(list(columns), schema=schema)
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def open_batch(data: pa.Buffer, name: Path | str) -> pa.RecordBatch:
    """Open the one record batch of a shard's bytes; CorruptStoreError where there is none."""
    try:
        reader = pa.ipc.open_file(pa.BufferReader(data))
        if reader.num_record_batches != 1:
            raise CorruptStoreError(
                f"{name} holds {reader.num_record_batches} record batches, expected 1"
            )
        batch = reader.get_batch(0)
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptStoreError(f"{name} is not readable as Arrow IPC: {error}") from error
    return batch


def require_columns(batch: pa.RecordBatch, expected: pa.Schema, name: Path | str) -> None:
    """Refuse a shard without one of the expected columns, or of another type."""
    try:
        names = batch.schema.names  # of a damaged file they may be no UTF-8
    except ValueError as error:
        raise CorruptStoreError(f"{name} is not readable as Arrow IPC: {error}") from error
    for field in expected:
        if field.name not in names:
            raise CorruptStoreError(f"{name} has no column {field.name!r}")
        found = batch.schema.field(field.name).type
        if found != field.type:
            raise CorruptStoreError(
                f"{name}: column {field.name!r} has type {found}, expected {field.type}"
            )
