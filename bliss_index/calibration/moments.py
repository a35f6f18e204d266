"""Mean and covariance of the images of one class, in one pass and mergeable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.search.isolation import isolated

SIGMA_FLOOR = 1e-8
_BLOCK_ROWS = 4096
_ENTRY_BLOCK = 256


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
        self, entries: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and deviation of the similarities <x, t> over the class's images.

        mu = <t, mean> and sigma = sqrt(t' Cov t) + 1e-8, where Cov is the population covariance.

        Parameters
        ----------
        entries
            (m, d) text embeddings t.

        Returns
        -------
        mu (m,) and sigma (m,), float64. An entry's values do not depend on the others'.
        """
        rows = np.asarray(entries, dtype=np.float64)
        m = rows.shape[0]
        mu, sigma = np.empty(m), np.empty(m)
        few = self.images
        spread = self.spread()
        for start in range(0, m, _ENTRY_BLOCK):
            # Blocks of one size: a matrix product's last bits may depend on its shape.
            block = np.zeros((_ENTRY_BLOCK, self.dim))
            part = rows[start : start + _ENTRY_BLOCK]
            block[: part.shape[0]] = part
            product = block @ spread
            other = block if few is None else product
            square = np.einsum("ij,ij->i", product, other)[: part.shape[0]]
            mu[start : start + _ENTRY_BLOCK] = (block @ self.mean)[: part.shape[0]]
            sigma[start : start + _ENTRY_BLOCK] = np.sqrt(np.maximum(square, 0.0) / self.count)
        return mu, sigma + SIGMA_FLOOR

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


def _scatter(centred: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    product = centred.T @ centred
    # Symmetric to the last bit, so that half of it can be stored.
    return np.asarray(np.triu(product) + np.triu(product, 1).T)
