"""What happens when names stand for the wrong classes, on two sets of real embeddings.

    BLISS_INDEX_REALDATA=FOLDER python benchmarks/study_names.py --out benchmarks/results/names.json

A share of the classes exchange their text embeddings, in a ring. AUROC is that of half of the
classes normal, mean over 20 choices; "warned" counts classes of whose calibration images fewer than
half are nearest to the text, as `calibrate` reports them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from realdata import IMAGENET_ROWS, RealData, mean_interval, protocols, run_aurocs

from bliss_index.calibration.names import NamesCheck
from bliss_index.evaluation.registry import make_detectors

SHARES = (0.0, 0.1, 0.25, 0.5, 1.0)
DETECTORS = "bliss,bliss:shrinkage=10,raw,neglabel:negatives=1,knn:neighbours=1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "names",
        "machine": describe_machine(1),
        "vocabulary": "ImageNet's 1000 class names",
        "sets": {},
    }
    for data in (RealData.caltech101(), RealData.imagenet()):
        result["sets"][data.title] = {str(share): measure(data, share) for share in SHARES}
        print(data.title, "done", flush=True)
    write_result(arguments.out, result)


def measure(data: RealData, share: float) -> dict[str, Any]:
    """Exchange the names of a share of the classes."""
    classes = len(data.names)
    chosen = np.random.default_rng(0).permutation(classes)[: round(share * classes)]
    texts = data.texts.copy()
    texts[chosen] = data.texts[np.roll(chosen, 1)]
    shuffled = replace(data, texts=texts)
    check = NamesCheck(data.names, texts)
    check.add(data.normal, data.normal_labels)
    report = check.report()
    reference = shuffled.reference(data.entries[IMAGENET_ROWS], 10)
    half = [p for p in protocols(classes, half=True) if p.name == "half"]
    found = run_aurocs(shuffled, reference, make_detectors(DETECTORS), half)["half"]
    failing = set(report.failing)
    return {
        "zero_shot": round(report.overall, 4),
        "classes": classes,
        "exchanged": len(chosen),
        "exchanged_and_warned": len(failing & set(chosen.tolist())),
        "others_warned": len(failing - set(chosen.tolist())),
        "auroc": {name: mean_interval(values) for name, values in found.items()},
    }


if __name__ == "__main__":
    main()
