"""Finds keys that occur twice among millions, in 8 bytes a key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt


class KeyRegistry:
    """All keys seen so far, as sorted runs of 64-bit hashes.

    A hash seen before only says that a key may have been seen: the keys themselves then decide.

    Parameters
    ----------
    earlier_keys
        Called to look at all keys registered so far, in order. Only called after a hash was seen
        twice, which among 100 million different keys happens with a probability of 0.03 %.
    """

    def __init__(self, earlier_keys: Callable[[], Iterable[Sequence[str]]]) -> None:
        self._earlier_keys = earlier_keys
        self._runs: list[npt.NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(run.size for run in self._runs)

    def register(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Add keys; return for each whether it occurred before, in this call or an earlier one."""
        hashes = np.fromiter((_hash(key) for key in keys), dtype=np.uint64, count=len(keys))
        suspects = self._seen(hashes)
        order = np.argsort(hashes, kind="stable")
        repeated = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        result = np.zeros(len(keys), dtype=bool)
        if suspects.any():
            wanted = {keys[int(row)] for row in np.flatnonzero(suspects)}
            found = {key for part in self._earlier_keys() for key in part if key in wanted}
            result |= np.fromiter((key in found for key in keys), dtype=bool, count=len(keys))
        if repeated.size:
            seen: set[str] = set()
            for row in range(len(keys)):
                result[row] |= keys[row] in seen
                seen.add(keys[row])
        self._add(np.unique(hashes[~suspects]))
        return result

    def _seen(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        result = np.zeros(hashes.size, dtype=bool)
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, hashes), run.size - 1)
            result |= run[place] == hashes
        return result

    def _add(self, run: npt.NDArray[np.uint64]) -> None:
        # Runs of similar size are merged, so that there are few of them and each hash moves rarely.
        while self._runs and self._runs[-1].size <= 2 * run.size:
            run = np.union1d(self._runs.pop(), run)
        if run.size:
            self._runs.append(run)


def _hash(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
