"""Certified exact top-k with torch alone: any CPU, any torch device.

A float32 product of tiles proposes. Its error is at most gamma_d |x| |t|, whatever the order of
summation, so an entry whose score lies more than two such bounds under the k-th best cannot be
among the k best. Candidates are found in two stages, block maxima first, rescored in float64, and
ordered as :mod:`bliss_index.search.ordering` says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.search.inputs import checked_rows
from bliss_index.search.ordering import dot_error, exact_dot, order_candidates
from bliss_index.search.protocol import SearchStatistics

if TYPE_CHECKING:
    import torch

_BLOCK = 32
_TILE_ROWS = 512
_TILE_ENTRIES = 4096
_PAIRS_AT_ONCE = 4096
_SPARE_PER_ROW = 512
_UNIT_32 = 2.0**-24
_UNIT_TF32 = 2.0**-10
_UNIT_BFLOAT16 = 2.0**-8
_SAFE_EXPONENT = 40


class TorchBackend:
    """Top-k of one vocabulary by torch tiles; see :class:`bliss_index.search.ExactSearch`."""

    name = "torch"

    def __init__(
        self,
        vocabulary: npt.NDArray[Any],
        k: int,
        *,
        device: str | None = None,
        tile: tuple[int, int] | None = None,
        reason: str = "asked for",
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
        self._entries = torch.from_numpy(scaled).to(self._device)
        norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled, dtype=np.float64))
        self._largest_norm = float(norms.max(initial=0.0)) * (1 + 1e-6) + 2.0**-100
        self._norms64 = np.ldexp(norms, self._exponent) * (1 + 1e-6) + math.ldexp(
            2.0**-100, self._exponent
        )
        self.description = f"torch {torch.__version__} on {self._device}, float32 tiles ({reason})"

    @property
    def memory_bytes(self) -> int:
        """Bytes of the converted vocabulary and of the largest tile."""
        tile = 4 * self._tile_rows * self._tile_entries
        return int(self._entries.numel() * 4 + self._norms64.nbytes + 3 * tile)

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

    def _unit(self) -> float:
        """Unit roundoff of a factor inside torch's float32 product, as configured now."""
        torch = self._torch
        precision = torch.get_float32_matmul_precision()
        if self._device.type == "cpu":
            return {"highest": 0.0, "high": _UNIT_BFLOAT16, "medium": _UNIT_BFLOAT16}[precision]
        return {"highest": 0.0, "high": _UNIT_TF32, "medium": _UNIT_BFLOAT16}[precision]

    def _search_tile(
        self, queries: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], SearchStatistics]:
        torch = self._torch
        k, n, size = self._k, queries.shape[0], self._vocabulary.shape[0]
        wide = queries.astype(np.float64)
        exponents = np.frexp(np.abs(wide).max(axis=1, initial=0.0))[1]
        scaled64 = np.ldexp(wide, -exponents[:, None])
        scaled = scaled64.astype(np.float32)
        norms = np.linalg.norm(scaled64, axis=1) * (1 + 1e-6) + 2.0**-100
        unit = self._unit()
        relative = (queries.shape[1] + 8) * _UNIT_32 * 1.001 + 2 * unit + unit * unit
        bounds = relative * norms * self._largest_norm + 2.0**-90
        slack = torch.from_numpy((2 * bounds * (1 + 1e-6)).astype(np.float32)).to(self._device)
        x = torch.from_numpy(scaled).to(self._device)

        best = torch.full((n, k), -math.inf, device=self._device)
        found: list[tuple[Any, Any, Any]] = []
        overflowed = torch.zeros(n, dtype=torch.bool, device=self._device)
        for first in range(0, size, self._tile_entries):
            scores = x @ self._entries[first : first + self._tile_entries].T
            best = self._propose(scores, first, best, slack, overflowed, found)
        threshold = best[:, -1] - slack
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
        slack: torch.Tensor,
        overflowed: torch.Tensor,
        found: list[tuple[Any, Any, Any]],
    ) -> torch.Tensor:
        """Add this tile's candidates to ``found``; return the best k scores of blocks so far."""
        torch = self._torch
        n, width = scores.shape
        k = self._k
        block = _BLOCK if width >= _BLOCK * max(4 * k, 16) else 1
        whole = width - width % block
        maxima = scores[:, :whole].view(n, whole // block, block).amax(2) if block > 1 else scores
        if whole < width:
            maxima = torch.cat([maxima, scores[:, whole:].amax(1, keepdim=True)], 1)
        top = maxima.topk(min(k, maxima.shape[1]), dim=1).values
        best = torch.cat([best, top], 1).topk(k, dim=1).values
        threshold = best[:, -1] - slack
        passing = maxima >= threshold[:, None]
        overflowed |= passing.sum(1) > _SPARE_PER_ROW + 4 * k
        passing &= ~overflowed[:, None]
        row, column = passing.nonzero(as_tuple=True)
        if block > 1:
            offsets = column[:, None] * block + torch.arange(block, device=column.device)
            inside = offsets < width
            values = scores[row[:, None], offsets.clamp(max=width - 1)]
            hit, lane = (inside & (values >= threshold[row][:, None])).nonzero(as_tuple=True)
            row, column, values = row[hit], offsets[hit, lane], values[hit, lane]
        else:
            values = scores[row, column]
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
        for start in range(0, size, _PAIRS_AT_ONCE):
            block = self._vocabulary[start : start + _PAIRS_AT_ONCE].astype(np.float64)
            scores[start : start + _PAIRS_AT_ONCE] = block @ query
        errors = dot_error(query.size, float(np.linalg.norm(query)) * self._norms64)
        kth = np.partition(scores - errors, size - self._k)[size - self._k]
        ids = np.flatnonzero(scores + errors >= kth)
        return ids, scores[ids], errors[ids]
