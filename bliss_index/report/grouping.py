"""Groups of images by what the vocabulary sees in them; how many there are is found.

An image is the sum of its k entries' centred embeddings, each weighed by how much more similar it
is than the k-th, at unit norm. Images with one most similar entry are one cell; then the two
groups that are most alike are joined, again and again, while

    (1 + SMALL / sqrt(n)) * s >= ALIKE

s being the mean similarity of an image of the one to an image of the other and n the images of the
smaller one: of few images less is known, so they are joined sooner. A group is called by the entry
with the largest sum of weights over its images, and groups of one name are one.

Work and memory depend on the number of entries that are ever most similar, of which the
`MOST_CELLS` most frequent are taken, and not on the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bliss_index.search.isolation import isolated

ALIKE = 0.8
SMALL = 1.0
MOST_CELLS = 2048
NAMES_SHOWN = 3
_BLOCK_ROWS = 1024
_PAIRS_HELD = 1 << 21
_DECIMALS = 9  # similarities of which fewer differ are equal, so that no order of sums decides

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which group an image belongs to.

    Attributes
    ----------
    names : tuple of tuple of int
        Of every group the entries that name it, the best first.
    group_of_entry : (W,) int64 array
        Group of the images whose most similar entry this is; -1 where it is no cell.
    centres : (groups, d) float32 array
        Mean directions.
    """

    names: tuple[tuple[int, ...], ...]
    group_of_entry: Ids
    centres: npt.NDArray[np.float32]


class ImageGrouper:
    """Groups images in two passes over them, then says of any image where it belongs.

    Every image is given to :meth:`count`, then again to :meth:`add`; then :meth:`finish`.

    Parameters
    ----------
    entries : (W, d) array
        Embeddings of the vocabulary.
    """

    @isolated
    def __init__(self, entries: npt.NDArray[np.floating]) -> None:
        wide = entries.astype(np.float32)
        self._entries = wide - wide.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._counts = np.zeros(len(entries), dtype=np.int64)
        self._cell_of_entry: Ids = np.empty(0, dtype=np.int64)

    def count(self, ids: Ids) -> None:
        """Note the most similar entries of images: (n, k) ids, the most similar first."""
        self._counts += np.bincount(ids[:, 0], minlength=self._counts.size)

    @isolated
    def add(self, ids: Ids, similarities: npt.NDArray[np.floating]) -> None:
        """Take images that were counted: (n, k) ids and similarities."""
        if not self._cell_of_entry.size:
            self._begin()
        for rows, weights, directions in self._directions(ids, similarities):
            cells = self._cells(ids[rows])
            inside = cells >= 0
            np.add.at(self._sums, cells[inside], directions[inside].astype(np.float64))
            self._sizes += np.bincount(cells[inside], minlength=self._sizes.size)
            named = cells[inside, None] * self._counts.size + ids[rows][inside]
            self._votes.add(named.ravel(), weights[inside].ravel())

    @isolated
    def finish(self) -> Grouping:
        """Join the cells to groups, and name them; the largest group comes first."""
        if not self._cell_of_entry.size:
            self._begin()
        votes = self._votes.triples(self._counts.size)
        group_of_cell, names = _named(join_cells(self._sums, self._sizes), *votes)
        count = len(names)
        sizes = np.bincount(group_of_cell, self._sizes, count)
        order = np.lexsort((np.arange(count), -sizes))
        place = np.empty(count, dtype=np.int64)
        place[order] = np.arange(count)
        group_of_cell = place[group_of_cell]
        sums = np.zeros((count, self._sums.shape[1]))
        np.add.at(sums, group_of_cell, self._sums)
        group_of_entry = np.full(self._counts.size, -1, dtype=np.int64)
        known = self._cell_of_entry >= 0
        group_of_entry[known] = group_of_cell[self._cell_of_entry[known]]
        return Grouping(
            tuple(names[g] for g in order.tolist()), group_of_entry,
            _unit(sums),
        )  # fmt: skip

    @isolated
    def assign(self, grouping: Grouping, ids: Ids, similarities: npt.NDArray[np.floating]) -> Ids:
        """Return the group of every image, (n,): its cell's, or else the nearest group."""
        found = grouping.group_of_entry[ids[:, 0]]
        missing = np.flatnonzero(found < 0)
        for rows, _, directions in self._directions(ids[missing], similarities[missing]):
            alike = np.round(directions.astype(np.float64) @ grouping.centres.T, _DECIMALS)
            found[missing[rows]] = alike.argmax(axis=1)
        return found

    def _begin(self) -> None:
        order = np.lexsort((np.arange(self._counts.size), -self._counts))
        heads = np.sort(order[: min(MOST_CELLS, int((self._counts > 0).sum()))])
        self._cell_of_entry = np.full(self._counts.size, -1, dtype=np.int64)
        self._cell_of_entry[heads] = np.arange(heads.size)
        self._sums = np.zeros((heads.size, self._entries.shape[1]))
        self._sizes = np.zeros(heads.size, dtype=np.int64)
        self._votes = _Sums()

    def _cells(self, ids: Ids) -> Ids:
        return self._cell_of_entry[ids[:, 0]]

    def _directions(
        self, ids: Ids, similarities: npt.NDArray[np.floating]
    ) -> Iterator[tuple[slice, Floats, npt.NDArray[np.float32]]]:
        """Yield rows, the weights of their entries, which sum to 1, and their unit directions."""
        for start in range(0, len(ids), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            some = similarities[rows].astype(np.float64)
            weights = np.maximum(some - some.min(axis=1, keepdims=True), 0.0)
            total = weights.sum(axis=1, keepdims=True)
            weights = np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / ids.shape[1])
            sums = np.einsum("nk,nkd->nd", weights.astype(np.float32), self._entries[ids[rows]])
            yield rows, weights, _unit(sums)


