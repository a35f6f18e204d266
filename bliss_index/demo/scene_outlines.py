"""Outlines of the things that drawn scenes show, as polygons in a square from -1 to 1.

x runs to the right and y down. A shape is a list of patches painted one over the other; what is
painted as ``BODY`` later takes the object's colour and texture, ``DARK`` and ``LIGHT`` are fixed
details such as windows and eyes, ``CLEAR`` lets the background through again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

CLEAR, BODY, DARK, LIGHT = range(4)

Point = tuple[float, float]


@dataclass(frozen=True)
class Patch:
    """One filled polygon: its corners, and what it is painted as."""

    corners: tuple[Point, ...]
    ink: int = BODY


Patches = list[Patch]
Shape = Callable[[np.random.Generator], Patches]


def turn(degrees: float) -> Point:
    """Cosine and sine, rounded so that every machine's mathematics library gives the same."""
    angle = math.radians(degrees)
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def area(*corners: Point, ink: int = BODY) -> Patch:
    """The polygon with these corners."""
    return Patch(corners, ink)


def box(left: float, top: float, right: float, bottom: float, ink: int = BODY) -> Patch:
    """An upright rectangle."""
    return Patch(((left, top), (right, top), (right, bottom), (left, bottom)), ink)


def arc(
    x: float, y: float, rx: float, ry: float, start: float, end: float, steps: int = 36
) -> list[Point]:
    """Points on an ellipse from one angle to another, in degrees clockwise from the right."""
    angles = [start + (end - start) * step / steps for step in range(steps + 1)]
    return [(x + rx * c, y + ry * s) for c, s in map(turn, angles)]


def disc(
    x: float,
    y: float,
    rx: float,
    ry: float | None = None,
    ink: int = BODY,
    start: float = 0,
    end: float = 360,
) -> Patch:
    """An ellipse, or the segment of one from `start` to `end` degrees, as `arc`."""
    return Patch(tuple(arc(x, y, rx, rx if ry is None else ry, start, end)), ink)


def stroke(points: Sequence[Point], width: float, ink: int = BODY) -> Patches:
    """A line of some width with round joints."""
    half = width / 2
    patches = [disc(x, y, half, ink=ink) for x, y in points]
    for (x0, y0), (x1, y1) in pairwise(points):
        length = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
        if length > 0:
            dx, dy = half * (x1 - x0) / length, half * (y1 - y0) / length
            corners = (x0 - dy, y0 + dx), (x1 - dy, y1 + dx), (x1 + dy, y1 - dx), (x0 + dy, y0 - dx)
            patches.append(Patch(corners, ink))
    return patches


def rays(count: int, outer: float, inner: float, start: float = -90) -> Patch:
    """A star of `count` points."""
    corners = []
    for step in range(2 * count):
        c, s = turn(start + 180 * step / count)
        radius = outer if step % 2 == 0 else inner
        corners.append((radius * c, radius * s))
    return Patch(tuple(corners))


def regular(count: int) -> Patch:
    """A regular polygon with one corner at the top."""
    turns = (turn(360 * step / count - 90) for step in range(count))
    return Patch(tuple((0.95 * c, 0.95 * s) for c, s in turns))


def around(count: int, radius: float, size: float, start: float = 0) -> Patches:
    """Equal discs on a circle."""
    centres = (turn(start + 360 * step / count) for step in range(count))
    return [disc(radius * c, radius * s, size) for c, s in centres]
