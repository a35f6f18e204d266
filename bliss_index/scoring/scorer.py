"""Scores of images on the processor: search, tables, the minimum over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import Calibration
from bliss_index.calibration.calibration import require_weight
from bliss_index.devices import thread_count
from bliss_index.errors import InvalidInputError
from bliss_index.scoring.formulas import Scores
from bliss_index.scoring.native_kernel import NativeScoreKernel, Winners, score_kernel_available
from bliss_index.scoring.tables import ExternalTables, KnownRows
from bliss_index.search.inputs import as_matrix
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import TopKSearch
from bliss_index.search.sharded import Matrix

BLOCK_ROWS = 1024

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


class Scorer(Protocol):
    """What a bulk job needs of a scorer: its work in four steps, so that batches can overlap.

    A batch is staged, searched and combined, and while one is searched the next is staged. Images
    and search results are of the scorer's own kind: arrays for :class:`BlissScorer`, tensors on
    the GPU for :class:`bliss_index.scoring.device_scorer.DeviceScorer`.
    """

    calibration: Calibration

    def stage(self, images: npt.NDArray[Any], /) -> Any:
        """Bring (n, d) images to where they are scored; the result has a shape and slices."""
        ...

    def find(self, images: Any, /) -> tuple[Any, Any]:
        """Search staged images: similarities and ids (n, k)."""
        ...

    def join(self, pieces: Sequence[Any], /) -> tuple[Any, Any]:
        """Put the results of successive images together."""
        ...

    def combine(self, images: Any, similarities: Any, ids: Any, /) -> Scores:
        """Score staged images whose search is done."""
        ...

    def contributions(self, scores: Scores, /) -> npt.NDArray[np.float64]:
        """What each entry adds to the anomaly score: (n, k)."""
        ...


class BlissScorer:
    """Scores images against one vocabulary and one calibration.

    Scores of an image do not depend on the images around it, nor on how many come at once.

    Parameters
    ----------
    search
        Top-k search over `vocabulary`; its k is the score's k.
    vocabulary
        (W, d) text embeddings, unit norm.
    calibration
        The normal classes.
    lam
        Weight lambda of the external score, at least 0.
    threads
        Threads of the compiled code; by default BLISS_INDEX_THREADS, else all usable processors.
    native
        Whether to use the compiled code for what follows the search; by default wherever it is
        installed. It adds the d terms of an internal score in another order than numpy does, so
        these agree to 1e-12 or better; everything else is the same.
    before
        Rows of the tables that were computed before; see :mod:`bliss_index.scoring.kept_tables`.

    Raises
    ------
    InvalidInputError
        Dimensions or sizes differ; both are named.
    """

    @isolated
    def __init__(
        self,
        search: TopKSearch,
        vocabulary: Matrix,
        calibration: Calibration,
        *,
        lam: float = 0.5,
        threads: int | None = None,
        native: bool | None = None,
        before: KnownRows | None = None,
    ) -> None:
        require_fitting(search, vocabulary, calibration, lam)
        self._made_of = (search, vocabulary, calibration)
        self._options: dict[str, Any] = {"lam": lam, "threads": threads, "native": native}
        self.search = search
        self.calibration = calibration
        self.lam = float(lam)
        self.tables = ExternalTables(vocabulary, calibration, threads, before)
        vectors, self._mu, self._sigma = calibration.class_terms(self.tables.prior)
        self._vectors = vectors.T.copy()
        self._native = None
        if score_kernel_available() if native is None else native:
            self._native = NativeScoreKernel(
                vectors, self._mu, self._sigma, lam, thread_count(threads)
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # Tables are computed again as entries occur: compiled code and its memory stay behind.
        return partial(type(self), **self._options), self._made_of

    @property
    def k(self) -> int:
        """Vocabulary entries per image."""
        return self.search.k

    def stage(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the images: they are scored where they are."""
        return images

    def find(self, images: npt.NDArray[Any]) -> Found:
        """Search (n, d) images: similarities and ids (n, k) of the entries nearest to them."""
        return self.search.search(images)

    def join(self, pieces: Sequence[Found]) -> Found:
        """Put the results of successive images together."""
        similarities, ids = zip(*pieces, strict=True)
        return np.concatenate(similarities), np.concatenate(ids)

    @isolated
    def score(self, images: npt.NDArray[Any]) -> Scores:
        """Score (n, d) unit image embeddings.

        Raises
        ------
        InvalidInputError
            A dimension differs, or rows hold NaN or infinity.
        """
        images = as_matrix(images, "images")
        return self.combine(images, *self.search.search(images))

    @isolated
    def combine(
        self,
        images: npt.NDArray[Any],
        similarities: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int64],
    ) -> Scores:
        """Score images whose search is done.

        Parameters
        ----------
        images
            (n, d) unit image embeddings.
        similarities, ids
            (n, k) what :attr:`search` found for them.
        """
        images = as_matrix(images, "images")
        self.tables.require(ids)
        if self._native is not None:
            winners = self._native.winners(images, similarities, ids, self.tables)
            return Scores(*winners, similarities, ids)
        n = similarities.shape[0]
        anomaly, internal, external = np.empty(n), np.empty(n), np.empty(n)
        nearest = np.empty(n, dtype=np.int64)
        for start in range(0, n, BLOCK_ROWS):
            part = slice(start, min(n, start + BLOCK_ROWS))
            anomaly[part], nearest[part], internal[part], external[part] = self._winners(
                images[part], similarities[part], ids[part]
            )
        return Scores(anomaly, nearest, internal, external, similarities, ids)

    def _winners(
        self,
        images: npt.NDArray[Any],
        similarities: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int64],
    ) -> Winners:
        """Scores, classes and parts of the smallest totals, by numpy."""
        inner = self.internal_scores(images)
        outer = self.external_scores(similarities, ids)
        total = inner + self.lam * outer
        winner = total.argmin(axis=1)
        rows = np.arange(winner.size)
        return total[rows, winner], winner, inner[rows, winner], outer[rows, winner]

    @isolated
    def internal_scores(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """I_c of (n, d) images for every class, with the image term's share: (n, C) float64."""
        if self._native is not None:
            return self._native.internal_scores(images)
        scores = np.empty((images.shape[0], len(self.calibration.classes)))
        # Always the same shape: a matrix product's last bits may depend on it.
        block = np.zeros((BLOCK_ROWS, images.shape[1]))
        for start in range(0, images.shape[0], BLOCK_ROWS):
            part = images[start : start + BLOCK_ROWS]
            block[: part.shape[0]] = part
            similarity = (block @ self._vectors)[: part.shape[0]]
            scores[start : start + BLOCK_ROWS] = (self._mu - similarity) / self._sigma
        return scores

    @isolated
    def image_scores(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """W J_c of (n, d) images, the image term's share of their internal scores: (n, C)."""
        calibration = self.calibration
        if not calibration.image_weight:
            return np.zeros((images.shape[0], len(calibration.classes)))
        terms = calibration.image_term(self.tables.prior).scores(images)
        return np.asarray(calibration.image_weight * terms)

    @isolated
    def external_scores(
        self, similarities: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """E_c for every class, (n, C) float64, of entries (n, k) whose tables are known.

        Terms are added in the order of the entries, in float64, so that every way of computing
        them gives the same bits.
        """
        total: npt.NDArray[np.float64] = np.zeros((ids.shape[0], len(self.calibration.classes)))
        for j in range(ids.shape[1]):
            total += self._term(similarities[:, j], ids[:, j])
        return np.asarray(total / ids.shape[1])

    @isolated
    def contributions(self, scores: Scores) -> npt.NDArray[np.float64]:
        """What each entry adds to the anomaly score: (n, k) float64, summing to lambda E."""
        return np.asarray(self.deviations(scores) * (self.lam / scores.ids.shape[1]))

    @isolated
    def deviations(self, scores: Scores) -> npt.NDArray[np.float64]:
        """(<x, t_w> - mu_cw) / sigma_cw of the entries, for the nearest class: (n, k) float64."""
        terms: npt.NDArray[np.float64] = np.empty(scores.ids.shape)
        rows = np.arange(scores.ids.shape[0])
        for j in range(terms.shape[1]):
            term = self._term(scores.similarities[:, j], scores.ids[:, j])
            terms[:, j] = term[rows, scores.nearest_class]
        return terms

    def _term(
        self, similarity: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        rows = self.tables.rows(ids)
        scale = rows[:, 0].astype(np.float64)
        return np.asarray(similarity.astype(np.float64)[:, None] * scale - rows[:, 1])


def require_fitting(
    search: TopKSearch, vocabulary: Matrix, calibration: Calibration, lam: float
) -> None:
    """Raise InvalidInputError, naming both, unless these can be scored with together."""
    require_weight("lam", lam)
    if vocabulary.shape != (search.size, search.dim):
        raise InvalidInputError(
            f"the search is over {search.size} x {search.dim} entries, the vocabulary is "
            f"{' x '.join(map(str, vocabulary.shape))}"
        )
    if calibration.dim != search.dim:
        raise InvalidInputError(
            f"the calibration has dimension {calibration.dim}, the vocabulary {search.dim}; "
            "were they encoded by the same model?"
        )
