"""How many processors and threads this process may use."""

from __future__ import annotations

import os

from bliss_index.errors import InvalidInputError


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
        The number, or the environment's, is not a whole number of at least 1.
    """
    if threads is None:
        text = os.environ.get("BLISS_INDEX_THREADS", "")
        if not text:
            return usable_processors()
        if not text.isdigit() or int(text) < 1:
            raise InvalidInputError(
                f"BLISS_INDEX_THREADS must be a whole number of at least 1, got {text!r}"
            )
        return int(text)
    if threads < 1:
        raise InvalidInputError(f"threads must be at least 1, got {threads}")
    return int(threads)
