"""Calibration: what BLISS needs to know of the images of the normal classes.

A calibration keeps every class's name, text embedding and image moments. The mean and deviation of
the similarities to any text follow from the moments, so calibrating needs no vocabulary, and the
matrix of similarities between images and vocabulary never exists.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.files import (
    DEFAULT_LAM,
    StoredCalibration,
    read_calibration,
    write_calibration,
)
from bliss_index.calibration.image_term import ImageTerm, image_term
from bliss_index.calibration.moments import (
    LEAST_VARIANCE,
    SIGMA_FLOOR,
    ClassMoments,
    merged,
    second_moment,
    shrunken,
    with_pooled,
)
from bliss_index.calibration.variances import similarity_sums
from bliss_index.errors import CalibrationError, CorruptStoreError, InvalidInputError, listed
from bliss_index.search.inputs import require_real
from bliss_index.search.isolation import isolated
from bliss_index.search.sharded import Matrix
from bliss_index.storage.cache import local_copy
from bliss_index.storage.directory import LocalDirectory
from bliss_index.store.identity import ModelIdentity

_LEAST_IMAGES = 2


@dataclass(frozen=True, eq=False)
class Calibration:
    """The normal classes.

    Attributes
    ----------
    classes
        C names, all different.
    class_embeddings
        (C, d) float64, text embeddings t_c of the class prompts, unit norm.
    moments
        C moments of the classes' images.
    model
        The model of all embeddings; None if it is not known.
    attributes
        How it was made: JSON-ready.
    shrinkage
        N, at least 0: how many images the mean variance tau^2 of a class weighs. The variance of a
        class of n images becomes (n sigma^2 + N tau^2) / (n + N), for every text; 0 leaves it as
        it is, which is the paper's. See :meth:`mean_variances`.
    image_weight
        W, at least 0: the weight of the image term, by which the class's mean image has a say
        beside its text; see :mod:`bliss_index.calibration.image_term`. 0 is the paper's.
    lam
        The weight lambda of the external score that scores with this calibration take unless told
        otherwise.

    Raises
    ------
    CalibrationError
        A class has fewer than two images, or all of its images are equal: its deviations would
        be zero. With a shrinkage one image is enough, as long as there are different images in
        all. An image term without shrinkage needs three.
    """

    classes: tuple[str, ...]
    class_embeddings: npt.NDArray[np.float64]
    moments: tuple[ClassMoments, ...]
    model: ModelIdentity | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    shrinkage: float = 0.0
    image_weight: float = 0.0
    lam: float = DEFAULT_LAM

    def __post_init__(self) -> None:
        shape = (len(self.classes), self.class_embeddings.shape[-1])
        if not self.classes or self.class_embeddings.shape != shape:
            raise InvalidInputError(
                f"{len(self.classes)} classes with embeddings of shape "
                f"{self.class_embeddings.shape}: one row per class is needed, at least one"
            )
        if len(set(self.classes)) != len(self.classes):
            twice = next(c for c in self.classes if self.classes.count(c) > 1)
            raise InvalidInputError(f"class {twice!r} is listed more than once")
        if len(self.moments) != len(self.classes):
            raise InvalidInputError(
                f"{len(self.moments)} sets of moments for {len(self.classes)} classes"
            )
        require_weight("shrinkage", self.shrinkage)
        require_weight("image_weight", self.image_weight)
        require_weight("lam", self.lam)
        _require_enough(self.classes, self.moments, self.shrinkage)
        if self.image_weight and not self.shrinkage:
            self.image_term()  # refused here, where it can be cured

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.class_embeddings.shape[1])

    @property
    def images(self) -> int:
        """Calibration images of all classes."""
        return sum(moments.count for moments in self.moments)

    def select(self, classes: Sequence[int]) -> Calibration:
        """Return the calibration of some of the classes, by position."""
        chosen = list(classes)
        return replace(
            self,
            classes=tuple(self.classes[c] for c in chosen),
            class_embeddings=self.class_embeddings[chosen],
            moments=tuple(self.moments[c] for c in chosen),
        )

    @isolated
    def mean_variances(self, vocabulary: Matrix) -> npt.NDArray[np.float64]:
        """Return tau_c^2, each class's mean variance over a vocabulary: what variances shrink to.

        tau_c^2 is the mean over all entries w of sigma_cw^2. A class whose images do not differ,
        such as a class of one image, has none of its own. It takes that of the classes whose
        images do, in proportion to their images; where no class's do, that of the images of all
        classes around their common mean.

        Parameters
        ----------
        vocabulary : (W, d) array
            All entries that scores are made with; W d^2 operations.

        Returns
        -------
        (C,) float64. It serves label terms as well: the texts of the classes at hand may be one
        only, and then their mean variance is the variance that is to be shrunk.
        """
        moment = second_moment(vocabulary)
        own = np.array([moments.mean_variance(moment) for moments in self.moments])
        return with_pooled(self.moments, own, moment)

    def prior_of(self, vocabulary: Matrix) -> npt.NDArray[np.float64] | None:
        """Return what :meth:`statistics` needs besides entries: None where shrinkage is 0."""
        return self.mean_variances(vocabulary) if self.shrinkage else None

    @isolated
    def statistics(
        self,
        entries: npt.NDArray[Any],
        prior: npt.NDArray[np.float64] | None = None,
        *,
        threads: int | None = None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and deviation of the similarities of every class's images to some texts.

        Parameters
        ----------
        entries : (m, d) array
            Text embeddings.
        prior : (C,) array, default=None
            :meth:`mean_variances` of the whole vocabulary; needed where `shrinkage` is not 0.
        threads : int, default=None
            Threads of the compiled code; by default BLISS_INDEX_THREADS, else all usable
            processors. They change no result.

        Returns
        -------
        mu (m, C) and sigma (m, C), float64; sigma is the population deviation, shrunken, + 1e-8.

        Raises
        ------
        InvalidInputError
            The prior is missing.
        """
        towards = self._towards(prior)
        mu, squares = similarity_sums(self.moments, entries, threads=threads)
        counts = np.array([moments.count for moments in self.moments])
        variance = shrunken(np.maximum(squares, 0.0) / counts, counts, self.shrinkage, towards)
        return mu, np.sqrt(variance) + SIGMA_FLOOR

    @isolated
    def label_statistics(
        self, prior: npt.NDArray[np.float64] | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and deviation of each class's images on the class's own text.

        Parameters
        ----------
        prior
            As for :meth:`statistics`.

        Returns
        -------
        mu (C,) and sigma (C,), float64.
        """
        towards = self._towards(prior)
        pairs = [
            moments.statistics(text[None, :], shrinkage=self.shrinkage, prior_variance=tau)
            for moments, text, tau in zip(
                self.moments, self.class_embeddings, towards.tolist(), strict=True
            )
        ]
        return np.array([mu[0] for mu, _ in pairs]), np.array([sigma[0] for _, sigma in pairs])

    @isolated
    def class_terms(
        self, prior: npt.NDArray[np.float64] | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return what the internal scores are computed from: (mu - <x, v>) / sigma.

        Without an image term v are the texts and this is the label term I_c. With one it is
        I_c + W J_c, whose two divisions are carried out beforehand: sigma is 1.

        Parameters
        ----------
        prior
            As for :meth:`statistics`.

        Returns
        -------
        v (C, d), mu (C,) and sigma (C,), float64.
        """
        mu, sigma = self.label_statistics(prior)
        if not self.image_weight:
            return self.class_embeddings, mu, sigma
        own = self.image_term(prior)
        rate = self.image_weight / own.sigma
        vectors = self.class_embeddings / sigma[:, None] + own.directions * rate[:, None]
        return vectors, mu / sigma + own.mu * rate, np.ones_like(mu)

    def image_term(self, prior: npt.NDArray[np.float64] | None = None) -> ImageTerm:
        """Return the image term of every class, whatever its weight.

        Parameters
        ----------
        prior
            As for :meth:`statistics`.
        """
        return image_term(self.classes, self.moments, shrinkage=self.shrinkage, prior=prior)

    def _towards(self, prior: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
        """Return the (C,) variances to shrink towards; zeros where nothing is shrunk."""
        if not self.shrinkage:
            return np.zeros(len(self.classes))
        if prior is None:
            raise InvalidInputError(
                f"deviations with shrinkage {self.shrinkage} need the mean variances of the "
                "classes: pass prior=calibration.mean_variances(vocabulary)"
            )
        return prior

    def lam_for(self, asked: float | None) -> float:
        """Return the lambda to score with: the one that was asked for, else the calibration's."""
        return float(self.lam if asked is None else asked)

    @property
    def content_hash(self) -> str:
        """SHA-256 over the classes, their texts' embeddings, moments, the model and the weights.

        These are the shrinkage and the image weight. lambda is none of them: a score's settings
        name it.
        """
        digest = hashlib.sha256()
        model = None if self.model is None else self.model.to_json()
        digest.update(json.dumps([model, self.classes], sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.class_embeddings).tobytes())
        for moments in self.moments:
            spread = moments.scatter if moments.images is None else moments.images
            digest.update(str(moments.count).encode())
            for array in (moments.mean, spread):
                digest.update(np.ascontiguousarray(array).tobytes())
        if self.shrinkage:
            digest.update(f"shrinkage {self.shrinkage!r}".encode())
        if self.image_weight:
            digest.update(f"image weight {self.image_weight!r}".encode())
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of the moments, or of the images of small classes."""
        arrays = [m.scatter if m.images is None else m.images for m in self.moments]
        return sum(array.nbytes for array in arrays if array is not None)

    def save(self, path: str | Path) -> None:
        """Write the calibration as a directory; see :mod:`bliss_index.calibration.files`.

        Raises
        ------
        OutputError
            The directory cannot be written.
        StoreError
            It holds something other than a calibration.
        """
        stored = StoredCalibration(
            self.classes, self.class_embeddings, self.moments, self.model, self.attributes,
            self.shrinkage, self.image_weight, self.lam,
        )  # fmt: skip
        write_calibration(stored, path)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration from its directory.

        Raises
        ------
        StoreError
            There is none.
        CorruptStoreError
            It is damaged, or was written by a newer version.
        """
        stored = read_calibration(LocalDirectory(local_copy(path)))
        try:
            return cls(*stored)
        except InvalidInputError as error:
            raise CorruptStoreError(f"{path} is damaged: {error}") from error


@isolated
def calibrate(
    batches: Iterable[tuple[npt.NDArray[Any], npt.NDArray[np.integer[Any]]]],
    class_embeddings: npt.NDArray[Any],
    classes: Sequence[str] | None = None,
    *,
    model: ModelIdentity | None = None,
    attributes: Mapping[str, Any] | None = None,
    shrinkage: float = 0.0,
    image_weight: float = 0.0,
) -> Calibration:
    """Compute the moments of every class in one pass over labelled images.

    Parameters
    ----------
    batches
        Pairs of (n, d) unit image embeddings and (n,) class numbers 0..C-1; rows of class -1 are
        left out.
    class_embeddings
        (C, d) text embeddings of the classes.
    classes
        C names; by default "0", "1", ...
    model, attributes
        The model of all embeddings, and how the calibration is made, for the record.
    shrinkage : float, default=0
        N of :class:`Calibration`: (n sigma^2 + N tau^2) / (n + N) in place of sigma^2.
    image_weight : float, default=0
        W of :class:`Calibration`, the weight of the image term.

    Raises
    ------
    InvalidInputError
        Shapes, class numbers, the shrinkage or the weight do not fit.
    CalibrationError
        A class has too few images.
    """
    texts = np.asarray(class_embeddings, dtype=np.float64)
    if texts.ndim != 2 or texts.shape[0] < 1:
        raise InvalidInputError(f"class embeddings must be (classes, dim), got {texts.shape}")
    count, dim = texts.shape
    names = tuple(map(str, range(count))) if classes is None else tuple(classes)
    moments = [ClassMoments.empty(dim) for _ in range(count)]
    for images, labels in batches:
        if images.ndim != 2 or images.shape[1] != dim:
            raise InvalidInputError(
                f"images have shape {images.shape}, class embeddings dimension {dim}; "
                "were they encoded by the same model?"
            )
        if labels.shape != (images.shape[0],):
            raise InvalidInputError(
                f"{labels.size} labels for {images.shape[0]} images; one per image is needed"
            )
        if labels.size and (labels.min() < -1 or labels.max() >= count):
            raise InvalidInputError(
                f"labels lie between {labels.min()} and {labels.max()}, there are {count} classes "
                f"(0 to {count - 1})"
            )
        for c in np.unique(labels[labels >= 0]):
            moments[c] = moments[c].merge(ClassMoments.of(images[labels == c]))
    return Calibration(
        names, texts, tuple(moments), model, dict(attributes or {}), shrinkage, image_weight
    )


def require_weight(name: str, value: Any) -> None:
    """Raise InvalidInputError, naming it, unless a weight is a finite number of at least 0."""
    require_real(
        value, name, "be a finite number of at least 0", lambda number: 0 <= number < math.inf
    )


def _require_enough(
    classes: Sequence[str], moments: Sequence[ClassMoments], shrinkage: float
) -> None:
    least = 1 if shrinkage else _LEAST_IMAGES
    few = [f"{name!r} ({m.count})" for name, m in zip(classes, moments, strict=True)
           if m.count < least]  # fmt: skip
    if few:
        if shrinkage:
            fewer, remedy = "no calibration images", "Add images"
        else:
            fewer = f"fewer than {_LEAST_IMAGES} calibration images"
            remedy = (
                "Their deviations would be zero; set a shrinkage (calibrate --shrinkage 10), for "
                "which one image is enough, add images"
            )
        raise CalibrationError(
            f"{len(few)} of {len(classes)} classes have {fewer}: {listed(few)}. {remedy} of these "
            "classes, or leave the classes out."
        )
    if shrinkage:
        if merged(moments).variance < LEAST_VARIANCE:
            raise CalibrationError(
                f"all {sum(m.count for m in moments)} calibration images are the same, so nothing "
                f"says how much images of {listed([repr(name) for name in classes])} differ; add "
                "different images"
            )
        return
    for name, m in zip(classes, moments, strict=True):
        if m.variance < LEAST_VARIANCE:
            raise CalibrationError(
                f"the {m.count} calibration images of class {name!r} are all the same (variance "
                f"{m.variance:.1e}), its deviations would be zero; add different images, or leave "
                "the class out."
            )
