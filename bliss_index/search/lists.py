"""Entries of a vocabulary in lists of near ones, found by k-means.

An image's best entries lie in few of the lists, those whose centres are nearest to it. The centres
are Lloyd's (IEEE Transactions on Information Theory 28, 1982), of a sample; entries then join the
list whose centre is nearest in Euclidean distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.search.native.backend import NativeBackend, products_fit_float32
from bliss_index.search.sharded import Matrix

_LISTS_PER_ROOT = 4.0
_ENTRIES_PER_LIST = 64
_SAMPLE_PER_LIST = 24
_ROUNDS = 6
_LEAST_ENTRIES = 16
_CHUNK_ROWS = 65_536
# A list reaches beyond its centre, and a wide one further: by this share of its root mean square
# distance, with which the fewest entries were looked at for the same recall.
_REACH = 0.1

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class EntryLists:
    """Which entries lie near each other.

    Attributes
    ----------
    order : (W,) uint32 array
        Entries list by list, by ascending number in each.
    starts : (lists + 1,) uint32 array
        Where in `order` the lists start, and where the last one ends.
    centres : (lists, d + 1) float32 array
        A list's mean, and how far it reaches. A list promises to a unit vector x what the inner
        product of (x, 1) with this says.
    """

    order: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.uint32]
    centres: Floats

    @property
    def count(self) -> int:
        """Number of lists."""
        return int(self.centres.shape[0])

    def fewest(self, k: int) -> int:
        """Return how many lists hold k entries together, whichever they are."""
        sizes = np.sort(np.diff(self.starts.astype(np.int64)))
        return min(self.count, int(np.searchsorted(np.cumsum(sizes), k)) + 1)


def make_lists(entries: Matrix, *, threads: int, seed: int = 0) -> EntryLists:
    """Find the lists of a vocabulary: four times the root of its size, of 64 entries at least.

    All are one list where float32 does not hold the products of such entries.

    Parameters
    ----------
    entries
        (W, d), finite. What is said of their order holds for rows of any norm, but lists pay for
        rows of one norm, as embeddings are.
    threads
        Of the native engine, which compares entries with centres.
    seed
        Of the sample.
    """
    size = entries.shape[0]
    if not products_fit_float32(entries):
        whole = np.arange(size, dtype=np.uint32), np.array([0, size], dtype=np.uint32)
        return EntryLists(*whole, np.zeros((1, entries.shape[1] + 1), dtype=np.float32))
    count = max(1, min(int(_LISTS_PER_ROOT * size**0.5), size // _ENTRIES_PER_LIST))
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.choice(size, min(size, _SAMPLE_PER_LIST * count), replace=False))
    sample = _narrow(entries[drawn])
    centres = sample[np.sort(rng.choice(drawn.size, count, replace=False))].copy()
    for _ in range(_ROUNDS if count > 1 else 0):
        label = _nearest(sample, centres, threads)
        order, starts = _grouped(label, count)
        sums, sizes = np.zeros_like(centres, dtype=np.float64), np.diff(starts)
        _add_rows(sums, sample[order], label[order])
        kept = sizes > 0
        centres[kept] = sums[kept] / sizes[kept, None]
    label = _nearest(entries, centres, threads)
    kept = np.bincount(label, minlength=count) >= min(_LEAST_ENTRIES, size)
    if not kept.all() and kept.any():  # the entries of small lists join others
        left = np.flatnonzero(~kept[label])
        centres = centres[kept]
        label = np.where(kept[label], np.cumsum(kept)[label] - 1, 0)
        label[left] = _nearest(entries[left], centres, threads)
    order, starts = _grouped(label, len(centres))
    return EntryLists(
        order.astype(np.uint32), starts.astype(np.uint32), _described(entries, order, starts)
    )


def _nearest(rows: Matrix, centres: Floats, threads: int) -> npt.NDArray[np.int64]:
    """Numbers of the nearest centres: the largest <x, c> - |c|^2 / 2."""
    if len(centres) == 1:
        return np.zeros(rows.shape[0], dtype=np.int64)
    halves = np.einsum("ij,ij->i", centres, centres)[:, None] / -2
    search = NativeBackend(
        np.ascontiguousarray(np.hstack([centres, halves]), dtype=np.float32), 1, threads=threads
    )
    found = np.empty(rows.shape[0], dtype=np.int64)
    for start in range(0, rows.shape[0], _CHUNK_ROWS):
        part = _narrow(rows[start : start + _CHUNK_ROWS])
        part = np.hstack([part, np.ones((len(part), 1), dtype=np.float32)])
        found[start : start + _CHUNK_ROWS] = search.search(part, start)[1][:, 0]
    return found


def _grouped(
    label: npt.NDArray[np.int64], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    order = np.argsort(label, kind="stable")
    return order, np.searchsorted(label[order], np.arange(count + 1))


def _add_rows(sums: npt.NDArray[np.float64], rows: Floats, label: npt.NDArray[np.int64]) -> None:
    """Add rows to the sums of their lists; labels ascend."""
    firsts = np.flatnonzero(np.diff(label, prepend=-1))
    sums[label[firsts]] += np.add.reduceat(rows, firsts, axis=0, dtype=np.float64)


def _described(
    entries: Matrix, order: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]
) -> Floats:
    """Means of the lists, and the root mean square distances of their entries from these."""
    sizes = np.diff(starts)
    label = np.repeat(np.arange(sizes.size), sizes)
    sums, squares = np.zeros((sizes.size, entries.shape[1])), np.zeros(sizes.size)
    for start in range(0, order.size, _CHUNK_ROWS):
        rows = _narrow(entries[order[start : start + _CHUNK_ROWS]])
        own = label[start : start + _CHUNK_ROWS]
        _add_rows(sums, rows, own)
        lengths = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        squares += np.bincount(own, lengths, minlength=sizes.size)
    means = sums / sizes[:, None]
    spread = squares / sizes - np.einsum("ij,ij->i", means, means)
    reach = _REACH * np.sqrt(np.maximum(spread, 0))
    return np.hstack([means, reach[:, None]]).astype(np.float32)


def _narrow(rows: npt.NDArray[Any]) -> Floats:
    return np.ascontiguousarray(rows, dtype=np.float32)
