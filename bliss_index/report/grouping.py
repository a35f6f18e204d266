"""Groups of images by what the vocabulary sees in them; how many there are is found.

1. *Names.* Every entry that is most similar to some image is a name, and an image has the first of
   its k entries that is one. What a name is worth is how much less similar, on average over its
   images, the next name among their entries is, in units of the mean difference between first and
   k-th entry and at most 1: near-synonyms are worth little. The name that is worth least is given
   up, and its images take their next names, again and again, until all are worth `NAME_WORTH`.
2. *Directions.* An image is the sum of its entries' centred embeddings, each weighed by how much
   more similar it is than the k-th, at unit norm. A group whose images are, on average, less than
   `APART` more similar to the mean direction of the group's others than to that of another group
   is joined to it, the least distinct first. Then every image goes to the nearest mean direction,
   `ROUNDS` times.
3. A group is called by the entry with the largest sum of weights over its images, where weights
   that other groups have as well count less; groups of one name are one.

Of n images with one name less is known the smaller n is, so both bounds are raised by
1 + 1 / sqrt(n): splinters give way, unless they are clearly something else.

Work and memory are bounded whatever the number of images: names are taken from the `MOST_NAMES`
most frequent ones, and 1 to 3 look at `MOST_IMAGES` images at most: of every name as many, chosen
by a hash of their numbers, which stand for all images of the name. All others are looked at once
more, to find their nearest mean direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bliss_index.search.isolation import isolated

NAME_WORTH = 0.35
APART = 0.06
ROUNDS = 2
MOST_NAMES = 2048
MOST_IMAGES = 16384
NAMES_SHOWN = 3
_STEPS = 1 << 20  # of a loss and
_PARTS = 1 << 8  # of a weight: integers, so that no order of sums decides
_COMMON = 0.02  # a weight that any entry may have anywhere
_BLOCK_ROWS = 1024
_DECIMALS = 9  # similarities of which fewer differ are equal, for the same reason

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which group an image belongs to: that of the nearest mean direction.

    Attributes
    ----------
    names : tuple of tuple of int
        Of every group the entries that name it, the best first.
    centres : (groups, d) float32 array
        Mean directions.
    """

    names: tuple[tuple[int, ...], ...]
    centres: npt.NDArray[np.float32]


