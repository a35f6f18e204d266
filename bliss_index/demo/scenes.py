"""Drawn scenes: simple things in colours and textures, with captions, for a demo and a tiny model.

Everything follows from a :class:`numpy.random.Generator`, of which only uniform numbers and
integers are drawn: the same generator state gives the same scene, on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from bliss_index.demo.scene_outlines import BODY, CLEAR, DARK, LIGHT, Patch, turn
from bliss_index.demo.scene_shapes import NATURAL_SHAPES
from bliss_index.demo.scene_things import MADE_SHAPES
from bliss_index.demo.scene_words import (
    BACKDROPS,
    COLOURS,
    GENERAL_WORDS,
    JOINTS,
    TEMPLATES,
    TEXTURES,
    colour_names,
    names_of,
)
from bliss_index.errors import InvalidInputError

if TYPE_CHECKING:
    from PIL.Image import Image

_SHAPES = {**NATURAL_SHAPES, **MADE_SHAPES}

OBJECT_KINDS: tuple[str, ...] = tuple(sorted(_SHAPES))
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
TEXTURE_NAMES: tuple[str, ...] = tuple(TEXTURES)

_SUPERSAMPLING = 2
_MIN_CONTRAST = 110.0  # least distance of an object's colour and its background, in 8-bit RGB
_INK_CONTRAST = 70.0

T = TypeVar("T")
Colour = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene: its kind, colour and texture, by name."""

    kind: str
    colour: str
    texture: str


