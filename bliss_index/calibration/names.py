"""Whether the classes' names work: how well each text tells its images from the other classes'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.labels import NO_CLASS
from bliss_index.calibration.unlabelled import assign_labels
from bliss_index.errors import listed


@dataclass(frozen=True, eq=False)
class NamesReport:
    """Zero-shot classification of the calibration images by the classes' texts.

    An image is right where the text of its own class is the most similar to it, of all classes'.
    Raw similarities are compared: nothing is corrected.

    Attributes
    ----------
    classes
        C names.
    images, right
        (C,) int64: images of each class, and how many of them are right.
    taken_for
        (C,) int64: the other class whose text is nearest to the most of the others; -1 where all
        are right.
    """

    classes: tuple[str, ...]
    images: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    taken_for: npt.NDArray[np.int64]

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """(C,) share of each class's images that are right; NaN for a class of no images."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.right / self.images)

    @property
    def overall(self) -> float:
        """Share of all images that are right."""
        return float(self.right.sum() / max(1, self.images.sum()))

    @property
    def failing(self) -> list[int]:
        """Classes of whose images fewer than half are right, the worst first."""
        accuracy = self.accuracy
        order = np.argsort(np.nan_to_num(accuracy, nan=1.0), kind="stable")
        return [int(c) for c in order if accuracy[c] < 0.5]

    def warning(self) -> str | None:
        """Name the classes that fail, and what to do; None where none does."""
        failing = self.failing
        if not failing:
            return None
        right, images = self.right, self.images
        named = listed(
            [
                f"{self.classes[c]!r} ({right[c]} of {images[c]} images are nearest to it, most "
                f"others to {self.mistaken_for(c)!r})"
                for c in failing
            ]
        )
        return (
            f"the names of {len(failing)} of {len(self.classes)} classes do not tell their images "
            f"from the other classes': {named}. Scores rest on names that the model knows: try a "
            "more common or more precise name, or another prompt (--template), check the labels, "
            "give the classes' own images a say (--image-weight auto), and compare with a detector "
            "that needs no names (evaluate --detectors bliss,knn)."
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        right, images = self.right, self.images
        return {
            "zero_shot_accuracy": self.overall,
            "classes": {
                name: {
                    "images": int(images[c]),
                    "right": int(right[c]),
                    "accuracy": float(right[c] / images[c]) if images[c] else None,
                    "mistaken_for": self.mistaken_for(c),
                }
                for c, name in enumerate(self.classes)
            },
        }

    def mistaken_for(self, c: int) -> str | None:
        """Return the other class whose text is nearest to the most images of class c, or None."""
        other = int(self.taken_for[c])
        return None if other < 0 else self.classes[other]


class NamesCheck:
    """Counts, batch by batch, which class's text is the most similar to each image.

    Parameters
    ----------
    classes, class_embeddings
        C names and their (C, d) text embeddings, unit norm.
    """

    def __init__(self, classes: Sequence[str], class_embeddings: npt.NDArray[Any]) -> None:
        self._classes = tuple(classes)
        self._texts = class_embeddings
        # By pairs that occur: a matrix over many thousand classes would not fit into memory.
        self._counts: Counter[tuple[int, int]] = Counter()

    def add(self, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Count (n, d) unit image embeddings of (n,) class numbers; those of no class are not."""
        known = labels != NO_CLASS
        if known.any():
            nearest = assign_labels(images[known], self._texts)
            self._counts.update(zip(labels[known].tolist(), nearest.tolist(), strict=True))

    def report(self) -> NamesReport:
        """Return what was counted."""
        count = len(self._classes)
        images, right, most = (np.zeros(count, dtype=np.int64) for _ in range(3))
        taken_for = np.full(count, NO_CLASS, dtype=np.int64)
        for (own, nearest), times in sorted(self._counts.items()):
            images[own] += times
            if own == nearest:
                right[own] = times
            elif times > most[own]:
                most[own], taken_for[own] = times, nearest
        return NamesReport(self._classes, images, right, taken_for)
