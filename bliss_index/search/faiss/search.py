"""Top-k by a FAISS index whose proposals are rescored in float64.

A flat index scores in float32. An entry that it does not propose scores at most as high as its last
proposal, so its true inner product exceeds that score by no more than the rounding error

    |fl32(<x, t>) - <x, t>| <= (gamma_{d+2} + u_x + u_t + u_x u_t) |x| |t|max + underflow

with gamma_n = n u / (1 - n u), u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1, for any order of summation) and u_x, u_t the relative roundings of the vectors that
faiss keeps. Where the k-th best proposal, rescored in float64, lies above that, no other entry can
be among the k best; elsewhere more proposals are fetched, at last every entry is scored in float64.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.devices import thread_count
from bliss_index.errors import InvalidInputError
from bliss_index.search.certificate.precision import UNIT_TF32, tf32_is_forced
from bliss_index.search.faiss.candidates import Candidates, row_norms
from bliss_index.search.faiss.kinds import index_kind
from bliss_index.search.faiss.runtime import faiss_settings, import_faiss
from bliss_index.search.inputs import (
    as_matrix,
    checked_rows,
    require_effort,
    require_k,
    search_in_chunks,
)
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import SearchStatistics

_CHUNK_ROWS = 4096
_MOST_PROPOSALS = 2048
_PQ_FACTOR = 10
_UNIT_32 = 2.0**-24
_UNIT_16 = 2.0**-11
_TINY = {"float32": 2.0**-126, "float16": 2.0**-24}
_LARGEST_NORM = {"float32": 2.0**100, "float16": 2.0**15}


@dataclass(frozen=True)
class Placement:
    """Where a FAISS index runs, and in what precision it keeps its vectors.

    Attributes
    ----------
    device
        "cpu", "cuda:0" or "cuda:all".
    storage
        "float32" or "float16": the type of the vectors (and then also the queries) of a flat index.
    resources
        faiss objects that must live as long as the index does.
    """

    device: str = "cpu"
    storage: str = "float32"
    resources: tuple[Any, ...] = ()


class FaissSearch:
    """The k best entries of every query, proposed by a FAISS index of inner products.

    "flat" is exact: ids and order equal float64 brute force on the vocabulary as given, ties by
    smaller id. The other kinds are approximate; what they return is rescored and ordered in
    float64, and a query for which the index finds fewer than k entries is searched wider until k
    are found, so an id is never -1.

    Usually made by :func:`bliss_index.search.index.build_index` or ``open_index``.

    Parameters
    ----------
    index
        A faiss index of the vocabulary's rows, in order.
    vocabulary
        (W, d) float16, float32 or float64: the vectors whose inner products count.
    k
        Results per query.
    kind
        One of ``INDEX_KINDS``.
    effort
        nprobe (ivf, ivfpq), efSearch (hnsw) or itopk_size (cagra); None for flat.
    threads
        OpenMP threads of faiss; by default BLISS_INDEX_THREADS, else all usable processors.
    placement
        Where the index runs; by default the CPU.

    Raises
    ------
    InvalidInputError
        Kind, k, effort or the shapes of index and vocabulary do not fit; both values are named.
    MissingDependencyError
        faiss is not installed.
    """

    @isolated
    def __init__(
        self,
        index: Any,
        vocabulary: npt.ArrayLike,
        k: int = 10,
        *,
        kind: str,
        effort: int | None = None,
        threads: int | None = None,
        placement: Placement | None = None,
    ) -> None:
        self._what = index_kind(kind)
        matrix = as_matrix(vocabulary, "vocabulary entries")
        require_k(k, matrix.shape[0])
        if (index.ntotal, index.d) != matrix.shape:
            raise InvalidInputError(
                f"the index holds {index.ntotal} vectors of dimension {index.d}, the vocabulary "
                f"{matrix.shape[0]} of dimension {matrix.shape[1]}; build the index again"
            )
        self._faiss = import_faiss()
        self._index = index
        self._vocabulary = matrix
        self._k = int(k)
        self._kind = kind
        self._threads = thread_count(threads)
        self._placement = placement or Placement()
        self._norms = row_norms(matrix)
        self._effort = None if self._what.exact else self.checked_effort(effort)
        self._statistics = SearchStatistics()
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vocabulary.shape[1])

    @property
    def size(self) -> int:
        """Number of vocabulary entries."""
        return int(self._vocabulary.shape[0])

    @property
    def k(self) -> int:
        """Results per query."""
        return self._k

    @property
    def name(self) -> str:
        """The kind of index, with its device unless that is the CPU."""
        device = self._placement.device
        return f"faiss-{self._kind}" if device == "cpu" else f"faiss-{self._kind} on {device}"

    @property
    def kind(self) -> str:
        """One of ``INDEX_KINDS``."""
        return self._kind

    @property
    def index(self) -> Any:
        """The faiss index itself."""
        return self._index

    @property
    def placement(self) -> Placement:
        """Where the index runs."""
        return self._placement

    @property
    def vocabulary(self) -> npt.NDArray[Any]:
        """(W, d) the vectors whose inner products count."""
        return self._vocabulary

    @property
    def effort(self) -> int | None:
        """nprobe, efSearch or itopk_size; None for a flat index."""
        return self._effort

    @property
    def effort_name(self) -> str | None:
        """faiss's name of the effort: "nprobe", "efSearch", "itopk_size"; None for flat."""
        return self._what.effort or None

    @property
    def most_effort(self) -> int:
        """The largest useful effort: the number of cells, or of entries."""
        if self._kind in ("ivf", "ivfpq"):
            return int(getattr(self._index, "nlist", 0) or self._nlist_of_replica())
        return self.size

    @property
    def statistics(self) -> SearchStatistics:
        """Counters over all searches since this object was built."""
        return self._statistics

    def describe(self) -> str:
        """Say in one line what runs."""
        effort = "" if self._effort is None else f", {self.effort_name} {self._effort}"
        exact = "certified exact" if self._what.exact else "approximate, rescored in float64"
        return f"{self.name} (faiss {self._faiss.__version__}){effort}: {exact}"

    def replace(self, *, k: int | None = None, effort: int | None = None) -> FaissSearch:
        """Return a search over the same index with another k or effort."""
        return FaissSearch(
            self._index,
            self._vocabulary,
            self._k if k is None else k,
            kind=self._kind,
            effort=self._effort if effort is None else effort,
            threads=self._threads,
            placement=self._placement,
        )

    def checked_effort(self, effort: int | None) -> int:
        """Return the effort, or the default for None; raise InvalidInputError out of range."""
        if effort is None:
            return max(1, self.most_effort // 8) if "ivf" in self._kind else min(self.size, 64)
        return require_effort(effort, self.most_effort, self.effort_name)

    @isolated
    def search(
        self, queries: npt.ArrayLike, /
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Find the k best entries of every query.

        Parameters
        ----------
        queries
            (n, d) float16, float32 or float64, any norms; n may be 0.

        Returns
        -------
        similarities (n, k) float32, descending, raw inner products; ids (n, k) int64.

        Raises
        ------
        InvalidInputError
            The dimension is not the vocabulary's, or rows hold NaN or infinity; rows are named.
        """
        return search_in_chunks(queries, self.dim, self._k, _CHUNK_ROWS, self._search_chunk)

    def _search_chunk(
        self, chunk: npt.NDArray[Any], start: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        chunk = checked_rows(chunk, "queries", start)
        found = Candidates(chunk, self._vocabulary, self._norms, self._k)
        if self._what.exact:
            self._propose_certified(found)
        else:
            self._propose_approximate(found)
        values, ids, counted = found.ordered()
        with self._lock:
            self._statistics += counted
        return values, ids

    @isolated
    def propose(
        self, queries: npt.NDArray[np.float32], count: int, effort: int | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the index's own ``count`` best, float32 scores and ids, -1 where none is found."""
        with self.settings():
            scores, ids = self._index.search(queries, count, params=self.parameters(effort))
        return scores, ids

    def settings(self) -> AbstractContextManager[None]:
        """Context in which the index is searched: faiss's threads and thresholds."""
        return faiss_settings(self._faiss, self._threads)

    def error_bound(self, norms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Bound of |faiss score - exact inner product| for queries of these norms, any entry."""
        unit = _UNIT_32 if self._placement.storage == "float32" else _UNIT_16
        on_gpu = self._placement.device != "cpu"
        if on_gpu and tf32_is_forced():
            unit = max(unit, UNIT_TF32)
        dim = self.dim
        gamma = (dim + 2) * _UNIT_32 / (1 - (dim + 2) * _UNIT_32)
        largest = float(self._norms.max(initial=0.0))
        # Coordinates and products below the smallest normal number may become zero; each loses at
        # most that, times the other side's coordinate (queries are scaled to at most 1).
        underflow = 2 * dim * _TINY[self._placement.storage] * (1.0 + largest)
        relative = gamma * (1 + unit) ** 2 + 2 * unit + unit * unit
        return relative * (1 + 1e-6) * norms * largest + underflow

    def _propose_certified(self, found: Candidates) -> None:
        """Collect, for every row, all entries that can belong to its k best."""
        bounds = self.error_bound(found.scaled_norms)
        largest = float(self._norms.max(initial=0.0))
        pending = np.arange(found.rows)
        count = min(self.size, self._k + self._what.spare)
        while pending.size and largest <= _LARGEST_NORM[self._placement.storage]:
            scores, ids = self.propose(found.scaled[pending], count)
            lowest = found.rescore(pending, ids)
            limit = np.ldexp(
                scores[:, -1].astype(np.float64) + bounds[pending], found.exponents[pending]
            )
            certain = (ids >= 0).all(axis=1) & ((lowest > limit) | (count == self.size))
            found.keep(pending, ids, certain)
            pending = pending[~certain]
            if count >= min(self.size, _MOST_PROPOSALS):
                break
            count = min(self.size, _MOST_PROPOSALS, 4 * count)
        found.scan(pending)

    def _propose_approximate(self, found: Candidates) -> None:
        """Collect at least k entries for every row, searching wider where the index has fewer."""
        wanted = self._k * _PQ_FACTOR if self._kind == "ivfpq" else self._k + self._what.spare
        count = min(self.size, wanted, max(self._k, _MOST_PROPOSALS))
        pending = np.arange(found.rows)
        effort = self._effort or 1
        while pending.size:
            _, ids = self.propose(found.scaled[pending], count, effort)
            enough = (ids >= 0).sum(axis=1) >= self._k
            found.rescore(pending, ids)
            found.keep(pending, ids, enough)
            pending = pending[~enough]
            if effort >= self.most_effort:
                break
            effort = min(self.most_effort, 4 * effort)
        found.scan(pending)

    def parameters(self, effort: int | None = None) -> Any:
        """Build faiss's parameters of one search; None where the index takes none."""
        faiss = self._faiss
        effort = effort or self._effort
        if effort is None:
            return None
        if self._placement.device == "cuda:all":
            faiss.GpuParameterSpace().set_index_parameter(self._index, self.effort_name, effort)
            return None
        if self._kind == "ivf":
            return faiss.SearchParametersIVF(nprobe=effort)
        if self._kind == "ivfpq":
            on_cpu = self._placement.device == "cpu"
            return (faiss.IVFPQSearchParameters if on_cpu else faiss.SearchParametersIVF)(
                nprobe=effort
            )
        if self._kind == "cagra" and self._placement.device != "cpu":
            return faiss.SearchParametersCagra(itopk_size=effort)
        return faiss.SearchParametersHNSW(efSearch=effort)

    def _nlist_of_replica(self) -> int:
        return int(self._faiss.downcast_index(self._index.at(0)).nlist)
