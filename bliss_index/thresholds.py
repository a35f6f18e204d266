"""Turns scores of normal images into decisions with a stated rate of false alarms.

Everything here rests on one assumption: images to judge that are normal are exchangeable with the
held-out normal images. Held out means that they did not calibrate the scores they get; an image's
score under a calibration that knows it is a little too low.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import ClassMoments
from bliss_index.calibration.calibration import Calibration
from bliss_index.errors import CalibrationError, InvalidInputError
from bliss_index.scoring import BlissScorer
from bliss_index.search.protocol import TopKSearch


@dataclass(frozen=True)
class Threshold:
    """A threshold on anomaly scores.

    Attributes
    ----------
    value
        Images are flagged whose score is at least this.
    false_alarm_rate
        Probability, at most, that a normal image is flagged.
    images
        Held-out normal images that it comes from.
    """

    value: float
    false_alarm_rate: float
    images: int

    def flags(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return which of (n,) scores are flagged; missing scores (NaN) are."""
        values = np.asarray(scores, dtype=np.float64)
        return np.asarray(~(values < self.value))


def threshold_at(normal_scores: npt.ArrayLike, false_alarm_rate: float) -> Threshold:
    """Choose the threshold that flags a new normal image with at most this probability.

    Of n held-out scores and the new one, all orders are equally likely. So the new one exceeds the
    r-th smallest held-out score, r = ceil((n + 1) (1 - rate)), with probability at most `rate`
    (split conformal prediction; Vovk et al., Algorithmic Learning in a Random World, 2005).

    Parameters
    ----------
    normal_scores
        (n,) finite anomaly scores of held-out normal images, higher = more anomalous.
    false_alarm_rate
        Between 0 and 1.

    Raises
    ------
    InvalidInputError
        Scores are not finite, the rate is not between 0 and 1, or n is too small for it: at least
        1 / rate - 1 images are needed.

    Examples
    --------
    >>> threshold_at(range(1, 100), 0.05).flags([95, 96]).tolist()
    [False, True]
    """
    scores = _finite_scores(normal_scores)
    if not 0 < false_alarm_rate < 1:
        raise InvalidInputError(
            f"the false-alarm rate must lie between 0 and 1, got {false_alarm_rate}"
        )
    # The product's rounding must not push a whole number up to the next.
    rank = math.ceil((scores.size + 1) * (1 - false_alarm_rate) - 1e-9)
    if rank > scores.size:
        raise InvalidInputError(
            f"a false-alarm rate of {false_alarm_rate} needs at least "
            f"{math.ceil(1 / false_alarm_rate - 1e-9) - 1} held-out normal images, got "
            f"{scores.size}; hold out more, or allow more false alarms"
        )
    largest_passed = float(np.partition(scores, rank - 1)[rank - 1])
    value = float(np.nextafter(largest_passed, np.inf))
    return Threshold(value, float(false_alarm_rate), int(scores.size))


