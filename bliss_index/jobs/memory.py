"""How much memory a job may take, and how sizes are written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bliss_index.errors import InvalidInputError, JobError

BASE_BYTES = 512 << 20  # the interpreter and its libraries
_SHARE = 0.8
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a job will use at most, whatever the number of rows.

    Attributes
    ----------
    pieces : dict of str to int
        What one process holds, in words, and its bytes.
    workers : int
        Processes.
    batch_rows : int
        Rows of one batch.
    budget : int
        Bytes allowed.
    """

    pieces: dict[str, int]
    workers: int
    batch_rows: int
    budget: int

    @property
    def total(self) -> int:
        """Bytes of all processes together, and of the one that started them."""
        return self.workers * (BASE_BYTES + sum(self.pieces.values())) + _starter(self.workers)

    def describe(self) -> str:
        """Say in one line what was planned."""
        pieces = "".join(f"{name} {format_bytes(size)}, " for name, size in self.pieces.items())
        return (
            f"memory: at most {format_bytes(self.total)} of {format_bytes(self.budget)} "
            f"({self.workers} x ({pieces}libraries {format_bytes(BASE_BYTES)})"
            + (f" and {format_bytes(BASE_BYTES)} to start them)" if self.workers > 1 else ")")
        )


def _starter(workers: int) -> int:
    """Bytes of the process that starts workers, where it is none itself."""
    return BASE_BYTES if workers > 1 else 0


def fit_memory(
    pieces: dict[str, int],
    batch: str,
    row: int,
    *,
    workers: int,
    budget: int | None,
    least: int,
    most: int,
    what: str,
    remedy: str,
) -> MemoryPlan:
    """Choose the largest batch that keeps a job within its budget.

    Parameters
    ----------
    pieces
        What one process holds besides the rows of a batch.
    batch
        What a batch is called, with a ``{}`` for its number of rows.
    row
        Bytes of one row.
    workers
        Processes.
    budget
        Bytes of the host; None for 80 % of what is available now.
    least, most
        Bounds of the rows of a batch.
    what, remedy
        For the error.

    Raises
    ------
    JobError
        Even the smallest batch does not fit; both sizes are named.
    """
    allowed = int(available_memory() * _SHARE) if budget is None else budget
    fixed = BASE_BYTES + sum(pieces.values())
    rows = ((allowed - _starter(workers)) // workers - fixed) // row
    if rows < least:
        needed = workers * (fixed + least * row) + _starter(workers)
        raise JobError(
            f"{workers} worker{'s' * (workers > 1)} need at least {format_bytes(needed)} of "
            f"memory for {what}, the budget is {format_bytes(allowed)}; raise --memory, "
            f"lower --workers{remedy}"
        )
    rows = int(min(most, rows))
    return MemoryPlan({**pieces, batch.format(rows): rows * row}, workers, rows, allowed)


def available_memory() -> int:
    """Bytes that this process may still take: the system's, or its control group's if fewer."""
    free = _meminfo_available()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            free = min(free, max(0, most - now))
    return free


def parse_bytes(text: str) -> int:
    """Read a size such as "8GiB", "500MB" or "2000000000".

    Raises
    ------
    InvalidInputError
        It is no such text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    units = {**_UNITS, **_BINARY_UNITS}
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise InvalidInputError(f"{text!r} is not a size; write for example 8GiB or 500MB")
    return int(float(match[1]) * units[match[2]])


def format_bytes(size: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the processor or on a device."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _meminfo_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
