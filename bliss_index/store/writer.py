"""Writes an embedding store shard by shard; a killed writer continues where it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import InvalidInputError, StoreError, listed
from bliss_index.jobs.description import MANIFEST_NAME, library_versions
from bliss_index.storage.files import (
    atomic_file,
    make_directory,
    remove_temporaries,
)
from bliss_index.storage.locks import DirectoryLock
from bliss_index.store.identity import ModelIdentity
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.manifest import (
    DTYPES,
    KINDS,
    MAX_DIM,
    ShardRecord,
    StoreManifest,
    shard_name,
)
from bliss_index.store.normalise import norm_defects
from bliss_index.store.schema import (
    DUPLICATE_KEY,
    OK,
    embedding_column,
    embedding_matrix,
    read_shard,
    shard_schema,
    write_shard,
)

ROWS_PER_SHARD = 65536


class StoreWriter:
    """Append rows to an embedding store; a context manager.

    Rows are gathered into shards of `rows_per_shard`. A shard is written under a temporary name,
    fsynced and renamed, then the manifest is replaced: whatever happens, the manifest describes
    whole shards only. Opened again with the same settings on an unfinished store, the writer
    continues after `rows`, the number of rows already committed; give it the rows from there on.
    The bytes written do not depend on interruptions, nor on how rows are split between calls.

    Leaving the ``with`` block without an exception completes the store.

    Parameters
    ----------
    path
        Directory to create, or to continue.
    kind
        "text" or "image".
    model
        The model that made the embeddings.
    dim
        Length of an embedding.
    dtype
        "float16" (default) or "float32", as stored.
    prompt
        Template that the texts were put into.
    metadata
        Columns to carry besides the store's own.
    rows_per_shard
        Rows of every shard but the last.
    attributes
        JSON-ready settings that the content depends on.
    distinct_keys
        Whether the caller knows that no key occurs twice. Keys are then not remembered, which
        would take 8 bytes each.

    Raises
    ------
    StoreError
        The directory holds a complete store, or an unfinished one of other settings (both values
        are named), or something else.
    OutputError
        It cannot be written, or another process is writing it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        kind: str,
        model: ModelIdentity,
        dim: int,
        dtype: str = "float16",
        prompt: str | None = None,
        metadata: pa.Schema | None = None,
        rows_per_shard: int = ROWS_PER_SHARD,
        attributes: dict[str, Any] | None = None,
        distinct_keys: bool = False,
    ) -> None:
        for name, value, choices in (("kind", kind, KINDS), ("dtype", dtype, DTYPES)):
            if value not in choices:
                raise InvalidInputError(f"{name} must be {' or '.join(choices)}, got {value!r}")
        if not 1 <= dim <= MAX_DIM:
            raise InvalidInputError(f"dim must lie between 1 and {MAX_DIM}, got {dim}")
        if rows_per_shard < 1:
            raise InvalidInputError(f"rows_per_shard must be at least 1, got {rows_per_shard}")
        self.path = Path(path)
        self.rows_per_shard = rows_per_shard
        self._schema = shard_schema(kind, dim, dtype, metadata)
        self._metadata = metadata
        self._pending = _Pending([], 0)
        wanted = StoreManifest(
            kind=kind,
            model=model,
            dim=dim,
            dtype=dtype,
            prompt=prompt,
            attributes={**(attributes or {}), "rows_per_shard": rows_per_shard},
            versions=library_versions(),
        )
        make_directory(self.path)
        self._lock = DirectoryLock(self.path)
        self._lock.acquire()
        try:
            remove_temporaries(self.path)
            self._manifest = self._continued(wanted)
            self._registry: KeyRegistry | None = None
            if not distinct_keys:
                self._registry = KeyRegistry(self._committed_keys)
                for keys in self._committed_keys():
                    self._registry.register(keys)
        except BaseException:
            self._lock.release()
            raise

    @property
    def rows(self) -> int:
        """Rows that are committed; after a continuation, where to go on."""
        return self._manifest.rows

    @property
    def last_key(self) -> str:
        """Key of the last committed row; there is one."""
        last = self._manifest.shards[-1]
        return str(read_shard(self.path / last.file, self._schema).column("key")[-1].as_py())

    @property
    def bad_rows(self) -> int:
        """Committed rows whose status is not "ok"."""
        return self._manifest.bad_rows

    def append(
        self,
        keys: Sequence[str],
        embeddings: npt.ArrayLike,
        texts: Sequence[str] | None = None,
        status: Sequence[str] | None = None,
        error: Sequence[str | None] | None = None,
        metadata: pa.Table | None = None,
    ) -> None:
        """Add rows.

        Parameters
        ----------
        keys
            n identifiers. In an image store a key that occurred before quarantines its row; in a
            text store it is an error.
        embeddings
            (n, dim), unit norm where the status is "ok"; stored as zero elsewhere.
        texts
            n entries; for a text store only, and needed there.
        status, error
            n codes, "ok" where the embedding is good, and n reasons or None; image stores only.
        metadata
            n rows of the columns declared.

        Raises
        ------
        InvalidInputError
            Lengths, dimension, norms or columns are not as declared; nothing is added.
        """
        rows = np.asarray(embeddings)
        if rows.ndim != 2 or rows.shape[1] != self._manifest.dim:
            raise InvalidInputError(
                f"embeddings have shape {rows.shape}, expected (n, {self._manifest.dim})"
            )
        n = rows.shape[0]
        given = {"keys": keys, "texts": texts, "status": status, "error": error,
                 "metadata": metadata}  # fmt: skip
        self._require_columns(given, n)
        codes = np.full(n, OK, dtype=object) if status is None else np.asarray(status, dtype=object)
        columns: dict[str, Any] = {"key": pa.array(keys, pa.string())}
        if self._manifest.kind == "text":
            columns["text"] = pa.array(texts, pa.string())
        else:
            columns["status"] = pa.array(codes, pa.string())
            columns["error"] = pa.array([None] * n if error is None else error, pa.string())
        columns.update(self._metadata_columns(metadata))
        stored = self._stored(rows, codes == OK)
        columns["embedding"] = embedding_column(stored, self._manifest.dim, self._manifest.dtype)
        self._pending.add(pa.table(columns, schema=self._schema))
        while self._pending.rows >= self.rows_per_shard:
            self._commit(self._pending.take(self.rows_per_shard))

    def close(self) -> StoreManifest:
        """Commit what is left and mark the store complete; return its manifest."""
        if not self._manifest.complete:
            if self._pending.rows:
                self._commit(self._pending.take(self._pending.rows))
            self._manifest = replace(self._manifest, complete=True)
            self._manifest.write(self.path)
        self.release()
        return self._manifest

    def release(self) -> None:
        """Give up the lock, leaving the store as far as it is committed."""
        self._lock.release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.release()

    def _require_columns(self, given: dict[str, Sized | None], n: int) -> None:
        """Refuse columns of another length than the embeddings, and those of the other kind."""
        for name, values in given.items():
            if values is not None and len(values) != n:
                raise InvalidInputError(f"{len(values)} {name} for {n} embeddings")
        has_status = given["status"] is not None or given["error"] is not None
        if self._manifest.kind == "text":
            if given["texts"] is None or has_status:
                raise InvalidInputError("a text store takes texts with its rows, and no status")
        elif given["texts"] is not None:
            raise InvalidInputError("an image store takes no texts")

    def _stored(self, rows: npt.NDArray[Any], good: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Convert rows to the storage type, zero where they are not good; refuse other norms."""
        stored = rows.astype(self._manifest.dtype)
        stored[~good] = 0
        defects = norm_defects(stored[good])
        if defects.size:
            named = np.flatnonzero(good)[defects] + self.rows + self._pending.rows
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

    def _continued(self, wanted: StoreManifest) -> StoreManifest:
        """Return the manifest to go on from, after removing what it does not know."""
        if not (self.path / MANIFEST_NAME).exists():
            strangers = sorted(p.name for p in self.path.iterdir() if not _may_stay(p.name))
            if strangers:
                raise StoreError(
                    f"{self.path} is not empty and not a store (it holds {strangers[0]!r}); "
                    "choose another output"
                )
            wanted.write(self.path)
            return wanted
        found = StoreManifest.read(self.path)
        if found.complete:
            raise StoreError(
                f"{self.path} already holds a complete {found.kind} store of {found.rows} rows "
                f"({found.model.describe()}); choose another output, or remove it first"
            )
        if not found.shards:  # nothing was written that other settings would contradict
            wanted.write(self.path)
            return wanted
        before, now = _flat(found.settings()), _flat(wanted.settings())
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise StoreError(
                    f"{self.path} was begun with {name} {before.get(name)!r}, now it is "
                    f"{now.get(name)!r}; continue with the same settings, or choose another output"
                )
        known = {shard.file for shard in found.shards}
        for leftover in self.path.glob("shard-*.arrow"):
            if leftover.name not in known:
                leftover.unlink()
        return found

    def _committed_keys(self) -> Iterable[list[str]]:
        for shard in self._manifest.shards:
            yield read_shard(self.path / shard.file, self._schema).column("key").to_pylist()

    def _commit(self, table: pa.Table) -> None:
        table = self._settle_duplicates(table)
        number = len(self._manifest.shards)
        path = self.path / shard_name(number)
        with atomic_file(path) as sink:
            write_shard(sink, self._schema, [column.combine_chunks() for column in table.columns])
            size, digest = sink.size, sink.sha256
        bad = 0
        if self._manifest.kind == "image":
            bad = sum(code != OK for code in table.column("status").to_pylist())
        record = ShardRecord(path.name, table.num_rows, size, digest, bad)
        self._manifest = replace(self._manifest, shards=(*self._manifest.shards, record))
        self._manifest.write(self.path)

    def _settle_duplicates(self, table: pa.Table) -> pa.Table:
        """Quarantine rows whose key occurred before; in a text store, refuse them."""
        if self._registry is None:
            return table
        keys = table.column("key").to_pylist()
        repeated = self._registry.register(keys)
        if not repeated.any():
            return table
        if self._manifest.kind == "text":
            rows = np.flatnonzero(repeated)
            raise InvalidInputError(
                f"{rows.size} keys occur more than once, the first is {keys[rows[0]]!r} in row "
                f"{self.rows + int(rows[0])}; keys of a text store must be unique"
            )
        status = table.column("status").to_pylist()
        error = table.column("error").to_pylist()
        for row in np.flatnonzero(repeated):
            if status[row] == OK:
                status[row] = DUPLICATE_KEY
                error[row] = "an earlier row has the same key"
        column = table.column("embedding").combine_chunks()
        matrix = embedding_matrix(column, self._manifest.dim).copy()
        matrix[repeated] = 0
        changed = {
            "status": pa.array(status, pa.string()),
            "error": pa.array(error, pa.string()),
            "embedding": embedding_column(matrix, self._manifest.dim, self._manifest.dtype),
        }
        for name, values in changed.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, self._schema.field(name), values)
        return table


@dataclass
class _Pending:
    """Rows that wait until a shard is full."""

    tables: list[pa.Table]
    rows: int

    def add(self, table: pa.Table) -> None:
        self.tables.append(table)
        self.rows += table.num_rows

    def take(self, rows: int) -> pa.Table:
        """Remove the first `rows` rows and return them."""
        whole = pa.concat_tables(self.tables)
        rest = whole.slice(rows)
        self.tables = [rest] if rest.num_rows else []
        self.rows = rest.num_rows
        return whole.slice(0, rows)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings under both their names, so that a message shows only what differs."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            result.update({f"{name} {inner}": item for inner, item in value.items()})
        else:
            result[name] = value
    return result


def _may_stay(name: str) -> bool:
    # Hidden files are ours (lock, temporaries) or the file system's.
    return name.startswith(".") or (name.startswith("shard-") and name.endswith(".arrow"))
