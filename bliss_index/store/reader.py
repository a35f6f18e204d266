"""Reads embedding stores, memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.devices import thread_count
from bliss_index.errors import CorruptStoreError, InvalidInputError, StoreError
from bliss_index.jobs.manifest import PartFile
from bliss_index.storage import open_directory
from bliss_index.storage.cache import local_copy
from bliss_index.storage.directory import LocalDirectory
from bliss_index.storage.files import is_address
from bliss_index.storage.hashing import CheckCancelled, file_sha256, stream_sha256
from bliss_index.store.identity import ModelIdentity
from bliss_index.store.manifest import StoreManifest
from bliss_index.store.schema import (
    OK,
    RESERVED_COLUMNS,
    embedding_matrix,
    open_batch,
    require_columns,
    shard_schema,
)

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Shard:
    """The rows of one shard.

    Attributes
    ----------
    index
        Position in the store.
    start
        Row of the store that is this shard's first.
    batch
        Its columns, memory-mapped.
    dim
        Length of an embedding.
    """

    index: int
    start: int
    batch: pa.RecordBatch
    dim: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.batch.num_rows)

    @cached_property
    def embeddings(self) -> npt.NDArray[Any]:
        """(rows, dim) read-only view of the mapped file; rows that are not ok are zero."""
        return embedding_matrix(self.batch.column("embedding"), self.dim)

    @property
    def keys(self) -> list[str]:
        """Identifiers of the rows."""
        return list(self.batch.column("key").to_pylist())

    @property
    def texts(self) -> list[str] | None:
        """Entries of a text store; None in an image store."""
        return self._column("text")

    @property
    def status(self) -> list[str]:
        """A code per row, "ok" where the embedding is good."""
        return self._column("status") or [OK] * self.rows

    @property
    def error(self) -> list[str | None]:
        """A reason per row, or None."""
        return self._column("error") or [None] * self.rows

    @cached_property
    def good(self) -> npt.NDArray[np.bool_]:
        """(rows,) whether a row's status is "ok"."""
        return np.fromiter((code == OK for code in self.status), dtype=bool, count=self.rows)

    def metadata(self) -> pa.Table:
        """The carried columns."""
        own = [name for name in self.batch.schema.names if name not in RESERVED_COLUMNS]
        return pa.Table.from_batches([self.batch]).select(own)

    def _column(self, name: str) -> list[Any] | None:
        if name not in self.batch.schema.names:
            return None
        return list(self.batch.column(name).to_pylist())


