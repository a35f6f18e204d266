"""Real CLIP embeddings of Caltech101 for benchmarks, from the folder BLISS_INDEX_REALDATA.

Only the classes whose text embedding is there; one split calibrates, the other is scored.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bliss_index.evaluation.detector import Detector, Reference
from bliss_index.evaluation.protocol_run import evaluate_protocol
from bliss_index.evaluation.protocols import (
    EvaluationProtocol,
    all_but_one,
    one_class,
    random_classes,
)
from bliss_index.search import exact_search

IMAGENET_ROWS = slice(0, 1000)


@dataclass(frozen=True)
class Caltech:
    """Unit embeddings, float32, and class numbers."""

    names: list[str]
    texts: np.ndarray
    entries: np.ndarray
    normal: np.ndarray
    normal_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    @classmethod
    def load(cls) -> Caltech:
        """Read the files of the folder that BLISS_INDEX_REALDATA names."""
        folder = Path(os.environ["BLISS_INDEX_REALDATA"])
        listed = json.loads((folder / "caltech101_classes.json").read_text())
        entries = unit(np.load(folder / "text_vitb32.npz")["embeddings"])
        names = [name for name in listed["classes"] if name in listed["text_row"]]
        number = {listed["classes"].index(name): c for c, name in enumerate(names)}
        images: list[np.ndarray] = []
        for split in ("val", "test"):
            data = np.load(folder / f"img_caltech101_{split}.npz")
            kept = np.isin(data["labels"], list(number))
            images.append(unit(data["embeddings"][kept]))
            images.append(np.array([number[label] for label in data["labels"][kept].tolist()]))
        texts = entries[[listed["text_row"][name] for name in names]]
        return cls(names, texts, entries, *images)

    def reference(self, entries: np.ndarray, k: int, kept: np.ndarray | None = None) -> Reference:
        """Calibrate with all images, or with those kept, and search these entries."""
        labels = self.normal_labels if kept is None else np.where(kept, self.normal_labels, -1)
        search = exact_search(entries, k, threads=1)
        return Reference(self.texts, self.normal, labels, entries, search)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their norm, float32."""
    wide = rows.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)


def protocols(classes: int) -> list[EvaluationProtocol]:
    """One class normal; six normal, 20 seeded draws; all but one normal."""
    return [
        one_class(classes),
        random_classes(classes, 6, 20, seed=0, name="6 normal"),
        all_but_one(classes),
    ]


def evaluate_all(
    data: Caltech, reference: Reference, detectors: list[Detector]
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Metric values of every run, by protocol, detector and metric, from one pass."""
    listed = protocols(len(data.names))
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
