"""Compares two runs of the benchmarks: what takes longer than the noise of both explains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

# Of a normal distribution: its deviation over its median absolute deviation, and the standard
# error of a median over that of a mean.
_DEVIATION, _MEDIAN = 1.4826, 1.2533


@dataclass(frozen=True)
class Change:
    """How a benchmark's time changed.

    Attributes
    ----------
    name
        The benchmark.
    factor
        Time now over time before: of ours over the yardstick where there is one.
    noise
        Standard error of the factor.
    slower
        Whether it is larger than noise explains.
    """

    name: str
    factor: float
    noise: float
    slower: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.factor:.2f} times as long (noise {self.noise:.2f})"


def compared(
    before: Mapping[str, Any], now: Mapping[str, Any], *, sure: float, least: float
) -> list[Change]:
    """Compare benchmarks that are in both runs.

    Parameters
    ----------
    before, now
        Benchmarks by full name, as pytest-benchmark's files have them.
    sure
        Standard errors by which a change must exceed nothing.
    least
        Share by which it must at least.
    """
    found = []
    for name in sorted(before.keys() & now.keys()):
        (old, old_error), (new, new_error) = (_centre(one[name]) for one in (before, now))
        factor, noise = new / old, math.hypot(old_error / old, new_error / new)
        found.append(Change(name, factor, noise, factor - 1 > max(least, sure * noise)))
    return found


def _centre(one: Mapping[str, Any]) -> tuple[float, float]:
    """Median of the rounds and its standard error."""
    values = one["extra_info"].get("over_yardstick") or one["stats"]["data"]
    middle = median(values)
    deviation = _DEVIATION * median(abs(value - middle) for value in values)
    return middle, _MEDIAN * deviation / math.sqrt(len(values))
