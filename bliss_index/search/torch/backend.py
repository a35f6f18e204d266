"""Certified exact top-k with torch alone: any CPU, any torch device.

A product of tiles proposes, in float32, or in bfloat16 where a processor is faster at it. The error
of a score is bounded (:mod:`bliss_index.search.torch.proposals`), so an entry whose score lies
further under the k-th best than both bounds together cannot be among the k best. What is in reach
is a candidate (:mod:`bliss_index.search.torch.candidates`). The k best by score are evaluated in
float64, and the others that these do not exclude, and ordered as
:mod:`bliss_index.search.certificate.ordering` says. Where so many are in reach that a product in
float64 costs less, it takes the place of that in low precision.
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

    from bliss_index.search.torch.candidates import Candidates

_TILE_ROWS = 512
_TILE_ENTRIES = 4096
_ROWS_AT_ONCE = 4096
# torch's threads flush denormals to zero for ever if they were started by a thread that did. So a
# float32 coordinate may be read as zero below _DENORMAL, which the bounds of products allow for; a
# vocabulary where that would cost much is kept in float64, whose coordinates are never that small.
_DENORMAL = 2.0**-126
_LEAST_LARGEST = 2.0**-60
# Candidates of a query, beyond a few per result: as many as take as long as all entries at once.
_LEAST_ROOM, _MOST_ROOM, _SHARE, _PER_RESULT = 512, 8192, 16, 8
_FEW = 16  # candidates of a query beyond k that are evaluated at once


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
        from bliss_index.search.torch.candidates import find_candidates

        n, k = queries.shape[0], self._k
        work = np.float64 if queries.dtype == np.float64 else np.float32
        narrow = queries.astype(work, copy=False)
        exponents = np.frexp(np.abs(narrow).max(axis=1, initial=0.0))[1]
        proposal = self._scores.propose(np.ldexp(narrow, -exponents[:, None]))
        found, full = find_candidates(proposal, k, self._tile_entries, self._room())
        wide = self._torch.from_numpy(queries.astype(np.float64))
        lengths = wide.norm(dim=1).numpy()
        candidates = found[0].size
        (row, entry, value), rescored = self._rescored(proposal, found, wide, lengths, exponents)
        if full.size:
            (part, more, values), _ = find_candidates(
                self._in_full(wide[full], lengths[full]), k, self._tile_entries
            )
            candidates, rescored = candidates + more.size, rescored + more.size
            row, entry = np.concatenate([row, full[part]]), np.concatenate([entry, more])
            value = np.concatenate([value, values])
        values, ids, resolved = order_candidates(
            row, entry, value, self._error(lengths[row], entry), (n, k),
            lambda i, w: exact_dot(queries[i], self._vocabulary[w]),
        )  # fmt: skip
        counted = SearchStatistics(n, candidates, rescored, resolved, full.size)
        return values, ids, counted

    def _room(self) -> int:
        """Candidates of a query; where there are more, a product with every entry is no slower."""
        share = int(self._vocabulary.shape[0]) // _SHARE
        return min(max(_LEAST_ROOM, share), _MOST_ROOM) + _PER_RESULT * self._k

    def _rescored(
        self,
        proposal: Proposal,
        found: Candidates,
        wide: torch.Tensor,
        lengths: npt.NDArray[np.float64],
        exponents: npt.NDArray[np.int32],
    ) -> tuple[Candidates, int]:
        """Rows, entries and float64 products of what can be in the k best; how many were evaluated.

        The k best by score come first. A candidate whose upper bound is below the least of their
        lower bounds is not evaluated. Queries were divided by 2**exponent before they were scored.
        """
        row, entry, score = found
        values = np.empty(row.size)
        if row.size <= wide.shape[0] * (self._k + _FEW):
            return (row, entry, self._products.of(wide, row, entry)), row.size
        counts = np.bincount(row, minlength=wide.shape[0])
        starts = np.cumsum(counts) - counts
        table = np.full((counts.size, int(counts.max())), -np.inf, dtype=np.float32)
        table[row, np.arange(row.size) - starts[row]] = score
        least = table.shape[1] - self._k
        first = score >= np.partition(table, least, axis=1)[row, least]
        mine, known = row[first], entry[first]
        values[first] = self._products.of(wide, mine, known)
        lower = values[first] - self._error(lengths[mine], known)
        kth = np.full(counts.size, np.inf)
        np.minimum.at(kth, mine, lower)
        shift = np.ldexp(wide.numpy() @ proposal.mean, -exponents)
        reach = np.ldexp(kth, -exponents - self._exponent) - shift - (1 + 1e-6) * proposal.bounds
        reach -= 2.0**-50 * (np.abs(reach) + np.abs(shift))
        again = (score + (proposal.unit + 2.0**-50) * np.abs(score) >= reach[row]) & ~first
        again = np.flatnonzero(again)
        evaluated = mine.size + again.size
        mine, known = row[again], entry[again]
        values[again] = self._products.of(wide, mine, known)
        first[again] = values[again] + self._error(lengths[mine], known) >= kth[mine]
        return (row[first], entry[first], values[first]), evaluated

    def _in_full(self, wide: torch.Tensor, lengths: npt.NDArray[np.float64]) -> Proposal:
        """Propose with float64 products, whose scores are the products to be ordered."""
        at = int(self._norms64.argmax())
        bounds = self._error(lengths, np.full(lengths.size, at))
        return Proposal(wide, as_tensor(self._vocabulary), bounds, 0.0, np.zeros(wide.shape[1]))

    def _error(
        self, lengths: npt.NDArray[np.float64], entry: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        dim = self._vocabulary.shape[1]
        error = dot_error(dim, lengths * self._norms64[entry])
        return np.asarray(error + (dim * _DENORMAL) * lengths if self._narrow else error)
