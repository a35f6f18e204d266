"""Mean and covariance of the images of one class, in one pass and mergeable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.variances import similarity_sums
from bliss_index.errors import InvalidInputError
from bliss_index.search.isolation import isolated
from bliss_index.search.sharded import Matrix

SIGMA_FLOOR = 1e-8
LEAST_VARIANCE = 1e-12
"""Below this the images of a class count as all the same."""
_BLOCK_ROWS = 4096


@dataclass(frozen=True, eq=False)
class ClassMoments:
    """Count, mean and spread of the embeddings of a class, in float64.

    Attributes
    ----------
    count
        Number of images n.
    mean
        (d,) their mean.
    scatter
        (d, d) sum of (x - mean)(x - mean)'; None for a class of fewer than d images.
    images
        (n, d) the images themselves, for such a class; None otherwise.
    """

    count: int
    mean: npt.NDArray[np.float64]
    scatter: npt.NDArray[np.float64] | None = None
    images: npt.NDArray[np.float64] | None = None

    @classmethod
    def empty(cls, dim: int) -> ClassMoments:
        """Moments of no images."""
        return cls(0, np.zeros(dim), images=np.zeros((0, dim)))

    @classmethod
    @isolated
    def of(cls, images: npt.NDArray[Any]) -> ClassMoments:
        """Moments of (n, d) images."""
        total = cls.empty(images.shape[1])
        for start in range(0, images.shape[0], _BLOCK_ROWS):
            total = total.merge(cls._of_block(images[start : start + _BLOCK_ROWS]))
        return total

    @classmethod
    def _of_block(cls, images: npt.NDArray[Any]) -> ClassMoments:
        rows = np.asarray(images, dtype=np.float64)
        mean = rows.mean(axis=0)
        if rows.shape[0] < rows.shape[1]:
            return cls(rows.shape[0], mean, images=rows)
        return cls(rows.shape[0], mean, scatter=_scatter(rows - mean))

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.mean.size)

    @property
    def variance(self) -> float:
        """Mean squared distance of an image from the mean: the trace of the covariance."""
        if self.count == 0:
            return 0.0
        if self.images is not None:
            return float(((self.images - self.mean) ** 2).sum() / self.count)
        return float(np.trace(self._scatter()) / self.count)

    @isolated
    def merge(self, other: ClassMoments) -> ClassMoments:
        """Moments of both sets of images together (Chan, Golub and LeVeque, 1979).

        Parameters
        ----------
        other
            Moments of other images, of the same dimension.
        """
        if other.dim != self.dim:
            raise InvalidInputError(
                f"moments of dimension {self.dim} and {other.dim} cannot be merged"
            )
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = self.count + other.count
        if self.images is not None and other.images is not None and count < self.dim:
            images = np.concatenate([self.images, other.images])
            return ClassMoments(count, images.mean(axis=0), images=images)
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        between = self.count * other.count / count
        scatter = self._scatter() + other._scatter() + between * np.outer(difference, difference)
        return ClassMoments(count, mean, scatter=scatter)

    @isolated
    def statistics(
        self, entries: npt.NDArray[Any], *, shrinkage: float = 0.0, prior_variance: float = 0.0
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and deviation of the similarities <x, t> over the class's images.

        mu = <t, mean> and sigma = sqrt(t' Cov t) + 1e-8, where Cov is the population covariance.
        With a shrinkage N, sigma = sqrt((n t' Cov t + N tau^2) / (n + N)) + 1e-8.

        Parameters
        ----------
        entries : (m, d) array
            Text embeddings t.
        shrinkage : float, default=0
            N, the weight of `prior_variance` in images, at least 0.
        prior_variance : float, default=0
            tau^2, the variance to shrink towards; used where N > 0.

        Returns
        -------
        mu (m,) and sigma (m,), float64. An entry's values do not depend on the others'.
        """
        mu, variance = self._similarities(entries)
        variance = shrunken(variance, self.count, shrinkage, prior_variance)
        return mu, np.sqrt(variance) + SIGMA_FLOOR

    def variance_on(self, text: npt.NDArray[np.float64]) -> float:
        """Return the population variance of the similarities to one vector (d,)."""
        return float(self._similarities(text[None, :])[1][0])

    def _similarities(
        self, texts: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and population variance of the similarities to (m, d) texts, (m,) each."""
        mu, squares = similarity_sums([self], texts)
        return mu[:, 0], np.maximum(squares[:, 0], 0.0) / self.count

    def mean_variance(self, second_moment: npt.NDArray[np.float64]) -> float:
        """Return the variance of the similarities to a text, on average over many texts.

        The mean over texts t of t' Cov t is the trace of Cov M, with M the mean of t t'.

        Parameters
        ----------
        second_moment : (d, d) array
            M, of :func:`second_moment`.
        """
        if self.count == 0:
            return 0.0
        spread = self.spread()
        if self.images is None:
            return float((spread * second_moment).sum() / self.count)
        return float((spread * (second_moment @ spread)).sum() / self.count)

    def spread(self) -> npt.NDArray[np.float64]:
        """Return what deviations are computed from.

        The scatter (d, d); for a small class, which keeps its images, the centred images (d, n).
        With a text t, the sum of <x - mean, t>^2 over the images is t' scatter t in the first case,
        and the sum of the squares of t' images in the second.
        """
        return self._scatter() if self.images is None else (self.images - self.mean).T

    def _scatter(self) -> npt.NDArray[np.float64]:
        if self.scatter is not None:
            return self.scatter
        if self.images is None:
            raise InvalidInputError("moments hold neither images nor their scatter")
        return _scatter(self.images - self.mean)


def shrunken(variance: Any, count: Any, shrinkage: float, prior_variance: Any) -> Any:
    """Return (n variance + N tau^2) / (n + N); the variance itself, bit for bit, where N is 0.

    Parameters
    ----------
    variance : array or tensor of float64
        Population variances over n images.
    count : int or array of int
        n, at least 1.
    shrinkage : float
        N.
    prior_variance : float or array of float64
        tau^2.
    """
    if not shrinkage:
        return variance
    return (count * variance + shrinkage * prior_variance) / (count + shrinkage)


def with_pooled(
    moments: Sequence[ClassMoments],
    variances: npt.NDArray[np.float64],
    second: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Give classes whose images do not differ the mean variance of the others.

    Parameters
    ----------
    moments
        Of C classes.
    variances
        (C,) their mean variances over some texts.
    second
        (d, d) :func:`second_moment` of these texts.

    Returns
    -------
    (C,) variances. A class whose images do not differ, such as a class of one image, takes that of
    the classes whose images do, in proportion to their images; where no class's do, that of the
    images of all classes around their common mean.
    """
    differ = np.array([m.variance >= LEAST_VARIANCE for m in moments])
    if differ.all():
        return variances
    result = variances.copy()
    if differ.any():
        counts = np.array([m.count for m in moments])[differ]
        result[~differ] = (counts * variances[differ]).sum() / counts.sum()
    else:
        result[:] = merged(moments).mean_variance(second)
    return result


def merged(moments: Sequence[ClassMoments]) -> ClassMoments:
    """Moments of the images of all classes together."""
    return reduce(ClassMoments.merge, moments)


def second_moment(texts: Matrix) -> npt.NDArray[np.float64]:
    """Return the (d, d) mean of t t' over (m, d) texts t, float64, in one pass.

    Costs m d^2 operations and little memory, however many texts there are.
    """
    total = np.zeros((texts.shape[1], texts.shape[1]))
    for start in range(0, texts.shape[0], _BLOCK_ROWS):
        block = np.asarray(texts[start : start + _BLOCK_ROWS], dtype=np.float64)
        total += block.T @ block
    return np.asarray(total / max(1, texts.shape[0]))


def _scatter(centred: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    product = centred.T @ centred
    # Symmetric to the last bit, so that half of it can be stored.
    return np.asarray(np.triu(product) + np.triu(product, 1).T)
