"""Writes an embedding store shard by shard; a killed writer continues where it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import CorruptStoreError, InvalidInputError, JobError, StoreError
from bliss_index.jobs.description import (
    JOB_NAME,
    MANIFEST_NAME,
    JobDescription,
    begun_in,
    library_versions,
    require_same,
)
from bliss_index.jobs.job import find_job, write_manifest
from bliss_index.jobs.manifest import PartFile
from bliss_index.jobs.part import Part
from bliss_index.jobs.record import RECORD_FOLDER, Record, record_name
from bliss_index.jobs.state import remove_leftovers
from bliss_index.storage import open_directory
from bliss_index.storage.locks import locked
from bliss_index.store.identity import ModelIdentity
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.manifest import STORE_KIND, StoreManifest
from bliss_index.store.schema import open_batch
from bliss_index.store.shards import ShardColumns

ROWS_PER_SHARD = 65536


class StoreWriter:
    """Append rows to an embedding store; a context manager.

    Rows are gathered into shards of `rows_per_shard`. A shard is committed like a part of a job:
    its file under a name that says its content, then its record; at the end the manifest. Opened
    again with the same settings on an unfinished store, the writer continues after `rows`, the
    number of rows already committed; give it the rows from there on. The bytes written do not
    depend on interruptions, nor on how rows are split between calls.

    Leaving the ``with`` block without an exception completes the store.

    Parameters
    ----------
    path : str or Path
        Directory to create, or to continue.
    kind : str
        "text" or "image".
    model : ModelIdentity
        The model that made the embeddings.
    dim : int
        Length of an embedding.
    dtype : str, default="float16"
        "float16" or "float32", as stored.
    prompt : str, optional
        Template that the texts were put into.
    metadata : pyarrow.Schema, optional
        Columns to carry besides the store's own.
    rows_per_shard : int, default=65536
        Rows of every shard but the last.
    attributes : dict, optional
        JSON-ready settings that the content depends on.
    distinct_keys : bool, default=False
        Whether the caller knows that no key occurs twice. Keys are then not remembered, which
        would take 16 bytes each.

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
        if rows_per_shard < 1:
            raise InvalidInputError(f"rows_per_shard must be at least 1, got {rows_per_shard}")
        self._columns = ShardColumns(kind, dim, dtype, metadata)
        self.path: Any = path if "://" in str(path) else Path(path)
        self.rows_per_shard = rows_per_shard
        self._pending = _Pending([], 0)
        self._manifest = StoreManifest(
            kind=kind,
            model=model,
            dim=dim,
            dtype=dtype,
            prompt=prompt,
            attributes={**(attributes or {}), "rows_per_shard": rows_per_shard},
            versions=library_versions(),
        )
        self._complete = False
        self._records: dict[int, Record] = {}
        self._directory = open_directory(path)
        found = find_job(self._directory, STORE_KIND, "StoreWriter")
        self._directory.make()
        self._lock = locked(self._directory)
        self._lock.__enter__()
        try:
            self._continue(found)
            self._registry: KeyRegistry | None = None
            if not distinct_keys:
                self._registry = KeyRegistry()
                for keys in self._committed_keys():
                    self._registry.register(keys)
        except BaseException:
            self.release()
            raise

    @property
    def rows(self) -> int:
        """Rows that are committed; after a continuation, where to go on."""
        return sum(record.rows for record in self._records.values())

    @property
    def bad_rows(self) -> int:
        """Committed rows whose status is not "ok"."""
        return sum(record.bad_rows for record in self._records.values())

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
        first_row = self.rows + self._pending.rows
        table = self._columns.table(
            keys, embeddings, texts, status, error, metadata, first_row=first_row
        )
        self._pending.add(table)
        while self._pending.rows >= self.rows_per_shard:
            self._commit(self._pending.take(self.rows_per_shard))

    def close(self) -> StoreManifest:
        """Commit what is left and mark the store complete; return its manifest."""
        if not self._complete:
            if self._pending.rows:
                self._commit(self._pending.take(self._pending.rows))
            remove_leftovers(self._directory, self._records)
            write_manifest(
                self._directory, MANIFEST_NAME, list(self._records.values()), self._manifest.facts()
            )
            self._manifest = replace(self._manifest, shards=_files(self._records))
            self._complete = True
        self.release()
        return self._manifest

    def release(self) -> None:
        """Give up the lock, leaving the store as far as it is committed."""
        self._lock.__exit__(None, None, None)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.release()

    def _continue(self, found: JobDescription | None) -> None:
        """Find what is committed already, or begin."""
        wanted = JobDescription(
            STORE_KIND, self._manifest.settings(), None, {}, library_versions(), begun_in()
        )
        if found is None:
            if wanted.create(self._directory):
                return
            found = JobDescription.read(self._directory)
        if MANIFEST_NAME in self._directory.names():
            done = StoreManifest.read(self.path)
            raise StoreError(
                f"{self.path} already holds a complete {done.kind} store of {done.rows} rows "
                f"({done.model.describe()}); choose another output, or remove it first"
            )
        names = self._directory.names(RECORD_FOLDER)
        if found.settings != wanted.settings and not names:
            self._directory.remove(JOB_NAME)  # nothing was written that it would contradict
            wanted.create(self._directory)
            return
        try:
            require_same(found.settings, wanted.settings, self.path)
        except JobError as error:
            raise StoreError(str(error)) from error
        sizes = self._directory.names()
        for index in range(len(names)):
            try:
                record = Record.read(self._directory, index)
            except (FileNotFoundError, CorruptStoreError):
                break
            if sizes.get(record.file) != record.bytes:
                break
            self._records[index] = record
        for name in names:  # those behind a gap are made again
            if int(name[5:13]) not in self._records:
                self._directory.remove(f"{RECORD_FOLDER}/{name}")

    def _committed_keys(self) -> Iterable[list[str]]:
        for record in self._records.values():
            batch = open_batch(self._directory.mapped(record.file), record.file)
            yield batch.column("key").to_pylist()

    def _commit(self, table: pa.Table) -> None:
        number = len(self._records)
        if self._registry is not None:
            table = self._columns.settled(table, self._registry, self.rows)
        part = Part(number, record_name(number), table.num_rows, "")
        self._records[number] = self._columns.commit(
            self._directory, part, table, given="", began=None
        )


def _files(records: dict[int, Record]) -> tuple[PartFile, ...]:
    return tuple(PartFile.of(record) for record in records.values())


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
