"""What the choice of k, lambda, vocabulary and calibration images does, on real embeddings.

    BLISS_INDEX_REALDATA=FOLDER python benchmarks/study_sensitivity.py \
        --out benchmarks/results/sensitivity_caltech101.json

``plot_sensitivity.py`` draws the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from realdata import IMAGENET_ROWS, RealData, evaluate_all, protocols

from bliss_index.calibration.unlabelled import assign_labels, trim_mask
from bliss_index.evaluation.bliss import Bliss
from bliss_index.evaluation.detector import Reference
from bliss_index.evaluation.metrics import auroc
from bliss_index.evaluation.registry import make_detectors
from bliss_index.scoring.thresholds import held_out_scores, threshold_at
from bliss_index.search import exact_search

DETECTORS = "bliss,label,raw,mcm,mcm:temperature=0.01,neglabel,knn,knn:neighbours=1"
KS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100)
LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0, 1.25, 1.5, 2.0)
SIZES = (100, 200, 500, 1000, 2000, 3000, 4148)
LISTS = {
    "ImageNet": slice(0, 1000), "LVIS": slice(2000, 3203), "OpenImages": slice(3203, 3703),
    "Objects365": slice(3703, 4068), "COCO": slice(4068, 4148), "all": slice(0, 4148),
}  # fmt: skip
COUNTS = (2, 3, 4, 5, 7, 10, 15, 20, 40)
STRANGERS = (0.0, 0.05, 0.1, 0.2)
TRIMS = (0.0, 0.05, 0.1, 0.2)
RATES = (0.01, 0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10, help="random draws per point")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    data = RealData.caltech101()
    parts: dict[str, Callable[[RealData, int], Any]] = {
        "detectors": compare_detectors, "k": vary_k, "lambda": vary_lambda,
        "vocabulary_size": vary_size, "vocabulary_list": vary_list,
        "calibration_images": vary_images, "without_labels": without_labels,
        "strangers": with_strangers, "false_alarms": false_alarms,
    }  # fmt: skip
    result: dict[str, Any] = {
        "benchmark": "evaluation_caltech101",
        "machine": describe_machine(1),
        "data": {
            "classes": len(data.names),
            "calibration_images": len(data.normal),
            "calibration_images_per_class": quartiles(np.bincount(data.normal_labels)),
            "test_images": len(data.test),
            "vocabulary": "ImageNet's 1000 class names where nothing else is said",
        },
        "draws": arguments.draws,
    }
    for name, measure in parts.items():
        result[name] = measure(data, arguments.draws)
        print(f"{name} done", flush=True)
    write_result(arguments.out, result)


def quartiles(values: np.ndarray) -> list[float]:
    """Smallest, lower quartile, median, upper quartile, largest."""
    return np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist()


def summary(values: list[float]) -> dict[str, float]:
    """Mean and population deviation."""
    return {"mean": round(float(np.mean(values)), 5), "std": round(float(np.std(values)), 5)}


def mean_aurocs(data: RealData, reference: Reference, detectors: list[Any]) -> dict[str, Any]:
    """By detector and protocol: mean AUROC over the runs."""
    found = evaluate_all(data, reference, detectors)
    return {
        one.name: {p: float(np.mean(found[p][one.name]["auroc"])) for p in found}
        for one in detectors
    }


def compare_detectors(data: RealData, draws: int) -> Any:
    """Every metric of every detector."""
    reference = data.reference(data.entries[IMAGENET_ROWS], 10)
    found = evaluate_all(data, reference, make_detectors(DETECTORS))
    return {
        protocol: {
            name: {metric: summary(values) for metric, values in metrics.items()}
            for name, metrics in detectors.items()
        }
        for protocol, detectors in found.items()
    }


def vary_k(data: RealData, draws: int) -> Any:
    """AUROC by k, at lambda 0.5."""
    reference = data.reference(data.entries[IMAGENET_ROWS], max(KS))
    found = mean_aurocs(data, reference, [Bliss(k=k, name=str(k)) for k in KS])
    return by_protocol(KS, [[found[str(k)]] for k in KS])


def vary_lambda(data: RealData, draws: int) -> Any:
    """AUROC by lambda, at k 10."""
    reference = data.reference(data.entries[IMAGENET_ROWS], 10)
    found = mean_aurocs(data, reference, [Bliss(lam=lam, name=str(lam)) for lam in LAMBDAS])
    return by_protocol(LAMBDAS, [[found[str(lam)]] for lam in LAMBDAS])


def vary_size(data: RealData, draws: int) -> Any:
    """AUROC by the number of entries, drawn at random out of all."""
    points = []
    for size in SIZES:
        rng = np.random.default_rng(size)
        repeats = draws if size < len(data.entries) else 1
        chosen = [rng.choice(len(data.entries), size, replace=False) for _ in range(repeats)]
        points.append([bliss(data, data.reference(data.entries[rows], 10)) for rows in chosen])
    return by_protocol(SIZES, points)


def vary_list(data: RealData, draws: int) -> Any:
    """AUROC by the list that the entries come from."""
    points = [[bliss(data, data.reference(data.entries[rows], 10))] for rows in LISTS.values()]
    entries = [rows.stop - rows.start for rows in LISTS.values()]
    return {"entries": entries, **by_protocol(tuple(LISTS), points)}


def vary_images(data: RealData, draws: int) -> Any:
    """AUROC by the number of calibration images per class; BLISS, its label term, and kNN."""
    result: dict[str, Any] = {}
    detectors = make_detectors("bliss,label,knn:neighbours=1")
    points: dict[str, list[list[dict[str, float]]]] = {one.name: [] for one in detectors}
    counts = np.bincount(data.normal_labels)
    for count in (*COUNTS, int(counts.max())):
        rng = np.random.default_rng(count)
        found = []
        for _ in range(draws if count < counts.max() else 1):
            order = rng.permutation(len(data.normal_labels))
            kept = np.zeros(order.size, dtype=bool)
            for c in range(counts.size):
                kept[order[data.normal_labels[order] == c][:count]] = True
            reference = data.reference(data.entries[IMAGENET_ROWS], 10, kept)
            found.append(mean_aurocs(data, reference, detectors))
        for one in detectors:
            points[one.name].append([f[one.name] for f in found])
    for name, listed in points.items():
        result[name] = by_protocol((*COUNTS, int(counts.max())), listed)
    result["classes_with_as_many"] = [int((counts >= n).sum()) for n in (*COUNTS, counts.max())]
    return result


def without_labels(data: RealData, draws: int) -> Any:
    """Given classes against the nearest of the run's labels, per run."""
    result = {}
    entries = data.entries[IMAGENET_ROWS]
    search = exact_search(entries, 10, threads=1)
    for protocol in protocols(len(data.names))[1:]:
        labelled, assigned, right, dropped = [], [], [], 0
        for run in protocol.runs:
            own = np.isin(data.normal_labels, run)
            given = np.searchsorted(run, data.normal_labels[own])
            nearest = assign_labels(data.normal[own], data.texts[list(run)])
            right.append(float((given == nearest).mean()))
            usable = np.flatnonzero(np.bincount(nearest, minlength=len(run)) >= 2)
            dropped += len(run) - usable.size
            for labels, classes, values in (
                (given, range(len(run)), labelled), (nearest, usable.tolist(), assigned),
            ):  # fmt: skip
                reference = Reference(
                    data.texts[list(run)], data.normal[own], labels, entries, search
                ).restricted_to(classes)
                values.append(auroc_of_run(data, reference, run))
        result[protocol.name] = {
            "labelled": summary(labelled),
            "assigned": summary(assigned),
            "assigned_right": summary(right),
            "classes_dropped_per_run": dropped / len(protocol.runs),
        }
    return result


