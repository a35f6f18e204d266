"""Drawn scenes: the same for a seed, different for each kind, truly described."""

from __future__ import annotations

import numpy as np
import pytest

from bliss_index.demo.scenes import (
    COLOUR_NAMES,
    OBJECT_KINDS,
    TEXTURE_NAMES,
    describe,
    draw_scene,
    scene_vocabulary,
)
from bliss_index.errors import InvalidInputError


def scene(seed, **choices):
    return draw_scene(np.random.default_rng(seed), **choices)


def pixels(seed, **choices):
    return np.asarray(scene(seed, **choices).image).astype(int)


def test_a_seed_gives_a_scene():
    first, again = scene(3), scene(3)
    assert first.caption == again.caption
    assert first.objects == again.objects
    assert first.image.tobytes() == again.image.tobytes()
    assert first.image.tobytes() != scene(4).image.tobytes()


@pytest.mark.parametrize("kind", OBJECT_KINDS)
def test_every_kind_is_drawn_in_its_colour(kind):
    red = pixels(1, kind=kind, colour="red", texture="plain", background="white", size=64)
    blue = pixels(1, kind=kind, colour="blue", texture="plain", background="white", size=64)
    shape = np.abs(red - blue).sum(2) > 100
    # Thin things such as a bicycle cover little, and nothing covers all.
    assert 0.015 < shape.mean() < 0.9
    inside = red[shape].mean(0)
    assert inside[0] > inside[1] + 60 > inside[2]


def test_kinds_look_different():
    pictures = [
        pixels(5, kind=kind, colour="black", texture="plain", background="white", size=32)
        for kind in OBJECT_KINDS
    ]
    for row, one in enumerate(pictures):
        for other in pictures[row + 1 :]:
            assert np.abs(one - other).mean() > 2


def test_textures_look_different():
    pictures = [
        pixels(5, kind="square", colour="red", texture=texture, background="white")
        for texture in TEXTURE_NAMES
    ]
    for row, one in enumerate(pictures):
        for other in pictures[row + 1 :]:
            assert np.abs(one - other).mean() > 2


def test_captions_claim_what_is_there():
    for seed in range(300):
        drawn = scene(seed, objects=1 + seed % 2, size=16)
        caption = describe(np.random.default_rng(seed), drawn.objects, drawn.background)
        assert caption.background in (None, drawn.background)
        things = {(thing.kind, thing.colour, thing.texture) for thing in drawn.objects}
        for kind, colour, texture in caption.objects:
            assert any(
                kind == k and colour in (None, c) and texture in (None, t) for k, c, t in things
            )
    assert scene(1, kind="fish").kind == "fish"
    assert len(scene(1, objects=2).objects) == 2


def test_the_vocabulary():
    entries = scene_vocabulary()
    assert len(entries) == len(set(entries)) > 1000
    assert set(OBJECT_KINDS) < set(entries)
    assert f"{COLOUR_NAMES[0]} {OBJECT_KINDS[0]}" in entries
    assert entries == scene_vocabulary()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"kind": "unicorn"}, "kind is 'unicorn', must be one of airplane"),
        ({"colour": "mauve"}, "colour is 'mauve'"),
        ({"objects": 3}, "objects is 3 and size 96"),
        ({"size": 4}, "size 4"),
    ],
)
def test_what_cannot_be_drawn(choices, message):
    with pytest.raises(InvalidInputError, match=message):
        scene(0, **choices)
