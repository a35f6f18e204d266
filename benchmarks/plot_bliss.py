"""Draw what BLISS computes, on drawn scenes and the embedded model: the figures of docs/bliss.md.

    python benchmarks/plot_bliss.py --json benchmarks/results/bliss_pictures.json

Every value is computed in float64 by the formulas as they are written; the scores are compared with
those of the package. What the page says in numbers is in the JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import describe_machine
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from bliss_index import BlissDetector, load_encoder
from bliss_index.demo.scenes import OBJECT_KINDS, Scene, draw_scene, scene_vocabulary
from bliss_index.scoring.thresholds import threshold_at
from bliss_index.vocabulary import render_prompts

Array = npt.NDArray[np.float64]
NORMAL = ("cat", "bicycle")
KNOWN, NEW = 60, 100  # images a class
K, LAMBDA, RATE = 10, 0.5, 0.05
SHOWN = ("cat", "castle", "red castle", "bicycle", "car")
_COLOURS = {"cat": "#d1603d", "bicycle": "#4878a8", "other": "#4b8b5a", "text": "#9a9a9a"}
_SIZE = (5.6, 3.9)


@dataclass(frozen=True)
class World:
    """Images and texts, and their embeddings: unit rows."""

    words: list[str]
    texts: Array
    labels: Array
    known: dict[str, Array]
    new: list[Scene]
    images: Array
    held_out: Array

    @property
    def is_normal(self) -> npt.NDArray[np.bool_]:
        return np.array([scene.objects[0].kind in NORMAL for scene in self.new])

    def z(self, name: str, rows: Array, texts: Array) -> Array:
        """Similarities in deviations of the class's known images from their mean."""
        normal = self.known[name] @ texts.T
        return np.asarray((rows @ texts.T - normal.mean(0)) / normal.std(0))

    def nearest(self, rows: Array) -> npt.NDArray[np.int64]:
        return np.argsort(-(rows @ self.texts.T), axis=1, kind="stable")[:, :K]

    def terms(self, rows: Array) -> tuple[Array, Array]:
        """I and E of every class and image."""
        chosen = self.nearest(rows)
        internal = [-self.z(n, rows, self.labels[[c]])[:, 0] for c, n in enumerate(NORMAL)]
        external = [
            np.take_along_axis(self.z(name, rows, self.texts), chosen, 1).mean(1) for name in NORMAL
        ]
        return np.stack(internal), np.stack(external)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, default=Path("docs/images"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.figures.mkdir(parents=True, exist_ok=True)
    world = make_world()
    found: dict[str, Any] = {"machine": describe_machine(1)}
    for name, draw in {
        "gap": draw_gap, "entries": draw_entries, "nearest": draw_nearest, "scores": draw_scores,
    }.items():  # fmt: skip
        figure = Figure(figsize=_SIZE, layout="constrained")
        found[name] = draw(world, figure)
        figure.savefig(given.figures / f"bliss_{name}.png", dpi=160, metadata={"Software": None})
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def make_world() -> World:
    """Draw and encode everything."""
    encoder = load_encoder("bliss-tiny")
    rng = np.random.default_rng(0)
    words = scene_vocabulary()
    others = [kind for kind in OBJECT_KINDS if kind not in NORMAL]
    known = {name: [draw_scene(rng, name) for _ in range(KNOWN)] for name in NORMAL}
    new = [draw_scene(rng, name) for name in NORMAL for _ in range(NEW)]
    new += [draw_scene(rng, others[i % len(others)]) for i in range(NEW * len(NORMAL))]
    held_out = [draw_scene(rng, name) for name in NORMAL for _ in range(NEW)]

    def encoded(scenes: list[Scene]) -> Array:
        return encoder.encode_images([scene.image for scene in scenes]).astype(np.float64)

    return World(
        words,
        encoder.encode_text(render_prompts(words)).astype(np.float64),
        encoder.encode_text(render_prompts(NORMAL)).astype(np.float64),
        {name: encoded(scenes) for name, scenes in known.items()},
        new,
        encoded(new),
        encoded(held_out),
    )


def draw_gap(world: World, figure: Figure) -> dict[str, float]:
    """Images and texts in the plane of the gap and of the largest variance beside it."""
    kinds = [scene.objects[0].kind for scene in world.new]
    gap = world.images.mean(0) - world.texts.mean(0)
    gap /= np.linalg.norm(gap)
    rows = np.concatenate([world.images, world.texts])
    rest = rows - np.outer(rows @ gap, gap)
    side = np.linalg.svd(rest - rest.mean(0), full_matrices=False)[2][0]
    axes = figure.subplots()

    def dots(rows: Array, label: str, colour: str, size: float) -> None:
        axes.scatter(rows @ gap, rows @ side, s=size, color=colour, alpha=0.6, label=label, lw=0)

    dots(world.texts, f"{len(world.texts):,} entries of the vocabulary", _COLOURS["text"], 6)
    for name in (*NORMAL, "other"):
        chosen = np.array([(kind if kind in NORMAL else "other") == name for kind in kinds])
        dots(world.images[chosen], f"images: {name}", _COLOURS[name], 14)
    for label, name in zip(world.labels, NORMAL, strict=True):
        at = (label @ gap, label @ side)
        axes.plot(*at, "o", ms=6, mfc="none", mec="black")
        axes.annotate(f'text "{name}"', at, xytext=(6, 6), textcoords="offset points")
    axes.set_xlabel("from the mean text towards the mean image")
    axes.set_ylabel("most varied direction")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8, markerscale=1.5)
    first, second = world.known[NORMAL[0]], world.known[NORMAL[1]]
    return {
        "image and image of one class": _mean_of_pairs(first),
        "image and image of the other class": float((first @ second.T).mean()),
        "text and text": _mean_of_pairs(world.texts),
        "image and text": float((world.images @ world.texts.T).mean()),
        "image and its label": float((first @ world.labels[0]).mean()),
    }


