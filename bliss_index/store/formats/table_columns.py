"""Which columns of a table are the embeddings, keys and texts, and what stands in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bliss_index.errors import InvalidInputError, listed
from bliss_index.store.columns import KEY_COLUMNS, is_text_or_bytes
from bliss_index.store.formats.declared_bytes import SAMPLE_ROWS, require_declared
from bliss_index.store.source_reader import ColumnNames

MISSING_EMBEDDING = "missing_embedding"
WRONG_DIMENSION = "wrong_dimension"
EMBEDDING_COLUMNS = ("embedding", "embeddings", "image_embedding", "text_embedding", "vector")
_TEXT_FIRST = ("embedding", "embeddings", "text_embedding", "image_embedding", "vector")
TEXT_COLUMNS = ("text", "caption", "word", "name", "label")
_WIDE = 16  # so many columns of numbers are an embedding, one coordinate each


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a table are what.

    Attributes
    ----------
    embedding, key, text
        Names; None where there is none.
    carried
        The others, under names that are different.
    values
        Type of the values of an embedding that is stored as bytes; None where it is a list.
    dtype
        Type that holds unit rows of it: "float16" or "float32".
    size
        Its dimension where the type of the column says so, else 0.
    """

    embedding: str | None
    key: str | None
    text: str | None
    carried: pa.Schema
    values: str | None = None
    dtype: str = "float32"
    size: int = 0

    @classmethod
    def find(
        cls, file: str, schema: pa.Schema, wanted: ColumnNames, *, texts: bool, embedded: bool
    ) -> TableColumns:
        """Recognise the columns of a file.

        Without `texts`, a text column is carried; without `embedded` the table describes rows whose
        embeddings are elsewhere.

        Raises
        ------
        InvalidInputError
            A column is missing, is there twice, or is of a type that holds no embedding.
        """
        embedding, values, dtype, size = None, None, "float32", 0
        if embedded:
            embedding = _embedding_column(file, schema, wanted, usual_names(texts))
            kind = _storage(schema.field(schema.names.index(embedding)).type)
            if pa.types.is_null(kind):
                pass  # as tables are written that have no value there at all
            elif is_text_or_bytes(kind):
                values = dtype = _declared(file, embedding, kind, wanted)
                if pa.types.is_fixed_size_binary(kind):
                    size = kind.byte_width // np.dtype(values).itemsize
            else:
                if wanted.dtype is not None:
                    raise InvalidInputError(
                        f"{file}: column {embedding!r} is of type {kind}, which needs no declared "
                        "type; leave --embedding-dtype out"
                    )
                dtype = "float16" if kind.value_type == pa.float16() else "float32"
                size = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
        key = _column(file, schema.names, wanted.key, KEY_COLUMNS)
        text = _column(file, schema.names, wanted.text, TEXT_COLUMNS) if texts else None
        names = (embedding, key, text)
        for name in names:
            if schema.names.count(name) > 1:
                raise InvalidInputError(f"{file} has two columns {name!r}; rename one")
        others = [field for field in schema if field.name not in names]
        different = different_names([field.name for field in others])
        carried = pa.schema(f.with_name(n) for f, n in zip(others, different, strict=True))
        return cls(*names, carried, values, "float16" if dtype == "float16" else "float32", size)

    @property
    def names(self) -> list[str]:
        """The columns that are not carried."""
        return [n for n in (self.embedding, self.key, self.text) if n is not None]

    def dimension(self, file: str, batches: Iterable[pa.RecordBatch]) -> int:
        """Find the dimension that most of the first embeddings have; 0 where there are none.

        Raises
        ------
        InvalidInputError
            They are bytes, and not of the type that was declared.
        """
        if self.embedding is None or (self.size and self.values is None):
            return self.size
        unit = 1 if self.values is None else np.dtype(self.values).itemsize
        for batch in batches:
            column = plain_list(batch.column(self.embedding))
            lengths = _lengths(column)
            counts = Counter(lengths.tolist())
            found = [(count, length) for length, count in counts.items() if length > 0]
            if not found:
                continue
            length = int(max(found)[1])
            if length % unit:
                raise InvalidInputError(
                    f"{file}: column {self.embedding!r} holds {length} bytes a row, which are no "
                    f"{self.values} values of {unit} bytes; declare another --embedding-dtype"
                )
            if self.values is not None:
                fitting = np.flatnonzero(lengths == length)[:SAMPLE_ROWS]
                sample = column.take(pa.array(fitting)).to_pylist()
                require_declared(file, self.embedding, sample, self.values)
            return length // unit
        return self.size