class ImageGrouper:
    """Groups images in two passes over them, then says of any image where it belongs.

    Every image is given to :meth:`count`, then again, in the same order, to :meth:`add`; then
    :meth:`finish`.

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
        self._sample: _Sample | None = None

    def count(self, ids: Ids) -> None:
        """Note the most similar entries of images: (n, k) ids, the most similar first."""
        self._counts += np.bincount(ids[:, 0], minlength=self._counts.size)

    @isolated
    def add(self, ids: Ids, similarities: npt.NDArray[np.floating]) -> None:
        """Take images that were counted: (n, k) ids and similarities."""
        if self._sample is None:
            self._sample = _Sample(self._counts)
        self._sample.add(ids, similarities)

    @isolated
    def finish(self) -> Grouping:
        """Find the groups and name them; the largest comes first."""
        if self._sample is None or not self._sample.rows:
            return Grouping((), np.empty((0, self._entries.shape[1]), np.float32))
        ids, similarities, weights = self._sample.taken()
        entry_weights, directions = (
            np.concatenate(parts)
            for parts in zip(
                *(found[1:] for found in self._directions(ids, similarities)), strict=True
            )
        )
        directions = directions.astype(np.float64)
        of_name = names_of_images(ids, similarities, weights, self._sample.names)
        known = of_name >= 0
        group = np.full(len(ids), -1, dtype=np.int64)
        group[known] = np.unique(of_name[known], return_inverse=True)[1].ravel()
        group = join_groups(directions, weights, group)
        for _ in range(ROUNDS):
            centres = _unit(_sums(directions, weights, group))
            group = _nearest(directions, centres)
            group = np.unique(group, return_inverse=True)[1].ravel()
        group, names = name_groups(group, weights, ids, entry_weights)
        sizes = np.bincount(group, weights)
        order = np.lexsort((np.arange(sizes.size), -sizes))
        sums = _sums(directions, weights, group)[order]
        return Grouping(tuple(names[g] for g in order.tolist()), _unit(sums))

    @isolated
    def assign(self, grouping: Grouping, ids: Ids, similarities: npt.NDArray[np.floating]) -> Ids:
        """Return the group of every image, (n,)."""
        found = np.empty(len(ids), dtype=np.int64)
        for rows, _, directions in self._directions(ids, similarities):
            found[rows] = _nearest(directions, grouping.centres)
        return found

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


class _Sample:
    """Images that stand for all: of every name the same number, or all that it has.

    Attributes
    ----------
    names : int64 array
        Entries that are most similar to some image, at most the `MOST_NAMES` most frequent.
    rows : int
        Images that are held.
    """

    def __init__(self, counts: Ids) -> None:
        order = np.lexsort((np.arange(counts.size), -counts))
        self.names = np.sort(order[: min(MOST_NAMES, int((counts > 0).sum()))])
        self._of_entry = np.full(counts.size, -1, dtype=np.int64)
        self._of_entry[self.names] = np.arange(self.names.size)
        self._most = _largest_share(counts[self.names], MOST_IMAGES)
        self._sizes = np.zeros(self.names.size, dtype=np.int64)
        self._seen = 0
        self._held: list[tuple[Ids, npt.NDArray[np.uint64], Ids, Floats]] = []
        self.rows = 0

    def add(self, ids: Ids, similarities: npt.NDArray[np.floating]) -> None:
        places = self._of_entry[ids]
        first = (places >= 0).argmax(axis=1)
        names = places[np.arange(len(ids)), first]
        drawn = _hash(np.arange(self._seen, self._seen + len(ids), dtype=np.uint64))
        self._seen += len(ids)
        some = names >= 0
        self._sizes += np.bincount(names[some], minlength=self._sizes.size)
        wide = similarities[some].astype(np.float64)
        self._held.append((names[some], drawn[some], ids[some], wide))
        self.rows += int(some.sum())
        if self.rows > 2 * MOST_IMAGES:
            self._thin()

    def _thin(self) -> None:
        names, drawn, ids, similarities = (
            np.concatenate(parts) for parts in zip(*self._held, strict=True)
        )
        order = np.lexsort((drawn, names))
        names = names[order]
        place = np.arange(names.size) - np.searchsorted(names, names)
        kept = order[place < self._most]
        self._held = [(names[place < self._most], drawn[kept], ids[kept], similarities[kept])]
        self.rows = kept.size

    def taken(self) -> tuple[Ids, Floats, Floats]:
        """Return ids, similarities, and for how many images each stands, in parts of an image."""
        self._thin()
        names, _, ids, similarities = self._held[0]
        held = np.bincount(names, minlength=self._sizes.size)
        parts = np.round(_PARTS * self._sizes[names] / held[names])
        return ids, similarities, parts / _PARTS


def _largest_share(counts: Ids, most: int) -> int:
    """The largest q so that the sum of min(count, q) is at most `most`, and at least 1."""
    low, high = 1, max(int(counts.max(initial=1)), 1)
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.minimum(counts, middle).sum()) <= most:
            low = middle
        else:
            high = middle - 1
    return low


def _hash(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix the bits of numbers (splitmix64)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def names_of_images(ids: Ids, similarities: Floats, weights: Floats, names: Ids) -> Ids:
    """Give up names that say little more than others.

    Parameters
    ----------
    ids, similarities : (n, k) arrays
        The entries of images, the most similar first.
    weights : (n,) float64 array
        For how many images each stands.
    names : (m,) int64 array
        The entries to begin with.

    Returns
    -------
    (n,) int64 array, the entry that names every image; -1 where all of its ten were given up.
    """
    n, k = ids.shape
    places = np.full(int(ids.max(initial=0)) + 1, -1, dtype=np.int64)
    inside = names[names < places.size]
    places[inside] = np.arange(names.size)[names < places.size]
    place = places[ids]
    ranges = similarities[:, :1] - similarities
    scale = float((ranges[:, -1] * weights).sum() / weights.sum())
    part = np.minimum(ranges / scale, 1.0) if scale > 0 else np.zeros_like(ranges)
    losses = np.full((n, k + 1), _STEPS, dtype=np.int64)
    losses[:, :k] = np.round(part * _STEPS)
    parts = np.round(weights * _PARTS).astype(np.int64)
    alive = np.ones(names.size + 1, dtype=bool)
    alive[-1] = False  # what is no name
    cost, size = (np.zeros(names.size + 1, dtype=np.int64) for _ in range(2))
    holders = np.argsort(place.ravel(), kind="stable")
    begins = np.searchsorted(place.ravel()[holders], np.arange(names.size + 1))

    def add(rows: Ids, sign: int) -> None:
        there = alive[place[rows]]
        some = there.any(axis=1)
        rows, there = rows[some], there[some]
        first = there.argmax(axis=1)
        there[np.arange(rows.size), first] = False
        second = np.where(there.any(axis=1), there.argmax(axis=1), k)
        own = place[rows, first]
        np.add.at(cost, own, sign * parts[rows] * (losses[rows, second] - losses[rows, first]))
        np.add.at(size, own, sign * parts[rows])

    add(np.arange(n), 1)
    while True:
        images = size[:-1] / _PARTS
        worth = cost[:-1] / np.maximum(size[:-1], 1) / _STEPS
        worth /= 1 + 1 / np.sqrt(np.maximum(images, 1 / _PARTS))
        worth[~alive[:-1]] = np.inf
        least = int(worth.argmin()) if worth.size else -1
        if least < 0 or not worth[least] < NAME_WORTH:
            break
        rows = np.unique(holders[begins[least] : begins[least + 1]] // k)
        add(rows, -1)
        alive[least] = False
        add(rows, 1)
    there = alive[place]
    found = ids[np.arange(n), there.argmax(axis=1)]
    return np.where(there.any(axis=1), found, -1)


def join_groups(directions: Floats, weights: Floats, group: Ids) -> Ids:
    """Join groups that are hardly apart.

    Parameters
    ----------
    directions : (n, d) float64 array
        Unit directions of images.
    weights : (n,) float64 array
        For how many images each stands.
    group : (n,) int64 array
        Their groups, from 0 on without a gap; -1 where it has none.

    Returns
    -------
    (n,) int64 array, the joined groups, likewise.
    """
    count = int(group.max(initial=-1)) + 1
    if count < 2:
        return group
    sums = _sums(directions, weights, group)
    products = sums @ sums.T
    n = np.bincount(group[group >= 0], weights[group >= 0], count)
    joined = group.copy()
    own = np.array([_cohesion(directions, weights, joined == one) for one in range(count)])
    alive = np.ones(count, dtype=bool)
    while alive.sum() > 1:
        norms = np.sqrt(np.maximum(np.diag(products), 1e-12))
        towards = products / (n[:, None] * norms[None, :])
        np.fill_diagonal(towards, -np.inf)
        towards[:, ~alive] = -np.inf
        many = alive & ~np.isnan(own)
        usual = np.average(own[many], weights=n[many]) if many.any() else 1.0
        apart = np.where(np.isnan(own), usual, own) - towards.max(axis=1)
        apart = np.round(apart / (1 + 1 / np.sqrt(n)), _DECIMALS)
        apart[~alive] = np.inf
        least = int(apart.argmin())
        if not apart[least] < APART:
            break
        goal = int(np.round(towards[least], _DECIMALS).argmax())
        products[goal] += products[least]
        products[:, goal] += products[:, least]
        n[goal] += n[least]
        alive[least] = False
        joined[joined == least] = goal
        own[goal] = _cohesion(directions, weights, joined == goal)
    known = joined >= 0
    joined[known] = np.unique(joined[known], return_inverse=True)[1].ravel()
    return joined


def _cohesion(directions: Floats, weights: Floats, some: npt.NDArray[np.bool_]) -> float:
    """Mean similarity of images to the mean direction of the others; NaN for one image."""
    own, n = directions[some], weights[some]
    if n.size < 2:
        return float("nan")
    scaled = own * n[:, None]
    others = scaled.sum(axis=0) - scaled
    norms = np.maximum(np.linalg.norm(others, axis=1), 1e-12)
    return float(np.average(np.einsum("nd,nd->n", own, others) / norms, weights=n))


def name_groups(
    group: Ids, weights: Floats, ids: Ids, entry_weights: Floats
) -> tuple[Ids, list[tuple[int, ...]]]:
    """Name groups by the entries that are theirs more than others'; one name is one group.

    Parameters
    ----------
    group : (n,) int64 array
        Groups of images, from 0 on without a gap.
    weights : (n,) float64 array
        For how many images each stands.
    ids, entry_weights : (n, k) arrays
        Their entries, with weights that sum to 1.

    Returns
    -------
    The groups, joined where their names agree; and the names of each, the best first.
    """
    width = int(ids.max(initial=0)) + 1
    votes = weights[:, None] * entry_weights
    overall = np.bincount(ids.ravel(), votes.ravel(), width) / weights.sum()
    while True:
        keys = (group[:, None] * width + ids).ravel()
        pairs, place = np.unique(keys, return_inverse=True)
        groups, named = np.divmod(pairs, width)
        sums = np.bincount(place.ravel(), votes.ravel(), pairs.size)
        mean = sums / np.bincount(group, weights)[groups]
        distinct = np.log1p((mean + _COMMON) / (overall[named] + _COMMON))
        worth = np.round(mean * np.sqrt(distinct), _DECIMALS)
        order = np.lexsort((named, -worth, groups))
        starts = np.searchsorted(groups[order], np.arange(group.max(initial=-1) + 2))
        names = [
            tuple(named[order[start : min(end, start + NAMES_SHOWN)]].tolist())
            for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        ]
        first = np.array([name[0] for name in names], dtype=np.int64)
        joined = np.unique(first, return_inverse=True)[1].ravel().astype(np.int64)
        if joined.size == 0 or joined.max() + 1 == first.size:
            return group, names
        group = joined[group]


def _sums(directions: Floats, weights: Floats, group: Ids) -> Floats:
    """Sum of the directions of every group; images of no group, -1, are left out."""
    sums = np.zeros((int(group.max(initial=-1)) + 1, directions.shape[1]))
    inside = group >= 0
    np.add.at(sums, group[inside], directions[inside] * weights[inside, None])
    return sums


def _nearest(directions: npt.NDArray[np.floating], centres: npt.NDArray[np.floating]) -> Ids:
    found = np.empty(len(directions), dtype=np.int64)
    wide = centres.T.astype(np.float64)
    for start in range(0, len(directions), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        alike = np.round(directions[rows].astype(np.float64) @ wide, _DECIMALS)
        found[rows] = alike.argmax(axis=1)
    return found


def _unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norm, 1e-12), dtype=np.float32)
