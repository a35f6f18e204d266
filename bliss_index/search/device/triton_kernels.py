"""Triton kernels: block maxima of int8 products, selection, float64 rescoring, scoring tail.

With TRITON_INTERPRET=1, set before the first import, they run on CPU tensors, slowly. All arrays
are contiguous.
"""

import triton
import triton.language as tl

_NOTHING = tl.constexpr(-(2**31) + (1 << 23))  # the key of the least float32 number


@triton.jit
def _ordered(bits):
    """Integers that are ordered as the float32 numbers are whose bits these are; and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


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
    return tl.sqrt(tl.sum(rows * rows, 1)) * margin + 8.7e-19


@triton.jit(do_not_specialize=["n"])
def prepare_kernel(
    queries, centre, signs, facts, codes, alphas, per_norm, per_residual, slacks, zeros, extremes,
    n, dim,
    CODE_DIM: tl.constexpr, DIM: tl.constexpr, STAGES: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Make queries ready: :meth:`bliss_index.search.device.codes.EntryCodes.prepare` in one pass.

    ``facts``: square of the centre, its norm, largest bound and bias of the entries, roundings of
    the transform and scale, and the margin of a norm.
    """
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.arange(0, DIM)
    known, inside = row < n, column < dim
    square, centre_norm = tl.load(facts), tl.load(facts + 1)
    largest_bound, largest_bias = tl.load(facts + 2), tl.load(facts + 3)
    growth, margin, scale_back = tl.load(facts + 4), tl.load(facts + 5), tl.load(facts + 6)
    x = tl.load(
        queries + row[:, None] * dim + column[None, :],
        mask=known[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)
    # Scale by the power of two that brings the largest coordinate to about 1.
    top = tl.max(tl.abs(x), 1)
    exponent = (top.to(tl.int32, bitcast=True) >> 23) & 0xFF
    ordinary = (exponent > 67) & (exponent < 187)
    scale = ((253 - tl.where(ordinary, exponent, 126)) << 23).to(tl.float32, bitcast=True)
    x = x * scale[:, None]
    middle = tl.load(centre + column, mask=column < CODE_DIM, other=0.0)
    # Without a centre it is zero, and so is the product.
    alpha = tl.sum(x * middle[None, :], 1) / tl.where(square > 0, square, 1.0)
    rest = x - alpha[:, None] * middle[None, :]
    sign = tl.load(signs + column, mask=column < CODE_DIM, other=1.0)
    turned = _hadamard(rest * sign[None, :], BM, DIM, STAGES) * scale_back
    step = tl.max(tl.abs(turned), 1) / 127.0
    step = tl.where(step > 7.9e-31, step, 1.0)
    code = tl.floor(turned / step[:, None] + 0.5)
    code = tl.minimum(tl.maximum(code, -127.0), 127.0)
    left = turned - step[:, None] * code
    code_norm = _norm(code, margin)
    away = tl.abs(alpha) * centre_norm * margin
    roundings = growth * _norm(rest, margin) + 3 * (_norm(x, margin) + away) + 3 * code_norm * step
    deviation = _norm(left, margin) + 6.03e-8 * roundings
    alpha = alpha / step
    largest = code_norm * largest_bound + tl.abs(alpha) * largest_bias
    tl.store(
        codes + row[:, None] * CODE_DIM + column[None, :],
        code.to(tl.int8),
        mask=known[:, None] & (column < CODE_DIM)[None, :],
    )
    wider = 1.000001
    tl.store(alphas + row, alpha, mask=known)
    tl.store(per_norm + row, deviation / step * wider, mask=known)
    tl.store(per_residual + row, code_norm * wider, mask=known)
    tl.store(slacks + row, 9.54e-7 * largest + 8.1e-28, mask=known)
    tl.store(zeros + row, top == 0, mask=known)
    tl.store(extremes + row, (top != 0) & ~ordinary, mask=known)


@triton.jit(do_not_specialize=["n", "size", "tiles"])
def block_best_kernel(
    query_codes, query_alpha, entry_codes, entry_step, entry_bias, best, n, size, tiles,
    DIM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Write the best two scores of every block: the upper and the lower half of an int64.

    A score is an integer ordered as its float32 bits; its last bits are replaced by the place of
    the entry in the block, which takes away a share of at most 2^-16 of its magnitude.
    """
    COUNT: tl.constexpr = BN // SIZE
    PARTS: tl.constexpr = COUNT // 4
    program = tl.program_id(0)
    share = GROUP * tiles
    first_row = (program // share) * GROUP
    height = tl.minimum(tl.cdiv(n, BM) - first_row, GROUP)
    tile = (program % share) // height
    row = (first_row + (program % share) % height) * BM + tl.arange(0, BM)
    column = tl.arange(0, BN)
    entry = tile * BN + column
    depth = tl.arange(0, BK)
    at_query = query_codes + tl.minimum(row, n - 1).to(tl.int64)[:, None] * DIM + depth[None, :]
    at_entry = entry_codes + entry.to(tl.int64)[None, :] * DIM + depth[:, None]
    sums = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, DIM, BK):
        sums = tl.dot(
            tl.load(at_query + start), tl.load(at_entry + start), sums, out_dtype=tl.int32
        )
    alpha = tl.load(query_alpha + row, mask=row < n, other=0.0)
    step, bias = tl.load(entry_step + entry), tl.load(entry_bias + entry)
    scores = sums.to(tl.float32) * step[None, :] + alpha[:, None] * bias[None, :]
    key = _ordered(scores.to(tl.int32, bitcast=True))
    index = (column // 8) % (SIZE // 2) * 2 + column % 2
    key = (key & -SIZE) | index[None, :]
    key = tl.where((entry < size)[None, :], key, _NOTHING)
    # Columns 8 i + 2 b and the next, for a range of i, are a block: one thread holds all of them.
    key = tl.reshape(key, (BM, PARTS, SIZE // 2, 4, 2))
    first = tl.max(tl.max(key, 4), 2)
    rest = tl.where(key == first[:, :, None, :, None], _NOTHING, key)
    second = tl.max(tl.max(rest, 4), 2)
    first, second = tl.reshape(first, (BM, COUNT)), tl.reshape(second, (BM, COUNT))
    pair = (first.to(tl.int64) << 32) | (second.to(tl.int64) & 0xFFFFFFFF)
    block = tile * COUNT + tl.arange(0, COUNT)
    to = best + row.to(tl.int64)[:, None] * (tiles * COUNT) + block[None, :]
    tl.store(to, pair, mask=(row < n)[:, None])


@triton.jit
def _score_of(key, SIZE: tl.constexpr):
    """The score that a key stands for, rounded down."""
    return _ordered(key & -SIZE).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["blocks", "k", "capacity"])
def select_kernel(
    best, per_norm, per_residual, slack, tile_norm, tile_residual, count, places,
    blocks, k, capacity,
    SIZE: tl.constexpr, COUNT: tl.constexpr, GROUPS: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """Find the threshold of one query, the blocks that can reach it, and their candidates."""
    query = tl.program_id(0).to(tl.int64)
    norm, residual = tl.load(per_norm + query), tl.load(per_residual + query)
    rounding = 4 * tl.load(slack + query)
    lane = tl.arange(0, GROUPS)
    largest = tl.full((GROUPS,), float("-inf"), dtype=tl.float32)
    for start in range(0, blocks, GROUPS):
        block = start + lane
        known = block < blocks
        pair = tl.load(best + query * blocks + block, mask=known, other=0)
        score = _score_of((pair >> 32).to(tl.int32), SIZE)
        bound = norm * tl.load(tile_norm + block // COUNT, mask=known, other=0.0)
        bound += residual * tl.load(tile_residual + block // COUNT, mask=known, other=0.0)
        largest = tl.maximum(largest, tl.where(known, score - bound - rounding, float("-inf")))
    # Halve the range that holds the k-th largest; at least k groups always reach `low`.
    low = tl.min(tl.where(largest > -1e38, largest, float("inf")))
    high = tl.max(largest)
    low = tl.where(tl.sum((largest >= low).to(tl.int32)) >= k, low, float("-inf"))
    for _ in range(HALVINGS):
        middle = 0.5 * low + 0.5 * high
        enough = tl.sum((largest >= middle).to(tl.int32)) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    filled = 0
    for start in range(0, blocks, GROUPS):
        block = start + lane
        known = block < blocks
        pair = tl.load(best + query * blocks + block, mask=known, other=0)
        key = (pair >> 32).to(tl.int32)
        first, second = _score_of(key, SIZE), _score_of(pair.to(tl.int32), SIZE)
        bound = norm * tl.load(tile_norm + block // COUNT, mask=known, other=0.0)
        bound += residual * tl.load(tile_residual + block // COUNT, mask=known, other=0.0)
        bound += rounding
        hit = known & (first + tl.abs(first) * 0.0000153 + bound >= low)
        whole = hit & (second + tl.abs(second) * 0.0000153 + bound >= low)
        first_place = (block // 4) * (4 * SIZE) + (block % 4) * 2
        index = key & (SIZE - 1)
        room = tl.where(whole, SIZE, hit.to(tl.int32))
        slot = filled + tl.cumsum(room, 0) - room
        at = places + query * capacity + slot
        place = first_place + (index // 2) * 8 + index % 2
        tl.store(at, place, mask=hit & (whole == 0) & (slot < capacity))
        if tl.sum(whole.to(tl.int32)) > 0:
            for i in range(SIZE):
                place = first_place + (i // 2) * 8 + i % 2
                tl.store(at + i, place, mask=whole & (slot + i < capacity))
        filled += tl.sum(room)
    tl.store(count + query, filled)


@triton.jit(do_not_specialize=["k", "capacity", "size"])
def rank_kernel(
    queries, entries, count, places, ids, error, scratch, values, best, doubtful,
    dim, k, capacity, size,
    WIDTH: tl.constexpr, PAIRS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Rescore one query's candidates in float64 and write its k best in order.

    A query is doubtful where values of neighbours, or the rounding of a value to float32, are
    closer than the error of the sums.
    """
    query = tl.program_id(0).to(tl.int64)
    filled = tl.minimum(tl.load(count + query), capacity)
    for start in range(0, filled, PAIRS):
        slot = start + tl.arange(0, PAIRS)
        known = slot < filled
        place = tl.load(places + query * capacity + slot, mask=known, other=0)
        known &= place < size
        entry = tl.load(ids + place, mask=known, other=0)
        total = tl.zeros((PAIRS,), dtype=tl.float64)
        for first in range(0, dim, CHUNK):
            column = first + tl.arange(0, CHUNK)
            inside = column < dim
            left = tl.load(queries + query * dim + column, mask=inside, other=0.0).to(tl.float64)
            right = tl.load(
                entries + entry[:, None] * dim + column[None, :],
                mask=known[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float64)
            total += tl.sum(left[None, :] * right, axis=1)
        total = tl.where(known, total, float("-inf"))
        tl.store(scratch + query * capacity + slot, total, mask=slot < filled)
    tl.debug_barrier()
    slot = tl.arange(0, WIDTH)
    there = slot < filled
    value = tl.load(scratch + query * capacity + slot, mask=there, other=float("-inf"))
    place = tl.load(places + query * capacity + slot, mask=there, other=0)
    there &= place < size
    entry = tl.load(ids + place, mask=there, other=0)
    bound = tl.load(error + query)
    doubt = tl.zeros((), dtype=tl.int32)
    before = tl.full((), float("inf"), dtype=tl.float64)
    for j in range(k + 1):
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
        for j in range(k):
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
