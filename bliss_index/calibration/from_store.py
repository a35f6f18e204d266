"""Calibration from an image store, its labels, and the classes' texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.advice import few_images_warning
from bliss_index.calibration.calibration import Calibration, calibrate
from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.labels import NO_CLASS, ClassNumbers, Labels, class_numbers
from bliss_index.calibration.names import NamesCheck, NamesReport
from bliss_index.calibration.unlabelled import assign_labels, trim_mask
from bliss_index.errors import CalibrationError, InvalidInputError, listed
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
        Rows left out because their label is not one of the classes (counted by label), and because
        they have no label.
    trimmed
        Rows left out because they lie farthest from their class.
    names
        How well each class's text tells its images from the other classes'; None where there is
        one class, or where images were given the class of the nearest text.
    weights
        A sentence on how lambda and the image weight were chosen; empty where they were given.
    """

    calibration: Calibration
    rows: int
    bad_rows: int
    other: dict[str, int]
    unlabelled: int
    trimmed: int = 0
    names: NamesReport | None = None
    weights: str = ""

    @property
    def warnings(self) -> list[str]:
        """What makes scores with this calibration unreliable, each with a remedy."""
        names = None if self.names is None else self.names.warning()
        return [text for text in (few_images_warning(self.calibration), names) if text]

    @property
    def notices(self) -> list[str]:
        """What was left out, assigned or trimmed, a sentence each; then the warnings."""
        said = []
        if self.other:
            named = listed([f"{name!r} ({count})" for name, count in self.other.items()])
            said.append(f"{sum(self.other.values())} images of other labels are left out: {named}")
        if self.unlabelled:
            said.append(f"{self.unlabelled} images without a label are left out")
        if self.bad_rows:
            said.append(f"{self.bad_rows} labelled images without an embedding are left out")
        if assigned := self.calibration.attributes.get("labels_assigned"):
            said.append(f"{assigned} images without a label were given the class nearest to them")
        if self.trimmed:
            said.append(f"{self.trimmed} images are left out as the farthest from their class")
        if self.weights:
            said.append(self.weights)
        return [*said, *(f"warning: {warning}" for warning in self.warnings)]

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
            "trimmed": self.trimmed,
            "shrinkage": calibration.shrinkage,
            "image_weight": calibration.image_weight,
            "lam": calibration.lam,
            "weights": calibration.attributes.get("weights"),
            "names": None if self.names is None else self.names.to_json(),
            "warnings": self.warnings,
            "content_hash": calibration.content_hash,
        }