def with_strangers(data: RealData, draws: int) -> Any:
    """Strangers among the calibration images, given the nearest of the run's labels; trimmed."""
    result: dict[str, Any] = {"trims": list(TRIMS)}
    entries = data.entries[IMAGENET_ROWS]
    search = exact_search(entries, 10, threads=1)
    for protocol in protocols(len(data.names))[:2]:
        table = {}
        for share in STRANGERS:
            rng = np.random.default_rng(0)
            values: dict[float, list[float]] = {trim: [] for trim in TRIMS}
            for run in protocol.runs:
                texts = data.texts[list(run)]
                own = np.flatnonzero(np.isin(data.normal_labels, run))
                others = np.setdiff1d(np.arange(len(data.normal)), own)
                strangers = rng.choice(others, round(share / (1 - share) * own.size), replace=False)
                images = data.normal[np.concatenate([own, strangers])]
                labels = np.concatenate(
                    [
                        np.searchsorted(np.sort(run), data.normal_labels[own]),
                        assign_labels(data.normal[strangers], texts),
                    ]
                )
                for trim in TRIMS:
                    kept = np.where(trim_mask(images, labels, trim), labels, -1)
                    reference = Reference(texts, images, kept, entries, search)
                    values[trim].append(auroc_of_run(data, reference, run))
            table[str(share)] = [summary(values[trim]) for trim in TRIMS]
        result[protocol.name] = table
    return result


