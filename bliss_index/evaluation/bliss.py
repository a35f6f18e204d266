"""BLISS and its label term as detectors that share their work between the runs of a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.calibration import require_weight
from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.detector import FittedDetector, ImageBlock, Reference


@dataclass(frozen=True)
class Bliss:
    """BLISS (Goodge, Hooi, Ng, BMVC 2024): label term and external term, both normalised.

    S(x) = min_c [ I_c(x) + lambda E_c(x) ], with an image term beside I_c on request; see
    :mod:`bliss_index.scoring.formulas`.

    Attributes
    ----------
    lam
        lambda, at least 0.
    k
        Entries per image, at most the search's; 0 for the search's.
    shrinkage
        N of :class:`bliss_index.calibration.Calibration`, in images; 0 is the paper's.
    image_weight
        W of :class:`bliss_index.calibration.Calibration`; 0 is the paper's.
    """

    lam: float = 0.5
    k: int = 0
    name: str = "bliss"
    shrinkage: float = 0.0
    image_weight: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.lam) and self.lam >= 0) or self.k < 0:
            raise InvalidInputError(
                f"lam must be a finite number and k a whole one, both at least 0, got {self.lam} "
                f"and {self.k}"
            )
        require_weight("shrinkage", self.shrinkage)
        require_weight("image_weight", self.image_weight)

    def fit(self, reference: Reference) -> FittedDetector:
        """Compute the moments of all classes once; a run is a choice among them."""
        reference.require(self.name, "images", "vocabulary", "search")
        return _FittedBliss(self, reference)


class _FittedBliss(FittedDetector):
    def __init__(self, settings: Bliss, reference: Reference) -> None:
        super().__init__(settings.name, reference)
        self._lam = settings.lam
        self._weights = (settings.shrinkage, settings.image_weight)
        self._k = settings.k or reference.scorer_with(*self._weights).k

    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        inner = block.internal_scores(*self._weights)
        total = inner + self._lam * block.external_scores(self._k, self._weights[0])
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
        self._mu, self._sigma = reference.calibration.label_statistics()

    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        scores = (self._mu - block.class_similarities) / self._sigma
        return np.stack([scores[:, list(run)].min(axis=1) for run in runs])
