"""What follows the search, compiled: internal scores, sums over entries, the smallest total."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.scoring.tables import ExternalTables
from bliss_index.search.inputs import as_matrix, require_dim
from bliss_index.search.isolation import isolated
from bliss_index.search.native.backend import load_native

Winners = tuple[
    npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]
]


def score_kernel_available() -> bool:
    """Whether the compiled extension is here."""
    return load_native()[0] is not None


class NativeScoreKernel:
    """Scores of images against classes; results do not depend on batches or threads.

    Parameters
    ----------
    texts
        (C, d) float64 class text embeddings.
    mu, sigma
        (C,) float64 mean and deviation of each class on its own text.
    lam
        Weight of the mean over the entries.
    threads
        At least 1.
    kernel
        Which one; empty for the best that this processor can run. All give the same bits.

    Raises
    ------
    InvalidInputError
        The compiled extension is not there, or does not run on this processor.
    """

    def __init__(
        self,
        texts: npt.NDArray[np.float64],
        mu: npt.NDArray[np.float64],
        sigma: npt.NDArray[np.float64],
        lam: float,
        threads: int,
        *,
        kernel: str = "",
    ) -> None:
        native, reason = load_native()
        if native is None:
            raise InvalidInputError(
                f"the native scoring kernel cannot run here: {reason}; use native=False"
            )
        self._classes, self._dim = texts.shape
        self._threads = threads
        arrays = [np.ascontiguousarray(a, dtype=np.float64) for a in (texts, mu, sigma)]
        self._kernel = native.make_score_kernel(
            *(a.ctypes.data for a in arrays), *texts.shape, lam, kernel
        )

    @isolated
    def internal_scores(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """I_c of (n, d) images for every class: (n, C) float64."""
        rows = self._rows(images)
        scores = np.empty((rows.shape[0], self._classes))
        self._kernel.internal(
            rows.ctypes.data, rows.itemsize, *rows.shape, self._threads, scores.ctypes.data
        )
        return scores

    @isolated
    def winners(
        self,
        images: npt.NDArray[Any],
        similarities: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int64],
        tables: ExternalTables,
    ) -> Winners:
        """Find the class of the smallest total.

        Parameters
        ----------
        images
            (n, d) embeddings.
        similarities, ids
            (n, k) of the search.
        tables
            Where all these entries are known; one adds similarity * scale - shift.

        Returns
        -------
        Anomaly scores (n,), nearest classes (n,), and their internal and external scores (n,).
        """
        rows = self._rows(images)
        similarities = np.ascontiguousarray(similarities, dtype=np.float32)
        ids = np.ascontiguousarray(ids, dtype=np.int64)
        n, k = ids.shape
        anomaly, inner, outer = np.empty(n), np.empty(n), np.empty(n)
        nearest = np.empty(n, dtype=np.int64)
        self._kernel.score(
            rows.ctypes.data, rows.itemsize, *rows.shape,
            similarities.ctypes.data, ids.ctypes.data, k, tables.places.ctypes.data,
            len(tables.kept), tables.kept.ctypes.data, tables.fresh.ctypes.data, self._threads,
            anomaly.ctypes.data, nearest.ctypes.data, inner.ctypes.data, outer.ctypes.data,
        )  # fmt: skip
        return anomaly, nearest, inner, outer

    def _rows(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        rows = as_matrix(images, "images")
        require_dim(rows, self._dim, "images")
        return rows
