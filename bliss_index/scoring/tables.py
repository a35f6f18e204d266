"""What normalises the similarity to a vocabulary entry, for every class."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import Calibration
from bliss_index.search.isolation import isolated
from bliss_index.search.sharded import Matrix

_LEAST_ENTRIES = 256
_MOST_ENTRIES = 2048
_MOST_PAIRS = 1 << 19


def entries_at_once(classes: int) -> int:
    """How many entries' rows are computed in one call, which bounds the memory it takes."""
    return max(_LEAST_ENTRIES, min(_MOST_ENTRIES, _MOST_PAIRS // classes))


@dataclass(frozen=True, eq=False)
class KnownRows:
    """Rows of tables that were computed before.

    Attributes
    ----------
    ids : (K,) int64 array
        Their entries, ascending.
    rows : (K, 2, C) float32 array
        The scales of all classes, and their shifts.
    prior : (C,) float64 array or None
        Mean variances over the vocabulary, where the calibration shrinks towards them.
    """

    ids: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float32]
    prior: npt.NDArray[np.float64] | None


class ExternalTables:
    """What normalises the similarity to an entry, for every class.

    (s - mu_cw) / sigma_cw = s A_wc - B_wc with A = 1 / sigma, the scale, and B = mu / sigma, the
    shift, float32. An entry's row is the C scales and then the C shifts. Rows are computed when an
    entry first occurs in a top k; :meth:`require` does that.

    Parameters
    ----------
    vocabulary
        (W, d) text embeddings.
    calibration
        The normal classes.
    threads
        Threads of the compiled code; by default BLISS_INDEX_THREADS, else all usable processors.
    before
        Rows of just these two that were computed before.

    Attributes
    ----------
    prior : (C,) array or None
        Mean variances over the vocabulary, where the calibration shrinks towards them.
    places : (W,) int64 array
        Where an entry's row is: in `kept`, else behind it in `fresh`; -1 where it is not known.
    kept, fresh : (rows, 2, C) float32 arrays
        Rows computed before, and those since.
    seconds : float
        What computing rows took.
    """

    def __init__(
        self,
        vocabulary: Matrix,
        calibration: Calibration,
        threads: int | None = None,
        before: KnownRows | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._threads = threads
        self._calibration = calibration
        self.seconds = 0.0
        self._lock = threading.Lock()
        self.places = np.full(vocabulary.shape[0], -1, dtype=np.int64)
        row = (2, len(calibration.classes))
        if before is None:
            began = time.perf_counter()
            self.prior = calibration.prior_of(vocabulary)
            self.seconds += time.perf_counter() - began
            self.kept = np.empty((0, *row), dtype=np.float32)
        else:
            self.prior = before.prior
            self.kept = before.rows
            self.places[before.ids] = np.arange(before.ids.size)
        self.known = len(self.kept)
        # Pages of this array that no row touches are never given memory by the system.
        self.fresh = np.empty((self.places.size - self.known, *row), dtype=np.float32)

    def rows(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the rows of known entries: of ids (...), (..., 2, C)."""
        places = self.places[ids]
        if not len(self.kept):
            return np.asarray(self.fresh[places])
        rows = np.empty((*places.shape, *self.kept.shape[1:]), dtype=np.float32)
        before = places < len(self.kept)
        rows[before] = self.kept[places[before]]
        rows[~before] = self.fresh[places[~before] - len(self.kept)]
        return rows

    @isolated
    def require(self, ids: npt.NDArray[np.int64]) -> None:
        """Compute the rows of these entries, of any shape, unless they are known already.

        All images of the classes are read, however few entries there are, so these are joined by
        others that are not known yet. Otherwise the rare entries of a long job would cost most.
        """
        with self._lock:
            self._compute(ids)

    def _compute(self, ids: npt.NDArray[np.int64]) -> None:
        wanted = np.zeros(self.places.size, dtype=bool)
        wanted[ids.reshape(-1)] = True
        missing = np.flatnonzero(wanted & (self.places < 0))
        if missing.size == 0:
            return
        began = time.perf_counter()
        if free := max(0, _LEAST_ENTRIES - missing.size):
            others = np.flatnonzero(~wanted & (self.places < 0))[:free]
            missing = np.concatenate([missing, others])
        at_once = entries_at_once(self.fresh.shape[2])
        for start in range(0, missing.size, at_once):
            entries = missing[start : start + at_once]
            mu, sigma = self._calibration.statistics(
                self._vocabulary[entries], self.prior, threads=self._threads
            )
            first = self.known - len(self.kept)
            rows = self.fresh[first : first + entries.size]
            rows[:, 0] = 1.0 / sigma
            rows[:, 1] = mu / sigma
            self.places[entries] = np.arange(self.known, self.known + entries.size)
            self.known += entries.size
        self.seconds += time.perf_counter() - began