def _mean_of_pairs(rows: Array) -> float:
    n = len(rows)
    return float(((rows @ rows.T).sum() - n) / (n * (n - 1)))


def stranger(world: World) -> int:
    """The first new image of a car."""
    return next(i for i, scene in enumerate(world.new) if scene.objects[0].kind == "car")


def draw_entries(world: World, figure: Figure) -> dict[str, dict[str, float]]:
    """Similarities of cats with some entries, their mean and deviation, and an image of a car."""
    axes, cats, image = figure.subplots(), world.known["cat"], world.images[stranger(world)]
    rng = np.random.default_rng(0)
    found = {}
    for row, word in enumerate(SHOWN):
        text = world.texts[world.words.index(word)]
        values, value = cats @ text, float(image @ text)
        mean, deviation = float(values.mean()), float(values.std())
        jitter = row + rng.uniform(-0.18, 0.18, len(values))
        first = row == 0
        axes.scatter(values, jitter, s=9, color=_COLOURS["cat"], alpha=0.5, lw=0,
                     label="known images of cats" if first else None)  # fmt: skip
        axes.errorbar(mean, row, xerr=deviation, color="black", capsize=4, marker="|", ms=14,
                      label="their mean and deviation" if first else None)  # fmt: skip
        axes.plot(value, row, "D", color=_COLOURS["other"], ms=7, mec="black", mew=0.6, ls="",
                  label="a new image: a car" if first else None)  # fmt: skip
        z = (value - mean) / deviation
        axes.text(1.02, row, f"{z:+.1f}", transform=axes.get_yaxis_transform(), va="center")
        found[word] = {"mean": mean, "deviation": deviation, "car": value, "z": z}
    axes.text(1.02, -0.5, "z", transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(SHOWN)), [f'"{word}"' for word in SHOWN])
    axes.set_ylim(len(SHOWN) - 0.5, -0.7)
    axes.set_xlabel("similarity with the entry")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8,
                  columnspacing=1, handletextpad=0.4)  # fmt: skip
    return found


