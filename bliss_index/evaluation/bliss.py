"""BLISS and its label term as detectors that share their work between the runs of a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import Calibration, calibrate
from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.detector import FittedDetector, ImageBlock, Reference
from bliss_index.scoring import BlissScorer


@dataclass(frozen=True)
class Bliss:
    """BLISS (Goodge, Hooi, Ng, BMVC 2024): label term and external term, both normalised.

    S(x) = min_c [ I_c(x) + lambda E_c(x) ]; see :mod:`bliss_index.scoring`.

    Attributes
    ----------
    lam
        lambda; k is the search's.
    """

    lam: float = 0.5
    name: str = "bliss"

    def fit(self, reference: Reference) -> FittedDetector:
        """Compute the moments of all classes once; a run is a choice among them."""
        reference.require(self.name, "images", "vocabulary", "search")
        return _FittedBliss(self, reference)


class _FittedBliss(FittedDetector):
    def __init__(self, settings: Bliss, reference: Reference) -> None:
        super().__init__(settings.name, reference)
        if reference.search is None or reference.vocabulary is None:
            raise InvalidInputError("BLISS needs a vocabulary and a search over it")
        self._scorer = BlissScorer(
            reference.search, reference.vocabulary, _calibration(reference), lam=settings.lam
        )

    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        similarities, ids = block.top_k
        self._scorer.tables.require(ids)
        total = self._scorer.internal_scores(block.images)
        total += self._scorer.lam * self._scorer.external_scores(similarities, ids)
        return np.stack([total[:, list(run)].min(axis=1) for run in runs])


@dataclass(frozen=True)
class LabelTerm:
    """The label term of BLISS alone: S(x) = min_c -(<x, t_c> - mu_c) / sigma_c."""

    name: str = "label"

    def fit(self, reference: Reference) -> FittedDetector:
        """Compute mean and deviation of every class's images on its own label."""
        reference.require(self.name, "images")
        return _FittedLabelTerm(self.name, reference)


class _FittedLabelTerm(FittedDetector):
    def __init__(self, name: str, reference: Reference) -> None:
        super().__init__(name, reference)
        self._mu, self._sigma = _calibration(reference).label_statistics()

    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        scores = (self._mu - block.class_similarities) / self._sigma
        return np.stack([scores[:, list(run)].min(axis=1) for run in runs])


def _calibration(reference: Reference) -> Calibration:
    images, labels = reference.images, reference.labels
    if images is None or labels is None:
        raise InvalidInputError("calibration needs images and their labels")
    return calibrate([(images, labels)], reference.class_embeddings)
