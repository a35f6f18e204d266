"""Times ways to do the same in turn, so that all meet the same load of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy.typing as npt

_PROBE_ROWS = 256


@dataclass(frozen=True)
class Way:
    """One way to do it, and how much of it one call does.

    Attributes
    ----------
    call
        Does it, without arguments.
    rows
        Rows that a call works on; seconds are reckoned per row.
    """

    call: Callable[[], Any]
    rows: int = 1

    @classmethod
    def on_rows(
        cls, function: Callable[[npt.NDArray[Any]], Any], rows: npt.NDArray[Any], seconds: float
    ) -> Way:
        """Let a function work on the first rows: as many as take about so long, 256 at least.

        The function is called twice meanwhile, which warms it up.
        """
        probe = rows[:_PROBE_ROWS]
        function(probe)
        fitting = int(len(probe) * seconds / seconds_of(lambda: function(probe)))
        size = min(len(rows), max(len(probe), fitting))
        return cls(lambda: function(rows[:size]), size)


@dataclass
class Paired:
    """Ways to do the same, timed one after the other, round by round.

    Attributes
    ----------
    ways
        Ways by name.
    seconds
        Seconds per row of every way, one value a round.
    clock
        What reads the time; None for that on the wall.
    """

    ways: Mapping[str, Way]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    clock: Callable[[], float] | None = None

    def time(self, name: str) -> None:
        """Time one call of a way."""
        way = self.ways[name]
        self.seconds.setdefault(name, []).append(seconds_of(way.call, self.clock) / way.rows)

    def run(self, rounds: int) -> None:
        """Time every way once a round."""
        for _ in range(rounds):
            for name in self.ways:
                self.time(name)

    def medians(self) -> dict[str, float]:
        """Median seconds per row of every way."""
        return {name: median(values) for name, values in self.seconds.items()}

    def ratios(self, name: str, other: str) -> list[float]:
        """How many times as long one way took as another, one value a round."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return [mine / theirs for mine, theirs in pairs]


def seconds_of(call: Callable[[], Any], clock: Callable[[], float] | None = None) -> float:
    """Time a call, by the clock on the wall or another; never zero."""
    read = clock or time.perf_counter
    began = read()
    call()
    return max(read() - began, 1e-9)
