"""What normalises the similarity to a vocabulary entry, for every class."""

from __future__ import annotations

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


class ExternalTables:
    """What normalises the similarity to an entry, for every class.

    (s - mu_cw) / sigma_cw = s A_wc - B_wc with A = 1 / sigma (`scale`) and B = mu / sigma
    (`shift`), both (W, C) float32. The C values of an entry are next to each other in memory. They
    are computed when an entry first occurs in a top k; :meth:`require` does that.

    Parameters
    ----------
    vocabulary
        (W, d) text embeddings.
    calibration
        The normal classes.
    threads
        Threads of the compiled code; by default BLISS_INDEX_THREADS, else all usable processors.

    Attributes
    ----------
    prior : (C,) array or None
        Mean variances over the vocabulary, where the calibration shrinks towards them.
    """

    def __init__(
        self, vocabulary: Matrix, calibration: Calibration, threads: int | None = None
    ) -> None:
        self._vocabulary = vocabulary
        self._threads = threads
        self._calibration = calibration
        self.prior = calibration.prior_of(vocabulary)
        shape = (vocabulary.shape[0], len(calibration.classes))
        # Pages of these arrays that no entry touches are never given memory by the system.
        self.scale = np.empty(shape, dtype=np.float32)
        self.shift = np.empty(shape, dtype=np.float32)
        self._known = np.zeros(shape[0], dtype=bool)

    @property
    def known(self) -> int:
        """Number of entries computed so far."""
        return int(self._known.sum())

    @isolated
    def require(self, ids: npt.NDArray[np.int64]) -> None:
        """Compute the rows of these entries, of any shape, unless they are known already.

        All images of the classes are read, however few entries there are, so these are joined by
        others that are not known yet. Otherwise the rare entries of a long job would cost most.
        """
        wanted = np.zeros_like(self._known)
        wanted[ids.reshape(-1)] = True
        missing = np.flatnonzero(wanted & ~self._known)
        if missing.size and (free := max(0, _LEAST_ENTRIES - missing.size)):
            others = np.flatnonzero(~wanted & ~self._known)[:free]
            missing = np.concatenate([missing, others])
        at_once = entries_at_once(self.scale.shape[1])
        for start in range(0, missing.size, at_once):
            entries = missing[start : start + at_once]
            mu, sigma = self._calibration.statistics(
                self._vocabulary[entries], self.prior, threads=self._threads
            )
            self.scale[entries] = 1.0 / sigma
            self.shift[entries] = mu / sigma
            self._known[entries] = True
