"""Draw what ``study_sensitivity.py`` measured.

For example::

    python benchmarks/plot_sensitivity.py benchmarks/results/sensitivity_caltech101.json docs/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_COLOURS = {"one-class": "#4878a8", "6 normal": "#d1603d", "all-but-one": "#4b8b5a"}
_PANELS = {
    "k": ("entries per image, k", "log"),
    "lambda": ("weight of the external score, lambda", "linear"),
    "vocabulary_size": ("vocabulary entries (drawn at random)", "log"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    result = json.loads(given.result.read_text())
    given.folder.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (name, (label, scale)) in zip(figure.subplots(1, 3), _PANELS.items(), strict=True):
        draw_lines(axes, result[name], "BLISS")
        finish(axes, label, scale)
    figure.axes[0].legend(frameon=False)
    figure.savefig(given.folder / "sensitivity.png", dpi=150)
    draw_images(result["calibration_images"], given.folder / "calibration_images.png")


def draw_images(result: dict[str, Any], path: Path) -> None:
    """AUROC by calibration images per class, one panel a detector."""
    titles = {"bliss": "BLISS", "label": "label term alone", "knn:neighbours=1": "nearest image"}
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, len(titles), sharey=True)
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        draw_lines(axes, result[name], title)
        finish(axes, "calibration images per class, at most", "log")
        axes.set_title(title, fontsize=10)
    panels[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


def draw_lines(axes: Any, curve: dict[str, Any], name: str) -> None:
    """Mean AUROC in percent of every protocol, with the deviation over the draws."""
    for protocol, points in curve["auroc"].items():
        axes.errorbar(
            curve["values"],
            [100 * p["mean"] for p in points],
            [100 * p["std"] for p in points],
            color=_COLOURS[protocol],
            marker="o",
            markersize=3,
            linewidth=1.2,
            label=protocol,
        )


def finish(axes: Any, label: str, scale: str) -> None:
    """Label axes."""
    axes.set_xscale(scale)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label)
    axes.set_ylabel("AUROC, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


if __name__ == "__main__":
    main()
