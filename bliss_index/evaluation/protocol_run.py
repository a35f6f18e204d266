"""All runs of a protocol from one pass over the images and one set of class statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.bliss import Bliss, LabelTerm
from bliss_index.evaluation.detector import Detector, Reference, blocks
from bliss_index.evaluation.detectors import (
    MaximumConceptMatching,
    NearestImages,
    NegLabel,
    RawSimilarity,
)
from bliss_index.evaluation.metrics import METRICS, evaluate_scores
from bliss_index.evaluation.protocols import EvaluationProtocol

DETECTORS: dict[str, Callable[[], Detector]] = {
    "bliss": Bliss,
    "label": LabelTerm,
    "raw": RawSimilarity,
    "mcm": MaximumConceptMatching,
    "neglabel": NegLabel,
    "knn": NearestImages,
}
"""Detectors by their name on the command line, with their default settings."""


@dataclass(frozen=True)
class Summary:
    """Mean and population standard deviation of a metric over the runs."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class ProtocolReport:
    """What a protocol came to.

    Attributes
    ----------
    protocol
        Its name.
    runs, images
        Runs, and test images scored in each.
    detectors
        By detector and metric: the summary over the runs.
    per_run
        By detector: AUROC of every run.
    seconds
        Time of everything.
    """

    protocol: str
    runs: int
    images: int
    detectors: dict[str, dict[str, Summary]]
    per_run: dict[str, list[float]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return a table as the paper prints it: percent, mean and deviation."""
        lines = [
            f"| {self.protocol}, {self.runs} runs | AUROC | AUPR anomaly | AUPR normal | FPR95 |",
            "| --- | --- | --- | --- | --- |",
        ]
        shown = ("auroc", "aupr_anomaly", "aupr_normal", "fpr95_normal")
        for name, metrics in self.detectors.items():
            cells = [
                f"{100 * metrics[m].mean:.2f} ± {100 * metrics[m].deviation:.2f}" for m in shown
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def make_detectors(names: str | Sequence[str]) -> list[Detector]:
    """Make detectors by name, such as "bliss,mcm"; InvalidInputError lists all for others."""
    listed = names.split(",") if isinstance(names, str) else list(names)
    unknown = [name for name in listed if name not in DETECTORS]
    if unknown or not listed:
        raise InvalidInputError(
            f"unknown detector {', '.join(map(repr, unknown)) or 'list'}; known are "
            f"{', '.join(DETECTORS)}"
        )
    return [DETECTORS[name]() for name in dict.fromkeys(listed)]


def evaluate_protocol(
    reference: Reference,
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    protocol: EvaluationProtocol,
    detectors: Sequence[Detector],
    progress: Callable[[int], None] | None = None,
) -> ProtocolReport:
    """Score the test images once, and judge every run of the protocol.

    Parameters
    ----------
    reference
        Classes, their calibration images, vocabulary and search.
    images, labels
        (n, d) test images and their (n,) classes, as numbers; -1 for a class outside of all.
    protocol
        Which classes are normal in each run.
    detectors
        What to compare.
    progress
        Called with the number of images just scored.

    Raises
    ------
    InvalidInputError
        The protocol is for another number of classes, or labels do not fit.
    """
    began = time.perf_counter()
    if protocol.classes != reference.classes:
        raise InvalidInputError(
            f"protocol {protocol.name!r} is for {protocol.classes} classes, there are "
            f"{reference.classes}"
        )
    if labels.shape != (images.shape[0],):
        raise InvalidInputError(f"{labels.size} labels for {images.shape[0]} test images")
    fitted = [detector.fit(reference) for detector in detectors]
    scores = {one.name: np.empty((len(protocol.runs), images.shape[0])) for one in fitted}
    for part, block in blocks(images, reference):
        for one in fitted:
            scores[one.name][:, part] = one.score_runs(block, protocol.runs)
        if progress is not None:
            progress(block.rows)
    summaries: dict[str, dict[str, Summary]] = {}
    per_run: dict[str, list[float]] = {}
    for name, table in scores.items():
        found = [
            evaluate_scores(table[number], ~np.isin(labels, list(run)))
            for number, run in enumerate(protocol.runs)
        ]
        per_run[name] = [metrics.auroc for metrics in found]
        summaries[name] = {
            metric: _summary([getattr(metrics, metric) for metrics in found]) for metric in METRICS
        }
    return ProtocolReport(
        protocol.name,
        len(protocol.runs),
        int(images.shape[0]),
        summaries,
        per_run,
        round(time.perf_counter() - began, 2),
    )


def _summary(values: Sequence[float]) -> Summary:
    return Summary(float(np.mean(values)), float(np.std(values)))
