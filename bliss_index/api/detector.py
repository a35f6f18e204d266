"""BLISS as a detector with the habits of scikit-learn."""

from __future__ import annotations

import inspect
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import Calibration, calibrate
from bliss_index.calibration.advice import few_images_warning
from bliss_index.calibration.calibration import require_weight
from bliss_index.calibration.labels import NO_CLASS, ClassNames
from bliss_index.errors import (
    CalibrationWarning,
    InvalidInputError,
    listed,
    not_fitted_error,
)
from bliss_index.evaluation.weights import AUTO, choose_weights
from bliss_index.report import ReportOptions, ReportSummary, make_report
from bliss_index.report.groups import Groups, groups_of_arrays
from bliss_index.scoring import ScoreSettings, run_job
from bliss_index.scoring.explained import ExplainedScores
from bliss_index.scoring.formulas import Scores
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.thresholds import held_out_scores, large_enough, least_images
from bliss_index.search import ExactSearch, exact_search
from bliss_index.search.inputs import (
    as_array,
    as_matrix,
    column_names,
    require_real,
    require_same_order,
)
from bliss_index.search.isolation import isolated
from bliss_index.store import EmbeddingStore, ModelIdentity, StoreWriter, require_same_model
from bliss_index.store.normalise import norm_defects
from bliss_index.store.schema import OK

if TYPE_CHECKING:

    class _Estimator:
        """scikit-learn's bases, where it is installed."""

else:
    try:
        from sklearn.base import BaseEstimator, OutlierMixin

        class _Estimator(OutlierMixin, BaseEstimator):
            """scikit-learn's bases."""

    except ImportError:

        class _Estimator:
            """Nothing to inherit."""


_FOLDS = 5

_BFLOAT16_TOLERANCE = 2.0**-8  # of norms; a value keeps eight significant bits

_LOGGER = logging.getLogger("bliss_index")

Embeddings: TypeAlias = "npt.ArrayLike | EmbeddingStore | str | Path"
"""A (n, d) array of unit rows, an :class:`EmbeddingStore`, or the path of one.

A tensor counts as an array (also of bfloat16, with a gradient, or on a GPU), and so does a table
(pandas, polars, Arrow). Rows of bfloat16 that are of unit norm up to its rounding are divided by
their norm.
"""


