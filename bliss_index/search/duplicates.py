"""Identical entries: searched once, and put back into results afterwards.

A vocabulary with many identical vectors would make every one of them a candidate wherever one is.
Only the first of each set of identical rows is searched; its copies follow from it, because equal
vectors have equal inner products and ties are ordered by id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.search.sharded import Matrix

if TYPE_CHECKING:
    import torch

_ROWS_AT_ONCE = 8192
_PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Duplicates:
    """Sets of identical rows.

    Attributes
    ----------
    first
        (U,) the first row of every set, ascending.
    starts, members
        Set u consists of the rows ``members[starts[u]:starts[u + 1]]``, ascending.
    """

    first: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]

    def arrays(self) -> list[npt.NDArray[np.int64]]:
        """The three, as they are kept in files: little-endian, one after the other."""
        parts = (self.first, self.starts, self.members)
        return [part.astype("<i8", copy=False) for part in parts]

    @staticmethod
    def arrays_bytes(rows: int, sets: int) -> int:
        """Bytes of the three in a file."""
        return 8 * (2 * sets + 1 + rows)

    @classmethod
    def of_arrays(cls, content: npt.NDArray[np.uint8], sets: int) -> Duplicates:
        """Read what a file holds of the three, of so many sets."""
        numbers = np.frombuffer(content, dtype="<i8").astype(np.int64)
        return cls(*np.split(numbers, [sets, 2 * sets + 1]))

    def expand(
        self, values: npt.NDArray[np.float64], sets: npt.NDArray[np.int64], k: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Turn the best sets of every query (n, min(k, U)) into its k best rows.

        ``values`` (n, min(k, U)) must be equal exactly where inner products are, so that members
        of different sets with equal values are merged by id.
        """
        import torch

        if sets.shape[1] == k and (self.starts[sets + 1] - self.starts[sets] == 1).all():
            return values, self.first[sets]
        found = self.expand_tensors(torch.from_numpy(values), torch.from_numpy(sets), k)
        return found[0].numpy(), found[1].numpy()

    def expand_tensors(
        self, values: torch.Tensor, sets: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`expand` of tensors, on their device."""
        import torch

        first, starts, members = (
            torch.from_numpy(part).to(sets.device)
            for part in (self.first, self.starts, self.members)
        )
        counts = (starts[sets + 1] - starts[sets]).clamp(max=k)
        if sets.shape[1] == k:
            several = (counts > 1).any(1).nonzero()[:, 0]
            best, ids = values.clone(), first[sets]
        else:
            n = sets.shape[0]
            several = torch.arange(n, device=sets.device)
            best, ids = values.new_empty((n, k)), sets.new_empty((n, k))
        tied = (values[several, 1:] == values[several, :-1]).any(1)
        for rows, expand in ((several[~tied], _in_turn), (several[tied], _merged)):
            for part in torch.split(rows, max(1, _PAIRS_AT_ONCE // (k * sets.shape[1]))):
                best[part], ids[part] = expand(
                    values[part], starts[sets[part]], counts[part], members, k
                )
        return best, ids


def _in_turn(
    values: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor, members: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of all members of every row's sets, whose values differ: one set after another."""
    import torch

    ends = counts.cumsum(1)
    place = torch.arange(k, device=values.device).expand(values.shape[0], k)
    at = torch.searchsorted(ends, place.contiguous(), right=True)
    before = (ends - counts).gather(1, at)
    return values.gather(1, at), members[starts.gather(1, at) + place - before]


def _merged(
    values: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor, members: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best of all members of every row's sets: by value, and then by id."""
    import torch

    n, width = values.shape
    each = counts.reshape(-1)
    place = torch.arange(n * width, device=values.device).repeat_interleave(each)
    step = torch.arange(place.shape[0], device=values.device) - (each.cumsum(0) - each)[place]
    ids = members[starts.reshape(-1)[place] + step]
    ids, order = ids.sort()
    place = place[order]
    value, order = values.reshape(-1)[place].sort(descending=True, stable=True)
    ids, row = ids[order], place[order] // width
    row, order = row.sort(stable=True)
    totals = counts.sum(1)
    chosen = (totals.cumsum(0) - totals)[:, None] + torch.arange(k, device=values.device)
    return value[order][chosen], ids[order][chosen]


def find_duplicates(matrix: Matrix) -> Duplicates | None:
    """Find the sets of bytewise identical rows of C-contiguous arrays; None if all differ."""
    size = matrix.shape[0]
    digests = row_digests(matrix)
    ordered = np.sort(digests)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    leader = first[inverse]
    suspects = np.flatnonzero(leader != np.arange(size))
    for start in range(0, suspects.size, _ROWS_AT_ONCE):
        part = suspects[start : start + _ROWS_AT_ONCE]
        same = (_as_bytes(matrix[part]) == _as_bytes(matrix[leader[part]])).all(axis=1)
        # Rows that only share a digest stand for themselves.
        leader[part[~same]] = part[~same]
    if (leader == np.arange(size)).all():
        return None
    unique, sets = np.unique(leader, return_inverse=True)
    members = np.argsort(sets, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(sets, minlength=unique.size))])
    return Duplicates(unique.astype(np.int64), starts.astype(np.int64), members.astype(np.int64))


def _as_bytes(matrix: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(matrix).view(np.uint8)


def row_digests(matrix: Matrix) -> npt.NDArray[np.uint64]:
    """Return (n,) uint64, equal for identical rows: a random linear form of a row's words."""
    row_bytes = matrix.itemsize * matrix.shape[1]
    word = np.dtype(np.uint64 if row_bytes % 8 == 0 else f"u{matrix.itemsize}")
    factors = np.random.default_rng(20240717).integers(
        1, 2**63, size=row_bytes // word.itemsize, dtype=np.uint64
    )
    factors |= np.uint64(1)
    digests = np.empty(matrix.shape[0], dtype=np.uint64)
    for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
        part = matrix[start : start + _ROWS_AT_ONCE].view(word).astype(np.uint64, copy=False)
        digests[start : start + _ROWS_AT_ONCE] = np.einsum("ij,j->i", part, factors)
    return digests
