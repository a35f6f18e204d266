"""Turns scores of normal images into decisions with a stated rate of false alarms.

Everything here rests on one assumption: images to judge that are normal are exchangeable with the
held-out normal images. Held out means that they did not calibrate the scores they get; an image's
score under a calibration that knows it is a little too low.

What is promised comes in two kinds. A rate without confidence holds on average over calibrations:
with one set of held-out images more normal images may be flagged, with another fewer. A rate with
confidence holds for all but a small share of the sets.
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
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search.inputs import as_array, require_real
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import TopKSearch
from bliss_index.search.sharded import Matrix


@dataclass(frozen=True)
class Threshold:
    """A threshold on anomaly scores.

    Attributes
    ----------
    value
        Images are flagged whose score is at least this.
    false_alarm_rate
        Probability, at most, that a normal image is flagged: on average over sets of held-out
        images, or with `confidence`.
    images
        Held-out normal images that it comes from.
    confidence
        Probability that the held-out images are such that the rate is kept; None where it is kept
        on average.
    """

    value: float
    false_alarm_rate: float
    images: int
    confidence: float | None = None

    def flags(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return which of (n,) scores are flagged; missing scores (NaN) are."""
        values = _numbers(scores, "scores")
        return np.asarray(~(values < self.value))


@isolated
def threshold_at(
    normal_scores: npt.ArrayLike, false_alarm_rate: float, *, confidence: float | None = None
) -> Threshold:
    """Choose the threshold that flags a new normal image with at most this probability.

    Of n held-out scores and the new one, all orders are equally likely. So the new one exceeds the
    r-th smallest held-out score, r = ceil((n + 1) (1 - rate)), with probability at most `rate`
    (split conformal prediction; Vovk et al., Algorithmic Learning in a Random World, 2005). That
    probability is over the held-out scores too. For given ones the share of new normal images that
    are flagged is Beta(n + 1 - r, r) distributed where scores are continuous (Vovk, Conditional
    validity of inductive conformal predictors, ACML 2012): about every second set flags more than
    its mean.

    With a confidence, r is the smallest rank for which the share is at most `rate` with that
    probability over the held-out scores: the one-sided tolerance limit of Wilks (Annals of
    Mathematical Statistics, 1941), r = 1 + (confidence-quantile of Binomial(n, 1 - rate)).

    Parameters
    ----------
    normal_scores : (n,) array
        Finite anomaly scores of held-out normal images, higher = more anomalous.
    false_alarm_rate : float
        Between 0 and 1.
    confidence : float, default=None
        Between 0 and 1, such as 0.95; None for a rate that holds on average.

    Raises
    ------
    InvalidInputError
        Scores are not finite, the rate or confidence is not between 0 and 1, or n is too small for
        them: at least 1 / rate - 1 images are needed, or log(1 - confidence) / log(1 - rate).

    Examples
    --------
    >>> threshold_at(range(1, 100), 0.05).flags([95, 96]).tolist()
    [False, True]
    >>> threshold_at(range(1, 100), 0.05, confidence=0.95).flags([98, 99]).tolist()
    [False, True]
    """
    scores = _finite_scores(normal_scores)
    _require_share(false_alarm_rate, "the false-alarm rate")
    if confidence is None:
        # The product's rounding must not push a whole number up to the next.
        rank = math.ceil((scores.size + 1) * (1 - false_alarm_rate) - 1e-9)
        needed = math.ceil(1 / false_alarm_rate - 1e-9) - 1
        how_sure = ""
    else:
        _require_share(confidence, "the confidence")
        rank = scores.size - _most_above(scores.size, false_alarm_rate, confidence)
        needed = math.ceil(math.log1p(-confidence) / math.log1p(-false_alarm_rate) - 1e-9)
        how_sure = f" with confidence {confidence}"
    if rank > scores.size:
        raise InvalidInputError(
            f"a false-alarm rate of {false_alarm_rate}{how_sure} needs at least {needed} held-out "
            f"normal images, got {scores.size}; hold out more, or allow more false alarms"
        )
    largest_passed = float(np.partition(scores, rank - 1)[rank - 1])
    value = float(np.nextafter(largest_passed, np.inf))
    return Threshold(value, float(false_alarm_rate), int(scores.size), confidence)


