"""Encoding beside what a person writes first, on random weights.

Texts: open_clip's own call, tokens and the full context length in batches of 256, normalised.
Images: JPEG files of 500 x 375 through a DataLoader with open_clip's transform, and by the steps
and settings of ``clip-retrieval inference``; ours ends in a store on disk.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import THREADS

MODEL = "ViT-B-32"
BOTH = ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with random weights."""
    from bliss_index.encode.random_weights import save_random_model

    folder = tmp_path_factory.mktemp("model")
    save_random_model(MODEL, folder)
    return f"local-dir:{folder}"


def both_sides(model: str, precision: str) -> tuple[Any, Any]:
    """Our encoder and open_clip's model."""
    import torch

    from bliss_index.encode import load_encoder
    from bliss_index.encode.torchvision_cure import import_open_clip

    torch.set_num_threads(THREADS)
    theirs, _, _ = import_open_clip().create_model_and_transforms(model)
    theirs.eval().to(getattr(torch, precision))
    return load_encoder(model, device="cpu", precision=precision), theirs


@pytest.mark.benchmark(group="encode")
@pytest.mark.parametrize("precision", BOTH)
def test_texts(paired, scale, benchmark, model, precision):
    import open_clip
    import torch

    from bliss_index.vocabulary import load_vocabulary, render_prompts

    encoder, theirs = both_sides(model, precision)
    tokenizer = open_clip.get_tokenizer(model)
    prompts = render_prompts(load_vocabulary("imagenet").entries)[: scale(256)]

    def call() -> np.ndarray:
        with torch.inference_mode():
            parts = [
                theirs.encode_text(tokenizer(prompts[at : at + 256])).float()
                for at in range(0, len(prompts), 256)
            ]
            return torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()

    ways = {"bliss_index": lambda: encoder.encode_text(prompts), "open_clip": call}
    gap = np.abs(ways["bliss_index"]() - call()).max()
    paired(ways, count=len(prompts), rounds=3, model=MODEL, precision=precision)
    benchmark.extra_info["largest_component_difference"] = float(gap)


@pytest.mark.filterwarnings("ignore")  # of a loader with more processes than processors
@pytest.mark.benchmark(group="encode")
@pytest.mark.parametrize("precision", BOTH)
def test_images(paired, scale, model, precision, tmp_path):
    from bliss_index.encode.image_work import encode_image_store
    from bliss_index.encode.images import open_images

    encoder, theirs = both_sides(model, precision)
    folder, count = tmp_path / "images", scale(128)
    write_images(folder, count)
    numbers = itertools.count()

    def ours() -> None:
        out = tmp_path / f"store-{next(numbers)}"
        encode_image_store(encoder, open_images(folder), out, decoders=1)

    ways = {
        "bliss_index": ours,
        "data loader": lambda: data_loader(theirs, folder, encoder.image_batch_size, 1),
        "clip-retrieval's way": lambda: clip_retrieval_way(theirs, folder, tmp_path),
    }
    for way in ways.values():
        way()
    paired(ways, count=count, rounds=3, model=MODEL, precision=precision)


class Files:
    """A map-style data set of image files."""

    def __init__(self, paths: list[Path], settings: dict[str, Any]) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.paths = paths
        self.transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Any:
        from PIL import Image

        with Image.open(self.paths[row]) as image:
            return self.transform(image)


def data_loader(model: Any, folder: Path, batch: int, workers: int, **more: Any) -> np.ndarray:
    import torch

    files = Files(sorted(folder.iterdir()), model.visual.preprocess_cfg)
    loader = torch.utils.data.DataLoader(files, batch_size=batch, num_workers=workers, **more)
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        parts = [model.encode_image(rows.to(dtype)).float() for rows in loader]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()


def clip_retrieval_way(model: Any, folder: Path, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = data_loader(model, folder, 256, 4, prefetch_factor=2)
    np.save(out / "rows.npy", rows.astype(np.float16))
    names = pa.table({"image_path": [str(path) for path in sorted(folder.iterdir())]})
    pq.write_table(names, out / "names.parquet")


def write_images(folder: Path, count: int) -> None:
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(count):
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(image) + generator.integers(-9, 9, (375, 500, 3))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(
            folder / f"{number:06d}.jpg", quality=90
        )
