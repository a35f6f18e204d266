"""Real CLIP embeddings for benchmarks, from the folder BLISS_INDEX_REALDATA.

Caltech101: the classes whose text embedding is there; one split calibrates, the other is scored.
ImageNet: 1000 classes of four images; some of the four calibrate, the others are scored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bliss_index.evaluation.detector import Detector, Reference, blocks
from bliss_index.evaluation.paper.protocol_run import evaluate_protocol
from bliss_index.evaluation.paper.protocols import (
    EvaluationProtocol,
    all_but_one,
    one_class,
    random_classes,
)
from bliss_index.search import exact_search

IMAGENET_ROWS = slice(0, 1000)
_MOST_RUNS = 100
_SHOTS = 4


@dataclass(frozen=True)
class RealData:
    """Unit embeddings, float32, and class numbers."""

    title: str
    names: list[str]
    texts: np.ndarray
    entries: np.ndarray
    entry_names: list[str]
    normal: np.ndarray
    normal_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @classmethod
    def caltech101(cls) -> RealData:
        """Read Caltech101: 69 classes, 1,294 images that calibrate and 1,934 to score."""
        folder = Path(os.environ["BLISS_INDEX_REALDATA"])
        listed = json.loads((folder / "caltech101_classes.json").read_text())
        stored = np.load(folder / "text_vitb32.npz")
        entries = unit(stored["embeddings"])
        entry_names = stored["names"].tolist()
        names = [name for name in listed["classes"] if name in listed["text_row"]]
        number = {listed["classes"].index(name): c for c, name in enumerate(names)}
        images: list[np.ndarray] = []
        for split in ("val", "test"):
            data = np.load(folder / f"img_caltech101_{split}.npz")
            kept = np.isin(data["labels"], list(number))
            images.append(unit(data["embeddings"][kept]))
            images.append(np.array([number[label] for label in data["labels"][kept].tolist()]))
        texts = entries[[listed["text_row"][name] for name in names]]
        return cls("Caltech101", names, texts, entries, entry_names, *images)

    @classmethod
    def imagenet(cls, shots: int = 3, draw: int = 0) -> RealData:
        """Read ImageNet: of every class `shots` of its four images calibrate, the rest are scored.

        Draws 0 to 3 use one order of a class's images, turned by one each, so that with three
        shots every image is scored in one of them; draws 4 to 7 use another order, and so on.
        """
        folder = Path(os.environ["BLISS_INDEX_REALDATA"])
        texts = np.load(folder / "text_vitb32.npz")
        entries = unit(texts["embeddings"])
        data = np.load(folder / "img_imagenet_fewshot4.npz")
        images, labels = unit(data["embeddings"]), data["labels"].astype(np.int64)
        rng = np.random.default_rng(draw // _SHOTS)
        classes = int(labels.max()) + 1
        order = np.argsort(labels, kind="stable").reshape(classes, _SHOTS)
        order = np.roll(rng.permuted(order, axis=1), draw % _SHOTS, axis=1)
        normal, test = order[:, :shots].ravel(), order[:, shots:].ravel()
        return cls(
            "ImageNet", texts["names"][:classes].tolist(), entries[:classes],
            entries, texts["names"].tolist(), images[normal], labels[normal], images[test],
            labels[test],
        )  # fmt: skip

    def few(self, count: int, draw: int = 0) -> np.ndarray:
        """Say which calibration images to keep for at most `count` a class, drawn at random."""
        order = np.random.default_rng([count, draw]).permutation(self.normal_labels.size)
        kept = np.zeros(order.size, dtype=bool)
        for c in range(len(self.names)):
            kept[order[self.normal_labels[order] == c][:count]] = True
        return kept

    def reference(self, entries: np.ndarray, k: int, kept: np.ndarray | None = None) -> Reference:
        """Calibrate with all images, or with those kept, and search these entries."""
        labels = self.normal_labels if kept is None else np.where(kept, self.normal_labels, -1)
        search = exact_search(entries, k, threads=1)
        return Reference(self.texts, self.normal, labels, entries, search)


def near_texts(count: int, seed: int) -> np.ndarray:
    """Draw a vocabulary as long lists are: real texts, and behind them texts near them, float16.

    A text near another lies up to 0.3 of the way to a third one, with a little noise: 0.04 to 0.3
    from it, mostly.
    """
    stored = np.load(Path(os.environ["BLISS_INDEX_REALDATA"]) / "text_vitb32.npz")
    texts = unit(stored["embeddings"])
    rows = np.empty((count, texts.shape[1]), dtype=np.float16)
    known = min(count, len(texts))
    rows[:known] = texts[:known]
    rng = np.random.default_rng(seed)
    for start in range(known, count, 65_536):
        stop = min(count, start + 65_536)
        first, second = rng.integers(0, len(texts), (2, stop - start))
        share = rng.uniform(0, 0.3, (stop - start, 1)).astype(np.float32)
        part = (1 - share) * texts[first] + share * texts[second]
        part += rng.standard_normal(part.shape, dtype=np.float32) * (0.04 / part.shape[1] ** 0.5)
        rows[start:stop] = unit(part)
    return rows


def real_images() -> np.ndarray:
    """Unit embeddings of Caltech101 and ImageNet."""
    folder = Path(os.environ["BLISS_INDEX_REALDATA"])
    files = sorted(folder.glob("img_*.npz"))
    return np.concatenate([unit(np.load(file)["embeddings"]) for file in files])


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their norm, float32."""
    wide = rows.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)


