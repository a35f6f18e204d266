"""Which entries can be among the k best: a rough product, its block maxima, and the bound.

A tile of entries is cut into some blocks. Of every block, for every query, the best score and its
place are kept, and the second best score: the matrix of scores exists tile by tile. The k-th
largest lower bound among blocks (or groups of blocks, which only lowers it) is a threshold that the
k-th best entry certainly reaches. A block whose best cannot reach it holds none of the k best. One
whose second best cannot holds at most its best. Of the few others all entries are candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from bliss_index.search.device.codes import INT8, CodeFormat, EntryCodes, QueryCodes

_LANES = 4  # threads that hold a row of a tensor-core product: every second pair of columns each
_BYTES_PER_BLOCK = 1024
_EXACT_IN_FLOAT32 = 1 << 24
_ENTRIES_AT_ONCE = 8192  # a multiple of every tile
_GROUPS_PER_RESULT = 8
_LEAST_BLOCKS = 2048
_BLOCKS_PER_RESULT = 64
_LEAST_GROUPS = 256


@dataclass(frozen=True, eq=False)
class Hits:
    """Candidates of n queries.

    Attributes
    ----------
    count
        (n,) int32, how many there are; where that is more than there is room for, only some of
        them are here.
    places
        (n, capacity) int32, the first ``count`` of a row meaningful: places in the order of the
        entry codes. Places behind the last entry are nobody's.
    uppers
        (n, capacity) float32, bounds that the candidates' scores do not exceed, in the query's
        unit.
    unit
        (n,) float64: an inner product is that with the mean of the entries plus a score times this.
    """

    count: torch.Tensor
    places: torch.Tensor
    uppers: torch.Tensor
    unit: torch.Tensor


class Proposals(Protocol):
    """A way to find candidates."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def tile(self) -> int:
        """Entries of a tile: a multiple of 8."""
        ...

    @property
    def form(self) -> CodeFormat:
        """Numbers that are multiplied."""
        ...

    def bytes_per_query(self, blocks: int, k: int, capacity: int) -> int:
        """Memory for a query while it is worked on, against so many blocks."""
        ...

    def find(self, queries: QueryCodes, entries: EntryCodes, k: int, capacity: int) -> Hits:
        """Find all entries that can be among the k best of each query, and some others."""
        ...


