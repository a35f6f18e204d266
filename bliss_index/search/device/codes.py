"""Vectors made ready for a product in low precision: centred, rotated and rounded to codes.

``docs/certificate.md`` derives the bounds. In short, with m the mean of the entries, c a rough
centre of the queries, R a rotation, y = R (x - alpha c) and z = R (t - m),

    <x, t> = <x, m> + alpha <c, t - m> + <y, z>
    |<y, z> - <y', z'>| <= |y - y'| |z| + |y'| |z - z'|

where y' and z' are what the codes stand for, in units of a step: one step for a query, and one for
a tile of entries, so that the entries of a tile compare without being scaled. The first term is the
same for all entries of a query.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bliss_index.search.certificate.precision import factor_unit
from bliss_index.search.device.ordering import row_errors, sum_limits

LEVELS = 127
CODE_NORM = 1024.0
MOST_LIFT = 2.0**21
UNIT_32 = 2.0**-24
TINY = 2.0**-90
LEAST_NORM = 2.0**-60  # on top of norms, whose smallest squares float32 may lose
LEAST_STEP = 2.0**-100
WIDER = 1 + 2.0**-20  # for the evaluation of a bound in float32
_UNIT_64 = 2.0**-53
_MULTIPLE = 64  # coordinates: what the integer product of a GPU takes at a time
_FACTOR_STAGES = 6
_SEED = 20240717
_EXTREME = 60


@dataclass(frozen=True)
class CodeFormat:
    """The numbers that codes are made of.

    Attributes
    ----------
    name
        For messages.
    dtype
        Of the codes.
    sum_error
        Times the coordinates, the norms of two codes: how far a sum of their products can be off.
    """

    name: str
    dtype: torch.dtype
    sum_error: float

    def bytes_of(self, dim: int) -> int:
        """Bytes of the code of a vector of this length."""
        return padded_dim(dim) * self.dtype.itemsize

    def step(self, rows: torch.Tensor) -> torch.Tensor:
        """Units (n,) in which these rows (n, D) are to be written."""
        if self.dtype == torch.int8:
            return rows.abs().amax(1) / LEVELS
        return rows.square().sum(1).sqrt() / CODE_NORM

    def rounded(self, rows: torch.Tensor) -> torch.Tensor:
        """The nearest codes, in the precision of the rows (n, D), which are in units of a step."""
        if self.dtype == torch.int8:
            return rows.round().clamp(-LEVELS, LEVELS)
        return rows.to(self.dtype).to(rows.dtype)


INT8 = CodeFormat("int8", torch.int8, 0.0)
# Tensor cores align products and cut off bits, in an order of their own: 2^-22 an addition is more
# than any of them loses. Codes have norms of about 2^10 at most, so sums and lifts stay below 2^22.
BFLOAT16 = CodeFormat("bfloat16", torch.bfloat16, 2.0**-22)
FORMATS = {form.name: form for form in (INT8, BFLOAT16)}


def padded_dim(dim: int) -> int:
    """Coordinates of a code: ``dim`` rounded up to what the product takes at a time."""
    return -(-dim // _MULTIPLE) * _MULTIPLE


class Rotation:
    """Random signs, then Hadamard transforms of blocks: an orthonormal map of padded vectors.

    A block is a power of two that divides the padded dimension, and is transformed as a Kronecker
    product of two small Hadamard matrices, which is Sylvester's matrix of the block.

    Parameters
    ----------
    dim
        Padded dimension.
    device
        Where vectors are.

    Attributes
    ----------
    block
        Coordinates that are transformed together.
    signs
        (dim,) float32.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        stages = (dim & -dim).bit_length() - 1
        self._inner = 2 ** min(-(-stages // 2), _FACTOR_STAGES)
        self._outer = 2 ** min(stages // 2, _FACTOR_STAGES)
        self._dim = dim
        signs = np.random.default_rng(_SEED).integers(0, 2, dim) * 2 - 1
        self.block = self._inner * self._outer
        self.signs = torch.from_numpy(signs.astype(np.float32)).to(device)
        self._factors = [
            torch.from_numpy(_hadamard(size)).to(device) for size in (self._inner, self._outer)
        ]

    @property
    def growth(self) -> float:
        """Roundings of a transform: |error| <= growth * unit roundoff * |vector|.

        A product with an a x a matrix of signs, of norm sqrt(a), sums a terms: its error is at most
        a u times the product of magnitudes, of norm a. Relative to what comes out that is a^1.5 u.
        """
        return float(self._inner**1.5 + self._outer**1.5 + 6) * 1.01

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        """Rotate (n, dim) vectors, in their own precision."""
        n = vectors.shape[0]
        kind = vectors.dtype
        inner, outer = (factor.to(kind) for factor in self._factors)
        turned = (vectors * self.signs.to(kind)).view(-1, self._inner) @ inner
        if self._outer > 1:
            blocks = turned.view(-1, self._outer, self._inner).transpose(1, 2)
            turned = blocks.reshape(-1, self._outer) @ outer
            turned = turned.view(-1, self._inner, self._outer).transpose(1, 2)
        return turned.reshape(n, self._dim) * (1.0 / math.sqrt(self.block))


@dataclass(frozen=True, eq=False)
class QueryCodes:
    """Queries for the product, each measured in the unit of its own codes.

    Attributes
    ----------
    codes
        (n, D) int8 or bfloat16.
    alpha
        (n,) float32, the multiple of the centre that was taken away. Times the lift of any entry it
        is below 2^21 in magnitude, about.
    per_norm, per_residual
        (n,) float32: the bound is per_norm * |z| + per_residual * |z - z'|, for any entry, with a
        margin for its own evaluation in float32.
    slack
        (n,) float32, rounding of the scores themselves.
    unit
        (n,) float64, what a score of one is in inner products of the vectors as they came.
    error
        (n,) float64, bound of the error of a query's float64 sums; see :func:`row_errors`.
    zero
        (n,) bool: rows of zeros, whose inner products are all zero.
    extreme
        (n,) bool: rows whose codes mean nothing: of NaN or infinity, or because float32 cannot hold
        their scale.
    """

    codes: torch.Tensor
    alpha: torch.Tensor
    per_norm: torch.Tensor
    per_residual: torch.Tensor
    slack: torch.Tensor
    unit: torch.Tensor
    error: torch.Tensor
    zero: torch.Tensor
    extreme: torch.Tensor


class EntryCodes:
    """Entries for the product, in an order of their own.

    The order is random but fixed, so that the first entries are a fair sample of all, and results
    do not suffer from sorted vocabularies. Rows are padded to whole tiles; the padding has the
    position of no entry.

    Parameters
    ----------
    entries
        (W, d) floating-point tensor, finite, on the device.
    tile, block
        Entries of a tile, over which units and bounds are shared, and of a block within it.
    form
        Numbers of the codes.
    arrange
        Puts the codes as the product reads them; by default they stay as they are.

    Attributes
    ----------
    codes
        (Wp, D) int8 or bfloat16; in another shape where ``arrange`` made one.
    code_dim
        D.
    facts
        (Wp / tile, 4) float32: tile_step, tile_norm, tile_residual, and one over the step.
    lift
        (Wp,) float32: <c, t - m> in units of the tile's step.
    norm, residual
        (Wp,) float32: upper bounds of |z| and |z - z'|.
    tile_step
        (Wp / tile,) float32, unit of the codes of a tile.
    tile_norm, tile_residual
        (Wp / tile,) float32, the largest of a tile.
    ids
        (Wp,) int64: the entry at a position.
    longest
        An upper bound of the entries' norms, as they came.
    mean
        (d,) float64, the mean of the entries as they came, about: the m of the bounds, exactly.
    exponent
        The power of two by which entries are divided before anything else.
    bound, largest_bias, largest_lift
        The largest sum of norm and residual, and the largest magnitudes of <c, t - m> and a lift.
    centre, centre_square
        (D,) float32, what a multiple of is taken away from queries, and its square.
    """

    def __init__(
        self,
        entries: torch.Tensor,
        tile: int,
        block: int,
        form: CodeFormat = INT8,
        arrange: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.size, self.dim = entries.shape
        self.device = entries.device
        self.tile, self.block = tile, block
        self.form = form
        self._entries = entries
        self.code_dim = padded = padded_dim(self.dim)
        self.rotation = Rotation(padded, self.device)
        rows = -(-self.size // tile) * tile
        order = np.random.default_rng(_SEED).permutation(self.size)
        ids = np.zeros(rows, dtype=np.int64)
        ids[: self.size] = order
        self.ids = torch.from_numpy(ids).to(self.device)
        self._at_once = max(1, (1 << 24) // (padded * tile)) * tile
        top = max(float(part.abs().max()) for part in self._parts())
        self.exponent = math.frexp(top)[1] if top > 0 else 0
        self._mean = torch.zeros(self.dim, dtype=torch.float64, device=self.device)
        for part in self._parts():
            self._mean += self._scaled(part).sum(0) / self.size
        self.codes = torch.zeros((rows, padded), dtype=form.dtype, device=self.device)
        self.lift, self.norm, self.residual = (self._column(rows) for _ in range(3))
        self.tile_step = self._column(rows // tile)
        self._largest = self._longest = 0.0
        for start in range(0, self.size, self._at_once):
            self._encode(start)
        self.tile_norm = self.norm.view(-1, tile).amax(1)
        self.tile_residual = self.residual.view(-1, tile).amax(1)
        columns = (self.tile_step, self.tile_norm, self.tile_residual, 1 / self.tile_step)
        self.facts = torch.stack(columns, 1).contiguous()
        if arrange is not None:
            self.codes = arrange(self.codes)
        self._facts: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}
        self.bound = float(self.norm.max()) + float(self.residual.max())
        self.longest = self._longest * 2.0**self.exponent * (1 + 1e-9)
        self.mean = self._mean * 2.0**self.exponent
        self.centre = torch.zeros(padded, dtype=torch.float32, device=self.device)
        self.centre_square = 0.0
        self.largest_bias = self.largest_lift = 0.0

    @property
    def memory_bytes(self) -> int:
        """Bytes of the codes and of what belongs to them."""
        columns = (self.lift, self.norm, self.residual, self.ids, self.codes)
        return sum(column.numel() * column.element_size() for column in columns)

    def set_centre(self, vector: torch.Tensor) -> None:
        """Take a multiple of ``vector`` (d,) away from queries. Changes speed, never results."""
        square = float(vector.double().square().sum())
        if not square > 1e-12:
            return
        centre = torch.zeros_like(self.centre)
        centre[: self.dim] = vector
        wide = vector.float().double()
        bias = torch.zeros(self.lift.shape[0], dtype=torch.float64, device=self.device)
        for start in range(0, self.size, self._at_once):
            stop = min(self.size, start + self._at_once)
            rows = self._scaled(self._entries[self.ids[start:stop]]) - self._mean
            bias[start:stop] = rows @ wide
        # Rounding of the float64 sums, which is far below that of storing them in float32.
        largest = float(bias.abs().max()) + 1e-3 * math.sqrt(square) * self._largest
        step = self.tile_step.double().repeat_interleave(self.tile)
        self.lift, self.largest_bias = (bias / step).float(), largest
        self.largest_lift = float(self.lift.abs().max())
        self.centre, self.centre_square = centre, square
        self._facts.clear()

    def facts_for(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What a kernel that prepares queries has to know; see ``triton_kernels.prepare_kernel``.

        Returns
        -------
        (10,) float32 and (2,) float64.
        """
        if dtype not in self._facts:
            facts = [
                self.centre_square,
                math.sqrt(self.centre_square) * (1 + 1e-6),
                self.bound,
                self.largest_bias,
                self.rotation.growth,
                1 + (self.code_dim + 16) * UNIT_32,
                1 / math.sqrt(self.rotation.block),
                self.largest_lift / MOST_LIFT,
                self.form.sum_error * self.code_dim,
                self.exponent,
            ]
            limits = sum_limits(self.dim, dtype, self._entries.dtype, self.longest)
            self._facts[dtype] = (
                torch.tensor(facts, dtype=torch.float32, device=self.device),
                torch.tensor(limits, dtype=torch.float64, device=self.device),
            )
        return self._facts[dtype]

    def in_blocks(self, block: int) -> EntryCodes:
        """Return the same codes, of which a block holds so many entries."""
        if block == self.block:
            return self
        other = copy.copy(self)
        other.block = block
        return other

    def prepare(self, queries: torch.Tensor) -> QueryCodes:
        """Make (n, d) finite queries of any floating-point type ready."""
        error = row_errors(queries, self._entries, self.longest)
        finite = torch.isfinite(queries).all(1)
        queries = torch.where(finite[:, None], queries, 1.0)
        top = queries.abs().amax(1)
        zero = top == 0
        exponent = torch.frexp(top.double()).exponent
        extreme = queries.dtype == torch.float64 or bool((exponent.abs() > _EXTREME).any())
        wide = queries.double() if extreme else queries.float()
        scale = torch.exp2(-exponent.to(wide.dtype))
        shape = (queries.shape[0], self.centre.numel())
        x = torch.zeros(shape, dtype=torch.float32, device=self.device)
        x[:, : self.dim] = wide * scale[:, None]
        alpha = torch.zeros(queries.shape[0], dtype=torch.float32, device=self.device)
        if self.centre_square:
            alpha = (x * self.centre).sum(1) / self.centre_square
        rest = x - alpha[:, None] * self.centre
        turned = self.rotation.apply(rest)
        # Fine enough for the codes, and coarse enough for what the centre contributes.
        step = torch.maximum(self.form.step(turned), alpha.abs() * (self.largest_lift / MOST_LIFT))
        step = torch.where(step > LEAST_STEP, step, 1.0)
        values = self.form.rounded(turned / step[:, None])
        left = turned - step[:, None] * values
        margin = 1 + (x.shape[1] + 16) * UNIT_32
        norm, code_norm, deviation, kept = (
            row.square().sum(1).sqrt() * margin + LEAST_NORM for row in (x, values, left, rest)
        )
        away = alpha.abs() * math.sqrt(self.centre_square) * margin
        roundings = (self.rotation.growth + 2 * factor_unit(self.device) / UNIT_32) * kept
        roundings += 3 * (norm + away) + 3 * code_norm * step
        deviation += UNIT_32 * 1.01 * roundings
        # From here on in units of the step: a factor of the query changes no order.
        alpha = alpha / step
        wider = WIDER
        summed = self.form.sum_error * x.shape[1] * code_norm
        largest = code_norm * self.bound + alpha.abs() * self.largest_bias
        return QueryCodes(
            values.to(self.form.dtype),
            alpha,
            (deviation / step + summed) * wider,
            (code_norm + summed) * wider,
            16 * UNIT_32 * largest + TINY,
            step.double() * torch.exp2((exponent + self.exponent).double()),
            error,
            zero,
            ~finite,
        )

    def _encode(self, start: int) -> None:
        part = slice(start, min(self.size, start + self._at_once))
        scaled = self._scaled(self._entries[self.ids[part]])
        raw = scaled.square().sum(1).sqrt()
        centred = torch.zeros(
            (scaled.shape[0], self.codes.shape[1]), dtype=torch.float64, device=self.device
        )
        centred[:, : self.dim] = scaled - self._mean
        turned = self.rotation.apply(centred)
        norm = turned.square().sum(1).sqrt()
        rows = torch.zeros(-(-scaled.shape[0] // self.tile) * self.tile, dtype=torch.float64)
        rows = rows.to(self.device)
        rows[: scaled.shape[0]] = self.form.step(turned)
        tile_step = _above(rows.view(-1, self.tile).amax(1))
        tile_step = torch.where(tile_step > 2 * LEAST_STEP, tile_step, 1.0)
        step = tile_step.double().repeat_interleave(self.tile)[: scaled.shape[0], None]
        codes = self.form.rounded(turned / step)
        left = (turned - step * codes).square().sum(1).sqrt()
        shift = self._mean.square().sum().sqrt()
        self._longest = max(self._longest, float(raw.max()))
        self._largest = max(self._largest, self._longest + float(shift))
        # All of this runs in float64: far more than it can have rounded.
        unit = (self.rotation.growth + self.codes.shape[1] + 16) * _UNIT_64
        rounding = unit * (raw + shift + norm)
        self.codes[part] = codes.to(self.form.dtype)
        first = start // self.tile
        self.tile_step[first : first + tile_step.shape[0]] = tile_step
        self.norm[part] = _above(norm + rounding)
        self.residual[part] = _above(left + rounding)

    def _parts(self) -> list[torch.Tensor]:
        return list(torch.split(self._entries, self._at_once))

    def _scaled(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows in float64, the largest coordinate of all entries about 1."""
        return rows.double() * 2.0**-self.exponent

    def _column(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, dtype=torch.float32, device=self.device)


def _above(values: torch.Tensor) -> torch.Tensor:
    """Float32 numbers that are not below these of float64."""
    return (values * (1 + 1e-6) + LEAST_STEP).float()


def _hadamard(size: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Sylvester's matrix of signs, of a power of two."""
    matrix = np.ones((1, 1))
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
