"""Whole scoring against its search alone, and calibration against the direct way.

    python benchmarks/bench_scoring.py --json benchmarks/results/scoring_cpu.json

Scoring: search, tables, class scores and minimum, W = 20,000, for several numbers of classes;
paired with the search alone on the same images. Tables are computed as entries occur: the first
pass over the images pays for them and is timed apart ("first").

Calibration: moments of all classes, then mean and deviation of every class on every entry, against
computing all similarities of each class and numpy's mean and std.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, peak_memory_mib, use_fast_blas, write_result

from bliss_index.bench.synthetic import clip_like

DIM, K = 512, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--images", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--calibration", type=int, nargs="*", default=[100, 5000],
        help="classes and images of each; nothing: scoring alone",
    )  # fmt: skip
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_fast_blas(given.threads)
    vocabulary = clip_like(given.entries, DIM, "text", 1)
    images = clip_like(given.images, DIM, "image", 2)
    result: dict[str, Any] = {
        "machine": describe_machine(given.threads),
        "entries": given.entries,
        "dim": DIM,
        "k": K,
        "images": given.images,
        "scoring": [score(vocabulary, images, c, given) for c in given.classes],
    }
    if given.calibration:
        result["calibration"] = calibrate_both(vocabulary, *given.calibration)
    write_result(given.json, result)


def score(
    vocabulary: np.ndarray, images: np.ndarray, classes: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Time search alone and whole scoring in turn."""
    from bliss_index.calibration import calibrate
    from bliss_index.scoring.scorer import BlissScorer
    from bliss_index.search import exact_search

    known = clip_like(4 * classes, DIM, "image", 3)
    calibration = calibrate(
        [(known, np.arange(len(known)) % classes)], clip_like(classes, DIM, "text", 4)
    )
    search = exact_search(vocabulary, K, threads=given.threads)
    scorer = BlissScorer(search, vocabulary, calibration, threads=given.threads)
    search.search(images)
    first = seconds(scorer.score, images)
    alone, whole = [], []
    for _ in range(given.rounds):
        alone.append(seconds(search.search, images))
        whole.append(seconds(scorer.score, images))
    return {
        "classes": classes,
        "search_images_per_second": round(len(images) / median(alone)),
        "scoring_images_per_second": round(len(images) / median(whole)),
        "added_to_search": round(median(w / a for a, w in zip(alone, whole, strict=True)) - 1, 3),
        "first_pass_seconds": round(first, 3),
        "entries_in_tables": scorer.tables.known,
    }


def calibrate_both(vocabulary: np.ndarray, classes: int, images: int) -> dict[str, Any]:
    """Time the moments and the direct way; images come class by class."""
    from bliss_index.calibration import calibrate

    texts = clip_like(classes, DIM, "text", 4)

    def batches() -> Any:
        for c in range(classes):
            yield clip_like(images, DIM, "image", 100 + c), np.full(images, c)

    making = seconds(lambda _: [None for _ in batches()], None)
    calibration: list[Any] = []
    moments = seconds(lambda _: calibration.append(calibrate(batches(), texts)), None) - making
    tables = seconds(calibration[0].statistics, vocabulary)
    checked = 2  # the direct way is timed on some classes, all take the same
    direct, difference = 0.0, 0.0
    for c in range(checked):
        rows = clip_like(images, DIM, "image", 100 + c)
        began = time.perf_counter()
        mean, deviation = direct_statistics(rows, vocabulary)
        direct += time.perf_counter() - began
        mu, sigma = calibration[0].moments[c].statistics(vocabulary)
        difference = max(difference, float(np.abs(sigma - deviation).max() / deviation.min()))
        difference = max(difference, float(np.abs(mu - mean).max()))
    ours = moments + tables
    theirs = direct / checked * classes
    return {
        "classes": classes,
        "images_per_class": images,
        "entries": len(vocabulary),
        "moments_seconds": round(moments, 2),
        "all_tables_seconds": round(tables, 2),
        "direct_seconds": round(theirs, 2),
        "times_faster": round(theirs / ours, 2),
        "times_faster_without_tables": round(theirs / moments, 2),
        "largest_difference": difference,
        "peak_mib": round(peak_memory_mib()),
    }


def direct_statistics(rows: np.ndarray, vocabulary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All similarities of a class in float32, then mean and deviation in float64, in blocks."""
    mean, deviation = [], []
    for start in range(0, len(vocabulary), 2000):
        similarity = rows @ vocabulary[start : start + 2000].T
        mean.append(similarity.mean(0, dtype=np.float64))
        deviation.append(similarity.std(0, dtype=np.float64) + 1e-8)
    return np.concatenate(mean), np.concatenate(deviation)


def seconds(function: Any, argument: Any) -> float:
    began = time.perf_counter()
    function(argument)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
