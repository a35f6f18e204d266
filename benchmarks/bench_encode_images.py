"""Image encoding against a plain DataLoader loop and against clip-retrieval's way, paired.

All read the same JPEG files on random weights and take turns on blocks of files, so that all meet
the same load of the machine; who begins changes from block to block.

- plain DataLoader: open_clip's transform in a Dataset, batches to ``encode_image``, normalised;
- clip-retrieval's way: its Dataset of files, its loader's settings (batches of 256, 4 processes,
  two batches ahead each), its mapper (normalised, to float16), an array and a Parquet file of names
  at the end;
- bliss_index: ``encode_image_store``, with decoding, checks, hashes and the store on disk.

    python benchmarks/bench_encode_images.py --json benchmarks/results/encode_images_vit_b_32.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result

from bliss_index.encode.random_weights import save_random_model


class Files:
    """A map-style data set of image files, as a user's own loop would have it."""

    def __init__(self, paths: list, settings: dict) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.paths = paths
        self.transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> object:
        from PIL import Image

        with Image.open(self.paths[row]) as image:
            return self.transform(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--count", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="float32", help="of all sides")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        write_result(arguments.json, measure(arguments, Path(directory)))


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    import torch

    from bliss_index.encode import load_encoder
    from bliss_index.encode.image_work import encode_image_store
    from bliss_index.encode.images import open_images
    from bliss_index.encode.pipeline import PipelineTimes
    from bliss_index.encode.torchvision_cure import import_open_clip
    from bliss_index.store import EmbeddingStore

    open_clip = import_open_clip()
    save_random_model(arguments.model, directory)
    encoder = load_encoder(f"local-dir:{directory}", device="cpu", precision=arguments.precision)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    model.eval().to(getattr(torch, arguments.precision))
    times = PipelineTimes()

    def ours(folder: Path) -> np.ndarray:
        out = folder.with_name(f"{folder.name}-store")
        encode_image_store(
            encoder, open_images(folder), out, decoders=arguments.workers, times=times
        )
        return EmbeddingStore.open(out).embeddings("float32")

    sides: list[tuple[str, Callable[[Path], np.ndarray]]] = [
        (
            "plain_data_loader",
            lambda folder: plain_loop(model, folder, encoder.image_batch_size, arguments.workers),
        ),
        ("clip_retrieval_way", lambda folder: clip_retrieval_way(model, folder)),
        ("bliss_index", ours),
    ]
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    gap, each = 0.0, arguments.count // arguments.rounds
    for turn in range(-1, arguments.rounds):  # the first, of a few images, is not counted
        folder = directory / f"images-{turn}"
        write_images(folder, each if turn >= 0 else 16, seed=turn + 1)
        rows = {}
        for name, encode in sides:
            began = time.perf_counter()
            rows[name] = encode(folder)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
        if turn < 0:
            times.encode_seconds = times.wait_seconds = 0.0
        sides.append(sides.pop(0))
        gap = max(gap, float(np.abs(rows["bliss_index"] - rows["plain_data_loader"]).max()))
    return {
        "benchmark": "encode_images",
        "model": arguments.model,
        "weights": "random",
        "precision": arguments.precision,
        "images": each * arguments.rounds,
        "image_size": "500x375 JPEG",
        "decoding_processes": arguments.workers,
        "note": "the start of decoding processes counts, once a block, on every side; ours stores "
        "float16, so components differ by up to 2.4e-4",
        "machine": describe_machine(arguments.threads),
        "seconds": {name: [round(v, 2) for v in values] for name, values in seconds.items()},
        "images_per_second": {
            name: round(each / float(np.median(values)), 1) for name, values in seconds.items()
        },
        "speedup": {
            name: round(float(np.median(np.divide(values, seconds["bliss_index"]))), 2)
            for name, values in seconds.items()
            if name != "bliss_index"
        },
        "encoder_busy": round(times.busy, 3),
        "largest_component_difference": gap,
    }


def plain_loop(model: Any, folder: Path, batch_size: int, workers: int) -> np.ndarray:
    """What a user writes first."""
    import torch

    loader = torch.utils.data.DataLoader(
        Files(sorted(folder.iterdir()), model.visual.preprocess_cfg),
        batch_size=batch_size,
        num_workers=workers,
    )
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        parts = [model.encode_image(batch.to(dtype)).float() for batch in loader]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()


def clip_retrieval_way(model: Any, folder: Path) -> np.ndarray:
    """The steps of ``clip-retrieval inference`` on a folder of files, by its default settings."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    paths = sorted(folder.glob("**/*.jpg"))
    loader = torch.utils.data.DataLoader(
        Files(paths, model.visual.preprocess_cfg),
        batch_size=256,
        num_workers=4,
        prefetch_factor=2,
    )
    dtype = next(model.parameters()).dtype
    parts = []
    with torch.no_grad():
        for batch in loader:
            features = model.encode_image(batch.to(dtype))
            features /= features.norm(dim=-1, keepdim=True)
            parts.append(features.to(torch.float16).numpy())
    rows = np.concatenate(parts)
    np.save(folder.with_name(f"{folder.name}.npy"), rows)
    names = pa.table({"image_path": [str(path) for path in paths]})
    pq.write_table(names, folder.with_name(f"{folder.name}.parquet"))
    return rows


def write_images(folder: Path, count: int, seed: int) -> list[Path]:
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(seed)
    paths = []
    for number in range(count):
        coarse = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(image) + generator.integers(-9, 9, (375, 500, 3))
        path = folder / f"{number:06d}.jpg"
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths


if __name__ == "__main__":
    main()
