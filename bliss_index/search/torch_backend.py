"""Certified exact top-k with torch alone: any CPU, any torch device.

A product of tiles proposes, in float32, or in bfloat16 where a processor is faster at it. The error
of a score is bounded (:mod:`bliss_index.search.torch_proposals`), so an entry whose score lies
further under the k-th best than both bounds together cannot be among the k best. Candidates are
found in two stages, block maxima first, rescored in float64, and ordered as
:mod:`bliss_index.search.ordering` says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.search.inputs import checked_rows
from bliss_index.search.ordering import dot_error, exact_dot, order_candidates
from bliss_index.search.protocol import SearchStatistics
from bliss_index.search.torch_proposals import (
    Bfloat16Scores,
    Float32Scores,
    Proposal,
    bfloat16_is_fast,
)

if TYPE_CHECKING:
    import torch

_BLOCK = 32
_TILE_ROWS = 512
_TILE_ENTRIES = 4096
_PAIRS_AT_ONCE = 512
_ROWS_AT_ONCE = 4096
_SPARE_PER_ROW = 512


class TorchBackend:
    """Top-k of one vocabulary by torch tiles; see :class:`bliss_index.search.ExactSearch`."""

    name = "torch"
    chunk_rows = 8192

    def __init__(
        self,
        vocabulary: npt.NDArray[Any],
        k: int,
        *,
        device: str | None = None,
        tile: tuple[int, int] | None = None,
        reason: str = "asked for",
        precision: str = "auto",
    ) -> None:
        import torch

        self._torch = torch
        self._vocabulary = vocabulary
        self._k = k
        self._device = torch.device(device or "cpu")
        self._tile_rows, self._tile_entries = tile or (_TILE_ROWS, _TILE_ENTRIES)
        wide = vocabulary.astype(np.float64) if vocabulary.dtype == np.float64 else vocabulary
        largest = float(np.abs(vocabulary).max(initial=0)) if vocabulary.size else 0.0
        self._exponent = math.frexp(largest)[1] if largest > 0 else 0
        scaled = np.ldexp(wide.astype(np.float64), -self._exponent).astype(np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled, dtype=np.float64))
        self._norms64 = np.ldexp(norms, self._exponent) * (1 + 1e-6) + math.ldexp(
            2.0**-100, self._exponent
        )
        if precision == "auto":
            fast = self._device.type == "cpu" and bfloat16_is_fast(vocabulary.shape[1])
            precision = "bfloat16" if fast else "float32"
        self._scores: Float32Scores | Bfloat16Scores = (
            Bfloat16Scores(vocabulary, self._exponent)
            if precision == "bfloat16"
            else Float32Scores(scaled, self._device)
        )
        self.description = (
            f"torch {torch.__version__} on {self._device}, {precision} tiles ({reason})"
        )

    @property
    def memory_bytes(self) -> int:
        """Bytes of the converted vocabulary and of the largest tile."""
        tile = 4 * self._tile_rows * self._tile_entries
        return int(self._scores.memory_bytes + self._norms64.nbytes + 3 * tile)

    def search(
        self, queries: npt.NDArray[Any], first_row: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], SearchStatistics]:
        """Return values (n, k) float64, ids (n, k) and counters of queries (n, dim)."""
        queries = checked_rows(queries, "queries", first_row)
        n = queries.shape[0]
        values = np.empty((n, self._k))
        ids = np.empty((n, self._k), dtype=np.int64)
        statistics = SearchStatistics()
        for start in range(0, n, self._tile_rows):
            stop = min(n, start + self._tile_rows)
            values[start:stop], ids[start:stop], counted = self._search_tile(queries[start:stop])
            statistics += counted
        return values, ids, statistics

    def _search_tile(
        self, queries: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], SearchStatistics]:
        torch = self._torch
        k, n, size = self._k, queries.shape[0], self._vocabulary.shape[0]
        wide = queries.astype(np.float64)
        exponents = np.frexp(np.abs(wide).max(axis=1, initial=0.0))[1]
        proposal = self._scores.propose(np.ldexp(wide, -exponents[:, None]))
        reach = _Reach(torch, proposal, self._device)

        best = torch.full((n, k), -math.inf, device=self._device)
        found: list[tuple[Any, Any, Any]] = []
        overflowed = torch.zeros(n, dtype=torch.bool, device=self._device)
        for first in range(0, size, self._tile_entries):
            scores = proposal.queries @ proposal.entries[first : first + self._tile_entries].T
            best = self._propose(scores, first, best, reach, overflowed, found)
        threshold = reach.of(best[:, -1])
        rows = torch.cat([f[0] for f in found])
        entries = torch.cat([f[1] for f in found])
        scores = torch.cat([f[2] for f in found])
        keep = (scores >= threshold[rows]) & ~overflowed[rows]
        row = rows[keep].cpu().numpy()
        entry = entries[keep].cpu().numpy()
        full = np.flatnonzero(overflowed.cpu().numpy())
        value = self._rescore(wide, row, entry)
        error = self._error(wide, row, entry)
        for index in full:
            more, its_values, its_errors = self._search_row(wide[index])
            row = np.concatenate([row, np.full(more.size, index)])
            entry = np.concatenate([entry, more])
            value = np.concatenate([value, its_values])
            error = np.concatenate([error, its_errors])
        values, ids, resolved = order_candidates(
            row, entry, value, error, (n, k),
            lambda i, w: exact_dot(queries[i], self._vocabulary[w]),
        )  # fmt: skip
        counted = SearchStatistics(n, row.size, row.size, resolved, full.size)
        return values, ids, counted

    def _propose(
        self,
        scores: torch.Tensor,
        first: int,
        best: torch.Tensor,
        reach: _Reach,
        overflowed: torch.Tensor,
        found: list[tuple[Any, Any, Any]],
    ) -> torch.Tensor:
        """Add this tile's candidates to ``found``; return the best k scores of blocks so far."""
        torch = self._torch
        n, width = scores.shape
        k = self._k
        block = _BLOCK if width >= _BLOCK * max(4 * k, 16) else 1
        blocks, whole = width // block, width - width % block
        # Block b holds the entries b, b + blocks, b + 2 blocks, ...: maxima of whole rows are fast.
        maxima = scores[:, :whole].view(n, block, blocks).amax(1) if block > 1 else scores
        if whole < width:
            maxima = torch.cat([maxima, scores[:, whole:].amax(1, keepdim=True)], 1)
        maxima = maxima.float()
        top = maxima.topk(min(k, maxima.shape[1]), dim=1).values
        best = torch.cat([best, top], 1).topk(k, dim=1).values
        threshold = reach.of(best[:, -1])
        passing = maxima >= threshold[:, None]
        overflowed |= passing.sum(1) > _SPARE_PER_ROW + 4 * k
        passing &= ~overflowed[:, None]
        row, column = passing.nonzero(as_tuple=True)
        if block > 1:
            lanes = torch.arange(block, device=column.device)
            in_tail = (column == blocks)[:, None]
            offsets = torch.where(in_tail, whole + lanes, column[:, None] + lanes * blocks)
            inside = offsets < torch.where(in_tail, width, whole)
            values = scores[row[:, None], offsets.clamp(max=width - 1)].float()
            hit, lane = (inside & (values >= threshold[row][:, None])).nonzero(as_tuple=True)
            row, column, values = row[hit], offsets[hit, lane], values[hit, lane]
        else:
            values = scores[row, column].float()
        found.append((row, column + first, values))
        return best

    def _rescore(
        self, wide: npt.NDArray[np.float64], row: npt.NDArray[Any], entry: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        values = np.empty(row.size)
        for start in range(0, row.size, _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            t = self._vocabulary[entry[part]].astype(np.float64)
            values[part] = np.einsum("ij,ij->i", wide[row[part]], t)
        return values

    def _error(
        self, wide: npt.NDArray[np.float64], row: npt.NDArray[Any], entry: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        norms = np.linalg.norm(wide, axis=1)
        return np.asarray(dot_error(wide.shape[1], norms[row] * self._norms64[entry]))

    def _search_row(
        self, query: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Score one query against every entry in float64; return those that can be in its k."""
        size = self._vocabulary.shape[0]
        scores = np.empty(size)
        for start in range(0, size, _ROWS_AT_ONCE):
            block = self._vocabulary[start : start + _ROWS_AT_ONCE].astype(np.float64)
            scores[start : start + _ROWS_AT_ONCE] = block @ query
        errors = dot_error(query.size, float(np.linalg.norm(query)) * self._norms64)
        kth = np.partition(scores - errors, size - self._k)[size - self._k]
        ids = np.flatnonzero(scores + errors >= kth)
        return ids, scores[ids], errors[ids]


class _Reach:
    """From the k-th best score of a query to the least score that can still be among the k best.

    With b the bound and u the unit of rounding, a true score is at least s - u |s| - b and at most
    s + u |s| + b. The k-th largest of the former is that of the k-th best score, since they grow
    with s; an entry is out of reach when its latter is below.
    """

    def __init__(self, torch: Any, proposal: Proposal, device: torch.device) -> None:
        self._torch = torch
        self._unit = proposal.unit
        bounds = (proposal.bounds * (1 + 1e-6)).astype(np.float32)
        self._bounds = torch.from_numpy(bounds).to(device)

    def of(self, kth: torch.Tensor) -> torch.Tensor:
        """Return the (n,) least scores for (n,) k-th best ones."""
        magnitude = kth.abs()
        # The last factor covers the roundings of these lines, in float32.
        loss = (self._unit + 2.0**-20) * magnitude + (2 + 2.0**-20) * self._bounds
        target = kth - loss
        above = target / (1 + 1.01 * self._unit)
        below = target / (1 - 1.01 * self._unit)
        result: torch.Tensor = self._torch.where(target >= 0, above, below)
        return result
