"""Certified exact top-k on a torch device; see :class:`bliss_index.search.ExactSearch`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bliss_index.devices import find_gpu, resolve_device
from bliss_index.errors import InvalidInputError
from bliss_index.search.certificate.ordering import exact_dot
from bliss_index.search.device.base import DeviceEngine, Ranked
from bliss_index.search.device.codes import FORMATS, EntryCodes
from bliss_index.search.device.engine import choose_engine
from bliss_index.search.device.ordering import (
    Rescored,
    best_in_order,
    row_errors,
    search_in_full,
)
from bliss_index.search.device.proposals import block_size
from bliss_index.search.inputs import (
    as_tensor,
    bad_rows_error,
    checked_rows,
    require_tile,
)
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import SearchStatistics

_LOGGER = logging.getLogger("bliss_index")
_BLOCKS_PER_RESULT = 4  # below that, float64 products of all entries are no slower
_CENTRE_AT_LEAST = 32
_CENTRE_ROWS = 4096
_ROWS = 65536
_LEAST_ROWS = 64
_SHARE = 0.6  # of the device's free memory for entries
_PROPOSAL_BYTES = 1 << 30

HostRow = Callable[[int], npt.NDArray[Any]]


@dataclass(frozen=True)
class DeviceOptions:
    """How a device searches; changes speed and memory, never results.

    Attributes
    ----------
    rows
        Queries at once, halved when memory runs out.
    block
        Entries on the device at once; None for all if they fit, else as many as do.
    capacity
        Candidates kept per query, rounded up to a power of two; None for what k suggests.
    codes
        Numbers of the products that propose candidates: "int8", or "bfloat16", which is twice the
        work for the tensor cores and leaves fewer candidates; see docs/gpu.md.
    """

    rows: int = _ROWS
    block: int | None = None
    capacity: int | None = None
    codes: str = "int8"

    def __post_init__(self) -> None:
        for name in ("rows", "block", "capacity"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidInputError(f"{name} must be a whole number, at least 1, got {value!r}")
        if self.codes not in FORMATS:
            raise InvalidInputError(
                f"codes must be one of {', '.join(FORMATS)}, got {self.codes!r}"
            )


@dataclass(frozen=True, eq=False)
class _Block:
    """Entries on the device, as they are and as codes; ``first`` is the id of the first."""

    first: int
    entries: torch.Tensor
    codes: EntryCodes
    longest: float

    @property
    def size_in_blocks(self) -> int:
        """Blocks whose maxima are found."""
        return -(-self.codes.size // self.codes.tile) * (self.codes.tile // self.codes.block)


class DeviceBackend:
    """Top-k of one vocabulary on a torch device that computes in float64.

    Entries and their codes stay on the device. A vocabulary that does not fit is streamed through
    it in blocks for every batch of queries, and the best of the blocks are merged.

    Parameters
    ----------
    vocabulary
        (W, d) float16, float32 or float64.
    k
        Results per query.
    device
        A torch device, such as "cuda:0".
    options
        How to search.
    engine
        What computes the products, in the numbers that the options name; by default Triton's
        kernels on CUDA where Triton is installed, else torch.
    """

    name = "cuda"

    @staticmethod
    def availability() -> tuple[bool, str]:
        """Whether torch sees a GPU; its name, or why it sees none."""
        gpu, what = find_gpu()
        return gpu is not None, what

    @staticmethod
    def unfit(vocabulary: npt.NDArray[Any]) -> str:
        """Nothing is too large: what does not fit is streamed through the GPU."""
        return ""

    @classmethod
    def prepare(
        cls,
        vocabulary: npt.NDArray[Any],
        k: int,
        *,
        threads: int,
        device: str | None,
        tile: tuple[int, int] | None,
        reason: str,
    ) -> DeviceBackend:
        """See :class:`bliss_index.search.protocol.EngineClass`."""
        require_tile(tile, 1)
        return cls(vocabulary, k, device=resolve_device(device or "cuda"))

    @isolated
    def __init__(
        self,
        vocabulary: npt.NDArray[Any],
        k: int,
        *,
        device: str = "cuda",
        options: DeviceOptions | None = None,
        engine: DeviceEngine | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._k = k
        self._device = torch.device(device)
        self._options = options or DeviceOptions()
        form = FORMATS[self._options.codes]
        self._engine = engine or choose_engine(self._device, vocabulary.shape[1], form)
        if self._options.capacity is not None:
            self._engine = replace(self._engine, capacity=self._options.capacity)
        self._rows = self._options.rows
        self._centre: torch.Tensor | None = None
        self._lock = threading.Lock()
        size = vocabulary.shape[0]
        self._block_size = min(size, max(k, self._options.block or self._fitting()))
        self._resident = self._load(0) if self._block_size == size else None
        streamed = "" if self._resident else f", blocks of {self._block_size} entries"
        self.description = f"{self._engine.describe(self._device)}{streamed}"

    @property
    def device(self) -> torch.device:
        """Where the search runs."""
        return self._device

    @property
    def chunk_rows(self) -> int:
        """Queries worth handing over at once: more where entries are streamed for them."""
        return self._rows if self._resident else 16 * self._rows

    @property
    def memory_bytes(self) -> int:
        """Bytes on the device: entries, their codes, and the candidates of a batch."""
        dim, item = self._vocabulary.shape[1], self._vocabulary.itemsize
        entries = self._block_size * (dim * item + self._engine.form.bytes_of(dim) + 24)
        return int(entries + 2 * _PROPOSAL_BYTES)

    @isolated
    def search(
        self, queries: npt.NDArray[Any], first_row: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], SearchStatistics]:
        """Return values (n, k) float64, ids (n, k) and counters of queries (n, dim)."""
        queries = checked_rows(queries, "queries", first_row)
        rows = upload(queries, self._device)
        values, ids, counted = self._search(rows, lambda row: queries[row])
        return values.cpu().numpy(), ids.cpu().numpy(), counted

    @isolated
    def search_tensors(
        self, queries: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, SearchStatistics]:
        """Return values (n, k) float64 and ids (n, k) int64 of queries (n, dim) on the device.

        Raises
        ------
        InvalidInputError
            Rows hold NaN or infinity, or float64 magnitudes whose products could overflow.
        """
        rows = as_searched(queries)
        return self._search(rows, lambda row: rows[row].cpu().numpy())

    def _search(
        self, queries: torch.Tensor, host_row: HostRow
    ) -> tuple[torch.Tensor, torch.Tensor, SearchStatistics]:
        self._take_centre(queries)
        counted = SearchStatistics(queries=queries.shape[0])
        best: list[tuple[torch.Tensor, torch.Tensor]] = []
        longest = 0.0
        for first in range(0, self._vocabulary.shape[0], self._block_size):
            block = self._resident or self._load(first)
            longest = max(longest, block.longest)
            values, ids, more = self._search_block(block, queries, host_row)
            counted += more
            best.append((values, ids))
            if len(best) > 1:
                values, ids, resolved = self._merge(
                    best, row_errors(queries, block.entries, longest), host_row
                )
                counted += SearchStatistics(resolved=resolved)
                best = [(values, ids)]
        return *best[0], counted

    def _search_block(
        self, block: _Block, queries: torch.Tensor, host_row: HostRow
    ) -> tuple[torch.Tensor, torch.Tensor, SearchStatistics]:
        """Search one block of entries: all batches first, and then what they left."""
        n, k = queries.shape[0], min(self._k, block.codes.size)
        tried = n > 0 and block.size_in_blocks >= _BLOCKS_PER_RESULT * k
        if not tried:
            values = torch.empty((n, k), dtype=torch.float64, device=self._device)
            ids = torch.empty((n, k), dtype=torch.int64, device=self._device)
            left = torch.ones(n, dtype=torch.bool, device=self._device)
            candidates = rescored = 0
        else:
            values, ids, left, tallies = self._search_batches(self._engine, block, queries, k)
            candidates, rescored = tallies.tolist()
        rows = left.nonzero()[:, 0]  # here, and not before, the host waits for the device
        second = rows.shape[0] if tried else 0
        engine = self._engine.widened(k) if tried else None
        while rows.shape[0] and engine is not None:
            values[rows], ids[rows], left, tallies = self._search_batches(
                engine, block, queries[rows], k
            )
            helped = not bool(left.all())
            rows = rows[left]
            more, more_rescored = tallies.tolist()
            candidates, rescored = candidates + more, rescored + more_rescored
            engine = engine.widened(k) if helped else None
        resolved = 0
        if rows.shape[0]:
            bad = ~torch.isfinite(queries[rows]).all(1)
            if bool(bad.any()):
                raise bad_rows_error(rows[bad].cpu().numpy(), "queries")
            parts = search_in_full(block.entries, queries, rows, k, block.longest)
            row, entry, value = (torch.cat(column) for column in zip(*parts, strict=True))
            error = row_errors(queries[rows], block.entries, block.longest)
            found = Rescored(torch.searchsorted(rows, row), entry, value, error)
            numbers = rows.tolist()
            exact = self._exact(host_row, block.first)
            values[rows], ids[rows], resolved = best_in_order(
                found, k, lambda at, entry: exact(numbers[at], entry)
            )
            candidates += row.shape[0]
            rescored += row.shape[0]
        counted = SearchStatistics(0, candidates, rescored, resolved, rows.shape[0], second)
        return values, ids + block.first if block.first else ids, counted

    def _search_batches(
        self, engine: DeviceEngine, block: _Block, queries: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Search without waiting for the device, in fewer rows at once when memory runs out.

        Returns
        -------
        What :class:`bliss_index.search.device.engine.Ranked` holds, of all queries.
        """
        pieces: list[Ranked] = []
        start, n = 0, queries.shape[0]
        while start < n:
            at_once = self._rows_at_once(engine, block.codes.size)
            part = queries[start : start + at_once]
            found = self._try_batch(engine, block, part, k, may_fail=at_once > _LEAST_ROWS)
            if found is None:
                self._rows = max(_LEAST_ROWS, at_once // 2)
                _LOGGER.warning("out of device memory: going on with %d queries", self._rows)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            pieces.append(found)
            start += part.shape[0]
        tallies = torch.stack([piece.tallies for piece in pieces]).sum(0)
        if len(pieces) == 1:
            return pieces[0].values, pieces[0].ids, pieces[0].left, tallies
        return (
            torch.cat([piece.values for piece in pieces]),
            torch.cat([piece.ids for piece in pieces]),
            torch.cat([piece.left for piece in pieces]),
            tallies,
        )

    def _try_batch(
        self,
        engine: DeviceEngine,
        block: _Block,
        queries: torch.Tensor,
        k: int,
        *,
        may_fail: bool,
    ) -> Ranked | None:
        """Search one batch; None where memory ran out, all of which is free again then."""
        try:
            return engine.search(queries, block.entries, block.codes, k)
        except torch.cuda.OutOfMemoryError:
            if not may_fail:
                raise
        return None

    def _rows_at_once(self, engine: DeviceEngine, size: int) -> int:
        fitting = _PROPOSAL_BYTES // engine.bytes_per_query(size, self._k)
        return int(max(_LEAST_ROWS, min(self._rows, fitting)))

    def _merge(
        self,
        results: list[tuple[torch.Tensor, torch.Tensor]],
        error: torch.Tensor,
        host_row: HostRow,
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Choose the k best of the results of two blocks."""
        values, ids = (torch.cat(column, 1) for column in zip(*results, strict=True))
        n, width = ids.shape
        row = torch.arange(n, device=self._device).repeat_interleave(width)
        found = Rescored(row, ids.view(-1), values.view(-1), error)
        return best_in_order(found, self._k, self._exact(host_row, 0))

    def _exact(self, host_row: HostRow, first: int) -> Callable[[int, int], float]:
        return lambda row, entry: exact_dot(host_row(row), self._vocabulary[first + entry])

    def _take_centre(self, queries: torch.Tensor) -> None:
        """Let the first batch of some size say where queries lie. Speeds up, changes no result."""
        if self._centre is not None or queries.shape[0] < _CENTRE_AT_LEAST:
            return
        with self._lock:
            if self._centre is not None:
                return
            sample = queries[:: -(-queries.shape[0] // _CENTRE_ROWS)].double()
            lengths = sample.square().sum(1).sqrt()
            known = lengths > 0
            if not bool(known.any()):
                return
            centre = (sample[known] / lengths[known, None]).mean(0).float()
            if self._resident is not None:
                self._resident.codes.set_centre(centre)
            self._centre = centre

    def _load(self, first: int) -> _Block:
        """Bring a block of entries to the device and make its codes."""
        rows = self._vocabulary[first : first + self._block_size]
        entries = upload(rows, self._device)
        tile = self._engine.tile
        block = block_size(entries.shape[0], tile, self._k)
        codes = EntryCodes(entries, tile, block, self._engine.form, self._engine.arrange)
        if self._centre is not None:
            codes.set_centre(self._centre)
        return _Block(first, entries, codes, codes.longest)

    def _fitting(self) -> int:
        """How many entries fit onto the device beside the work on a batch."""
        size, dim = self._vocabulary.shape
        if self._device.type != "cuda":
            return int(size)
        free = int(torch.cuda.mem_get_info(self._device)[0])
        each = dim * self._vocabulary.itemsize + self._engine.form.bytes_of(dim) + 24
        return int(free * _SHARE / each)


def as_searched(queries: torch.Tensor) -> torch.Tensor:
    """Return contiguous queries of a type that is searched.

    Float64 magnitudes are checked, see :func:`bliss_index.search.inputs.checked_rows`; NaN and
    infinity in other types are found by the search.
    """
    if queries.dtype == torch.bfloat16:  # numpy has no such numbers; float32 holds all of them
        queries = queries.float()
    if queries.dtype == torch.float64:
        return upload(checked_rows(queries.cpu().numpy(), "queries"), queries.device)
    return queries.contiguous()


def checked_tensor(queries: torch.Tensor) -> torch.Tensor:
    """Return :func:`as_searched` of queries that hold neither NaN nor infinity.

    Raises
    ------
    InvalidInputError
        Some do; the rows are named.
    """
    bad = ~torch.isfinite(queries).all(1)
    if bool(bad.any()):
        raise bad_rows_error(bad.nonzero()[:, 0].cpu().numpy(), "queries")
    return as_searched(queries)


def upload(rows: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy rows to a device; on the CPU, share their memory."""
    return as_tensor(np.ascontiguousarray(rows)).to(device)
