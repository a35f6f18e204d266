"""Draw how the time of a search grows, from what ``gpu_suite.py`` measured.

For example::

    python benchmarks/plot_growth.py benchmarks/results/gpu.json docs/images/gpu_growth.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    found = json.loads(given.result.read_text())
    card = found["machine"].get("card", [found["machine"]["processor"]])[0]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    growth = found["growth"]
    entries = [row["entries"] for row in growth["by_entries"]]
    rates = [row["images"] / row["seconds"] for row in growth["by_entries"]]
    axes[0].loglog(entries, rates, "o-")
    axes[0].set_xlabel("vocabulary entries")
    axes[0].set_ylabel("images per second")
    images = [row["images"] for row in growth["by_images"]]
    axes[1].loglog(images, [row["seconds"] for row in growth["by_images"]], "o-")
    axes[1].set_xlabel("images")
    axes[1].set_ylabel("seconds")
    for axis in axes:
        axis.grid(True, which="major", alpha=0.3)
    figure.suptitle(f"exact search, k = 10: {card}")
    figure.savefig(given.picture, dpi=150)


if __name__ == "__main__":
    main()
