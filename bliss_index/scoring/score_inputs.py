"""The images of a job: a store of ours, or embeddings as people have them, part by part."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bliss_index.errors import CorruptStoreError, InvalidInputError, JobError, StoreError
from bliss_index.jobs import Part
from bliss_index.jobs.description import JOB_NAME, MANIFEST_NAME
from bliss_index.storage import open_directory
from bliss_index.storage.hashing import CheckCancelled
from bliss_index.storage.objects import is_object_store
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.keys import HASH_BYTES, KeyRegistry
from bliss_index.store.normalise import CHECK_BYTES
from bliss_index.store.schema import DUPLICATE_KEY, OK
from bliss_index.store.source_reader import BATCH_ROWS, ColumnNames, ContentHash, Piece
from bliss_index.store.sources import EmbeddingSource, open_source

ROWS_PER_PART = 1 << 18
"""Rows of a piece of somebody else's file, about."""
BYTES_PER_PART = 1 << 30


@dataclass(frozen=True, eq=False)
class InputRows:
    """Consecutive rows: unit embeddings where `status` is "ok", zero elsewhere.

    Attributes
    ----------
    keys, status, error
        (n,) strings; `error` is null in good rows.
    embeddings
        (n, d).
    good
        (n,) whether the status is "ok".
    """

    keys: pa.Array
    embeddings: npt.NDArray[Any]
    status: pa.Array
    error: pa.Array
    good: npt.NDArray[np.bool_]

    @property
    def good_embeddings(self) -> npt.NDArray[Any]:
        """The embeddings of the good rows; all of them as they are, where none is bad."""
        return self.embeddings if self.good.all() else self.embeddings[self.good]


@dataclass(frozen=True, eq=False)
class StoreInput:
    """A shard of one of our stores, which knows what its hash should be.

    Attributes
    ----------
    hashed_as_read
        Whether :meth:`check` is for the end, because it tells what was read by then.
    """

    store: EmbeddingStore
    index: int
    hashed_as_read = False

    @property
    def name(self) -> str:
        return self.store.shards[self.index].file

    @property
    def rows(self) -> int:
        return self.store.shards[self.index].rows

    def read(self, rows: int, *, checked: bool = True) -> Iterator[InputRows]:
        """Read all rows in order; raise CorruptStoreError where the part is damaged.

        Without `checked` they may come from a damaged part until :meth:`check` has returned.
        """
        shard = self.store.shard(self.index, check_hash=checked, in_memory=True)
        for start in range(0, shard.rows, rows):
            keys, status, error = (
                shard.batch.column(name).slice(start, rows) for name in ("key", "status", "error")
            )
            good = pc.equal(status, OK).fill_null(False).to_numpy(zero_copy_only=False)
            yield InputRows(keys, shard.embeddings[start : start + rows], status, error, good)

    def sha256(self) -> str:
        """Hash of the content that it should have, or that it has if none is known."""
        return self.store.shards[self.index].sha256

    def check(self, check_cancelled: CheckCancelled | None = None) -> str:
        """Hash the content that it has; raise CorruptStoreError where it should have another.

        What `check_cancelled` raises ends it early.
        """
        return self.store.check_hash(self.index, check_cancelled)

    def stamp(self) -> list[Any]:
        """What tells, mostly, that the content did not change."""
        return [self.sha256()]

    def planned(self, index: int) -> Part:
        """The part of a job that it becomes."""
        return Part(index, self.name, self.rows, json.dumps(self.stamp()), "{}")


@dataclass(frozen=True, eq=False)
class ForeignInput:
    """Rows of somebody else's file; they are normalised and checked as they are read.

    It has the methods of :class:`StoreInput`. Keys that occur twice are found within the part, by
    32 bytes a key. What it should be is not known, so its hash is that of the rows that were read.
    """

    piece: Piece
    hashed_as_read = True
    _found: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.piece.name

    @property
    def rows(self) -> int:
        return self.piece.rows

    def read(self, rows: int, *, checked: bool = True) -> Iterator[InputRows]:
        piece, registry, digest = self.piece, KeyRegistry(), ContentHash()
        row = piece.start
        try:
            for batch in piece.read(rows, digest, carried=False):
                unit, status, error = batch.checked(piece.reader.dtype)
                keys = self._named(batch.keys, row, len(status))
                row += len(keys)
                for repeat in np.flatnonzero(registry.register(keys)):
                    if status[repeat] == OK:
                        status[repeat] = DUPLICATE_KEY
                        error[repeat] = "an earlier row has the same key"
                unit[status != OK] = 0
                yield InputRows(_texts(keys), unit, _texts(status), _texts(error), status == OK)
        except InvalidInputError as problem:
            raise CorruptStoreError(str(problem)) from problem
        self._found["sha256"] = digest.hexdigest()

    def _named(self, keys: list[str | None] | None, row: int, count: int) -> list[str]:
        """Keys: those given, the row's number, or its place where that is not known either."""
        first, start = self.piece.first_row, self.piece.start
        if keys is None and first is not None:
            return [str(first + row - start + i) for i in range(count)]
        names = keys or [None] * count
        return [
            f"{self.piece.reader.name}:{row + i}" if k is None else k for i, k in enumerate(names)
        ]

    def sha256(self) -> str:
        return self.check()

    def check(self, check_cancelled: CheckCancelled | None = None) -> str:
        return self._found.get("sha256") or self.piece.sha256(BATCH_ROWS, carried=False)

    def stamp(self) -> list[Any]:
        return self.piece.reader.stamp()

    def planned(self, index: int) -> Part:
        return self.piece.planned(index)


