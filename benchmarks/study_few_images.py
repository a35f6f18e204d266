"""AUROC by shrinkage and by calibration images a class, on two sets of real embeddings.

    BLISS_INDEX_REALDATA=FOLDER python benchmarks/study_few_images.py \
        --out benchmarks/results/few_images.json

Intervals are of the mean over the runs (choices of normal classes), by a bootstrap of the runs,
each averaged over the draws of calibration images first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from realdata import IMAGENET_ROWS, RealData, mean_interval, run_aurocs

from bliss_index.evaluation.bliss import Bliss
from bliss_index.scoring.scorer import BlissScorer

SHRINKAGES = (0.0, 2.0, 5.0, 10.0, 20.0, 50.0)
COUNTS = (1, 2, 3, 5, 10, 20, 160)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=4, help="random draws of the images")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "few_images",
        "machine": describe_machine(1),
        "vocabulary": "ImageNet's 1000 class names",
        "draws": arguments.draws,
        "shrinkages": list(SHRINKAGES),
        "sets": {},
    }
    for title, counts in (("Caltech101", COUNTS), ("ImageNet", (1, 2, 3))):
        result["sets"][title] = {
            str(count): measure(title, count, arguments.draws, count < max(COUNTS))
            for count in counts
        }
    write_result(arguments.out, result)


def measure(title: str, count: int, draws: int, drawn: bool) -> dict[str, Any]:
    """AUROC with intervals, by protocol and shrinkage, and gains over shrinkage 0."""
    shrinkages = SHRINKAGES[count < 2 :]
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    nearest: dict[str, list[float]] = {}
    for draw in range(draws if drawn else 1):
        if title == "ImageNet":
            data, kept = RealData.imagenet(count, draw), None
        else:
            data = RealData.caltech101()
            kept = data.few(count, draw)
        reference = data.reference(data.entries[IMAGENET_ROWS], 10, kept)
        detectors = [Bliss(shrinkage=n, name=f"{n:g}") for n in shrinkages]
        for protocol, by_shrinkage in run_aurocs(data, reference, detectors).items():
            for name, values in by_shrinkage.items():
                found.setdefault(protocol, {}).setdefault(name, []).append(values)
        for n in shrinkages:
            right = right_classes(data, reference.scorer_with(n))
            nearest.setdefault(f"{n:g}", []).append(right)
        raw = (data.test @ data.texts.T).argmax(axis=1) == data.test_labels
        nearest.setdefault("zero-shot", []).append(float(raw.mean()))
    print(title, count, "done", flush=True)
    return {
        "auroc": {p: summaries(by_shrinkage) for p, by_shrinkage in found.items()},
        "nearest_class_right": {n: round(float(np.mean(v)), 4) for n, v in nearest.items()},
    }


def summaries(by_shrinkage: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Mean with interval by shrinkage, and of the gain over none, run by run."""
    runs = {n: np.mean(values, axis=0) for n, values in by_shrinkage.items()}
    return {
        n: {
            **mean_interval(values),
            **({"gain": mean_interval(values - runs["0"])} if "0" in runs and n != "0" else {}),
        }
        for n, values in runs.items()
    }


def right_classes(data: RealData, scorer: BlissScorer) -> float:
    """Share of the test images whose nearest class is theirs, all classes being normal."""
    return float((scorer.score(data.test).nearest_class == data.test_labels).mean())


if __name__ == "__main__":
    main()