class BlissDetector(_Estimator):
    """Bias-corrected language-image anomaly detection.

    Parameters
    ----------
    vocabulary
        (W, d) unit text embeddings of the external texts: an array, a store or its path.
    class_embeddings
        (C, d) unit text embeddings of the normal classes' prompts; a store's texts are the names.
    class_names : sequence of str, default=None
        C names of the normal classes, where `class_embeddings` is an array; by default "0", ...
    entry_names : sequence of str, default=None
        W names of the entries, where `vocabulary` is an array; by default "entry 0", ...
    k
        Vocabulary entries per image.
    lam
        Weight lambda of the external score.
    shrinkage : float, default=0
        N: every variance is mixed with the class's mean variance over the vocabulary, which weighs
        as much as N images; see :class:`bliss_index.calibration.Calibration`. For classes of few
        images; 0 is the paper's.
    image_weight : float or "auto", default=0
        W: the weight of the image term, by which the mean image of a class has a say beside its
        text; see :mod:`bliss_index.calibration.image_term`. For classes whose names the model does
        not know. "auto" chooses it and lambda from the images that are fitted
        (:func:`bliss_index.evaluation.weights.choose_weights`), and keeps `lam` and no image term
        unless others are clearly better; it needs two classes. 0 is the paper's.
    threshold
        Anomaly score above which :meth:`predict` says anomaly; None to take it from
        `contamination`. Not NaN.
    contamination
        Share of new normal images above the threshold, on average, in (0, 0.5]. The threshold
        comes from the calibration images, each scored by a calibration of the others (five folds;
        :func:`bliss_index.scoring.thresholds.held_out_scores`). It needs
        1 / contamination - 1 images; with fewer it is the largest of their scores. Of images that
        are left out (label -1) none counts.
    backend, threads, device
        As in :class:`bliss_index.search.ExactSearch`; they never change results.

    Attributes
    ----------
    calibration_ : Calibration
        Moments of the normal classes, after :meth:`fit`; with the lambda and the image weight in
        use.
    classes_ : (C,) array
        Names of the normal classes.
    threshold_ : float
        The threshold in use: an image is an anomaly above this anomaly score.
    offset_ : float
        The same on scikit-learn's scale, ``-threshold_``: ``decision_function = score_samples -
        offset_``.
    left_out_ : int
        Images that neither the calibration nor the threshold comes from: those labelled -1, and a
        store's bad rows.
    feature_names_in_ : (d,) array of str
        Names of the columns of X, where it was a table with names.

    Examples
    --------
    Random embeddings stand for those of a model here.

    >>> from bliss_index.bench.synthetic import clip_like
    >>> vocabulary, classes = clip_like(500, 64, "text", 1), clip_like(2, 64, "text", 2)
    >>> images = clip_like(100, 64, "image", 3)
    >>> detector = BlissDetector(vocabulary, classes, contamination=0.1).fit(images, [0, 1] * 50)
    >>> detector.anomaly_score(images).shape
    (100,)
    >>> new = clip_like(100, 64, "image", 4)
    >>> bool((detector.predict(new) == 1).mean() > 0.8)
    True
    """

    _estimator_type = "outlier_detector"  # what scikit-learn before 1.6 asks for

    def __init__(
        self,
        vocabulary: Embeddings | None = None,
        class_embeddings: Embeddings | None = None,
        *,
        class_names: Sequence[str] | None = None,
        entry_names: Sequence[str] | None = None,
        k: int = 10,
        lam: float = 0.5,
        shrinkage: float = 0.0,
        image_weight: float | str = 0.0,
        threshold: float | None = None,
        contamination: float = 0.05,
        backend: str = "auto",
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.class_embeddings = class_embeddings
        self.class_names = class_names
        self.entry_names = entry_names
        self.k = k
        self.lam = lam
        self.shrinkage = shrinkage
        self.image_weight = image_weight
        self.threshold = threshold
        self.contamination = contamination
        self.backend = backend
        self.threads = threads
        self.device = device

    @isolated
    def fit(self, X: Embeddings, y: Sequence[Any] | npt.ArrayLike | None = None) -> BlissDetector:
        """Learn what images of the normal classes look like.

        Parameters
        ----------
        X
            (n, d) unit embeddings of normal images.
        y
            n classes: numbers 0..C-1, or names where the classes have names. May be left out
            where there is one class. -1 leaves an image out: it is neither calibrated with, nor
            counted for the threshold; how many are left out is logged as a warning.

        Raises
        ------
        InvalidInputError
            Shapes, norms or labels do not fit.
        CalibrationError
            A class has fewer than two different images; with a shrinkage, none.
        ModelMismatchError
            Stores of different models were given.

        Warns
        -----
        CalibrationWarning
            A class has fewer than ten images and `shrinkage` is 0; or no class has enough images
            to hold any out for the threshold.
        """
        require_real(
            self.contamination, "contamination", "lie in (0, 0.5]", lambda share: 0 < share <= 0.5
        )
        if self.threshold is not None:
            require_real(self.threshold, "threshold", "be a number, or None")
        vocabulary = _rows_of(self.vocabulary, "vocabulary", self.entry_names, "entry_names")
        texts = _rows_of(self.class_embeddings, "class_embeddings", self.class_names, "class_names")
        images = _rows_of(X, "X")
        for other in (texts, images):
            _require_compatible(vocabulary, other)
            require_same_order(other.columns, vocabulary.columns, other.what, vocabulary.what)
        for source in (vocabulary, texts, images):
            source.require_unit()
        entries = vocabulary.matrix()
        search = exact_search(
            entries, self.k, backend=self.backend, threads=self.threads, device=self.device
        )
        names = texts.names()
        labels = _class_numbers(y, images.rows, names)
        calibration = calibrate(
            (
                (rows, np.where(good, labels[start : start + rows.shape[0]], -1))
                for start, rows, good in images.batches()
            ),
            texts.matrix(),
            names,
            shrinkage=self.shrinkage,
        )
        calibration = self._with_weights(calibration, images, labels, entries, search)
        if text := few_images_warning(calibration):
            warnings.warn(text, CalibrationWarning, stacklevel=2)
        self._scorer = BlissScorer(
            search, entries, calibration, lam=calibration.lam, threads=self.threads
        )
        self._vocabulary_source = vocabulary
        self.calibration_ = calibration
        self.classes_ = np.array(names)
        self.n_features_in_ = calibration.dim
        self._columns = images.columns
        if images.columns is not None and all(isinstance(name, str) for name in images.columns):
            self.feature_names_in_ = np.array(images.columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        self.left_out_ = images.rows - calibration.images
        if (labels == NO_CLASS).any():
            _LOGGER.warning(
                "%d of %d images are labelled %d: they are left out of the calibration and of the "
                "threshold", (labels == NO_CLASS).sum(), images.rows, NO_CLASS,
            )  # fmt: skip
        self.threshold_ = self._threshold_of(images, labels)
        self.offset_ = -self.threshold_
        return self

    @isolated
    def anomaly_score(self, X: Embeddings) -> npt.NDArray[np.float64]:
        """Return the (n,) anomaly scores S(x), higher = more anomalous; NaN for a store's bad rows.

        Raises
        ------
        NotFittedError
            The detector is not fitted; it is scikit-learn's, too, where that is installed.
        InvalidInputError
            The dimension or the names of columns differ, or rows of an array are not of unit norm;
            they are named.
        """
        return self._score(self._checked(X))

    def score_samples(self, X: Embeddings) -> npt.NDArray[np.float64]:
        """Return the (n,) negated anomaly scores: higher = more normal, as in scikit-learn."""
        return -self.anomaly_score(X)

    def decision_function(self, X: Embeddings) -> npt.NDArray[np.float64]:
        """Return ``score_samples - offset_``, (n,): negative = anomaly, as in scikit-learn."""
        return np.asarray(self.score_samples(X) - self.offset_)

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

    @isolated
    def explain(self, X: Embeddings) -> ExplainedScores:
        """Return the scores with their reasons: nearest classes, both parts, entries in words.

        Raises
        ------
        InvalidInputError
            As for :meth:`anomaly_score`.

        Examples
        --------
        >>> from bliss_index.bench.synthetic import clip_like
        >>> vocabulary, classes = clip_like(500, 64, "text", 1), clip_like(2, 64, "text", 2)
        >>> detector = BlissDetector(vocabulary, classes, class_names=["cat", "dog"], k=3)
        >>> images = clip_like(100, 64, "image", 3)
        >>> found = detector.fit(images, ["cat", "dog"] * 50).explain(images[:5])
        >>> found.to_arrow().num_rows
        5
        """
        images = self._checked(X)
        scores = self._scorer.score(images.matrix())
        return ExplainedScores(
            **{field.name: getattr(scores, field.name) for field in fields(scores)},
            classes=tuple(map(str, self.classes_)),
            entries=np.asarray(self._vocabulary_source.names(), dtype=object)[scores.ids],
            contributions=self._scorer.contributions(scores),
            threshold=self.threshold_,
        )

    @isolated
    def groups(self, X: Embeddings) -> Groups:
        """Gather the anomalies into groups that the vocabulary names; their number is found.

        Parameters
        ----------
        X
            (n, d) unit embeddings.

        Returns
        -------
        Groups
            ``examples`` are rows of X. See :func:`bliss_index.report.groups.groups`.

        Raises
        ------
        InvalidInputError
            As for :meth:`anomaly_score`.
        """
        images = self._checked(X)
        rows: list[npt.NDArray[np.int64]] = []
        found: list[Scores] = []
        for start, some, good in images.batches():
            scores = self._scorer.score(some[good])
            above = scores.anomaly > self.threshold_
            rows.append(start + np.flatnonzero(good)[above])
            values = (getattr(scores, field.name)[above] for field in fields(scores))
            found.append(Scores(*values))
        vocabulary = self._vocabulary_source
        return groups_of_arrays(
            vocabulary.matrix(), vocabulary.names(), np.concatenate(rows),
            np.concatenate([scores.anomaly for scores in found]),
            np.concatenate([scores.ids for scores in found]),
            np.concatenate([scores.similarities for scores in found]), self.threshold_,
        )  # fmt: skip

    def report(
        self,
        X: Embeddings,
        out: str | Path = "report.html",
        *,
        keys: Sequence[str] | None = None,
        images: str | Path | None = None,
        gallery: int = 24,
    ) -> ReportSummary:
        """Write the page of ``bliss-index report`` about images: groups, histogram, galleries.

        Parameters
        ----------
        X
            (n, d) unit embeddings. Those in float64 are scored as float32.
        out : str or Path, default="report.html"
            The page.
        keys : sequence of str, default=None
            n different names of the images; by default a store's keys, or "0", "1", ... Paths below
            `images` show them.
        images : str or Path, default=None
            Folder of the images, for pictures.
        gallery : int, default=24
            Number of the most anomalous images to show, and half as many borderline ones.

        Returns
        -------
        ReportSummary

        Raises
        ------
        InvalidInputError
            As for :meth:`anomaly_score`, or keys are not n different ones.
        MissingDependencyError
            Jinja2 is not installed.
        OutputError
            The page cannot be written.
        """
        rows = self._checked(X)
        names = list(rows.names() if keys is None else map(str, keys))
        if len(names) != rows.rows or len(set(names)) != len(names):
            raise InvalidInputError(
                f"keys must be {rows.rows} different names, one an image; got {len(names)}, "
                f"{len(set(names))} of them different"
            )
        above = float(np.nextafter(self.threshold_, np.inf))  # flags are from a threshold on
        with tempfile.TemporaryDirectory(prefix="bliss-index-") as temporary:
            place = Path(temporary)
            vocabulary = self._vocabulary_source
            entries = list(vocabulary.names())
            unique = entries if len(set(entries)) == len(entries) else list(
                map(str, range(len(entries)))
            )  # fmt: skip
            _write_store(place / "corpus", vocabulary.matrix(), unique, texts=entries)
            good = np.concatenate([some for _, _, some in rows.batches()])
            status = np.where(good, OK, _NO_EMBEDDING).tolist()
            _write_store(place / "images", rows.matrix(), names, status=status)
            replace(self.calibration_, model=_UNSAID).save(place / "calibration")
            settings = ScoreSettings(
                str(place / "corpus"), str(place / "calibration"), self.k, self._scorer.lam,
                device="cpu", threads=self.threads, explain=True, threshold=above,
            )  # fmt: skip
            run_job(place / "images", place / "scores", settings)
            options = ReportOptions(
                images=None if images is None else Path(images), gallery=gallery,
                title=Path(out).stem,
            )  # fmt: skip
            return make_report(place / "scores", out, options)

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

    def __sklearn_tags__(self) -> Any:
        """Say what kind of estimator this is; scikit-learn asks."""
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.allow_nan = False
        return tags

    def __repr__(self) -> str:
        shown = ("k", "lam", "threshold", "contamination", "backend")
        return f"BlissDetector({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def _threshold_of(self, images: _Rows, labels: npt.NDArray[np.int64]) -> float:
        """Return the threshold: the given one, or that of held-out images."""
        if self.threshold is not None:
            return float(self.threshold)
        scores = self._held_out_scores(images, labels)
        if scores.size == 0:
            warnings.warn(
                "no class has three images to hold one out in turn (two with a shrinkage, four "
                "with an image term alone), so the "
                "threshold of predict() comes from images that the detector knows, and flags far "
                f"more than {self.contamination:.0%} of new normal images; give more images, a "
                "shrinkage or a threshold",
                CalibrationWarning,
                stacklevel=3,
            )
            known = self._score(images)[labels != NO_CLASS]
            scores = known[np.isfinite(known)]
        rank = math.ceil((scores.size + 1) * (1 - self.contamination) - 1e-9)
        return float(np.sort(scores)[min(rank, scores.size) - 1])

    def _with_weights(
        self,
        calibration: Calibration,
        images: _Rows,
        labels: npt.NDArray[np.int64],
        entries: npt.NDArray[Any],
        search: ExactSearch,
    ) -> Calibration:
        """Give a calibration lambda and the image weight: the given ones, or chosen ones."""
        if self.image_weight != AUTO:
            require_weight("image_weight", self.image_weight)
            return replace(calibration, lam=self.lam, image_weight=float(self.image_weight))
        require_weight("lam", self.lam)
        used = _good_rows(images) & (labels != NO_CLASS)
        chosen = choose_weights(
            images.matrix()[used], labels[used], calibration.class_embeddings, entries, search,
            shrinkage=self.shrinkage, lam=float(self.lam),
        )  # fmt: skip
        return replace(calibration, lam=chosen.lam, image_weight=chosen.image_weight)

    def _held_out_scores(
        self, images: _Rows, labels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Scores of the images of classes that are large enough, each by the others."""
        good = _good_rows(images)
        calibration = self.calibration_
        remaining = least_images(calibration.shrinkage, calibration.image_weight)
        counts = np.bincount(labels[good & (labels >= 0)], minlength=len(self.classes_))
        large = large_enough(counts, _FOLDS, remaining)
        used = good & (labels >= 0)
        held = used.copy()
        held[used] = large[labels[used]]
        if not held.any():
            return np.empty(0)
        scores = held_out_scores(
            images.matrix()[used], labels[used], calibration.class_embeddings,
            self._vocabulary_source.matrix(), self._scorer.search, lam=self._scorer.lam,
            folds=_FOLDS, shrinkage=calibration.shrinkage,
            image_weight=calibration.image_weight, held=held[used],
        )  # fmt: skip
        return scores[held[used]]

    def _checked(self, X: Embeddings) -> _Rows:
        """Images that this detector can score."""
        if not hasattr(self, "_scorer"):
            raise not_fitted_error("this BlissDetector is not fitted; call fit(X, y) first")
        images = _rows_of(X, "X")
        _require_compatible(self._vocabulary_source, images)
        require_same_order(images.columns, self._columns, images.what, "the images of fit")
        self._require_names(images.columns)
        require_same_order(
            images.columns, self._vocabulary_source.columns, images.what, "vocabulary"
        )
        images.require_unit()
        return images

    def _require_names(self, names: tuple[Any, ...] | None) -> None:
        """Refuse columns that are not those of fit, of which only the names can tell."""
        known = getattr(self, "feature_names_in_", None)
        if names is None or known is None or not all(isinstance(name, str) for name in names):
            return
        unseen = [name for name in names if name not in set(known)]
        if unseen:
            raise InvalidInputError(
                f"X has {len(unseen)} columns that fit did not see: {listed(unseen)}; fit saw "
                f"{listed(list(known))}"
            )

    def _score(self, images: _Rows) -> npt.NDArray[np.float64]:
        scores = np.full(images.rows, np.nan)
        for start, rows, good in images.batches():
            part = scores[start : start + rows.shape[0]]
            part[good] = self._scorer.score(rows[good]).anomaly
        return scores


@dataclass(frozen=True, eq=False)
class _ArrayRows:
    """The rows of an array; all of them are good."""

    what: str
    array: npt.NDArray[Any]
    columns: tuple[Any, ...] | None = None
    given: tuple[str, ...] | None = None

    model = None

    def require_unit(self) -> None:
        """Raise InvalidInputError, naming rows, unless an array's are of unit norm."""
        _require_unit(self.array, self.what)

    @property
    def rows(self) -> int:
        return int(self.array.shape[0])

    @property
    def dim(self) -> int:
        return int(self.array.shape[1])

    def matrix(self) -> npt.NDArray[Any]:
        return self.array

    def names(self) -> tuple[str, ...]:
        if self.given is not None:
            return self.given
        prefix = "entry " if self.what == "vocabulary" else ""
        return tuple(f"{prefix}{row}" for row in range(self.rows))

    def batches(self) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.bool_]]]:
        """Yield the first row, the rows, and which of them are good."""
        yield 0, self.array, np.ones(self.rows, dtype=bool)


