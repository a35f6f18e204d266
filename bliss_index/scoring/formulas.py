"""BLISS scores: the formulas of Goodge, Hooi and Ng (BMVC 2024, arXiv 2407.17083), on arrays.

For a unit image embedding x, normal classes c with text embeddings t_c, and the k entries w of the
vocabulary most similar to x:

    I_c(x) = -(<x, t_c> - mu_c) / sigma_c
    E_c(x) = 1/k sum_w (<x, t_w> - mu_cw) / sigma_cw
    S(x)   = min_c [ I_c(x) + lambda E_c(x) ]            higher = more anomalous

mu and sigma are mean and population deviation (+ 1e-8) of the same similarity over the images of
class c. The k entries are chosen by raw similarity, once per image. A calibration may shrink its
variances, and may add an image term to every I_c (:class:`bliss_index.calibration.Calibration`); by
default it does neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import Calibration
from bliss_index.search.isolation import isolated


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of n images.

    Attributes
    ----------
    anomaly
        (n,) float64 S, higher = more anomalous.
    nearest_class
        (n,) int64, the class that attains the minimum; of equal ones the first.
    internal, external
        (n,) float64, I and E of that class: anomaly = internal + lambda * external. With an image
        term of weight W internal is I + W J.
    similarities, ids
        (n, k) float32 and int64: the entries most similar to each image.
    """

    anomaly: npt.NDArray[np.float64]
    nearest_class: npt.NDArray[np.int64]
    internal: npt.NDArray[np.float64]
    external: npt.NDArray[np.float64]
    similarities: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]


@isolated
def raw_scores(images: npt.NDArray[Any], calibration: Calibration) -> npt.NDArray[np.float64]:
    """Similarity to the nearest label without any correction, negated: (n,) float64.

    -max_c <x, t_c>, for comparison.
    """
    similarity = np.asarray(images, dtype=np.float64) @ calibration.class_embeddings.T
    return np.asarray(-similarity.max(axis=1))


@isolated
def label_scores(
    images: npt.NDArray[Any],
    calibration: Calibration,
    prior: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """The label term alone: min_c I_c(x), (n,) float64, for comparison.

    `prior` is that of :meth:`bliss_index.calibration.Calibration.label_statistics`.
    """
    mu, sigma = calibration.label_statistics(prior)
    similarity = np.asarray(images, dtype=np.float64) @ calibration.class_embeddings.T
    return np.asarray(((mu - similarity) / sigma).min(axis=1))
