"""Certified exact top-k with the package's own kernels for x86-64 and Arm.

Both sides are centred and rotated, quantised to int8, and multiplied in integers; a rigorous bound
decides which entries are rescored in float32, then in float64. ``docs/certificate.md`` derives it.
"""

from __future__ import annotations

import ctypes
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.search.inputs import bad_rows_error, checked_rows, largest_magnitude, require_tile
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import SearchStatistics
from bliss_index.search.sharded import Matrix, ShardedRows

if TYPE_CHECKING:
    from bliss_index.search.lists import EntryLists

MAX_DIM = 65536  # 65536 coordinates * 255 * 127 still fit into int32
_CENTRE_ROWS = 1024
_CENTRE_AT_LEAST = 32
_SAFE_LARGEST = 2.0**60


def products_fit_float32(vocabulary: Matrix) -> bool:
    """Whether entries are so large that sums of products neither overflow nor vanish in float32."""
    if vocabulary.dtype == np.float16:
        return True
    arrays = vocabulary.shards if isinstance(vocabulary, ShardedRows) else [vocabulary]
    return 1 / _SAFE_LARGEST <= max(map(largest_magnitude, arrays)) <= _SAFE_LARGEST


def load_native() -> tuple[ModuleType | None, str]:
    """Return the compiled extension and its best kernel's name, or None and the reason."""
    try:
        from bliss_index.search import _native
    except ImportError as error:
        return None, f"extension not built or not loadable ({error})"
    kernels = _native.kernel_names()
    if not kernels:
        return None, (
            "this processor has neither AVX-512 VNNI nor AVX2 with FMA, nor Arm's dot products"
        )
    return _native, kernels[0]


def why_unfit(vocabulary: Matrix) -> str:
    """Say why the native engine cannot hold this vocabulary; empty where it can."""
    if vocabulary.shape[1] > MAX_DIM:
        return f"dimension {vocabulary.shape[1]} is above {MAX_DIM}"
    if vocabulary.shape[0] >= 2**32 - 64:
        return f"{vocabulary.shape[0]} entries are too many for 32-bit ids"
    return ""


def _addresses(lists: EntryLists | None) -> tuple[int, int, int, int, int]:
    """Where the engine finds lists: how many, starts, ids, centres, and floats of one of these."""
    if lists is None:
        return 0, 0, 0, 0, 0
    starts, ids, centres = (a.ctypes.data for a in (lists.starts, lists.order, lists.centres))
    return lists.count, starts, ids, centres, lists.centres.shape[1]


