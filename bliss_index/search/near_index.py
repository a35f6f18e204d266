"""An approximate search: images are compared with the entries of the nearest lists only.

Within the lists that an image looks into, results are those of the exact search: the same kernels,
rescored and ordered in float64. How many lists are enough for a recall is measured on images; see
:mod:`bliss_index.search.tuning`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.devices import thread_count
from bliss_index.errors import CorruptStoreError
from bliss_index.search.duplicates import Duplicates, find_duplicates
from bliss_index.search.inputs import (
    as_matrix,
    checked_entries,
    checked_rows,
    require_effort,
    require_k,
    search_in_chunks,
)
from bliss_index.search.isolation import isolated
from bliss_index.search.lists import EntryLists, make_lists
from bliss_index.search.native.backend import NativeBackend, load_native
from bliss_index.search.protocol import Prepared, SearchStatistics
from bliss_index.search.registry import NEAR
from bliss_index.search.sharded import Matrix, ShardedRows

_CHUNK_ROWS = 16_384
_DEFAULT_LISTS = 16
_NORMS_ROWS = 512  # whose copies stay in the processor's cache
_LARGEST = float(np.finfo(np.float32).max)
_SQUARES = (1e-20, 1e20)  # of norms, that float32 sums hold well


class NearSearch:
    """The best entries of the lists that are nearest to a query.

    Approximate: an entry of another list is not found. Of those lists the k best come back exactly,
    ordered by inner product, ties by smaller id; results depend on the query, the lists and the
    effort alone.

    Parameters
    ----------
    vocabulary
        (W, d) float16, float32 or float64, an array or
        :class:`~bliss_index.search.sharded.ShardedRows`; kept by reference.
    k
        Results per query.
    effort
        Lists that a query looks into, more where these may hold fewer than k entries; by default
        16, or all where there are fewer.
    threads
        By default BLISS_INDEX_THREADS, else all usable processors.
    lists, prepared
        What another search of this vocabulary had found and packed; made where they are not given.

    Raises
    ------
    InvalidInputError
        The vocabulary is not a matrix of finite floats, k or the effort is out of range, or the
        native engine does not run here.
    """

    name = kind = NEAR
    effort_name = "lists"

    @isolated
    def __init__(
        self,
        vocabulary: npt.ArrayLike | ShardedRows,
        k: int = 10,
        *,
        effort: int | None = None,
        threads: int | None = None,
        lists: EntryLists | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        matrix: Matrix = (
            vocabulary
            if isinstance(vocabulary, ShardedRows)
            else as_matrix(vocabulary, "vocabulary entries")
        )
        require_k(k, matrix.shape[0])
        self._threads = thread_count(threads)
        given = matrix if prepared is not None else checked_entries(matrix)
        shards = given if isinstance(given, ShardedRows) else ShardedRows([given])
        self._made_of = matrix
        self._duplicates = find_duplicates(shards) if prepared is None else prepared.duplicates
        if self._duplicates is not None:
            shards = shards.selected(self._duplicates.first)
        self._lists = lists or make_lists(shards, threads=self._threads)
        self._k, self._least_k = int(k), min(int(k), shards.shape[0])
        usable = prepared is not None and prepared.kernel == load_native()[1]
        self._backend = NativeBackend(
            shards.selected(self._lists.order.astype(np.int64)), self._least_k,
            threads=self._threads, lists=self._lists,
            prepared=prepared.packed if prepared is not None and usable else None,
        )  # fmt: skip
        self._effort = self.checked_effort(effort)
        self._centres: dict[int, NativeBackend] = {}
        self._statistics = SearchStatistics()
        self._lock = threading.Lock()

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._made_of.shape[1])

    @property
    def size(self) -> int:
        """Number of vocabulary entries."""
        return int(self._made_of.shape[0])

    @property
    def k(self) -> int:
        """Results per query."""
        return self._k

    @property
    def vocabulary(self) -> Matrix:
        """(W, d) the entries, as they were given."""
        return self._made_of

    @property
    def lists(self) -> EntryLists:
        """Which entries lie near each other, of the different ones."""
        return self._lists

    @property
    def prepared(self) -> Prepared | None:
        """What is packed, in the order of the lists; None where it cannot be kept."""
        packed = self._backend.packed
        return None if packed is None else Prepared(*packed, self._duplicates)

    @property
    def effort(self) -> int:
        """Lists that a query looks into."""
        return self._effort

    @property
    def most_effort(self) -> int:
        """The number of lists."""
        return self._lists.count

    @property
    def statistics(self) -> SearchStatistics:
        """Counters over all searches since this object was built."""
        return self._statistics

    @property
    def memory_bytes(self) -> int:
        """Bytes of the prepared vocabulary and of all threads' workspaces."""
        return self._backend.memory_bytes + self._lists.centres.nbytes

    def describe(self) -> str:
        """Say in one line what runs."""
        return (
            f"near search, {self._backend.description}: the nearest {self._effort} of "
            f"{self._lists.count} lists, approximate, rescored in float64"
        )

    def replace(self, *, k: int | None = None, effort: int | None = None) -> NearSearch:
        """Return a search over the same lists with another k or effort."""
        effort = self._effort if effort is None else effort
        if k is not None and k != self._k:
            return NearSearch(
                self._made_of, k, effort=effort, threads=self._threads, lists=self._lists,
                prepared=self.prepared,
            )  # fmt: skip
        other = copy.copy(self)
        other._effort = other.checked_effort(effort)
        other._statistics, other._lock = SearchStatistics(), threading.Lock()
        return other

    def checked_effort(self, effort: int | None) -> int:
        """Return the effort, or the default for None; raise InvalidInputError out of range."""
        if effort is None:
            return min(_DEFAULT_LISTS, self.most_effort)
        return require_effort(effort, self.most_effort, self.effort_name)

    @isolated
    def search(
        self, queries: npt.ArrayLike, /
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Find the k best entries of the lists that are nearest to every query.

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
        probed, order = self._probed(chunk)
        values, ids, counted = self._backend.search(chunk, 0, probed[order], order)
        back = np.empty_like(order)
        back[order] = np.arange(order.size)
        values, ids = values[back], ids[back]
        if self._duplicates is not None:
            values, ids = self._duplicates.expand(values, ids, self._k)
        with self._lock:
            self._statistics += counted
        return values, ids

    def _probed(
        self, queries: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The lists that every query looks into: those that promise most to its direction.

        And the queries in the order of the first of these: neighbours look into the same lists.
        """
        count = self._lists.count
        each = min(count, max(self._effort, self._lists.fewest(self._least_k)))
        if each == count:
            every = np.arange(count, dtype=np.uint32)
            return np.tile(every, (len(queries), 1)), np.arange(len(queries))
        given = _with_norms(queries)
        with self._lock:
            if each not in self._centres:
                self._centres[each] = NativeBackend(
                    self._lists.centres, each, threads=self._threads
                )
        found = self._centres[each].search(given, 0)[1].astype(np.uint32)
        order = np.argsort(found[:, 0], kind="stable")
        found.sort(axis=1)
        return found, order


def _with_norms(queries: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Queries (n, d) and behind them their norms, (n, d + 1); float64 ones by their largest."""
    given = np.empty((len(queries), queries.shape[1] + 1), dtype=np.float32)
    for start in range(0, len(queries), _NORMS_ROWS):
        rows = queries[start : start + _NORMS_ROWS]
        if rows.dtype == np.float64:  # float32 may not hold them
            largest = np.abs(rows).max(axis=1, initial=0.0)
            rows = rows / np.where(largest > 0, largest, 1)[:, None]
        rows = rows.astype(np.float32, copy=False)
        squares = np.einsum("ij,ij->i", rows, rows)
        norms = np.sqrt(squares)
        extreme = ~((squares > _SQUARES[0]) & (squares < _SQUARES[1]))
        if extreme.any():
            wide = np.square(rows[extreme], dtype=np.float64).sum(axis=1)
            norms[extreme] = np.minimum(np.sqrt(wide), _LARGEST)
        given[start : start + len(rows), :-1] = rows
        given[start : start + len(rows), -1] = norms
    return given


def near_arrays(search: NearSearch) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
    """What is kept of a search: its parameters for the record, and the arrays of its file."""
    lists, prepared = search.lists, search.prepared
    same = None if prepared is None else prepared.duplicates
    native = load_native()[0]
    parameters = {
        "lists": lists.count,
        "sets": int(lists.order.size),
        "kernel": "" if prepared is None else prepared.kernel,
        "packed_bytes": 0 if prepared is None else int(prepared.packed.size),
        "packed_version": 0 if native is None else int(native.packed_lists_version),
    }
    arrays: list[npt.NDArray[Any]] = [] if prepared is None else [prepared.packed]
    arrays += [
        lists.order.astype("<u4", copy=False), lists.starts.astype("<u4", copy=False),
        lists.centres.astype("<f4", copy=False),
    ]  # fmt: skip
    if same is not None:
        arrays += same.arrays()
    return parameters, arrays


def near_bytes(parameters: dict[str, Any], rows: int, dim: int) -> int:
    """Bytes of the file that has these parameters; ValueError where they fit no corpus."""
    return sum(size for _, size in _parts(parameters, rows, dim))


def open_near(
    content: npt.NDArray[np.uint8],
    parameters: dict[str, Any],
    entries: Matrix,
    k: int,
    *,
    effort: int | None,
    threads: int | None,
) -> NearSearch:
    """Open a search of the mapped content of its file.

    Raises
    ------
    CorruptStoreError
        The content does not hold the lists of these entries.
    """
    parts, at = {}, 0
    for name, size in _parts(parameters, *entries.shape):
        parts[name] = content[at : at + size]
        at += size
    order, starts = (parts[name].view("<u4").astype(np.uint32) for name in ("order", "starts"))
    centres = parts["centres"].view("<f4").astype(np.float32).reshape(-1, entries.shape[1] + 1)
    sizes = np.diff(starts.astype(np.int64))
    whole = starts[0] == 0 and starts[-1] == order.size and (sizes > 0).all()
    if not whole or (np.bincount(order, minlength=order.size) != 1).any():
        raise CorruptStoreError("the lists of the near index do not hold every entry once")
    same = Duplicates.of_arrays(parts["same"], order.size) if "same" in parts else None
    native, kernel = load_native()
    usable = (
        native is not None
        and parameters["kernel"] == kernel
        and parameters["packed_version"] == native.packed_lists_version
        and parameters["packed_bytes"] == native.packed_bytes(kernel, order.size, entries.shape[1])
    )
    prepared = Prepared(kernel if usable else "", parts["packed"], same)
    return NearSearch(
        entries, k, effort=effort, threads=threads, prepared=prepared,
        lists=EntryLists(order, starts, np.ascontiguousarray(centres)),
    )  # fmt: skip


def _parts(parameters: dict[str, Any], rows: int, dim: int) -> Iterator[tuple[str, int]]:
    numbers = [parameters[name] for name in ("lists", "sets", "packed_bytes")]
    lists, sets, packed = numbers
    if not all(type(number) is int for number in numbers) or not (
        0 < lists <= sets <= rows and packed >= 0 and packed % 64 == 0
    ):
        raise ValueError(f"parameters {parameters} are not of {rows} entries")
    yield "packed", packed
    yield "order", 4 * sets
    yield "starts", 4 * (lists + 1)
    yield "centres", 4 * lists * (dim + 1)
    if sets < rows:
        yield "same", Duplicates.arrays_bytes(rows, sets)
