"""What a search must find: float64 brute force on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bliss_index.search import reference_search

_SCORES = 1 << 25
_ENTRIES = 65_536


@dataclass(frozen=True, eq=False)
class TopK:
    """Ids (n, k) and float32 similarities (n, k)."""

    ids: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float32]

    def compare(self, ids: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> dict[str, bool]:
        """Say whether a search found these."""
        same_ids = bool(np.array_equal(ids, self.ids))
        same = bool(np.array_equal(values.astype(np.float32), self.similarities))
        return {"exact": same_ids and same, "same_ids": same_ids, "same_similarities": same}


def device_top_k(entries: torch.Tensor, queries: torch.Tensor, k: int) -> TopK:
    """Multiply in float64 and sort stably, so that of equal entries the smaller id comes first.

    Of float16 vectors whose norms are about 1, every float64 sum is exact, in any order.

    Parameters
    ----------
    entries, queries
        (W, d) and (n, d) float16, on one device.
    k
        Results per query.
    """
    if entries.dtype != torch.float16 or queries.dtype != torch.float16:
        raise TypeError(f"sums of {entries.dtype} and {queries.dtype} need not be exact")
    size = entries.shape[0]
    ids, values = [], []
    for part in torch.split(queries, max(1, _SCORES // size)):
        wide = part.double()
        columns = [wide @ some.double().T for some in torch.split(entries, _ENTRIES)]
        scores, order = torch.cat(columns, 1).sort(dim=1, descending=True, stable=True)
        ids.append(order[:, :k].cpu().numpy())
        values.append(scores[:, :k].float().cpu().numpy())
    return TopK(np.concatenate(ids), np.concatenate(values))


def host_top_k(entries: npt.NDArray[Any], queries: npt.NDArray[Any], k: int) -> TopK:
    """Search in exact arithmetic on the host, where float64 sums are not exact."""
    similarities, ids = reference_search(entries, queries, k)
    return TopK(ids, similarities)
