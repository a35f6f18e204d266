"""Which entries can be among the k best: an integer product, its block maxima, and the bound.

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

from bliss_index.search.device.codes import EntryCodes, QueryCodes

_LANES = 4  # threads that hold a row of a tensor-core product: every second pair of columns each
_EXACT_IN_FLOAT32 = 1 << 24
_GROUPS_PER_RESULT = 8
_LEAST_GROUPS = 256


@dataclass(frozen=True, eq=False)
class Hits:
    """Blocks that can hold one of the k best.

    Attributes
    ----------
    count
        (n,) int32, how many there are; where that is more than there is room for, only some of
        them are here.
    hits
        (n, capacity) int32, the first ``count`` of a row meaningful, in the order of the blocks:
        block * 2 b + i for an entry alone, block * 2 b + b + i for a whole block, where b is the
        number of entries of a block and i the place of the best among them.
    """

    count: torch.Tensor
    hits: torch.Tensor


class Proposals(Protocol):
    """A way to find the blocks."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def tile(self) -> int:
        """Entries of a tile: a multiple of 8."""
        ...

    @property
    def bytes_per_block(self) -> int:
        """Memory for a query and a block while both are worked on."""
        ...

    def find(self, queries: QueryCodes, entries: EntryCodes, k: int, capacity: int) -> Hits:
        """Find the blocks that can hold one of the k best entries of each query."""
        ...


class TorchProposals:
    """With torch's own products: any device, any version."""

    name = "torch int8"
    tile = 256
    bytes_per_block = 1024

    def find(self, queries: QueryCodes, entries: EntryCodes, k: int, capacity: int) -> Hits:
        """See :class:`Proposals`."""
        best, place, second = self._block_best(queries, entries)
        bound = _bounds(queries, entries)
        threshold = _kth_group(best - bound, k)[:, None]
        hit = best + bound >= threshold
        whole = second + bound >= threshold
        size = entries.block
        number = torch.arange(best.shape[1], device=best.device) * (2 * size)
        codes = number + whole * size + place
        slot = hit.cumsum(1) - 1
        row, block = (hit & (slot < capacity)).nonzero(as_tuple=True)
        hits = torch.zeros((best.shape[0], capacity), dtype=torch.int32, device=best.device)
        hits[row, slot[row, block]] = codes[row, block].to(torch.int32)
        return Hits(hit.sum(1).to(torch.int32), hits)

    def _block_best(
        self, queries: QueryCodes, entries: EntryCodes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Best scores, their places, and second best scores of the blocks, (n, blocks) each."""
        columns = []
        for first in range(0, entries.codes.shape[0], entries.tile):
            scores = _scores(queries, entries, first)
            scores[:, max(0, entries.size - first) :] = -torch.inf
            count = entries.tile // entries.block
            pairs = scores.view(-1, count // _LANES, entries.block // 2, _LANES, 2)
            values, places = pairs.transpose(2, 3).reshape(-1, count, entries.block).topk(2)
            columns.append((values[..., 0], places[..., 0], values[..., 1]))
        best, place, second = (torch.cat(column, 1) for column in zip(*columns, strict=True))
        return best, place, second


def block_size(size: int, tile: int) -> int:
    """Entries of a block, for a vocabulary of some size.

    Smaller blocks take more memory; of larger ones, more hold two candidates and are then looked
    into as a whole.
    """
    parts = 1 if size >= 1 << 16 else 2 if size >= 1 << 13 else 4
    return tile // (_LANES * parts)


def group_count(k: int) -> int:
    """Groups of blocks among which the k-th best is looked for: a power of two."""
    return 1 << max(_LEAST_GROUPS, _GROUPS_PER_RESULT * k).bit_length() - 1


def expand(
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
        (n,) bool, queries whose hits are all there.

    Returns
    -------
    row and entry (P,) int64, sorted by row.
    """
    capacity = hits.hits.shape[1]
    columns = int(torch.where(chosen, hits.count, 0).max().clamp(max=capacity))
    there = torch.arange(columns, device=chosen.device) < hits.count[:, None]
    row, column = (there & chosen[:, None]).nonzero(as_tuple=True)
    code = hits.hits[row, column].long()
    size = entries.block
    block, rest = code // (2 * size), code % (2 * size)
    whole = rest >= size
    copies = torch.where(whole, size, 1)
    row, block = row.repeat_interleave(copies), block.repeat_interleave(copies)
    ends = copies.cumsum(0)
    inside = torch.arange(row.shape[0], device=row.device)
    inside = inside - (ends - copies).repeat_interleave(copies)
    index = torch.where(whole, 0, rest).repeat_interleave(copies) + inside
    position = block // _LANES * (_LANES * size) + block % _LANES * 2
    position += index // 2 * (2 * _LANES) + index % 2
    exists = position < entries.size
    return row[exists], entries.ids[position[exists]]


def _kth_group(lower: torch.Tensor, k: int) -> torch.Tensor:
    """A number (n,) that k blocks reach: the k-th largest of the groups' largest."""
    groups = group_count(k)
    if lower.shape[1] > 2 * groups:
        whole = lower.shape[1] // groups * groups
        largest = lower[:, :whole].view(lower.shape[0], -1, groups).amax(1)
        lower = torch.cat([largest, lower[:, whole:]], 1)
    return lower.topk(k, dim=1).values[:, -1]


def _scores(queries: QueryCodes, entries: EntryCodes, first: int) -> torch.Tensor:
    """Scores (n, tile) float32 of one tile."""
    tile = slice(first, first + entries.tile)
    codes = entries.codes[tile]
    if codes.is_cuda and queries.codes.shape[0] > 16:
        products = torch._int_mm(queries.codes, codes.T).float()
    else:
        # Sums of products of int8 numbers are exact while they fit into the significand.
        exact = codes.shape[1] * 127 * 127 < _EXACT_IN_FLOAT32 and not codes.is_cuda
        kind = torch.float32 if exact else torch.float64
        products = (queries.codes.to(kind) @ codes.T.to(kind)).float()
    return products * entries.step[tile] + queries.alpha[:, None] * entries.bias[tile]


def _bounds(queries: QueryCodes, entries: EntryCodes) -> torch.Tensor:
    """How far a score of a block can be from the true one, at most: (n, blocks)."""
    bound = queries.per_norm[:, None] * entries.tile_norm
    bound += queries.per_residual[:, None] * entries.tile_residual
    bound += 4 * queries.slack[:, None]
    return bound.repeat_interleave(entries.tile // entries.block, 1)
