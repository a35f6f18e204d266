"""Entries of a vocabulary that say nearly the same: repetition that its size hides."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bliss_index.search.exact import ExactSearch
from bliss_index.store import EmbeddingStore

NEAR = 0.95
"""Similarity from which two entries count as nearly the same."""

_MOST_QUERIES = 20_000
_EXAMPLES = 5


@dataclass(frozen=True)
class NearEntries:
    """How many entries have another one that says nearly the same.

    Attributes
    ----------
    compared
        Entries that were compared with all others: all of them, or some drawn at random.
    near
        Those among them with another entry at a similarity of NEAR or more.
    examples
        Pairs of such entries and their similarity, the most similar first.
    """

    compared: int
    near: int
    examples: tuple[tuple[str, str, float], ...]

    def __str__(self) -> str:
        named = ", ".join(f"{one!r} and {other!r}" for one, other, _ in self.examples)
        such = f", such as {named}" if named else ""
        return (
            f"{self.near} of {self.compared} entries have another one that is nearly the same "
            f"(similarity {NEAR} or more){such}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {**asdict(self), "similarity": NEAR}


def near_entries(corpus: EmbeddingStore, *, threads: int | None = None) -> NearEntries:
    """Find entries whose embedding is near another's; the store is read into memory.

    Parameters
    ----------
    corpus
        A text store of two entries or more.
    threads : int, default=None
        As for :class:`bliss_index.search.ExactSearch`.

    Returns
    -------
    NearEntries
        Of all entries, or of 20,000 drawn at random.
    """
    rows = corpus.embeddings()
    chosen = np.arange(rows.shape[0])
    if chosen.size > _MOST_QUERIES:
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:_MOST_QUERIES])
    similarities, ids = ExactSearch(rows, 2, threads=threads).search(rows[chosen])
    # An entry itself comes first, but for one of equal similarity and smaller number.
    other = np.where(ids[:, 0] == chosen, 1, 0)
    at = np.arange(chosen.size)
    value, entry = similarities[at, other], ids[at, other]
    near = np.flatnonzero(value >= NEAR)
    texts = corpus.texts()
    pairs: dict[tuple[int, int], float] = {}
    for row in near[np.argsort(-value[near], kind="stable")]:
        pair = (min(int(chosen[row]), int(entry[row])), max(int(chosen[row]), int(entry[row])))
        pairs.setdefault(pair, float(value[row]))
        if len(pairs) == _EXAMPLES:
            break
    examples = tuple((texts[a], texts[b], round(found, 4)) for (a, b), found in pairs.items())
    return NearEntries(int(chosen.size), int(near.size), examples)
