"""Draw how the time of a search grows, from what ``gpu_suite.py`` measured.

For example::

    python benchmarks/plot_growth.py benchmarks/results/gpu.json docs/images/gpu_growth.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    found = json.loads(given.result.read_text())
    card = (found["machine"]["card"] or [found["machine"]["processor"]])[0]
    points = growth_points(found)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    entries = [point["entries"] for point in points["vocabulary"]]
    axes[0].loglog(entries, [p["images_per_second"] for p in points["vocabulary"]], "o-")
    axes[0].set_xlabel("vocabulary entries")
    axes[0].set_ylabel("images per second")
    images = [point["images"] for point in points["images"]]
    axes[1].loglog(images, [point["seconds"] for point in points["images"]], "o-")
    axes[1].set_xlabel("images")
    axes[1].set_ylabel("seconds")
    for axis in axes:
        axis.grid(True, which="major", alpha=0.3)
    figure.suptitle(f"exact search, k = 10: {card}")
    figure.savefig(given.picture, dpi=150)


def growth_points(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the points of both curves, of the rows of a result that have one."""
    points: dict[str, list[dict[str, Any]]] = {"vocabulary": [], "images": []}
    for row in found["rows"]:
        if row["group"] == "growth" and "result" in row:
            points[row["result"]["grows"]].append(row["result"])
    return points


if __name__ == "__main__":
    main()
