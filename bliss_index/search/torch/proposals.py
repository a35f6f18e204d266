"""Low-precision scores of torch tiles, and how far they can be from the true ones.

Two ways to score a tile: float32 as the vectors are, and, on processors that multiply bfloat16
fast, bfloat16 after centring both sides. Centring keeps the order of a query's entries: with m the
mean of the entries and c the mean of the queries,

    <x, t> = <x, m> + <alpha c, t - m> + <x - alpha c, t - m>

of which the first term is the same for all entries. The second one, a number per entry times a
number per query, rides along in three further coordinates of the bfloat16 product.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.search.certificate.precision import UNIT_BFLOAT16, factor_unit

if TYPE_CHECKING:
    import torch

_UNIT_64 = 2.0**-50  # some roundings of float64 together
_UNIT_32 = 2.0**-24
_MARGIN = 1 + 1e-6
_TINY = 2.0**-90
_BIAS_PARTS = 3
_MULTIPLE = 32  # products are fastest with whole blocks of coordinates
_CENTRE_AT_LEAST = 32
_BLOCK_ROWS = 8192
_TRIAL = (256, 2048)
_TRIAL_ROUNDS = 8


@dataclass(frozen=True, eq=False)
class Proposal:
    """What to multiply, and what the result is worth.

    Attributes
    ----------
    queries, entries
        Tensors (n, m) and (W, m), whose product is the scores.
    bounds
        (n,) float64: a score before its own rounding is within this of the true one.
    unit
        A score is rounded by at most this share of itself.
    mean
        (d,) float64: an inner product is a true score and the query's product with this.
    """

    queries: torch.Tensor
    entries: torch.Tensor
    bounds: npt.NDArray[np.float64]
    unit: float
    mean: npt.NDArray[np.float64]


class Float32Scores:
    """Scores of entries (W, d) by torch's float32 product, as precise as torch is set to be."""

    name = "float32"

    def __init__(self, entries: npt.NDArray[np.float32], device: torch.device) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._entries = torch.from_numpy(entries).to(device)
        self._largest = largest_norm(entries)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the entries."""
        return int(self._entries.numel() * 4)

    def propose(self, queries: npt.NDArray[Any]) -> Proposal:
        """Prepare queries (n, d), float32 or float64, whose largest coordinates are about 1."""
        unit = factor_unit(self._device)
        relative = (queries.shape[1] + 8) * _UNIT_32 * 1.001 + 2 * unit + unit * unit
        rows = self._torch.from_numpy(queries.astype(np.float32, copy=False))
        bounds = relative * norms_above(rows) * self._largest + _TINY
        mean = np.zeros(queries.shape[1])
        return Proposal(rows.to(self._device), self._entries, bounds, 0.0, mean)


class Bfloat16Scores:
    """Scores of entries (W, d) by torch's bfloat16 product on a processor, after centring.

    Sums are taken in float32, whatever their order, and rounded to bfloat16 at the end.
    """

    name = "bfloat16"

    def __init__(self, entries: npt.NDArray[Any], exponent: int) -> None:
        import torch

        self._torch = torch
        size, dim = entries.shape
        self._dim = dim
        self._source = entries
        self._exponent = exponent
        width = -(-(dim + _BIAS_PARTS) // _MULTIPLE) * _MULTIPLE
        self._mean = np.zeros(dim)
        for start in range(0, size, _BLOCK_ROWS):
            self._mean += self._wide(start).sum(axis=0) / size
        codes = torch.zeros((size, width), dtype=torch.bfloat16)
        norms, residuals = np.empty(size), np.empty(size)
        raw = 0.0
        for start in range(0, size, _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            wide = self._wide(start)
            raw = max(raw, float(np.linalg.norm(wide, axis=1).max()))
            centred = wide - self._mean
            rounded = torch.from_numpy(centred.astype(np.float32)).bfloat16()
            codes[part, :dim] = rounded
            norms[part] = np.linalg.norm(centred, axis=1)
            residuals[part] = np.linalg.norm(centred - rounded.double().numpy(), axis=1)
        self._norm = float(norms.max()) * _MARGIN + 2.0**-100
        self._residual = float(residuals.max()) * _MARGIN + 2.0**-100
        # What centring itself rounds, in float64, and products with the mean.
        self._subtraction = _UNIT_64 * (raw + (dim + 1) * float(np.linalg.norm(self._mean)))
        self._lock = threading.Lock()
        self._centre = _Centre(np.zeros(dim, dtype=np.float32), 0.0, codes, 0.0, 0.0)
        self._has_centre = False

    @property
    def memory_bytes(self) -> int:
        """Bytes of the rounded entries."""
        return int(self._centre.entries.numel() * 2)

    def propose(self, queries: npt.NDArray[Any]) -> Proposal:
        """Prepare queries (n, d), float32 or float64, whose largest coordinates are about 1."""
        torch = self._torch
        x = torch.from_numpy(queries.astype(np.float32, copy=False))
        centre = self._take_centre(x)
        alpha = torch.zeros(x.shape[0], dtype=torch.float32)
        if centre.norm:
            direction = centre.vector / np.float32(centre.norm**2)
            alpha = (x @ torch.from_numpy(direction)).bfloat16().float()
        rest = torch.addr(x, alpha, torch.from_numpy(centre.vector), alpha=-1)
        rows = torch.zeros((x.shape[0], centre.entries.shape[1]), dtype=torch.bfloat16)
        rows[:, : self._dim] = rest
        rows[:, self._dim : self._dim + _BIAS_PARTS] = alpha[:, None]
        codes = rows[:, : self._dim].float()
        norms, lengths = norms_above(codes), norms_above(x)
        # A float32 number less its bfloat16 one is exact.
        rounding = norms_above(rest.sub_(codes)) * self._norm + norms * self._residual
        alpha64 = np.abs(alpha.double().numpy())
        shifts = lengths + 2 * alpha64 * centre.norm
        # Queries and their centring are rounded to float32, entries and theirs to float64.
        rounding += 3 * _UNIT_32 * shifts * self._norm + lengths * self._subtraction
        bias = alpha64 * centre.bias_error
        largest = norms * (self._norm + self._residual) + 4 * alpha64 * centre.largest_bias
        summing = (2 * rows.shape[1] + 16) * _UNIT_32 * largest
        bounds = (rounding + bias + summing) * _MARGIN + _TINY
        return Proposal(rows, centre.entries, bounds, UNIT_BFLOAT16, self._mean)

    def _take_centre(self, queries: torch.Tensor) -> _Centre:
        """Let the first batch of some size say where queries lie. Speeds up, changes no result."""
        if self._has_centre or queries.shape[0] < _CENTRE_AT_LEAST:
            return self._centre
        with self._lock:
            if not self._has_centre:
                wide = queries.double().numpy()
                norms = np.linalg.norm(wide, axis=1)
                known = norms > 0
                if known.any():
                    directions = wide[known] / norms[known, None]
                    self._centre = self._centred_at(directions.mean(axis=0).astype(np.float32))
                self._has_centre = True
        return self._centre

    def _centred_at(self, vector: npt.NDArray[np.float32]) -> _Centre:
        """Put the entries' products with a centre of the queries beside their codes."""
        wide = vector.astype(np.float64)
        bias = np.empty(self._source.shape[0])
        for start in range(0, bias.size, _BLOCK_ROWS):
            bias[start : start + _BLOCK_ROWS] = (self._wide(start) - self._mean) @ wide
        codes = self._centre.entries.clone()
        left = bias.copy()
        for number in range(_BIAS_PARTS):
            rounded = self._torch.from_numpy(left.astype(np.float32)).bfloat16()
            codes[:, self._dim + number] = rounded
            left -= rounded.double().numpy()
        norm = float(np.linalg.norm(wide)) * _MARGIN
        error = float(np.abs(left).max()) + norm * (
            self._subtraction + vector.size * _UNIT_64 * self._norm
        )
        return _Centre(vector, norm, codes, float(np.abs(bias).max()), error)

    def _wide(self, start: int) -> npt.NDArray[np.float64]:
        """A block of entries in float64, the largest coordinate of all about 1."""
        block = self._source[start : start + _BLOCK_ROWS].astype(np.float64)
        return np.asarray(np.ldexp(block, -self._exponent))


