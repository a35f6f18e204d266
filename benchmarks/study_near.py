"""What counts as near-identical in ``review``: pairs of different photos, and photos saved again.

    python benchmarks/study_near.py --embeddings A.npz B.npz --photos FOLDER \
        --json benchmarks/results/near.json

Of embeddings (the first matrix of each file) all pairs are compared, and what `NearRows` finds is
set beside them. The photos are encoded by the embedded model as they are, saved again as JPEG, and
at half their size; each is compared with itself as it was.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import describe_machine, write_result
from PIL import Image

from bliss_index import load_encoder
from bliss_index.review.near_images import NEAREST, NearRows

_BLOCK = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embeddings", type=Path, nargs="+", default=[])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "near",
        "machine": describe_machine(os.cpu_count() or 1),
        "nearest": NEAREST,
        "different": {path.stem: different(path) for path in given.embeddings},
    }
    if given.photos is not None:
        result["saved again"] = saved_again(given.photos)
    write_result(given.json, result)


def different(path: Path) -> dict[str, Any]:
    """Pairs of rows at least so near, and the cosine that few nearest neighbours exceed."""
    with np.load(path) as arrays:
        matrix = next(value for value in arrays.values() if value.ndim == 2)
    unit = centred(matrix, matrix.mean(axis=0, dtype=np.float64))
    nearest, pairs = np.empty(len(unit)), 0
    for start in range(0, len(unit), _BLOCK):
        cosine = unit[start : start + _BLOCK] @ unit.T
        cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -1
        nearest[start : start + _BLOCK] = cosine.max(axis=1)
        pairs += int((cosine >= NEAREST).sum())
    near = NearRows(len(matrix), matrix.mean(axis=0, dtype=np.float64))
    near.sign(0, matrix, np.ones(len(matrix), bool))
    found = near.first_of_each(near.candidates(), iter([(0, matrix)]))
    return {
        "images": len(matrix), "pairs": pairs // 2, "found": len(found),
        "nearest_cosine_quantile_99": round(float(np.quantile(nearest, 0.99)), 4),
        "nearest_cosine": round(float(nearest.max()), 4),
    }  # fmt: skip


def saved_again(folder: Path) -> dict[str, Any]:
    """Share of photos that are near to themselves as they were."""
    encoder = load_encoder("bliss-tiny")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpeg", ".jpg"))
    photos = [Image.open(path).convert("RGB") for path in files]
    before = encoder.encode_images(photos)
    mean = before.mean(axis=0, dtype=np.float64)
    changes: dict[str, Callable[[Image.Image], Image.Image]] = {
        "JPEG, quality 85": lambda photo: jpeg(photo, 85),
        "JPEG, quality 50": lambda photo: jpeg(photo, 50),
        "half the size": lambda photo: photo.resize((photo.width // 2, photo.height // 2)),
    }
    found: dict[str, Any] = {"photos": len(photos), "model": "bliss-tiny"}
    for name, change in changes.items():
        after = encoder.encode_images([change(photo) for photo in photos])
        cosine = (centred(before, mean) * centred(after, mean)).sum(axis=1)
        found[name] = round(float((cosine >= NEAREST).mean()), 4)
    return found


def jpeg(photo: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def centred(matrix: npt.NDArray[Any], mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    rows = matrix.astype(np.float64) - mean
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
