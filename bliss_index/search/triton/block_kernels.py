"""Triton kernels of the product: block maxima, the threshold, and the candidates that reach it.

With TRITON_INTERPRET=1, set before the first import, they run on CPU tensors, slowly. All arrays
are contiguous.

A program keeps the codes of its queries in shared memory and lets entries stream by. Scores of a
tile are integers in units of the tile's step, on top of the bits of 1.5 * 2^23: a float32 number to
which the lift of an entry is added has its integer part in its last bits. (For int8, that number is
where the sums of the tensor cores begin.) The last bits of a score are replaced by the place of the
entry within its block; such a key says both how good the best entry of a block is and which it is.
"""

import triton
import triton.language as tl

_NOTHING = tl.constexpr(0)  # a key of no entry; keys of entries are above 2^28
_ZERO_SCORE = tl.constexpr(12582912.0)
_ZERO_KEY = tl.constexpr(0x4B400000)  # its bits
_UNROUNDED = tl.constexpr(2)  # units that rounding can have taken away


@triton.jit
def _two_best(first, second, other_first, other_second):
    """The two largest of two pairs in order."""
    lower = tl.minimum(first, other_first)
    return tl.maximum(first, other_first), tl.maximum(lower, tl.maximum(second, other_second))


@triton.jit
def _halves(keys, BM: tl.constexpr, COUNT: tl.constexpr):
    """Every other of the keys (BM, 2 * COUNT, 4), and those between."""
    pairs = tl.reshape(keys, (BM, COUNT, 2, 4))
    return tl.split(tl.permute(pairs, (0, 1, 3, 2)))


@triton.jit
def _codes(at, WIDEN: tl.constexpr):
    """Codes, in float32 where bfloat16 cannot be multiplied: in the interpreter."""
    codes = tl.load(at)
    return codes.to(tl.float32) if WIDEN else codes