@dataclass(frozen=True)
class Caption:
    """A text and what it claims; None is a claim not made.

    Attributes
    ----------
    text : str
    objects : tuple of (kind, colour or None, texture or None)
    background : str or None
    """

    text: str
    objects: tuple[tuple[str, str | None, str | None], ...]
    background: str | None


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes
    ----------
    image : PIL image, RGB, square
    objects : tuple of SceneObject
        The largest first.
    background : str
        Colour name.
    caption : str
        A true description, in one of many wordings.
    """

    image: Image
    objects: tuple[SceneObject, ...]
    background: str
    caption: str

    @property
    def kind(self) -> str:
        """Kind of the largest object."""
        return self.objects[0].kind

    @property
    def colour(self) -> str:
        """Colour name of the largest object."""
        return self.objects[0].colour

    @property
    def texture(self) -> str:
        """Texture name of the largest object."""
        return self.objects[0].texture


def draw_scene(
    rng: np.random.Generator,
    kind: str | None = None,
    *,
    colour: str | None = None,
    texture: str | None = None,
    background: str | None = None,
    objects: int = 1,
    size: int = 96,
) -> Scene:
    """Draw one scene.

    Parameters
    ----------
    rng : numpy.random.Generator
        Decides everything that is not given.
    kind, colour, texture, background : str, optional
        Of the largest object; one of OBJECT_KINDS, COLOUR_NAMES, TEXTURE_NAMES, COLOUR_NAMES.
        The background is chosen to stand out from the object.
    objects : {1, 2}
        How many things are shown.
    size : int
        Width and height in pixels.

    Raises
    ------
    InvalidInputError
        An unknown name, or a number out of range.
    """
    for what, value, known in (
        ("kind", kind, OBJECT_KINDS),
        ("colour", colour, COLOUR_NAMES),
        ("texture", texture, TEXTURE_NAMES),
        ("background", background, COLOUR_NAMES),
    ):
        if value is not None and value not in known:
            raise InvalidInputError(f"{what} is '{value}', must be one of {', '.join(known)}")
    if objects not in (1, 2) or size < 16:
        raise InvalidInputError(
            f"objects is {objects} and size {size}; objects must be 1 or 2, size at least 16"
        )
    first = _choose_object(rng, kind, colour, texture, ())
    shown = [first]
    if objects == 2:
        shown.append(_choose_object(rng, None, None, None, (first.kind,)))
    if background is None:
        background = _pick(rng, _standing_out(shown))
    canvas = _backdrop(rng, background, size * _SUPERSAMPLING)
    for thing, place in zip(shown, _places(rng, objects), strict=True):
        _paint(rng, canvas, thing, place)
    caption = describe(rng, shown, background).text
    return Scene(_reduce(canvas, size), tuple(shown), background, caption)


def describe(rng: np.random.Generator, objects: Sequence[SceneObject], background: str) -> Caption:
    """Word a true description, which may leave out colours, textures and the background."""
    claims = []
    phrases = []
    for thing in objects[: 1 + int(rng.random() < 0.75)]:
        colour = thing.colour if rng.random() < 0.6 else None
        texture = thing.texture if rng.random() < 0.4 else None
        words = [] if colour is None else [_pick(rng, colour_names(colour))]
        if texture is not None:
            words.append(_pick(rng, TEXTURES[texture]))
        name = thing.kind if rng.random() < 0.6 else _pick(rng, names_of(thing.kind))
        phrases.append(" ".join([*words, name]))
        claims.append((thing.kind, colour, texture))
    text = phrases[0]
    if len(phrases) == 2:
        text = _pick(rng, JOINTS).format(*phrases)
    told = background if rng.random() < 0.4 else None
    if told is not None:
        text += " " + _pick(rng, BACKDROPS).format(_pick(rng, colour_names(told)))
    return Caption(_pick(rng, TEMPLATES).format(text), tuple(claims), told)


def scene_vocabulary() -> list[str]:
    """Phrases about what scenes show, and everyday words beside them; no duplicates.

    Returns
    -------
    list of str
        Kinds and their synonyms, alone, in every colour and in every texture; colours, textures
        and backgrounds; nouns that no scene shows. Always in the same order.
    """
    entries = [name for kind in OBJECT_KINDS for name in names_of(kind)]
    entries += [f"{colour} {kind}" for kind in OBJECT_KINDS for colour in COLOUR_NAMES]
    entries += [f"{texture} {kind}" for kind in OBJECT_KINDS for texture in TEXTURE_NAMES]
    for colour in COLOUR_NAMES:
        entries += [f"{name} thing" for name in colour_names(colour)]
        entries += [backdrop.format(colour) for backdrop in BACKDROPS]
    entries += [f"{name} pattern" for names in TEXTURES.values() for name in names]
    entries += GENERAL_WORDS
    return list(dict.fromkeys(entries))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _choose_object(
    rng: np.random.Generator,
    kind: str | None,
    colour: str | None,
    texture: str | None,
    other_than: Sequence[str],
) -> SceneObject:
    return SceneObject(
        kind or _pick(rng, [name for name in OBJECT_KINDS if name not in other_than]),
        colour or _pick(rng, COLOUR_NAMES),
        texture or _pick(rng, TEXTURE_NAMES),
    )


def _distance(first: str, second: str) -> float:
    pairs = zip(COLOURS[first], COLOURS[second], strict=True)
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs))


def _standing_out(objects: Sequence[SceneObject]) -> list[str]:
    return [
        name
        for name in COLOUR_NAMES
        if all(_distance(name, thing.colour) >= _MIN_CONTRAST for thing in objects)
    ]


def _shade(rng: np.random.Generator, name: str, spread: float) -> Colour:
    """A colour near the named one, (3,) float32."""
    jitter = rng.uniform(-spread, spread, 3)
    return np.clip(np.asarray(COLOURS[name]) + jitter, 0, 255).astype(np.float32)


def _toward(colour: Colour, target: float, share: float) -> Colour:
    moved = colour + np.float32(share) * (np.float32(target) - colour)
    return np.asarray(moved, dtype=np.float32)


def _grid(side: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """y (side, 1) and x (1, side), from -1 to 1."""
    steps = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side) - 1
    return steps[:, None].astype(np.float32), steps[None, :].astype(np.float32)


def _backdrop(rng: np.random.Generator, name: str, side: int) -> npt.NDArray[np.float32]:
    """A background, (side, side, 3) float32: flat, shaded, two halves, or grained."""
    first = _shade(rng, name, 14)
    second = _toward(first, float(rng.choice([0, 255])), float(rng.uniform(0.08, 0.25)))
    y, x = _grid(side)
    share: npt.NDArray[Any]
    style = int(rng.integers(4))
    if style == 0:
        return np.broadcast_to(first, (side, side, 3)).copy()
    if style == 1:
        c, s = turn(float(rng.uniform(0, 360)))
        share = np.clip(0.5 + 0.5 * (np.float32(c) * x + np.float32(s) * y), 0, 1)
    elif style == 2:
        share = np.broadcast_to(y > np.float32(rng.uniform(0.0, 0.6)), (side, side))
    else:
        cells = rng.random((16, 16)).astype(np.float32)
        share = np.repeat(np.repeat(cells, -(-side // 16), 0), -(-side // 16), 1)[:side, :side]
    return np.asarray(first + share[..., None].astype(np.float32) * (second - first))


@dataclass(frozen=True)
class _Place:
    """Centre and half size, in units of half the scene; rotation in degrees; stretch in x."""

    x: float
    y: float
    scale: float
    angle: float
    stretch: float


def _places(rng: np.random.Generator, objects: int) -> list[_Place]:
    def place(x: float, y: float, scale: float, loose: float) -> _Place:
        x += float(rng.uniform(-loose, loose))
        y += float(rng.uniform(-loose, loose))
        angle, stretch = float(rng.uniform(-20, 20)), float(rng.uniform(0.85, 1.18))
        return _Place(x, y, scale, angle, stretch)

    if objects == 1:
        scale = float(rng.uniform(0.45, 0.82))
        return [place(0, 0, scale, 0.92 - scale)]
    large, small = float(rng.uniform(0.42, 0.52)), float(rng.uniform(0.3, 0.4))
    side = 1 if rng.random() < 0.5 else -1
    c, s = turn(float(rng.uniform(-50, 50)))
    return [
        place(-0.42 * c * side, -0.42 * s, large, 0.06),
        place(0.52 * c * side, 0.52 * s, small, 0.06),
    ]


def _paint(
    rng: np.random.Generator, canvas: npt.NDArray[np.float32], thing: SceneObject, place: _Place
) -> None:
    """Draw one object on the canvas."""
    side = canvas.shape[0]
    inks = _ink_map(_SHAPES[thing.kind](rng), place, side)
    colour = _shade(rng, thing.colour, 14)
    brightness = float(colour.mean())
    dark = np.full(3, 40.0 if brightness > 40 + _INK_CONTRAST else 120.0, dtype=np.float32)
    light = np.full(3, 250.0 if brightness < 250 - _INK_CONTRAST else 185.0, dtype=np.float32)
    body = _texture(rng, thing.texture, colour, place, side)
    for ink, paint in ((BODY, body), (DARK, dark), (LIGHT, light)):
        where = inks == ink
        canvas[where] = paint[where] if paint.ndim == 3 else paint


def _ink_map(patches: Sequence[Patch], place: _Place, side: int) -> npt.NDArray[np.uint8]:
    """Which ink covers each pixel, (side, side) uint8."""
    from PIL import Image, ImageDraw

    c, s = turn(place.angle)
    half = side / 2
    sheet = Image.new("L", (side, side), CLEAR)
    pen = ImageDraw.Draw(sheet)
    for patch in patches:
        corners = []
        for x, y in patch.corners:
            x, y = place.scale * place.stretch * x, place.scale * y
            across = half * (1 + place.x + c * x - s * y)
            down = half * (1 + place.y + s * x + c * y)
            corners.append((round(across), round(down)))
        pen.polygon(corners, fill=patch.ink)
    return np.asarray(sheet)


def _texture(
    rng: np.random.Generator, name: str, colour: Colour, place: _Place, side: int
) -> npt.NDArray[np.float32]:
    """A plane of texture, (side, side, 3) float32, or one colour, (3,)."""
    if name == "plain":
        return colour
    light = float(colour.mean()) < 150
    other = _toward(colour, 255.0 if light else 0.0, float(rng.uniform(0.55, 0.8)))
    y, x = _grid(side)
    c, s = turn(float(rng.uniform(0, 180)))
    along = (np.float32(c) * x + np.float32(s) * y) / np.float32(place.scale)
    across = (np.float32(c) * y - np.float32(s) * x) / np.float32(place.scale)
    share: npt.NDArray[Any]
    if name == "gradient":
        share = np.clip(0.5 + 0.55 * along, 0, 1)
    else:
        count = np.float32(rng.uniform(2.2, 3.4))
        first, second = along * count, across * count
        if name == "striped":
            share = (first - np.floor(first)) < 0.4
        elif name == "checked":
            share = (np.floor(first) + np.floor(second)) % 2 == 0
        else:
            dx, dy = first - np.floor(first) - 0.5, second - np.floor(second) - 0.5
            share = dx * dx + dy * dy < np.float32(0.075)
    return np.asarray(colour + share[..., None].astype(np.float32) * (other - colour))


def _reduce(canvas: npt.NDArray[np.float32], size: int) -> Image:
    """Average the supersampled canvas down to `size` pixels."""
    from PIL import Image

    step = _SUPERSAMPLING
    blocks = canvas.reshape(size, step, size, step, 3)
    pixels = blocks.sum(axis=(1, 3), dtype=np.float64) / (step * step)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
