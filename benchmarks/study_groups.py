"""How well groups of outliers agree with what the outliers are, beside k-means that is told more.

    BLISS_INDEX_REALDATA=FOLDER python benchmarks/study_groups.py \
        --out benchmarks/results/groups.json

The images of all classes that are not normal are grouped, as `bliss-index groups` does, from their
ten most similar entries; the vocabulary is all distinct names. Their classes are the truth:

- nmi, ami: normalised and adjusted mutual information of groups and classes;
- images, groups: share of images that are in a group with the name of their class, and of groups
  that have the name of the class of most of their images (groups_3: of those with three images or
  more). Names are compared without case,
  underscores and what stands in brackets; a right synonym counts as wrong;
- found, found_3, true: number of groups, of those with three or more images, and of classes.

Baselines: k-means on the same directions and on image embeddings, both told the true number of
groups and named by the largest sum of similarities (the best of four beginnings, of one for more
than 200 groups); every image called by its most similar entry.

The bounds NAME_WORTH and APART were chosen on both data sets and on drawn ones, which have more
images of a kind and finer kinds than these two: around the mean images of some classes of ImageNet
images are drawn with the residuals of others. `by_setting` has means over each of these; no other
data had a say.
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from realdata import RealData, mean_interval, unit
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from study_choosing import distinct_rows

from bliss_index.report import grouping
from bliss_index.report.grouping import ImageGrouper
from bliss_index.search import exact_search

K = 10
NAME_WORTHS = (0.2, 0.3, 0.35, 0.4, 0.5)
APARTS = (0.0, 0.03, 0.06, 0.09, 0.12)
TUNING = 20  # the first of the draws by which bounds are compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=5, help="choices of normal classes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "groups",
        "machine": describe_machine(1),
        "draws": arguments.draws,
        "name_worth": grouping.NAME_WORTH,
        "apart": grouping.APART,
    }
    caltech101, imagenet = Study.of(RealData.caltech101()), Study.of(RealData.imagenet())
    for study, draws in ((caltech101, arguments.draws), (imagenet, 2)):
        result[study.title] = {
            name: study.measure(size, draws)
            for name, size in (("one", 1), ("six", 6), ("half", len(study.true) // 2))
        }
        result[study.title]["entries"] = len(study.names)
        print(study.title, "done", flush=True)
    drawn = {title: Study.drawn(RealData.imagenet(), title) for title in DRAWN}
    result["drawn"] = {title: study.measure(0, 1) for title, study in drawn.items()}
    cases = {
        "Caltech101": [(caltech101, size, draw) for size in (1, 6, 34) for draw in range(2)],
        "ImageNet": [(imagenet, size, draw) for size in (500, 900, 960) for draw in range(2)],
        "drawn": [(study, 0, 0) for study in drawn.values()],
    }
    result["by_setting"] = {
        f"NAME_WORTH {worth:g}, APART {apart:g}": {
            data: at(worth, apart, some) for data, some in cases.items()
        }
        for worth, apart in itertools.product(NAME_WORTHS, APARTS)
    }
    result["scale"] = scale()
    write_result(arguments.out, result)


def scale(images: int = 1 << 18, entries: int = 20_000, dim: int = 512) -> dict[str, Any]:
    """Seconds to group random images of many kinds, apart from reading them; one thread."""
    rng = np.random.default_rng(0)
    words = rng.normal(size=(entries, dim)).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    first = rng.zipf(1.3, size=(images, 1)) % entries
    ids = np.concatenate([first, (first * 7 + rng.integers(0, 50, (images, 9))) % entries], axis=1)
    similar = -np.sort(-rng.uniform(0.2, 0.3, (images, K)).astype(np.float32), axis=1)
    batches = [slice(start, start + 16384) for start in range(0, images, 16384)]
    grouper, began = ImageGrouper(words), time.perf_counter()
    for rows in batches:
        grouper.count(ids[rows])
    for rows in batches:
        grouper.add(ids[rows], similar[rows])
    added = time.perf_counter()
    found = grouper.finish()
    joined = time.perf_counter()
    for rows in batches:
        grouper.assign(found, ids[rows], similar[rows])
    assigned = time.perf_counter()
    return {
        "images": images, "entries": entries, "dim": dim, "groups": len(found.names),
        "seconds": {
            "two passes": round(added - began, 2), "join": round(joined - added, 2),
            "assign": round(assigned - joined, 2),
        },
    }  # fmt: skip


# Classes of ImageNet, and how many images of each.
DRAWN = {
    "37 dogs and cats": (range(151, 286), 37, lambda rng: np.full(37, 100)),
    "59 birds": (range(80, 146), 59, lambda rng: np.full(59, 30)),
    "46 foods": (range(924, 970), 46, lambda rng: rng.integers(3, 200, 46)),
    "60 kinds, few large": (range(1000), 60, lambda rng: 2 + (800 / np.arange(1, 61)).astype(int)),
    "20 large kinds": (range(1000), 20, lambda rng: np.full(20, 1500)),
}


class Study:
    """The images of a data set, with their entries."""

    def __init__(
        self, title: str, data: RealData, images: np.ndarray, labels: np.ndarray, true: list[str]
    ) -> None:
        rows = distinct_rows(data)
        self.title = title
        self.entries = data.entries[rows]
        self.names = np.array([plain(data.entry_names[row]) for row in rows])
        self.images, self.labels, self.true = images, labels, np.array(true)
        search = exact_search(self.entries, K, threads=1)
        self.similarities, self.ids = search.search(self.images)

    @classmethod
    def of(cls, data: RealData) -> Study:
        """Take all images; a class is called as the entry whose embedding it has."""
        own = (data.texts @ data.entries.T).argmax(axis=1)
        return cls(
            data.title, data, np.concatenate([data.normal, data.test]),
            np.concatenate([data.normal_labels, data.test_labels]),
            [plain(data.entry_names[row]) for row in own],
        )  # fmt: skip

    @classmethod
    def drawn(cls, data: RealData, title: str) -> Study:
        """Draw images around the means of some classes, with residuals of all classes."""
        among, kinds, sizes = DRAWN[title]
        rng = np.random.default_rng([3, kinds])
        whole = cls.of(data)
        means = np.stack([whole.images[whole.labels == c].mean(0) for c in range(1000)])
        residuals = (whole.images - means[whole.labels]) * np.sqrt(4 / 3)
        labels = np.repeat(rng.choice(list(among), kinds, replace=False), sizes(rng))
        images = means[labels]
        for part in np.array_split(np.arange(labels.size), 1 + labels.size // 4096):
            shares = unit(rng.normal(size=(part.size, 6)))
            chosen = residuals[rng.integers(0, len(residuals), (part.size, 6))]
            images[part] += np.einsum("nk,nkd->nd", shares, chosen)
        return cls(title, data, unit(images), labels, whole.true.tolist())

    def draw(self, size: int, draw: int) -> np.ndarray:
        """Say which images are of a class that is not normal."""
        order = np.random.default_rng([7, draw]).permutation(len(self.true))
        return ~np.isin(self.labels, order[:size])

    def group(self, some: np.ndarray) -> np.ndarray:
        """Group images as the package does: the number and the entry that names it, (2, n)."""
        grouper = ImageGrouper(self.entries)
        grouper.count(self.ids[some])
        grouper.add(self.ids[some], self.similarities[some])
        found = grouper.finish()
        groups = grouper.assign(found, self.ids[some], self.similarities[some])
        return np.stack([groups, np.array([names[0] for names in found.names])[groups]])

    def directions(self, some: np.ndarray, weights: np.ndarray) -> np.ndarray:
        centred = self.entries - self.entries.mean(axis=0)
        sums = np.einsum("nk,nkd->nd", weights, centred[self.ids[some]])
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def voted(self, some: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The entry with the largest sum of weights in each image's group."""
        table = np.zeros((groups.max() + 1, len(self.names)))
        np.add.at(table, (groups[:, None], self.ids[some]), weights)
        return table.argmax(axis=1)[groups]

    def measure(self, size: int, draws: int) -> dict[str, Any]:
        found: dict[str, list[dict[str, float]]] = {}
        for draw in range(draws):
            some = self.draw(size, draw)
            similar = self.similarities[some]
            gaps = similar - similar.min(axis=1, keepdims=True)
            true = np.unique(self.labels[some]).size
            groups, names = self.group(some)
            ways = {"groups": (groups, names)}
            for title, rows in (
                ("k-means of entries, true number", self.directions(some, similar)),
                ("k-means of weighted entries, true number", self.directions(some, gaps)),
                ("k-means of images, true number", self.images[some]),
            ):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of clusters that coincide
                    beginnings = 4 if true <= 200 else 1
                    k_means = KMeans(true, n_init=beginnings, random_state=draw)
                    means = k_means.fit_predict(rows)
                ways[title] = (means, self.voted(some, means, similar))
            ways["most similar entry"] = (self.ids[some][:, 0], self.ids[some][:, 0])
            for title, (number, name) in ways.items():
                found.setdefault(title, []).append(self.agreement(some, number, name))
        return {title: averaged(values) for title, values in found.items()}

    def agreement(self, some: np.ndarray, groups: np.ndarray, names: np.ndarray) -> dict[str, Any]:
        labels = self.labels[some]
        right = self.names[names] == self.true[labels]
        named, sizes = [], []
        for group in np.unique(groups):
            own = groups == group
            most = np.bincount(labels[own]).argmax()
            named.append(self.names[names[own][0]] == self.true[most])
            sizes.append(int(own.sum()))
        return {
            "nmi": normalized_mutual_info_score(labels, groups),
            "ami": adjusted_mutual_info_score(labels, groups),
            "images": right.mean(),
            "groups": np.mean(named),
            "groups_3": np.mean(np.array(named)[np.array(sizes) >= 3]),
            "found": len(sizes),
            "found_3": sum(size >= 3 for size in sizes),
            "true": np.unique(labels).size,
        }


def at(worth: float, apart: float, cases: list[tuple[Study, int, int]]) -> dict[str, Any]:
    """Means over some draws with other bounds."""
    kept = grouping.NAME_WORTH, grouping.APART
    grouping.NAME_WORTH, grouping.APART = worth, apart
    try:
        found = []
        for study, size, draw in cases:
            some = study.draw(size, TUNING + draw)
            found.append(study.agreement(some, *study.group(some)))
        return averaged(found)
    finally:
        grouping.NAME_WORTH, grouping.APART = kept


def plain(name: str) -> str:
    return re.sub(r"\s*_?\(.*\)", "", name.casefold()).replace("_", " ").strip()


def averaged(values: list[dict[str, float]]) -> dict[str, Any]:
    return {
        name: mean_interval([one[name] for one in values])
        if name == "nmi"
        else round(float(np.mean([one[name] for one in values])), 3)
        for name in values[0]
    }


if __name__ == "__main__":
    main()
