"""What a screen reads, opened: images, vocabulary, model; and what can be refused beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bliss_index.calibration.labels import ClassNames, folder_names
from bliss_index.devices import resolve_device
from bliss_index.encode.encode_work import DEFAULT_MODEL, EncoderSpec, SharedSpec
from bliss_index.encode.image_rows import ImageSource, no_images
from bliss_index.encode.images import open_images
from bliss_index.encode.model import ENCODER_DEVICES, Encoder
from bliss_index.encode.spooled_vocabulary import SpooledVocabulary, spool_vocabulary
from bliss_index.errors import InvalidInputError, listed
from bliss_index.jobs import JobOptions
from bliss_index.scoring.score_inputs import is_store, open_input
from bliss_index.scoring.thresholds import least_images, threshold_at
from bliss_index.screening.settings import ScreenSettings
from bliss_index.storage.files import is_address
from bliss_index.store import EmbeddingStore, ModelIdentity, require_same_model
from bliss_index.vocabulary import clean_entry, load_vocabulary

_LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".parquet", ".gz")
_LISTED_ROWS = 4096


@dataclass(frozen=True)
class ScreenImages:
    """Images to encode, embeddings to import, or a store that is there."""

    location: str
    source: ImageSource | None = None
    store: EmbeddingStore | None = None

    @classmethod
    def open(cls, locations: Sequence[str], embeddings: bool) -> ScreenImages:
        if len(locations) == 1 and (embeddings or is_store(locations[0])):
            found = open_input(locations[0]).source
            return cls(locations[0], store=found if isinstance(found, EmbeddingStore) else None)
        if embeddings:
            raise InvalidInputError(
                f"embeddings are taken from one place, got {len(locations)}: {listed(locations)}; "
                "put their files into one folder"
            )
        return cls(", ".join(map(str, locations)), open_images(locations))

    def rows(self) -> int | None:
        """Number of images; None where it is not known yet."""
        if self.source is not None:
            return self.source.rows()
        return None if self.store is None else self.store.rows

    def folders(self) -> Counter[str] | None:
        """Images by first folder, of a folder or a store; None where it is not known yet."""
        keys: list[str] = []
        if self.store is not None:
            keys = self.store.keys()
        elif self.source is not None:
            for piece in self.source.pieces(_LISTED_ROWS):
                if "files" not in piece.detail:
                    return None
                keys.extend(key for key, *_ in piece.detail["files"])
        else:
            return None
        return Counter(name for name in folder_names(keys) if name is not None)


@dataclass(frozen=True)
class ScreenInputs:
    """Everything that a screen reads; each is opened when it is first asked for.

    Attributes
    ----------
    settings : ScreenSettings
    output : str
        Near which temporary files go.
    devices, options
        As for :func:`bliss_index.screening.screen`.
    stack : ExitStack
        Closes what was opened.
    """

    settings: ScreenSettings
    output: str
    devices: tuple[str, ...]
    options: JobOptions
    stack: ExitStack

    @cached_property
    def photos(self) -> ScreenImages:
        return ScreenImages.open(self.settings.photos, self.settings.embeddings)

    @cached_property
    def known(self) -> ScreenImages | None:
        normal = self.settings.normal
        return None if normal is None else ScreenImages.open([normal], self.settings.embeddings)

    @cached_property
    def spec(self) -> EncoderSpec:
        settings = self.settings
        name, tag = settings.model, settings.pretrained
        store = self.photos.store or (None if self.known is None else self.known.store)
        if store is not None and name is None:
            name, tag = store.model.name, tag or store.model.pretrained
        named = EncoderSpec.of(name or DEFAULT_MODEL, tag)
        return SharedSpec(
            named.name, named.pretrained, settings.precision, settings.preprocess,
            settings.batch_size,
        )  # fmt: skip

    @cached_property
    def encoding(self) -> JobOptions:
        here = self.options.engine == "local"
        return replace(
            self.options,
            devices=tuple(
                resolve_device(name, among=ENCODER_DEVICES, here=here) for name in self.devices
            ),
        )

    @cached_property
    def encoder(self) -> Encoder:
        return self.spec.load(self.encoding.devices[0])

    @cached_property
    def vocabulary(self) -> SpooledVocabulary | EmbeddingStore:
        sources = self.settings.vocabulary
        one = sources[0] if len(sources) == 1 else ""
        if _holds_store(one):
            return EmbeddingStore.open(one, kind="text")
        spooled = spool_vocabulary(sources, self.output)
        return self.stack.enter_context(spooled)

    def encoding_settings(self) -> dict[str, Any]:
        """What decides the embeddings."""
        settings = self.settings
        return {
            "photos": list(map(str, settings.photos)),
            "normal": settings.normal,
            "embeddings": settings.embeddings,
            "model": self.spec.name,
            "pretrained": self.spec.pretrained,
            "precision": settings.precision,
            "preprocess": settings.preprocess,
            "dtype": settings.dtype,
        }

    def calibration_settings(self) -> dict[str, Any]:
        """What decides the calibration, the threshold and the scores, beside the embeddings."""
        settings, entries = self.settings, self.vocabulary
        if isinstance(entries, EmbeddingStore):
            what = f"{entries.rows} entries, content hash {entries.content_hash}"
        else:
            what = f"{len(entries)} entries, SHA-256 {entries.sha256}"
        return {
            "classes": settings.classes,
            "vocabulary": what,
            "template": settings.template,
            "trim": self.settings.share_to_trim,
            "shrinkage": settings.shrinkage,
            "image weight": settings.image_weight,
            "k": settings.k,
            "lam": settings.lam,
            "false-alarm rate": settings.false_alarm_rate,
            "confidence": settings.confidence,
        }

    def require_images(self) -> None:
        """Refuse images that are missing, or too few for what is asked."""
        images = self.known or self.photos
        for some in (self.photos, images):
            if some.rows() == 0 and some.source is not None:
                raise no_images(some.source)
        names, counts = self.class_names(), images.folders() if self.known else None
        rows = images.rows()
        if self.known is not None and names is None and counts is not None:
            if not counts:
                raise InvalidInputError(
                    f"{images.location} has no sub-folders to name the classes; put the images "
                    "of each class into a folder of its name, or give --classes cat,dog"
                )
            names = tuple(sorted(counts))
        if counts and names is not None:
            known = ClassNames(names)
            found = Counter(dict.fromkeys(names, 0))
            for folder, count in counts.items():
                if (number := known.position(folder)) is not None:
                    found[names[number]] += count
            weight = self.settings.image_weight
            least = (
                least_images(self.settings.shrinkage, 0.0 if isinstance(weight, str) else weight)
                + 1
            )
            few = [f"{name!r} ({n})" for name, n in found.items() if n < least]
            if few:
                raise InvalidInputError(
                    f"{len(few)} of {len(names)} classes have fewer than {least} images in "
                    f"{images.location}: {listed(few)}; add images, or leave the class out: name "
                    "the others with --classes"
                )
            rows = sum(found.values())
        rate = self.settings.false_alarm_rate
        if rate is not None and rows is not None:
            threshold_at(np.zeros(rows), rate, confidence=self.settings.confidence)

    def require_entries(self) -> None:
        """Refuse a vocabulary of fewer than k entries."""
        entries = self.vocabulary
        size = entries.rows if isinstance(entries, EmbeddingStore) else len(entries)
        if self.settings.k > size:
            raise InvalidInputError(
                f"k = {self.settings.k} must lie between 1 and the {size} entries of "
                f"{listed(self.settings.vocabulary)}; lower k, or give a larger vocabulary"
            )

    def require_one_model(self, *, calibrated: bool) -> None:
        """Refuse embeddings of different models, and a model that cannot be loaded if it must."""
        stores = [images.store for images in (self.photos, self.known) if images is not None]
        if isinstance(self.vocabulary, EmbeddingStore):
            stores.append(self.vocabulary)
        else:
            stores.append(None)
        models = [(str(store.path), store.model) for store in stores if store is not None]
        if None in stores or not (calibrated or self._classes_are_a_store):
            models.append((f"model {self.spec.name}", self.encoder.identity))
        elif self.settings.model is not None:
            models.append(("--model", ModelIdentity(self.spec.name, self.spec.pretrained)))
        (first, model), *others = models
        for name, other in others:
            require_same_model(model, other, first, name)

    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes as given; None where folders or a store or file has them."""
        given = self.settings.classes
        if given is None:
            return None
        if self.is_place(given):
            if self._classes_are_a_store:
                return tuple(EmbeddingStore.open(given, kind="text").texts())
            return load_vocabulary([given]).entries
        names = [name for name in map(clean_entry, given.split(",")) if name]
        if not names or len(set(names)) < len(names):
            raise InvalidInputError(
                f"--classes {given!r} must name different classes, such as cat,dog; got "
                f"{listed(names) or 'none'}"
            )
        return tuple(names)

    @staticmethod
    def is_place(given: str) -> bool:
        listed_there = given.lower().endswith(_LIST_SUFFIXES) or is_address(given)
        return listed_there or _holds_store(given)

    @property
    def _classes_are_a_store(self) -> bool:
        given = self.settings.classes
        return given is not None and _holds_store(given)


def _holds_store(place: str) -> bool:
    """Whether it is a place that holds a store, and not just a name."""
    return (Path(place).is_dir() or is_address(place)) and is_store(place)
