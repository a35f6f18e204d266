"""The fastest exact search here, found by a short measurement. It changes no result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import MissingDependencyError
from bliss_index.search.exact import ExactSearch, exact_search
from bliss_index.search.registry import ENGINES, FAISS

if TYPE_CHECKING:
    from bliss_index.search.faiss.search import FaissSearch

_SAMPLE_ENTRIES = 8192
_SAMPLE_QUERIES = 512
# Below that a job takes a few seconds, and measuring one way costs a tenth of one.
_LEAST_PRODUCTS = 2e12
# The other ways cost two or three seconds, most of it for loading torch and faiss.
_LEAST_SECONDS = 60.0
_ROUNDS = 2


@dataclass(frozen=True)
class SearchChoice:
    """Which exact search was chosen.

    Attributes
    ----------
    name
        One of ``exact_names()`` but "auto".
    rates
        Queries per second of every way that was measured, on a part of the vocabulary.
    reason
        One sentence for people.
    """

    name: str
    rates: dict[str, float]
    reason: str


def choose_search(
    vocabulary: npt.NDArray[Any],
    k: int,
    *,
    queries: npt.NDArray[Any] | None = None,
    rows: int | None = None,
    size: int | None = None,
    threads: int | None = None,
) -> SearchChoice:
    """Measure the exact ways that are installed, on the processor, and name the fastest.

    The way that is fastest on most machines comes first. The others are measured where the images
    to come would keep that one busy for a minute or more.

    Parameters
    ----------
    vocabulary
        (n, d) entries, all or some thousand of them; 8192 are used.
    k
        Results per query.
    queries
        (n, d) queries of the kind to come, some hundred; entries of the vocabulary where there are
        none.
    rows
        How many queries are to come. Where they are few, nothing is measured.
    size
        How many entries there are in all; by default those of `vocabulary`.
    threads
        Threads of the search.
    """
    # One after another: some take a second to load.
    usable = (e.name for e in ENGINES if e.on_processor and e.load().availability()[0])
    first = next(usable)
    size = vocabulary.shape[0] if size is None else size
    if rows is not None and 2.0 * rows * size * vocabulary.shape[1] < _LEAST_PRODUCTS:
        return SearchChoice(first, {}, f"{first} search (too few images to measure others)")
    step = max(1, vocabulary.shape[0] // _SAMPLE_ENTRIES)
    entries = np.ascontiguousarray(vocabulary[::step][:_SAMPLE_ENTRIES])
    sample = entries if queries is None or not queries.size else queries
    sample = np.ascontiguousarray(sample[:_SAMPLE_QUERIES])
    top = min(k, entries.shape[0])
    rates = {}
    for name in chain([first], usable, [FAISS]):
        try:
            search = make_exact(name, entries, top, threads=threads)
        except MissingDependencyError:
            continue
        rates[name] = sample.shape[0] / _seconds(search.search, sample)
        if rows is not None and len(rates) == 1:
            seconds = rows / rates[name] * size / entries.shape[0]
            if seconds < _LEAST_SECONDS:
                reason = f"{name} search (about {seconds:.0f} s: too few images to measure others)"
                return SearchChoice(name, rates, reason)
    fastest = max(rates, key=lambda name: rates[name])
    others = ", ".join(
        f"{name} {rate:,.0f}" for name, rate in sorted(rates.items(), key=lambda pair: -pair[1])
    )
    reason = (
        f"{fastest} search is the fastest exact one here (queries/s against "
        f"{entries.shape[0]} entries: {others})"
    )
    return SearchChoice(fastest, rates, reason)


def make_exact(
    name: str,
    vocabulary: npt.NDArray[Any],
    k: int,
    *,
    threads: int | None = None,
    device: str | None = None,
) -> ExactSearch | FaissSearch:
    """Prepare one of the exact ways: an engine, or "faiss".

    Raises
    ------
    MissingDependencyError
        faiss is asked for and not installed.
    """
    if name == FAISS:
        from bliss_index.search.faiss.build import build_index

        return build_index(vocabulary, "flat", k=k, threads=threads)
    return exact_search(vocabulary, k, backend=name, threads=threads, device=device)


def _seconds(search: Callable[[npt.NDArray[Any]], Any], queries: npt.NDArray[Any]) -> float:
    """Best time of a few rounds, after one that warms up."""
    search(queries[: max(1, queries.shape[0] // 4)])
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        search(queries)
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-9)
