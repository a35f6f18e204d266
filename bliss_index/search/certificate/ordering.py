"""The final order of rescored candidates.

The value by which entries are ordered is the inner product *correctly rounded to float64*: the
exact real inner product of the given vectors, rounded once. It does not depend on any order of
summation, identical vectors have identical values, and equal values are ordered by id.

An ordinary float64 sum is within a known bound of it. Only where two neighbours are closer than
their bounds allow, or where the bound straddles a border between two float32 numbers, the correctly
rounded value is evaluated by exact summation (Shewchuk 1997, as ``math.fsum`` does).
"""

from __future__ import annotations

from collections.abc import Callable
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt

ROUNDING_64 = 2.0**-53
_FEW = 32  # candidates beyond 2 k up to which rows are ordered in a table
ExactDot = Callable[[int, int], float]


def exact_dot(x: npt.NDArray[Any], t: npt.NDArray[Any]) -> float:
    """Inner product of two vectors, exact and then rounded once to float64.

    Products of two float16 or float32 numbers are exact in float64. Those of float64 numbers are
    split into a rounded product and its error (Dekker 1971), exact for the magnitudes that
    :func:`bliss_index.search.inputs.checked_rows` lets pass.
    """
    a, b = x.astype(np.float64), t.astype(np.float64)
    product = a * b
    if x.dtype != np.float64 and t.dtype != np.float64:
        return fsum(product.tolist()) + 0.0
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return fsum(product.tolist() + error.tolist()) + 0.0


def _halves(a: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Split float64 numbers into high and low parts of at most 26 bits each (Veltkamp)."""
    scaled = 134217729.0 * a
    high = scaled - (scaled - a)
    return high, a - high


def dot_error(dim: int, norm_product: Any) -> Any:
    """Bound of |float64 sum in any order - exact inner product|, given |x| |t| (within 1e-9).

    Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: gamma_n |x|'|t|, and
    |x|'|t| <= |x| |t|. The two units more cover the final rounding and those of this bound.
    """
    return (dim + 2) * ROUNDING_64 * (1 + 1e-6) * norm_product


def to_float32(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round to float32; magnitudes beyond its range become infinite without a warning."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32)


def order_candidates(
    rows: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
    shape: tuple[int, int],
    exact: ExactDot,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], int]:
    """Choose and order the k best candidates of every query row.

    Parameters
    ----------
    rows, ids, values, errors
        One candidate per position: its query row, entry id, float64 inner product, and a bound
        of the distance between that and the correctly rounded inner product. Every row has at
        least k candidates, among them all entries that can belong to its k best.
    shape
        (n, k).
    exact
        Gives the correctly rounded inner product of a query row and an entry.

    Returns
    -------
    values (n, k) float64, ids (n, k), and how many inner products were evaluated exactly. Values
    are equal if and only if their correctly rounded inner products are, and round to the same
    float32 numbers.
    """
    n, k = shape
    if n == 0:
        return np.zeros(shape), np.zeros(shape, dtype=np.int64), 0
    if (rows[1:] < rows[:-1]).any():
        order = np.argsort(rows, kind="stable")
        rows, ids, values, errors = rows[order], ids[order], values[order], errors[order]
    counts = np.bincount(rows, minlength=n)
    starts = np.cumsum(counts) - counts
    # A table of the rows that have few candidates: each is sorted alone, without its ids.
    width = max(k, min(int(counts.max()), 2 * k + _FEW)) + 1
    doubtful = counts >= width
    table = np.full((n, width), np.inf)
    place = np.arange(rows.size) - starts[rows]
    inside = ~doubtful[rows] if doubtful.any() else slice(None)
    table[rows[inside], place[inside]] = -values[inside]
    order = np.argsort(table, axis=1)[:, : k + 1]
    table = np.take_along_axis(table, order, axis=1)
    spread = np.maximum.reduceat(errors, starts)[:, None]
    out_values = 0.0 - table[:, :k]
    out_ids = ids[np.minimum(starts[:, None] + order[:, :k], ids.size - 1)]
    border = to_float32(out_values - spread) != to_float32(out_values + spread)
    with np.errstate(invalid="ignore"):  # rows that are not in the table
        close = np.diff(table, axis=1) <= 2 * spread
    doubtful |= (close | border).any(axis=1)
    again = np.flatnonzero(doubtful)
    if not again.size:
        return out_values, out_ids, 0
    part = doubtful[rows]
    number = np.cumsum(doubtful) - 1
    out_values[again], out_ids[again], resolved = _order_by_all(
        number[rows[part]], ids[part], values[part], errors[part], (again.size, k),
        lambda row, entry: exact(int(again[row]), entry),
    )  # fmt: skip
    return out_values, out_ids, resolved


def _order_by_all(
    rows: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
    shape: tuple[int, int],
    exact: ExactDot,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], int]:
    """Do what :func:`order_candidates` does, for rows that need exact inner products."""
    n, k = shape
    order = np.lexsort((ids, -values, rows))
    rows, ids = rows[order], ids[order]
    values, errors = values[order] + 0.0, errors[order].copy()

    starts = np.searchsorted(rows, np.arange(n))
    rank = np.arange(rows.size) - starts[rows]
    # The widest bound of the row: neighbours by value are then the only pairs to look at.
    spread = np.maximum.reduceat(errors, starts)[rows]
    close = np.zeros(rows.size, dtype=bool)
    near = (rows[1:] == rows[:-1]) & (values[:-1] - values[1:] <= 2 * spread[1:])
    close[1:] |= near
    close[:-1] |= near
    kth = values[starts + k - 1][rows]
    reachable = values >= kth - 4 * spread
    border = to_float32(values - errors) != to_float32(values + errors)
    doubtful = np.flatnonzero(((close & reachable) | (border & (rank < k))) & (errors > 0))
    for position in doubtful:
        values[position] = exact(int(rows[position]), int(ids[position]))
    if doubtful.size:
        order = np.lexsort((ids, -values, rows))
        ids, values = ids[order], values[order]
    take = starts[:, None] + np.arange(k)
    return values[take], ids[take], int(doubtful.size)
