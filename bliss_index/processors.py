"""How many processors and threads this process may use."""

from __future__ import annotations

import os
from numbers import Integral

from bliss_index.errors import InvalidInputError

MAX_THREADS = 4096  # every thread has a workspace of some megabytes


def usable_processors() -> int:
    """Return the number of processors: those of this process's affinity, where it is known."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(threads: int | None) -> int:
    """Return `threads`, else BLISS_INDEX_THREADS, else the number of usable processors.

    Raises
    ------
    InvalidInputError
        The number, or the environment's, is not a whole number from 1 to ``MAX_THREADS``.
    """
    if threads is not None:
        return _checked(threads, "threads", repr(threads))
    text = os.environ.get("BLISS_INDEX_THREADS", "")
    if not text:
        return usable_processors()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    return _checked(number, "BLISS_INDEX_THREADS", repr(text))


def _checked(number: object, name: str, given: str) -> int:
    if isinstance(number, Integral) and not isinstance(number, bool):
        whole = int(number)
        if 1 <= whole <= MAX_THREADS:
            return whole
    raise InvalidInputError(
        f"{name} must be a whole number of at least 1 and at most {MAX_THREADS}, got {given}; "
        f"this process may use {usable_processors()} processors"
    )
