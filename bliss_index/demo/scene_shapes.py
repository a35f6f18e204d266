"""Drawings of figures, plants, animals and other things of nature."""

from __future__ import annotations

import numpy as np

from bliss_index.demo.scene_outlines import (
    CLEAR,
    DARK,
    LIGHT,
    Patch,
    Patches,
    Shape,
    arc,
    area,
    around,
    box,
    disc,
    rays,
    regular,
    stroke,
    turn,
)


def _heart(rng: np.random.Generator) -> Patches:
    return [
        disc(-0.45, -0.35, 0.5),
        disc(0.45, -0.35, 0.5),
        area((-0.9, -0.12), (0, -0.3), (0.9, -0.12), (0, 0.95)),
    ]


def _ring(rng: np.random.Generator) -> Patches:
    return [disc(0, 0, 0.95), disc(0, 0, rng.uniform(0.5, 0.65), ink=CLEAR)]


def _moon(rng: np.random.Generator) -> Patches:
    return [disc(0, 0, 0.95), disc(rng.uniform(0.38, 0.5), -0.1, 0.8, ink=CLEAR)]


def _spiral(rng: np.random.Generator) -> Patches:
    points = []
    for step in range(61):
        c, s = turn(step * 15)
        points.append((c * step / 70, s * step / 70))
    return stroke(points, 0.18)


def _arrow(rng: np.random.Generator) -> Patches:
    half = rng.uniform(0.15, 0.25)
    return [box(-0.95, -half, 0.2, half), area((0.1, -0.65), (0.95, 0), (0.1, 0.65))]


def _lightning(rng: np.random.Generator) -> Patches:
    return [
        area(
            (0.1, -1), (-0.6, 0.1), (-0.08, 0.1), (-0.3, 1), (0.6, -0.25), (0.08, -0.25), (0.5, -1)
        )
    ]


def _tree(rng: np.random.Generator) -> Patches:
    return [
        box(-0.13, 0.1, 0.13, 1, DARK),
        *(disc(x, y, 0.45) for x, y in ((-0.4, 0), (0.4, 0), (0, -0.1), (-0.22, -0.5))),
        disc(0.22, -0.5, 0.45),
    ]


def _fir(rng: np.random.Generator) -> Patches:
    tiers = ((-1, -0.35, 0.45), (-0.65, 0.15, 0.65), (-0.2, 0.7, 0.85))
    return [
        box(-0.12, 0.6, 0.12, 1, DARK),
        *(area((0, top), (-half, low), (half, low)) for top, low, half in tiers),
    ]


def _fish(rng: np.random.Generator) -> Patches:
    return [
        area((0.4, 0), (0.98, -0.5), (0.85, 0), (0.98, 0.5)),
        area((-0.3, -0.3), (0.1, -0.75), (0.3, -0.2)),
        disc(-0.2, 0, 0.75, 0.45),
        disc(-0.6, -0.1, 0.13, ink=LIGHT),
        disc(-0.62, -0.1, 0.07, ink=DARK),
    ]


def _flower(rng: np.random.Generator) -> Patches:
    petals = [
        Patch(tuple((x, y - 0.35) for x, y in patch.corners))
        for patch in around(int(rng.integers(5, 8)), 0.36, 0.25)
    ]
    return [
        *stroke([(0, -0.3), (0.05, 1)], 0.08, DARK),
        disc(0.25, 0.65, 0.25, 0.1, ink=DARK),
        *petals,
        disc(0, -0.35, 0.2, ink=LIGHT),
    ]


def _cloud(rng: np.random.Generator) -> Patches:
    return [
        *(disc(x, y, r) for x, y, r in ((-0.55, 0.1, 0.4), (0, -0.2, 0.5), (0.55, 0.05, 0.42))),
        box(-0.55, 0.1, 0.55, 0.5),
    ]


def _sun(rng: np.random.Generator) -> Patches:
    return [rays(int(rng.integers(10, 15)), 1, 0.6), disc(0, 0, 0.6, ink=LIGHT), disc(0, 0, 0.5)]