@triton.jit
def _resident(
    query_codes, row, n, DIM: tl.constexpr, BK: tl.constexpr, WIDEN: tl.constexpr
):  # fmt: skip
    """Codes of the queries of a program, in chunks of coordinates."""
    depth = tl.arange(0, BK)
    at = query_codes + tl.minimum(row, n - 1).to(tl.int64)[:, None] * DIM + depth[None, :]
    chunks = ()
    for chunk in tl.static_range(DIM // BK):
        chunks = chunks + (_codes(at + chunk * BK, WIDEN),)  # type: ignore[assignment]
    return chunks


@triton.jit
def _tile_best(
    query, alpha, entry_codes, entry_lift, first_entry, size, nought,
    DIM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SIZE: tl.constexpr,
    FOLDS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Keys (BM, 4) of the best two of the entries that each fourth of the threads holds."""
    column = tl.arange(0, BN)
    depth = tl.arange(0, BK)
    entry = first_entry + column
    at = entry_codes + entry.to(tl.int64)[None, :] * DIM + depth[:, None]
    lift = tl.fma(
        tl.broadcast_to(alpha[:, None], (BM, BN)),
        tl.broadcast_to(tl.load(entry_lift + entry)[None, :], (BM, BN)),
        tl.full((BM, BN), _ZERO_SCORE, tl.float32),
    )
    if entry_codes.dtype.element_ty == tl.int8:
        sums = lift.to(tl.int32, bitcast=True)
        for chunk in tl.static_range(DIM // BK):
            sums = tl.dot(query[chunk], tl.load(at + chunk * BK), sums, out_dtype=tl.int32)
    else:
        total = tl.zeros((BM, BN), tl.float32)
        for chunk in tl.static_range(DIM // BK):
            total = tl.dot(query[chunk], _codes(at + chunk * BK, WIDEN), total)
        # A plain sum would be made the start of the product, whose rounding is that of small sums.
        one = tl.full((BM, BN), 1.0, tl.float32)
        sums = tl.fma(total, one, lift).to(tl.int32, bitcast=True)
    # `nought` is zero, which the compiler must not know, or it takes two steps for this one.
    place = (column // 8) * 2 + column % 2 + nought
    key = (sums & -SIZE) | place[None, :]
    if first_entry + BN > size:
        key = tl.where((entry < size)[None, :], key, _NOTHING)
    # Columns 8 i + 2 b and the next, for all i, are one thread's: no other has to be asked.
    one, two = tl.split(tl.reshape(key, (BM, BN // 8, 4, 2)))
    first, second = tl.maximum(one, two), tl.minimum(one, two)
    for level in tl.static_range(FOLDS):
        one, other_one = _halves(first, BM, BN // 16 >> level)
        two, other_two = _halves(second, BM, BN // 16 >> level)
        first, second = _two_best(one, two, other_one, other_two)
    return tl.reshape(first, (BM, 4)), tl.reshape(second, (BM, 4))


@triton.jit
def _joined(first, second, one, two, part, BN: tl.constexpr):
    """Best two of a block after its next part; the first part begins it anew."""
    begins = part == 0
    first, second = tl.where(begins, _NOTHING, first), tl.where(begins, _NOTHING, second)
    place = part * (BN // 4)  # of the part's first entry
    return _two_best(first, second, one | place, two | place)


@triton.jit
def _pair(first, second):
    return (first.to(tl.int64) << 32) | second.to(tl.int64)


@triton.jit
def _score(key, SIZE: tl.constexpr):
    """What a key says of a score, in units of its tile's step: at most the score."""
    score = ((key & -SIZE) - _ZERO_KEY).to(tl.float32)
    return tl.where(key < SIZE, float("-inf"), score)


@triton.jit(do_not_specialize=["n", "size", "blocks", "row_tiles", "share"])
def block_best_kernel(
    query_codes, query_alpha, entry_codes, entry_lift, best, n, size, blocks, row_tiles, share,
    DIM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SIZE: tl.constexpr, FOLDS: tl.constexpr, WIDEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the keys of the best two entries of every block: the halves of an int64.

    A program takes BM queries, and a share of the blocks: a multiple of four. FOLDS is the base-2
    logarithm of BN / 8.
    """
    PARTS: tl.constexpr = 4 * SIZE // BN
    program = tl.program_id(0)
    row = (program % row_tiles) * BM + tl.arange(0, BM)
    query = _resident(query_codes, row, n, DIM, BK, WIDEN)
    alpha = tl.load(query_alpha + row, mask=row < n, other=0.0)
    first = tl.full((BM, 4), _NOTHING, tl.int32)
    second = tl.full((BM, 4), _NOTHING, tl.int32)
    start = (program // row_tiles) * share
    stop = tl.minimum(start + share, blocks)
    to = best + row.to(tl.int64)[:, None] * blocks + tl.arange(0, 4)[None, :]
    for tile in tl.range(start // 4 * PARTS, stop // 4 * PARTS, num_stages=STAGES):
        one, two = _tile_best(
            query, alpha, entry_codes, entry_lift, tile * BN, size, n >> 31,
            DIM, BM, BN, BK, SIZE, FOLDS, WIDEN,
        )  # fmt: skip
        part = tile % PARTS
        first, second = _joined(first, second, one, two, part, BN)
        whole = (row < n)[:, None] & (part == PARTS - 1)
        tl.store(to + tile // PARTS * 4, _pair(first, second), mask=whole)


@triton.jit
def _upper(key, step, SIZE: tl.constexpr):
    """At least the score that a key stands for, before the bound of its error."""
    return (_score(key, SIZE) + (SIZE + _UNROUNDED)) * step


@triton.jit
def _lower(key, step, SIZE: tl.constexpr):
    """At most the score that a key stands for, before the bound of its error."""
    return (_score(key, SIZE) - _UNROUNDED) * step


@triton.jit(do_not_specialize=["n", "size", "first_block", "blocks", "row_tiles", "share",
                               "segments", "room"])  # fmt: skip
def block_hits_kernel(
    query_codes, query_alpha, entry_codes, entry_lift,
    threshold, per_norm, per_residual, slack, tile_step, tile_norm, tile_residual,
    count, found, found_pair,
    n, size, first_block, blocks, row_tiles, share, segments, room,
    DIM: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SIZE: tl.constexpr, FOLDS: tl.constexpr, WIDEN: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Write the blocks from `first_block` that can reach the threshold, with their keys.

    A program takes BM queries and a share of the blocks, and has a segment of its own of every
    query's list, the first of which is another's. It counts all that it finds, and keeps as many as
    there is room for.
    """
    PARTS: tl.constexpr = 4 * SIZE // BN
    program = tl.program_id(0)
    row = (program % row_tiles) * BM + tl.arange(0, BM)
    known = row < n
    query = _resident(query_codes, row, n, DIM, BK, WIDEN)
    alpha = tl.load(query_alpha + row, mask=known, other=0.0)
    least = tl.load(threshold + row, mask=known, other=float("inf"))
    norm = tl.load(per_norm + row, mask=known, other=0.0)
    residual = tl.load(per_residual + row, mask=known, other=0.0)
    least -= 4 * tl.load(slack + row, mask=known, other=0.0)
    first = tl.full((BM, 4), _NOTHING, tl.int32)
    second = tl.full((BM, 4), _NOTHING, tl.int32)
    filled = tl.zeros((BM,), tl.int32)
    start = first_block + (program // row_tiles) * share
    stop = tl.minimum(start + share, blocks)
    segment = row.to(tl.int64) * segments + program // row_tiles + 1
    for tile in tl.range(start // 4 * PARTS, stop // 4 * PARTS, num_stages=STAGES):
        one, two = _tile_best(
            query, alpha, entry_codes, entry_lift, tile * BN, size, n >> 31,
            DIM, BM, BN, BK, SIZE, FOLDS, WIDEN,
        )  # fmt: skip
        part = tile % PARTS
        first, second = _joined(first, second, one, two, part, BN)
        if part == PARTS - 1:
            at = tile * BN // TILE
            bound = norm * tl.load(tile_norm + at) + residual * tl.load(tile_residual + at)
            upper = _upper(first, tl.load(tile_step + at), SIZE)
            hit = known[:, None] & (upper >= (least - bound)[:, None]) & (first >= SIZE)
            ones = hit.to(tl.int32)
            slot = filled[:, None] + tl.cumsum(ones, 1) - ones
            block = tile // PARTS * 4 + tl.arange(0, 4)[None, :]
            to = segment[:, None] * room + slot
            kept = hit & (slot < room)
            tl.store(found + to, tl.broadcast_to(block, (BM, 4)), mask=kept)
            tl.store(found_pair + to, _pair(first, second), mask=kept)
            filled += tl.sum(ones, 1)
    tl.store(count + segment, filled, mask=known)


@triton.jit
def kth_largest(values, least, k, HALVINGS: tl.constexpr):
    """A number that k of the values reach, close to the k-th largest; `least` if fewer reach it."""
    low = tl.min(tl.where(values > -1e38, values, float("inf")))
    high = tl.max(values)
    low = tl.where(tl.sum((values >= low).to(tl.int32)) >= k, low, float("-inf"))
    low = tl.maximum(low, least)
    for _ in range(HALVINGS):
        middle = 0.5 * low + 0.5 * high
        enough = tl.sum((values >= middle).to(tl.int32)) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low


@triton.jit
def _unit_and_bound(
    block, known, norm, residual, rounding, tile_step, tile_norm, tile_residual,
    IN_TILE: tl.constexpr,
):  # fmt: skip
    """Unit of the scores of some blocks, and how far these can be from the true ones."""
    at = block // IN_TILE
    bound = norm * tl.load(tile_norm + at, mask=known, other=0.0) + rounding
    bound += residual * tl.load(tile_residual + at, mask=known, other=0.0)
    return tl.load(tile_step + at, mask=known, other=1.0), bound


@triton.jit(do_not_specialize=["blocks", "k", "segments", "room"])
def sieve_kernel(
    best, per_norm, per_residual, slack, tile_step, tile_norm, tile_residual,
    threshold, count, found, found_pair, blocks, k, segments, room,
    SIZE: tl.constexpr, IN_TILE: tl.constexpr, GROUPS: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """Find a threshold of one query that k entries reach, and list the blocks that can reach it.

    The k-th largest lower bound of groups of blocks is one: each group holds another entry.
    """
    query = tl.program_id(0).to(tl.int64)
    norm, residual = tl.load(per_norm + query), tl.load(per_residual + query)
    rounding = 4 * tl.load(slack + query)
    lane = tl.arange(0, GROUPS)
    largest = tl.full((GROUPS,), float("-inf"), dtype=tl.float32)
    for start in range(0, blocks, GROUPS):
        block = start + lane
        known = block < blocks
        pair = tl.load(best + query * blocks + block, mask=known, other=0)
        step, bound = _unit_and_bound(
            block, known, norm, residual, rounding, tile_step, tile_norm, tile_residual, IN_TILE
        )
        largest = tl.maximum(largest, _lower((pair >> 32).to(tl.int32), step, SIZE) - bound)
    least = kth_largest(largest, float("-inf"), k, HALVINGS)
    tl.store(threshold + query, least)
    filled = 0
    for start in range(0, blocks, GROUPS):
        block = start + lane
        known = block < blocks
        pair = tl.load(best + query * blocks + block, mask=known, other=0)
        step, bound = _unit_and_bound(
            block, known, norm, residual, rounding, tile_step, tile_norm, tile_residual, IN_TILE
        )
        key = (pair >> 32).to(tl.int32)
        hit = known & (_upper(key, step, SIZE) + bound >= least) & (key >= SIZE)
        ones = hit.to(tl.int32)
        slot = filled + tl.cumsum(ones, 0) - ones
        to = query * segments * room + slot
        tl.store(found + to, block, mask=hit & (slot < room))
        tl.store(found_pair + to, pair, mask=hit & (slot < room))
        filled += tl.sum(ones)
    tl.store(count + query * segments, filled)


@triton.jit(do_not_specialize=["k", "segments", "room", "capacity"])
def select_kernel(
    per_norm, per_residual, slack, tile_step, tile_norm, tile_residual,
    threshold, found_count, found, found_pair, count, places, uppers, k, segments, room, capacity,
    SIZE: tl.constexpr, IN_TILE: tl.constexpr, GROUPS: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """Raise one query's threshold by all blocks found; write the candidates of those that are left.

    With every candidate goes an upper bound of its score.

    A block whose second best entry cannot reach the threshold contributes its best; another, all of
    its entries. Where blocks were found that there was no room for, the count is over the capacity.
    """
    query = tl.program_id(0).to(tl.int64)
    norm, residual = tl.load(per_norm + query), tl.load(per_residual + query)
    rounding = 4 * tl.load(slack + query)
    lane = tl.arange(0, GROUPS)
    largest = tl.full((GROUPS,), float("-inf"), dtype=tl.float32)
    lost = 0
    for segment in range(segments):
        listed = tl.load(found_count + query * segments + segment)
        lost += (listed > room).to(tl.int32)
        listed = tl.minimum(listed, room)
        base = (query * segments + segment) * room
        for start in range(0, listed, GROUPS):
            known = start + lane < listed
            block = tl.load(found + base + start + lane, mask=known, other=0)
            pair = tl.load(found_pair + base + start + lane, mask=known, other=0)
            step, bound = _unit_and_bound(
                block, known, norm, residual, rounding, tile_step, tile_norm, tile_residual, IN_TILE
            )
            largest = tl.maximum(largest, _lower((pair >> 32).to(tl.int32), step, SIZE) - bound)
    least = kth_largest(largest, tl.load(threshold + query), k, HALVINGS)
    filled = 0
    for segment in range(segments):
        listed = tl.minimum(tl.load(found_count + query * segments + segment), room)
        base = (query * segments + segment) * room
        for start in range(0, listed, GROUPS):
            known = start + lane < listed
            block = tl.load(found + base + start + lane, mask=known, other=0)
            pair = tl.load(found_pair + base + start + lane, mask=known, other=0)
            step, bound = _unit_and_bound(
                block, known, norm, residual, rounding, tile_step, tile_norm, tile_residual, IN_TILE
            )
            first, second = (pair >> 32).to(tl.int32), pair.to(tl.int32)
            most, next_most = _upper(first, step, SIZE) + bound, _upper(second, step, SIZE) + bound
            hit = known & (most >= least) & (first >= SIZE)
            whole = hit & (next_most >= least) & (second >= SIZE)
            first_place = (block // 4) * (4 * SIZE) + (block % 4) * 2
            index = first & (SIZE - 1)
            taken = tl.where(whole, SIZE, hit.to(tl.int32))
            slot = filled + tl.cumsum(taken, 0) - taken
            to = query * capacity + slot
            place = first_place + (index // 2) * 8 + index % 2
            alone = hit & (whole == 0) & (slot < capacity)
            tl.store(places + to, place, mask=alone)
            tl.store(uppers + to, most, mask=alone)
            if tl.sum(whole.to(tl.int32)) > 0:
                for i in range(SIZE):
                    place = first_place + (i // 2) * 8 + i % 2
                    kept = whole & (slot + i < capacity)
                    tl.store(places + to + i, place, mask=kept)
                    tl.store(uppers + to + i, tl.where(index == i, most, next_most), mask=kept)
            filled += tl.sum(taken)
    tl.store(count + query, tl.where(lost > 0, capacity + 1, filled))
