"""How well anomaly scores tell anomalies from normal images.

Scores are higher for more anomalous images; anomalies are the positive class unless said otherwise.
Point values are scikit-learn's. Bootstrap intervals need thousands of weighted evaluations of the
same scores, so the scores are sorted once and only weights change (tested to equal scikit-learn's).
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError, MissingDependencyError

METRICS = ("auroc", "aupr_anomaly", "aupr_normal", "fpr95_anomaly", "fpr95_normal")
_TPR = 0.95


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval.

    Attributes
    ----------
    low, high
        Its ends, in the metric's unit.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Metrics:
    """Metrics of one set of scores, all between 0 and 1.

    Attributes
    ----------
    auroc
        Probability that an anomaly scores above a normal image, ties counted half.
    aupr_anomaly, aupr_normal
        Average precision with anomalies, or with normal images, as the positive class.
    fpr95_anomaly
        Share of normal images flagged at the threshold that catches 95 % of anomalies.
    fpr95_normal
        Share of anomalies let through at the threshold that passes 95 % of normal images: the
        FPR95 of the literature on out-of-distribution detection.
    normal, anomalies
        Number of images of either kind.
    intervals
        95 % bootstrap interval by metric name; empty where none was asked for.
    """

    auroc: float
    aupr_anomaly: float
    aupr_normal: float
    fpr95_anomaly: float
    fpr95_normal: float
    normal: int
    anomalies: int
    intervals: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values; intervals as [low, high]."""
        data = asdict(self)
        data["intervals"] = {name: [i.low, i.high] for name, i in self.intervals.items()}
        return data


def evaluate_scores(
    scores: npt.ArrayLike,
    anomaly: npt.ArrayLike,
    *,
    resamples: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Metrics:
    """Compute all metrics of anomaly scores.

    Parameters
    ----------
    scores
        (n,) finite, higher = more anomalous.
    anomaly
        (n,) 1 or True for anomalies, 0 or False for normal images; both must occur.
    resamples
        Bootstrap resamples, drawn within normal images and within anomalies; 0 for no intervals.
    confidence, seed
        Coverage of the intervals and seed of the resampling.

    Raises
    ------
    InvalidInputError
        Lengths differ, scores are not finite, labels are not 0 and 1, or only one kind occurs.
    MissingDependencyError
        scikit-learn is not installed.
    """
    values, positive = _checked(scores, anomaly)
    metrics = _sklearn_metrics()
    intervals: dict[str, Interval] = {}
    if resamples:
        if resamples < 2 or not 0 < confidence < 1:
            raise InvalidInputError(
                f"a bootstrap needs at least 2 resamples and a confidence in (0, 1), got "
                f"{resamples} and {confidence}"
            )
        intervals = _bootstrap(values, positive, resamples, confidence, seed)
    return Metrics(
        auroc=float(metrics.roc_auc_score(positive, values)),
        aupr_anomaly=float(metrics.average_precision_score(positive, values)),
        aupr_normal=float(metrics.average_precision_score(~positive, -values)),
        fpr95_anomaly=_fpr_at(metrics, positive, values),
        fpr95_normal=_fpr_at(metrics, ~positive, -values),
        normal=int((~positive).sum()),
        anomalies=int(positive.sum()),
        intervals=intervals,
    )


def auroc(scores: npt.ArrayLike, anomaly: npt.ArrayLike) -> float:
    """Area under the ROC curve alone; the arguments and errors are :func:`evaluate_scores`'s."""
    values, positive = _checked(scores, anomaly)
    return float(_sklearn_metrics().roc_auc_score(positive, values))


def weighted_metrics(
    scores: npt.NDArray[np.float64],
    positive: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Compute the metrics of weighted images, in the order of ``METRICS``.

    Parameters
    ----------
    scores, positive
        (n,) as in :func:`evaluate_scores`.
    weights
        (r, n) non-negative: one row per evaluation.

    Returns
    -------
    (r, 5) float64.
    """
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    flags = positive[order]
    result = np.empty((weights.shape[0], len(METRICS)))
    for row, weight in enumerate(weights):
        sorted_weight = weight[order]
        found = np.cumsum(sorted_weight * flags)[ends]
        alarms = np.cumsum(sorted_weight * ~flags)[ends]
        tpr = np.append(0.0, found / found[-1])
        fpr = np.append(0.0, alarms / alarms[-1])
        # From the other end the same curve is that of normal images as the positive class.
        kept = alarms[-1] - np.append(0.0, alarms)[::-1]
        missed = found[-1] - np.append(0.0, found)[::-1]
        passed, let_through = kept / kept[-1], missed / missed[-1]
        result[row] = (
            np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2),
            _average_precision(tpr, found, alarms),
            _average_precision(passed, kept[1:], missed[1:]),
            fpr[np.argmax(tpr >= _TPR)],
            let_through[np.argmax(passed >= _TPR)],
        )
    return result


def _average_precision(
    recall: npt.NDArray[np.float64],
    true: npt.NDArray[np.float64],
    false: npt.NDArray[np.float64],
) -> float:
    total = true + false
    precision = np.divide(true, total, out=np.zeros_like(total), where=total > 0)
    return float(np.sum(np.diff(recall) * precision))


def _bootstrap(
    scores: npt.NDArray[np.float64],
    positive: npt.NDArray[np.bool_],
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    values = np.empty((resamples, len(METRICS)))
    for row in range(resamples):
        weights = np.zeros(scores.size)
        for group in groups:
            drawn = rng.integers(0, group.size, group.size)
            weights[group] = np.bincount(drawn, minlength=group.size)
        values[row] = weighted_metrics(scores, positive, weights[None, :])[0]
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return {name: Interval(float(low[i]), float(high[i])) for i, name in enumerate(METRICS)}


def _fpr_at(metrics: Any, positive: npt.NDArray[np.bool_], scores: npt.NDArray[Any]) -> float:
    fpr, tpr, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    return float(fpr[np.argmax(tpr >= _TPR)])


def _checked(
    scores: npt.ArrayLike, anomaly: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(anomaly)
    if values.ndim != 1 or labels.shape != values.shape:
        raise InvalidInputError(
            f"scores of shape {values.shape} and labels of shape {labels.shape}: "
            "one label per score is needed"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InvalidInputError(
            f"{bad.size} of {values.size} scores are not finite, the first at row {bad[0]}; "
            "leave quarantined rows out"
        )
    if labels.dtype != bool and not np.isin(labels, (0, 1)).all():
        odd = labels[~np.isin(labels, (0, 1))].tolist()[0]
        raise InvalidInputError(f"labels must be 1 (anomaly) or 0 (normal), got {odd!r}")
    positive = labels.astype(bool)
    if positive.all() or not positive.any():
        raise InvalidInputError(
            f"both kinds of images are needed, got {int(positive.sum())} anomalies and "
            f"{int((~positive).sum())} normal images"
        )
    return values, positive


def _sklearn_metrics() -> Any:
    try:
        return importlib.import_module("sklearn.metrics")
    except ImportError as error:
        raise MissingDependencyError(
            f"metrics need scikit-learn ({error}); pip install 'bliss-index[report]'"
        ) from error
