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
    best, per_norm, per_residual, slack, tile_norm, tile_residual, count, hits,
    blocks, k, capacity,
    SIZE: tl.constexpr, COUNT: tl.constexpr, GROUPS: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """Find the threshold of one query, and the blocks that can reach it."""
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
        whole = second + tl.abs(second) * 0.0000153 + bound >= low
        code = block * (2 * SIZE) + tl.where(whole, SIZE, 0) + (key & (SIZE - 1))
        slot = filled + tl.cumsum(hit.to(tl.int32), 0) - 1
        tl.store(hits + query * capacity + slot, code, mask=hit & (slot < capacity))
        filled += tl.sum(hit.to(tl.int32))
    tl.store(count + query, filled)


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
