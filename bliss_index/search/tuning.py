"""How hard an approximate index must search, measured on held-out image queries.

Text embeddings lie far from image embeddings (the modality gap), close to each other. An entry of
the vocabulary used as a query finds its neighbours in its own cell, so recall measured on text
queries promises more than images will get. Both are measured here; only the images' counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.search.exact import exact_search
from bliss_index.search.faiss.kinds import INDEX_KINDS
from bliss_index.search.faiss.search import FaissSearch
from bliss_index.search.inputs import as_matrix, require_dim
from bliss_index.search.near_index import NearSearch
from bliss_index.search.protocol import TopKSearch

_LEAST_QUERIES = 20
_MOST_QUERIES = 4096


@dataclass(frozen=True)
class TuningReport:
    """The effort chosen on image queries, and what text queries would have suggested.

    Recall is the share of the k results whose inner product is at least the k-th best of an exact
    search, so that of equal entries any may be returned.

    Attributes
    ----------
    kind, effort_name, k
        The index that was tuned, what its effort is called, and results per query.
    target
        The recall that was asked for.
    parameter
        The smallest effort whose recall on one half of the image queries reaches the target.
    recall
        Recall at ``parameter`` on the other half, which had no part in the choice.
    queries
        Image queries in that other half.
    text_parameter
        The effort that text queries suggest for the same target; None where none reaches it.
    text_recall_reported
        The recall that text queries promise at ``text_parameter`` (or at the largest effort).
    image_recall_at_text_parameter
        The recall that images of the other half get there.
    text_recall_at_parameter
        The recall of text queries at ``parameter``.
    text_queries
        Number of text queries.
    """

    kind: str
    effort_name: str
    k: int
    target: float
    parameter: int
    recall: float
    queries: int
    text_parameter: int | None
    text_recall_reported: float
    image_recall_at_text_parameter: float
    text_recall_at_parameter: float
    text_queries: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields, and in words how recall was measured."""
        return {**asdict(self), "measured_on": self.describe()}

    def describe(self) -> str:
        """Say in two sentences what was chosen, and what text queries would have suggested."""
        text = (
            f"{self.effort_name} {self.text_parameter}"
            if self.text_parameter is not None
            else f"no {self.effort_name}"
        )
        return (
            f"{self.effort_name} {self.parameter} gives recall@{self.k} {self.recall:.4f} on "
            f"{self.queries} held-out image queries (target {self.target:g}, chosen on others). "
            f"Text queries would have suggested {text}, promising "
            f"{self.text_recall_reported:.4f} where images get "
            f"{self.image_recall_at_text_parameter:.4f}."
        )


