"""Whole scoring beside its search alone, and calibration beside the direct way.

Tables are computed as entries occur: the rounds of scoring are of images whose entries are known;
"first_pass_seconds" is the pass before, which pays for the tables.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import THREADS

from bliss_index.bench.paired import seconds_of
from bliss_index.bench.synthetic import clip_like

DIM, K, ENTRIES = 512, 10, 20_000


@pytest.mark.benchmark(group="scoring")
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_scoring(paired, scale, benchmark, classes):
    from bliss_index.calibration import calibrate
    from bliss_index.scoring.scorer import BlissScorer
    from bliss_index.search import exact_search

    vocabulary = clip_like(scale(ENTRIES), DIM, "text", 1)
    images = clip_like(scale(16_384), DIM, "image", 2)
    known = clip_like(4 * classes, DIM, "image", 3)
    labels = np.arange(len(known)) % classes
    calibration = calibrate([(known, labels)], clip_like(classes, DIM, "text", 4))
    search = exact_search(vocabulary, K, threads=THREADS)
    scorer = BlissScorer(search, vocabulary, calibration, threads=THREADS)
    first = seconds_of(lambda: scorer.score(images))
    ways = {"scoring": scorer.score, "search": search.search}
    turns = paired(ways, images, entries=len(vocabulary), classes=classes, k=K)
    added = np.median(turns.ratios("scoring", "search")) - 1
    benchmark.extra_info["added_to_search"] = round(float(added), 3)
    benchmark.extra_info["first_pass_seconds"] = round(first, 3)
    benchmark.extra_info["entries_in_tables"] = scorer.tables.known


@pytest.mark.benchmark(group="calibration")
@pytest.mark.parametrize(
    ("classes", "images"), [(20, 500), pytest.param(100, 5000, marks=pytest.mark.slow)]
)
def test_calibration(paired, scale, benchmark, classes, images):
    """Moments of all classes, then mean and deviation of every class on every entry.

    The direct way computes all similarities of a class in float32, and their mean and deviation in
    float64; it is timed on two classes, and all take the same.
    """
    from bliss_index.calibration import calibrate

    vocabulary = clip_like(scale(ENTRIES), DIM, "text", 1)
    texts = clip_like(classes, DIM, "text", 4)
    each = scale(images)
    rows = np.split(clip_like(each * classes, DIM, "image", 100), classes)

    def by_moments() -> tuple[np.ndarray, np.ndarray]:
        made = calibrate(((part, np.full(each, c)) for c, part in enumerate(rows)), texts)
        return made.statistics(vocabulary)

    def directly() -> None:
        for part in rows[:2]:
            direct_statistics(part, vocabulary)

    ways = {"moments": by_moments, "direct, two classes": directly}
    turns = paired(ways, rounds=3, entries=len(vocabulary), classes=classes, images_a_class=each)
    times = np.median(turns.ratios("direct, two classes", "moments")) * classes / 2
    benchmark.extra_info["times_as_fast_as_the_direct_way"] = round(float(times), 2)


def direct_statistics(rows: np.ndarray, vocabulary: np.ndarray) -> None:
    for start in range(0, len(vocabulary), 2000):
        similarity = rows @ vocabulary[start : start + 2000].T
        similarity.mean(0, dtype=np.float64)
        similarity.std(0, dtype=np.float64)
