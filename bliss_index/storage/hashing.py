"""SHA-256 of files, which may be large: reading one can be ended early."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

CheckCancelled = Callable[[], None]
"""Called again and again while something long goes on; what it raises ends it."""

_CHUNK_BYTES = 1 << 18  # stays in the processor's cache between being read and being hashed


def stream_sha256(file: Any, check_cancelled: CheckCancelled | None = None) -> str:
    """Return the SHA-256 of what an open binary file still holds, in hexadecimal.

    Parameters
    ----------
    file
        Anything with ``readinto``.
    check_cancelled
        Called before every read of 256 KiB.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    while True:
        if check_cancelled is not None:
            check_cancelled()
        count = file.readinto(buffer)
        if not count:
            return digest.hexdigest()
        digest.update(buffer[:count])


def file_sha256(path: Path, check_cancelled: CheckCancelled | None = None) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; see :func:`stream_sha256`."""
    with open(path, "rb", buffering=0) as file:
        return stream_sha256(file, check_cancelled)
