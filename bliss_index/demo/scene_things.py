"""Drawings of things that people make."""

from __future__ import annotations

import numpy as np

from bliss_index.demo.scene_outlines import (
    BODY,
    CLEAR,
    DARK,
    LIGHT,
    Patch,
    Patches,
    Shape,
    arc,
    area,
    box,
    disc,
    stroke,
    turn,
)


def _house(rng: np.random.Generator) -> Patches:
    return [
        box(0.35, -0.85, 0.6, -0.3, DARK),
        box(-0.75, -0.15, 0.75, 0.95),
        area((-1, -0.1), (0, -0.95), (1, -0.1), ink=DARK),
        box(-0.15, 0.35, 0.2, 0.95, DARK),
        *(box(x, 0.1, x + 0.3, 0.4, LIGHT) for x in (-0.6, 0.35)),
    ]


def _car(rng: np.random.Generator) -> Patches:
    return [
        area((-0.6, -0.05), (-0.4, -0.5), (0.35, -0.5), (0.65, -0.05)),
        area((-0.45, -0.05), (-0.32, -0.38), (-0.05, -0.38), (-0.05, -0.05), ink=LIGHT),
        area((0.05, -0.05), (0.05, -0.38), (0.3, -0.38), (0.48, -0.05), ink=LIGHT),
        box(-0.98, -0.08, 0.98, 0.35),
        *(disc(x, 0.35, 0.24, ink=DARK) for x in (-0.55, 0.55)),
        *(disc(x, 0.35, 0.1, ink=LIGHT) for x in (-0.55, 0.55)),
    ]


def _boat(rng: np.random.Generator) -> Patches:
    return [
        *stroke([(0, -0.95), (0, 0.4)], 0.08, DARK),
        area((0.08, -0.9), (0.75, 0.25), (0.08, 0.25)),
        area((-0.08, -0.7), (-0.08, 0.25), (-0.6, 0.25), ink=LIGHT),
        area((-0.95, 0.4), (0.95, 0.4), (0.6, 0.9), (-0.6, 0.9)),
    ]


def _cup(rng: np.random.Generator) -> Patches:
    return [
        disc(0.55, 0, 0.4),
        disc(0.55, 0, 0.23, ink=CLEAR),
        area((-0.7, -0.6), (0.6, -0.6), (0.45, 0.75), (-0.55, 0.75)),
        disc(-0.05, -0.6, 0.65, 0.14, ink=LIGHT),
    ]


def _key(rng: np.random.Generator) -> Patches:
    return [
        disc(-0.6, 0, 0.4),
        disc(-0.6, 0, 0.2, ink=CLEAR),
        box(-0.25, -0.11, 0.98, 0.11),
        *(box(x, 0, x + 0.16, rng.uniform(0.35, 0.5)) for x in (0.4, 0.78)),
    ]


def _ladder(rng: np.random.Generator) -> Patches:
    rungs = int(rng.integers(4, 7))
    heights = [-0.75 + 1.5 * rung / (rungs - 1) for rung in range(rungs)]
    rails = [box(-0.55, -1, -0.36, 1), box(0.36, -1, 0.55, 1)]
    return rails + [box(-0.5, y - 0.08, 0.5, y + 0.08) for y in heights]


def _umbrella(rng: np.random.Generator) -> Patches:
    return [
        *stroke([(0, -0.95), (0, 0.7), (0.1, 0.88), (0.25, 0.88), (0.33, 0.7)], 0.1, DARK),
        disc(0, 0, 0.98, 0.85, start=180, end=360),
        *(disc(x, 0.02, 0.33, 0.13, CLEAR, 180, 360) for x in (-0.65, 0, 0.65)),
    ]


def _snowman(rng: np.random.Generator) -> Patches:
    return [
        disc(0, 0.5, 0.5),
        disc(0, -0.15, 0.37),
        disc(0, -0.6, 0.27),
        box(-0.35, -0.82, 0.35, -0.74, DARK),
        box(-0.22, -1, 0.22, -0.78, DARK),
        *(disc(0, y, 0.06, ink=DARK) for y in (-0.2, 0.0, 0.3, 0.5)),
        *(disc(x, -0.65, 0.05, ink=DARK) for x in (-0.1, 0.1)),
    ]


def _bottle(rng: np.random.Generator) -> Patches:
    return [
        box(-0.17, -1, 0.17, -0.3),
        box(-0.21, -1, 0.21, -0.85, DARK),
        disc(0, -0.2, 0.4, 0.3),
        box(-0.4, -0.2, 0.4, 1),
        box(-0.4, 0.15, 0.4, 0.6, LIGHT),
    ]


def _lamp(rng: np.random.Generator) -> Patches:
    return [
        box(-0.06, 0, 0.06, 0.85, DARK),
        area((-0.35, -0.95), (0.35, -0.95), (0.75, 0.1), (-0.75, 0.1)),
        disc(0, 0.9, 0.5, 0.12, ink=DARK),
    ]


