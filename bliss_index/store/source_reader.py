"""A file of embeddings, whatever its format: its rows in batches, where to cut it, its stamp."""

from __future__ import annotations

import contextlib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import CorruptStoreError, InvalidInputError
from bliss_index.jobs.part import Part
from bliss_index.store.normalise import reasons_of, unit_rows
from bliss_index.store.source_file import SourceFile

BATCH_ROWS = 8192
BATCH_BYTES = 16 << 20
"""Bytes of a batch, about, where its rows are wide."""


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """Consecutive rows of a file, as they stand there.

    Attributes
    ----------
    embeddings
        (n, d) of any floating-point type, not normalised; zero where `errors` names a row.
    keys
        n identifiers; None where the file has none. A missing one is None.
    texts
        n entries, where the file has a text column.
    errors
        Row to (status, reason), for rows without a usable embedding or key.
    metadata
        The other columns.
    """

    embeddings: npt.NDArray[Any]
    keys: list[str | None] | None = None
    texts: list[str | None] | None = None
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    metadata: pa.Table | None = None

    def checked(
        self, dtype: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.object_], list[str | None]]:
        """Unit rows of type `dtype` (n, d), and a status and a reason for each."""
        unit, status = unit_rows(self.embeddings, dtype)
        error = reasons_of(status)
        for row, (code, reason) in self.errors.items():
            status[row], error[row] = code, reason
        return unit, status, error


class RowStream(Protocol):
    """Rows of a file in order; `close` ends it.

    Attributes
    ----------
    at
        The row that comes next.
    """

    at: int

    def read(self, count: int) -> EmbeddingBatch:
        """Read the next rows, as many as there are."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class SourceReader(ABC):
    """One file of embeddings.

    Attributes
    ----------
    file
        Where it is.
    rows, dim
        Its shape; -1 rows where it cannot be opened.
    dtype
        Type to store its unit rows in without loss: "float16" or "float32".
    unread
        Names of what else the file holds and is not read: other arrays.
    folders
        Columns that the folders of its path say, such as ``year=2020/``: one value for all rows.
    """

    file: SourceFile
    rows: int
    dim: int
    dtype: str
    unread: tuple[str, ...] = field(default=(), kw_only=True)
    folders: tuple[tuple[str, pa.Scalar], ...] = field(default=(), kw_only=True)
    _parked: list[tuple[RowStream, bool, list[Any]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def name(self) -> str:
        """Its name within the source."""
        return self.file.name

    @property
    def has_keys(self) -> bool:
        """Whether it names its rows."""
        return False

    @property
    def carried(self) -> pa.Schema | None:
        """Columns besides embeddings, keys and texts; None where it is no table."""
        return None

    @property
    def taken(self) -> frozenset[str]:
        """Names of all columns that are in the file."""
        return frozenset(() if self.carried is None else self.carried.names)

    @property
    def described(self) -> pa.Schema | None:
        """The carried columns, and behind them those that its folders say."""
        if not self.folders:
            return self.carried
        return pa.schema([*(self.carried or ()), *((name, v.type) for name, v in self.folders)])

    @property
    def carries(self) -> bool:
        """Whether it has columns besides embeddings, keys and texts."""
        return self.carried is not None and len(self.carried) > 0

    def row_bytes(self, carried: bool = True) -> int:
        """Bytes of a row, about, with or without the carried columns."""
        return 1

    def held(self, carried: bool = True) -> int:
        """Bytes that stay in memory while it is read, whatever the batch."""
        return 0

    def origin(self, row: int) -> int:
        """The row from which one has to read to come to `row`."""
        return row

    @abstractmethod
    def stream(self, origin: int, carried: bool) -> RowStream:
        """Begin to read."""

    def cuts(self, rows: int, size: int, *, carried: bool = True) -> list[int]:
        """Rows at which to cut the file into pieces of about `rows` rows and `size` bytes."""
        step = max(1, min(rows, size // self.row_bytes(carried)))
        return [*range(0, self.rows, step), self.rows] if self.rows else [0, 0]

    def stamp(self) -> list[Any]:
        """Sizes and modification times: what tells, mostly, that nothing changed."""
        return self.file.stamp()

    def batches(
        self,
        rows: int = BATCH_ROWS,
        *,
        start: int = 0,
        count: int | None = None,
        carried: bool = True,
    ) -> Iterator[EmbeddingBatch]:
        """Read `count` rows from `start` on, by default all, in order.

        Without `carried`, columns besides embeddings, keys and texts are not read. What is open
        stays open for the rows behind these: compressed files are read once, not once a piece.
        """
        end = self.rows if count is None else min(self.rows, start + count)
        if start >= end:
            return
        stamp, stream = self.stamp(), self._resumed(start, carried)
        try:
            while stream.at < end:
                size = min(rows, (start if stream.at < start else end) - stream.at)
                batch = stream.read(size)
                if batch.embeddings.shape[0] != size:
                    raise InvalidInputError(f"{self.name} ends before row {end - 1}")
                if stream.at > start:
                    yield self._with_folders(batch) if carried and self.folders else batch
            if end < self.rows and not self._parked:
                self._parked.append((stream, carried, stamp))
                return
        except BaseException:
            stream.close()
            raise
        stream.close()

    def _with_folders(self, batch: EmbeddingBatch) -> EmbeddingBatch:
        rows = batch.embeddings.shape[0]
        table = batch.metadata
        names = [] if table is None else table.column_names
        columns = [] if table is None else table.columns
        columns = [*columns, *(pa.repeat(value, rows) for _, value in self.folders)]
        names = [*names, *(name for name, _ in self.folders)]
        return replace(batch, metadata=pa.table(columns, names=names))

    def _resumed(self, start: int, carried: bool) -> RowStream:
        origin = self.origin(start)
        with contextlib.suppress(IndexError):
            stream, of_carried, stamp = self._parked.pop()
            if origin <= stream.at <= start and of_carried == carried and stamp == self.stamp():
                return stream
            stream.close()
        return self.stream(origin, carried)


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a file: what becomes a part of a job.

    Attributes
    ----------
    reader
        The file.
    start, rows
        Which rows; -1 rows where they are not known.
    first_row
        Number of the first one in the whole source; None where it is not known.
    """

    reader: SourceReader
    start: int
    rows: int
    first_row: int | None

    @property
    def name(self) -> str:
        """The file's, with the rows where they are not all."""
        if self.rows < 0 or (self.start == 0 and self.rows == self.reader.rows):
            return self.reader.name
        return f"{self.reader.name}[{self.start}:{self.start + self.rows}]"

    def planned(self, index: int) -> Part:
        """The part of a job that it becomes; its detail says where to find it again."""
        detail = {"file": self.reader.name, "start": self.start, "first_row": self.first_row}
        stamp = json.dumps(self.reader.stamp())
        return Part(index, self.name, self.rows, stamp, json.dumps(detail))

    def read(
        self, rows: int, digest: ContentHash, *, carried: bool = True
    ) -> Iterator[EmbeddingBatch]:
        """Read the rows in batches, add them to a hash, and count them.

        Raises
        ------
        CorruptStoreError
            There are not as many as there should be.
        InvalidInputError
            They cannot be read.
        """
        count = None if self.rows < 0 else self.rows
        wanted, done = self.reader.rows if count is None else count, 0
        for batch in self.reader.batches(rows, start=self.start, count=count, carried=carried):
            digest.add(batch)
            done += batch.embeddings.shape[0]
            yield batch
        if done != wanted:
            raise CorruptStoreError(f"{self.name} was replaced: {done} rows of {wanted} are there")

    def sha256(self, rows: int, *, carried: bool) -> str:
        """Hash of what :meth:`read` reads."""
        digest = ContentHash()
        for _ in self.read(rows, digest, carried=carried):
            pass
        return digest.hexdigest()


