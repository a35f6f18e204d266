"""Inner products in float64 of some pairs of queries and entries, by torch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.search.isolation import without_warnings

if TYPE_CHECKING:
    import torch

_WIDE_NUMBERS = 1 << 22  # of a vocabulary that is kept in float64 too: 32 MiB
_PAIRS_AT_ONCE = 256  # their float64 rows then stay in the second-level cache


class PairProducts:
    """Products with a vocabulary (W, d), in float64, each a sum in any order.

    torch multiplies the pairs of a sparse matrix in one step, where it has a kernel for that and
    the vocabulary is small enough to be kept in float64 as well. Otherwise rows are gathered.
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
        if self._wide is None or warns or not rows.size:
            return self._gathered(queries, rows, ids)
        order = np.argsort(rows, kind="stable") if (rows[1:] < rows[:-1]).any() else None
        columns = ids if order is None else ids[order]
        counts = np.bincount(rows, minlength=queries.shape[0])
        products = _sampled(queries, np.concatenate([[0], np.cumsum(counts)]), columns, self._wide)
        if order is None:
            return products
        values = np.empty(rows.size)
        values[order] = products
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


def _sampled(
    queries: torch.Tensor,
    starts: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    entries: torch.Tensor,
) -> npt.NDArray[np.float64]:
    """Multiply query i and the entries ``columns[starts[i] : starts[i + 1]]``."""
    import torch

    pairs = torch.sparse_csr_tensor(
        torch.from_numpy(starts), torch.from_numpy(columns),
        torch.zeros(columns.size, dtype=torch.float64),
        size=(queries.shape[0], entries.shape[0]), check_invariants=False,
    )  # fmt: skip
    product: Any = torch.sparse.sampled_addmm(pairs, queries, entries.t(), beta=0.0)
    return np.asarray(product.values().numpy())
