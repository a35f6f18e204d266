"""Triton kernels around the product: queries to codes, float64 rescoring, scoring kernel.

With TRITON_INTERPRET=1, set before the first import, they run on CPU tensors, slowly. All arrays
are contiguous.
"""

import triton
import triton.language as tl

from bliss_index.search.device import codes
from bliss_index.search.triton.block_kernels import kth_largest

# The bounds are those of codes.py.
_CODE_NORM = tl.constexpr(codes.CODE_NORM)
_LEVELS = tl.constexpr(float(codes.LEVELS))
_LEAST_NORM = tl.constexpr(codes.LEAST_NORM)
_LEAST_STEP = tl.constexpr(codes.LEAST_STEP)
_ROUNDING = tl.constexpr(1.01 * codes.UNIT_32)
_SLACK = tl.constexpr(16 * codes.UNIT_32)
_TINY = tl.constexpr(codes.TINY)
_WIDER = tl.constexpr(codes.WIDER)
_LEAST_UNIT = tl.constexpr(1e-290)  # below, float64 has fewer digits


@triton.jit
def _butterfly(rows, BM: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr):
    """Sums and differences of neighbouring runs of HALF coordinates."""
    pairs = tl.reshape(rows, (BM, DIM // (2 * HALF), 2, HALF))
    upper, lower = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
    pairs = tl.join(upper + lower, upper - lower)
    return tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (BM, DIM))


@triton.jit
def _hadamard(rows, BM: tl.constexpr, DIM: tl.constexpr, STAGES: tl.constexpr):
    """Hadamard transforms (not scaled) of neighbouring blocks of 2^STAGES coordinates."""
    for stage in tl.static_range(STAGES):
        rows = _butterfly(rows, BM, DIM, 2**stage)
    return rows


@triton.jit
def _norm(rows, margin):
    """Upper bound of the norms of rows."""
    return tl.sqrt(tl.sum(rows * rows, 1)) * margin + _LEAST_NORM


@triton.jit(do_not_specialize=["n"])
def prepare_kernel(
    queries, centre, signs, facts, limits, codes, alphas, per_norm, per_residual, slacks, units,
    errors, zeros, extremes, n, dim,
    CODE_DIM: tl.constexpr, DIM: tl.constexpr, STAGES: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Make queries ready: :meth:`bliss_index.search.device.codes.EntryCodes.prepare` in one pass.

    ``facts``: square of the centre, its norm, largest bound and bias of the entries, roundings of
    the transform, the margin of a norm, the scale of the transform, the least step of a query for
    every unit of its alpha, the error of a sum of products, and the exponent of the entries.
    ``limits``: how a float64 sum can be off for a query of norm one, and the norm up to which sums
    are exact.
    """
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.arange(0, DIM)
    known, inside = row < n, column < dim
    square, centre_norm = tl.load(facts), tl.load(facts + 1)
    largest_bound, largest_bias = tl.load(facts + 2), tl.load(facts + 3)
    growth, margin, scale_back = tl.load(facts + 4), tl.load(facts + 5), tl.load(facts + 6)
    least_step, sum_error = tl.load(facts + 7), tl.load(facts + 8)
    x = tl.load(
        queries + row[:, None] * dim + column[None, :],
        mask=known[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)
    # Scale by the power of two that brings the largest coordinate to about 1. Compared as integers,
    # NaN is above infinity, and both have an exponent that is not ordinary.
    top = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
    exponent = top >> 23
    ordinary = (exponent > 67) & (exponent < 187)
    scale = ((253 - tl.where(ordinary, exponent, 126)) << 23).to(tl.float32, bitcast=True)
    x = tl.where(ordinary[:, None], x, 0.0) * scale[:, None]
    middle = tl.load(centre + column, mask=column < CODE_DIM, other=0.0)
    # Without a centre it is zero, and so is the product.
    alpha = tl.sum(x * middle[None, :], 1) / tl.where(square > 0, square, 1.0)
    rest = x - alpha[:, None] * middle[None, :]
    sign = tl.load(signs + column, mask=column < CODE_DIM, other=1.0)
    turned = _hadamard(rest * sign[None, :], BM, DIM, STAGES) * scale_back
    if codes.dtype.element_ty == tl.int8:
        step = tl.max(tl.abs(turned), 1) / _LEVELS
    else:
        step = tl.sqrt(tl.sum(turned * turned, 1)) / _CODE_NORM
    step = tl.maximum(step, tl.abs(alpha) * least_step)
    step = tl.where(step > _LEAST_STEP, step, 1.0)
    code = turned / step[:, None]
    if codes.dtype.element_ty == tl.int8:
        code = tl.minimum(tl.maximum(tl.floor(code + 0.5), -_LEVELS), _LEVELS)
    else:
        code = code.to(tl.bfloat16).to(tl.float32)
    left = turned - step[:, None] * code
    code_norm = _norm(code, margin)
    away = tl.abs(alpha) * centre_norm * margin
    roundings = growth * _norm(rest, margin) + 3 * (_norm(x, margin) + away) + 3 * code_norm * step
    deviation = _norm(left, margin) + roundings * _ROUNDING
    # Powers of two as float64 bits: the entries' exponent, and what the query was multiplied by.
    power = 897 + tl.where(ordinary, exponent, 126).to(tl.int64)
    length = _norm(x, margin).to(tl.float64) * (power << 52).to(tl.float64, bitcast=True)
    inexact = length >= tl.load(limits + 1)
    tl.store(errors + row, tl.where(inexact, length * tl.load(limits), 0.0), mask=known)
    power += tl.load(facts + 9).to(tl.int64)
    power = (power << 52).to(tl.float64, bitcast=True)
    tl.store(units + row, step.to(tl.float64) * power, mask=known)
    alpha = alpha / step
    largest = code_norm * largest_bound + tl.abs(alpha) * largest_bias
    tl.store(
        codes + row[:, None] * CODE_DIM + column[None, :],
        code.to(codes.dtype.element_ty),
        mask=known[:, None] & (column < CODE_DIM)[None, :],
    )
    summed = sum_error * code_norm
    tl.store(alphas + row, alpha, mask=known)
    tl.store(per_norm + row, (deviation / step + summed) * _WIDER, mask=known)
    tl.store(per_residual + row, (code_norm + summed) * _WIDER, mask=known)
    tl.store(slacks + row, largest * _SLACK + _TINY, mask=known)
    tl.store(zeros + row, top == 0, mask=known)
    tl.store(extremes + row, (top != 0) & ~ordinary, mask=known)


@triton.jit
def _rescore(
    query, at_query, entries, at_place, ids, order, chosen, scratch, dim,
    WIDTH: tl.constexpr, PAIRS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write float64 products of the chosen of a query's candidates to their slots of the scratch.

    They are lined up first, so that no lane works for one that is not chosen.
    """
    slot = tl.arange(0, WIDTH)
    ones = chosen.to(tl.int32)
    tl.store(order + tl.cumsum(ones, 0) - 1, slot, mask=chosen)
    count = tl.sum(ones)
    tl.debug_barrier()
    for start in range(0, count, PAIRS):
        known = start + tl.arange(0, PAIRS) < count
        slots = tl.load(order + start + tl.arange(0, PAIRS), mask=known, other=0)
        entry = tl.load(ids + tl.load(at_place + slots, mask=known, other=0), mask=known, other=0)
        total = tl.zeros((PAIRS,), dtype=tl.float64)
        for first in range(0, dim, CHUNK):
            column = first + tl.arange(0, CHUNK)
            inside = column < dim
            left = tl.load(at_query + column, mask=inside, other=0.0).to(tl.float64)
            right = tl.load(
                entries + entry[:, None] * dim + column[None, :],
                mask=known[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float64)
            total += tl.sum(left[None, :] * right, axis=1)
        tl.store(scratch + slots, total, mask=known)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["k", "capacity", "size"])
def rank_kernel(
    queries, entries, count, places, uppers, units, mean, ids, error, order, scratch,
    values, best, doubtful, rescored, dim, k, capacity, size,
    WIDTH: tl.constexpr, PAIRS: tl.constexpr, CHUNK: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """Rescore one query's candidates in float64 and write its k best in order.

    Those of the largest upper bounds come first: k of them. The least of their products is one that
    the k-th best reaches, so others are rescored only where their bound can reach it too: a product
    is at most that with the mean of the entries, plus the bound in the query's unit.

    A query is doubtful where values of neighbours, or the rounding of a value to float32, are
    closer than the error of the sums.
    """
    query = tl.program_id(0).to(tl.int64)
    filled = tl.load(count + query)
    filled = tl.where(filled > capacity, 0, filled)  # some of those places were never written
    at_query, at_place = queries + query * dim, places + query * capacity
    order += query * capacity
    scratch += query * capacity
    slot = tl.arange(0, WIDTH)
    place = tl.load(at_place + slot, mask=slot < filled, other=size)
    there = place < size
    upper = tl.load(uppers + query * capacity + slot, mask=there, other=float("-inf"))
    cut = kth_largest(upper, float("-inf"), k, HALVINGS)
    first = there & (upper >= cut)
    _rescore(
        query, at_query, entries, at_place, ids, order, first, scratch, dim, WIDTH, PAIRS, CHUNK
    )
    value = tl.load(scratch + slot, mask=first, other=float("inf"))
    least = tl.min(value)
    product = tl.zeros((CHUNK,), dtype=tl.float64)
    size_of_it = tl.zeros((CHUNK,), dtype=tl.float64)
    for start in range(0, dim, CHUNK):
        column = start + tl.arange(0, CHUNK)
        left = tl.load(at_query + column, mask=column < dim, other=0.0).to(tl.float64)
        term = left * tl.load(mean + column, mask=column < dim, other=0.0)
        product += term
        size_of_it += tl.abs(term)
    bound = tl.load(error + query)
    unit = tl.load(units + query)
    most = tl.sum(product) + unit * upper.to(tl.float64)
    most += bound + tl.sum(size_of_it) * (dim * 4e-16)
    most = tl.where(unit < _LEAST_UNIT, float("inf"), most)
    rest = there & (upper < cut) & (most >= least)
    _rescore(
        query, at_query, entries, at_place, ids, order, rest, scratch, dim, WIDTH, PAIRS, CHUNK
    )
    there = first | rest
    tl.store(rescored + query, tl.sum(there.to(tl.int32)))
    value = tl.load(scratch + slot, mask=there, other=float("-inf"))
    entry = tl.load(ids + place, mask=there, other=0)
    doubt = tl.zeros((), dtype=tl.int32)
    before = tl.full((), float("inf"), dtype=tl.float64)
    for j in range(tl.where(filled > 0, k + 1, 0)):
        largest = tl.max(value, 0)
        chosen = tl.min(tl.where(value == largest, entry, 0x7FFFFFFFFFFFFFFF), 0)
        doubt |= ((bound > 0) & (before - largest <= 2 * bound)).to(tl.int32)
        if j < k:
            low, high = (largest - bound).to(tl.float32), (largest + bound).to(tl.float32)
            doubt |= ((bound > 0) & (low != high)).to(tl.int32)
            tl.store(values + query * k + j, largest + 0.0)
            tl.store(best + query * k + j, chosen)
        value = tl.where((value == largest) & (entry == chosen), float("-inf"), value)
        before = largest
    tl.store(doubtful + query, doubt != 0)


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


@triton.jit(do_not_specialize=["n", "k", "classes"])
def score_kernel(
    similarities, ids, scale, shift, products, mu, sigma, weight,
    anomaly, nearest, nearest_internal, nearest_external,
    n, k, classes, BM: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Sum some images' normalised similarities for every class; keep the smallest totals.

    Compiled without fused multiply-adds, so that the sums are those of the other scoring kernels.
    """
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    there = row < n
    lam = tl.load(weight)
    divisor = tl.load(weight + 1)
    least = tl.full((BM,), float("inf"), dtype=tl.float64)
    best = tl.zeros((BM,), dtype=tl.int64)
    best_internal = tl.zeros((BM,), dtype=tl.float64)
    best_external = tl.zeros((BM,), dtype=tl.float64)
    for start in range(0, classes, CLASSES):
        column = start + tl.arange(0, CLASSES)
        known = there[:, None] & (column < classes)[None, :]
        total = tl.zeros((BM, CLASSES), dtype=tl.float64)
        for j in range(k):
            entry = tl.load(ids + row * k + j, mask=there, other=0)
            similarity = tl.load(similarities + row * k + j, mask=there, other=0.0)
            at = entry[:, None] * classes + column[None, :]
            slope = tl.load(scale + at, mask=known, other=0.0).to(tl.float64)
            offset = tl.load(shift + at, mask=known, other=0.0).to(tl.float64)
            total += similarity.to(tl.float64)[:, None] * slope - offset
        outer = total / divisor
        middle = tl.load(mu + column, mask=column < classes, other=0.0)
        spread = tl.load(sigma + column, mask=column < classes, other=1.0)
        at = row[:, None] * classes + column[None, :]
        inner = (middle[None, :] - tl.load(products + at, mask=known, other=0.0)) / spread[None, :]
        score = tl.where(known, inner + lam * outer, float("inf"))
        smallest, place = tl.min(
            score, axis=1, return_indices=True, return_indices_tie_break_left=True
        )
        chosen = tl.arange(0, CLASSES)[None, :] == place[:, None]
        better = smallest < least
        best_internal = tl.where(better, tl.sum(tl.where(chosen, inner, 0.0), 1), best_internal)
        best_external = tl.where(better, tl.sum(tl.where(chosen, outer, 0.0), 1), best_external)
        best = tl.where(better, start + place.to(tl.int64), best)
        least = tl.where(better, smallest, least)
    tl.store(anomaly + row, least, mask=there)
    tl.store(nearest + row, best, mask=there)
    tl.store(nearest_internal + row, best_internal, mask=there)
    tl.store(nearest_external + row, best_external, mask=there)