def _leaf(rng: np.random.Generator) -> Patches:
    upper = arc(0, 0.5, 1, 1, 210, 330)
    lower = arc(0, -0.5, 1, 1, 30, 150)
    return [
        *stroke([(0.6, 0), (1, 0.1)], 0.1),
        Patch((*upper, *lower)),
        *stroke([(-0.7, 0), (0.7, 0)], 0.06, DARK),
        *(vein for x in (-0.3, 0, 0.3) for vein in stroke([(x + 0.15, 0), (x, 0.25)], 0.05, DARK)),
        *(vein for x in (-0.3, 0, 0.3) for vein in stroke([(x + 0.15, 0), (x, -0.25)], 0.05, DARK)),
    ]


def _mushroom(rng: np.random.Generator) -> Patches:
    return [
        area((-0.2, 0), (0.2, 0), (0.3, 0.95), (-0.3, 0.95), ink=LIGHT),
        disc(0, 0.1, 0.95, 0.95, start=180, end=360),
    ]


def _butterfly(rng: np.random.Generator) -> Patches:
    wings = [(0.5, -0.35, 0.45, 0.5), (0.4, 0.45, 0.35, 0.4)]
    return [
        *(disc(side * x, y, rx, ry) for x, y, rx, ry in wings for side in (-1, 1)),
        *stroke([(-0.25, -0.95), (0, -0.5), (0.25, -0.95)], 0.06, DARK),
        disc(0, 0, 0.1, 0.6, ink=DARK),
    ]


def _bird(rng: np.random.Generator) -> Patches:
    return [
        area((0.4, 0), (1, -0.35), (0.95, 0.2)),
        disc(0, 0.1, 0.6, 0.42),
        disc(-0.5, -0.35, 0.3),
        area((-0.75, -0.45), (-1, -0.28), (-0.74, -0.22), ink=DARK),
        disc(-0.55, -0.42, 0.07, ink=DARK),
        area((-0.2, 0), (0.45, 0), (0.2, 0.35), ink=LIGHT),
        *stroke([(-0.05, 0.5), (-0.05, 0.95), (-0.2, 0.95)], 0.07, DARK),
        *stroke([(0.15, 0.5), (0.15, 0.95), (0, 0.95)], 0.07, DARK),
    ]


def _cat(rng: np.random.Generator) -> Patches:
    whiskers = [((side * 0.25, 0.3), (side * 0.98, y)) for side in (-1, 1) for y in (0.2, 0.45)]
    return [
        *(area((s * 0.8, -0.95), (s * 0.15, -0.45), (s * 0.75, 0.1)) for s in (-1, 1)),
        disc(0, 0.15, 0.8, 0.7),
        *(disc(s * 0.32, 0, 0.15, 0.18, LIGHT) for s in (-1, 1)),
        *(disc(s * 0.32, 0, 0.06, 0.16, DARK) for s in (-1, 1)),
        area((-0.12, 0.25), (0.12, 0.25), (0, 0.4), ink=DARK),
        *(part for line in whiskers for part in stroke(line, 0.05, DARK)),
    ]


def _drop(rng: np.random.Generator) -> Patches:
    return [disc(0, 0.35, 0.6), area((0, -1), (-0.55, 0.12), (0.55, 0.12))]


def _apple(rng: np.random.Generator) -> Patches:
    return [
        *stroke([(0, -0.4), (0.1, -0.95)], 0.1, DARK),
        disc(0.32, -0.75, 0.25, 0.11, DARK),
        *(disc(x, 0.2, 0.52, 0.68) for x in (-0.3, 0.3)),
    ]


def _stalk(x: float) -> Patches:
    return stroke([(x, 0.4), (x / 3, -0.2), (0.1, -0.95)], 0.07, DARK)


def _cherries(rng: np.random.Generator) -> Patches:
    return [
        *(part for x in (-0.5, 0.45) for part in _stalk(x)),
        *(disc(x, 0.55, 0.38) for x in (-0.5, 0.45)),
        *(disc(x - 0.12, 0.43, 0.08, ink=LIGHT) for x in (-0.5, 0.45)),
    ]


def _carrot(rng: np.random.Generator) -> Patches:
    tops = [(-0.35, -0.95), (0, -1), (0.35, -0.95)]
    return [
        *(part for tip in tops for part in stroke([(0, -0.4), tip], 0.13, DARK)),
        disc(0, -0.3, 0.38, 0.2),
        area((-0.38, -0.3), (0.38, -0.3), (0, 1)),
    ]