def protocols(classes: int, *, half: bool = False) -> list[EvaluationProtocol]:
    """One class normal; six normal, 20 seeded draws; on request half of them; all but one normal.

    Of more than 100 classes 100 seeded ones are in turn the only normal or anomalous one.
    """
    listed = [
        one_class(classes),
        random_classes(classes, 6, 20, seed=0, name="6 normal"),
        *([random_classes(classes, classes // 2, 20, seed=0, name="half")] if half else []),
        all_but_one(classes),
    ]
    chosen = np.sort(np.random.default_rng(0).permutation(classes)[:_MOST_RUNS])
    return [
        EvaluationProtocol(p.name, classes, tuple(p.runs[c] for c in chosen))
        if len(p.runs) == classes
        else p
        for p in listed
    ]


def evaluate_all(
    data: RealData,
    reference: Reference,
    detectors: list[Detector],
    listed: Sequence[EvaluationProtocol] | None = None,
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Metric values of every run, by protocol, detector and metric, from one pass."""
    listed = protocols(len(data.names)) if listed is None else listed
    runs = tuple(run for protocol in listed for run in protocol.runs)
    together = EvaluationProtocol("all", len(data.names), runs)
    report = evaluate_protocol(reference, data.test, data.test_labels, together, detectors)
    result: dict[str, Any] = {}
    first = 0
    for protocol in listed:
        part = slice(first, first + len(protocol.runs))
        first += len(protocol.runs)
        result[protocol.name] = {
            name: {metric: values[part] for metric, values in metrics.items()}
            for name, metrics in report.per_run.items()
        }
    return result


def mean_interval(values: Sequence[float] | np.ndarray, resamples: int = 2000) -> dict[str, float]:
    """Mean, and its 95 % percentile interval from bootstrap resamples of the values."""
    found = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = found[rng.integers(0, found.size, (resamples, found.size))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": round(float(found.mean()), 5), "low": round(float(low), 5),
        "high": round(float(high), 5),
    }  # fmt: skip


def run_aurocs(
    data: RealData,
    reference: Reference,
    detectors: Sequence[Detector],
    listed: Sequence[EvaluationProtocol] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """AUROC of every run, by protocol and detector: as evaluate_all, without the other metrics."""
    listed = protocols(len(data.names), half=True) if listed is None else listed
    runs = [run for protocol in listed for run in protocol.runs]
    fitted = [detector.fit(reference) for detector in detectors]
    scores = {one.name: np.empty((len(runs), len(data.test))) for one in fitted}
    for part, block in blocks(data.test, reference):
        for one in fitted:
            scores[one.name][:, part] = one.score_runs(block, runs)
    anomalies = [~np.isin(data.test_labels, run) for run in runs]
    ends = np.cumsum([len(protocol.runs) for protocol in listed])[:-1]
    result: dict[str, dict[str, np.ndarray]] = {protocol.name: {} for protocol in listed}
    for name, table in scores.items():
        found = np.array([area(s[a], s[~a]) for s, a in zip(table, anomalies, strict=True)])
        for protocol, values in zip(listed, np.split(found, ends), strict=True):
            result[protocol.name][name] = values
    return result


def area(anomalies: np.ndarray, normal: np.ndarray) -> float:
    """AUROC: share of pairs in which the anomaly scores higher, ties counted half."""
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, anomalies, "left") + np.searchsorted(
        ordered, anomalies, "right"
    )
    return float(below.mean() / (2 * normal.size))
