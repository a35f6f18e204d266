"""Every detector once more, from its formula, in float64 and without a thought for speed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from bliss_reference import reference_scores


@dataclass(frozen=True)
class DetectorData:
    """Unit embeddings: normal images with their classes, images to score, classes, vocabulary."""

    normal: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    texts: np.ndarray
    vocabulary: np.ndarray
    k: int

    def of_classes(self, run) -> tuple[np.ndarray, np.ndarray]:
        """The normal images of some classes, and their classes numbered in the run's order."""
        chosen = np.isin(self.labels, run)
        position = {c: n for n, c in enumerate(run)}
        return self.normal[chosen], np.array([position[c] for c in self.labels[chosen]])

    def wide(self) -> DetectorData:
        """The same in float64."""
        arrays = (self.normal, self.test, self.texts, self.vocabulary)
        normal, test, texts, vocabulary = (array.astype(np.float64) for array in arrays)
        return DetectorData(normal, self.labels, test, texts, vocabulary, self.k)


def expected_bliss(data, run):
    images, own = data.of_classes(run)
    return reference_scores(
        data.test, data.vocabulary, data.texts[list(run)], images, own, k=data.k, lam=0.5
    ).anomaly


def expected_label(data, run):
    scores = []
    for c in run:
        own = data.normal[data.labels == c] @ data.texts[c]
        scores.append(-(data.test @ data.texts[c] - own.mean()) / (own.std() + 1e-8))
    return np.min(scores, axis=0)


def expected_raw(data, run):
    return -(data.test @ data.texts[list(run)].T).max(1)


def expected_mcm(data, run, temperature=1.0):
    exponentials = np.exp(data.test @ data.texts[list(run)].T / temperature)
    return 1 - exponentials.max(1) / exponentials.sum(1)


def expected_neglabel(data, run, groups, temperature=0.01):
    """Of groups (g, size) of negatives; which entries these are, is asked elsewhere."""
    positive = data.test @ data.texts[list(run)].T / temperature
    shares = []
    for group in groups:
        negative = data.test @ data.vocabulary[group].T / temperature
        top = np.maximum(positive.max(1), negative.max(1))[:, None]
        one, other = np.exp(positive - top).sum(1), np.exp(negative - top).sum(1)
        shares.append(other / (one + other))
    return np.mean(shares, axis=0)


def expected_knn(data, run, neighbours=5):
    known, _ = data.of_classes(run)
    return 1 - np.sort(data.test @ known.T, axis=1)[:, -neighbours]


EXPECTED = {
    "bliss": expected_bliss, "label": expected_label, "raw": expected_raw, "mcm": expected_mcm,
    "knn": expected_knn,
}  # fmt: skip
