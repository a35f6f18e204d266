"""Rows to the columns of a shard, checked; and the shard to its file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bliss_index.errors import InvalidInputError, listed
from bliss_index.jobs.part import Part
from bliss_index.jobs.record import Record, commit
from bliss_index.storage import Directory
from bliss_index.storage.files import output_error
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.manifest import DTYPES, KINDS, MAX_DIM
from bliss_index.store.normalise import norm_defects
from bliss_index.store.schema import (
    DUPLICATE_KEY,
    OK,
    embedding_column,
    embedding_matrix,
    shard_schema,
    write_shard,
)


class ShardColumns:
    """Makes the columns of a store's shards.

    Parameters
    ----------
    kind : str
        "text" or "image".
    dim : int
        Length of an embedding.
    dtype : str
        "float16" or "float32", as stored.
    metadata : pyarrow.Schema or None
        Columns to carry besides the store's own.

    Attributes
    ----------
    schema : pyarrow.Schema
        Of every shard.

    Raises
    ------
    InvalidInputError
        A value is none of those.
    """

    def __init__(self, kind: str, dim: int, dtype: str, metadata: pa.Schema | None) -> None:
        for name, value, choices in (("kind", kind, KINDS), ("dtype", dtype, DTYPES)):
            if value not in choices:
                raise InvalidInputError(f"{name} must be {' or '.join(choices)}, got {value!r}")
        if not 1 <= dim <= MAX_DIM:
            raise InvalidInputError(f"dim must lie between 1 and {MAX_DIM}, got {dim}")
        self.schema = shard_schema(kind, dim, dtype, metadata)
        self._metadata = metadata
        self._kind, self._dim, self._dtype = kind, dim, dtype

    def table(
        self,
        keys: Sequence[str],
        embeddings: npt.ArrayLike,
        texts: Sequence[str] | None = None,
        status: Sequence[str] | None = None,
        error: Sequence[str | None] | None = None,
        metadata: pa.Table | None = None,
        *,
        first_row: int = 0,
    ) -> pa.Table:
        """Put rows together; see :meth:`bliss_index.store.StoreWriter.append`.

        Raises
        ------
        InvalidInputError
            Lengths, dimension, norms or columns are not as declared.
        """
        rows = np.asarray(embeddings)
        if rows.ndim != 2 or rows.shape[1] != self._dim:
            raise InvalidInputError(
                f"embeddings have shape {rows.shape}, expected (n, {self._dim})"
            )
        n = rows.shape[0]
        given = {"keys": keys, "texts": texts, "status": status, "error": error,
                 "metadata": metadata}  # fmt: skip
        self._require_columns(given, n)
        codes = np.full(n, OK, dtype=object) if status is None else np.asarray(status, dtype=object)
        columns: dict[str, Any] = {"key": pa.array(keys, pa.string())}
        if self._kind == "text":
            columns["text"] = pa.array(texts, pa.string())
        else:
            columns["status"] = pa.array(codes, pa.string())
            columns["error"] = pa.array([None] * n if error is None else error, pa.string())
        columns.update(self._metadata_columns(metadata))
        stored = self._stored(rows, codes == OK, first_row)
        columns["embedding"] = embedding_column(stored, self._dim, self._dtype)
        return pa.table(columns, schema=self.schema)

    def settled(self, table: pa.Table, seen: KeyRegistry, first_row: int) -> pa.Table:
        """Quarantine rows whose key occurred before; in a text store, refuse them."""
        keys = table.column("key").to_pylist()
        repeated = seen.register(keys)
        if not repeated.any():
            return table
        if self._kind == "text":
            rows = np.flatnonzero(repeated)
            raise InvalidInputError(
                f"{rows.size} keys occur more than once, the first is {keys[rows[0]]!r} in row "
                f"{first_row + int(rows[0])}; keys of a text store must be unique"
            )
        status = table.column("status").to_pylist()
        error = table.column("error").to_pylist()
        for row in np.flatnonzero(repeated):
            if status[row] == OK:
                status[row] = DUPLICATE_KEY
                error[row] = "an earlier row has the same key"
        matrix = embedding_matrix(table.column("embedding").combine_chunks(), self._dim).copy()
        matrix[repeated] = 0
        changed = {
            "status": pa.array(status, pa.string()),
            "error": pa.array(error, pa.string()),
            "embedding": embedding_column(matrix, self._dim, self._dtype),
        }
        for name, values in changed.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, self.schema.field(name), values)
        return table

    def commit(
        self,
        directory: Directory,
        part: Part,
        table: pa.Table,
        *,
        given: str,
        began: float | None,
        facts: Mapping[str, Any] | None = None,
    ) -> Record:
        """Write a shard and commit it; see :func:`bliss_index.jobs.record.commit`."""
        content = directory.new_file()
        try:
            write_shard(content.sink, self.schema, [c.combine_chunks() for c in table.columns])
            status: Counter[str] = Counter({OK: table.num_rows})
            if self._kind == "image":
                counts = pc.value_counts(table.column("status")).to_pylist()
                status = Counter({count["values"]: count["counts"] for count in counts})
            return commit(
                directory,
                part,
                content,
                "arrow",
                status=status,
                given=given,
                seconds=0.0 if began is None else time.perf_counter() - began,
                facts=facts,
            )
        except OSError as error_of_system:
            name = f"{directory.uri}/part-{part.index:08d}.arrow"
            raise output_error(name, error_of_system) from error_of_system
        finally:
            content.discard()

    def _require_columns(self, given: dict[str, Sized | None], n: int) -> None:
        """Refuse columns of another length than the embeddings, and those of the other kind."""
        for name, values in given.items():
            if values is not None and len(values) != n:
                raise InvalidInputError(f"{len(values)} {name} for {n} embeddings")
        has_status = given["status"] is not None or given["error"] is not None
        if self._kind == "text":
            if given["texts"] is None or has_status:
                raise InvalidInputError("a text store takes texts with its rows, and no status")
        elif given["texts"] is not None:
            raise InvalidInputError("an image store takes no texts")

    def _stored(
        self, rows: npt.NDArray[Any], good: npt.NDArray[np.bool_], first_row: int
    ) -> npt.NDArray[Any]:
        """Convert rows to the storage type, zero where they are not good; refuse other norms."""
        stored = rows.astype(self._dtype)
        stored[~good] = 0
        defects = norm_defects(stored[good])
        if defects.size:
            named = np.flatnonzero(good)[defects] + first_row
            raise InvalidInputError(
                f"{defects.size} of {good.size} embeddings are not of unit norm (row(s) "
                f"{listed(named.tolist())}); normalise them, or give them another status"
            )
        return stored

    def _metadata_columns(self, metadata: pa.Table | None) -> dict[str, Any]:
        wanted = [] if self._metadata is None else self._metadata.names
        found = [] if metadata is None else metadata.column_names
        if sorted(wanted) != sorted(found):
            raise InvalidInputError(
                f"metadata columns are {sorted(found)}, declared were {sorted(wanted)}"
            )
        return {} if metadata is None else {name: metadata.column(name) for name in wanted}
