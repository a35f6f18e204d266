"""Rows of images, and what every source of them does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ImageRow:
    """One image of a source.

    Attributes
    ----------
    key : str
    content : bytes or str
        The encoded image, or the path of its file.
    metadata : dict
        Values of the source's metadata columns.
    error : str or None
        Why there is no content, if the source itself knows.
    """

    key: str
    content: bytes | str
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


class ImageSource(Protocol):
    """What :func:`~bliss_index.encode.pipeline.iter_encoded` reads.

    Attributes
    ----------
    name : str
        For messages.
    skipped : dict
        After an iteration from the start: things passed over that are no rows, by reason.
    metadata_schema : pyarrow.Schema or None
        Columns besides key and image.
    """

    name: str
    skipped: dict[str, int]

    @property
    def metadata_schema(self) -> pa.Schema | None: ...

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        """Rows from number `start` on, always in the same order."""
        ...

    def rows(self) -> int:
        """Number of rows; may have to read through headers and names, never images."""
        ...

    def metadata_table(self, rows: Sequence[ImageRow]) -> pa.Table | None:
        """The metadata of some rows as a table of the schema."""
        ...


class SourceBase(ABC):
    """Counting what is passed over, and metadata rows to tables."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped: dict[str, int] = {}

    @property
    def metadata_schema(self) -> pa.Schema | None:
        return None

    @abstractmethod
    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        """Rows from number `start` on."""

    @abstractmethod
    def rows(self) -> int:
        """Number of rows."""

    def metadata_table(self, rows: Sequence[ImageRow]) -> pa.Table | None:
        import pyarrow as pa

        schema = self.metadata_schema
        if schema is None:
            return None
        return pa.Table.from_pylist([row.metadata for row in rows], schema=schema)

    def _skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
