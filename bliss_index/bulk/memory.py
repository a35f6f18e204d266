"""How much memory a job will take, planned before it starts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bliss_index.errors import InvalidInputError, JobError
from bliss_index.scoring import BLOCK_ROWS

MOST_BATCH_ROWS = 8192
MOST_BATCH_ROWS_ON_GPU = 65536
LEAST_BATCH_ROWS = 64
_BASE_BYTES = 512 << 20  # the interpreter and its libraries
_THREAD_BYTES = 12 << 20
_SHARE = 0.8
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a job will use at most, whatever the number of images.

    Attributes
    ----------
    vocabulary, search, tables
        Entries as stored, prepared for the search, and normalisation terms of all entries, of one
        process.
    batch
        Images of one batch and everything computed of them.
    workers
        Processes.
    batch_rows
        Images per batch.
    budget
        Bytes allowed.
    """

    vocabulary: int
    search: int
    tables: int
    batch: int
    workers: int
    batch_rows: int
    budget: int

    @property
    def total(self) -> int:
        """Bytes of all processes together."""
        return self.workers * (
            _BASE_BYTES + self.vocabulary + self.search + self.tables + self.batch
        )

    def describe(self) -> str:
        """Say in one line what was planned."""
        return (
            f"memory: at most {format_bytes(self.total)} of {format_bytes(self.budget)} "
            f"({self.workers} x (vocabulary {format_bytes(self.vocabulary)}, search "
            f"{format_bytes(self.search)}, tables {format_bytes(self.tables)}, batches of "
            f"{self.batch_rows} images {format_bytes(self.batch)}, libraries "
            f"{format_bytes(_BASE_BYTES)}))"
        )


def plan_memory(
    *,
    entries: int,
    dim: int,
    item_bytes: int,
    classes: int,
    k: int,
    threads: int,
    workers: int,
    budget: int | None = None,
    on_gpu: bool = False,
) -> MemoryPlan:
    """Choose the largest batch that keeps a job within its budget.

    Parameters
    ----------
    entries, dim, item_bytes, classes, k
        Size of the vocabulary, of a vector and of its coordinates, of the calibration, of the top.
    threads
        Threads of one process.
    workers
        Processes.
    budget
        Bytes of the host; by default 80 % of what is available now.
    on_gpu
        Whether batches go to a GPU, which wants larger ones.

    Raises
    ------
    JobError
        Even the smallest batch does not fit; both sizes are named.
    """
    allowed = int(available_memory() * _SHARE) if budget is None else budget
    vocabulary = entries * dim * item_bytes
    search = entries * (dim + 64) + threads * _THREAD_BYTES
    tables = 2 * 4 * entries * classes
    row = dim * 16 + k * 64 + 512
    block = BLOCK_ROWS * (8 * dim + 5 * 8 * classes)
    fixed = _BASE_BYTES + vocabulary + search + tables + block
    rows = (allowed // workers - fixed) // row
    if rows < LEAST_BATCH_ROWS:
        needed = workers * (fixed + LEAST_BATCH_ROWS * row)
        raise JobError(
            f"{workers} worker{'s' * (workers > 1)} need at least {format_bytes(needed)} of "
            f"memory for {entries} entries and {classes} classes, the budget is "
            f"{format_bytes(allowed)}; raise --memory, lower --workers, or use a smaller vocabulary"
        )
    most = MOST_BATCH_ROWS_ON_GPU if on_gpu else MOST_BATCH_ROWS
    batch_rows = int(min(most, rows))
    batch = block + batch_rows * row
    return MemoryPlan(vocabulary, search, tables, batch, workers, batch_rows, allowed)


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
