"""Finds keys that occur twice among any number, by hashes of 128 bits.

Of a billion different keys, two have one hash with a probability of 2e-21: a hash stands for its
key.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_NAMED = 10
"""Keys that a message names."""
HASH_BYTES = 16
_TYPE = f"S{HASH_BYTES}"


class KeyRegistry:
    """All keys seen so far, as sorted runs of hashes: 16 bytes a key, and as many to merge."""

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.bytes_]] = []

    def __len__(self) -> int:
        return sum(run.size for run in self._runs)

    def register(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Add keys; return for each whether it occurred before, in this call or an earlier one."""
        hashes = _hashes(keys)
        repeated = np.ones(hashes.size, dtype=bool)
        different, first = np.unique(hashes, return_index=True)
        repeated[first] = False
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, hashes), run.size - 1)
            repeated |= run[place] == hashes
        self._add(different[~repeated[first]])
        return repeated

    def _add(self, run: npt.NDArray[np.bytes_]) -> None:
        # Runs of similar size are merged, so that there are few of them and each hash moves rarely.
        while self._runs and self._runs[-1].size <= 2 * run.size:
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        if run.size:
            self._runs.append(run)


def _hashes(keys: Iterable[str]) -> npt.NDArray[np.bytes_]:
    digests = (
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
        for key in keys
    )
    return np.frombuffer(b"".join(digests), dtype=_TYPE)


class RepeatedKeys:
    """Finds keys that occur in several parts, among any number: hashes go to temporary files.

    Equal hashes meet in one of the files, which are read one after the other. A context manager;
    the files have no name.
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
        hashes = np.unique(_hashes(keys))
        step = 256 // self._FILES
        edges = np.array([bytes([i]) for i in range(step, 256, step)], dtype=_TYPE)
        runs = np.split(hashes, np.searchsorted(hashes, edges))
        for file, run in zip(self._files, runs, strict=True):
            file.write(run.tobytes())

    def found(self, most: int) -> tuple[int, set[bytes]]:
        """Count the hashes that occur more than once; the first ones are named."""
        count = 0
        first: list[bytes] = []
        for file in self._files:
            file.seek(0)
            hashes = np.sort(np.frombuffer(file.read(), dtype=_TYPE))
            repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
            count += repeated.size
            first += repeated[: most - len(first)].tolist()
        return count, set(first)


def repeated_keys(parts: Callable[[], Iterable[Sequence[str]]], most: int) -> tuple[int, list[str]]:
    """Count the keys that occur in several parts.

    Parameters
    ----------
    parts
        Called for the keys of every part; a second time only where some occur twice.
    most
        How many to name.

    Returns
    -------
    Their number, and some of them in order.
    """
    with RepeatedKeys() as keys:
        for part in parts():
            keys.add(part)
        count, wanted = keys.found(most)
    names: set[str] = set()
    for part in parts() if wanted else ():
        hashes = _hashes(part).tolist()
        names.update(key for key, found in zip(part, hashes, strict=True) if found in wanted)
        if len(names) == len(wanted):
            break
    return count, sorted(names)
