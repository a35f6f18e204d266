"""Which entries can be among the k best: tiles of scores, a rising threshold, and the bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from bliss_index.search.torch.proposals import Proposal

# Entries of a block, of which only the best counts at first; blocks there must be for each result.
_BLOCK, _BLOCKS_PER_RESULT = 16, 4

Candidates = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


def find_candidates(
    proposal: Proposal, k: int, tile: int, room: int | None = None
) -> tuple[Candidates, npt.NDArray[np.int64]]:
    """Find all entries that can be among the k best of each query.

    Of every block of a tile the best score is kept, and of those the k largest. So k entries reach
    the least of these, and whatever is further below it than the bounds allow is left out.

    Parameters
    ----------
    proposal
        Queries (n, m) and entries (W, m).
    k
        Results per query, at most W.
    tile
        Entries that are multiplied at once.
    room
        Candidates of a query that there is room for; None for any number.

    Returns
    -------
    Rows, entries and scores, sorted by row; and the rows that have more candidates than there is
    room for, which have none among them.
    """
    queries = proposal.queries
    n, size = queries.shape[0], proposal.entries.shape[0]
    most = n * size if room is None else n * room
    left = np.zeros(n, dtype=bool)
    best: npt.NDArray[Any] | None = None
    found: list[tuple[npt.NDArray[Any], ...]] = []
    for first in range(0, size, tile):
        entries = proposal.entries[first : first + tile]
        scores = (queries @ entries.to(queries.dtype).T).cpu()
        # Integers are compared much faster than bfloat16 numbers, and in the same order where the
        # larger is positive.
        narrow = scores.dtype == torch.bfloat16
        numbers = (scores.view(torch.int16) if narrow else scores).numpy()
        above = _k_best(numbers, best, k)
        if narrow and (above[:, 0] <= 0).any():
            numbers, narrow = _ordered(numbers), False
            above = _k_best(numbers, best, k)
        best, reach = above, _reachable(proposal, above, k)
        if narrow and (reach <= 0).any():
            numbers = _ordered(numbers)
        reach[left] = _ends(reach).max
        flat = np.flatnonzero(numbers >= reach[:, None])
        row, entry = np.divmod(flat, numbers.shape[1])
        found.append((row, entry + first, numbers.reshape(-1)[flat]))
        last = first + tile >= size
        if last or sum(part[0].size for part in found) > most:
            row, entry, number = (np.concatenate(column) for column in zip(*found, strict=True))
            there = number >= reach[row]
            if room is not None:
                left |= np.bincount(row[there], minlength=n) > room
                there &= ~left[row]
            found = [(row[there], entry[there], number[there])]
    row, entry, number = found[0]
    if size > tile:
        order = np.argsort(row, kind="stable")
        row, entry, number = row[order], entry[order], number[order]
    return (row, entry, _scores(number)), np.flatnonzero(left)


def _k_best(numbers: npt.NDArray[Any], best: npt.NDArray[Any] | None, k: int) -> npt.NDArray[Any]:
    """Return the k largest of the best numbers of a tile's blocks, and of those before.

    The first column is the least of them. There are fewer while fewer entries have been seen.
    """
    block = max(1, min(_BLOCK, numbers.shape[1] // (_BLOCKS_PER_RESULT * k)))
    width = numbers.shape[1] // block
    blocks = torch.from_numpy(numbers)[:, : block * width].view(-1, block, width)
    maxima = blocks.amax(1).numpy()
    both = maxima if best is None else np.concatenate([best, maxima], axis=1)
    fewer = max(0, both.shape[1] - k)
    found: npt.NDArray[Any] = np.partition(both, fewer, axis=1)[:, fewer:]
    return found


def _reachable(proposal: Proposal, best: npt.NDArray[Any], k: int) -> npt.NDArray[Any]:
    """From the k best so far to the least numbers (n,) that can still be among the k best of all.

    With b the bound and u the unit of rounding, a true score is at least s - u |s| - b and at most
    s + u |s| + b. The k-th largest of the former is that of the k-th best score, since they grow
    with s; an entry is out of reach when its latter is below.
    """
    if best.shape[1] < k:
        return np.full(best.shape[0], _ends(best).min, dtype=best.dtype)
    kth, unit = _scores(best[:, 0].copy()), proposal.unit
    # The small numbers cover the roundings of these lines.
    loss = (unit + 2.0**-40) * np.abs(kth) + (2 + 2.0**-40) * proposal.bounds
    target = kth - loss
    reach = np.where(target >= 0, target / (1 + 1.01 * unit), target / (1 - 1.01 * unit))
    if best.dtype != np.int16:
        return np.asarray(np.nextafter(reach.astype(best.dtype), best.dtype.type(-np.inf)))
    rounded = torch.from_numpy(reach).bfloat16()
    near = rounded.double().numpy()
    numbers = _ordered(rounded.view(torch.int16).numpy()) + (near < reach)  # the next above
    return np.asarray(np.where(near == 0, -1, numbers), np.int16)  # of both zeros, the lower


def _ordered(numbers: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """From bits of bfloat16 numbers to integers in the same order, and back."""
    return np.asarray(numbers ^ ((numbers >> 15) & np.int16(0x7FFF)))


def _scores(numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """From numbers that compare as scores do to the scores."""
    if numbers.dtype != np.int16:
        return numbers.astype(np.float64, copy=False)
    bits = torch.from_numpy(_ordered(numbers))
    return np.asarray(bits.view(torch.bfloat16).double().numpy())


def _ends(numbers: npt.NDArray[Any]) -> Any:
    """Limits of a type of numbers."""
    return np.iinfo(numbers.dtype) if numbers.dtype == np.int16 else np.finfo(numbers.dtype)