@dataclass(frozen=True, eq=False)
class _StoreRows:
    """The rows of a store, read shard by shard."""

    what: str
    store: EmbeddingStore

    columns = None

    @property
    def model(self) -> ModelIdentity:
        return self.store.model

    @property
    def rows(self) -> int:
        return self.store.rows

    @property
    def dim(self) -> int:
        return self.store.dim

    def matrix(self) -> npt.NDArray[Any]:
        return self.store.embeddings()

    def require_unit(self) -> None:
        """A store's rows are of unit norm where they are good."""

    def names(self) -> tuple[str, ...]:
        return tuple(self.store.texts() if self.store.kind == "text" else self.store.keys())

    def batches(self) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.bool_]]]:
        """Yield the first row, the rows, and which of them are good."""
        for shard in self.store.iter_shards():
            yield shard.start, shard.embeddings, shard.good


_Rows = _ArrayRows | _StoreRows


def _rows_of(
    value: Embeddings | None,
    what: str,
    names: Sequence[str] | None = None,
    called: str = "names",
) -> _Rows:
    """Recognise an array, a store or a path; an array's rows may be given names."""
    if value is None:
        raise InvalidInputError(f"{what} is missing: give an array, a store or its path")
    if isinstance(value, (str, Path, EmbeddingStore)):
        if names is not None:
            raise InvalidInputError(
                f"{called} are for arrays; {what} is a store, whose texts are the names"
            )
        opened = value if isinstance(value, EmbeddingStore) else EmbeddingStore.open(value)
        return _StoreRows(what, opened)
    matrix = as_matrix(_on_processor(value), what)
    if names is None:
        return _ArrayRows(what, matrix, column_names(value))
    given = tuple(map(str, names))
    if len(given) != matrix.shape[0]:
        raise InvalidInputError(
            f"{called} must be one for each of the {matrix.shape[0]} rows of {what}, got "
            f"{len(given)}"
        )
    if called == "class_names" and len(set(given)) < len(given):
        raise InvalidInputError(f"{called} must be different, got {listed(list(given))}")
    return _ArrayRows(what, matrix, column_names(value), given)


