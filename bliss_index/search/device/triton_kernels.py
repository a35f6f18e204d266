"""Triton kernels: proposals by int8 products, rescoring in float64, and the scoring tail.

With TRITON_INTERPRET=1, set before the first import, they run on CPU tensors, slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from bliss_index.search.device.codes import EntryCodes, QueryCodes
from bliss_index.search.device.proposals import BLOCK, Collected

_PAIRS = 16
_CHUNK = 128
_MOST_CLASSES = 1024


@dataclass(frozen=True)
class TileShape:
    """How the integer product is cut up; changes speed, never results.

    Attributes
    ----------
    queries, entries, depth
        Rows, columns and coordinates of a tile. Entries must divide the codes' own tile.
    warps, stages
        Of one program: warps, and tiles in flight.
    group
        Tiles of queries that share entries while those are in the cache.
    """

    queries: int = 128
    entries: int = 128
    depth: int = 128
    warps: int = 8
    stages: int = 3
    group: int = 8


@triton.jit
def _place(queries, entries, n, first_tiles, BM: tl.constexpr, GROUP: tl.constexpr):
    """Numbers of this program's tiles: a few tiles of queries meet all entries before the next."""
    program = tl.program_id(0)
    rows = tl.cdiv(n, BM)
    share = GROUP * first_tiles
    first = (program // share) * GROUP
    height = tl.minimum(rows - first, GROUP)
    inside = program % share
    return first + inside % height, inside // height


@triton.jit
def _tile_scores(
    query_codes, query_step, query_alpha, entry_codes, entry_step, entry_bias,
    row, column, n,
    DIM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Scores (BM, BN) of queries ``row`` (rows past n repeat the last) and entries ``column``."""
    depth = tl.arange(0, BK)
    at_query = query_codes + tl.minimum(row, n - 1).to(tl.int64)[:, None] * DIM + depth[None, :]
    at_entry = entry_codes + column.to(tl.int64)[None, :] * DIM + depth[:, None]
    sums = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, DIM, BK):
        left = tl.load(at_query + start)
        right = tl.load(at_entry + start)
        sums = tl.dot(left, right, sums, out_dtype=tl.int32)
    known = row < n
    step = tl.load(query_step + row, mask=known, other=0.0)
    alpha = tl.load(query_alpha + row, mask=known, other=0.0)
    scale = step[:, None] * tl.load(entry_step + column)[None, :]
    return sums.to(tl.float32) * scale + alpha[:, None] * tl.load(entry_bias + column)[None, :]


@triton.jit(do_not_specialize=["n", "tiles"])
def maxima_kernel(
    query_codes, query_step, query_alpha, per_norm, per_residual, slack,
    entry_codes, entry_step, entry_bias, tile_norm, tile_residual,
    maxima, n, tiles, blocks,
    DIM: tl.constexpr, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write the lower bound that the best entry of every block reaches."""
    m, t = _place(query_codes, entry_codes, n, tiles, BM, GROUP)
    row = m * BM + tl.arange(0, BM)
    column = t * BN + tl.arange(0, BN)
    scores = _tile_scores(
        query_codes, query_step, query_alpha, entry_codes, entry_step, entry_bias,
        row, column, n, DIM, BM, BN, BK,
    )  # fmt: skip
    best = tl.max(tl.reshape(scores, (BM, BN // BLOCK_SIZE, BLOCK_SIZE)), axis=2)
    known = row < n
    number = t * BN // TILE
    bound = tl.load(per_norm + row, mask=known, other=0.0) * tl.load(tile_norm + number)
    bound += tl.load(per_residual + row, mask=known, other=0.0) * tl.load(tile_residual + number)
    bound += 2 * tl.load(slack + row, mask=known, other=0.0)
    block = t * (BN // BLOCK_SIZE) + tl.arange(0, BN // BLOCK_SIZE)
    to = maxima + row.to(tl.int64)[:, None] * blocks + block[None, :]
    tl.store(to, best - bound[:, None], mask=known[:, None])


@triton.jit(do_not_specialize=["n", "size", "tiles"])
def collect_kernel(
    query_codes, query_step, query_alpha, per_norm, per_residual, slack, threshold,
    entry_codes, entry_step, entry_bias, tile_norm, tile_residual,
    count, positions, kept, n, size, tiles, capacity,
    DIM: tl.constexpr, TILE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Append the entries of a tile that can reach their query's threshold to its candidates."""
    m, t = _place(query_codes, entry_codes, n, tiles, BM, GROUP)
    row = m * BM + tl.arange(0, BM)
    column = t * BN + tl.arange(0, BN)
    scores = _tile_scores(
        query_codes, query_step, query_alpha, entry_codes, entry_step, entry_bias,
        row, column, n, DIM, BM, BN, BK,
    )  # fmt: skip
    known = row < n
    number = t * BN // TILE
    cut = tl.load(threshold + row, mask=known, other=float("inf"))
    cut -= tl.load(per_norm + row, mask=known, other=0.0) * tl.load(tile_norm + number)
    cut -= tl.load(per_residual + row, mask=known, other=0.0) * tl.load(tile_residual + number)
    cut -= 4 * tl.load(slack + row, mask=known, other=0.0)
    hit = (scores >= cut[:, None]) & known[:, None] & (column < size)[None, :]
    counters = tl.broadcast_to((count + row)[:, None], (BM, BN))
    place = tl.atomic_add(counters, 1, mask=hit, sem="relaxed")
    inside = hit & (place < capacity)
    at = row.to(tl.int64)[:, None] * capacity + place
    tl.store(positions + at, tl.broadcast_to(column[None, :], (BM, BN)), mask=inside)
    tl.store(kept + at, scores, mask=inside)


@triton.jit(do_not_specialize=["pairs"])
def pairs_kernel(
    queries, entries, row, entry, values, pairs,
    dim, PAIRS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Inner products of pairs of a query and an entry, in float64."""
    at = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    known = at < pairs
    query = queries + tl.load(row + at, mask=known, other=0)[:, None] * dim
    text = entries + tl.load(entry + at, mask=known, other=0)[:, None] * dim
    total = tl.zeros((PAIRS,), dtype=tl.float64)
    for start in range(0, dim, CHUNK):
        column = start + tl.arange(0, CHUNK)[None, :]
        inside = known[:, None] & (column < dim)
        left = tl.load(query + column, mask=inside, other=0.0).to(tl.float64)
        right = tl.load(text + column, mask=inside, other=0.0).to(tl.float64)
        total += tl.sum(left * right, axis=1)
    tl.store(values + at, total, mask=known)


@triton.jit(do_not_specialize=["k", "classes"])
def tail_kernel(
    similarities, ids, scale, shift, internal, weight,
    anomaly, nearest, nearest_internal, nearest_external,
    k, classes, CLASSES: tl.constexpr,
):  # fmt: skip
    """Sum one image's normalised similarities for every class; keep the smallest total.

    Compiled without fused multiply-adds, so that the sums are those of the other tails.
    """
    row = tl.program_id(0).to(tl.int64)
    lam = tl.load(weight)
    divisor = tl.load(weight + 1)
    least = tl.full((), float("inf"), dtype=tl.float64)
    best = tl.zeros((), dtype=tl.int64)
    best_internal = tl.zeros((), dtype=tl.float64)
    best_external = tl.zeros((), dtype=tl.float64)
    for start in range(0, classes, CLASSES):
        column = start + tl.arange(0, CLASSES)
        known = column < classes
        total = tl.zeros((CLASSES,), dtype=tl.float64)
        for j in range(0, k):
            at = tl.load(ids + row * k + j) * classes + column
            similarity = tl.load(similarities + row * k + j).to(tl.float64)
            slope = tl.load(scale + at, mask=known, other=0.0).to(tl.float64)
            offset = tl.load(shift + at, mask=known, other=0.0).to(tl.float64)
            total += similarity * slope - offset
        outer = total / divisor
        inner = tl.load(internal + row * classes + column, mask=known, other=float("inf"))
        score = inner + lam * outer
        smallest, place = tl.min(
            score, axis=0, return_indices=True, return_indices_tie_break_left=True
        )
        chosen = tl.arange(0, CLASSES) == place
        better = smallest < least
        best_internal = tl.where(better, tl.sum(tl.where(chosen, inner, 0.0)), best_internal)
        best_external = tl.where(better, tl.sum(tl.where(chosen, outer, 0.0)), best_external)
        best = tl.where(better, start + place.to(tl.int64), best)
        least = tl.where(better, smallest, least)
    tl.store(anomaly + row, least)
    tl.store(nearest + row, best)
    tl.store(nearest_internal + row, best_internal)
    tl.store(nearest_external + row, best_external)


class TritonProposals:
    """Int8 products whose scores never leave the multiprocessor, unless they are candidates."""

    name = "triton int8"

    def __init__(self, shape: TileShape | None = None) -> None:
        self._shape = shape or TileShape()

    def maxima(self, queries: QueryCodes, entries: EntryCodes, count: int) -> torch.Tensor:
        """See :class:`bliss_index.search.device.proposals.Proposals`."""
        n = queries.step.shape[0]
        maxima = torch.empty((n, count // BLOCK), device=entries.device)
        tiles = count // self._shape.entries
        maxima_kernel[(self._rows(n) * tiles,)](
            queries.codes, queries.step, queries.alpha,
            queries.per_norm, queries.per_residual, queries.slack,
            entries.codes, entries.step, entries.bias, entries.tile_norm, entries.tile_residual,
            maxima, n, tiles, count // BLOCK,
            BLOCK_SIZE=BLOCK, **self._constants(entries),
        )  # fmt: skip
        return maxima

    def collect(
        self, queries: QueryCodes, entries: EntryCodes, threshold: torch.Tensor, capacity: int
    ) -> Collected:
        """See :class:`bliss_index.search.device.proposals.Proposals`."""
        n = threshold.shape[0]
        count = torch.zeros(n, dtype=torch.int32, device=entries.device)
        positions = torch.empty((n, capacity), dtype=torch.int32, device=entries.device)
        kept = torch.empty((n, capacity), dtype=torch.float32, device=entries.device)
        tiles = -(-entries.size // self._shape.entries)
        collect_kernel[(self._rows(n) * tiles,)](
            queries.codes, queries.step, queries.alpha,
            queries.per_norm, queries.per_residual, queries.slack, threshold.contiguous(),
            entries.codes, entries.step, entries.bias, entries.tile_norm, entries.tile_residual,
            count, positions, kept, n, entries.size, tiles, capacity,
            **self._constants(entries),
        )  # fmt: skip
        return Collected(count, positions, kept)

    def _rows(self, n: int) -> int:
        return -(-n // self._shape.queries)

    def _constants(self, entries: EntryCodes) -> dict[str, Any]:
        shape, dim = self._shape, entries.codes.shape[1]
        return {
            "DIM": dim,
            "TILE": entries.tile,
            "BM": shape.queries,
            "BN": shape.entries,
            "BK": shape.depth if dim % shape.depth == 0 else 64,
            "GROUP": shape.group,
            "num_warps": shape.warps,
            "num_stages": shape.stages,
        }


def pair_products(
    queries: torch.Tensor, entries: torch.Tensor, row: torch.Tensor, entry: torch.Tensor
) -> torch.Tensor:
    """Inner products (P,) float64 of pairs: rows of (n, d) queries and of (W, d) entries."""
    values = torch.empty(row.shape[0], dtype=torch.float64, device=row.device)
    if row.shape[0]:
        pairs_kernel[(-(-row.shape[0] // _PAIRS),)](
            queries.contiguous(), entries.contiguous(), row.contiguous(), entry.contiguous(),
            values, row.shape[0], queries.shape[1],
            PAIRS=_PAIRS, CHUNK=_CHUNK,
        )  # fmt: skip
    return values


def score_tail(
    similarities: torch.Tensor,
    ids: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    internal: torch.Tensor,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the class of the smallest total; :func:`bliss_index.search.native_tail.score_tail`.

    Returns
    -------
    Anomaly scores (n,) float64, nearest classes (n,) int64, their internal and external scores.
    """
    n, k = ids.shape
    classes = scale.shape[1]
    single = {"device": ids.device, "dtype": torch.float64}
    anomaly, inner, outer = (torch.empty(n, **single) for _ in range(3))
    nearest = torch.empty(n, dtype=torch.int64, device=ids.device)
    if n:
        tail_kernel[(n,)](
            similarities.contiguous(), ids.contiguous(), scale.contiguous(), shift.contiguous(),
            internal.contiguous(), torch.tensor([lam, k], **single), anomaly, nearest, inner, outer, k, classes,
            CLASSES=min(_MOST_CLASSES, triton.next_power_of_2(classes)),
            enable_fp_fusion=False,
        )  # fmt: skip
    return anomaly, nearest, inner, outer