def rate_kept(normal_scores: npt.ArrayLike, threshold: float, confidence: float = 0.95) -> float:
    """Return the false-alarm rate that a threshold keeps with this confidence.

    The upper end of the one-sided interval of Clopper and Pearson (Biometrika, 1934): were the
    rate larger, so few held-out scores would reach the threshold with probability at most
    1 - confidence. It holds for a threshold fixed beforehand and for one of the held-out scores
    alike, since the number of scores that reach the latter is fixed.

    Parameters
    ----------
    normal_scores : (n,) array
        Finite anomaly scores of held-out normal images.
    threshold : float
        Images are flagged whose score is at least this.
    confidence : float, default=0.95
        Between 0 and 1.

    Examples
    --------
    >>> round(rate_kept(range(1, 100), 96), 3)  # 4 of 99 lie above
    0.09
    """
    scores = _finite_scores(normal_scores)
    _require_share(confidence, "the confidence")
    return _largest_share(int((scores >= threshold).sum()), scores.size, 1 - confidence)


def share_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share of which `count` in a random sample of n were found.

    The two-sided interval of Clopper and Pearson (Biometrika, 1934): it holds the share with at
    least this probability, however small the sample. A sample without replacement from few has it
    the narrower, so that the interval errs on the wide side there.

    Parameters
    ----------
    count, n : int
        0 <= count <= n, and n at least 1.
    confidence : float, default=0.95
        Between 0 and 1.

    Raises
    ------
    InvalidInputError
        They are not.

    Examples
    --------
    >>> low, high = share_interval(0, 100)
    >>> round(low, 4), round(high, 4)
    (0.0, 0.0362)
    """
    _require_share(confidence, "the confidence")
    if not 0 <= count <= n or n < 1:
        raise InvalidInputError(f"a share needs 0 <= count <= n, n at least 1, got {count} of {n}")
    tail = (1 - confidence) / 2
    return 1 - _largest_share(n - count, n, tail), _largest_share(count, n, tail)


def _largest_share(count: int, n: int, tail: float) -> float:
    """Return the share from which on at most `count` of n come with probability at most `tail`."""
    if count == n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):  # the cumulative probability falls as the share grows
        middle = (low + high) / 2
        if _binomial_cdf(n, middle, count)[-1] > tail:
            low = middle
        else:
            high = middle
    return high


def _most_above(n: int, rate: float, confidence: float) -> int:
    """Return how many of n held-out scores may lie above a threshold that keeps the rate.

    The largest m with P(Binomial(n, rate) <= m) <= 1 - confidence; -1 where there is none.
    """
    cumulative = _binomial_cdf(n, rate, min(n, math.ceil(n * rate)))
    return int(np.searchsorted(cumulative, (1 - confidence) * (1 + 1e-12), side="right")) - 1


def _binomial_cdf(n: int, p: float, most: int) -> npt.NDArray[np.float64]:
    """Return P(Binomial(n, p) <= m) for m = 0 to `most`: (most + 1,) float64."""
    j = np.arange(most, dtype=np.float64)
    steps = np.log((n - j) / (j + 1)) + math.log(p) - math.log1p(-p)
    logarithm = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.asarray(np.minimum(np.cumsum(np.exp(logarithm)), 1.0))


def _require_share(value: float, what: str) -> None:
    require_real(value, what, "lie between 0 and 1", lambda share: 0 < share < 1)


@isolated
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
    values = _numbers(scores, "scores")
    at_least = ordered.size - np.searchsorted(ordered, values, side="left")
    return np.where(np.isnan(values), np.nan, (1.0 + at_least) / (ordered.size + 1.0))


@isolated
def held_out_scores(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    class_embeddings: npt.NDArray[Any],
    vocabulary: Matrix,
    search: TopKSearch,
    *,
    lam: float = 0.5,
    folds: int = 5,
    seed: int = 0,
    shrinkage: float = 0.0,
    image_weight: float = 0.0,
    held: npt.NDArray[np.bool_] | None = None,
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
        At least 2. Every class needs three images, or four for two folds; with a shrinkage two;
        with an image term and without shrinkage one more.
    seed
        Seed of the random deal.
    shrinkage, image_weight : float, default=0
        N and W of :class:`bliss_index.calibration.Calibration`, for every fold's calibration.
    held : (n,) array of bool, default=None
        Images to hold out; the others calibrate every fold and get no score. By default all are.

    Returns
    -------
    (n,) float64 anomaly scores; NaN for images that are not held out.

    Raises
    ------
    InvalidInputError
        There are fewer than two folds, or labels do not fit.
    CalibrationError
        A class has too few images to hold any out.
    """
    scores = np.full(images.shape[0], np.nan)
    for rows, calibration in held_out_folds(
        images, labels, class_embeddings, folds=folds, seed=seed, shrinkage=shrinkage,
        image_weight=image_weight, held=held,
    ):  # fmt: skip
        scorer = BlissScorer(search, vocabulary, calibration, lam=lam)
        scores[rows] = scorer.score(images[rows]).anomaly
    return scores


