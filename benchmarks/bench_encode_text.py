"""Text encoding against open_clip's own call, paired, on random weights.

Every block of words is encoded by both in turn, so that both meet the same load of the machine.
open_clip's side tokenises and runs the full context length in batches of 256, float32, normalised.

    python benchmarks/bench_encode_text.py --model ViT-B-32 --words words.txt --count 5000

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--words", help="a vocabulary file; default: ImageNet names with colours")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--block", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(arguments, Path(directory)), indent=2))


def measure(arguments: argparse.Namespace, directory: Path) -> dict:
    import torch

    from bliss_index.encode import load_encoder
    from bliss_index.encode.torchvision_cure import import_open_clip
    from bliss_index.vocabulary import render_prompts

    open_clip = import_open_clip()
    save_random_model(arguments.model, directory)
    encoder = load_encoder(
        f"local-dir:{directory}",
        device="cpu",
        batch_size=arguments.batch,
        precision=arguments.precision,
    )
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    prompts = render_prompts(choose_words(arguments.words, arguments.count))
    seconds = {"open_clip": 0.0, "bliss_index": 0.0}
    gap, cosine = 0.0, 1.0
    for start in range(0, len(prompts), arguments.block):
        block = prompts[start : start + arguments.block]
        began = time.perf_counter()
        with torch.inference_mode():
            parts = [
                model.encode_text(tokenizer(block[i : i + 256]), normalize=True)
                for i in range(0, len(block), 256)
            ]
            expected = torch.cat(parts).numpy()
        middle = time.perf_counter()
        embeddings = encoder.encode_text(block)
        seconds["bliss_index"] += time.perf_counter() - middle
        seconds["open_clip"] += middle - began
        gap = max(gap, float(np.abs(embeddings - expected).max()))
        cosine = min(cosine, float(np.sum(embeddings * expected, axis=1).min()))
    return {
        "benchmark": "encode_text",
        "model": arguments.model,
        "weights": "random",
        "positions": encoder.settings["text_positions"],
        "precision": arguments.precision,
        "texts": len(prompts),
        "threads": arguments.threads,
        "processor": processor(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "texts_per_second": {name: round(len(prompts) / v, 1) for name, v in seconds.items()},
        "speedup": round(seconds["open_clip"] / seconds["bliss_index"], 2),
        "largest_component_difference": gap,
        "smallest_cosine": cosine,
    }


def save_random_model(name: str, directory: Path) -> None:
    """A local-dir model of open_clip's configuration `name` with seeded random weights."""
    import torch
    from safetensors.torch import save_file

    from bliss_index.encode.torchvision_cure import import_open_clip

    open_clip = import_open_clip()
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(state, directory / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (directory / "open_clip_config.json").write_text(json.dumps(config))


def choose_words(path: str | None, count: int) -> list[str]:
    from bliss_index.vocabulary import load_vocabulary

    if path is None:
        names = load_vocabulary("imagenet").entries
        colours = ("", "red ", "blue ", "green ", "white ", "black ", "yellow ", "brown ")
        return [colour + name for colour in colours for name in names][:count]
    entries = load_vocabulary(path).entries
    rows = np.random.default_rng(0).permutation(len(entries))[:count]
    return [entries[row] for row in np.sort(rows)]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