def calibrate_store(
    images: EmbeddingStore,
    labels: Labels | None,
    texts: ClassTexts,
    progress: Callable[[int], None] | None = None,
    *,
    assign: bool = False,
    trim: float = 0.0,
    shrinkage: float = 0.0,
    image_weight: float = 0.0,
) -> CalibrationSummary:
    """Compute the moments of every class, one shard of the store at a time.

    The calibration's attributes say how many labels were assigned, and what share was trimmed.

    Parameters
    ----------
    images
        Normal images; rows whose status is not "ok" are left out.
    labels
        Their classes; None where there is one class only, or to assign them.
    texts
        The classes.
    progress
        Called with the number of rows just read.
    assign
        Give images without a label the class whose text is most similar.
    trim
        Share of every class's images to leave out: those farthest from its centre. For images that
        may include some that do not belong. Reads all embeddings into memory.
    shrinkage, image_weight : float, default=0
        N and W of :class:`bliss_index.calibration.Calibration`.

    Raises
    ------
    ModelMismatchError
        Images and texts are of different models.
    InvalidInputError
        Labels do not fit the store or the classes.
    CalibrationError
        A class has too few images.
    """
    # 10 and 10.0 are one setting, and one content hash.
    shrinkage, image_weight = float(shrinkage), float(image_weight)
    require_same_model(
        images.model, texts.model, f"images {images.path}", f"classes {texts.source}"
    )
    found = numbers_of_rows(
        images, labels, texts.names, texts.embeddings, assign=assign, trim=trim, source=texts.source
    )
    numbers = found.numbers
    bad = 0
    check = NamesCheck(texts.names, texts.embeddings)
    checked = len(texts.names) > 1 and not found.assigned

    def batches() -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
        nonlocal bad
        for shard in images.iter_shards():
            part = numbers[shard.start : shard.start + shard.rows]
            bad += int(((part != NO_CLASS) & ~shard.good).sum())
            usable = np.where(shard.good, part, NO_CLASS)
            if checked:
                check.add(shard.embeddings, usable)
            yield shard.embeddings, usable
            if progress is not None:
                progress(shard.rows)

    attributes = {
        "images": images.content_hash,
        "prompt": texts.prompt,
        "labels": None if labels is None else Path(labels.path).name,
        "labels_assigned": found.assigned,
        "trimmed_share": trim,
    }
    try:
        calibration = calibrate(
            batches(), texts.embeddings, texts.names, model=texts.model, attributes=attributes,
            shrinkage=shrinkage, image_weight=image_weight,
        )  # fmt: skip
    except CalibrationError as error:
        if not found.other:
            raise
        named = listed([f"{name!r} ({n})" for name, n in found.other.items()])
        raise CalibrationError(
            f"{error} {len(found.other)} labels name none of the classes: {named}."
        ) from error
    return CalibrationSummary(
        calibration, images.rows, bad, found.other, found.unlabelled, found.trimmed,
        check.report() if checked else None,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class RowNumbers(ClassNumbers):
    """Class numbers, how many of them were assigned, and how many rows were trimmed."""

    assigned: int = 0
    trimmed: int = 0


def numbers_of_rows(
    images: EmbeddingStore,
    labels: Labels | None,
    classes: Sequence[str],
    class_embeddings: npt.NDArray[Any],
    *,
    assign: bool = False,
    trim: float = 0.0,
    source: str = "the calibration",
) -> RowNumbers:
    """Decide which class every row of a store belongs to.

    Parameters
    ----------
    images, labels
        The store, and its labels if there are any.
    classes, class_embeddings
        C names and (C, d) text embeddings.
    assign, trim
        As for :func:`calibrate_store`.
    source
        Where the classes come from, for messages.

    Raises
    ------
    InvalidInputError
        There are several classes, no labels, and none are to be assigned; or labels do not fit.
    """
    if labels is not None:
        given = class_numbers(labels, images, classes)
        found = RowNumbers(given.numbers, given.other, given.unlabelled)
    elif len(classes) > 1 and not assign:
        raise InvalidInputError(
            f"{source} names {len(classes)} classes: --labels must say which class each image "
            "belongs to, or --assign give every image the nearest"
        )
    else:
        everywhere = NO_CLASS if len(classes) > 1 else 0
        numbers = np.full(images.rows, everywhere, dtype=np.int64)
        found = RowNumbers(numbers, {}, images.rows if everywhere == NO_CLASS else 0)
    if assign and found.unlabelled:
        found = _assigned(images, labels, found, class_embeddings)
    return _trimmed(images, found, trim) if trim else found


def _assigned(
    images: EmbeddingStore,
    labels: Labels | None,
    found: RowNumbers,
    class_embeddings: npt.NDArray[Any],
) -> RowNumbers:
    """Give rows without any label the class of the most similar text."""
    wanted = np.ones(images.rows, dtype=bool)
    if labels is not None:
        given = labels.of_rows(lambda: (shard.keys for shard in images.iter_shards()), images.rows)
        wanted = np.array([label is None for label in given], dtype=bool)
    numbers = found.numbers.copy()
    assigned = 0
    for shard in images.iter_shards():
        part = numbers[shard.start : shard.start + shard.rows]
        mine = wanted[shard.start : shard.start + shard.rows] & shard.good
        part[mine] = assign_labels(shard.embeddings[mine], class_embeddings)
        assigned += int(mine.sum())
    return replace(
        found, numbers=numbers, unlabelled=found.unlabelled - assigned, assigned=assigned
    )


def _trimmed(images: EmbeddingStore, found: RowNumbers, share: float) -> RowNumbers:
    """Leave out the share of every class that is farthest from its centre."""
    numbers = found.numbers.copy()
    for shard in images.iter_shards():
        numbers[shard.start : shard.start + shard.rows][~shard.good] = NO_CLASS
    keep = trim_mask(images.embeddings(), numbers, share)
    trimmed = int(((numbers != NO_CLASS) & ~keep).sum())
    return replace(found, numbers=np.where(keep, found.numbers, NO_CLASS), trimmed=trimmed)
