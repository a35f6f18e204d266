"""One file of embeddings, whatever its format: its rows in batches, its hash, its stamp."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import InvalidInputError
from bliss_index.storage.hashing import Between
from bliss_index.store.source_file import SourceFile

BATCH_ROWS = 8192


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """Consecutive rows of a part, as they stand there.

    Attributes
    ----------
    embeddings
        (n, d) of any floating-point type, not normalised; zero where `errors` names a row.
    keys
        n identifiers; None where the part has none. A missing one is None.
    texts
        n entries, where the part has a text column.
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


class SourcePart(Protocol):
    """One file of embeddings."""

    @property
    def name(self) -> str:
        """Its name within the source."""
        ...

    @property
    def rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def dtype(self) -> str:
        """Type to store its unit rows in without loss: "float16" or "float32"."""
        ...

    def batches(
        self,
        rows: int = BATCH_ROWS,
        *,
        start: int = 0,
        count: int | None = None,
        carried: bool = True,
    ) -> Iterator[EmbeddingBatch]:
        """Read `count` rows from `start` on, by default all, in order.

        Without `carried`, columns besides embeddings, keys and texts are not read.
        """
        ...

    @property
    def held(self) -> int:
        """Bytes that stay in memory while it is read, whatever the batch."""
        ...

    def cuts(self, rows: int, size: int) -> list[int]:
        """Rows at which to cut the part into pieces of about `rows` rows and `size` bytes."""
        ...

    def sha256(self, between: Between | None = None) -> str:
        """Hash of all the files that the part is made of; `between` may end it early."""
        ...

    def stamp(self) -> list[Any]:
        """Sizes and modification times: what tells, mostly, that nothing changed."""
        ...


@dataclass(frozen=True)
class ColumnNames:
    """Which columns of a table to use; None to recognise them by name."""

    embedding: str | None = None
    key: str | None = None
    text: str | None = None


def as_float(matrix: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Return the matrix if it holds floats of a size that can be used; refuse it otherwise."""
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize not in (2, 4, 8):
        raise InvalidInputError(
            f"{name} holds values of type {matrix.dtype}, expected float16, float32 or float64"
        )
    return np.asarray(matrix, dtype=matrix.dtype.newbyteorder("="))


def even_cuts(total: int, rows: int) -> list[int]:
    """Starts of pieces of `rows` rows, and the end."""
    return [*range(0, total, max(1, rows)), total]


@dataclass(frozen=True)
class BrokenPart:
    """A file of a folder that cannot be opened: it fails alone, whenever it is read."""

    file: SourceFile
    reason: str
    rows: int = -1
    dim: int = 0
    dtype: str = "float32"
    held: int = 0

    @property
    def name(self) -> str:
        return self.file.name

    def cuts(self, rows: int, size: int) -> list[int]:
        return [0, 0]

    def batches(
        self,
        rows: int = BATCH_ROWS,
        *,
        start: int = 0,
        count: int | None = None,
        carried: bool = True,
    ) -> Iterator[EmbeddingBatch]:
        raise InvalidInputError(self.reason)

    def sha256(self, between: Between | None = None) -> str:
        return self.file.sha256(between)

    def stamp(self) -> list[Any]:
        return self.file.stamp()