class EmbeddingStore:
    """An embedding store on disk, read-only.

    What is read is compared with the manifest's hashes, each shard once.

    Open one with :meth:`open`::

        store = EmbeddingStore.open("corpus")
        store.embeddings().shape  # (1860, 512)
    """

    def __init__(self, path: str | Path, manifest: StoreManifest, copy: Path | None = None) -> None:
        self.path: Any = path
        self.manifest = manifest
        self._directory = open_directory(path if copy is None else copy)
        starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])
        self._starts: list[int] = starts.tolist()
        self._checked: set[int] = set()
        self._last: tuple[int, pa.Buffer] | None = None

    @classmethod
    def open(cls, path: str | Path, *, kind: str | None = None) -> EmbeddingStore:
        """Open a complete store.

        Parameters
        ----------
        path
            Its directory.
        kind
            Insist on a "text" or an "image" store; by default either will do.

        Raises
        ------
        StoreError
            There is no store, it is not complete, or it is of another kind.
        CorruptStoreError
            Its manifest is damaged.
        """
        directory: str | Path = str(path) if is_address(path) else Path(path)
        manifest = StoreManifest.read(directory)
        if kind is not None and manifest.kind != kind:
            raise StoreError(
                f"{directory} is a store of {manifest.kind} embeddings, here one of {kind} "
                "embeddings is needed"
            )
        # All of a vocabulary is read, by every worker; of images, shard after shard.
        return cls(directory, manifest, local_copy(directory) if kind == "text" else None)

    @property
    def kind(self) -> str:
        """Either "text" or "image"."""
        return self.manifest.kind

    @property
    def model(self) -> ModelIdentity:
        """The model that made the embeddings."""
        return self.manifest.model

    @property
    def prompt(self) -> str | None:
        """Template that texts were put into before encoding."""
        return self.manifest.prompt

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.manifest.dim

    @property
    def dtype(self) -> str:
        """Storage type, "float16" or "float32"."""
        return self.manifest.dtype

    @property
    def rows(self) -> int:
        """Number of rows, bad ones included."""
        return self.manifest.rows

    @property
    def bad_rows(self) -> int:
        """Number of rows whose status is not "ok"."""
        return self.manifest.bad_rows

    @property
    def shards(self) -> Sequence[PartFile]:
        """The manifest's records of the shards."""
        return self.manifest.shards

    @property
    def content_hash(self) -> str:
        """SHA-256 over the model, the settings and all shards."""
        return self.manifest.content_hash

    @property
    def attributes(self) -> dict[str, Any]:
        """Settings recorded by whoever wrote the store."""
        return dict(self.manifest.attributes)

    def describe(self) -> str:
        """Say in a few words what it holds, for messages."""
        return f"{self.kind} store {self.path}"

    def shard(self, index: int, *, check_hash: bool = True, in_memory: bool = False) -> Shard:
        """Map one shard.

        Parameters
        ----------
        index
            Its position.
        check_hash : bool, default=True
            Compare its SHA-256 with the manifest's, unless that was done before by this object.
            Who turns it off calls :meth:`check_hash` before anything that was read counts.
        in_memory : bool, default=False
            Read the file rather than map it: where another process may cut it off in place, which
            ends every process that has it mapped. Costs the shard's bytes.

        Raises
        ------
        CorruptStoreError
            The file is missing, truncated, or not what the manifest says.
        """
        record = self.manifest.shards[index]
        if check_hash and index not in self._checked:
            self.check_hash(index)
        name = f"{self._directory.uri}/{record.file}"
        content = self._content(index)
        if in_memory and isinstance(self._directory, LocalDirectory):
            content = pa.py_buffer(self._directory.read(record.file))
        batch = open_batch(content, name)
        require_columns(batch, shard_schema(self.kind, self.dim, self.dtype), name)
        if batch.num_rows != record.rows:
            raise CorruptStoreError(
                f"{name} holds {batch.num_rows} rows, the manifest says {record.rows}"
            )
        return Shard(index, self._starts[index], batch, self.dim)

    def check_hash(self, index: int, check_cancelled: CheckCancelled | None = None) -> str:
        """Read a shard's whole file; return its SHA-256. `check_cancelled` may end it early.

        Those of object stores are compared as they are fetched, and not fetched again.

        Raises
        ------
        CorruptStoreError
            The file cannot be read, or has another size or hash than the manifest says.
        """
        record = self.manifest.shards[index]
        if index in self._checked and not isinstance(self._directory, LocalDirectory):
            return record.sha256
        self._content(index)
        if isinstance(self._directory, LocalDirectory):
            try:
                digest = file_sha256(self._directory.path / record.file, check_cancelled)
            except OSError as error:
                name = f"{self._directory.uri}/{record.file}"
                raise CorruptStoreError(f"{name} cannot be read: {error.strerror}") from error
            self._compare(index, digest)
        return record.sha256

    def _compare(self, index: int, digest: str) -> None:
        record = self.manifest.shards[index]
        if digest != record.sha256:
            raise CorruptStoreError(
                f"{self._directory.uri}/{record.file} has SHA-256 {digest}, the manifest says "
                f"{record.sha256}: altered; {self._remedy}"
            )
        self._checked.add(index)

    def _content(self, index: int) -> pa.Buffer:
        """Bytes of a shard; CorruptStoreError if their number is not the manifest's.

        An object store's shard is compared as it is fetched, and the last one is kept.
        """
        record = self.manifest.shards[index]
        name = f"{self._directory.uri}/{record.file}"
        if self._last is not None and self._last[0] == index:
            return self._last[1]
        try:
            content = self._directory.mapped(record.file)
        except FileNotFoundError as error:
            reason = "No such file or directory"
            raise CorruptStoreError(f"{name} cannot be read: {reason}") from error
        if content.size != record.bytes:
            raise CorruptStoreError(
                f"{name} has {content.size} bytes, the manifest says {record.bytes}: truncated or "
                f"replaced; {self._remedy}"
            )
        if not isinstance(self._directory, LocalDirectory):
            self._compare(index, stream_sha256(pa.BufferReader(content)))
            self._last = (index, content)
        return content

    @property
    def _remedy(self) -> str:
        if self._directory.uri == str(self.path):
            return "restore it, or make the store again"
        return f"it is a copy of {self.path}: remove it, and run the command again"

    def iter_shards(self, *, check_hash: bool = True) -> Iterator[Shard]:
        """Map one shard after another."""
        for index in range(len(self.shards)):
            yield self.shard(index, check_hash=check_hash)

    def embeddings(self, dtype: str | None = None) -> npt.NDArray[Any]:
        """Return all embeddings, (rows, dim).

        A single shard in its own type is a read-only view of the mapped file; otherwise everything
        is read into memory. Rows that are not ok are zero.
        """
        if dtype is not None and np.dtype(dtype).kind != "f":
            raise InvalidInputError(f"dtype must be a floating-point type, got {dtype!r}")
        target = np.dtype(dtype or self.dtype)
        if len(self.shards) == 1:
            return self.shard(0).embeddings.astype(target, copy=False)
        matrix = np.empty((self.rows, self.dim), dtype=target)

        def fill(shard: Shard) -> None:
            matrix[shard.start : shard.start + shard.rows] = shard.embeddings

        self._of_every_shard(fill)
        return matrix

    def shard_embeddings(self) -> list[npt.NDArray[Any]]:
        """Return the embeddings of every shard, (rows, dim), where the files are mapped.

        Of an object store that was not copied, all of them are in memory then.
        """
        return self._of_every_shard(lambda shard: shard.embeddings)

    def _of_every_shard(self, work: Callable[[Shard], _T]) -> list[_T]:
        # Hashing and copying release the interpreter's lock. Of an object store, one is held.
        together = thread_count(None) if isinstance(self._directory, LocalDirectory) else 1
        with ThreadPoolExecutor(max(1, min(together, len(self.shards)))) as pool:
            return list(pool.map(lambda index: work(self.shard(index)), range(len(self.shards))))

    def good_embeddings(self) -> npt.NDArray[Any]:
        """Return the embeddings of the rows whose status is "ok", read into memory."""
        return np.concatenate([shard.embeddings[shard.good] for shard in self.iter_shards()])

    def keys(self) -> list[str]:
        """Return the identifiers of all rows."""
        return [key for shard in self.iter_shards() for key in shard.keys]

    def texts(self) -> list[str]:
        """Return the entries of a text store.

        Raises
        ------
        StoreError
            This is an image store.
        """
        if self.kind != "text":
            raise StoreError(f"{self.path} is an image store, it has no texts")
        return [text for shard in self.iter_shards() for text in shard.texts or ()]