def conformal_p_values(
    normal_scores: npt.ArrayLike, scores: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Return for every score how surprising it would be for a normal image.

    p = (1 + number of held-out scores that are at least as large) / (n + 1). For normal images p is
    at most u with probability at most u, for every u (conformal p-values; Bates, Candes, Lei,
    Romano and Sesia, Annals of Statistics 2023). They depend on each other through the held-out
    images.

    Parameters
    ----------
    normal_scores
        (n,) finite anomaly scores of held-out normal images.
    scores
        (m,) anomaly scores to judge; NaN stays NaN.

    Returns
    -------
    (m,) float64 between 1 / (n + 1) and 1; small = anomalous.

    Examples
    --------
    >>> conformal_p_values([1, 2, 3, 4], [0, 3, 9]).tolist()
    [1.0, 0.6, 0.2]
    """
    ordered = np.sort(_finite_scores(normal_scores))
    values = np.asarray(scores, dtype=np.float64)
    at_least = ordered.size - np.searchsorted(ordered, values, side="left")
    return np.where(np.isnan(values), np.nan, (1.0 + at_least) / (ordered.size + 1.0))


def held_out_scores(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    class_embeddings: npt.NDArray[Any],
    vocabulary: npt.NDArray[Any],
    search: TopKSearch,
    *,
    lam: float = 0.5,
    folds: int = 5,
    seed: int = 0,
    shrinkage: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Score every normal image by BLISS with a calibration made without it.

    Images of a class are dealt into folds; a fold is scored with the moments of all others. The
    final calibration knows all images, so that thresholds from these scores hold approximately
    (cross-conformal), and err on the side of too few false alarms where classes are small.

    Parameters
    ----------
    images, labels
        (n, d) normal images, unit norm, and their (n,) classes, 0..C-1.
    class_embeddings, vocabulary
        (C, d) and (W, d), unit norm.
    search
        Top-k search over `vocabulary`.
    lam
        Weight lambda of the external score.
    folds
        At least 2. Every class needs three images, or four for two folds; with a shrinkage two.
    seed
        Seed of the random deal.
    shrinkage : float, default=0
        N of :class:`bliss_index.calibration.Calibration`, for every fold's calibration.

    Returns
    -------
    (n,) float64 anomaly scores.

    Raises
    ------
    InvalidInputError
        There are fewer than two folds, or labels do not fit.
    CalibrationError
        A class has too few images to hold any out.
    """
    classes = class_embeddings.shape[0]
    fold_of = deal(labels, classes, folds, seed, remaining=1 if shrinkage else 2)
    moments = [
        [ClassMoments.of(images[(fold_of == fold) & (labels == c)]) for c in range(classes)]
        for fold in range(folds)
    ]
    texts = np.asarray(class_embeddings, dtype=np.float64)
    names = tuple(map(str, range(classes)))
    scores = np.full(images.shape[0], np.nan)
    for fold, others in _without_each(moments):
        calibration = Calibration(names, texts, others, shrinkage=shrinkage)
        scorer = BlissScorer(search, vocabulary, calibration, lam=lam)
        scores[fold_of == fold] = scorer.score(images[fold_of == fold]).anomaly
    return scores


def deal(
    labels: npt.NDArray[Any], classes: int, folds: int, seed: int = 0, *, remaining: int = 2
) -> npt.NDArray[np.int64]:
    """Deal images into folds, evenly within every class.

    Parameters
    ----------
    labels : (n,) array of int
        Classes, 0..classes-1.
    classes, folds, seed : int
        Number of classes and of folds, at least 2, and the seed of the random deal.
    remaining : int, default=2
        Images of a class that must be left without any fold; 1 is enough with a shrinkage.

    Returns
    -------
    (n,) int64 fold of each image.

    Raises
    ------
    InvalidInputError
        There are fewer than two folds, or labels are not 0..classes-1.
    CalibrationError
        A class has so few images that without a fold less than `remaining` are left.
    """
    if folds < 2:
        raise InvalidInputError(f"at least 2 folds are needed to hold images out, got {folds}")
    if labels.dtype.kind not in "iu" or (
        labels.size and (labels.min() < 0 or labels.max() >= classes)
    ):
        raise InvalidInputError(f"labels must be class numbers 0 to {classes - 1}")
    counts = np.bincount(labels, minlength=classes)
    # What remains of a class without its largest fold must still have a deviation.
    few = np.flatnonzero(counts - -(-counts // folds) < remaining)
    if few.size:
        needed = remaining + (remaining if folds == 2 else 1)
        raise CalibrationError(
            f"class {few[0]} has {counts[few[0]]} images; without one of {folds} folds at least "
            f"{remaining} must remain, so every class needs {needed} or more"
        )
    rng = np.random.default_rng(seed)
    result = np.empty(labels.size, dtype=np.int64)
    for c in range(classes):
        rows = rng.permutation(np.flatnonzero(labels == c))
        result[rows] = (np.arange(rows.size) + c) % folds
    return result


def _without_each(
    moments: list[list[ClassMoments]],
) -> Iterator[tuple[int, tuple[ClassMoments, ...]]]:
    """Yield every fold with the classes' moments over all other folds."""
    for fold in range(len(moments)):
        merged = []
        for c in range(len(moments[0])):
            total = ClassMoments.empty(moments[0][c].dim)
            for other, row in enumerate(moments):
                if other != fold:
                    total = total.merge(row[c])
            merged.append(total)
        yield fold, tuple(merged)


def _finite_scores(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size < 1:
        raise InvalidInputError(
            f"scores of held-out normal images must be a list of at least one, got {values.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InvalidInputError(
            f"{bad.size} of {values.size} scores of held-out normal images are not finite, the "
            f"first at row {bad[0]}; leave quarantined rows out"
        )
    return values
