"""Which entries can be among the k best: an integer product, and a test under the bound.

Two questions are asked of the product of codes. Block maxima over a sample of the entries give, for
every query, a threshold that its k-th best entry certainly reaches. Then all entries are tested
against it, and those that can reach it are collected. The matrix of scores exists tile by tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from bliss_index.search.device.codes import EntryCodes, QueryCodes

BLOCK = 32  # entries that share a maximum
_EXACT_IN_FLOAT32 = 1 << 24


@dataclass(frozen=True, eq=False)
class Collected:
    """Candidates of n queries.

    Attributes
    ----------
    count
        (n,) int32, how many entries passed; where that is more than there is room for, only some
        of them are here.
    positions, scores
        (n, capacity) int32 and float32: places in the order of the entry codes, and scores; the
        first ``count`` of a row are meaningful.
    """

    count: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor


class Proposals(Protocol):
    """A way to compute both."""

    name: str

    def maxima(self, queries: QueryCodes, entries: EntryCodes, count: int) -> torch.Tensor:
        """Lower bounds that some entry of each block reaches.

        Parameters
        ----------
        queries, entries
            Both sides.
        count
            Look at the first so many entries; whole tiles.

        Returns
        -------
        (n, count / 32) float32.
        """
        ...

    def collect(
        self, queries: QueryCodes, entries: EntryCodes, threshold: torch.Tensor, capacity: int
    ) -> Collected:
        """Find all entries whose score plus its bound reaches the query's threshold (n,)."""
        ...


class TorchProposals:
    """With torch's own products: any device, any version."""

    name = "torch"

    def maxima(self, queries: QueryCodes, entries: EntryCodes, count: int) -> torch.Tensor:
        """See :class:`Proposals`."""
        found = []
        for first in range(0, count, entries.tile):
            scores = _scores(queries, entries, first)
            reached = scores.view(scores.shape[0], -1, BLOCK).amax(2)
            found.append(reached - (_bound(queries, entries, first) + 2 * queries.slack)[:, None])
        return torch.cat(found, 1)

    def collect(
        self, queries: QueryCodes, entries: EntryCodes, threshold: torch.Tensor, capacity: int
    ) -> Collected:
        """See :class:`Proposals`."""
        n, device = threshold.shape[0], threshold.device
        count = torch.zeros(n, dtype=torch.int64, device=device)
        positions = torch.zeros((n, capacity), dtype=torch.int32, device=device)
        kept = torch.zeros((n, capacity), dtype=torch.float32, device=device)
        for first in range(0, entries.size, entries.tile):
            scores = _scores(queries, entries, first)[:, : entries.size - first]
            cut = threshold - _bound(queries, entries, first) - 4 * queries.slack
            hit = scores >= cut[:, None]
            place = count[:, None] + hit.cumsum(1) - 1
            row, column = (hit & (place < capacity)).nonzero(as_tuple=True)
            at = place[row, column]
            positions[row, at] = (column + first).to(torch.int32)
            kept[row, at] = scores[row, column]
            count += hit.sum(1)
        return Collected(count.to(torch.int32), positions, kept)


def _scores(queries: QueryCodes, entries: EntryCodes, first: int) -> torch.Tensor:
    """Scores (n, tile) float32 of one tile."""
    tile = slice(first, first + entries.tile)
    codes = entries.codes[tile]
    if codes.is_cuda and queries.codes.shape[0] > 16:
        products = torch._int_mm(queries.codes, codes.T).float()
    else:
        # Sums of products of int8 numbers are exact while they fit into the significand.
        exact = codes.shape[1] * 127 * 127 < _EXACT_IN_FLOAT32
        kind = torch.float32 if exact and not codes.is_cuda else torch.float64
        products = (queries.codes.to(kind) @ codes.T.to(kind)).float()
    scaled = products * (queries.step[:, None] * entries.step[tile])
    return scaled + queries.alpha[:, None] * entries.bias[tile]


def _bound(queries: QueryCodes, entries: EntryCodes, first: int) -> torch.Tensor:
    """Largest distance (n,) of a score of this tile from the true one, without the slack."""
    number = first // entries.tile
    largest = queries.per_norm * entries.tile_norm[number]
    return largest + queries.per_residual * entries.tile_residual[number]
