"""Keys: what they mean, and which occur twice among any number, by hashes of 128 bits.

Of a billion different keys, two have one hash with a probability of 2e-21: a hash stands for its
key.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_NAMED = 10
"""Keys that a message names."""
HASH_BYTES = 16
_TYPE = f"S{HASH_BYTES}"
_FILES = 64
_IN_MEMORY = 1 << 16  # bytes of each of them; only what is more takes a file of the disk


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


def key_meaning(key: str) -> str:
    """What a key names, however a system writes it: 'a/b', './a/b' and 'a\\b'; '7' and '7.0'.

    Letters with accents are those of Unicode's form NFC.
    """
    plain = unicodedata.normalize("NFC", key).replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain[:-2] if re.fullmatch(r"-?[0-9]+\.0", plain) else plain


def _hashes(keys: Iterable[str]) -> npt.NDArray[np.bytes_]:
    digests = (
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
        for key in keys
    )
    return np.frombuffer(b"".join(digests), dtype=_TYPE)


def repeated_keys(parts: Callable[[], Iterable[Sequence[str]]], most: int) -> tuple[int, list[str]]:
    """Count the keys that occur in several parts, among any number: 16 bytes a key on disk.

    Hashes go to temporary files without a name, by their first bits: equal ones meet in one of
    them, which are read one after the other.

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
    step = 256 // _FILES
    edges = np.array([bytes([first]) for first in range(step, 256, step)], dtype=_TYPE)
    count, wanted = 0, set[bytes]()
    with contextlib.ExitStack() as stack:
        files: list[Any] = [
            stack.enter_context(
                tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, prefix="bliss-keys-")
            )
            for _ in range(_FILES)
        ]
        for part in parts():
            hashes = np.unique(_hashes(part))  # one that occurs twice in a part counts once
            runs = np.split(hashes, np.searchsorted(hashes, edges))
            for file, run in zip(files, runs, strict=True):
                file.write(run.tobytes())
        for file in files:
            file.seek(0)
            hashes = np.sort(np.frombuffer(file.read(), dtype=_TYPE))
            repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
            count += repeated.size
            wanted.update(repeated[: most - len(wanted)].tolist())
    names: set[str] = set()
    for part in parts() if wanted else ():
        found = zip(part, _hashes(part).tolist(), strict=True)
        names.update(key for key, hashed in found if hashed in wanted)
        if len(names) == len(wanted):
            break
    return count, sorted(names)