@dataclass(frozen=True, eq=False)
class _Centre:
    """A centre of the queries, its norm, and entries that carry their products with it."""

    vector: npt.NDArray[np.float32]
    norm: float
    entries: torch.Tensor
    largest_bias: float
    bias_error: float


def norms_above(rows: torch.Tensor) -> npt.NDArray[np.float64]:
    """Norms of float32 rows (n, d), from above, whatever the order of their sums."""
    norms: npt.NDArray[np.float64] = rows.norm(dim=1).double().numpy()
    return norms * (1 + (rows.shape[1] + 8) * _UNIT_32) + 2.0**-60


def largest_norm(rows: npt.NDArray[np.float32]) -> float:
    """Norm of the longest row, from above."""
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return float(np.sqrt(squares.max(initial=0.0))) * _MARGIN + 2.0**-100


def bfloat16_is_fast(dim: int) -> bool:
    """Whether this processor multiplies bfloat16 clearly faster than float32: a short trial."""
    import torch

    rows, entries = (torch.ones((n, dim), dtype=torch.float32) for n in _TRIAL)
    kinds = (torch.float32, torch.bfloat16)
    factors = [(rows.to(kind), entries.T.to(kind)) for kind in kinds]
    best = [float("inf"), float("inf")]
    for _ in range(_TRIAL_ROUNDS):  # in turn: other work of the machine then disturbs both
        for i, (a, b) in enumerate(factors):
            began = time.perf_counter()
            torch.mm(a, b)
            best[i] = min(best[i], time.perf_counter() - began)
    return best[1] < 0.8 * best[0]
