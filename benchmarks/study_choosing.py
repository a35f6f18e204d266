"""What the choice of k, lambda, vocabulary and detector does, on two sets of real embeddings.

    BLISS_INDEX_REALDATA=FOLDER python benchmarks/study_choosing.py \
        --out benchmarks/results/choosing.json

Caltech101 as in study_sensitivity.py; ImageNet with three of four images a class for calibration,
in four turns, so that every image is scored once. Every value is the mean AUROC over the runs of a
protocol, a run averaged over turns and draws first; intervals are 95 %, by a bootstrap of the runs:
they say what another choice of normal classes would change, not what other images would. "gain" is
the paired difference to the default.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from realdata import IMAGENET_ROWS, RealData, mean_interval, protocols, run_aurocs

from bliss_index.evaluation.bliss import Bliss
from bliss_index.evaluation.detector import Reference
from bliss_index.evaluation.registry import make_detectors
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search import exact_search

KS = (1, 3, 5, 10, 20, 50, 100)
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
DETECTORS = "bliss,bliss:shrinkage=10,label,raw,mcm,neglabel,neglabel:negatives=1,knn:neighbours=1"
LISTS = {
    "ImageNet": slice(0, 1000), "LVIS": slice(2000, 3203), "OpenImages": slice(3203, 3703),
    "Objects365": slice(3703, 4068), "COCO": slice(4068, 4148),
}  # fmt: skip
SIZES = (100, 300, 1000)

Aurocs = dict[str, dict[str, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=3, help="random draws of entries")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sets = {
        "Caltech101": [RealData.caltech101()],
        "ImageNet": [RealData.imagenet(3, turn) for turn in range(4)],
    }
    parts: dict[str, tuple[Callable[..., Aurocs], str]] = {
        "k": (by_k, "10"),
        "lambda": (by_lambda, "0.5"),
        "lambda, shrinkage 10": (by_lambda_shrunken, "0.5"),
        "vocabulary": (by_vocabulary, "ImageNet"),
        "detectors": (by_detector, "bliss"),
    }
    result: dict[str, Any] = {
        "benchmark": "choosing",
        "machine": describe_machine(1),
        "draws": arguments.draws,
        "sets": {title: describe(turns) for title, turns in sets.items()},
    }
    for name, (measure, default) in parts.items():
        result[name] = {}
        for title, turns in sets.items():
            found = [measure(data, arguments.draws) for data in turns]
            result[name][title] = summaries(averaged(found), default)
            print(name, title, "done", flush=True)
    result["float16"] = {title: float16(turns[0]) for title, turns in sets.items()}
    write_result(arguments.out, result)


def describe(turns: list[RealData]) -> dict[str, Any]:
    """Sizes, and how many distinct names each list of entries adds."""
    data = turns[0]
    counts = np.bincount(data.normal_labels)
    return {
        "classes": len(data.names),
        "calibration_images": int(data.normal_labels.size),
        "calibration_images_a_class": [int(counts.min()), int(np.median(counts)),
                                       int(counts.max())],
        "test_images": int(data.test_labels.size),
        "turns": len(turns),
        "runs": {p.name: len(p.runs) for p in protocols(len(data.names), half=True)},
        "zero_shot": round(
            float((data.test @ data.texts.T).argmax(1).__eq__(data.test_labels).mean()), 4
        ),
    }  # fmt: skip


def averaged(found: list[Aurocs]) -> Aurocs:
    """Every run's AUROC, averaged over turns or draws."""
    return {
        protocol: {name: np.mean([one[protocol][name] for one in found], axis=0) for name in names}
        for protocol, names in found[0].items()
    }


def summaries(found: Aurocs, default: str) -> dict[str, Any]:
    """Means with intervals, and gains over the default, run by run."""
    return {
        protocol: {
            name: {**mean_interval(values), "gain": mean_interval(values - names[default])}
            for name, values in names.items()
        }
        for protocol, names in found.items()
    }