class TorchProposals:
    """With torch's own products: any device, any version."""

    tile = 128

    def __init__(self, form: CodeFormat = INT8) -> None:
        self.form = form
        self.name = f"torch {form.name}"

    def bytes_per_query(self, blocks: int, k: int, capacity: int) -> int:
        """See :class:`Proposals`."""
        return _BYTES_PER_BLOCK * blocks

    def find(self, queries: QueryCodes, entries: EntryCodes, k: int, capacity: int) -> Hits:
        """See :class:`Proposals`."""
        best, place, second = self._block_best(queries, entries)
        bound = _bounds(queries, entries)
        threshold = _kth_group(best - bound, k)[:, None]
        hit = best + bound >= threshold
        whole = second + bound >= threshold
        size = entries.block
        room = torch.where(whole, size, hit.long())
        slot = room.cumsum(1) - room
        places = torch.zeros((best.shape[0], capacity), dtype=torch.int32, device=best.device)
        row, block = hit.nonzero(as_tuple=True)
        copies = room[row, block]
        index = torch.where(whole[row, block], 0, place[row, block])
        upper = (best + bound)[row, block]
        row, block, at, index, upper = (
            column.repeat_interleave(copies)
            for column in (row, block, slot[row, block], index, upper)
        )
        ends = copies.cumsum(0)
        step = torch.arange(row.shape[0], device=row.device)
        step -= (ends - copies).repeat_interleave(copies)
        at, index = at + step, index + step
        there = at < capacity
        found = _place(block, index, size)
        places[row[there], at[there]] = found[there].to(torch.int32)
        uppers = torch.full(places.shape, -torch.inf, dtype=torch.float32, device=best.device)
        uppers[row[there], at[there]] = upper[there]
        return Hits(room.sum(1).to(torch.int32), places, uppers, queries.unit)

    def _block_best(
        self, queries: QueryCodes, entries: EntryCodes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Best scores, their places, and second best scores of the blocks, (n, blocks) each."""
        columns = []
        for first in range(0, entries.codes.shape[0], _ENTRIES_AT_ONCE):
            scores = _scores(queries, entries, first)
            scores[:, max(0, entries.size - first) :] = -torch.inf
            width = scores.shape[1] // (_LANES * entries.block)
            pairs = scores.view(-1, width, entries.block // 2, _LANES, 2)
            blocks = pairs.transpose(2, 3).reshape(-1, width * _LANES, entries.block)
            values, places = blocks.topk(2)
            columns.append((values[..., 0], places[..., 0], values[..., 1]))
        best, place, second = (torch.cat(column, 1) for column in zip(*columns, strict=True))
        return best, place, second


def block_size(size: int, tile: int, k: int) -> int:
    """Entries of a block, for a vocabulary of some size and a number of results.

    Smaller blocks take more memory. Of larger ones, more hold two candidates, and are then looked
    into as a whole.
    """
    wanted = max(_LEAST_BLOCKS, _BLOCKS_PER_RESULT * k)
    parts = next((p for p in (1, 2) if size * _LANES * p >= wanted * tile), 4)
    return tile // (_LANES * parts)


def group_count(k: int) -> int:
    """Groups of blocks among which the k-th best is looked for: a power of two."""
    return 1 << max(_LEAST_GROUPS, _GROUPS_PER_RESULT * k).bit_length() - 1


def pairs_of(
    hits: Hits, entries: EntryCodes, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Name the candidates of some queries.

    Parameters
    ----------
    hits
        Of n queries.
    entries
        The codes that were searched.
    chosen
        (n,) bool, queries whose candidates are all there.

    Returns
    -------
    row and entry (P,) int64, sorted by row.
    """
    rows = chosen.nonzero()[:, 0]
    if rows.shape[0] == 0:
        return rows, rows
    count = hits.count[rows]
    columns = int(count.max())
    place = hits.places[rows, :columns].long()
    there = torch.arange(columns, device=rows.device) < count[:, None]
    row, column = (there & (place < entries.size)).nonzero(as_tuple=True)
    return rows[row], entries.ids[place[row, column]]


def _place(block: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Place in the order of the codes of the index-th entry of a block."""
    first = block // _LANES * (_LANES * size) + block % _LANES * 2
    return first + index // 2 * (2 * _LANES) + index % 2


def _kth_group(lower: torch.Tensor, k: int) -> torch.Tensor:
    """A number (n,) that k blocks reach: the k-th largest of the groups' largest."""
    groups = group_count(k)
    if lower.shape[1] > 2 * groups:
        whole = lower.shape[1] // groups * groups
        largest = lower[:, :whole].view(lower.shape[0], -1, groups).amax(1)
        lower = torch.cat([largest, lower[:, whole:]], 1)
    return lower.topk(k, dim=1).values[:, -1]


def _scores(queries: QueryCodes, entries: EntryCodes, first: int) -> torch.Tensor:
    """Scores (n, m) float32 of some tiles from entry ``first``."""
    part = slice(first, first + _ENTRIES_AT_ONCE)
    codes = entries.codes[part]
    if entries.form != INT8:
        products = queries.codes.float() @ codes.float().T
    elif codes.is_cuda and queries.codes.shape[0] > 16:
        products = torch._int_mm(queries.codes, codes.T).float()
    else:
        # Sums of products of int8 numbers are exact while they fit into the significand.
        exact = codes.shape[1] * 127 * 127 < _EXACT_IN_FLOAT32 and not codes.is_cuda
        kind = torch.float32 if exact else torch.float64
        products = (queries.codes.to(kind) @ codes.T.to(kind)).float()
    step = entries.tile_step.repeat_interleave(entries.tile)[part]
    return (products + queries.alpha[:, None] * entries.lift[part]) * step


def _bounds(queries: QueryCodes, entries: EntryCodes) -> torch.Tensor:
    """How far a score of a block can be from the true one, at most: (n, blocks)."""
    bound = queries.per_norm[:, None] * entries.tile_norm
    bound += queries.per_residual[:, None] * entries.tile_residual
    bound += 4 * queries.slack[:, None]
    return bound.repeat_interleave(entries.tile // entries.block, 1)
