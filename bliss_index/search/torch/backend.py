"""Certified exact top-k with torch alone: any CPU, any torch device.

A product of tiles proposes, in float32, or in bfloat16 where a processor is faster at it. The error
of a score is bounded (:mod:`bliss_index.search.torch.proposals`), so an entry whose score lies
further under the k-th best than both bounds together cannot be among the k best. A few more than k
of the best scores are kept; where the last of them is still in reach, many more; where even those
do not do, the row is searched in full. What is in reach is rescored in float64, and ordered as
:mod:`bliss_index.search.certificate.ordering` says.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.devices import resolve_device
from bliss_index.search.certificate.ordering import dot_error, exact_dot, order_candidates
from bliss_index.search.inputs import as_tensor, checked_rows, largest_magnitude, require_tile
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import Backend, SearchStatistics
from bliss_index.search.torch.proposals import (
    Bfloat16Scores,
    Float32Scores,
    Proposal,
    bfloat16_is_fast,
)
from bliss_index.search.torch.rescoring import PairProducts

if TYPE_CHECKING:
    import torch

_TILE_ROWS = 512
_TILE_ENTRIES = 4096
_ROWS_AT_ONCE = 4096
# Entries of a block, of which only the best counts at first; blocks there must be for each result.
_BLOCK, _BLOCKS_PER_RESULT = 16, 4
_ENTRIES_PER_RESULT = 4  # for a threshold that is above the mean of all scores
_NO_NUMBER = 0x7FFF  # above all numbers of bfloat16
# torch's threads flush denormals to zero for ever if they were started by a thread that did. So a
# float32 coordinate may be read as zero below _DENORMAL, which the bounds of products allow for; a
# vocabulary where that would cost much is kept in float64, whose coordinates are never that small.
_DENORMAL = 2.0**-126
_LEAST_LARGEST = 2.0**-60
# Candidates kept beyond k: at first, and for the rows where those were too few.
_SPARE, _SPARE_AT_MOST = 16, 512


class TorchBackend:
    """Top-k of one vocabulary by torch tiles; see :class:`bliss_index.search.ExactSearch`."""

    name = "torch"
    chunk_rows = 8192

    @staticmethod
    def availability() -> tuple[bool, str]:
        """Whether torch is installed."""
        there = find_spec("torch") is not None
        return there, "any torch device" if there else "torch is not installed"

    @staticmethod
    def unfit(vocabulary: npt.NDArray[Any]) -> str:
        """Nothing is too large."""
        return ""

    @staticmethod
    def prepare(
        vocabulary: npt.NDArray[Any],
        k: int,
        *,
        threads: int,
        device: str | None,
        tile: tuple[int, int] | None,
        reason: str,
    ) -> Backend:
        """See :class:`bliss_index.search.protocol.EngineClass`; on GPUs by products of torch's."""
        tile = require_tile(tile, 1)
        if device is not None:
            resolve_device(device)
            if device.startswith("cuda"):
                from bliss_index.search.device.backend import DeviceBackend
                from bliss_index.search.device.engine import torch_engine

                return DeviceBackend(vocabulary, k, device=device, engine=torch_engine("asked for"))
        return TorchBackend(vocabulary, k, device=device, tile=tile, reason=reason)

    @isolated
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
        largest = largest_magnitude(vocabulary)
        if vocabulary.dtype == np.float32 and largest < _LEAST_LARGEST:
            vocabulary = vocabulary.astype(np.float64)
        self._vocabulary = vocabulary
        self._products = PairProducts(as_tensor(vocabulary))
        self._narrow = vocabulary.dtype == np.float32
        self._k = k
        self._device = torch.device(device or "cpu")
        self._tile_rows, self._tile_entries = tile or (_TILE_ROWS, _TILE_ENTRIES)
        self._exponent = math.frexp(largest)[1] if largest > 0 else 0
        if precision == "auto":
            fast = self._device.type == "cpu" and bfloat16_is_fast(vocabulary.shape[1])
            precision = "bfloat16" if fast else "float32"
        self._scores: Float32Scores | Bfloat16Scores
        self._norms64 = np.empty(vocabulary.shape[0])
        keep = precision == "float32"
        scaled = np.empty(vocabulary.shape if keep else (0, 0), dtype=np.float32)
        for start in range(0, vocabulary.shape[0], _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            block = np.ldexp(vocabulary[part].astype(np.float64), -self._exponent)
            self._norms64[part] = np.sqrt(np.einsum("ij,ij->i", block, block))
            if keep:
                scaled[part] = block
        self._norms64 = np.ldexp(self._norms64, self._exponent) * (1 + 1e-6) + math.ldexp(
            2.0**-100, self._exponent
        )
        if keep:
            self._scores = Float32Scores(scaled, self._device)
        else:
            self._scores = Bfloat16Scores(vocabulary, self._exponent)
        self.description = (
            f"torch {torch.__version__} on {self._device}, {precision} tiles ({reason})"
        )

    @property
    def memory_bytes(self) -> int:
        """Bytes of the vocabulary as it is converted, and of the largest tile."""
        tile = 4 * self._tile_rows * self._tile_entries
        kept = self._scores.memory_bytes + self._products.memory_bytes + self._norms64.nbytes
        return int(kept + 3 * tile)

    @isolated
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
        n, size = queries.shape[0], self._vocabulary.shape[0]
        work = np.float64 if queries.dtype == np.float64 else np.float32
        narrow = queries.astype(work, copy=False)
        exponents = np.frexp(np.abs(narrow).max(axis=1, initial=0.0))[1]
        proposal = self._scores.propose(np.ldexp(narrow, -exponents[:, None]))
        one_tile = _ENTRIES_PER_RESULT * self._k <= size <= self._tile_entries
        if one_tile and self._device.type == "cpu":
            row, entry, full = self._propose_of_one_tile(proposal)
        else:
            row, entry, full = self._propose(proposal, _SPARE + self._k // 2)
        if full.size and self._k + _SPARE + self._k // 2 < size:
            part, more, overflowed = self._propose(proposal.of(full), _SPARE_AT_MOST + 3 * self._k)
            row, entry = np.concatenate([row, full[part]]), np.concatenate([entry, more])
            full = full[overflowed]
        wide = self._torch.from_numpy(queries.astype(np.float64))
        value = self._products.of(wide, row, entry)
        lengths = wide.norm(dim=1).numpy()
        error = self._error(lengths[row], entry)
        for index in full:
            more, its_values, its_errors = self._search_row(wide[index].numpy())
            row = np.concatenate([row, np.full(more.size, index)])
            entry = np.concatenate([entry, more])
            value = np.concatenate([value, its_values])
            error = np.concatenate([error, its_errors])
        values, ids, resolved = order_candidates(
            row, entry, value, error, (n, self._k),
            lambda i, w: exact_dot(queries[i], self._vocabulary[w]),
        )  # fmt: skip
        counted = SearchStatistics(n, row.size, row.size, resolved, full.size)
        return values, ids, counted

    def _propose(
        self, proposal: Proposal, spare: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows and entries of all candidates, and the rows whose candidates are not all known."""
        lib = self._torch
        k, size = self._k, self._vocabulary.shape[0]
        keep = min(size, k + spare)
        best: torch.Tensor | None = None
        ids: torch.Tensor | None = None
        for first in range(0, size, self._tile_entries):
            scores = proposal.queries @ proposal.entries[first : first + self._tile_entries].T
            top, places = scores.topk(min(keep, scores.shape[1]), dim=1)
            places += first
            if best is not None and ids is not None:
                top, places = lib.cat([best, top], 1), lib.cat([ids, places], 1)
                top, order = top.topk(min(keep, top.shape[1]), dim=1)
                places = places.gather(1, order)
            best, ids = top, places
        if best is None or ids is None:
            raise RuntimeError("a vocabulary without entries")
        reach = reachable(lib, proposal, best[:, k - 1].float())
        passing = best.float() >= reach[:, None]
        overflowed = passing[:, -1] & (keep < size)
        row, column = (passing & ~overflowed[:, None]).nonzero(as_tuple=True)
        full = overflowed.nonzero(as_tuple=True)[0]
        return row.cpu().numpy(), ids[row, column].cpu().numpy(), full.cpu().numpy()

    def _propose_of_one_tile(
        self, proposal: Proposal
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Do what :meth:`_propose` does, for entries of one tile and many more than k.

        What the k-th best score puts in reach is read off the scores. The k-th best of blocks' best
        scores is at most that, since k entries reach it, and cheaper to find where blocks are many.
        """
        lib = self._torch
        scores = proposal.queries @ proposal.entries.T
        n, size = scores.shape
        block = _BLOCK if size >= _BLOCK * _BLOCKS_PER_RESULT * self._k else 1
        width = size // block
        # Integers are compared much faster than bfloat16 numbers, and in the same order where the
        # larger is positive.
        narrow = scores.dtype == lib.bfloat16
        numbers = scores.view(lib.int16) if narrow else scores
        best = numbers[:, : block * width].reshape(n, block, width).amax(1).numpy()
        kth = lib.from_numpy(np.partition(best, width - self._k, axis=1)[:, width - self._k].copy())
        reach = reachable(lib, proposal, (kth.view(scores.dtype) if narrow else kth).float())
        unknown = np.zeros(n, dtype=bool)
        if narrow:  # rounded, but never up
            reach = (reach - 2.0**-7 * reach.abs() - 2.0**-100).to(scores.dtype).view(lib.int16)
            unknown = reach.numpy() <= 0
            reach[lib.from_numpy(unknown)] = _NO_NUMBER
        flat = np.flatnonzero(numbers.numpy() >= reach.numpy()[:, None])
        row, entry = np.divmod(flat, size)
        unknown |= np.bincount(row, minlength=n) > self._k + _SPARE_AT_MOST
        if unknown.any():
            known = ~unknown[row]
            row, entry = row[known], entry[known]
        return row, entry, np.flatnonzero(unknown)

    def _error(
        self, lengths: npt.NDArray[np.float64], entry: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        dim = self._vocabulary.shape[1]
        error = dot_error(dim, lengths * self._norms64[entry])
        return np.asarray(error + (dim * _DENORMAL) * lengths if self._narrow else error)

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


def reachable(lib: Any, proposal: Proposal, kth: torch.Tensor) -> torch.Tensor:
    """From the k-th best scores (n,) to the least scores that can still be among the k best.

    With b the bound and u the unit of rounding, a true score is at least s - u |s| - b and at most
    s + u |s| + b. The k-th largest of the former is that of the k-th best score, since they grow
    with s; an entry is out of reach when its latter is below.
    """
    unit = proposal.unit
    bounds = lib.from_numpy((proposal.bounds * (1 + 1e-6)).astype(np.float32)).to(kth.device)
    # The last factor covers the roundings of these lines, in float32.
    loss = (unit + 2.0**-20) * kth.abs() + (2 + 2.0**-20) * bounds
    target = kth - loss
    above = target / (1 + 1.01 * unit)
    below = target / (1 - 1.01 * unit)
    result: torch.Tensor = lib.where(target >= 0, above, below)
    return result
