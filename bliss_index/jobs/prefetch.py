"""Read the next item while this one is worked on."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the same items, each fetched in a thread while its predecessor is in use."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        following: Future[list[T]] = pool.submit(_take, items)
        while taken := following.result():
            following = pool.submit(_take, items)
            yield taken[0]


def _take(items: Iterator[T]) -> list[T]:
    # A list, because StopIteration cannot travel through a future.
    for item in items:
        return [item]
    return []
