"""bliss_index: bias-corrected language-image anomaly scores (BLISS) at dataset scale.

The package computes the anomaly scores of Goodge, Hooi and Ng (BMVC 2024, arXiv 2407.17083): a
large text vocabulary is encoded once, every image is compared with all of it, and its most similar
entries correct the bias of the similarities between the image and the labels of the normal classes.

In short, with arrays of unit embeddings or the paths of stores::

    from bliss_index import BlissDetector

    detector = BlissDetector(vocabulary, class_embeddings, k=10, lam=0.5).fit(images, labels)
    detector.anomaly_score(new_images)  # (n,), higher = more anomalous

Names are imported when they are first used, so ``import bliss_index`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BlissDetector": "bliss_index.api.detector",
    "BlissError": "bliss_index.errors",
    "Calibration": "bliss_index.calibration",
    "EmbeddingStore": "bliss_index.store",
    "ExactSearch": "bliss_index.search",
    "StoreWriter": "bliss_index.store",
    "calibrate": "bliss_index.api.steps",
    "evaluate": "bliss_index.api.steps",
    "exact_search": "bliss_index.search",
    "groups": "bliss_index.api.steps",
    "load_encoder": "bliss_index.encode",
    "load_vocabulary": "bliss_index.vocabulary",
    "read_scores": "bliss_index.api.steps",
    "score": "bliss_index.api.steps",
    "screen": "bliss_index.api.steps",
}

__all__ = [
    "BlissDetector",
    "BlissError",
    "Calibration",
    "EmbeddingStore",
    "ExactSearch",
    "StoreWriter",
    "__version__",
    "calibrate",
    "evaluate",
    "exact_search",
    "groups",
    "load_encoder",
    "load_vocabulary",
    "read_scores",
    "score",
    "screen",
]

if TYPE_CHECKING:
    from bliss_index.api.detector import BlissDetector
    from bliss_index.api.steps import calibrate, evaluate, groups, read_scores, score, screen
    from bliss_index.calibration import Calibration
    from bliss_index.encode import load_encoder
    from bliss_index.errors import BlissError
    from bliss_index.search import ExactSearch, exact_search
    from bliss_index.store import EmbeddingStore, StoreWriter
    from bliss_index.vocabulary import load_vocabulary


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bliss_index' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
