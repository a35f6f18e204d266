"""Scores of held-out normal images on disk: what thresholds and p-values are made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bliss_index.calibration import Calibration
from bliss_index.calibration.from_store import numbers_of_rows
from bliss_index.calibration.labels import NO_CLASS, Labels
from bliss_index.errors import CorruptStoreError, InvalidInputError, StoreError
from bliss_index.scoring.thresholds import Threshold, held_out_scores, threshold_at
from bliss_index.search.prepared import entries_of
from bliss_index.search.protocol import TopKSearch
from bliss_index.storage.cache import local_file
from bliss_index.storage.directory import write_file
from bliss_index.store import EmbeddingStore

_METADATA = b"bliss_index.scoring.normal_scores"
_SCORES = "anomaly_score"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ScoreIdentity:
    """What decides a score, apart from the image.

    Attributes
    ----------
    k, lam
        Entries per image, and the weight of the external score.
    corpus, calibration
        Content hashes.
    """

    k: int
    lam: float
    corpus: str
    calibration: str


@dataclass(frozen=True, eq=False)
class NormalScores:
    """Scores of normal images, each by a calibration made without it.

    Attributes
    ----------
    scores
        (n,) float64, higher = more anomalous.
    identity
        What the scores depend on; only scores of the same identity may be compared with them.
    folds
        Parts that the images were dealt into.
    confidence
        With which a false-alarm rate is kept by thresholds from these scores; None for rates that
        hold on average. See :func:`bliss_index.scoring.thresholds.threshold_at`.
    """

    scores: npt.NDArray[np.float64]
    identity: ScoreIdentity
    folds: int
    confidence: float | None = None

    @property
    def content_hash(self) -> str:
        """SHA-256 over scores, identity and confidence, in hexadecimal."""
        digest = hashlib.sha256(json.dumps(asdict(self.identity), sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.scores, dtype="<f8").tobytes())
        if self.confidence is not None:
            digest.update(f"confidence {self.confidence!r}".encode())
        return digest.hexdigest()

    def threshold(self, false_alarm_rate: float) -> Threshold:
        """Return the threshold of a rate; errors as of :func:`threshold_at`."""
        return threshold_at(self.scores, false_alarm_rate, confidence=self.confidence)

    def require(self, identity: ScoreIdentity, path: str | Path) -> None:
        """Refuse to compare with scores of other settings, naming both values.

        Raises
        ------
        InvalidInputError
            k, lambda, the corpus or the calibration differ.
        """
        for name, now in asdict(identity).items():
            then = getattr(self.identity, name)
            if then != now:
                raise InvalidInputError(
                    f"{path} was made with {name} {then!r}, this job has {now!r}; make it again "
                    "with 'bliss-index threshold'"
                )

    def write(self, path: str | Path) -> None:
        """Write a Parquet file, at a path or URI; OutputError where that cannot be done."""
        facts = {
            "format_version": _FORMAT_VERSION,
            "folds": self.folds,
            "identity": asdict(self.identity),
            "confidence": self.confidence,
            "content_hash": self.content_hash,
        }
        table = pa.table({_SCORES: pa.array(self.scores, pa.float64())})
        table = table.replace_schema_metadata({_METADATA: json.dumps(facts).encode()})
        content = pa.BufferOutputStream()
        pq.write_table(table, content)
        write_file(path, content.getvalue().to_pybytes())

    @classmethod
    def read(cls, path: str | Path) -> NormalScores:
        """Read a file that :meth:`write` wrote.

        Raises
        ------
        StoreError
            There is none, or it is another kind of file.
        CorruptStoreError
            It is damaged, or was written by a newer version.
        """
        file = local_file(path)
        if not file.is_file():
            raise StoreError(f"{path} is not a file; make it with 'bliss-index threshold'")
        try:
            table = pq.read_table(file)
            facts = json.loads((table.schema.metadata or {}).get(_METADATA, b"null"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptStoreError(f"{path} cannot be read: {error}") from error
        if not isinstance(facts, dict):
            raise StoreError(
                f"{path} holds no scores of held-out normal images; make them with "
                "'bliss-index threshold'"
            )
        if facts.get("format_version") != _FORMAT_VERSION:
            raise CorruptStoreError(
                f"{path} has format version {facts.get('format_version')!r}, this is "
                f"{_FORMAT_VERSION}; make it again or update bliss-index"
            )
        try:
            scores = table.column(_SCORES).to_numpy().astype(np.float64)
            sure = facts.get("confidence")  # not written by the first files
            result = cls(
                scores, ScoreIdentity(**facts["identity"]), int(facts["folds"]),
                None if sure is None else float(sure),
            )  # fmt: skip
            digest = facts["content_hash"]
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise CorruptStoreError(f"{path} is damaged: {error!r}; make it again") from error
        if result.content_hash != digest:
            raise CorruptStoreError(
                f"{path} has content hash {result.content_hash}, it says {digest!r}: altered; "
                "make it again"
            )
        return result


def score_held_out(
    images: EmbeddingStore,
    labels: Labels | None,
    calibration: Calibration,
    corpus: EmbeddingStore,
    search: TopKSearch,
    *,
    lam: float | None = None,
    folds: int = 5,
    seed: int = 0,
    confidence: float | None = None,
) -> NormalScores:
    """Score the images of a calibration as if they were new: each by a calibration without it.

    The images are held in memory as they are stored.

    Parameters
    ----------
    images, labels
        What the calibration was made of. Its own way of treating labels (assigned, trimmed) is
        applied again.
    calibration
        The calibration.
    corpus, search
        The vocabulary and a top-k search over it.
    lam : float, default=None
        Weight lambda of the external score; None for the calibration's.
    folds, seed
        As for :func:`bliss_index.scoring.thresholds.held_out_scores`.
    confidence : float, default=None
        With which thresholds are to keep a rate, kept with the scores.

    Raises
    ------
    InvalidInputError
        The calibration was made of other images.
    CalibrationError
        A class has too few images to hold any out.
    """
    lam = calibration.lam_for(lam)
    rows, numbers = normal_images(images, labels, calibration)
    scores = held_out_scores(
        rows,
        numbers,
        calibration.class_embeddings,
        entries_of(corpus),
        search,
        lam=lam,
        folds=folds,
        seed=seed,
        shrinkage=calibration.shrinkage,
        image_weight=calibration.image_weight,
    )
    identity = ScoreIdentity(search.k, lam, corpus.content_hash, calibration.content_hash)
    return NormalScores(scores, identity, folds, confidence)


def normal_images(
    images: EmbeddingStore, labels: Labels | None, calibration: Calibration
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the images that a calibration was made of, and their classes.

    Parameters
    ----------
    images, labels
        What it was made of; its own way of treating labels (assigned, trimmed) is applied again.
    calibration
        The calibration.

    Returns
    -------
    (n, d) embeddings as they are stored, and (n,) class numbers.

    Raises
    ------
    InvalidInputError
        It was made of other images.
    """
    attributes: dict[str, Any] = dict(calibration.attributes)
    made_of = attributes.get("images")
    if made_of != images.content_hash:
        raise InvalidInputError(
            f"the calibration was made of images with content hash {made_of}, {images.path} has "
            f"{images.content_hash}; give the images that it was made of"
        )
    found = numbers_of_rows(
        images,
        labels,
        calibration.classes,
        calibration.class_embeddings,
        assign=bool(attributes.get("labels_assigned")),
        trim=float(attributes.get("trimmed_share") or 0.0),
    )
    used = found.numbers != NO_CLASS
    for shard in images.iter_shards():
        used[shard.start : shard.start + shard.rows] &= shard.good
    return images.embeddings()[used], found.numbers[used]
