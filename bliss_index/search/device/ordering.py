"""The k best of rescored candidates, in order: on the device where float64 decides it.

The rules are those of :mod:`bliss_index.search.certificate.ordering`. Where two neighbours are
closer than their errors, or an error straddles the border between two float32 numbers, the row is
handed to the host, which knows exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bliss_index.search.certificate.ordering import ROUNDING_64, order_candidates

_LAST = torch.iinfo(torch.int64).max
_WIDE = 256
_EXACT_BELOW = 31.0
_FULL_ELEMENTS = 1 << 26
_FULL_ENTRIES = 65536


@dataclass(frozen=True, eq=False)
class Rescored:
    """Candidates of n queries, sorted by row.

    Attributes
    ----------
    row, entry
        (P,) int64; every row has at least k.
    value
        (P,) float64 inner products.
    error
        (n,) float64: no value of the row is further than this from its inner product, correctly
        rounded.
    """

    row: torch.Tensor
    entry: torch.Tensor
    value: torch.Tensor
    error: torch.Tensor


def best_in_order(
    found: Rescored, k: int, exact: Callable[[int, int], float]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Choose and order the k best candidates of every row.

    Parameters
    ----------
    found
        Candidates.
    k
        Results per row.
    exact
        Gives the correctly rounded inner product of a query row and an entry.

    Returns
    -------
    values (n, k) float64, ids (n, k) int64, and how many products were evaluated exactly.
    """
    values, ids, doubtful = rank(found, k)
    resolved = resolve(found, doubtful, k, exact, values, ids)
    return values, ids, resolved


def rank(found: Rescored, k: int, room: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Order the candidates of every row by float64, as far as that decides.

    Parameters
    ----------
    found
        Candidates.
    k
        Results per row.
    room
        Candidates of a row that there is memory for; where there are many more than k, and more
        than this, the row is for the host.

    Returns
    -------
    values (n, k) float64, ids (n, k) int64, and (n,) bool: rows that are for the host. Rows without
    candidates hold nothing.
    """
    n = found.error.shape[0]
    device = found.value.device
    counts = torch.bincount(found.row, minlength=n)
    starts = counts.cumsum(0) - counts
    wide = counts > max(4 * k + _WIDE, room)
    columns = int(torch.where(wide, 0, counts).max()) if n else 0
    columns = max(columns, k)
    place = torch.arange(found.row.shape[0], device=device) - starts[found.row]
    inside = ~wide[found.row]
    row, place = found.row[inside], place[inside]
    ids = torch.full((n, columns), _LAST, device=device)
    values = torch.full((n, columns), -torch.inf, dtype=torch.float64, device=device)
    ids[row, place] = found.entry[inside]
    values[row, place] = found.value[inside] + 0.0
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    doubtful = wide | _doubtful(values, found.error, k)
    return values[:, :k].contiguous(), ids[:, :k].contiguous(), doubtful


def row_errors(queries: torch.Tensor, entries: torch.Tensor, longest: float) -> torch.Tensor:
    """Bound (n,) of |float64 sum - correctly rounded inner product|, for any entry.

    :func:`bliss_index.search.certificate.ordering.dot_error` of the longest entry. Of float16
    vectors all products are multiples of 2^-48, and sums of them below 2^5 are exact in float64,
    in any order.

    Parameters
    ----------
    queries, entries
        (n, d) and (W, d).
    longest
        Upper bound of the entries' norms.
    """
    lengths: torch.Tensor
    if queries.dtype == torch.float16:  # nothing overflows, and no copy in float64 is made
        lengths = torch.linalg.vector_norm(queries, dim=1, dtype=torch.float32).double()
        lengths = lengths * (1 + 1e-3)
    else:
        lengths = queries.double().square().sum(1).sqrt() * (1 + 1e-9)
    factor, exact = sum_limits(queries.shape[1], queries.dtype, entries.dtype, longest)
    return torch.where(lengths < exact, 0.0, factor * lengths)


def sum_limits(
    dim: int, queries: torch.dtype, entries: torch.dtype, longest: float
) -> tuple[float, float]:
    """Return the error of a float64 sum for a query of norm one, and the norm of exact sums.

    See :func:`row_errors`.
    """
    factor = (dim + 2) * ROUNDING_64 * (1 + 1e-6) * longest
    if queries == entries == torch.float16:
        return factor, _EXACT_BELOW / longest if longest > 0 else math.inf
    return factor, 0.0


def search_in_full(
    entries: torch.Tensor, queries: torch.Tensor, rows: torch.Tensor, k: int, longest: float
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Score some queries against every entry in float64; keep what can be in their k best.

    Parameters
    ----------
    entries, queries
        (W, d) and (n, d).
    rows
        (m,) which queries.
    k
        Results per query, at most W.
    longest
        Upper bound of the entries' norms.

    Returns
    -------
    Pieces of row, entry and value (P,), by row.
    """
    found = []
    size = entries.shape[0]
    for part in torch.split(rows, max(1, _FULL_ELEMENTS // size)):
        wide = queries[part].double()
        scores = torch.empty((part.shape[0], size), dtype=torch.float64, device=entries.device)
        for start in range(0, size, _FULL_ENTRIES):
            texts = entries[start : start + _FULL_ENTRIES].double()
            scores[:, start : start + _FULL_ENTRIES] = wide @ texts.T
        error = row_errors(queries[part], entries, longest)
        reached = scores.topk(k, dim=1).values[:, -1] - 2 * error
        row, entry = (scores >= reached[:, None]).nonzero(as_tuple=True)
        found.append((part[row], entry, scores[row, entry]))
    return found


def _doubtful(values: torch.Tensor, error: torch.Tensor, k: int) -> torch.Tensor:
    """Rows (n,) in which the order of the first k + 1 values, or a float32 result, is open."""
    first = values[:, : k + 1]
    close = (first[:, :-1] - first[:, 1:] <= 2 * error[:, None]).any(1)
    top = values[:, :k]
    straddles = (top - error[:, None]).float() != (top + error[:, None]).float()
    return (close | straddles.any(1)) & (error > 0)


def resolve(
    found: Rescored,
    doubtful: torch.Tensor,
    k: int,
    exact: Callable[[int, int], float],
    values: torch.Tensor,
    ids: torch.Tensor,
) -> int:
    """Replace the results of doubtful rows by the host's; return how many products that took."""
    rows = doubtful.nonzero()[:, 0]
    if rows.shape[0] == 0:
        return 0
    mine = doubtful[found.row]
    row = found.row[mine].cpu().numpy()
    numbers = rows.cpu().numpy()
    host_values, host_ids, resolved = order_candidates(
        np.searchsorted(numbers, row),
        found.entry[mine].cpu().numpy(),
        found.value[mine].cpu().numpy(),
        found.error[found.row[mine]].cpu().numpy(),
        (numbers.size, k),
        lambda i, w: exact(int(numbers[i]), w),
    )
    values[rows] = torch.from_numpy(host_values).to(values.device)
    ids[rows] = torch.from_numpy(host_ids).to(ids.device)
    return resolved
