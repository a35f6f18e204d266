"""BLISS as a detector with the habits of scikit-learn."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import calibrate
from bliss_index.errors import InvalidInputError
from bliss_index.scoring import BlissScorer, Scores
from bliss_index.search import exact_search
from bliss_index.store import EmbeddingStore, require_same_model
from bliss_index.store.normalise import norm_defects

_ROWS_NAMED = 5

Embeddings = Any
"""A (n, d) array of unit rows, an :class:`EmbeddingStore`, or the path of one."""


class BlissDetector:
    """Bias-corrected language-image anomaly detection.

    Parameters
    ----------
    vocabulary
        (W, d) unit text embeddings of the external texts: an array, a store or its path.
    class_embeddings
        (C, d) unit text embeddings of the normal classes' prompts; a store's texts are the names.
    k
        Vocabulary entries per image.
    lam
        Weight lambda of the external score.
    threshold
        Anomaly score above which :meth:`predict` says anomaly; None to take it from
        `contamination`.
    contamination
        Share of the calibration images that shall lie above the threshold, in (0, 0.5]. They were
        used to calibrate, so that new normal images exceed it a little more often.
    backend, threads, device
        As in :class:`bliss_index.search.ExactSearch`; they never change results.

    Attributes
    ----------
    calibration_ : Calibration
        Moments of the normal classes, after :meth:`fit`.
    classes_ : (C,) array
        Names of the normal classes.
    offset_ : float
        The threshold in use, on the anomaly score.

    Examples
    --------
    >>> detector = BlissDetector(vocabulary, texts).fit(images, labels)  # doctest: +SKIP
    >>> detector.anomaly_score(new_images)  # doctest: +SKIP
    """

    def __init__(
        self,
        vocabulary: Embeddings = None,
        class_embeddings: Embeddings = None,
        *,
        k: int = 10,
        lam: float = 0.5,
        threshold: float | None = None,
        contamination: float = 0.05,
        backend: str = "auto",
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.class_embeddings = class_embeddings
        self.k = k
        self.lam = lam
        self.threshold = threshold
        self.contamination = contamination
        self.backend = backend
        self.threads = threads
        self.device = device

    def fit(self, X: Embeddings, y: Sequence[Any] | npt.ArrayLike | None = None) -> BlissDetector:
        """Learn what images of the normal classes look like.

        Parameters
        ----------
        X
            (n, d) unit embeddings of normal images.
        y
            n classes: numbers 0..C-1, or names where `class_embeddings` is a store. May be left out
            where there is one class.

        Raises
        ------
        InvalidInputError
            Shapes, norms or labels do not fit.
        CalibrationError
            A class has fewer than two different images.
        ModelMismatchError
            Stores of different models were given.
        """
        if not 0 < self.contamination <= 0.5:
            raise InvalidInputError(f"contamination must lie in (0, 0.5], got {self.contamination}")
        vocabulary = _Source.of(self.vocabulary, "vocabulary")
        texts = _Source.of(self.class_embeddings, "class_embeddings")
        images = _Source.of(X, "X")
        for other in (texts, images):
            _require_compatible(vocabulary, other)
        entries = vocabulary.matrix()
        search = exact_search(
            entries, self.k, backend=self.backend, threads=self.threads, device=self.device
        )
        class_rows = texts.matrix()
        names = texts.names(class_rows.shape[0])
        labels = _class_numbers(y, images.rows, names)
        calibration = calibrate(
            (
                (rows, np.where(good, labels[start : start + rows.shape[0]], -1))
                for start, rows, good in images.batches()
            ),
            class_rows,
            names,
        )
        self._scorer = BlissScorer(search, entries, calibration, lam=self.lam, threads=self.threads)
        self._vocabulary_source = vocabulary
        self.calibration_ = calibration
        self.classes_ = np.array(names)
        self.n_features_in_ = calibration.dim
        self.offset_ = self._threshold_of(images)
        return self

    def anomaly_score(self, X: Embeddings) -> npt.NDArray[np.float64]:
        """Return the (n,) anomaly scores S(x), higher = more anomalous; NaN for a store's bad rows.

        Raises
        ------
        InvalidInputError
            The detector is not fitted, the dimension differs, or rows of an array are not of unit
            norm; they are named.
        """
        return self._score(_Source.of(X, "X"))

    def score_samples(self, X: Embeddings) -> npt.NDArray[np.float64]:
        """Return the (n,) negated anomaly scores: higher = more normal, as in scikit-learn."""
        return -self.anomaly_score(X)

    def decision_function(self, X: Embeddings) -> npt.NDArray[np.float64]:
        """Return the (n,) distances to the threshold: negative = anomaly, as in scikit-learn."""
        scores = self.anomaly_score(X)
        return np.asarray(self.offset_ - scores)

    def predict(self, X: Embeddings) -> npt.NDArray[np.int64]:
        """Return (n,) labels: 1 = normal, -1 = anomaly, as in scikit-learn.

        A store's bad rows have no score; they are -1.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def fit_predict(
        self, X: Embeddings, y: Sequence[Any] | npt.ArrayLike | None = None
    ) -> npt.NDArray[np.int64]:
        """Fit, then predict the same images."""
        return self.fit(X, y).predict(X)

    def explain(self, X: npt.NDArray[Any]) -> Scores:
        """Return scores of (n, d) unit embeddings with nearest classes, parts and entries."""
        source = _Source.of(X, "X")
        return self._fitted(source).score(source.matrix())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> BlissDetector:
        """Set constructor arguments by name; takes effect at the next fit."""
        known = self._parameter_names()
        for name, value in params.items():
            if name not in known:
                raise InvalidInputError(
                    f"BlissDetector has no parameter {name!r}; it has {', '.join(known)}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        shown = ("k", "lam", "threshold", "contamination", "backend")
        return f"BlissDetector({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def _threshold_of(self, images: _Source) -> float:
        if self.threshold is not None:
            return float(self.threshold)
        scores = self._score(images)
        return float(np.quantile(scores[np.isfinite(scores)], 1 - self.contamination))

    def _fitted(self, images: _Source) -> BlissScorer:
        if not hasattr(self, "_scorer"):
            raise InvalidInputError("this BlissDetector is not fitted; call fit(X, y) first")
        _require_compatible(self._vocabulary_source, images)
        return self._scorer

    def _score(self, images: _Source) -> npt.NDArray[np.float64]:
        scorer = self._fitted(images)
        scores = np.full(images.rows, np.nan)
        for start, rows, good in images.batches():
            part = scores[start : start + rows.shape[0]]
            part[good] = scorer.score(rows[good]).anomaly
        return scores


class _Source:
    """An array or a store, read in batches."""

    def __init__(
        self, what: str, array: npt.NDArray[Any] | None, store: EmbeddingStore | None
    ) -> None:
        self.what = what
        self.array = array
        self.store = store

    @classmethod
    def of(cls, value: Embeddings, what: str) -> _Source:
        """Recognise an array, a store, or a path; check what an array holds."""
        if value is None:
            raise InvalidInputError(f"{what} is missing: give an array, a store or its path")
        if isinstance(value, (str, Path)):
            return cls(what, None, EmbeddingStore.open(value))
        if isinstance(value, EmbeddingStore):
            return cls(what, None, value)
        array = np.asarray(value)
        if array.ndim != 2 or array.dtype.kind != "f":
            raise InvalidInputError(
                f"{what} must be a matrix (rows, dim) of floats, got shape {array.shape} of "
                f"{array.dtype}"
            )
        _require_unit(array, what)
        return cls(what, array, None)

    @property
    def rows(self) -> int:
        return int(self.store.rows if self.store is not None else self._array().shape[0])

    @property
    def dim(self) -> int:
        return int(self.store.dim if self.store is not None else self._array().shape[1])

    def matrix(self) -> npt.NDArray[Any]:
        return self.store.embeddings() if self.store is not None else self._array()

    def names(self, count: int) -> tuple[str, ...]:
        if self.store is None:
            return tuple(map(str, range(count)))
        return tuple(self.store.texts() if self.store.kind == "text" else self.store.keys())

    def batches(self) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.bool_]]]:
        """Yield the first row, the rows, and which of them are good."""
        if self.store is None:
            array = self._array()
            yield 0, array, np.ones(array.shape[0], dtype=bool)
            return
        for shard in self.store.iter_shards(check_hash=True):
            yield shard.start, shard.embeddings, shard.good

    def _array(self) -> npt.NDArray[Any]:
        if self.array is None:
            raise InvalidInputError(f"{self.what} is a store, not an array")
        return self.array