def least_images(shrinkage: float, image_weight: float = 0.0) -> int:
    """Return how many images a class needs for a calibration with these weights."""
    if shrinkage:
        return 1
    return 3 if image_weight else 2


def large_enough(
    counts: npt.NDArray[np.int64], folds: int, remaining: int
) -> npt.NDArray[np.bool_]:
    """Say which classes have enough images to be dealt into folds, given (C,) numbers of images.

    Of n images at most ceil(n / folds) are held out at once; at least `remaining` must be left.
    """
    return np.asarray(counts - -(-counts // folds) >= remaining)


def held_out_folds(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    class_embeddings: npt.NDArray[Any],
    *,
    folds: int = 5,
    seed: int = 0,
    shrinkage: float = 0.0,
    image_weight: float = 0.0,
    held: npt.NDArray[np.bool_] | None = None,
) -> Iterator[tuple[npt.NDArray[np.bool_], Calibration]]:
    """Yield every fold's (n,) mask of images, and the calibration that was made without them.

    Parameters and errors are those of :func:`held_out_scores`.
    """
    classes = class_embeddings.shape[0]
    chosen = np.ones(labels.size, dtype=bool) if held is None else held
    fold_of = np.full(labels.size, -1, dtype=np.int64)
    always = None if held is None else np.bincount(labels[~held], minlength=classes)
    remaining = least_images(shrinkage, image_weight)
    fold_of[chosen] = deal(labels[chosen], classes, folds, seed, remaining=remaining, others=always)
    base = [ClassMoments.of(images[~chosen & (labels == c)]) for c in range(classes)]
    moments = [
        [ClassMoments.of(images[(fold_of == fold) & (labels == c)]) for c in range(classes)]
        for fold in range(folds)
    ]
    texts = np.asarray(class_embeddings, dtype=np.float64)
    names = tuple(map(str, range(classes)))
    for fold, others in _without_each(moments, base):
        yield (
            fold_of == fold,
            Calibration(names, texts, others, shrinkage=shrinkage, image_weight=image_weight),
        )


def deal(
    labels: npt.NDArray[Any],
    classes: int,
    folds: int,
    seed: int = 0,
    *,
    remaining: int = 2,
    others: npt.NDArray[np.int64] | None = None,
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
    others : (classes,) array, default=None
        Further images of each class, which are never held out.

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
    left = counts - -(-counts // folds) + (0 if others is None else others)
    few = np.flatnonzero(left < remaining)
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
    moments: list[list[ClassMoments]], base: list[ClassMoments]
) -> Iterator[tuple[int, tuple[ClassMoments, ...]]]:
    """Yield every fold with the classes' moments over all other folds and the base."""
    for fold in range(len(moments)):
        merged = []
        for c in range(len(moments[0])):
            total = base[c]
            for other, row in enumerate(moments):
                if other != fold:
                    total = total.merge(row[c])
            merged.append(total)
        yield fold, tuple(merged)


def _finite_scores(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = _numbers(scores, "scores of held-out normal images")
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


def _numbers(scores: npt.ArrayLike, what: str) -> npt.NDArray[np.float64]:
    values = as_array(scores, what)
    if values.dtype.kind not in "fiu":
        raise InvalidInputError(f"{what} must be numbers, got {values.dtype}")
    return np.asarray(values, dtype=np.float64)
