"""The images of a job: a store of ours, or embeddings as people have them, part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bliss_index.errors import CorruptStoreError, InvalidInputError, JobError, StoreError
from bliss_index.jobs import Part
from bliss_index.jobs.description import JOB_NAME, MANIFEST_NAME
from bliss_index.storage import open_directory
from bliss_index.storage.hashing import Between
from bliss_index.storage.objects import is_object_store
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.normalise import reasons_of, unit_rows
from bliss_index.store.schema import DUPLICATE_KEY, OK
from bliss_index.store.source_part import ColumnNames, SourcePart
from bliss_index.store.sources import open_source


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


class InputPart(Protocol):
    """One input shard."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int: ...

    def read(self, rows: int, *, checked: bool = True) -> Iterator[InputRows]:
        """Read all rows in order; raise CorruptStoreError where the part is damaged.

        Without `checked` they may come from a damaged part until :meth:`check` has returned.
        """
        ...

    def sha256(self) -> str:
        """Hash of the content that it should have."""
        ...

    def check(self, between: Between | None = None) -> str:
        """Hash the content that it has; raise CorruptStoreError where it should have another.

        What `between` raises ends it early.
        """
        ...

    def stamp(self) -> list[Any]:
        """What tells, mostly, that the content did not change."""
        ...


@dataclass(frozen=True, eq=False)
class JobInput:
    """All parts of an input.

    Attributes
    ----------
    location
        As given.
    parts
        In order.
    dim
        Length of an embedding.
    model
        The model that made the embeddings; None where the input does not say.
    """

    location: str
    parts: tuple[InputPart, ...]
    dim: int
    model: ModelIdentity | None

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same between the runs of a job, besides the parts."""
        return {"dim": self.dim, "model": None if self.model is None else self.model.describe()}

    def find(self, planned: Part) -> InputPart:
        """Return the input of a part.

        Raises
        ------
        JobError
            It is not there any more.
        """
        part = self._by_name.get(planned.name)
        if part is None:
            raise JobError(
                f"the job was begun with images of which {planned.name} was a part, now it is "
                f"gone from {self.location}; restore it, or choose another output"
            )
        if isinstance(part, ForeignPart):
            return replace(part, start=json.loads(planned.detail)["start"])
        return part

    @cached_property
    def _by_name(self) -> dict[str, InputPart]:
        return {part.name: part for part in self.parts}


def part_of(index: int, source: InputPart) -> Part:
    """Describe an input part for the plan."""
    detail = {"start": source.start} if isinstance(source, ForeignPart) else {}
    return Part(index, source.name, source.rows, json.dumps(source.stamp()), json.dumps(detail))


def open_input(location: str | Path, columns: ColumnNames | None = None) -> JobInput:
    """Open an image store, or embeddings in any layout that ``import`` reads.

    Raises
    ------
    StoreError, InvalidInputError
        Nothing there can be read as images.
    """
    if _is_store(location):
        store = EmbeddingStore.open(location, kind="image")
        parts = tuple(StorePart(store, index) for index in range(len(store.shards)))
        return JobInput(str(location), parts, store.dim, store.model)
    if "://" not in str(location) and not Path(location).exists():
        raise StoreError(f"{location} does not exist")
    source = open_source(location, kind="image", columns=columns, lenient=True)
    starts = np.cumsum([0, *(max(part.rows, 0) for part in source.parts)]).tolist()
    pairs = zip(source.parts, starts, strict=False)
    foreign = tuple(ForeignPart(part, None if part.rows < 0 else start) for part, start in pairs)
    return JobInput(str(location), foreign, source.dim, None)


def _is_store(location: str | Path) -> bool:
    """Whether a store of ours is there, complete or not."""
    text = str(location)
    if "://" in text and not is_object_store(text):
        return False
    names = open_directory(text).names()
    return MANIFEST_NAME in names or JOB_NAME in names


@dataclass(frozen=True, eq=False)
class StorePart:
    """A shard of one of our stores, which knows what its hash should be."""

    store: EmbeddingStore
    index: int

    @property
    def name(self) -> str:
        return self.store.shards[self.index].file

    @property
    def rows(self) -> int:
        return self.store.shards[self.index].rows

    def read(self, rows: int, *, checked: bool = True) -> Iterator[InputRows]:
        shard = self.store.shard(self.index, check_hash=checked, in_memory=True)
        for start in range(0, shard.rows, rows):
            keys, status, error = (
                shard.batch.column(name).slice(start, rows) for name in ("key", "status", "error")
            )
            good = pc.equal(status, OK).fill_null(False).to_numpy(zero_copy_only=False)
            yield InputRows(keys, shard.embeddings[start : start + rows], status, error, good)

    def sha256(self) -> str:
        return self.store.shards[self.index].sha256

    def check(self, between: Between | None = None) -> str:
        return self.store.check_hash(self.index, between)

    def stamp(self) -> list[Any]:
        return [self.sha256()]


@dataclass(frozen=True, eq=False)
class ForeignPart:
    """A file of somebody else's; rows are normalised and checked as they are read.

    Keys that occur twice are found within the part; between parts, ``verify`` finds them. Nobody
    knows what its hash should be, so checked rows are the same rows.
    """

    part: SourcePart
    start: int | None

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def rows(self) -> int:
        return self.part.rows

    def _numbers(self, row: int, count: int) -> list[str | None]:
        """Row numbers as keys; None where those of the file were not known when it was planned."""
        if self.start is None:
            return [None] * count
        return [str(self.start + row + i) for i in range(count)]

    def read(self, rows: int, *, checked: bool = True) -> Iterator[InputRows]:
        seen: list[list[str]] = []
        registry = KeyRegistry(lambda: seen)
        row = 0
        try:
            for batch in self.part.batches(rows, carried=False):
                count = batch.embeddings.shape[0]
                unit, status = unit_rows(batch.embeddings, self.part.dtype)
                error = reasons_of(status)
                for bad, (code, reason) in batch.errors.items():
                    status[bad], error[bad] = code, reason
                given = batch.keys or self._numbers(row, count)
                keys = [
                    f"{self.name}:{row + i}" if key is None else key for i, key in enumerate(given)
                ]
                for repeat in np.flatnonzero(registry.register(keys)):
                    if status[repeat] == OK:
                        status[repeat] = DUPLICATE_KEY
                        error[repeat] = "an earlier row has the same key"
                unit[status != OK] = 0
                seen.append(keys)
                row += count
                yield InputRows(_texts(keys), unit, _texts(status), _texts(error), status == OK)
        except InvalidInputError as problem:
            raise CorruptStoreError(str(problem)) from problem
        if row != self.rows:
            raise CorruptStoreError(f"{self.name} holds {row} rows, its header says {self.rows}")

    def sha256(self) -> str:
        return self.part.sha256()

    def check(self, between: Between | None = None) -> str:
        return self.part.sha256(between)

    def stamp(self) -> list[Any]:
        return self.part.stamp()


def _texts(values: Any) -> pa.Array:
    return pa.array(values, pa.string())
