"""Doing several things of a sequence at once, in threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_threads(
    function: Callable[[A], B], items: Iterable[A], threads: int, *, ahead: int = 1
) -> Iterator[B]:
    """Call a function of every item; results come in the order of the items.

    Parameters
    ----------
    function
        What to call, with an item.
    items : iterable
        Asked for by the calling thread, when one is needed.
    threads : int
        Calls at once; with 1 they are made by the calling thread itself.
    ahead : int, default=1
        Items that are ready for the next thread that is free.

    Yields
    ------
    The results. An error of a call is raised in its place; what has not begun then never does.
    """
    if threads == 1:
        for item in items:
            yield function(item)
        return
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads, "bliss-index-stream") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= threads + ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