def _ghost(rng: np.random.Generator) -> Patches:
    return [
        disc(0, -0.25, 0.65, 0.7),
        box(-0.65, -0.25, 0.65, 0.75),
        *(disc(x, 0.75, 0.22) for x in (-0.43, 0, 0.43)),
        *(disc(x, -0.3, 0.14, 0.2, DARK) for x in (-0.25, 0.25)),
    ]


def _spider(rng: np.random.Generator) -> Patches:
    legs = [
        [(0, 0.1 * n), (s * 0.6, 0.35 * n - 0.25), (s * 0.95, 0.4 * n + 0.15)]
        for n in (-1.6, -0.5, 0.6, 1.4)
        for s in (-1, 1)
    ]
    return [
        *(part for leg in legs for part in stroke(leg, 0.08, DARK)),
        disc(0, 0.25, 0.42, 0.5),
        disc(0, -0.35, 0.26),
        *(disc(x, -0.45, 0.07, ink=LIGHT) for x in (-0.1, 0.1)),
    ]


def _snail(rng: np.random.Generator) -> Patches:
    return [
        disc(0, 0.75, 0.95, 0.18, DARK),
        *stroke([(-0.7, 0.7), (-0.8, 0.1)], 0.2, DARK),
        *stroke([(-0.85, 0.1), (-0.98, -0.25)], 0.06, DARK),
        *stroke([(-0.75, 0.1), (-0.65, -0.25)], 0.06, DARK),
        disc(0.2, 0.1, 0.62),
        *stroke(arc(0.2, 0.1, 0.38, 0.38, 0, 300, 14), 0.09, DARK),
    ]


def _turtle(rng: np.random.Generator) -> Patches:
    return [
        disc(-0.8, 0.15, 0.2, 0.17, DARK),
        disc(-0.87, 0.1, 0.05, ink=LIGHT),
        *(disc(x, 0.45, 0.16, 0.25, DARK) for x in (-0.4, 0.4)),
        area((0.6, 0.2), (0.98, 0.42), (0.6, 0.4), ink=DARK),
        disc(0, 0.35, 0.72, 0.8, start=180, end=360),
    ]


def _cactus(rng: np.random.Generator) -> Patches:
    return [
        *stroke([(0, -0.75), (0, 0.6)], 0.42),
        *stroke([(0, 0.2), (-0.6, 0.2), (-0.6, -0.3)], 0.26),
        *stroke([(0, 0), (0.6, 0), (0.6, -0.55)], 0.26),
        area((-0.5, 0.55), (0.5, 0.55), (0.38, 1), (-0.38, 1), ink=DARK),
    ]


NATURAL_SHAPES: dict[str, Shape] = {
    "circle": lambda rng: [disc(0, 0, 0.95)],
    "square": lambda rng: [box(-0.85, -0.85, 0.85, 0.85)],
    "triangle": lambda rng: [regular(3)],
    "hexagon": lambda rng: [regular(6)],
    "diamond": lambda rng: [area((0, -1), (0.65, 0), (0, 1), (-0.65, 0))],
    "star": lambda rng: [rays(5, 1, 0.42)],
    "cross": lambda rng: [box(-0.28, -0.95, 0.28, 0.95), box(-0.95, -0.28, 0.95, 0.28)],
    "ring": _ring,
    "heart": _heart,
    "moon": _moon,
    "spiral": _spiral,
    "arrow": _arrow,
    "lightning bolt": _lightning,
    "tree": _tree,
    "fir tree": _fir,
    "fish": _fish,
    "flower": _flower,
    "cloud": _cloud,
    "sun": _sun,
    "leaf": _leaf,
    "mushroom": _mushroom,
    "butterfly": _butterfly,
    "bird": _bird,
    "cat": _cat,
    "drop": _drop,
    "apple": _apple,
    "cherries": _cherries,
    "carrot": _carrot,
    "ghost": _ghost,
    "spider": _spider,
    "snail": _snail,
    "turtle": _turtle,
    "cactus": _cactus,
}
"""What this module can draw, by name."""
