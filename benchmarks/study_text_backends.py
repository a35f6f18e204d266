"""A text tower by torch and by OpenVINO, on the positions that reach the embedding: words a second.

    pip install openvino
    python benchmarks/study_text_backends.py --words WORDS --json result.json

The same random weights, in float32 and bfloat16, on drawn words of a list in one prompt; batches of
equal length, as :class:`~bliss_index.encode.text_tower.TextTower` makes them. All ways in turn.
"""

from __future__ import annotations

import argparse
import copy
import time
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
import torch
from machine import describe_machine, write_result

from bliss_index.encode.text_tower import _causal_parts, bucket_lengths
from bliss_index.encode.torchvision_cure import import_open_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--counts", type=int, nargs="+", default=[512, 2000])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    open_clip = import_open_clip()
    model = open_clip.create_model(given.model, pretrained=None).eval()
    listed = given.words.read_text().split()
    drawn = np.random.default_rng(0).choice(len(listed), max(given.counts), replace=False)
    ids = open_clip.get_tokenizer(given.model)([f"a photo of a {listed[i]}" for i in drawn]).numpy()
    ways = {
        "torch float32": by_torch(model),
        "torch bfloat16": by_torch(copy.deepcopy(model).to(torch.bfloat16)),
        "OpenVINO float32": by_openvino(model, ids, "f32", given.threads),
        "OpenVINO bfloat16": by_openvino(model, ids, "bf16", given.threads),
    }
    result = {
        **describe_machine(given.threads), "model": given.model, "weights": "random",
        "openvino": metadata.version("openvino"), "batch": given.batch,
        "counts": {str(n): compared(ways, ids[:n], given) for n in given.counts},
    }  # fmt: skip
    print(result["counts"])
    if given.json:
        write_result(given.json, result)


def compared(ways: dict[str, Any], ids: np.ndarray, given: argparse.Namespace) -> dict[str, Any]:
    """Words a second of all ways in turn, and their smallest cosine with the first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, np.ndarray] = {}
    for turn in range(given.rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            found[name] = encoded(run, ids, given.batch)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    first = next(iter(found.values()))
    return {
        name: {
            "words_per_second": round(len(ids) / median(times), 1),
            "smallest_cosine": round(float((found[name] * first).sum(1).min()), 6),
        }
        for name, times in seconds.items()
    }


def encoded(run: Any, ids: np.ndarray, batch: int) -> np.ndarray:
    """Unit embeddings of all rows, in batches of equal length."""
    needed = bucket_lengths(ids.argmax(1) + 1, ids.shape[1])
    rows = [run(ids[part], int(length)) for length in np.unique(needed)
            for part in parts_of(np.flatnonzero(needed == length), batch)]  # fmt: skip
    order = np.argsort(needed, kind="stable")
    out = np.empty_like(np.concatenate(rows))
    out[order] = np.concatenate(rows)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def parts_of(rows: np.ndarray, batch: int) -> list[np.ndarray]:
    return [rows[start : start + batch] for start in range(0, len(rows), batch)]


def by_torch(model: Any) -> Any:
    parts, _ = _causal_parts(model)

    def run(ids: np.ndarray, length: int) -> np.ndarray:
        with torch.inference_mode():
            return parts.run(torch.from_numpy(ids), length).float().numpy()

    return run


def by_openvino(model: Any, ids: np.ndarray, precision: str, threads: int) -> Any:
    parts, _ = _causal_parts(model)

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = model

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            length = tokens.shape[1]
            x = parts.token_embedding(tokens) + parts.positions[:length]
            x = parts.transformer(x, attn_mask=parts.mask[:length, :length])
            return parts.final_norm(x)

    with torch.inference_mode():
        converted = openvino.convert_model(
            Tower().eval(), example_input=torch.from_numpy(ids[:4, :10])
        )
    compiled = openvino.Core().compile_model(
        converted, "CPU",
        {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads},
    )  # fmt: skip
    projection = parts.projection.detach().numpy()

    def run(ids: np.ndarray, length: int) -> np.ndarray:
        states = compiled(np.ascontiguousarray(ids[:, :length]))[0]
        at = ids[:, :length].argmax(1)
        return states[np.arange(len(ids)), at] @ projection

    return run


if __name__ == "__main__":
    main()