def _storage(kind: pa.DataType) -> pa.DataType:
    """What a tensor is stored as; any other type as it is."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def plain_list(column: pa.Array) -> pa.Array:
    """A column of embeddings as Arrow's functions take it."""
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    kind = column.type
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        # Arrow's cast loses the last row (26.0).
        starts, sizes = column.offsets.to_numpy(), column.sizes.to_numpy()
        places = [np.arange(at, at + size) for at, size in zip(starts, sizes, strict=True)]
        values = column.values.take(pa.array(np.concatenate([np.empty(0, np.int64), *places])))
        ends = pa.array(np.cumsum([0, *sizes]), pa.int64())
        return pa.LargeListArray.from_arrays(ends, values, mask=column.is_null())
    return column.cast(pa.large_binary()) if pa.types.is_binary_view(kind) else column


def _is_vector(kind: pa.DataType) -> bool:
    kind, test = _storage(kind), pa.types
    is_list = test.is_list(kind) or test.is_large_list(kind) or test.is_fixed_size_list(kind)
    is_list = is_list or test.is_list_view(kind) or test.is_large_list_view(kind)
    return bool(is_list and test.is_floating(kind.value_type))


def _is_bytes(kind: pa.DataType) -> bool:
    kind, test = _storage(kind), pa.types
    return bool(is_text_or_bytes(kind) and not test.is_dictionary(kind) and "binary" in str(kind))


def different_names(names: Sequence[str]) -> list[str]:
    """Names of columns that are carried: the second 'x' is called 'x_2'."""
    taken, different = set(names), list[str]()
    for name in names:
        other, number = name, 2
        while other in different or (other != name and other in taken):
            other, number = f"{name}_{number}", number + 1
        different.append(other)
    return different


def _first_of(names: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in names), None)


def _column(
    file: str, names: Sequence[str], wanted: str | None, known: Sequence[str]
) -> str | None:
    if wanted is not None and wanted not in names:
        raise InvalidInputError(f"{file} has no column {wanted!r}; it has {listed(names)}")
    return wanted or _first_of(names, known)


def usual_names(texts: bool) -> tuple[str, ...]:
    """Names that embeddings usually have, of texts or of images, the likeliest first."""
    return _TEXT_FIRST if texts else EMBEDDING_COLUMNS


def _embedding_column(
    file: str, schema: pa.Schema, wanted: ColumnNames, usual: tuple[str, ...]
) -> str:
    lists = [field.name for field in schema if _is_vector(field.type)]
    binary = [field.name for field in schema if _is_bytes(field.type)]
    fit = binary if binary and wanted.dtype is not None else lists
    found = wanted.embedding or _first_of(fit, usual)
    if found is None:
        found = fit[0] if len(fit) == 1 else None if fit else _first_of(binary, usual)
    nulls = [field.name for field in schema if pa.types.is_null(field.type)]
    if found is None and not fit:
        found = _first_of(nulls, usual)
    if found is not None and found in (*lists, *binary, *nulls):
        return found
    columns = listed([f"{field.name} ({field.type})" for field in schema])
    if found is None and fit:
        raise InvalidInputError(
            f"{file} has {len(fit)} columns that may be the embeddings: {listed(fit)}; name one "
            f"with --embedding-column. Its {len(schema)} columns are {columns}"
        )
    names = EMBEDDING_COLUMNS if found is None else (found,)
    raise InvalidInputError(
        f"{file} has no column {' or '.join(map(repr, names))} with lists of floats; its "
        f"columns are {columns}{_hint(schema, found, lists)}"
    )


