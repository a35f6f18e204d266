"""Image encoding against a plain DataLoader loop over open_clip's transform, paired.

Both read the same JPEG files with the same number of decoding processes, on random weights; they
take turns on blocks of files, so that both meet the same load of the machine.

    python benchmarks/bench_encode_images.py --model ViT-B-32 --count 256

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe_machine

from bliss_index.encode.random_weights import save_random_model


class Files:
    """A map-style data set of image files, as a user's own loop would have it."""

    def __init__(self, paths: list, settings: dict) -> None:
        self.paths, self.settings, self.transform = paths, settings, None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> object:
        from PIL import Image

        if self.transform is None:  # made in the worker, where torchvision must be imported first
            from bliss_index.encode.torchvision_cure import import_open_clip

            import_open_clip()
            from open_clip.transform import PreprocessCfg, image_transform_v2

            self.transform = image_transform_v2(PreprocessCfg(**self.settings), is_train=False)
        with Image.open(self.paths[row]) as image:
            return self.transform(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(arguments, Path(directory)), indent=2))


def measure(arguments: argparse.Namespace, directory: Path) -> dict:
    import torch

    from bliss_index.encode import load_encoder
    from bliss_index.encode.images import open_images
    from bliss_index.encode.pipeline import PipelineTimes, iter_encoded
    from bliss_index.encode.torchvision_cure import import_open_clip

    open_clip = import_open_clip()
    save_random_model(arguments.model, directory)
    encoder = load_encoder(f"local-dir:{directory}", device="cpu")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    model.eval()
    seconds = {"data_loader": 0.0, "bliss_index": 0.0}
    times, gap, each = PipelineTimes(), 0.0, arguments.count // arguments.rounds
    for turn in range(arguments.rounds):
        folder = directory / f"images-{turn}"
        paths = write_images(folder, each, seed=turn)
        began = time.perf_counter()
        loader = torch.utils.data.DataLoader(
            Files(paths, model.visual.preprocess_cfg),
            batch_size=encoder.image_batch_size,
            num_workers=arguments.workers,
            multiprocessing_context="spawn" if arguments.workers else None,
        )
        with torch.inference_mode():
            parts = [model.encode_image(batch) for batch in loader]
            expected = torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()
        middle = time.perf_counter()
        source = open_images(folder)
        batches = list(iter_encoded(encoder, source, workers=arguments.workers, times=times))
        seconds["bliss_index"] += time.perf_counter() - middle
        seconds["data_loader"] += middle - began
        embeddings = np.concatenate([batch.embeddings for batch in batches])
        gap = max(gap, float(np.abs(embeddings - expected).max()))
    count = each * arguments.rounds
    return {
        "benchmark": "encode_images",
        "model": arguments.model,
        "weights": "random",
        "images": count,
        "image_size": "500x375 JPEG",
        "threads": arguments.threads,
        "decoding_processes": arguments.workers,
        "rounds": arguments.rounds,
        "note": "the start of the decoding processes counts, once a round, on both sides",
        "machine": describe_machine(arguments.threads),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "images_per_second": {name: round(count / value, 1) for name, value in seconds.items()},
        "encoder_busy": round(times.busy, 3),
        "largest_component_difference": gap,
    }


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
