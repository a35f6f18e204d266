"""Rows in several arrays, as one matrix: a vocabulary where its files are mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class ShardedRows:
    """The rows of several matrices, one after the other, or some of them.

    Slices and rows by their numbers are arrays, as those of a matrix are; numpy reads the whole as
    an array, which is a copy.

    Parameters
    ----------
    shards
        At least one C-contiguous matrix, all of one type and with rows of one length. Kept by
        reference: do not change them afterwards.
    selected : (n,) int64 array, default=None
        Numbers of the rows that it consists of; by default all.
    """

    ndim = 2

    def __init__(
        self, shards: Sequence[npt.NDArray[Any]], selected: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.shards = tuple(shards)
        self._selected = selected
        self._starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.dtype: np.dtype[Any] = self.shards[0].dtype
        rows = int(self._starts[-1]) if selected is None else selected.size
        self.shape = (rows, int(self.shards[0].shape[1]))

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("rows in several arrays are copied to become one")
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        if not isinstance(rows, slice):
            return self._gathered(np.asarray(rows))
        start, stop, step = rows.indices(self.shape[0])
        if step != 1 or self._selected is not None:
            return self._gathered(np.arange(start, stop, step))
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces: list[npt.NDArray[Any]] = []
        for shard, begin in zip(self.shards[first:], self._starts[first:], strict=False):
            if begin >= stop and pieces:
                break
            pieces.append(shard[max(0, start - begin) : max(0, stop - begin)])
        if not pieces:  # behind the last row
            pieces.append(self.shards[-1][:0])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _gathered(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        if rows.size and not -self.shape[0] <= rows.min() <= rows.max() < self.shape[0]:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {self.shape[0]}")
        rows = np.where(rows < 0, rows + self.shape[0], rows)
        if self._selected is not None:
            rows = self._selected[rows]
        found = np.empty((*rows.shape, self.shape[1]), dtype=self.dtype)
        homes = np.searchsorted(self._starts, rows, side="right") - 1
        for home in np.unique(homes):
            here = homes == home
            found[here] = self.shards[home][rows[here] - self._starts[home]]
        return found

    def changed(self, change: Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]) -> ShardedRows:
        """Return the same rows of changed shards; `change` is given one and its first row."""
        starts = self._starts.tolist()
        shards = [change(shard, start) for shard, start in zip(self.shards, starts, strict=False)]
        return ShardedRows(shards, self._selected)

    def selected(self, rows: npt.NDArray[np.int64]) -> ShardedRows:
        """Return these rows, where they are."""
        return ShardedRows(self.shards, rows if self._selected is None else self._selected[rows])

    def addresses(self) -> npt.NDArray[np.uint64]:
        """Return where every row begins in memory, (n,) uint64."""
        stride = self.itemsize * self.shape[1]
        found = np.concatenate([
            np.arange(len(shard), dtype=np.uint64) * np.uint64(stride)
            + np.uint64(shard.ctypes.data)
            for shard in self.shards
        ])  # fmt: skip
        return found if self._selected is None else found[self._selected]


Matrix = npt.NDArray[Any] | ShardedRows
"""Rows in one array or in several."""
