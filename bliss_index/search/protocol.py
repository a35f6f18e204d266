"""What every top-k search offers, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from bliss_index.search.duplicates import Duplicates
    from bliss_index.search.sharded import Matrix


@runtime_checkable
class TopKSearch(Protocol):
    """The k entries of a vocabulary with the largest inner products, for a batch of queries.

    ``dim`` is the length of a vector, ``size`` the number of entries, ``k`` the number of results
    per query and ``name`` a short word for messages ("exact", "ivf", ...).
    """

    @property
    def dim(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def k(self) -> int: ...

    @property
    def name(self) -> str: ...

    def search(
        self, queries: npt.ArrayLike, /
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return similarities (n, k), descending, and entry ids (n, k) of queries (n, dim)."""
        ...


@runtime_checkable
class TensorSearch(TopKSearch, Protocol):
    """A top-k search whose queries and results can stay on a torch device."""

    @property
    def device(self) -> torch.device | str: ...

    def search_tensors(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return similarities and ids (n, k) of queries (n, dim), tensors on the device."""
        ...


class Backend(Protocol):
    """A vocabulary prepared by an engine: finds the k best of queries in float64."""

    name: str
    description: str

    @property
    def chunk_rows(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    def search(
        self, queries: npt.NDArray[Any], first_row: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], SearchStatistics]:
        """Return values (n, k) float64, ids (n, k) and counters of queries (n, dim)."""
        ...


@runtime_checkable
class TensorBackend(Protocol):
    """A backend whose queries and results can stay on a device."""

    device: torch.device

    def search_tensors(
        self, queries: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, SearchStatistics]: ...


class EngineClass(Protocol):
    """What the class of an exact engine offers; see :mod:`bliss_index.search.registry`."""

    @staticmethod
    def availability() -> tuple[bool, str]:
        """Say whether it can be used here, and what it would run on or why it cannot."""
        ...

    @staticmethod
    def unfit(vocabulary: Matrix) -> str:
        """Say why it cannot hold a vocabulary (W, d); empty where it can."""
        ...

    def prepare(
        self,
        vocabulary: Any,
        k: int,
        *,
        threads: int,
        device: str | None,
        tile: tuple[int, int] | None,
        reason: str,
    ) -> Backend:
        """Prepare a vocabulary (W, d) of distinct finite rows for searches of the k best.

        It is an array, unless the registry says that the engine takes shards.
        """
        ...


@dataclass(frozen=True)
class SearchStatistics:
    """Counters of a search since it was built; they never influence results.

    Attributes
    ----------
    queries
        Query rows searched.
    candidates
        Entries that the low-precision pass could not exclude, and that were therefore rescored.
    rescored
        Entries whose inner product was then evaluated in float64.
    resolved
        Inner products evaluated exactly, because float64 could not tell two entries apart or
        could not decide the last bit of a float32 similarity.
    full_rows
        Query rows whose candidates overflowed, and that were searched again in full.
    second_rows
        Query rows whose candidates overflowed once, and that were searched again with more room.
    """

    queries: int = 0
    candidates: int = 0
    rescored: int = 0
    resolved: int = 0
    full_rows: int = 0
    second_rows: int = 0

    def __add__(self, other: SearchStatistics) -> SearchStatistics:
        return SearchStatistics(
            self.queries + other.queries,
            self.candidates + other.candidates,
            self.rescored + other.rescored,
            self.resolved + other.resolved,
            self.full_rows + other.full_rows,
            self.second_rows + other.second_rows,
        )

    @property
    def candidates_per_query(self) -> float:
        """Mean number of rescored entries per query; 0.0 before the first query."""
        return self.candidates / self.queries if self.queries else 0.0


@runtime_checkable
class Corpus(Protocol):
    """What an index or a prepared search needs to know of a text store."""

    @property
    def path(self) -> str | Path: ...

    @property
    def content_hash(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def embeddings(self) -> npt.NDArray[Any]: ...


class ShardedCorpus(Corpus, Protocol):
    """A corpus whose embeddings can be read where they are."""

    def shard_embeddings(self) -> list[npt.NDArray[Any]]: ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the native engine has packed of a vocabulary.

    Attributes
    ----------
    kernel
        The kernel that packed it, and alone can use it.
    packed
        (n,) uint8, one per byte, from a cache line on: of the different entries.
    duplicates
        Sets of identical entries; None where all differ.
    """

    kernel: str
    packed: npt.NDArray[np.uint8]
    duplicates: Duplicates | None = None
