"""Rows of images, and what every source of them does."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bliss_index.encode.places import file_stamp, place_of
from bliss_index.errors import InvalidInputError
from bliss_index.storage.objects import is_object_store

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_NAMES = 5
"""Names of things passed over for one reason that are kept."""


@dataclass(frozen=True)
class ImageRow:
    """One image of a source.

    Attributes
    ----------
    key : str
    content : bytes or str
        The encoded image, or the path of its file.
    metadata : dict
        Values of the source's metadata columns; of a Parquet file, Arrow arrays of one value,
        since Python has none for a year 12000, for nanoseconds or for a tensor.
    error : str or None
        Why there is no content, if the source itself knows.
    """

    key: str
    content: bytes | str
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class ImagePiece:
    """Consecutive rows of a source.

    Attributes
    ----------
    name : str
        For people.
    rows : int
    fingerprint : str
        What tells that they did not change: sizes and modification times.
    detail : dict
        What :meth:`ImageSource.read` needs to find them, JSON-ready.
    """

    name: str
    rows: int
    fingerprint: str
    detail: dict[str, Any]


class ImageSource(Protocol):
    """What :func:`~bliss_index.encode.pipeline.iter_encoded` reads.

    Attributes
    ----------
    name : str
        For messages.
    skipped : dict
        After an iteration from the start: things passed over that are no rows, by reason.
    skipped_names : dict
        Names of the first of them, by reason.
    metadata_schema : pyarrow.Schema or None
        Columns besides key and image.
    """

    name: str
    skipped: dict[str, int]
    skipped_names: dict[str, list[str]]

    @property
    def metadata_schema(self) -> pa.Schema | None: ...

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        """Rows from number `start` on, always in the same order."""
        ...

    def rows(self) -> int:
        """Number of rows; may have to read through headers and names, never images."""
        ...

    def pieces(self, rows: int) -> Iterator[ImagePiece]:
        """Cut all rows, in order, into pieces of at most so many rows."""
        ...

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        """Rows of a piece; nothing else of the source is looked at."""
        ...

    def metadata_table(self, rows: Sequence[ImageRow]) -> pa.Table | None:
        """The metadata of some rows as a table of the schema."""
        ...


def passed_over(source: ImageSource) -> str:
    """Things of a source that are no rows, after an iteration: how many, why, and the first."""

    def named(reason: str, count: int) -> str:
        names = ", ".join(source.skipped_names.get(reason, ()))
        more = count - len(source.skipped_names.get(reason, ()))
        return f"{count} ({reason}: {names}{f' and {more} more' if more else ''})"

    return ", ".join(named(reason, count) for reason, count in source.skipped.items())


def no_images(source: ImageSource) -> InvalidInputError:
    """The error of a source without rows."""
    return InvalidInputError(
        f"{source.name} holds no images; passed over: {passed_over(source) or 'nothing'}"
    )


class SourceBase(ABC):
    """Counting and naming what is passed over, and metadata rows to tables."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = place_of(name) if is_object_store(name) else Path(name)
        self.skipped: dict[str, int] = {}
        self.skipped_names: dict[str, list[str]] = {}

    @property
    def metadata_schema(self) -> pa.Schema | None:
        return None

    @abstractmethod
    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        """Rows from number `start` on."""

    @abstractmethod
    def rows(self) -> int:
        """Number of rows."""

    def pieces(self, rows: int) -> Iterator[ImagePiece]:
        total = self.rows()
        stamp = file_stamp(self.path)
        for start in range(0, total, rows):
            count = min(rows, total - start)
            name = f"{self.path.name}[{start}:{start + count}]"
            yield ImagePiece(name, count, stamp, {"start": start, "rows": count})

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        return itertools.islice(self.iter(detail["start"]), detail["rows"])

    def metadata_table(self, rows: Sequence[ImageRow]) -> pa.Table | None:
        import pyarrow as pa

        from bliss_index.store.carried import cast

        schema = self.metadata_schema
        if schema is None:
            return None
        if not rows:
            return pa.Table.from_batches([], schema)  # of any type, tensors too
        columns = []
        for column in schema:
            values = [row.metadata.get(column.name) for row in rows]
            if any(isinstance(value, pa.Array) for value in values):
                what, kind = f"{self.name}: column {column.name!r}", column.type
                arrays = (
                    cast(value, kind, what) if isinstance(value, pa.Array)
                    else pa.nulls(1, kind) if value is None
                    else pa.array([value], kind)
                    for value in values
                )  # fmt: skip
                columns.append(pa.concat_arrays(list(arrays)))
            else:
                columns.append(pa.array(values, column.type))
        return pa.table(columns, schema=schema)

    def _skip(self, reason: str, name: str, count: int = 1) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + count
        names = self.skipped_names.setdefault(reason, [])
        if len(names) < _MOST_NAMES:
            names.append(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))

    def _forget_skipped(self) -> None:
        self.skipped, self.skipped_names = {}, {}