def _chair(rng: np.random.Generator) -> Patches:
    return [
        box(-0.6, -1, -0.42, 1),
        box(-0.6, 0, 0.55, 0.2),
        box(0.4, 0.1, 0.58, 1),
        *(box(-0.5, y, -0.1, y + 0.13) for y in (-0.9, -0.6)),
        box(-0.2, -1, -0.05, 0.05),
    ]


def _table(rng: np.random.Generator) -> Patches:
    legs = [box(x, -0.3, x + 0.16, 0.75, DARK) for x in (-0.85, 0.69)]
    return [*legs, box(-1, -0.5, 1, -0.2)]


def _book(rng: np.random.Generator) -> Patches:
    lines = [(s * 0.2, s * 0.75, y) for s in (-1, 1) for y in (-0.25, 0.05, 0.35)]
    return [
        area((0, -0.5), (-1, -0.7), (-1, 0.6), (0, 0.8), (1, 0.6), (1, -0.7)),
        area((0, -0.4), (-0.88, -0.58), (-0.88, 0.45), (0, 0.65), ink=LIGHT),
        area((0, -0.4), (0.88, -0.58), (0.88, 0.45), (0, 0.65), ink=LIGHT),
        *stroke([(0, -0.45), (0, 0.72)], 0.07, DARK),
        *(part for a, b, y in lines for part in stroke([(a, y), (b, y - 0.1)], 0.06, DARK)),
    ]


def _clock(rng: np.random.Generator) -> Patches:
    hour, minute = (turn(30 * float(rng.integers(12))) for _ in range(2))
    return [
        disc(0, 0, 0.98),
        disc(0, 0, 0.75, ink=LIGHT),
        *stroke([(0, 0), (0.4 * hour[0], 0.4 * hour[1])], 0.12, DARK),
        *stroke([(0, 0), (0.65 * minute[0], 0.65 * minute[1])], 0.08, DARK),
    ]


def _bell(rng: np.random.Generator) -> Patches:
    return [
        disc(0, 0.75, 0.2, ink=DARK),
        disc(0, -0.8, 0.15, ink=DARK),
        disc(0, -0.2, 0.55, start=180, end=360),
        area((-0.55, -0.2), (0.55, -0.2), (0.9, 0.65), (-0.9, 0.65)),
    ]


def _balloon(rng: np.random.Generator) -> Patches:
    string = [(0, 0.45), (0.08, 0.6), (-0.06, 0.75), (0.05, 0.98)]
    return [
        *stroke(string, 0.06, DARK),
        area((0, 0.3), (-0.13, 0.5), (0.13, 0.5)),
        disc(0, -0.3, 0.55, 0.68),
        disc(-0.2, -0.55, 0.1, 0.16, LIGHT),
    ]


def _kite(rng: np.random.Generator) -> Patches:
    return [
        *stroke([(0, 0.4), (-0.15, 0.6), (0.1, 0.78), (-0.1, 0.98)], 0.06, DARK),
        area((0, -1), (0.6, -0.35), (0, 0.45), (-0.6, -0.35)),
        *stroke([(0, -0.95), (0, 0.4)], 0.06, DARK),
        *stroke([(-0.55, -0.35), (0.55, -0.35)], 0.06, DARK),
    ]


def _rocket(rng: np.random.Generator) -> Patches:
    return [
        area((-0.3, 0.1), (-0.7, 0.75), (-0.2, 0.6), ink=DARK),
        area((0.3, 0.1), (0.7, 0.75), (0.2, 0.6), ink=DARK),
        area((-0.2, 0.6), (0, 1), (0.2, 0.6), ink=LIGHT),
        box(-0.32, -0.4, 0.32, 0.62),
        disc(0, -0.4, 0.32, 0.6, BODY, 180, 360),
        disc(0, -0.2, 0.16, ink=LIGHT),
    ]


def _anchor(rng: np.random.Generator) -> Patches:
    return [
        disc(0, -0.78, 0.22),
        disc(0, -0.78, 0.1, ink=CLEAR),
        box(-0.09, -0.6, 0.09, 0.9),
        box(-0.4, -0.45, 0.4, -0.28),
        *stroke(arc(0, 0.2, 0.75, 0.7, 10, 170, 12), 0.18),
        *(area((s * 0.98, 0.35), (s * 0.75, -0.05), (s * 0.5, 0.35)) for s in (-1, 1)),
    ]


def _hammer(rng: np.random.Generator) -> Patches:
    return [
        box(-0.1, -0.4, 0.12, 1, DARK),
        box(-0.45, -0.85, 0.65, -0.35),
        area((-0.45, -0.8), (-0.9, -0.4), (-0.45, -0.45)),
    ]


def _glasses(rng: np.random.Generator) -> Patches:
    return [
        *stroke([(-0.95, -0.15), (0.95, -0.15)], 0.1),
        *(disc(x, 0, 0.43) for x in (-0.5, 0.5)),
        *(disc(x, 0, 0.29, ink=CLEAR) for x in (-0.5, 0.5)),
    ]


def _hat(rng: np.random.Generator) -> Patches:
    return [box(-0.5, -0.7, 0.5, 0.5), box(-0.5, 0.15, 0.5, 0.4, DARK), disc(0, 0.5, 0.98, 0.18)]