InputPart: TypeAlias = StoreInput | ForeignInput


@dataclass(frozen=True, eq=False)
class JobInput:
    """All parts of an input.

    Attributes
    ----------
    location
        As given.
    source
        A store of ours, or files of somebody else.
    columns
        Which of their columns.
    """

    location: str
    source: EmbeddingStore | EmbeddingSource
    columns: ColumnNames = field(default_factory=ColumnNames)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.source.dim

    @property
    def model(self) -> ModelIdentity | None:
        """The model that made the embeddings; None where the input does not say."""
        return self.source.model if isinstance(self.source, EmbeddingStore) else None

    @cached_property
    def parts(self) -> tuple[InputPart, ...]:
        """All parts, in order."""
        if isinstance(self.source, EmbeddingStore):
            return tuple(StoreInput(self.source, i) for i in range(len(self.source.shards)))
        pieces = self.source.pieces(ROWS_PER_PART, BYTES_PER_PART, carried=False)
        return tuple(map(ForeignInput, pieces))

    def notices(self) -> list[str]:
        """What a person should hear of how somebody else's files were read."""
        return [] if isinstance(self.source, EmbeddingStore) else self.source.notices()

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same between the runs of a job, besides the parts."""
        model = None if self.model is None else self.model.describe()
        return {"dim": self.dim, "model": model, **self.columns.named()}

    @property
    def has_keys(self) -> bool:
        """Whether it names its rows: their numbers are different anyway."""
        if isinstance(self.source, EmbeddingStore):
            return True
        return any(reader.has_keys for reader in self.source.readers)

    @property
    def held(self) -> dict[str, int]:
        """What is in memory while it is read, besides a batch: in words, and bytes."""
        if isinstance(self.source, EmbeddingStore):
            # One is read while batches of the last ones are searched and finished.
            return {"shards": 3 * max((shard.bytes for shard in self.source.shards), default=0)}
        source = max(reader.held(carried=False) for reader in self.source.readers)
        return {"source": source, "keys": 3 * HASH_BYTES * ROWS_PER_PART, "checks": CHECK_BYTES}

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is read."""
        if isinstance(self.source, EmbeddingStore):
            return 0  # they are those of the shard
        return 3 * max(reader.row_bytes(carried=False) for reader in self.source.readers) + 300

    def find(self, planned: Part) -> InputPart:
        """Return the input of a part.

        Raises
        ------
        JobError
            It is not there any more.
        """
        if not isinstance(self.source, EmbeddingStore):
            with contextlib.suppress(CorruptStoreError):
                return ForeignInput(self.source.piece_of(planned))
        elif planned.name in self._by_name:
            return self._by_name[planned.name]
        raise JobError(
            f"the job was begun with images of which {planned.name} was a part, now it is gone "
            f"from {self.location}; restore it, or choose another output"
        )

    @cached_property
    def _by_name(self) -> dict[str, InputPart]:
        return {part.name: part for part in self.parts}


def open_input(location: str | Path, columns: ColumnNames | None = None) -> JobInput:
    """Open an image store, or embeddings in any layout that ``import`` reads.

    Raises
    ------
    StoreError, InvalidInputError
        Nothing there can be read as images.
    """
    if is_store(location):
        return JobInput(str(location), EmbeddingStore.open(location, kind="image"))
    if "://" not in str(location) and not Path(location).exists():
        raise StoreError(f"{location} does not exist")
    columns = columns or ColumnNames()
    source = open_source(location, kind="image", columns=columns, lenient=True)
    return JobInput(str(location), source, columns)


def is_store(location: str | Path) -> bool:
    """Whether a store of ours is there, complete or not."""
    text = str(location)
    if "://" in text and not is_object_store(text):
        return False
    names = open_directory(text).names()
    return MANIFEST_NAME in names or JOB_NAME in names


def _texts(values: Any) -> pa.Array:
    return pa.array(values, pa.string())
