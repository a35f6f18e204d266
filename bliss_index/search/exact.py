"""Certified exact top-k search: low precision proposes, a rigorous bound decides.

See ``docs/certificate.md`` for the derivation.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.devices import (  # bulk.job imports it from here
    device_name,
)
from bliss_index.devices import thread_count as thread_count
from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.search.duplicates import find_duplicates
from bliss_index.search.inputs import (
    as_matrix,
    checked_entries,
    require_k,
    require_tensor,
    search_in_chunks,
)
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import Backend, Prepared, SearchStatistics, TensorBackend
from bliss_index.search.registry import ENGINES, UNAVAILABLE, Engine, engine_names
from bliss_index.search.sharded import Matrix, ShardedRows

if TYPE_CHECKING:
    import torch


def available_backends() -> dict[str, str]:
    """Say for each backend, fastest first, what it would run on, or why it cannot.

    A description that starts with "unavailable" belongs to a backend that cannot be used here.
    """
    found = {engine.name: engine.load().availability() for engine in ENGINES}
    there = {name: what for name, (usable, what) in found.items() if usable}
    return there | {name: UNAVAILABLE + why for name, (usable, why) in found.items() if not usable}


class ExactSearch:
    """The k entries with the largest inner products, exactly as float64 brute force finds them.

    Inner products are those of the vectors as given (raw, never normalised). Entries are ordered
    by the inner product correctly rounded to float64, descending, ties by smaller id. Similarities
    are those values rounded to float32. Results depend on nothing else: not on batch or tile size,
    threads, device or backend, nor on what the calling process has set; see
    :mod:`bliss_index.search.isolation`.

    Coordinates of float64 vectors whose magnitude is below 2**-480 count as zero, and magnitudes
    above 2**480 are refused; float16 and float32 vectors have no such limits.

    Parameters
    ----------
    vocabulary
        (W, d) float16, float32 or float64, any norms, an array or
        :class:`~bliss_index.search.sharded.ShardedRows`. Kept by reference where possible: do not
        change it afterwards.
    k
        Results per query, 1 to min(W, 2048).
    backend
        "auto" takes the native backend where it runs, else torch, and the cuda backend where
        ``device`` is a GPU; "native", "torch" or "cuda" insist. Never changes results.
    threads
        Threads of the native backend; by default BLISS_INDEX_THREADS, else all usable processors.
    device
        A torch device such as "cuda:1"; by default the CPU, for the cuda backend the first GPU.
    tile
        Size of the blocks that the native or torch backend works on, to test that results do not
        depend on it; by default the backend's choice.
    prepared
        What a search of this very vocabulary had packed (:attr:`prepared`), which the native
        backend then uses; see :mod:`bliss_index.search.prepared`.

    Raises
    ------
    InvalidInputError
        The vocabulary is not a matrix of finite floats, k is out of range, or the
        backend is not known or does not run on the device.
    MissingDependencyError
        A GPU is asked for, and none can be used here; the message says why.

    Examples
    --------
    >>> import numpy as np
    >>> similarities, ids = ExactSearch(np.eye(3, dtype=np.float32), k=2).search(
    ...     np.array([[0.1, 0.9, 0.4]], dtype=np.float32)
    ... )
    >>> ids.tolist()
    [[1, 2]]
    """

    name = "exact"

    @isolated
    def __init__(
        self,
        vocabulary: npt.ArrayLike | ShardedRows,
        k: int = 10,
        *,
        backend: str = "auto",
        threads: int | None = None,
        device: str | None = None,
        tile: tuple[int, int] | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        matrix: Matrix = (
            vocabulary
            if isinstance(vocabulary, ShardedRows)
            else as_matrix(vocabulary, "vocabulary entries")
        )
        if matrix.shape[1] < 1:
            raise InvalidInputError("vocabulary entries have dimension 0, at least 1 is needed")
        require_k(k, matrix.shape[0])
        if backend not in ("auto", *engine_names()):
            raise InvalidInputError(
                f"backend must be 'auto' or one of {', '.join(engine_names())}, got {backend!r}"
            )
        device = None if device is None else device_name(device)
        self._size, self._dim = matrix.shape
        if prepared is None:
            engine, reason = _choose_engine(matrix, backend, device)
            matrix = checked_entries(matrix if engine.takes_shards else np.asarray(matrix))
        self._k = int(k)
        self._made_of = matrix
        self._options: dict[str, Any] = {
            "backend": backend,
            "threads": threads,
            "device": device,
            "tile": tile,
        }
        self._threads = thread_count(threads)
        self._duplicates = find_duplicates(matrix) if prepared is None else prepared.duplicates
        if self._duplicates is not None:
            matrix = _selected(matrix, self._duplicates.first)
        least = min(self._k, matrix.shape[0])
        self._backend: Backend
        if prepared is None:
            self._backend = engine.load().prepare(
                matrix, least, threads=self._threads, device=device, tile=tile, reason=reason
            )
        else:
            self._backend = _native_backend(matrix, least, self._threads, prepared)
        self._statistics = SearchStatistics()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Prepared again where it is unpickled: what serves there may be another backend.
        return partial(type(self), **self._options), (self._made_of, self._k)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._dim)

    @property
    def size(self) -> int:
        """Number of vocabulary entries."""
        return int(self._size)

    @property
    def k(self) -> int:
        """Results per query."""
        return self._k

    @property
    def vocabulary(self) -> Matrix:
        """The entries, as they were given."""
        return self._made_of

    @property
    def backend(self) -> str:
        """The backend that runs: "native", "torch" or "cuda"."""
        return self._backend.name

    @property
    def device(self) -> torch.device | str:
        """The torch device of the cuda backend; "cpu" for the others."""
        return self._backend.device if isinstance(self._backend, TensorBackend) else "cpu"

    @property
    def prepared(self) -> Prepared | None:
        """What the native backend has packed, to be kept; None for the others."""
        found: tuple[str, npt.NDArray[np.uint8]] | None = getattr(self._backend, "packed", None)
        return None if found is None else Prepared(*found, self._duplicates)

    @property
    def statistics(self) -> SearchStatistics:
        """Counters over all searches since this object was built."""
        return self._statistics

    @property
    def memory_bytes(self) -> int:
        """Bytes of the prepared vocabulary and of the workspace, for any number of queries."""
        return self._backend.memory_bytes

    def describe(self) -> str:
        """Say in one line which backend runs, and on what."""
        return f"exact search, {self._backend.name}: {self._backend.description}"

    @isolated
    def search_tensors(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find the k best entries of queries that are on the GPU already.

        Parameters
        ----------
        queries
            (n, d) floating-point torch tensor on the search's device.

        Returns
        -------
        similarities (n, k) float32 and ids (n, k) int64, tensors on the same device; see
        :meth:`search`.

        Raises
        ------
        InvalidInputError
            The search does not run on a GPU, the tensor is elsewhere, its dimension is not the
            vocabulary's, or rows hold NaN or infinity.
        """
        backend = self._backend
        if not isinstance(backend, TensorBackend):
            raise InvalidInputError(
                f"tensors are searched on a GPU, this search runs on backend {backend.name!r}; "
                "give a device such as 'cuda', or search arrays"
            )
        require_tensor(queries, self._dim, backend.device)
        values, ids, counted = backend.search_tensors(queries)
        if self._duplicates is not None:
            values, ids = self._duplicates.expand_tensors(values, ids, self._k)
        with self._lock:
            self._statistics += counted
        return values.float(), ids

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
        similarities (n, k) float32, descending, and ids (n, k) int64.

        Raises
        ------
        InvalidInputError
            The dimension is not the vocabulary's, or rows hold NaN or infinity; rows are named.
        """
        return search_in_chunks(
            queries, self._dim, self._k, self._backend.chunk_rows, self._search_chunk
        )

    def _search_chunk(
        self, chunk: npt.NDArray[Any], start: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        values, ids, counted = self._backend.search(chunk, start)
        if self._duplicates is not None:
            values, ids = self._duplicates.expand(values, ids, self._k)
        with self._lock:
            self._statistics += counted
        return values, ids


def _selected(matrix: Matrix, rows: npt.NDArray[np.int64]) -> Matrix:
    return matrix.selected(rows) if isinstance(matrix, ShardedRows) else matrix[rows]


def _native_backend(matrix: Matrix, k: int, threads: int, prepared: Prepared) -> Backend:
    from bliss_index.search.native.backend import NativeBackend

    return NativeBackend(
        matrix, k, threads=threads, kernel=prepared.kernel, prepared=prepared.packed
    )


def _choose_engine(matrix: Matrix, wanted: str, device: str | None) -> tuple[Engine, str]:
    """Find the engine that was asked for, or the first that fits; and why, for its description."""
    kind = None if device is None else device.partition(":")[0]
    reasons: list[str] = []
    for engine in ENGINES:
        fits = engine.on_processor if kind is None else kind in engine.devices
        if wanted == engine.name:
            if kind is not None and not fits:
                place = "a GPU" if engine.devices else "the CPU"
                raise InvalidInputError(
                    f"backend {wanted!r} runs on {place}, not on device {device!r}"
                )
            return engine, "asked for"
        if wanted != "auto" or not fits:
            continue
        usable, why = (True, "") if kind else engine.load().availability()
        why = engine.load().unfit(matrix) if usable else why
        if not why:
            return engine, "; ".join(reasons) or "asked for"
        reasons.append(why)
    raise MissingDependencyError(f"no exact search runs here: {'; '.join(reasons)}")


def exact_search(
    vocabulary: npt.ArrayLike,
    k: int = 10,
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    tile: tuple[int, int] | None = None,
) -> ExactSearch:
    """Prepare a certified exact top-k search; the arguments are those of :class:`ExactSearch`."""
    return ExactSearch(vocabulary, k, backend=backend, threads=threads, device=device, tile=tile)
