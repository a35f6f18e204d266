"""Protocols over image stores with labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.labels import NO_CLASS, Labels, class_numbers
from bliss_index.evaluation.detector import Reference
from bliss_index.evaluation.paper.protocol_run import ProtocolReport, evaluate_protocol
from bliss_index.evaluation.paper.protocols import (
    PROTOCOLS,
    EvaluationProtocol,
    all_but_one,
    find_protocol,
    one_class,
)
from bliss_index.evaluation.registry import make_detectors
from bliss_index.search import exact_search
from bliss_index.store import EmbeddingStore, require_same_model

GENERAL_PROTOCOLS = {"one-class": one_class, "all-but-one": all_but_one}


def protocol_for(name: str, classes: int) -> EvaluationProtocol:
    """Return one of the paper's protocols, or "one-class" or "all-but-one" of any classes."""
    if name in GENERAL_PROTOCOLS and name not in PROTOCOLS:
        return GENERAL_PROTOCOLS[name](classes)
    return find_protocol(name, also=tuple(GENERAL_PROTOCOLS))


def evaluate_stores(
    test: str | Path,
    test_labels: Labels,
    normal: str | Path,
    normal_labels: Labels,
    classes: ClassTexts,
    corpus: str | Path,
    protocol: str,
    *,
    detectors: str = "bliss,label,raw",
    k: int = 10,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ProtocolReport:
    """Evaluate a protocol on stores; bad rows, and rows labelled with no class, are left out.

    Parameters
    ----------
    test, test_labels
        Image store to score, and its classes.
    normal, normal_labels
        Image store to calibrate with, and its classes.
    classes
        Names and text embeddings of all classes.
    corpus
        Text store of the vocabulary.
    protocol
        One of the paper's, "one-class" or "all-but-one".
    detectors
        Names, separated by commas.
    k, threads
        Vocabulary entries per image, and threads of the search; by default all.
    progress
        Called with the number of images just scored.

    Raises
    ------
    ModelMismatchError
        The stores are of different models.
    InvalidInputError
        Labels, classes, protocol and detectors do not fit each other.
    """
    chosen = make_detectors(detectors)
    runs = protocol_for(protocol, len(classes.names))
    vocabulary = EmbeddingStore.open(corpus, kind="text")
    require_same_model(vocabulary.model, classes.model, f"corpus {corpus}", classes.source)
    images, labels = _labelled(normal, normal_labels, classes)
    test_images, test_numbers = _labelled(test, test_labels, classes)
    entries = vocabulary.embeddings()
    search = exact_search(entries, k, threads=threads)
    reference = Reference(classes.embeddings, images, labels, entries, search)
    return evaluate_protocol(reference, test_images, test_numbers, runs, chosen, progress)


def _labelled(
    path: str | Path, labels: Labels, classes: ClassTexts
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Read the good rows that are labelled with one of the classes, and their class numbers."""
    store = EmbeddingStore.open(path, kind="image")
    require_same_model(store.model, classes.model, f"images {path}", classes.source)
    numbers = class_numbers(labels, store, classes.names).numbers
    kept = numbers != NO_CLASS
    rows = []
    for shard in store.iter_shards():
        part = kept[shard.start : shard.start + shard.rows]
        part &= shard.good
        rows.append(shard.embeddings[part])
    return np.concatenate(rows), numbers[kept]
