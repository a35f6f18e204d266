"""What the detectors that are compared have in common.

A detector is fitted once on the embeddings of all classes, and then scores images against any
choice of normal classes. So the runs of a protocol share one search of the vocabulary and one set
of class statistics, and a run is a choice of columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import Calibration, calibrate
from bliss_index.errors import InvalidInputError
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search.protocol import TopKSearch

BLOCK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Reference:
    """What detectors are fitted on: the classes, and what is known of them.

    Attributes
    ----------
    class_embeddings
        (C, d) text embedding of every class, unit norm.
    images, labels
        (n, d) calibration images, unit norm, and their (n,) classes as numbers 0..C-1, or -1 for
        images to leave out; None for detectors that need no images.
    search
        The top-k search over ``vocabulary``; None for detectors that need no vocabulary.
    vocabulary
        (W, d) text embeddings of the entries, unit norm.

    Raises
    ------
    InvalidInputError
        Shapes do not fit each other, or a label is not a class.
    """

    class_embeddings: npt.NDArray[Any]
    images: npt.NDArray[Any] | None = None
    labels: npt.NDArray[Any] | None = None
    vocabulary: npt.NDArray[Any] | None = None
    search: TopKSearch | None = None
    class_rows: tuple[npt.NDArray[np.intp], ...] = field(init=False, repr=False)
    _scorers: dict[tuple[float, float], BlissScorer] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        if self.class_embeddings.ndim != 2 or self.class_embeddings.shape[0] < 1:
            raise InvalidInputError(
                f"class embeddings must be (classes, dim), got {self.class_embeddings.shape}"
            )
        for what, array in (("images", self.images), ("vocabulary", self.vocabulary)):
            if array is not None and (array.ndim != 2 or array.shape[1] != self.dim):
                raise InvalidInputError(
                    f"{what} have shape {array.shape}, class embeddings dimension {self.dim}"
                )
        if self.search is not None and self.search.dim != self.dim:
            raise InvalidInputError(
                f"the search has dimension {self.search.dim}, class embeddings {self.dim}"
            )
        rows: tuple[npt.NDArray[np.intp], ...] = ()
        if self.images is not None:
            rows = self._rows_of_classes(self.images)
        object.__setattr__(self, "class_rows", rows)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.class_embeddings.shape[0])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.class_embeddings.shape[1])

    @cached_property
    def calibration(self) -> Calibration:
        """Moments of all classes, computed when first asked for.

        Raises
        ------
        CalibrationError
            A class has too few images.
        """
        return self._calibrate()

    def _calibrate(self, shrinkage: float = 0.0, image_weight: float = 0.0) -> Calibration:
        if self.images is None or self.labels is None:
            raise InvalidInputError("calibration needs images and their labels; none were given")
        return calibrate(
            [(self.images, self.labels)], self.class_embeddings, shrinkage=shrinkage,
            image_weight=image_weight,
        )  # fmt: skip

    def scorer_with(self, shrinkage: float = 0.0, image_weight: float = 0.0) -> BlissScorer:
        """Return the scorer of BLISS over all classes; settings with equal weights share it.

        Parameters
        ----------
        shrinkage, image_weight : float, default=0
            N and W of :class:`bliss_index.calibration.Calibration`.
        """
        weights = (shrinkage, image_weight)
        if weights not in self._scorers:
            if self.search is None or self.vocabulary is None:
                raise InvalidInputError("BLISS needs a vocabulary and a search over it")
            calibration = self._calibrate(*weights) if any(weights) else self.calibration
            self._scorers[weights] = BlissScorer(self.search, self.vocabulary, calibration)
        return self._scorers[weights]

    def restricted_to(self, classes: Sequence[int]) -> Reference:
        """Keep some classes only, numbered anew in the order given."""
        chosen = list(classes)
        labels = self.labels
        if labels is not None:
            number = np.full(self.classes + 1, -1, dtype=np.int64)
            number[chosen] = np.arange(len(chosen))
            labels = number[labels]
        return Reference(
            self.class_embeddings[chosen], self.images, labels, self.vocabulary, self.search
        )

    def require(self, detector: str, *names: str) -> None:
        """Raise InvalidInputError unless everything that the detector needs is here."""
        for name in names:
            if getattr(self, name) is None:
                raise InvalidInputError(f"detector {detector!r} needs {name}; none were given")

    def _rows_of_classes(self, images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], ...]:
        labels = self.labels
        if labels is None or labels.shape != (images.shape[0],):
            raise InvalidInputError(
                f"{images.shape[0]} calibration images need as many labels, got "
                f"{'none' if labels is None else labels.shape}"
            )
        if labels.dtype.kind not in "iu":
            raise InvalidInputError(f"labels must be class numbers, got {labels.dtype}")
        if labels.size and (labels.min() < -1 or labels.max() >= self.classes):
            raise InvalidInputError(
                f"labels lie between {labels.min()} and {labels.max()}, classes are 0 to "
                f"{self.classes - 1}"
            )
        order = np.argsort(labels, kind="stable")
        ends = np.searchsorted(labels[order], np.arange(self.classes + 1))
        return tuple(order[ends[c] : ends[c + 1]] for c in range(self.classes))


class ImageBlock:
    """Images to score, with what several detectors ask of them computed once.

    Parameters
    ----------
    images
        (n, d), unit norm.
    reference
        What the detectors were fitted on.
    """

    def __init__(self, images: npt.NDArray[Any], reference: Reference) -> None:
        self.images = images
        self._reference = reference
        self._internal: dict[tuple[float, float], npt.NDArray[np.float64]] = {}
        self._external: dict[tuple[int, float], npt.NDArray[np.float64]] = {}

    @property
    def rows(self) -> int:
        """Number of images."""
        return int(self.images.shape[0])

    @cached_property
    def single(self) -> npt.NDArray[np.float32]:
        """(n, d) the images in float32."""
        return np.ascontiguousarray(self.images, dtype=np.float32)

    @cached_property
    def class_similarities(self) -> npt.NDArray[np.float64]:
        """(n, C) inner products with the class embeddings."""
        texts = self._reference.class_embeddings.astype(np.float64)
        return np.asarray(self.images.astype(np.float64) @ texts.T)

    @cached_property
    def top_k(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Similarities (n, k) and ids (n, k) of the entries most similar to each image."""
        if self._reference.search is None:
            raise InvalidInputError("no search over the vocabulary was given")
        return self._reference.search.search(self.images)

    def internal_scores(
        self, shrinkage: float = 0.0, image_weight: float = 0.0
    ) -> npt.NDArray[np.float64]:
        """(n, C) the label term of BLISS for every class, with the image term's share."""
        weights = (shrinkage, image_weight)
        if weights not in self._internal:
            scorer = self._reference.scorer_with(*weights)
            self._internal[weights] = scorer.internal_scores(self.images)
        return self._internal[weights]

    def external_scores(self, k: int, shrinkage: float = 0.0) -> npt.NDArray[np.float64]:
        """(n, C) the external term of BLISS for every class, of the first k entries found."""
        if (k, shrinkage) not in self._external:
            similarities, ids = self.top_k
            if not 1 <= k <= ids.shape[1]:
                raise InvalidInputError(
                    f"k must lie between 1 and the search's {ids.shape[1]}, got {k}"
                )
            scorer = self._reference.scorer_with(shrinkage)
            scorer.tables.require(ids[:, :k])
            found = scorer.external_scores(similarities[:, :k], ids[:, :k])
            self._external[k, shrinkage] = found
        return self._external[k, shrinkage]

    def similarities_with(self, entries: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(n, m) inner products with (m, d) float32 vectors."""
        return np.asarray(self.single @ entries.T)


class FittedDetector(ABC):
    """A detector that knows its classes.

    Attributes
    ----------
    name
        What it is called in tables and on the command line.
    """

    def __init__(self, name: str, reference: Reference) -> None:
        self.name = name
        self._reference = reference

    @abstractmethod
    def score_runs(
        self, block: ImageBlock, runs: Sequence[Sequence[int]]
    ) -> npt.NDArray[np.float64]:
        """Score images against several choices of normal classes.

        Returns
        -------
        (runs, n) float64, higher = more anomalous.
        """

    def score(self, images: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Score images with every class normal.

        Parameters
        ----------
        images
            (n, d), unit norm.

        Returns
        -------
        (n,) float64, higher = more anomalous.
        """
        rows = np.asarray(images)
        if rows.ndim != 2 or rows.shape[1] != self._reference.dim:
            raise InvalidInputError(
                f"images have shape {rows.shape}, the detector was fitted in dimension "
                f"{self._reference.dim}"
            )
        scores = np.empty(rows.shape[0])
        everything = [range(self._reference.classes)]
        for part, block in blocks(rows, self._reference):
            scores[part] = self.score_runs(block, everything)[0]
        return scores


class Detector(Protocol):
    """A detector's definition: a name, its settings, and how to fit it."""

    @property
    def name(self) -> str: ...

    def fit(self, reference: Reference) -> FittedDetector:
        """Learn what is needed of all classes."""
        ...


def blocks(
    images: npt.NDArray[Any], reference: Reference, rows: int = BLOCK_ROWS
) -> Iterator[tuple[slice, ImageBlock]]:
    """Cut images into blocks, in order."""
    for start in range(0, images.shape[0], rows):
        part = slice(start, min(images.shape[0], start + rows))
        yield part, ImageBlock(np.asarray(images[part]), reference)