def _require_unit(array: npt.NDArray[Any], what: str) -> None:
    checked = array if array.dtype.name != "longdouble" else array.astype(np.float64)
    defects = norm_defects(checked)
    if defects.size:
        rows = array[defects[:1]].astype(np.float64)
        norm = float(np.sqrt((rows * rows).sum()))
        named = ", ".join(map(str, defects[:_ROWS_NAMED]))
        more = " and more" if defects.size > _ROWS_NAMED else ""
        raise InvalidInputError(
            f"{defects.size} of {array.shape[0]} rows of {what} are not of unit norm: row(s) "
            f"{named}{more}; the first has norm {norm:.6g}. Divide rows by their norm, and leave "
            "out zero and NaN rows."
        )


def _require_compatible(first: _Source, second: _Source) -> None:
    if first.dim != second.dim:
        raise InvalidInputError(
            f"{first.what} has dimension {first.dim}, {second.what} has dimension {second.dim}; "
            "were they encoded by the same model?"
        )
    if first.store is not None and second.store is not None:
        require_same_model(first.store.model, second.store.model, first.what, second.what)


def _class_numbers(
    y: Sequence[Any] | npt.ArrayLike | None, rows: int, names: Sequence[str]
) -> npt.NDArray[np.int64]:
    if y is None:
        if len(names) > 1:
            raise InvalidInputError(f"y is needed to tell {len(names)} classes apart")
        return np.zeros(rows, dtype=np.int64)
    labels = np.asarray(y)
    if labels.shape != (rows,):
        raise InvalidInputError(
            f"y has shape {labels.shape}, X has {rows} rows: one label per image is needed"
        )
    if labels.dtype.kind in "iu":
        return labels.astype(np.int64)
    number = {name: c for c, name in enumerate(names)}
    unknown = sorted({str(label) for label in labels} - set(number))
    if unknown:
        raise InvalidInputError(
            f"y names {len(unknown)} classes that class_embeddings has not: "
            f"{', '.join(map(repr, unknown[:_ROWS_NAMED]))}"
        )
    return np.array([number[str(label)] for label in labels], dtype=np.int64)