def draw_nearest(world: World, figure: Figure) -> dict[str, Any]:
    """The k nearest entries of a cat and of a car, against what is usual for cats."""
    found = {}
    cat = next(i for i, scene in enumerate(world.new) if scene.objects[0].kind == "cat")
    cats = world.known["cat"]
    for axes, place in zip(figure.subplots(1, 2), (cat, stranger(world)), strict=True):
        image = world.images[[place]]
        chosen = world.nearest(image)[0]
        texts = world.texts[chosen]
        values, usual = (image @ texts.T)[0], (cats @ texts.T).mean(0)
        z = world.z("cat", image, texts)[0]
        rows = np.arange(K)
        axes.barh(rows, values, color="#cfd8dc", height=0.7, label="this image")
        axes.plot(usual, rows, "|", color=_COLOURS["cat"], ms=11, mew=2.2, label="usual for cats")
        for row in rows:
            axes.text(max(values) + 0.03, row, f"{z[row]:+.1f}", va="center", fontsize=8)
        axes.set_yticks(rows, [world.words[entry] for entry in chosen], fontsize=8)
        axes.set_xlim(0, max(values) + 0.22)
        axes.set_ylim(K - 0.4, -3.4)
        axes.set_xlabel("similarity")
        picture = OffsetImage(np.asarray(world.new[place].image), zoom=0.5)
        axes.add_artist(AnnotationBbox(
            picture, (0.02, 0.99), xycoords="axes fraction", box_alignment=(0, 1), frameon=False,
        ))  # fmt: skip
        external = float(z.mean())
        axes.text(0.98, 0.97, f"mean of the ten:\nE = {external:.2f}", transform=axes.transAxes,
                  ha="right", va="top", fontsize=9)  # fmt: skip
        name = world.new[place].objects[0].kind
        found[name] = {"entries": [world.words[i] for i in chosen], "external": external}
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return found


def draw_scores(world: World, figure: Figure) -> dict[str, float]:
    """I and E of new images, and the line at which they are flagged."""
    internal, external = world.terms(world.images)
    scores = internal + LAMBDA * external
    nearest, columns = scores.argmin(0), np.arange(len(world.images))
    best = scores.min(0)
    fitted = BlissDetector(world.texts.astype(np.float32), world.labels.astype(np.float32), k=K,
                           lam=LAMBDA)  # fmt: skip
    known = np.concatenate([world.known[name] for name in NORMAL]).astype(np.float32)
    fitted.fit(known, np.repeat(np.arange(len(NORMAL)), KNOWN))
    np.testing.assert_allclose(
        fitted.anomaly_score(world.images.astype(np.float32)), best, atol=2e-4
    )
    held_out = sum(np.stack(world.terms(world.held_out)) * np.array([1, LAMBDA])[:, None, None])
    threshold = threshold_at(held_out.min(0), RATE).value
    normal, kinds = world.is_normal, [scene.objects[0].kind for scene in world.new]
    across, up = internal[nearest, columns], external[nearest, columns]
    axes = figure.subplots()
    for name in (*NORMAL, "other"):
        chosen = np.array([(kind if kind in NORMAL else "other") == name for kind in kinds])
        axes.scatter(across[chosen], up[chosen], s=14, color=_COLOURS[name], alpha=0.7, lw=0,
                     label=f"new images: {name}")  # fmt: skip
    span = np.array(axes.get_xlim())
    axes.plot(span, (threshold - span) / LAMBDA, "--", color="black", lw=1,
              label=f"I + {LAMBDA} E = {threshold:.2f}: the threshold")  # fmt: skip
    axes.set_xlim(*span)
    axes.set_ylim(up.min() - 1, up.max() + 1)
    axes.set_xlabel("I, of the class that comes closest: how little like its name")
    axes.set_ylabel("E: how much like other words")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    raw = -(world.images @ world.labels.T).max(1)
    return {
        "threshold": threshold,
        "flagged normal": int((best[normal] > threshold).sum()),
        "flagged others": int((best[~normal] > threshold).sum()),
        "normal": int(normal.sum()),
        "others": int((~normal).sum()),
        "auroc": _auroc(best, ~normal),
        "auroc of the raw similarity": _auroc(raw, ~normal),
    }


def _auroc(scores: Array, anomalous: npt.NDArray[np.bool_]) -> float:
    high, low = scores[anomalous][:, None], scores[~anomalous][None]
    return float(np.mean(high > low) + np.mean(high == low) / 2)


if __name__ == "__main__":
    main()