class ContentHash:
    """Hash of what was read: values, keys, texts and, batch by batch, the other columns.

    Of batches without other columns it does not depend on where one ends.
    """

    def __init__(self) -> None:
        self._digests = [hashlib.sha256() for _ in range(4)]

    def add(self, batch: EmbeddingBatch) -> None:
        """Add rows."""
        values, keys, texts, others = self._digests
        values.update(np.ascontiguousarray(batch.embeddings).data.cast("B"))
        for digest, names in ((keys, batch.keys), (texts, batch.texts)):
            if names:
                digest.update(f"{json.dumps(names, separators=(',', ':'))[1:-1]},".encode())
        if batch.metadata is not None and batch.metadata.num_columns:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.metadata.schema) as writer:
                writer.write_table(batch.metadata.combine_chunks())
            others.update(sink.getvalue())

    def hexdigest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(b"".join(d.digest() for d in self._digests)).hexdigest()


@dataclass(frozen=True)
class ColumnNames:
    """Which columns of a table to use; None to recognise them by name.

    Attributes
    ----------
    embedding
        Also the name of an array, where a file holds several.
    key, text
        Columns.
    dtype
        Type of the values where embeddings are bytes: "float16", "float32" or "float64".
    """

    embedding: str | None = None
    key: str | None = None
    text: str | None = None
    dtype: str | None = None

    def named(self) -> dict[str, dict[str, str]]:
        """What was chosen, as {"columns": ...} for settings of a job; empty where nothing was."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {"columns": given} if given else {}


@dataclass(frozen=True)
class BrokenReader(SourceReader):
    """A file of a folder that cannot be opened: it fails alone, whenever it is read."""

    reason: str = ""

    def cuts(self, rows: int, size: int, *, carried: bool = True) -> list[int]:
        return [0, -1]

    def batches(self, *_: object, **__: object) -> Iterator[EmbeddingBatch]:
        self.stream(0, False)
        return iter(())

    def stream(self, origin: int, carried: bool) -> RowStream:
        raise InvalidInputError(self.reason)
