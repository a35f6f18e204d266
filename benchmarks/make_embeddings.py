"""Write stores of synthetic CLIP-like embeddings: a corpus, a calibration and images.

    python benchmarks/make_embeddings.py FOLDER --images 2000000 --entries 20000 --classes 10

About 1 KB an image at d = 512 in float16. See bliss_index.bench.synthetic.clip_like for the data.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

from bliss_index.bench.synthetic import clip_like
from bliss_index.calibration import calibrate
from bliss_index.store import ModelIdentity, StoreWriter

MODEL = ModelIdentity("ViT-B-16", "synthetic")
_ROWS = 65536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--dim", type=int, default=512)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    make_corpus(given.folder, given.entries, given.classes, given.dim)
    make_images(given.folder / "images", given.images, given.dim)


def make_missing(
    folder: Path, entries: int, classes: int, dim: int, images: dict[str, int]
) -> None:
    """A corpus, a calibration, and stores of so many images by name, as far as they are not there.

    What is there is taken to be of the same sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "calibration").exists():
        make_corpus(folder, entries, classes, dim)
    for name, count in images.items():
        if not (folder / name).exists():
            make_images(folder / name, count, dim)


def make_corpus(folder: Path, entries: int, classes: int, dim: int) -> None:
    """A text store of `entries` entries, and a calibration of `classes` classes."""
    rows = clip_like(entries, dim, "text", 1)
    names = [f"entry {i}" for i in range(entries)]
    with StoreWriter(folder / "corpus", kind="text", model=MODEL, dim=dim) as writer:
        writer.append(names, rows, texts=names)
    images = clip_like(200 * classes, dim, "image", 2)
    labels = np.arange(len(images)) % classes
    texts = clip_like(classes, dim, "text", 3)
    calibration = calibrate([(images, labels)], texts, model=MODEL)
    calibration.save(folder / "calibration")


def make_images(path: Path, count: int, dim: int) -> None:
    """An image store of `count` rows, one shard at a time."""
    free, needed = shutil.disk_usage(path.parent).free, 2 * count * dim
    if free < 1.2 * needed:
        sys.exit(f"{path.parent} has {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} are needed")
    with StoreWriter(path, kind="image", model=MODEL, dim=dim) as writer:
        for start in range(writer.rows, count, _ROWS):
            rows = clip_like(min(_ROWS, count - start), dim, "image", 1000 + start)
            writer.append([f"{i:09}" for i in range(start, start + len(rows))], rows)


if __name__ == "__main__":
    main()
