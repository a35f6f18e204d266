"""Inner products in float64 of some pairs of queries and entries, by torch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.search.isolation import without_warnings

if TYPE_CHECKING:
    import torch

_PAIRS_AT_ONCE = 256  # their float64 rows then stay in the second-level cache
_AT_ONCE_NUMBERS = 1 << 18  # of entries in float64 at once, for the same reason
_WIDE_NUMBERS = 1 << 22  # of a vocabulary that is kept in float64 too: 32 MiB


class PairProducts:
    """Products with a vocabulary (W, d), in float64, each a sum in any order.

    torch multiplies the pairs of a sparse matrix in one step, where it has a kernel for that: entry
    by entry, so that each is read and made float64 once for all of its queries. A vocabulary that
    is small enough is kept in float64. Without such a kernel rows are gathered pair by pair.
    """

    def __init__(self, entries: torch.Tensor) -> None:
        import torch

        self._torch = torch
        self._entries = entries
        self._wide: torch.Tensor | None = None
        if entries.numel() <= _WIDE_NUMBERS and has_sampled_products():
            # By numpy, whose thread does not flush denormals; see TorchBackend.
            wide = entries.numpy().astype(np.float64, copy=False)
            self._wide = entries if entries.dtype == torch.float64 else torch.from_numpy(wide)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the vocabulary in float64, where it is kept beside the one that was given."""
        if self._wide is None or self._wide is self._entries:
            return 0
        return int(self._wide.numel() * 8)

    def of(
        self, queries: torch.Tensor, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Multiply queries (n, d) float64 and entries: the products of pairs (rows, ids)."""
        # A sparse tensor warns that it is new: once, unless torch is set to warn always.
        warns = self._torch.is_warn_always_enabled()
        if warns or not rows.size or not has_sampled_products():
            return self._gathered(queries, rows, ids)
        order = _order(ids)
        columns, values = rows[order], np.empty(ids.size)
        if self._wide is not None:
            counts = np.bincount(ids, minlength=self._wide.shape[0])
            starts = np.concatenate([[0], np.cumsum(counts)])
            values[order] = _sampled(self._wide, starts, columns, queries)
            return values
        which, starts = np.unique(ids[order], return_index=True)
        starts = np.append(starts, ids.size)
        at_once = max(1, _AT_ONCE_NUMBERS // queries.shape[1])
        for first in range(0, which.size, at_once):
            part = starts[first : first + at_once + 1]
            pairs = slice(part[0], part[-1])
            chosen = self._torch.from_numpy(which[first : first + at_once])
            wide = self._entries.index_select(0, chosen).double()
            values[order[pairs]] = _sampled(wide, part - part[0], columns[pairs], queries)
        return values

    def _gathered(
        self, queries: torch.Tensor, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        torch = self._torch
        values = torch.empty(rows.size, dtype=torch.float64)
        which, entries = torch.from_numpy(rows), torch.from_numpy(ids)
        for start in range(0, rows.size, _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            t = self._entries.index_select(0, entries[part]).double()
            values[part] = t.mul_(queries.index_select(0, which[part])).sum(1)
        return np.asarray(values.numpy())


@cache
def has_sampled_products() -> bool:
    """Whether this torch multiplies the pairs of a sparse matrix in float64."""
    import torch

    eye = torch.eye(2, dtype=torch.float64)
    try:
        with without_warnings():  # said once: sparse tensors of torch are new
            found = _sampled(eye, np.array([0, 1, 2]), np.array([0, 1]), eye)
    except (AttributeError, NotImplementedError, RuntimeError):  # not on every processor
        return False
    return bool((found == 1).all())


def _order(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sort by id: by 16 bits at once, which numpy counts instead of comparing."""
    order = np.argsort(ids.astype(np.uint16), kind="stable")
    for bits in range(16, int(ids.max()).bit_length(), 16):
        order = order[np.argsort((ids[order] >> bits).astype(np.uint16), kind="stable")]
    return order


def _sampled(
    left: torch.Tensor,
    starts: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    right: torch.Tensor,
) -> npt.NDArray[np.float64]:
    """Multiply row i of the left and rows ``columns[starts[i] : starts[i + 1]]`` of the right."""
    import torch

    pairs = torch.sparse_csr_tensor(
        torch.from_numpy(starts), torch.from_numpy(columns),
        torch.zeros(columns.size, dtype=torch.float64),
        size=(left.shape[0], right.shape[0]), check_invariants=False,
    )  # fmt: skip
    product: Any = torch.sparse.sampled_addmm(pairs, left, right.t(), beta=0.0)
    return np.asarray(product.values().numpy())