def _candle(rng: np.random.Generator) -> Patches:
    return [
        box(-0.25, -0.35, 0.25, 0.9),
        *stroke([(0, -0.5), (0, -0.35)], 0.06, DARK),
        disc(0, -0.62, 0.13, 0.16, LIGHT),
        area((-0.13, -0.64), (0, -1), (0.13, -0.64), ink=LIGHT),
        disc(0, 0.9, 0.5, 0.1, ink=DARK),
    ]


def _castle(rng: np.random.Generator) -> Patches:
    return [
        box(-0.95, -0.5, 0.95, 0.9),
        *(box(x, -0.9, x + 0.26, -0.4) for x in (-0.95, -0.36, 0.1, 0.69)),
        box(-0.2, 0.35, 0.2, 0.9, DARK),
        disc(0, 0.35, 0.2, ink=DARK),
        *(box(x, -0.2, x + 0.18, 0.15, DARK) for x in (-0.65, 0.47)),
    ]


def _tent(rng: np.random.Generator) -> Patches:
    return [
        area((0, -0.8), (-1, 0.8), (1, 0.8)),
        area((0, -0.3), (-0.3, 0.8), (0.3, 0.8), ink=DARK),
        *stroke([(-0.1, -0.95), (0, -0.8), (0.1, -0.95)], 0.07, DARK),
    ]


def _airplane(rng: np.random.Generator) -> Patches:
    return [
        area((-0.15, -0.1), (-0.98, 0.3), (-0.98, 0.5), (0.98, 0.5), (0.98, 0.3), (0.15, -0.1)),
        disc(0, 0, 0.17, 0.98),
        area((0, 0.55), (-0.42, 0.9), (0.42, 0.9)),
        disc(0, -0.7, 0.1, 0.08, LIGHT),
    ]


def _bicycle(rng: np.random.Generator) -> Patches:
    frame = [(-0.55, 0.4), (-0.2, -0.2), (0.4, -0.2), (0, 0.4), (-0.55, 0.4)]
    return [
        *(disc(x, 0.4, 0.43, ink=DARK) for x in (-0.55, 0.55)),
        *(disc(x, 0.4, 0.3, ink=CLEAR) for x in (-0.55, 0.55)),
        *stroke(frame, 0.13),
        *stroke([(0.55, 0.4), (0.35, -0.45), (0.6, -0.5)], 0.13),
        *stroke([(0, 0.4), (-0.25, -0.4)], 0.13),
        *stroke([(-0.4, -0.42), (-0.1, -0.42)], 0.12, DARK),
    ]


def _envelope(rng: np.random.Generator) -> Patches:
    return [box(-1, -0.65, 1, 0.65), *stroke([(-0.95, -0.6), (0, 0.1), (0.95, -0.6)], 0.08, DARK)]


def _flag(rng: np.random.Generator) -> Patches:
    wave = [(-0.6, -0.9), (-0.1, -0.75), (0.4, -0.95), (0.95, -0.8)]
    return [
        box(-0.75, -1, -0.6, 1, DARK),
        Patch((*wave, *((x, y + 0.85) for x, y in reversed(wave)))),
    ]


def _crown(rng: np.random.Generator) -> Patches:
    tips = [(-0.9, -0.5), (0, -0.7), (0.9, -0.5)]
    return [
        area(
            (-0.8, 0.65),
            (-0.9, -0.5),
            (-0.42, 0.05),
            (0, -0.7),
            (0.42, 0.05),
            (0.9, -0.5),
            (0.8, 0.65),
        ),
        *(disc(x, y, 0.13, ink=LIGHT) for x, y in tips),
        box(-0.8, 0.4, 0.8, 0.65, DARK),
    ]


def _pencil(rng: np.random.Generator) -> Patches:
    return [
        box(-0.8, -0.2, 0.55, 0.2),
        box(-1, -0.2, -0.8, 0.2, DARK),
        area((0.55, -0.2), (0.98, 0), (0.55, 0.2), ink=LIGHT),
        area((0.82, -0.08), (1, 0), (0.82, 0.08), ink=DARK),
    ]


MADE_SHAPES: dict[str, Shape] = {
    "house": _house,
    "car": _car,
    "boat": _boat,
    "cup": _cup,
    "key": _key,
    "ladder": _ladder,
    "umbrella": _umbrella,
    "snowman": _snowman,
    "bottle": _bottle,
    "lamp": _lamp,
    "chair": _chair,
    "table": _table,
    "book": _book,
    "clock": _clock,
    "bell": _bell,
    "balloon": _balloon,
    "kite": _kite,
    "rocket": _rocket,
    "anchor": _anchor,
    "hammer": _hammer,
    "glasses": _glasses,
    "hat": _hat,
    "candle": _candle,
    "castle": _castle,
    "tent": _tent,
    "airplane": _airplane,
    "bicycle": _bicycle,
    "envelope": _envelope,
    "flag": _flag,
    "crown": _crown,
    "pencil": _pencil,
}
"""What this module can draw, by name."""