def tune_index(
    index: FaissSearch | NearSearch,
    image_queries: npt.ArrayLike,
    target_recall: float = 0.95,
    k: int | None = None,
    *,
    text_queries: npt.ArrayLike | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> TuningReport:
    """Find the smallest effort that reaches a recall on image queries.

    Parameters
    ----------
    index
        A near, ivf, ivfpq, hnsw or cagra index; ``index.replace(effort=report.parameter)`` applies
        the result.
    image_queries
        (n, d) embeddings of images, n >= 20, of the kind that will be searched with. A random half
        chooses, the other measures; at most 4096 of each are used.
    target_recall
        In (0, 1].
    k
        Results per query; the index's own by default.
    text_queries
        Held-out text embeddings to compare with; by default entries of the vocabulary, each
        excluded from its own results.
    seed
        Of the choice of queries.
    threads
        Threads of the exact search that the index is compared with; by default all.

    Raises
    ------
    InvalidInputError
        A flat index (exact already), too few queries, a target out of range, or one that even the
        largest effort does not reach; the message names the best recall.
    """
    if index.effort_name is None:
        raise InvalidInputError("a flat index is exact: there is nothing to tune")
    if not 0 < target_recall <= 1:
        raise InvalidInputError(f"target_recall must lie in (0, 1], got {target_recall}")
    search = index.replace(k=k)
    images = as_matrix(image_queries, "image queries")
    require_dim(images, index.dim, "image queries")
    if images.shape[0] < _LEAST_QUERIES:
        raise InvalidInputError(
            f"tuning needs at least {_LEAST_QUERIES} image queries, got {images.shape[0]}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(images.shape[0])
    half = order.size // 2
    exact = exact_search(index.vocabulary, search.k, threads=threads)
    choosing = _Judge(search, exact, images[np.sort(order[:half][:_MOST_QUERIES])])
    measuring = _Judge(search, exact, images[np.sort(order[half:][:_MOST_QUERIES])])
    parameter = smallest_effort(choosing.recall, search.most_effort, target_recall)
    if parameter is None:
        best = choosing.recall(search.most_effort)
        raise InvalidInputError(
            f"recall@{search.k} of {target_recall:g} cannot be reached: the {index.kind} index "
            f"gives {best:.4f} at its largest {index.effort_name}, {search.most_effort}; lower "
            f"the target, build a {INDEX_KINDS[index.kind].better}, or search exactly"
        )
    text = _text_judge(search, text_queries, rng, threads)
    text_parameter = smallest_effort(text.recall, search.most_effort, target_recall)
    suggested = search.most_effort if text_parameter is None else text_parameter
    return TuningReport(
        kind=index.kind,
        effort_name=index.effort_name,
        k=search.k,
        target=float(target_recall),
        parameter=parameter,
        recall=measuring.recall(parameter),
        queries=measuring.size,
        text_parameter=text_parameter,
        text_recall_reported=text.recall(suggested),
        image_recall_at_text_parameter=measuring.recall(suggested),
        text_recall_at_parameter=text.recall(parameter),
        text_queries=text.size,
    )


def smallest_effort(recall: Callable[[int], float], most: int, target: float) -> int | None:
    """Return the smallest effort in 1..most whose recall reaches the target, or None.

    Efforts are doubled until one reaches it, then the gap is halved, as recall grows with effort.
    """
    low, high = 0, 1
    while recall(high) < target:
        if high == most:
            return None
        low, high = high, min(most, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        if recall(middle) >= target:
            high = middle
        else:
            low = middle
    return high


class _Judge:
    """Recall of an index at any effort, for queries whose exact results are known."""

    def __init__(
        self,
        search: FaissSearch | NearSearch,
        exact: TopKSearch,
        queries: npt.NDArray[Any],
        own: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """``own``: the entry that each query itself is, to be left out of its results."""
        self._search = search
        self._queries = queries
        self._own = own
        similarities, ids = exact.search(queries)
        self._kth = self._without_own(similarities, ids)[:, -1]
        self._known: dict[int, float] = {}

    @property
    def size(self) -> int:
        return int(self._queries.shape[0])

    def recall(self, effort: int) -> float:
        """Share of results at least as similar as the exact k-th."""
        if effort not in self._known:
            found = self._without_own(*self._search.replace(effort=effort).search(self._queries))
            self._known[effort] = float((found >= self._kth[:, None]).mean())
        return self._known[effort]

    def _without_own(
        self, similarities: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        if self._own is None:
            return similarities
        keep = ids != self._own[:, None]
        keep[keep.all(axis=1), -1] = False
        others: npt.NDArray[np.float32] = similarities[keep].reshape(ids.shape[0], -1)
        return others


def _text_judge(
    search: FaissSearch | NearSearch,
    text_queries: npt.ArrayLike | None,
    rng: np.random.Generator,
    threads: int | None,
) -> _Judge:
    if text_queries is not None:
        queries = as_matrix(text_queries, "text queries")
        require_dim(queries, search.dim, "text queries")
        exact = exact_search(search.vocabulary, search.k, threads=threads)
        return _Judge(search, exact, queries[:_MOST_QUERIES])
    if search.k == search.size:
        raise InvalidInputError(
            f"k = {search.k} takes the whole vocabulary: there is nothing to tune"
        )
    own = np.sort(rng.permutation(search.size)[: _MOST_QUERIES // 4])
    wider = search.replace(k=search.k + 1)
    exact = exact_search(search.vocabulary, wider.k, threads=threads)
    return _Judge(wider, exact, search.vocabulary[own], own)