def _hint(schema: pa.Schema, wanted: str | None, lists: list[str]) -> str:
    """What to do about a table without a column of embeddings."""
    numbers = [field.name for field in schema if pa.types.is_floating(field.type)]
    if lists:
        return f"; of {listed(lists)} name one with --embedding-column"
    if wanted is None and len(numbers) >= _WIDE:
        return (
            f"; {len(numbers)} are numbers, as if each were a coordinate. Write them as one: "
            "import pandas; t = pandas.read_parquet(old); x = t.select_dtypes('float'); "
            "t.drop(columns=x.columns).assign(embedding=list(x.to_numpy('float32')))"
            ".to_parquet(new)"
        )
    for field in schema:
        kind = _storage(field.type)
        if pa.types.is_struct(kind) and kind.get_field_index("values") >= 0:
            return (
                f"; {field.name!r} looks like a vector of Spark's: write it with "
                "pyspark.ml.functions.vector_to_array"
            )
        if field.name not in ((wanted,) if wanted else EMBEDDING_COLUMNS):
            continue
        if is_text_or_bytes(kind):
            return (
                "; where its texts are JSON, parse them: import json, pandas; "
                f"t = pandas.read_parquet(old); t[{field.name!r}] = t[{field.name!r}]"
                ".map(json.loads); t.to_parquet(new)"
            )
        if pa.types.is_nested(kind):
            return "; write it as lists of float32, one a row"
    return ""


def _declared(file: str, column: str, kind: pa.DataType, wanted: ColumnNames) -> str:
    """Type of the values of a column of bytes."""
    if not _is_bytes(kind):
        raise InvalidInputError(
            f"{file}: column {column!r} is of type {kind}, expected lists of floats, or bytes of "
            "them with --embedding-dtype"
        )
    if wanted.dtype is None:
        raise InvalidInputError(
            f"{file}: column {column!r} holds bytes ({kind}), and nothing says of which type the "
            "values are; declare it, such as --embedding-dtype float32 or float16"
        )
    return wanted.dtype


def _lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Values or bytes in each row; -1 where it is null."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), -1)
    if pa.types.is_fixed_size_binary(kind):
        lengths = np.full(len(column), kind.byte_width)
        lengths[column.is_null().to_numpy(zero_copy_only=False)] = -1
        return lengths
    measure = pc.list_value_length if pa.types.is_nested(kind) else pc.binary_length
    found: npt.NDArray[np.int64] = pc.fill_null(measure(column), -1).to_numpy(zero_copy_only=False)
    return found


def matrix_of(
    column: pa.Array, dim: int, values: str | None, errors: dict[int, tuple[str, str]]
) -> npt.NDArray[Any]:
    """Turn a column into (n, dim), noting rows that are null or of another length."""
    lengths = _lengths(column)
    unit = 1 if values is None else np.dtype(values).itemsize
    fits = lengths == dim * unit
    for row in np.flatnonzero(~fits):
        if lengths[row] < 0:
            errors[int(row)] = (MISSING_EMBEDDING, "the embedding is null")
        elif values is not None:
            reason = f"the embedding has {lengths[row]} bytes, not {dim * unit}"
            errors[int(row)] = (WRONG_DIMENSION, reason)
        else:
            reason = f"the embedding has dimension {lengths[row]}, not {dim}"
            errors[int(row)] = (WRONG_DIMENSION, reason)
    if pa.types.is_null(column.type):
        return np.zeros((len(column), dim), np.float32)
    kept = column if fits.all() else column.filter(pa.array(fits))
    if values is not None:
        wire = np.dtype(values).newbyteorder("<")
        found = np.frombuffer(b"".join(kept.to_pylist()), wire).astype(values, copy=False)
    else:  # a null value within an embedding becomes NaN, and its row is not finite
        found = kept.flatten().to_numpy(zero_copy_only=False)
    matrix: npt.NDArray[Any] = np.zeros((len(column), dim), dtype=found.dtype)
    matrix[fits] = found.reshape(-1, dim)
    return matrix