class _Sums:
    """Sums by key of which many occur again; memory is that of the different keys."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.int64)
        self._values: Floats = np.empty(0)
        self._waiting: list[tuple[Ids, Floats]] = []
        self._held = 0

    def add(self, keys: Ids, values: Floats) -> None:
        self._waiting.append((keys, values))
        self._held += keys.size
        if self._held >= _PAIRS_HELD:
            self._merge()

    def _merge(self) -> None:
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._waiting)])
        values = np.concatenate([self._values, *(values for _, values in self._waiting)])
        self._keys, place = np.unique(keys, return_inverse=True)
        self._values = np.bincount(place.ravel(), values, self._keys.size).astype(np.float64)
        self._waiting, self._held = [], 0

    def triples(self, width: int) -> tuple[Ids, Ids, Floats]:
        """Return the keys as two numbers, the second below `width`, and the sums."""
        self._merge()
        return self._keys // width, self._keys % width, self._values


def join_cells(sums: Floats, sizes: Ids) -> Ids:
    """Join cells to groups.

    Parameters
    ----------
    sums : (m, d) float64 array
        Sum of the unit directions of every cell's images.
    sizes : (m,) int64 array
        How many those are.

    Returns
    -------
    (m,) int64 array, the group of every cell, in the order of their first cells.
    """
    m = sizes.size
    group = np.arange(m)
    if m < 2:
        return group
    products = sums @ sums.T
    n = sizes.astype(np.float64)

    def alike(cell: int) -> Floats:
        likeness = products[cell] / (n[cell] * n)
        return np.asarray(
            np.round(likeness * (1 + SMALL / np.sqrt(np.minimum(n[cell], n))), _DECIMALS)
        )

    table = np.stack([alike(cell) for cell in range(m)])
    np.fill_diagonal(table, -np.inf)
    best = table.argmax(axis=1)
    value = table[np.arange(m), best]
    alive = np.ones(m, dtype=bool)
    while True:
        first = int(value.argmax())
        if value[first] < ALIKE:
            break
        first, second = sorted((first, int(best[first])))
        products[first] += products[second]
        products[:, first] += products[:, second]
        n[first] += n[second]
        alive[second] = False
        group[group == second] = first
        row = alike(first)
        row[~alive] = -np.inf
        row[first] = -np.inf
        table[first], table[:, first] = row, row
        table[second], table[:, second] = -np.inf, -np.inf
        value[second] = -np.inf
        # To no other group is the joined one closer than the closer of the two was.
        again = np.flatnonzero(alive & ((best == first) | (best == second)))
        again = np.union1d(again, [first])
        best[again] = table[again].argmax(axis=1)
        value[again] = table[again, best[again]]
    return np.unique(group, return_inverse=True)[1].astype(np.int64).ravel()


def _named(
    group_of_cell: Ids, cells: Ids, entries: Ids, weights: Floats
) -> tuple[Ids, list[tuple[int, ...]]]:
    """Name groups by their entries' weights; groups whose first names agree become one."""
    while True:
        keys = group_of_cell[cells] * (int(entries.max(initial=0)) + 1) + entries
        pairs, place = np.unique(keys, return_inverse=True)
        total = np.round(np.bincount(place.ravel(), weights, pairs.size), _DECIMALS)
        groups, named = np.divmod(pairs, int(entries.max(initial=0)) + 1)
        order = np.lexsort((named, -total, groups))
        starts = np.searchsorted(groups[order], np.arange(group_of_cell.max(initial=-1) + 2))
        names = [
            tuple(named[order[start : min(end, start + NAMES_SHOWN)]].tolist())
            for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        ]
        first = np.array([name[0] for name in names], dtype=np.int64)
        _, joined = np.unique(first, return_inverse=True)
        if np.unique(first).size == first.size:
            return group_of_cell, names
        group_of_cell = joined.ravel().astype(np.int64)[group_of_cell]


def _unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norm, 1e-12), dtype=np.float32)
