"""How many processors and threads this process may use."""

from __future__ import annotations

import math
import os
from numbers import Integral
from pathlib import Path

from bliss_index.errors import InvalidInputError

MAX_THREADS = 4096  # every thread has a workspace of some megabytes
_CGROUPS = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """Return the number of processors: of this process's affinity, and of its control group."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    quota = _quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _quota() -> float | None:
    """Processors that the control groups of this process allow; None where they allow all."""
    quotas = []
    for line in _read(_CGROUPS / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct"):
            folder = _GROUPS / (controllers and "cpu") / path.lstrip("/")
            # A limit of any group above holds as well; within a container, the root is the own.
            for group in (folder, *folder.parents):
                quotas.extend(_quota_of(group))
                if group == _GROUPS:
                    break
    return min(quotas, default=None)


def _quota_of(group: Path) -> list[float]:
    limits = _read(group / "cpu.max").split()  # version 2: "max 100000", or "150000 100000"
    if not limits:
        limits = [_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = float(limits[0]), float(limits[1])
    except (ValueError, IndexError):
        return []
    return [quota / period] if quota > 0 and period > 0 else []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


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
