"""Calibration from an image store, its labels, and the classes' texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.calibration import Calibration, calibrate
from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.labels import NO_CLASS, Labels, class_numbers
from bliss_index.errors import InvalidInputError
from bliss_index.store import EmbeddingStore, require_same_model


@dataclass(frozen=True, eq=False)
class CalibrationSummary:
    """What a calibration was made of.

    Attributes
    ----------
    calibration
        The result.
    rows
        Rows of the image store.
    bad_rows
        Labelled rows left out because their status is not "ok".
    other, unlabelled
        Rows left out because their label is no class, by label, and for want of a label.
    """

    calibration: Calibration
    rows: int
    bad_rows: int
    other: dict[str, int]
    unlabelled: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        calibration = self.calibration
        return {
            "classes": {
                name: moments.count
                for name, moments in zip(calibration.classes, calibration.moments, strict=True)
            },
            "images": calibration.images,
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "other_labels": self.other,
            "unlabelled": self.unlabelled,
            "content_hash": calibration.content_hash,
        }


def calibrate_store(
    images: EmbeddingStore,
    labels: Labels | None,
    texts: ClassTexts,
    progress: Callable[[int], None] | None = None,
) -> CalibrationSummary:
    """Compute the moments of every class, one shard of the store at a time.

    Parameters
    ----------
    images
        Normal images; rows whose status is not "ok" are left out.
    labels
        Their classes; None where there is one class only.
    texts
        The classes.
    progress
        Called with the number of rows just read.

    Raises
    ------
    ModelMismatchError
        Images and texts are of different models.
    InvalidInputError
        Labels do not fit the store or the classes.
    CalibrationError
        A class has too few images.
    """
    require_same_model(
        images.model, texts.model, f"images {images.path}", f"classes {texts.source}"
    )
    if labels is None:
        if len(texts.names) > 1:
            raise InvalidInputError(
                f"{texts.source} names {len(texts.names)} classes: --labels must say which class "
                "each image belongs to"
            )
        numbers = np.zeros(images.rows, dtype=np.int64)
        other: dict[str, int] = {}
        unlabelled = 0
    else:
        found = class_numbers(labels, images, texts.names)
        numbers, other, unlabelled = found.numbers, found.other, found.unlabelled
    bad = 0

    def batches() -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
        nonlocal bad
        for shard in images.iter_shards(check_hash=True):
            part = numbers[shard.start : shard.start + shard.rows]
            bad += int(((part != NO_CLASS) & ~shard.good).sum())
            yield shard.embeddings, np.where(shard.good, part, NO_CLASS)
            if progress is not None:
                progress(shard.rows)

    attributes = {
        "images": images.content_hash,
        "prompt": texts.prompt,
        "labels": None if labels is None else Path(labels.path).name,
    }
    calibration = calibrate(
        batches(), texts.embeddings, texts.names, model=texts.model, attributes=attributes
    )
    return CalibrationSummary(calibration, images.rows, bad, other, unlabelled)
