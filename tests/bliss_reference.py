"""BLISS written straight from the paper's formulas in float64, and as the authors' scripts do it.

Slow on purpose: no moments, no tables, no bounds. Everything else is compared with this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReferenceScores:
    anomaly: np.ndarray
    nearest_class: np.ndarray
    internal: np.ndarray
    external: np.ndarray
    ids: np.ndarray


def shrunken_deviation(similarities, tau_squared, shrinkage):
    """Deviation (n, m) -> (m,) of a class's similarities, with the shrinkage of the issue."""
    n = len(similarities)
    variance = similarities.std(axis=0) ** 2
    return np.sqrt((n * variance + shrinkage * tau_squared) / (n + shrinkage)) + 1e-8


def mean_variances(vocabulary, calibration_images, labels, classes):
    """tau_c^2 of every class: np.var over its images, averaged over all entries.

    A class of one image takes the mean of the classes of several, weighed by their images; where
    all have one, all images together are one class.
    """
    similarity = calibration_images @ vocabulary.T
    counts = np.bincount(labels, minlength=classes)
    own = np.array([similarity[labels == c].var(axis=0).mean() for c in range(classes)])
    several = counts > 1
    if several.any():
        own[~several] = np.average(own[several], weights=counts[several])
    else:
        own[:] = similarity.var(axis=0).mean()
    return own


def reference_scores(
    images, vocabulary, class_texts, calibration_images, labels, *, k, lam, shrinkage=0
):
    """S(x) of every image, from full N x W matrices and np.std, class by class."""
    images, vocabulary, class_texts, calibration_images = (
        np.asarray(a, dtype=np.float64)
        for a in (images, vocabulary, class_texts, calibration_images)
    )
    labels = np.asarray(labels)
    similarity = images @ vocabulary.T
    ids = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    top = np.take_along_axis(similarity, ids, axis=1)
    internal = np.empty((len(images), len(class_texts)))
    external = np.empty_like(internal)
    tau = np.zeros(len(class_texts))
    if shrinkage:
        tau = mean_variances(vocabulary, calibration_images, labels, len(class_texts))
    for c, text in enumerate(class_texts):
        own = calibration_images[labels == c]
        on_label = own @ text
        on_label_deviation = shrunken_deviation(on_label, tau[c], shrinkage)
        internal[:, c] = -((images @ text) - on_label.mean()) / on_label_deviation
        on_entries = own @ vocabulary.T
        mean = on_entries.mean(axis=0)
        deviation = shrunken_deviation(on_entries, tau[c], shrinkage)
        external[:, c] = ((top - mean[ids]) / deviation[ids]).mean(axis=1)
    total = internal + lam * external
    winner = total.argmin(axis=1)
    rows = np.arange(len(images))
    return ReferenceScores(
        total[rows, winner], winner, internal[rows, winner], external[rows, winner], ids
    )


def authors_scheme(images, vocabulary, class_texts, calibration_images, labels, *, k, lam):
    """The order of operations of the authors' scripts: normalise, sort the whole matrix, average.

    Every class has its own normalised N x W matrix; entries are put in the order of the raw
    similarities, and the first k are averaged.
    """
    images = np.asarray(images, dtype=np.float64)
    vocabulary = np.asarray(vocabulary, dtype=np.float64)
    raw = images @ vocabulary.T
    order = np.argsort(-raw, axis=1, kind="stable")
    scores = []
    for c, text in enumerate(np.asarray(class_texts, dtype=np.float64)):
        own = np.asarray(calibration_images, dtype=np.float64)[np.asarray(labels) == c]
        normal = own @ vocabulary.T
        normalised = (raw - normal.mean(0)) / (normal.std(0) + 1e-8)
        external = np.take_along_axis(normalised, order, axis=1)[:, :k].mean(1)
        label = own @ text
        internal = (images @ text - label.mean()) / (label.std() + 1e-8)
        scores.append(-internal + lam * external)
    return np.min(scores, axis=0)


def unit(rows, dtype=np.float64):
    rows = np.asarray(rows, dtype=np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def clip_like(rng, images, entries, classes, dim=32, dtype=np.float32):
    """Images, vocabulary, class texts, labels: two clusters far apart, classes within the first."""
    image_centre, text_centre = rng.normal(size=(2, dim)) * 1.5
    centres = image_centre + rng.normal(size=(classes, dim)) * 0.6
    labels = rng.integers(0, classes, images)
    rows = unit(centres[labels] + rng.normal(size=(images, dim)) * 0.5, dtype)
    vocabulary = unit(text_centre + rng.normal(size=(entries, dim)), dtype)
    texts = unit(text_centre + rng.normal(size=(classes, dim)), dtype)
    return rows, vocabulary, texts, labels
