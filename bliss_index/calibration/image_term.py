"""The image term: what the mean image of a class says of an image, as a second text would.

With m the mean of the n images of class c, u = m / |m| and any image x:

    J_c(x) = -(<x, u_c> - mu_c) / sigma_c

mu and sigma are those of the class's images, each compared with the mean of the others, since a
new image is no part of the mean either. With q the mean of their squared norms (1 for unit rows),
the mean of <x_i, (n m - x_i) / (n - 1)> over the images is (n |m|^2 - q) / (n - 1), and for unit
rows its deviation is n / (n - 1) times that of <x_i, m>; both are divided by |m|. So the moments
suffice, and no image is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.moments import (
    LEAST_VARIANCE,
    SIGMA_FLOOR,
    ClassMoments,
    merged,
    second_moment,
    shrunken,
    with_pooled,
)
from bliss_index.errors import CalibrationError


class ImageTerm(NamedTuple):
    """What the term of every class is computed from.

    Attributes
    ----------
    directions
        (C, d) u_c, unit norm.
    mu, sigma
        (C,) mean and deviation of the similarities to it, float64.
    """

    directions: npt.NDArray[np.float64]
    mu: npt.NDArray[np.float64]
    sigma: npt.NDArray[np.float64]

    def scores(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return J_c of (n, d) images for every class: (n, C) float64."""
        return np.asarray((self.mu - images.astype(np.float64) @ self.directions.T) / self.sigma)


def image_term(
    classes: Sequence[str],
    moments: Sequence[ClassMoments],
    *,
    shrinkage: float = 0.0,
    prior: npt.NDArray[np.float64] | None = None,
) -> ImageTerm:
    """Compute the image term of every class from its moments.

    A class of one image has no others to be compared with: its mu is that of the other classes, in
    proportion to their images. With a shrinkage N the variance of a class of n images becomes
    (n sigma^2 + N tau^2) / (n + N), tau^2 being its mean variance over the mean images of the other
    classes; where there is one class only, that over the vocabulary.

    Parameters
    ----------
    classes, moments
        C names and moments.
    shrinkage : float, default=0
        N, in images.
    prior : (C,) array, default=None
        :meth:`bliss_index.calibration.Calibration.mean_variances`, where N is not 0.

    Raises
    ------
    CalibrationError
        The mean of a class's images has no direction, or the images are all equally similar to it,
        as any two images are, and nothing is shrunk.
    """
    counts = np.array([m.count for m in moments])
    lengths = np.array([float(np.linalg.norm(m.mean)) for m in moments])
    if (lengths < LEAST_VARIANCE).any():
        name = classes[int(lengths.argmin())]
        raise CalibrationError(
            f"the images of class {name!r} have a mean of length {lengths.min():.1e}, which has no "
            "direction for an image term; leave the class out, or set image_weight to 0"
        )
    directions = np.stack([m.mean for m in moments]) / lengths[:, None]
    several = counts > 1
    others = np.maximum(counts - 1, 1)
    alike = np.array([_agreement(m) if m.count > 1 else 0.0 for m in moments])
    if several.any():
        alike[~several] = (counts * alike)[several].sum() / counts[several].sum()
    else:
        alike[:] = _agreement(merged(moments))
    own = np.array([m.variance_on(u) for m, u in zip(moments, directions, strict=True)])
    variance = own * np.where(several, counts / others, 1.0) ** 2
    if shrinkage:
        one = len(moments) == 1
        towards = prior if one else _variance_elsewhere(moments, directions, own)
        variance = shrunken(variance, counts, shrinkage, towards)
    if (variance < LEAST_VARIANCE).any():
        c = int(variance.argmin())
        raise CalibrationError(
            f"the {counts[c]} calibration images of class {classes[c]!r} are all equally similar "
            f"to their mean (variance {variance[c]:.1e}; any two images are), so its image term "
            "would have no deviation; set a shrinkage (calibrate --shrinkage 10), add images, or "
            "leave the class out"
        )
    return ImageTerm(directions, alike / lengths, np.sqrt(variance) + SIGMA_FLOOR)


def _agreement(m: ClassMoments) -> float:
    """Mean similarity of an image and the mean of the others."""
    square = float(m.mean @ m.mean)
    return (m.count * square - (m.variance + square)) / (m.count - 1)


def _variance_elsewhere(
    moments: Sequence[ClassMoments],
    directions: npt.NDArray[np.float64],
    own: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Mean variance of every class's images over the mean images of the other classes."""
    count = len(moments)
    second = second_moment(directions)
    everywhere = np.array([m.mean_variance(second) for m in moments])
    elsewhere = (count * everywhere - own) / (count - 1)
    return with_pooled(moments, np.maximum(elsewhere, 0.0), second)
