"""lambda and the weight of the image term, chosen from the calibration images alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.files import DEFAULT_LAM
from bliss_index.calibration.from_store import CalibrationSummary
from bliss_index.calibration.labels import Labels
from bliss_index.errors import InvalidInputError
from bliss_index.scoring.normal_scores import normal_images
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.thresholds import held_out_folds, large_enough, least_images
from bliss_index.search.isolation import isolated
from bliss_index.search.prepared import entries_of
from bliss_index.search.protocol import TopKSearch
from bliss_index.search.sharded import Matrix
from bliss_index.store import EmbeddingStore

AUTO = "auto"
LAMS = (0.0, 0.25, 0.5, 0.75, 1.0)
IMAGE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_STANDARD_ERRORS = 2.0
_MOST_IMAGES = 20_000
_MOST_PAIRS = 8_000_000
_MOST_CLASSES = 100


@dataclass(frozen=True)
class ChosenWeights:
    """What was chosen, and why.

    Attributes
    ----------
    lam, image_weight
        lambda and W.
    auroc
        Mean AUROC of them, with each class in turn left out as the anomalies.
    auroc_before, lam_before
        The same of the weights that were to be beaten: lambda, and no image term.
    standard_error
        Of the difference of the best weights to these, over the classes.
    classes, images
        How many classes were left out in turn, and how many images were scored.
    """

    lam: float
    image_weight: float
    auroc: float
    auroc_before: float
    lam_before: float
    standard_error: float
    classes: int
    images: int

    def __str__(self) -> str:
        now = f"lambda {self.lam:g} and image weight {self.image_weight:g}"
        how = f"with each of {self.classes} classes left out in turn"
        if (self.lam, self.image_weight) == (self.lam_before, 0.0):
            return f"{now} are kept: no others are clearly better {how} (AUROC {self.auroc:.4f})"
        return f"{now} are chosen: AUROC {self.auroc:.4f}, was {self.auroc_before:.4f}, {how}"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@isolated
def choose_weights(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    class_embeddings: npt.NDArray[Any],
    vocabulary: Matrix,
    search: TopKSearch,
    *,
    shrinkage: float = 0.0,
    lam: float = DEFAULT_LAM,
    folds: int = 5,
    seed: int = 0,
) -> ChosenWeights:
    """Choose lambda and the image weight by leaving out one class after the other.

    Images are scored by calibrations made without them, as for thresholds. For every class c the
    scores take the minimum over the other classes, and its images are the anomalies among all. Of
    the weights on the grid of LAMS x IMAGE_WEIGHTS those with the best mean AUROC are taken, if
    they are better than `lam` without an image term by more than two standard errors of the
    difference over the classes. No anomaly is ever seen.

    At most 20,000 images are scored, 100 classes left out, both drawn with `seed`; all images
    calibrate.

    Parameters
    ----------
    images, labels
        (n, d) normal images, unit norm, and their (n,) classes, 0..C-1, C at least 2.
    class_embeddings, vocabulary
        (C, d) and (W, d), unit norm.
    search
        Top-k search over `vocabulary`.
    shrinkage : float, default=0
        N of :class:`bliss_index.calibration.Calibration`.
    lam : float, default=0.5
        lambda that is kept unless others are better.
    folds, seed
        As for :func:`bliss_index.scoring.thresholds.held_out_scores`.

    Raises
    ------
    InvalidInputError
        Fewer than two classes have enough images to hold some out.
    """
    classes = int(class_embeddings.shape[0])
    held = _held(labels, classes, folds, seed, least_images(shrinkage, image_weight=1.0))
    left_out = np.unique(labels[held])
    if classes < 2 or left_out.size < 2:
        raise InvalidInputError(
            f"an image weight is chosen by telling classes apart: it needs two classes of enough "
            f"images to hold some out ({_needed(shrinkage)} or more), of {classes} "
            f"{left_out.size} have them; give a weight, such as 0 or 1, add images"
            + ("" if shrinkage else ", or set a shrinkage")
        )
    terms = [np.full((int(held.sum()), classes), np.nan) for _ in range(3)]
    for rows, calibration in held_out_folds(
        images, labels, class_embeddings, folds=folds, seed=seed, shrinkage=shrinkage, held=held
    ):
        some, at = images[rows], rows[held]
        scorer = BlissScorer(search, vocabulary, calibration)
        similarities, ids = search.search(some)
        scorer.tables.require(ids)
        terms[0][at] = scorer.internal_scores(some)
        terms[1][at] = scorer.external_scores(similarities, ids)
        terms[2][at] = calibration.image_term(scorer.tables.prior).scores(some)
    if left_out.size > _MOST_CLASSES:
        drawn = np.random.default_rng(seed).permutation(left_out)
        left_out = np.sort(drawn[:_MOST_CLASSES])
    label, external, image = terms
    found = {
        (rate, weight): _left_out_areas(
            label + rate * external + weight * image, labels[held], left_out
        )
        for rate, weight in product(sorted({*LAMS, lam}), IMAGE_WEIGHTS)
    }
    before = found[lam, 0.0]
    best = max(found, key=lambda weights: float(found[weights].mean()))
    gain = found[best] - before
    error = float(gain.std(ddof=1) / math.sqrt(gain.size))
    if gain.mean() <= _STANDARD_ERRORS * error:
        best = (lam, 0.0)
    return ChosenWeights(
        *best, float(found[best].mean()), float(before.mean()), lam, error, int(left_out.size),
        int(held.sum()),
    )  # fmt: skip


def with_chosen_weights(
    summary: CalibrationSummary,
    images: EmbeddingStore,
    labels: Labels | None,
    corpus: EmbeddingStore,
    search: TopKSearch,
) -> CalibrationSummary:
    """Give a calibration the weights that :func:`choose_weights` finds for its images.

    Parameters
    ----------
    summary
        Of a calibration without an image term.
    images, labels
        What it was made of.
    corpus, search
        The vocabulary and a top-k search over it.

    Raises
    ------
    InvalidInputError
        As for :func:`choose_weights`.
    """
    calibration = summary.calibration
    rows, numbers = normal_images(images, labels, calibration)
    chosen = choose_weights(
        rows, numbers, calibration.class_embeddings, entries_of(corpus), search,
        shrinkage=calibration.shrinkage, lam=calibration.lam,
    )  # fmt: skip
    attributes = {**calibration.attributes, "weights": chosen.to_json()}
    calibration = replace(
        calibration, lam=chosen.lam, image_weight=chosen.image_weight, attributes=attributes
    )
    return replace(summary, calibration=calibration, weights=str(chosen))


def parse_image_weight(value: str) -> float | str:
    """Return a weight, or AUTO; InvalidInputError for anything else."""
    if value == AUTO:
        return AUTO
    try:
        return float(value)
    except ValueError as error:
        raise InvalidInputError(
            f"the image weight must be a number of at least 0, or {AUTO!r}, got {value!r}"
        ) from error


def _needed(shrinkage: float) -> int:
    return least_images(shrinkage, image_weight=1.0) + 1


def _held(
    labels: npt.NDArray[Any], classes: int, folds: int, seed: int, remaining: int
) -> npt.NDArray[np.bool_]:
    """Choose the images to score: of large enough classes, as many of each."""
    large = large_enough(np.bincount(labels, minlength=classes), folds, remaining)
    most = max(2, min(_MOST_IMAGES, _MOST_PAIRS // classes) // max(1, int(large.sum())))
    held = np.zeros(labels.size, dtype=bool)
    rng = np.random.default_rng(seed)
    for c in np.flatnonzero(large):
        held[rng.permutation(np.flatnonzero(labels == c))[:most]] = True
    return held


def _left_out_areas(
    totals: npt.NDArray[np.float64], labels: npt.NDArray[Any], left_out: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """AUROC of each class's images against all others, by the scores over the other classes."""
    winner = totals.argmin(axis=1)
    smallest, second = np.partition(totals, 1, axis=1)[:, :2].T
    areas = np.empty(left_out.size)
    for at, c in enumerate(left_out):
        scores = np.where(winner == c, second, smallest)
        normal = np.sort(scores[labels != c])
        anomalies = scores[labels == c]
        below = np.searchsorted(normal, anomalies, "left")
        equal = np.searchsorted(normal, anomalies, "right") - below
        areas[at] = (below + equal / 2).mean() / normal.size
    return areas
