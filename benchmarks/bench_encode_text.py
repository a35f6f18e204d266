"""Text encoding against open_clip's own call, paired, on random weights.

Every block of words is encoded by both in turn, the first changing from block to block, so that
both meet the same load of the machine. open_clip's side tokenises and runs the full context length
in batches of 256, float32, normalised.

    python benchmarks/bench_encode_text.py --model ViT-B-32 --words words.txt \
        --json benchmarks/results/encode_text_vit_b_32.json

With ``--precision bfloat16`` open_clip's side stays in float32 unless ``--their-precision`` says
otherwise, and the cosine tells how far the embeddings are apart. ``--alone N`` then encodes N more
words of the list's random order without open_clip: the rate of a long list, of which the slow side
would take hours.

Models whose tokenizer belongs to another package (SigLIP) get CLIP's tokenizer and as many token
embeddings: random weights do not mind.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result

_WARM = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--words", help="a vocabulary file; default: ImageNet names with colours")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--block", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--their-precision", default="float32")
    parser.add_argument("--alone", type=int, default=0, help="words more, of which ours is timed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        write_result(arguments.json, measure(arguments, Path(directory)))


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    import torch

    from bliss_index.encode import load_encoder
    from bliss_index.encode.random_weights import save_random_model
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
    model.eval().to(getattr(torch, arguments.their_precision))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    wanted = arguments.count + arguments.alone
    listed = render_prompts(choose_words(arguments.words, wanted))
    prompts, others = listed[: arguments.count], listed[arguments.count :]

    def reference(block: list[str]) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                model.encode_text(tokenizer(block[i : i + 256]), normalize=True)
                for i in range(0, len(block), 256)
            ]
            # In bfloat16 open_clip's rows are of unit norm to 1 in 250 only.
            return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1).numpy()

    sides = [("open_clip", reference), ("bliss_index", encoder.encode_text)]
    for _, encode in sides:  # what only the first call costs is nobody's speed
        encode(listed[-_WARM:])
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    gap, cosine = 0.0, 1.0
    for start in range(0, len(prompts), arguments.block):
        block = prompts[start : start + arguments.block]
        rows = {}
        for name, encode in sides:
            began = time.perf_counter()
            rows[name] = encode(block)
            seconds[name].append((time.perf_counter() - began) / len(block) * arguments.block)
        sides.reverse()
        gap = max(gap, float(np.abs(rows["bliss_index"] - rows["open_clip"]).max()))
        both = np.sum(rows["bliss_index"] * rows["open_clip"], axis=1, dtype=np.float64)
        cosine = min(cosine, float(both.min()))
    result = {
        "benchmark": "encode_text",
        "model": arguments.model,
        "weights": "random",
        "positions": encoder.settings["text_positions"],
        "precision": {"open_clip": arguments.their_precision, "bliss_index": arguments.precision},
        "texts": len(prompts),
        "context_length": encoder.context_length,
        "machine": describe_machine(arguments.threads),
        "block": arguments.block,
        "seconds": {name: [round(v, 2) for v in values] for name, values in seconds.items()},
        "texts_per_second": {
            name: round(arguments.block / float(np.median(values)), 1)
            for name, values in seconds.items()
        },
        "speedup": round(
            float(np.median(np.divide(seconds["open_clip"], seconds["bliss_index"]))), 2
        ),
        "largest_component_difference": gap,
        "smallest_cosine": cosine,
    }
    if others:
        began = time.perf_counter()
        encoder.encode_text(others)
        took = time.perf_counter() - began
        result["alone"] = {
            "words": len(others),
            "seconds": round(took, 2),
            "words_per_second": round(len(others) / took, 1),
        }
    return result


def choose_words(path: str | None, count: int) -> list[str]:
    from bliss_index.vocabulary import load_vocabulary

    if path is None:
        names = load_vocabulary("imagenet").entries
        colours = ("", "red ", "blue ", "green ", "white ", "black ", "yellow ", "brown ")
        return [colour + name for colour in colours for name in names][:count]
    entries = load_vocabulary(path).entries
    rows = np.random.default_rng(0).permutation(len(entries))[:count]
    return [entries[row] for row in rows]  # in that order: a part of them is a sample as well


if __name__ == "__main__":
    main()
