"""False alarms of thresholds: what is promised and what is observed, over random splits.

    BLISS_INDEX_REALDATA=FOLDER python benchmarks/study_thresholds.py \
        --out benchmarks/results/thresholds.json

Every split draws the normal classes and deals their images at random: some calibrate and give the
held-out scores, the others are new normal images. "expected" is how often the observed rate would
exceed the one asked for if scores were exactly exchangeable, the same numbers of images given.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from realdata import IMAGENET_ROWS, RealData

from bliss_index import BlissDetector
from bliss_index.calibration import calibrate
from bliss_index.errors import CalibrationWarning, InvalidInputError
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.thresholds import held_out_scores, threshold_at
from bliss_index.search import exact_search

RATES = (0.01, 0.05, 0.1)
CONFIDENCES = (None, 0.95)
K = 10


@dataclass(frozen=True)
class Setting:
    """Which images: the data, normal classes a split, calibration images a class, shrinkage."""

    data: RealData
    classes: int
    share: float
    shrinkage: float

    def split(self, number: int) -> tuple[np.ndarray, ...]:
        """Class texts, calibration images and labels, new normal images."""
        data = self.data
        rng = np.random.default_rng(number)
        run = np.sort(rng.choice(len(data.names), self.classes, replace=False))
        images = np.concatenate([data.normal, data.test])
        labels = np.concatenate([data.normal_labels, data.test_labels])
        known = np.zeros(labels.size, dtype=bool)
        for c in run:
            rows = rng.permutation(np.flatnonzero(labels == c))
            known[rows[: round(self.share * rows.size)]] = True
        new = np.isin(labels, run) & ~known
        return data.texts[run], images[known], np.searchsorted(run, labels[known]), images[new]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    caltech, imagenet = RealData.caltech101(), RealData.imagenet()
    result: dict[str, Any] = {
        "benchmark": "thresholds",
        "machine": describe_machine(1),
        "vocabulary": "ImageNet's 1000 class names",
        "splits": arguments.splits,
        "thresholds": {
            "Caltech101, six classes": measure(Setting(caltech, 6, 0.5, 0.0), arguments.splits),
            "Caltech101, 40 classes": measure(Setting(caltech, 40, 0.5, 0.0), arguments.splits),
            "ImageNet, 100 classes, shrinkage 10": measure(
                Setting(imagenet, 100, 0.5, 10.0), arguments.splits
            ),
        },
        "contamination": contamination(caltech, imagenet, arguments.splits // 4),
    }
    write_result(arguments.out, result)


def measure(setting: Setting, splits: int) -> dict[str, Any]:
    """Observed rates of false alarms by rate and confidence."""
    entries = setting.data.entries[IMAGENET_ROWS]
    search = exact_search(entries, K, threads=1)
    observed: dict[str, list[float]] = {}
    exceeded: dict[str, list[float]] = {}
    skipped: dict[str, int] = {}
    sizes = []
    rng = np.random.default_rng(0)
    for number in range(splits):
        texts, images, labels, new = setting.split(number)
        sizes.append([labels.size, len(new)])
        normal = held_out_scores(
            images, labels, texts, entries, search, shrinkage=setting.shrinkage
        )
        calibration = calibrate([(images, labels)], texts, shrinkage=setting.shrinkage)
        scores = BlissScorer(search, entries, calibration).score(new).anomaly
        for rate in RATES:
            for sure in CONFIDENCES:
                name = f"{rate} {'on average' if sure is None else sure}"
                try:
                    threshold = threshold_at(normal, rate, confidence=sure)
                except InvalidInputError:
                    skipped[name] = skipped.get(name, 0) + 1
                    continue
                above = int((normal >= threshold.value).sum())
                drawn = rng.beta(above + 1, normal.size - above, 1000)
                chance = rng.binomial(len(new), drawn) > rate * len(new)
                observed.setdefault(name, []).append(float(threshold.flags(scores).mean()))
                exceeded.setdefault(name, []).append(float(chance.mean()))
    return {
        "calibration_images": float(np.mean(sizes, axis=0)[0]),
        "new_images": float(np.mean(sizes, axis=0)[1]),
        "rates": {
            name: {
                "mean": round(float(np.mean(values)), 5),
                "std": round(float(np.std(values)), 5),
                "largest": round(float(np.max(values)), 5),
                "exceeded": round(float(np.mean(np.array(values) > float(name.split()[0]))), 4),
                "exceeded_expected": round(float(np.mean(exceeded[name])), 4),
                "splits_with_too_few_images": skipped.get(name, 0),
            }
            for name, values in observed.items()
        },
    }


def contamination(caltech: RealData, imagenet: RealData, splits: int) -> dict[str, Any]:
    """Share of new normal images that predict() flags, contamination 0.05, six normal classes."""
    result = {}
    cases = [("Caltech101", caltech, n) for n in (5, 10, 20)] + [("ImageNet", imagenet, 3)]
    for title, data, count in cases:
        for shrinkage in (0.0, 10.0):
            entries = data.entries[IMAGENET_ROWS]
            flagged, known = [], []
            for number in range(splits):
                rng = np.random.default_rng(number)
                enough = np.flatnonzero(np.bincount(data.normal_labels) >= count)
                run = np.sort(rng.choice(enough, 6, replace=False))
                rows = np.concatenate(
                    [rng.permutation(np.flatnonzero(data.normal_labels == c))[:count] for c in run]
                )
                images, labels = data.normal[rows], np.searchsorted(run, data.normal_labels[rows])
                new = data.test[np.isin(data.test_labels, run)]
                detector = BlissDetector(
                    entries, data.texts[run], k=K, shrinkage=shrinkage, threads=1
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", CalibrationWarning)
                    detector.fit(images, labels)
                scores = detector.anomaly_score(new)
                own = np.quantile(detector.anomaly_score(images), 1 - detector.contamination)
                flagged.append(float((scores > detector.threshold_).mean()))
                known.append(float((scores > own).mean()))
            result[f"{title}, {count} images a class, shrinkage {shrinkage:g}"] = {
                "held_out": round(float(np.mean(flagged)), 4),
                "held_out_std": round(float(np.std(flagged)), 4),
                "own_scores": round(float(np.mean(known)), 4),
            }
    return result


if __name__ == "__main__":
    main()