def false_alarms(data: RealData, draws: int) -> Any:
    """Share of normal test images flagged, where it should be the rate; six normal classes."""
    entries = data.entries[IMAGENET_ROWS]
    search = exact_search(entries, 10, threads=1)
    protocol = random_classes_with(data, 6)
    shares: dict[str, list[float]] = {
        f"{way} {r}": [] for way in ("held out", "own") for r in RATES
    }
    found: dict[str, list[float]] = {name: [] for name in shares}
    skipped = dict.fromkeys(shares, 0)
    for run in protocol:
        own = np.isin(data.normal_labels, run)
        labels = np.searchsorted(run, data.normal_labels[own])
        texts, images = data.texts[list(run)], data.normal[own]
        fitted = Bliss().fit(Reference(texts, images, labels, entries, search))
        test = fitted.score(data.test)
        anomaly = ~np.isin(data.test_labels, run)
        ways = {
            "held out": held_out_scores(images, labels, texts, entries, search),
            "own": fitted.score(images),
        }
        for way, normal in ways.items():
            for rate in RATES:
                if normal.size < 1 / rate - 1:
                    skipped[f"{way} {rate}"] += 1
                    continue
                flags = threshold_at(normal, rate).flags(test)
                shares[f"{way} {rate}"].append(float(flags[~anomaly].mean()))
                found[f"{way} {rate}"].append(float(flags[anomaly].mean()))
    return {
        name: {
            "normal_flagged": summary(shares[name]),
            "anomalies_flagged": summary(found[name]),
            "runs_with_too_few_images": skipped[name],
        }
        for name in shares
    }


def random_classes_with(data: RealData, normal: int) -> tuple[tuple[int, ...], ...]:
    """The runs of the protocol with this many normal classes."""
    return next(p.runs for p in protocols(len(data.names)) if p.name == f"{normal} normal")


def bliss(data: RealData, reference: Reference) -> dict[str, float]:
    """Mean AUROC of BLISS by protocol."""
    return mean_aurocs(data, reference, [Bliss()])["bliss"]


def auroc_of_run(data: RealData, reference: Reference, run: tuple[int, ...]) -> float:
    """AUROC of BLISS with all classes of the reference normal."""
    scores = Bliss().fit(reference).score(data.test)
    return auroc(scores, ~np.isin(data.test_labels, run))


def by_protocol(values: tuple[Any, ...], points: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Mean AUROC over runs and draws, and its deviation over the draws, value by value."""
    return {
        "values": list(values),
        "auroc": {p: [summary([d[p] for d in drawn]) for drawn in points] for p in points[0][0]},
    }


if __name__ == "__main__":
    main()
