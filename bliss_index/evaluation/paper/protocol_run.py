"""All runs of a protocol from one pass over the images and one set of class statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.comparison import Comparison, compare_detectors
from bliss_index.evaluation.detector import Detector, Reference, blocks
from bliss_index.evaluation.metrics import METRICS, evaluate_scores
from bliss_index.evaluation.paper.protocols import EvaluationProtocol


@dataclass(frozen=True)
class Summary:
    """Mean and population standard deviation of a metric over the runs."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class ProtocolReport:
    """The result of a protocol.

    Attributes
    ----------
    protocol
        Its name.
    runs, images
        Runs, and test images scored in each.
    classes, calibration_images
        Classes that are normal in some run, and their calibration images.
    vocabulary, k
        Entries searched, and found per image; 0 where no detector asks for them.
    detectors
        By detector and metric: the summary over the runs.
    per_run
        By detector and metric: the value of every run.
    seconds
        Time of everything.
    """

    protocol: str
    runs: int
    images: int
    classes: int
    calibration_images: int
    vocabulary: int
    k: int
    detectors: dict[str, dict[str, Summary]]
    per_run: dict[str, dict[str, list[float]]]
    seconds: float

    @property
    def comparison(self) -> Comparison | None:
        """The detectors in pairs, by AUROC; None of one detector or one run."""
        return compare_detectors(self.per_run)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        compared = self.comparison
        return {**asdict(self), "comparison": None if compared is None else asdict(compared)}

    def to_markdown(self) -> str:
        """Return a table as the paper prints it, percent, mean and deviation; then the pairs."""
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
        table = "\n".join(lines) + "\n"
        compared = self.comparison
        return table if compared is None else f"{table}\n{compared.to_markdown()}"


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
        (n, d) test images and their (n,) classes, as numbers; -1 for an image of none of them.
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
    # Classes that are never normal need neither moments nor calibration images.
    used = sorted({c for run in protocol.runs for c in run})
    reference = reference.restricted_to(used)
    runs = [[used.index(c) for c in run] for run in protocol.runs]
    fitted = [detector.fit(reference) for detector in detectors]
    scores = {one.name: np.empty((len(runs), images.shape[0])) for one in fitted}
    for part, block in blocks(images, reference):
        for one in fitted:
            scores[one.name][:, part] = one.score_runs(block, runs)
        if progress is not None:
            progress(block.rows)
    anomalies = [~np.isin(labels, list(run)) for run in protocol.runs]
    per_run = {name: _metrics_of_runs(table, anomalies) for name, table in scores.items()}
    search = reference.search
    return ProtocolReport(
        protocol.name,
        runs=len(runs),
        images=int(images.shape[0]),
        classes=len(used),
        calibration_images=sum(rows.size for rows in reference.class_rows),
        vocabulary=0 if search is None else search.size,
        k=0 if search is None else search.k,
        detectors={
            name: {metric: _summary(values) for metric, values in metrics.items()}
            for name, metrics in per_run.items()
        },
        per_run=per_run,
        seconds=round(time.perf_counter() - began, 2),
    )


def _metrics_of_runs(
    scores: npt.NDArray[np.float64], anomalies: Sequence[npt.NDArray[np.bool_]]
) -> dict[str, list[float]]:
    found = [evaluate_scores(row, anomaly) for row, anomaly in zip(scores, anomalies, strict=True)]
    return {metric: [getattr(metrics, metric) for metrics in found] for metric in METRICS}


def _summary(values: Sequence[float]) -> Summary:
    return Summary(float(np.mean(values)), float(np.std(values)))