class NativeBackend:
    """Top-k of one vocabulary by integer kernels; see :class:`bliss_index.search.ExactSearch`."""

    name = "native"
    chunk_rows = 8192
    unfit = staticmethod(why_unfit)

    @staticmethod
    def availability() -> tuple[bool, str]:
        """Whether the extension runs here; the best kernel, or why it does not."""
        native, found = load_native()
        return native is not None, found

    @classmethod
    def prepare(
        cls,
        vocabulary: Matrix,
        k: int,
        *,
        threads: int,
        device: str | None,
        tile: tuple[int, int] | None,
        reason: str,
    ) -> NativeBackend:
        """See :class:`bliss_index.search.protocol.EngineClass`."""
        query_block, capacity = require_tile(tile, 0) or (0, 0)
        return cls(vocabulary, k, threads=threads, query_block=query_block, capacity=capacity)

    @isolated
    def __init__(
        self,
        vocabulary: Matrix,
        k: int,
        *,
        threads: int,
        kernel: str = "",
        query_block: int = 0,
        capacity: int = 0,
        prepared: npt.NDArray[np.uint8] | None = None,
        lists: EntryLists | None = None,
    ) -> None:
        native, found = load_native()
        if native is None:
            raise InvalidInputError(f"backend 'native' cannot run here: {found}; use 'torch'")
        reason = why_unfit(vocabulary)
        if reason:
            raise InvalidInputError(f"backend 'native' cannot be used: {reason}; use 'torch'")
        if kernel and kernel not in native.kernel_names():
            raise InvalidInputError(f"kernel {kernel!r} cannot run here, {found!r} can")
        self._widened = False
        # What is packed was packed of what the search was given then: of the same type as now.
        narrow = vocabulary.dtype == np.float32 and prepared is None
        if narrow and not products_fit_float32(vocabulary):
            vocabulary, self._widened = np.asarray(vocabulary, dtype=np.float64), True
        self._vocabulary = vocabulary  # the engine reads it for as long as it lives
        scattered = isinstance(vocabulary, ShardedRows)
        self._where = vocabulary.addresses() if isinstance(vocabulary, ShardedRows) else vocabulary
        self._k = k
        self._threads = threads
        self._prepared = prepared  # and reads these, too
        self._lists = lists
        kept = (0, 0) if prepared is None else (prepared.ctypes.data, prepared.size)
        try:
            self._engine = native.make_engine(
                self._where.ctypes.data, scattered, vocabulary.itemsize, *vocabulary.shape, k,
                kernel, threads, query_block, capacity, 0, *kept,
                *_addresses(lists),
            )  # fmt: skip
        except ValueError as error:
            raise InvalidInputError(f"{error}; prepare the search again") from error
        self._centred = False
        self._lock = threading.Lock()
        self.description = f"{self._engine.kernel}, {threads} thread{'s' * (threads > 1)}"

    @property
    def packed(self) -> tuple[str, npt.NDArray[np.uint8]] | None:
        """The kernel, and a (n,) view of what it packed.

        None where the entries were widened first, which what is packed does not say.
        """
        if self._widened:
            return None
        if self._prepared is not None:
            return self._engine.kernel, self._prepared
        address, size = self._engine.packed
        view = (ctypes.c_uint8 * size).from_address(address)
        view._owner = self
        return self._engine.kernel, np.frombuffer(view, dtype=np.uint8)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the packed vocabulary and of all threads' workspaces at their largest."""
        return int(self._engine.memory_bytes(self._threads))

    def kernel_rate(self, rows: int = 4096) -> float:
        """Integer operations per second (2 W d per query) of the kernel alone, for benchmarks."""
        size, dim = self._vocabulary.shape
        seconds = self._engine.kernel_seconds(rows, self._threads)
        block = self._engine.query_block
        return float(2.0 * size * dim * (-(-rows // block) * block) / seconds)

    def intervals(
        self, queries: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return what the integer pass knows of every pair, for tests of the certificate.

        Parameters
        ----------
        queries : ndarray, shape (n, dim)
            float16, float32 or float64, finite.

        Returns
        -------
        Lower and upper ends (n, W) of <x, t - m>, m being the mean of the entries, or of <x, t> of
        entries in lists; NaN for queries that are zero.

        Raises
        ------
        InvalidInputError
            The backend was made with a capacity below the number of entries.
        """
        lower, upper = (np.full((len(queries), len(self._vocabulary)), np.nan) for _ in range(2))
        if not self._engine.intervals(
            queries.ctypes.data, queries.itemsize, *queries.shape, lower.ctypes.data,
            upper.ctypes.data,
        ):  # fmt: skip
            raise InvalidInputError(
                f"intervals of {len(self._vocabulary)} entries need a capacity of as many"
            )
        return lower, upper

    @isolated
    def search(
        self,
        queries: npt.NDArray[Any],
        first_row: int,
        probed: npt.NDArray[np.uint32] | None = None,
        order: npt.NDArray[np.int64] | None = None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], SearchStatistics]:
        """Return values (n, k) float64, ids (n, k) and counters of queries (n, dim).

        Of a backend with lists, a query looks into those of its row of `probed` (n, each) only,
        C-contiguous, each once in ascending order. With `order` they are searched in that order,
        and so are the rows of `probed` and of what is returned; their memory stays where it is.
        """
        if queries.dtype == np.float64:
            queries = checked_rows(queries, "queries", first_row)
        self._take_centre(queries)
        n = queries.shape[0]
        values = np.empty((n, self._k))
        ids = np.empty((n, self._k), dtype=np.int64)
        lists = (0, 0) if probed is None else (probed.ctypes.data, probed.shape[1])
        where = queries
        if order is not None:
            where = queries.ctypes.data + order.astype(np.uint64) * np.uint64(queries.strides[0])
        counters, bad = self._engine.search(
            where.ctypes.data, order is not None, queries.itemsize, *queries.shape, self._threads,
            values.ctypes.data, ids.ctypes.data, *lists,
        )  # fmt: skip
        if bad:
            rows = np.asarray(bad) if order is None else np.sort(order[bad])
            raise bad_rows_error(rows + first_row, "queries")
        return values, ids, SearchStatistics(n, *counters)

    def _take_centre(self, queries: npt.NDArray[Any]) -> None:
        """Let the first batch of some size say where queries lie. Speeds up, changes no result."""
        if self._centred or queries.shape[0] < _CENTRE_AT_LEAST:
            return
        with self._lock:
            if self._centred:
                return
            step = -(-queries.shape[0] // _CENTRE_ROWS)
            sample = queries[::step].astype(np.float64)
            sample = sample[np.isfinite(sample).all(axis=1)]
            norms = np.sqrt(np.einsum("ij,ij->i", sample, sample))
            sample = sample[norms > 0] / norms[norms > 0, None]
            if sample.shape[0] == 0:
                return
            centre = np.ascontiguousarray(sample.mean(axis=0), dtype=np.float32)
            self._engine.set_query_centre(centre.ctypes.data, self._threads)
            self._centred = True
