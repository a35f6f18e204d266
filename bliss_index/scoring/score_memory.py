"""How much memory a scoring job takes, planned before it starts."""

from __future__ import annotations

from collections.abc import Mapping

from bliss_index.jobs.memory import MemoryPlan, fit_memory
from bliss_index.scoring.scorer import BLOCK_ROWS
from bliss_index.scoring.tables import entries_at_once

MOST_BATCH_ROWS = 8192
MOST_BATCH_ROWS_ON_GPU = 65536
LEAST_BATCH_ROWS = 64
_THREAD_BYTES = 12 << 20
_MANY_ENTRIES, _THREAD_BYTES_FOR_MANY = 16384, 20 << 20  # the search then has more room
_ROW_BYTES_OF_LISTS = 20 << 10  # a near search has room for the candidates of all queries at once


def plan_memory(
    *,
    entries: int,
    dim: int,
    item_bytes: int,
    classes: int,
    k: int,
    threads: int,
    workers: int,
    calibration: int = 0,
    images: Mapping[str, int] | None = None,
    image_bytes: int = 0,
    budget: int | None = None,
    on_gpu: bool = False,
    near: bool = False,
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
    calibration : int, default=0
        Bytes of the calibration: moments, or the images of small classes.
    images : mapping of str to int, optional
        What the input holds in memory besides a batch.
    image_bytes : int, default=0
        Bytes of a row as it is read.
    budget
        Bytes of the host; by default 80 % of what is available now.
    on_gpu
        Whether batches go to a GPU, which wants larger ones.
    near
        Whether the search is the one by lists.

    Raises
    ------
    JobError
        Even the smallest batch does not fit; both sizes are named.
    """
    thread_bytes = _THREAD_BYTES if entries < _MANY_ENTRIES else _THREAD_BYTES_FOR_MANY
    pieces = {
        "vocabulary": entries * dim * item_bytes,
        "search": entries * (dim + 64) + threads * thread_bytes,
        "tables": 2 * 4 * entries * classes,
        "calibration": calibration,
        "blocks": BLOCK_ROWS * (8 * dim + 5 * 8 * classes)
        + entries_at_once(classes) * (10 * dim + 7 * 8 * classes),
        **(images or {}),
    }
    return fit_memory(
        pieces,
        "batches of {} images",
        dim * 16 + k * 64 + 512 + image_bytes + near * (_ROW_BYTES_OF_LISTS + 96 * k),
        workers=workers,
        budget=budget,
        least=LEAST_BATCH_ROWS,
        most=MOST_BATCH_ROWS_ON_GPU if on_gpu else MOST_BATCH_ROWS,
        what=f"{entries} entries and {classes} classes",
        remedy=", or use a smaller vocabulary",
    )
