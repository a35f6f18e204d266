"""AUROC by weight of the image term, fixed and chosen, on two sets of real embeddings.

    BLISS_INDEX_REALDATA=FOLDER python benchmarks/study_image_term.py \
        --out benchmarks/results/image_term.json

"auto" chooses lambda and the weight for every run anew, from the calibration images of the classes
that are normal in it. Gains are over lambda 0.5 without an image term, run by run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from realdata import IMAGENET_ROWS, RealData, area, mean_interval, protocols

from bliss_index.calibration import calibrate
from bliss_index.evaluation.weights import choose_weights
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search import exact_search

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0)
SETTINGS = (
    ("Caltech101", 160, 0.0), ("Caltech101", 160, 10.0), ("Caltech101", 8, 0.0),
    ("Caltech101", 8, 10.0), ("Caltech101", 3, 10.0), ("ImageNet", 3, 10.0),
)  # fmt: skip
SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)
_RUNS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "image_term",
        "machine": describe_machine(1),
        "vocabulary": "ImageNet's 1000 class names",
        "weights": [],
        "names": [],
    }
    for title, count, shrinkage in SETTINGS:
        data = read(title, count)
        for name in ("6 normal", "half", "all-but-one"):
            row = measure(data, shrinkage, name)
            found = {"data": title, "images": count, "shrinkage": shrinkage, "normal": name, **row}
            result["weights"].append(found)
            print(found, flush=True)
    for title, count, shrinkage in (("Caltech101", 160, 0.0), ("ImageNet", 3, 10.0)):
        data = read(title, count)
        for share in SHARES:
            classes = len(data.names)
            chosen = np.random.default_rng(0).permutation(classes)[: round(share * classes)]
            texts = data.texts.copy()
            texts[chosen] = data.texts[np.roll(chosen, 1)]
            row = measure(replace(data, texts=texts), shrinkage, "half", weights=(0.0,))
            found = {"data": title, "exchanged": len(chosen), "classes": classes, **row}
            result["names"].append(found)
            print(found, flush=True)
    write_result(arguments.out, result)


def read(title: str, count: int) -> RealData:
    """Read a set with at most so many calibration images a class."""
    if title == "ImageNet":
        return RealData.imagenet(count)
    data = RealData.caltech101()
    kept = data.few(count)
    return replace(data, normal=data.normal[kept], normal_labels=data.normal_labels[kept])


def measure(
    data: RealData, shrinkage: float, name: str, weights: tuple[float, ...] = WEIGHTS
) -> dict[str, Any]:
    """Measure the AUROC of the runs of a protocol: fixed weights, and those chosen by the rule."""
    (protocol,) = (p for p in protocols(len(data.names), half=True) if p.name == name)
    runs = np.asarray(protocol.runs[:_RUNS], dtype=object)
    entries = data.entries[IMAGENET_ROWS]
    search = exact_search(entries, 10)
    aurocs: dict[str, list[float]] = {}
    picked: list[tuple[float, float]] = []
    for run in map(list, runs):
        number = np.full(len(data.names), -1)
        number[run] = np.arange(len(run))
        labels = number[data.normal_labels]
        normal, labels = data.normal[labels >= 0], labels[labels >= 0]
        plain = calibrate([(normal, labels)], data.texts[run], shrinkage=shrinkage)
        auto = choose_weights(normal, labels, data.texts[run], entries, search, shrinkage=shrinkage)
        picked.append((auto.lam, auto.image_weight))
        anomaly = number[data.test_labels] < 0
        for title, lam, weight in (
            *((f"{weight:g}", 0.5, weight) for weight in weights),
            ("auto", auto.lam, auto.image_weight),
        ):
            scorer = BlissScorer(search, entries, replace(plain, image_weight=weight), lam=lam)
            scores = scorer.score(data.test).anomaly
            aurocs.setdefault(title, []).append(area(scores[anomaly], scores[~anomaly]))
    gain = np.array(aurocs["auto"]) - np.array(aurocs["0"])
    return {
        "auroc": {title: mean_interval(values) for title, values in aurocs.items()},
        "auto": {
            "gain": mean_interval(gain),
            "better": int((gain > 0).sum()), "worse": int((gain < 0).sum()),
            "worst": round(float(gain.min()), 5), "runs": len(gain),
            "kept": sum(pick == (0.5, 0.0) for pick in picked),
            "median_lam": float(np.median([lam for lam, _ in picked])),
            "median_weight": float(np.median([weight for _, weight in picked])),
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