def by_k(data: RealData, draws: int) -> Aurocs:
    """AUROC by k, at lambda 0.5."""
    reference = data.reference(data.entries[IMAGENET_ROWS], max(KS))
    return run_aurocs(data, reference, [Bliss(k=k, name=str(k)) for k in KS])


def by_lambda(data: RealData, draws: int, shrinkage: float = 0.0) -> Aurocs:
    """AUROC by lambda, at k 10."""
    reference = data.reference(data.entries[IMAGENET_ROWS], 10)
    detectors = [Bliss(lam=lam, shrinkage=shrinkage, name=f"{lam:g}") for lam in LAMBDAS]
    return run_aurocs(data, reference, detectors)


def by_lambda_shrunken(data: RealData, draws: int) -> Aurocs:
    """The same with steadier deviations."""
    return by_lambda(data, draws, 10.0)


def by_vocabulary(data: RealData, draws: int) -> Aurocs:
    """AUROC by the list that the entries come from, and by how many of all distinct ones."""
    distinct = data.entries[distinct_rows(data)]
    result = {}
    for title, rows in LISTS.items():
        result[title] = of_entries(data, data.entries[rows])
    result["all distinct names"] = of_entries(data, distinct)
    for size in SIZES:
        drawn = []
        for draw in range(draws):
            rng = np.random.default_rng([size, draw])
            drawn.append(of_entries(data, distinct[rng.permutation(len(distinct))[:size]]))
        result[f"{size} of them at random"] = {
            protocol: np.mean([one[protocol] for one in drawn], axis=0) for protocol in drawn[0]
        }
    return {
        protocol: {title: by_protocol[protocol] for title, by_protocol in result.items()}
        for protocol in result["ImageNet"]
    }


def distinct_rows(data: RealData) -> np.ndarray:
    """The first row of every name, without regard to case, of all lists but the second prompt."""
    seen: dict[str, int] = {}
    for rows in LISTS.values():
        for row in range(rows.start, rows.stop):
            seen.setdefault(data.entry_names[row].casefold(), row)
    return np.array(sorted(seen.values()))


def of_entries(data: RealData, entries: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC of BLISS's runs with these entries."""
    found = run_aurocs(data, data.reference(entries, 10), [Bliss()])
    return {protocol: values["bliss"] for protocol, values in found.items()}


def by_detector(data: RealData, draws: int) -> Aurocs:
    """AUROC of every detector."""
    reference = data.reference(data.entries[IMAGENET_ROWS], 10)
    return run_aurocs(data, reference, make_detectors(DETECTORS))


def float16(data: RealData) -> dict[str, Any]:
    """What keeping unit rows as float16 changes, against float32; all classes normal."""
    entries = data.entries[IMAGENET_ROWS]
    found = {}
    for dtype in (np.float32, np.float16):
        texts, words, normal, test = (
            a.astype(dtype) for a in (data.texts, entries, data.normal, data.test)
        )
        reference = Reference(
            texts, normal, data.normal_labels, words, exact_search(words, 10, threads=1)
        )
        scorer: BlissScorer = reference.scorer_with()
        turned = RealData(
            data.title, data.names, texts, words, data.entry_names, normal, data.normal_labels,
            test, data.test_labels,
        )  # fmt: skip
        aurocs = run_aurocs(turned, reference, [Bliss()])
        found[dtype] = scorer.score(test).anomaly, aurocs
    (one, one_aurocs), (other, other_aurocs) = found.values()
    moved = np.abs(one - other)
    return {
        "mean_change_of_a_score": round(float(moved.mean()), 5),
        "largest_change_of_a_score": round(float(moved.max()), 4),
        "std_of_scores": round(float(one.std()), 4),
        "largest_change_of_a_runs_auroc": {
            p: round(float(np.abs(one_aurocs[p]["bliss"] - other_aurocs[p]["bliss"]).max()), 6)
            for p in one_aurocs
        },
        "change_of_mean_auroc": {
            p: round(float((other_aurocs[p]["bliss"] - one_aurocs[p]["bliss"]).mean()), 7)
            for p in one_aurocs
        },
    }


if __name__ == "__main__":
    main()
