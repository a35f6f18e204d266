"""The histogram on the page: bars, and how many images lie above each of their edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.evaluation.from_scores import KnownAnomalies
from bliss_index.report.aggregate import Aggregate

BINS = 80
SHOWN = (0.001, 0.999)  # quantiles; few images far off would squeeze all others into one bar


@dataclass(frozen=True)
class Series:
    """Some of the images: all, or those known to be normal, or anomalies.

    Attributes
    ----------
    name : str
    images : int
    bars : tuple of int
        Images of each bar; the outermost bars hold all images beyond.
    above : tuple of int
        For each edge, images at or above it: one more than there are bars. Of the first edge all
        of them, of the last those beyond the last bar.
    """

    name: str
    images: int
    bars: tuple[int, ...]
    above: tuple[int, ...]


@dataclass(frozen=True)
class Histogram:
    """Bars of equal width; a threshold, if there is one, is an edge.

    Attributes
    ----------
    edges : tuple of float
    series : tuple of Series
        All images; or the normal ones and the anomalies among those that are known.
    total : Series
        All images.
    start : int
        The edge that is the threshold, or where there is none the one nearest to the border.
    """

    edges: tuple[float, ...]
    series: tuple[Series, ...]
    total: Series
    start: int

    @property
    def tallest(self) -> int:
        """Images of the tallest bar."""
        return max(max(series.bars) for series in self.series)

    def counts(self) -> dict[str, Any]:
        """What the slider of the page needs."""
        known = {series.name: series.above for series in self.series if len(self.series) > 1}
        return {"edges": self.edges, "above": self.total.above, "known": known}


def histogram_edges(found: Aggregate) -> tuple[npt.NDArray[np.float64], int]:
    """Return the edges of some 80 bars, (bars + 1,), and which of them is the threshold.

    Parameters
    ----------
    found : Aggregate
        At least one score.
    """
    known = found.known.astype(np.float64)  # in float32, clipping can leave the last bin
    low, high = (float(q) for q in np.quantile(known, SHOWN))
    border = float(known.max() if found.border is None else found.border)
    low, high = min(low, border), max(high, border)
    if not high > low:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / BINS
    below = int(np.ceil((border - low) / width - 1e-9)) + 1
    over = int(np.ceil((high - border) / width - 1e-9)) + 1
    edges = border + width * np.arange(-below, over + 1, dtype=np.float64)
    return np.asarray(edges, dtype=np.float64), below


def make_histogram(found: Aggregate, given: KnownAnomalies | None = None) -> Histogram:
    """Count the images of every bar.

    Parameters
    ----------
    found : Aggregate
        The scores; at least one.
    given : KnownAnomalies, default=None
        Which images are known to be anomalies or normal.
    """
    edges, start = histogram_edges(found)
    total = _series("all", found.known, edges)
    if found.flagged is not None:  # counted by the flags; scores are rounded to float32
        above = (*total.above[:start], found.flagged, *total.above[start + 1 :])
        total = Series(total.name, total.images, total.bars, above)
    series: tuple[Series, ...] = (total,)
    if given is not None:
        there = given.known & ~np.isnan(found.scores)
        series = (
            _series("normal", found.scores[there & ~given.anomaly], edges),
            _series("anomalies", found.scores[there & given.anomaly], edges),
        )
    return Histogram(tuple(edges.tolist()), series, total, start)


def _series(name: str, values: npt.NDArray[np.float32], edges: npt.NDArray[np.float64]) -> Series:
    ordered = np.sort(values.astype(np.float64))
    above = ordered.size - np.searchsorted(ordered, edges, side="left")
    above[0] = ordered.size
    bars = above[:-1] - above[1:]
    bars[-1] += above[-1]
    return Series(name, ordered.size, tuple(bars.tolist()), tuple(above.tolist()))
