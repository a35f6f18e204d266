"""Calibration: what BLISS needs to know of the images of the normal classes.

A calibration keeps every class's name, text embedding and image moments. The mean and deviation of
the similarities to any text follow from the moments, so calibrating needs no vocabulary, and the
matrix of similarities between images and vocabulary never exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.files import (
    StoredCalibration,
    read_calibration,
    write_calibration,
)
from bliss_index.calibration.moments import ClassMoments
from bliss_index.errors import CalibrationError, CorruptStoreError, InvalidInputError, listed
from bliss_index.search.isolation import isolated
from bliss_index.storage.cache import local_copy
from bliss_index.store.identity import ModelIdentity

_LEAST_IMAGES = 2
_LEAST_VARIANCE = 1e-12


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

    Raises
    ------
    CalibrationError
        A class has fewer than two images, or all of its images are equal: its deviations would
        be zero.
    """

    classes: tuple[str, ...]
    class_embeddings: npt.NDArray[np.float64]
    moments: tuple[ClassMoments, ...]
    model: ModelIdentity | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

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
        _require_enough(self.classes, self.moments)

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
        return Calibration(
            tuple(self.classes[c] for c in chosen),
            self.class_embeddings[chosen],
            tuple(self.moments[c] for c in chosen),
            self.model,
            self.attributes,
        )

    @isolated
    def statistics(
        self, entries: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and deviation of the similarities of every class's images to some texts.

        Parameters
        ----------
        entries
            (m, d) text embeddings.

        Returns
        -------
        mu (m, C) and sigma (m, C), float64; sigma is the population deviation + 1e-8.
        """
        rows = np.asarray(entries, dtype=np.float64)  # once for all classes
        mu = np.empty((rows.shape[0], len(self.classes)))
        sigma = np.empty_like(mu)
        for c, moments in enumerate(self.moments):
            mu[:, c], sigma[:, c] = moments.statistics(rows)
        return mu, sigma

    @isolated
    def label_statistics(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and deviation of each class's images on the class's own text.

        Returns
        -------
        mu (C,) and sigma (C,), float64.
        """
        pairs = [
            moments.statistics(text[None, :])
            for moments, text in zip(self.moments, self.class_embeddings, strict=True)
        ]
        return np.array([mu[0] for mu, _ in pairs]), np.array([sigma[0] for _, sigma in pairs])

    @property
    def content_hash(self) -> str:
        """SHA-256 over the classes, their text embeddings, their moments and the model."""
        digest = hashlib.sha256()
        model = None if self.model is None else self.model.to_json()
        digest.update(json.dumps([model, self.classes], sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.class_embeddings).tobytes())
        for moments in self.moments:
            spread = moments.scatter if moments.images is None else moments.images
            digest.update(str(moments.count).encode())
            for array in (moments.mean, spread):
                digest.update(np.ascontiguousarray(array).tobytes())
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
            self.classes, self.class_embeddings, self.moments, self.model, self.attributes
        )
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
        stored = read_calibration(local_copy(path))
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

    Raises
    ------
    InvalidInputError
        Shapes or class numbers do not fit.
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
    return Calibration(names, texts, tuple(moments), model, dict(attributes or {}))


def _require_enough(classes: Sequence[str], moments: Sequence[ClassMoments]) -> None:
    few = [
        f"{name!r} ({m.count})"
        for name, m in zip(classes, moments, strict=True)
        if m.count < _LEAST_IMAGES
    ]
    if few:
        raise CalibrationError(
            f"{len(few)} of {len(classes)} classes have fewer than {_LEAST_IMAGES} calibration "
            f"images: {listed(few)}. Their deviations would be zero; add images of these classes, "
            "or leave the classes out."
        )
    for name, m in zip(classes, moments, strict=True):
        if m.variance < _LEAST_VARIANCE:
            raise CalibrationError(
                f"the {m.count} calibration images of class {name!r} are all the same (variance "
                f"{m.variance:.1e}), its deviations would be zero; add different images, or leave "
                "the class out."
            )
