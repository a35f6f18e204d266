"""Other detectors over the same embeddings, one definition each, to compare with BLISS.

Notation: x a unit image embedding, t_c the unit text embedding of normal class c, t_w that of a
vocabulary entry. All scores are higher for more anomalous images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.detector import FittedDetector, ImageBlock, Reference


@dataclass(frozen=True)
class RawSimilarity:
    """Similarity to the nearest label, without correction.

    S(x) = -max_c <x, t_c>
    """

    name: str = "raw"

    def fit(self, reference: Reference) -> FittedDetector:
        """Nothing is learnt."""
        return _FittedRawSimilarity(self.name, reference)


class _FittedRawSimilarity(FittedDetector):
    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        return np.stack([-block.class_similarities[:, list(run)].max(axis=1) for run in runs])


@dataclass(frozen=True)
class MaximumConceptMatching:
    """MCM: how evenly the labels share an image (Ming et al., NeurIPS 2022, equation 1).

    S(x) = 1 - max_c exp(<x, t_c> / tau) / sum_c' exp(<x, t_c'> / tau)

    With a single label the softmax is 1 for every image, and so the score is always 0.

    Attributes
    ----------
    temperature
        tau; the paper recommends 1.
    """

    temperature: float = 1.0
    name: str = "mcm"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InvalidInputError(f"temperature must be positive, got {self.temperature}")

    def fit(self, reference: Reference) -> FittedDetector:
        """Nothing is learnt."""
        return _FittedMaximumConceptMatching(self, reference)


class _FittedMaximumConceptMatching(FittedDetector):
    def __init__(self, settings: MaximumConceptMatching, reference: Reference) -> None:
        super().__init__(settings.name, reference)
        self._temperature = settings.temperature

    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        return np.stack([self._score(block.class_similarities[:, list(run)]) for run in runs])

    def _score(self, similarities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        ordered = np.sort(similarities, axis=1)
        terms = np.exp((ordered - ordered[:, -1:]) / self._temperature)
        # The largest term is 1. Summing the others keeps the digits that 1 - max would lose.
        others = terms[:, :-1].sum(axis=1)
        return np.asarray(others / (1 + others))


@dataclass(frozen=True)
class NegLabel:
    """NegLabel: labels against many negative labels (Jiang et al., ICLR 2024, sections 3.1, 3.2).

    Negatives are the M entries farthest from the labels, where an entry's distance is the
    eta-quantile over the labels of -<t_w, t_c>. They are dealt at random into groups of equal
    size, and what remains is left out. With P = sum_c exp(<x, t_c> / tau) and
    N_g = sum_{w in g} exp(<x, t_w> / tau),

        S(x) = mean_g N_g / (P + N_g)

    which is 1 minus the paper's score of being normal.

    Attributes
    ----------
    negatives
        M as a share of the vocabulary; the authors take 0.15, 10,000 of about 70,000 words.
    quantile
        eta.
    temperature
        tau.
    group_size
        About how many negatives make a group: there are M / group_size groups, rounded, and at
        least one. The paper deals 10,000 into 100 groups.
    seed
        Of the dealing.
    """

    negatives: float = 0.15
    quantile: float = 0.05
    temperature: float = 0.01
    group_size: int = 100
    seed: int = 0
    name: str = "neglabel"

    def __post_init__(self) -> None:
        if not 0 < self.negatives <= 1 or not 0 <= self.quantile <= 1:
            raise InvalidInputError(
                f"negatives must lie in (0, 1] and quantile in [0, 1], got {self.negatives} "
                f"and {self.quantile}"
            )
        if not self.temperature > 0 or self.group_size < 1:
            raise InvalidInputError(
                f"temperature must be positive and group_size at least 1, got "
                f"{self.temperature} and {self.group_size}"
            )

    def fit(self, reference: Reference) -> FittedDetector:
        """Keep the distances between entries and labels; negatives are chosen run by run."""
        return _FittedNegLabel(self, reference)


class _FittedNegLabel(FittedDetector):
    def __init__(self, settings: NegLabel, reference: Reference) -> None:
        super().__init__(settings.name, reference)
        reference.require(settings.name, "vocabulary")
        vocabulary = np.asarray(reference.vocabulary)
        self._settings = settings
        self._entries = np.ascontiguousarray(vocabulary, dtype=np.float32)
        self._distances = -(
            vocabulary.astype(np.float64) @ reference.class_embeddings.astype(np.float64).T
        )
        self._groups: dict[tuple[int, ...], npt.NDArray[np.intp]] = {}

    def groups(self, run: Sequence[int]) -> npt.NDArray[np.intp]:
        """Return the negatives of these labels, (groups, size) entry ids."""
        key = tuple(run)
        if key not in self._groups:
            settings = self._settings
            distance = np.quantile(self._distances[:, list(key)], settings.quantile, axis=1)
            count = max(1, round(settings.negatives * distance.size))
            farthest = np.argsort(-distance, kind="stable")[:count]
            dealt = np.random.default_rng(settings.seed).permutation(farthest)
            groups = max(1, round(count / settings.group_size))
            self._groups[key] = dealt[: count - count % groups].reshape(groups, -1)
        return self._groups[key]

    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        temperature = self._settings.temperature
        chosen = [self.groups(run) for run in runs]
        # One product serves all runs: entries that any of them uses.
        used, place = np.unique(np.concatenate([g.ravel() for g in chosen]), return_inverse=True)
        similarities = block.similarities_with(self._entries[used])
        ends = np.cumsum([group.size for group in chosen])
        scores = np.empty((len(runs), block.rows))
        for number, (run, group) in enumerate(zip(runs, chosen, strict=True)):
            columns = place[ends[number] - group.size : ends[number]]
            negative = similarities[:, columns].reshape(block.rows, *group.shape)
            positive = block.class_similarities[:, list(run)]
            excess = (
                _log_sum_exp(negative, temperature) - _log_sum_exp(positive, temperature)[:, None]
            )
            # N / (P + N) of the logarithms' difference; an overflow to infinity means 0.
            with np.errstate(over="ignore"):
                scores[number] = (1.0 / (1.0 + np.exp(-excess))).mean(axis=1)
        return scores


def _log_sum_exp(values: npt.NDArray[Any], temperature: float) -> npt.NDArray[np.float64]:
    """log sum exp(value / temperature) over the last axis, summed in float64."""
    top = values.max(axis=-1, keepdims=True)
    terms = np.exp((values - top) / values.dtype.type(temperature))
    return np.asarray(
        top[..., 0].astype(np.float64) / temperature + np.log(terms.sum(axis=-1, dtype=np.float64))
    )


@dataclass(frozen=True)
class NearestImages:
    """Distance to the k-th nearest calibration image (Sun et al., ICML 2022, section 3).

    S(x) = 1 - <x, x_(k)>, with x_(k) the k-th most similar image of the normal classes. For unit
    vectors that is half the squared Euclidean distance.

    Attributes
    ----------
    neighbours
        k; the paper takes 50 of 50,000 images. The default suits small calibration sets too.
    """

    neighbours: int = 5
    name: str = "knn"

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise InvalidInputError(f"neighbours must be at least 1, got {self.neighbours}")

    def fit(self, reference: Reference) -> FittedDetector:
        """Keep the calibration images, in float32, class by class."""
        return _FittedNearestImages(self, reference)


class _FittedNearestImages(FittedDetector):
    def __init__(self, settings: NearestImages, reference: Reference) -> None:
        super().__init__(settings.name, reference)
        reference.require(settings.name, "images")
        images = np.asarray(reference.images)
        self._k = settings.neighbours
        self._images = [
            np.ascontiguousarray(images[rows], dtype=np.float32) for rows in reference.class_rows
        ]

    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        # A class's k nearest hold all of its members among the k nearest of any union of classes.
        nearest: dict[int, npt.NDArray[np.float32]] = {}
        for c in sorted({c for run in runs for c in run}):
            similarities = block.similarities_with(self._images[c])
            if similarities.shape[1] > self._k:
                similarities = np.partition(similarities, -self._k, axis=1)[:, -self._k :]
            nearest[c] = similarities
        scores = np.empty((len(runs), block.rows))
        for number, run in enumerate(runs):
            candidates = np.concatenate([nearest[c] for c in run], axis=1)
            if candidates.shape[1] < self._k:
                raise InvalidInputError(
                    f"detector {self.name!r} looks for {self._k} neighbours, the normal classes "
                    f"{tuple(run)} have {candidates.shape[1]} calibration images; lower neighbours"
                )
            scores[number] = 1.0 - np.partition(candidates, -self._k, axis=1)[:, -self._k]
        return scores
