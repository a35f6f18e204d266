"""Finds keys that occur twice among millions, in 8 bytes a key."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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


class RepeatedKeys:
    """Finds keys that occur in several parts, among any number: hashes go to temporary files.

    Keys of equal hash meet in one of the files, which are read one after the other. A context
    manager; the files have no name.
    """

    _FILES = 64

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._files: list[Any] = []
        for _ in range(self._FILES):
            file = tempfile.TemporaryFile(prefix="bliss-keys-")  # noqa: SIM115
            self._files.append(self._stack.enter_context(file))

    def __enter__(self) -> RepeatedKeys:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, keys: Iterable[str]) -> None:
        """Take the keys of a part; one that occurs twice in it counts once."""
        hashes = np.unique(np.fromiter((_hash(key) for key in keys), dtype=np.uint64))
        for number, run in enumerate(np.split(hashes, self._bounds(hashes))):
            self._files[number].write(run.tobytes())

    def _bounds(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        step = (1 << 64) // self._FILES
        edges = np.arange(1, self._FILES, dtype=np.uint64) * np.uint64(step)
        return np.searchsorted(hashes, edges)

    def suspects(self) -> set[int]:
        """Hashes that occur more than once."""
        found: set[int] = set()
        for file in self._files:
            file.seek(0)
            hashes = np.sort(np.frombuffer(file.read(), dtype=np.uint64))
            found.update(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        return found


def repeated_keys(parts: Callable[[], Iterable[Iterable[str]]], most: int) -> tuple[int, list[str]]:
    """Count the keys that occur in several parts.

    Parameters
    ----------
    parts
        Called for the keys of every part; a second time only where hashes meet.
    most
        How many to name.

    Returns
    -------
    Their number, and the first ones.
    """
    with RepeatedKeys() as keys:
        for part in parts():
            keys.add(part)
        suspects = keys.suspects()
    if not suspects:
        return 0, []
    seen: dict[str, int] = {}
    for part in parts():
        for key in {key for key in part if _hash(key) in suspects}:
            seen[key] = seen.get(key, 0) + 1
    found = [key for key, count in seen.items() if count > 1]
    return len(found), sorted(found)[:most]
