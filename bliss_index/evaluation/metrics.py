"""How well anomaly scores tell anomalies from normal images.

Scores are higher for more anomalous images; anomalies are the positive class unless said otherwise.
Scores are sorted once; the bootstrap then only changes how often each image counts. Values equal
scikit-learn's (tested), which is not needed to run this.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError

_TITLES = {
    "auroc": "AUROC",
    "aupr_anomaly": "AUPR, anomalies positive",
    "aupr_normal": "AUPR, normal images positive",
    "fpr95_anomaly": "false alarms where 95 % of anomalies are found",
    "fpr95_normal": "anomalies missed where 95 % of normal images pass",
}
METRICS = tuple(_TITLES)
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
        Number of images of either kind that have a score.
    missing_normal, missing_anomalies
        Number of images of either kind left out because they have none.
    unlabelled
        Number of images left out because nothing is known of them.
    intervals
        Bootstrap interval by metric name; empty where none was asked for.
    """

    auroc: float
    aupr_anomaly: float
    aupr_normal: float
    fpr95_anomaly: float
    fpr95_normal: float
    normal: int
    anomalies: int
    missing_normal: int = 0
    missing_anomalies: int = 0
    unlabelled: int = 0
    intervals: dict[str, Interval] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values; intervals as [low, high]."""
        data = asdict(self)
        data["intervals"] = {name: [i.low, i.high] for name, i in self.intervals.items()}
        return data

    def rows(self) -> list[tuple[str, float, str]]:
        """Return the title, value and interval of every metric, for tables that people read."""
        found = []
        for name, title in _TITLES.items():
            interval = self.intervals.get(name)
            ends = "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"
            found.append((title, getattr(self, name), ends))
        return found


def evaluate_scores(
    scores: npt.ArrayLike,
    anomaly: npt.ArrayLike,
    *,
    resamples: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_missing: bool = False,
) -> Metrics:
    """Compute all metrics of anomaly scores.

    Parameters
    ----------
    scores
        (n,) higher = more anomalous. NaN says that an image has no score.
    anomaly
        (n,) 1 or True for anomalies, 0 or False for normal images; both must occur.
    resamples
        Bootstrap resamples, drawn within normal images and within anomalies; 0 for no intervals.
    confidence, seed
        Coverage of the intervals and seed of the resampling.
    allow_missing
        Leave images without a score out and count them in the result; otherwise they are an error.

    Raises
    ------
    InvalidInputError
        Lengths differ, scores are infinite or missing, labels are not 0 and 1, or only one kind
        occurs.

    Examples
    --------
    >>> evaluate_scores([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]).auroc
    0.75
    """
    values, positive = _checked_shapes(scores, anomaly)
    missing = np.isnan(values)
    lost = (0, 0)
    if allow_missing and missing.any():
        lost = (int((missing & ~positive).sum()), int((missing & positive).sum()))
        values, positive = values[~missing], positive[~missing]
    _require_finite(values)
    _require_both(positive)
    curve = _Curve(values, positive)
    point = dict(zip(METRICS, curve.metrics(), strict=True))
    intervals: dict[str, Interval] = {}
    if resamples:
        if resamples < 2 or not 0 < confidence < 1:
            raise InvalidInputError(
                f"a bootstrap needs at least 2 resamples and a confidence in (0, 1), got "
                f"{resamples} and {confidence}"
            )
        drawn = curve.bootstrap(resamples, seed)
        tail = (1 - confidence) / 2
        ends = np.quantile(drawn, [tail, 1 - tail], axis=0).T.tolist()
        intervals = {m: Interval(*pair) for m, pair in zip(METRICS, ends, strict=True)}
    return Metrics(
        **point,
        normal=int((~positive).sum()),
        anomalies=int(positive.sum()),
        missing_normal=lost[0],
        missing_anomalies=lost[1],
        unlabelled=0,
        intervals=intervals,
    )


def auroc(scores: npt.ArrayLike, anomaly: npt.ArrayLike) -> float:
    """Area under the ROC curve alone; the arguments and errors are :func:`evaluate_scores`'s."""
    return evaluate_scores(scores, anomaly).auroc


class _Curve:
    """Scores in falling order, equal ones together, as counts of anomalies and normal images."""

    def __init__(self, scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> None:
        order = np.argsort(scores)[::-1]
        falling = scores[order]
        step = np.append(False, falling[1:] != falling[:-1])
        place = np.cumsum(step)
        flags = positive[order]
        self._places = int(place[-1]) + 1
        self._of_anomalies = place[flags]
        self._of_normal = place[~flags]

    def metrics(self) -> list[float]:
        """The metrics, in the order of ``METRICS``."""
        return self._evaluate(self._of_anomalies, self._of_normal)

    def bootstrap(self, resamples: int, seed: int) -> npt.NDArray[np.float64]:
        """The metrics of resampled images: (resamples, 5)."""
        rng = np.random.default_rng(seed)
        result = np.empty((resamples, len(METRICS)))
        for row in range(resamples):
            drawn = [
                places[rng.integers(0, places.size, places.size)]
                for places in (self._of_anomalies, self._of_normal)
            ]
            result[row] = self._evaluate(*drawn)
        return result

    def _evaluate(
        self, of_anomalies: npt.NDArray[np.intp], of_normal: npt.NDArray[np.intp]
    ) -> list[float]:
        found = np.bincount(of_anomalies, minlength=self._places)
        alarms = np.bincount(of_normal, minlength=self._places)
        above = np.cumsum(found)
        # Counted in halves: an anomaly above a normal image is worth 2, beside it 1.
        wins = int(np.dot(alarms, 2 * above - found))
        area = wins / (2 * of_anomalies.size * of_normal.size)
        forward = _precision_and_rate(found, alarms)
        # From the other end the same order is that of normal images as the positive class.
        backward = _precision_and_rate(alarms[::-1], found[::-1])
        return [area, forward[0], backward[0], forward[1], backward[1]]


def _precision_and_rate(
    true: npt.NDArray[np.intp], false: npt.NDArray[np.intp]
) -> tuple[float, float]:
    """Average precision, and the false-positive rate where 95 % of the positives are found."""
    found, alarms = np.cumsum(true), np.cumsum(false)
    steps = np.flatnonzero(true)
    precision = found[steps] / (found[steps] + alarms[steps])
    average = float(np.dot(true[steps], precision)) / int(found[-1])
    at = int(np.argmax(found / found[-1] >= _TPR))
    return average, int(alarms[at]) / int(alarms[-1])


def _checked_shapes(
    scores: npt.ArrayLike, anomaly: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(anomaly)
    if values.ndim != 1 or labels.shape != values.shape:
        raise InvalidInputError(
            f"scores of shape {values.shape} and labels of shape {labels.shape}: "
            "one label per score is needed"
        )
    if labels.dtype != bool:
        known = np.isin(labels, (0, 1))
        if not known.all():
            odd = labels[~known].tolist()[0]
            raise InvalidInputError(f"labels must be 1 (anomaly) or 0 (normal), got {odd!r}")
    return values, labels.astype(bool)


def _require_finite(values: npt.NDArray[np.float64]) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InvalidInputError(
            f"{bad.size} of {values.size} scores are not finite, the first at row {bad[0]}; "
            "leave quarantined rows out"
        )


def _require_both(positive: npt.NDArray[np.bool_]) -> None:
    if positive.all() or not positive.any():
        raise InvalidInputError(
            f"both kinds of images are needed, got {int(positive.sum())} anomalies and "
            f"{int((~positive).sum())} normal images"
        )