def _good_rows(images: _Rows) -> npt.NDArray[np.bool_]:
    """(n,) bool: rows that have an embedding."""
    good = np.zeros(images.rows, dtype=bool)
    for start, rows, there in images.batches():
        good[start : start + rows.shape[0]] = there
    return good


def _on_processor(value: Any) -> Any:
    """Bring a tensor from a GPU, widen one of bfloat16; leave everything else."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor) or value.device.type == "meta":
        return value
    if value.device.type != "cpu":
        value = value.detach().cpu()
    if value.dtype != torch.bfloat16 or value.ndim != 2:
        return value
    wide = value.detach().double().numpy()
    norms = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    rounded = np.abs(norms - 1) <= _BFLOAT16_TOLERANCE  # rows that were of unit norm before
    return (wide / np.where(rounded, norms, 1.0)).astype(np.float32)


_UNSAID = ModelIdentity("unsaid", None)
_NO_EMBEDDING = "no_embedding"


def _write_store(
    path: Path,
    rows: npt.NDArray[Any],
    keys: list[str],
    texts: list[str] | None = None,
    status: list[str] | None = None,
) -> None:
    kind = "image" if texts is None else "text"
    dtype = "float16" if rows.dtype == np.float16 else "float32"
    with StoreWriter(path, kind=kind, model=_UNSAID, dim=rows.shape[1], dtype=dtype) as writer:
        writer.append(keys, rows, texts=texts, status=status)


def _require_unit(array: npt.NDArray[Any], what: str) -> None:
    defects = norm_defects(array)
    if defects.size:
        rows = array[defects[:1]].astype(np.float64)
        norm = float(np.sqrt((rows * rows).sum()))
        raise InvalidInputError(
            f"{defects.size} of {array.shape[0]} rows of {what} are not of unit norm: row(s) "
            f"{listed(defects.tolist())}; the first has norm {norm:.6g}. Divide rows by their "
            "norm, and leave out zero and NaN rows."
        )


def _require_compatible(first: _Rows, second: _Rows) -> None:
    if first.dim != second.dim:
        raise InvalidInputError(
            f"{first.what} has dimension {first.dim}, {second.what} has dimension {second.dim}; "
            "were they encoded by the same model?"
        )
    if first.model is not None and second.model is not None:
        require_same_model(first.model, second.model, first.what, second.what)


def _class_numbers(
    y: Sequence[Any] | npt.ArrayLike | None, rows: int, names: Sequence[str]
) -> npt.NDArray[np.int64]:
    if y is None:
        if len(names) > 1:
            raise InvalidInputError(f"y is needed to tell {len(names)} classes apart")
        return np.zeros(rows, dtype=np.int64)
    labels = as_array(y, "y")
    if labels.shape != (rows,):
        raise InvalidInputError(
            f"y has shape {labels.shape}, X has {rows} rows: one label per image is needed"
        )
    if labels.dtype.kind == "f":  # as tables keep whole numbers
        odd = labels[~(np.isfinite(labels) & (np.rint(labels) == labels))]
        if odd.size:
            raise InvalidInputError(
                f"y holds {odd[0]}; class numbers are whole, 0 to {len(names) - 1}"
            )
    if labels.dtype.kind in "iuf":
        return labels.astype(np.int64)
    given = [str(label) for label in labels]
    find = ClassNames(names)
    number = {name: find.position(name) for name in set(given)}
    unknown = sorted(name for name, position in number.items() if position is None)
    if unknown:
        raise InvalidInputError(
            f"y names {len(unknown)} classes that class_embeddings does not have: "
            f"{listed([repr(name) for name in unknown])}"
        )
    return np.array([number[name] for name in given], dtype=np.int64)
