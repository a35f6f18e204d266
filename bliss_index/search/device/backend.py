"""Certified exact top-k on a torch device; see :class:`bliss_index.search.ExactSearch`."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bliss_index.errors import InvalidInputError
from bliss_index.search.device.codes import FORMATS, EntryCodes
from bliss_index.search.device.engine import DeviceEngine, choose_engine
from bliss_index.search.device.ordering import (
    Rescored,
    best_in_order,
    resolve,
    row_errors,
    search_in_full,
)
from bliss_index.search.device.proposals import block_size, pairs_of
from bliss_index.search.inputs import bad_rows_error, checked_rows
from bliss_index.search.ordering import exact_dot
from bliss_index.search.protocol import SearchStatistics

_LOGGER = logging.getLogger("bliss_index")
_BLOCKS_PER_RESULT = 4  # below that, float64 products of all entries are no slower
_LEAST_CAPACITY = 256
_CAPACITY_PER_RESULT = 16
_CANDIDATE_BYTES = 20  # place, bound, order and value
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
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {value}")
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
        Who multiplies; by default Triton's kernels on CUDA where Triton is installed, else torch,
        in the numbers that the options name.
    """

    name = "cuda"

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
        entries = self._block_size * (dim * item + self._engine.proposals.form.bytes_of(dim) + 24)
        return int(entries + 2 * _PROPOSAL_BYTES)

    def search(
        self, queries: npt.NDArray[Any], first_row: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], SearchStatistics]:
        """Return values (n, k) float64, ids (n, k) and counters of queries (n, dim)."""
        queries = checked_rows(queries, "queries", first_row)
        rows = upload(queries, self._device)
        values, ids, counted = self._search(rows, lambda row: queries[row])
        return values.cpu().numpy(), ids.cpu().numpy(), counted

    def search_tensors(
        self, queries: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, SearchStatistics]:
        """Return values (n, k) float64 and ids (n, k) int64 of queries (n, dim) on the device.

        Raises
        ------
        InvalidInputError
            Rows hold NaN or infinity, or float64 magnitudes whose products could overflow.
        """
        rows = checked_tensor(queries)
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
        """Search one block of entries, in fewer rows at once when memory runs out."""
        n, k = queries.shape[0], min(self._k, block.codes.size)
        values = torch.empty((n, k), dtype=torch.float64, device=self._device)
        ids = torch.empty((n, k), dtype=torch.int64, device=self._device)
        counted = SearchStatistics()
        start = 0
        while start < n:
            at_once = self._rows_at_once(block.codes.size)
            part = slice(start, min(n, start + at_once))
            try:
                values[part], ids[part], more = self._search_rows(
                    block, queries[part], k, _from_row(host_row, start)
                )
            except torch.cuda.OutOfMemoryError:
                if at_once <= _LEAST_ROWS:
                    raise
                self._rows = max(_LEAST_ROWS, at_once // 2)
                _LOGGER.warning("out of device memory: going on with %d queries", self._rows)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            counted += more
            start = part.stop
        return values, ids + block.first, counted

    def _search_rows(
        self, block: _Block, queries: torch.Tensor, k: int, host_row: HostRow
    ) -> tuple[torch.Tensor, torch.Tensor, SearchStatistics]:
        """Search one batch: ids are places within the block."""
        error = row_errors(queries, block.entries, block.longest)
        exact = self._exact(host_row, block.first)
        codes = self._engine.prepare(block.codes, queries)
        candidates = rescored = resolved = 0
        if block.codes.codes.shape[0] // block.codes.block < _BLOCKS_PER_RESULT * k:
            left = ~codes.zero
            values = torch.empty((queries.shape[0], k), dtype=torch.float64, device=self._device)
            ids = torch.empty_like(values, dtype=torch.int64)
        else:
            capacity = self._capacity()
            hits = self._engine.proposals.find(codes, block.codes, k, capacity)
            left = ((hits.count > capacity) | codes.extreme) & ~codes.zero
            chosen = ~(left | codes.zero)
            values, ids, doubtful, each = self._engine.rank(
                queries, block.entries, block.codes, hits, chosen, error, k
            )
            candidates = int(torch.where(chosen, hits.count, 0).sum())
            rescored = int(torch.where(chosen, each, 0).sum())
            row, entry = pairs_of(hits, block.codes, doubtful)
            value = self._engine.pair_products(queries, block.entries, row, entry)
            found = Rescored(row, entry, value, error)
            resolved = resolve(found, doubtful, k, exact, values, ids)
        values[codes.zero] = 0.0
        ids[codes.zero] = torch.arange(k, device=self._device)
        rows = left.nonzero()[:, 0]
        if rows.shape[0]:
            parts = search_in_full(block.entries, queries, rows, k, block.longest)
            row, entry, value = (torch.cat(column) for column in zip(*parts, strict=True))
            found = Rescored(torch.searchsorted(rows, row), entry, value, error[rows])
            numbers = rows.tolist()
            values[rows], ids[rows], more = best_in_order(
                found, k, lambda at, entry: exact(numbers[at], entry)
            )
            candidates += row.shape[0]
            rescored += row.shape[0]
            resolved += more
        counted = SearchStatistics(0, candidates, rescored, resolved, rows.shape[0])
        return values, ids, counted

    def _capacity(self) -> int:
        """Candidates kept per query."""
        wanted = self._options.capacity or max(_LEAST_CAPACITY, _CAPACITY_PER_RESULT * self._k)
        return int(1 << (max(wanted, self._k) - 1).bit_length())

    def _rows_at_once(self, size: int) -> int:
        proposals = self._engine.proposals
        blocks = size // block_size(size, proposals.tile, self._k) + 1
        each = proposals.bytes_per_query(blocks, self._k) + _CANDIDATE_BYTES * self._capacity()
        fitting = _PROPOSAL_BYTES // each
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
        tile = self._engine.proposals.tile
        block = block_size(entries.shape[0], tile, self._k)
        codes = EntryCodes(entries, tile, block, self._engine.proposals.form)
        if self._centre is not None:
            codes.set_centre(self._centre)
        return _Block(first, entries, codes, codes.longest)

    def _fitting(self) -> int:
        """How many entries fit onto the device beside the work on a batch."""
        size, dim = self._vocabulary.shape
        if self._device.type != "cuda":
            return int(size)
        free = int(torch.cuda.mem_get_info(self._device)[0])
        each = dim * self._vocabulary.itemsize + self._engine.proposals.form.bytes_of(dim) + 24
        return int(free * _SHARE / each)


def _from_row(host_row: HostRow, start: int) -> HostRow:
    return lambda row: host_row(start + row)


def checked_tensor(queries: torch.Tensor) -> torch.Tensor:
    """Return contiguous queries after :func:`bliss_index.search.inputs.checked_rows` of them."""
    bad = ~torch.isfinite(queries).all(1)
    if bool(bad.any()):
        raise bad_rows_error(bad.nonzero()[:, 0].cpu().numpy(), "queries")
    if queries.dtype == torch.bfloat16:  # numpy has no such numbers; float32 holds all of them
        queries = queries.float()
    if queries.dtype == torch.float64:
        return upload(checked_rows(queries.cpu().numpy(), "queries"), queries.device)
    return queries.contiguous()


def upload(rows: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy rows to a device; on the CPU, share them where they may be written."""
    rows = np.ascontiguousarray(rows)
    if not rows.flags.writeable:  # torch would warn; nobody here writes
        rows = rows.copy() if device.type == "cpu" else rows
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(rows).to(device)
    return torch.from_numpy(rows).to(device)
