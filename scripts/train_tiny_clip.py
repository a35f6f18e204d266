"""Train bliss-tiny, the embedded model, on drawn scenes; or evaluate the one that is embedded.

    python scripts/train_tiny_clip.py                    # trains, evaluates, replaces the weights
    python scripts/train_tiny_clip.py --evaluate         # evaluates only
    python scripts/train_tiny_clip.py --evaluate --json FILE

Everything follows from --seed: the same seed, versions and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bliss_index.demo.scenes import OBJECT_KINDS, Scene, describe, draw_scene
from bliss_index.encode import load_encoder
from bliss_index.encode.preprocess import Preprocess
from bliss_index.vocabulary import render_prompts

OUTPUT = Path(__file__).parents[1] / "bliss_index" / "encode" / "bliss_tiny"
IMAGE_SIZE = 64
MODEL = {
    "embed_dim": 96,
    "vision_cfg": {
        "layers": [1, 1, 2, 1],
        "width": 16,
        "image_size": IMAGE_SIZE,
        "patch_size": None,
    },
    "text_cfg": {
        "context_length": 32,
        "vocab_size": 49408,
        "width": 40,
        "heads": 4,
        "layers": 2,
    },
}
STATISTICS = {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]}
GEOMETRY = {"interpolation": "bicubic", "resize_mode": "shortest"}
HELD_OUT_SEED = 1_000_003
SCENES_A_KIND = 20


@dataclass(frozen=True)
class Settings:
    """What a training run is made of."""

    seed: int
    scenes: int
    epochs: int
    batch: int
    rate: float
    threads: int


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluate", action="store_true", help="evaluate the embedded model only")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=30_000, help="scenes drawn once")
    parser.add_argument("--epochs", type=int, default=18, help="passes over them, newly captioned")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3, help="largest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    training = None
    if not given.evaluate:
        settings = Settings(
            given.seed, given.scenes, given.epochs, given.batch, given.rate, given.threads
        )
        began = time.perf_counter()
        train(settings)
        training = {**vars(settings), "minutes": round((time.perf_counter() - began) / 60, 1)}
    figures = evaluate()
    if training is not None:
        figures["training"] = training
    print(
        f"zero-shot accuracy {figures['accuracy']:.1%} over {figures['kinds']} kinds, "
        f"{figures['scenes']} held-out scenes (chance {1 / figures['kinds']:.1%})"
    )
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


def evaluate() -> dict[str, Any]:
    """Zero-shot accuracy of the embedded model on freshly drawn scenes."""
    encoder = load_encoder("bliss-tiny")
    texts = encoder.encode_text(render_prompts(OBJECT_KINDS))
    scenes = [
        draw_scene(np.random.default_rng([HELD_OUT_SEED, kind, number]), kind=OBJECT_KINDS[kind])
        for kind in range(len(OBJECT_KINDS))
        for number in range(SCENES_A_KIND)
    ]
    images = encoder.encode_images([scene.image for scene in scenes])
    ranks = np.argsort(-(images @ texts.T), axis=1)
    truth = np.array([OBJECT_KINDS.index(scene.kind) for scene in scenes])
    return {
        "accuracy": float((ranks[:, 0] == truth).mean()),
        "top5_accuracy": float((ranks[:, :5] == truth[:, None]).any(1).mean()),
        "kinds": len(OBJECT_KINDS),
        "scenes": len(scenes),
        "seed": HELD_OUT_SEED,
        "prompt": "This is a photo of a {}",
        "model": encoder.identity.describe(),
        "bytes": (OUTPUT / "open_clip_model.safetensors").stat().st_size,
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "command": " ".join(["python", "scripts/train_tiny_clip.py", *sys.argv[1:]]),
    }


def draw(task: tuple[int, int, int]) -> tuple[np.ndarray, list[tuple[Any, str]]]:
    """Draw some scenes; return their pixels, and what is in them."""
    seed, start, stop = task
    geometry = Preprocess(
        (IMAGE_SIZE, IMAGE_SIZE), tuple(STATISTICS["mean"]), tuple(STATISTICS["std"])
    )
    pixels = np.empty((stop - start, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    facts = []
    for number in range(start, stop):
        rng = np.random.default_rng([seed, number])
        scene: Scene = draw_scene(rng, objects=1 + (number % 5 == 0))
        pixels[number - start] = geometry.pixels(scene.image)
        facts.append((scene.objects, scene.background))
    return pixels, facts


def draw_all(settings: Settings) -> tuple[np.ndarray, list[tuple[Any, str]]]:
    """Draw all training scenes, in several processes."""
    step = 1000
    tasks = [
        (settings.seed, start, min(start + step, settings.scenes))
        for start in range(0, settings.scenes, step)
    ]
    with multiprocessing.get_context("spawn").Pool(settings.threads) as pool:
        parts = pool.map(draw, tasks)
    return np.concatenate([part[0] for part in parts]), [f for part in parts for f in part[1]]


def fits(scene: tuple[Any, str], caption: Any) -> bool:
    """Whether all that a caption claims is true of a scene."""
    objects, background = scene
    if caption.background not in (None, background):
        return False
    return all(
        any(
            thing.kind == kind
            and colour in (None, thing.colour)
            and texture in (None, thing.texture)
            for thing in objects
        )
        for kind, colour, texture in caption.objects
    )


def matches(scenes: list[tuple[Any, str]], captions: list[Any]) -> np.ndarray:
    """(n, n) whether caption j is true of scene i: not only the pairs on the diagonal are."""
    by_kind: dict[str, list[int]] = {}
    for row, (objects, _) in enumerate(scenes):
        for thing in objects:
            by_kind.setdefault(thing.kind, []).append(row)
    result = np.eye(len(scenes), dtype=bool)
    for column, caption in enumerate(captions):
        for row in by_kind[caption.objects[0][0]]:
            result[row, column] |= fits(scenes[row], caption)
    return result


def train(settings: Settings) -> None:
    """Train from scratch and replace the embedded weights."""
    import torch
    from torch.nn import functional

    from bliss_index.encode.torchvision_cure import import_open_clip

    open_clip = import_open_clip()
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True)
    began = time.perf_counter()
    pixels, scenes = draw_all(settings)
    print(f"{len(scenes)} scenes drawn in {time.perf_counter() - began:.0f} s", flush=True)
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    model = open_clip.CLIP(
        MODEL["embed_dim"], vision_cfg=MODEL["vision_cfg"], text_cfg=MODEL["text_cfg"]
    )
    plain = [p for p in model.parameters() if p.ndim < 2]
    decayed = [p for p in model.parameters() if p.ndim >= 2 and p.shape[0] != 49408]
    words = [p for p in model.parameters() if p.ndim >= 2 and p.shape[0] == 49408]
    optimizer = torch.optim.AdamW(
        [
            {"params": plain, "weight_decay": 0.0},
            {"params": words, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": 0.05},
        ],
        lr=settings.rate,
        betas=(0.9, 0.98),
    )
    steps = settings.epochs * (len(scenes) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=steps, pct_start=0.08
    )
    rng = np.random.default_rng([settings.seed, 7])
    mean = torch.tensor(STATISTICS["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(STATISTICS["std"]).view(1, 3, 1, 1)
    tokens: dict[str, torch.Tensor] = {}
    model.train()
    for epoch in range(settings.epochs):
        order = rng.permutation(len(scenes))
        losses = []
        for start in range(0, len(order) - settings.batch + 1, settings.batch):
            rows = order[start : start + settings.batch]
            chosen = [scenes[row] for row in rows]
            captions = [describe(rng, *scene) for scene in chosen]
            for caption in captions:
                if caption.text not in tokens:
                    tokens[caption.text] = tokenizer([caption.text])[0]
            batch = torch.from_numpy(augment(pixels[rows], rng)).permute(0, 3, 1, 2).float()
            images = (batch.div_(255) - mean) / std
            texts = torch.stack([tokens[caption.text] for caption in captions])
            image_rows = model.encode_image(images, normalize=True)
            text_rows = model.encode_text(texts, normalize=True)
            scale = model.logit_scale.exp().clamp(max=100.0)
            logits = scale * image_rows @ text_rows.T
            true = torch.from_numpy(matches(chosen, captions)).float()
            loss = (
                functional.cross_entropy(logits, true / true.sum(1, keepdim=True))
                + functional.cross_entropy(logits.T, (true / true.sum(0, keepdim=True)).T)
            ) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(
            f"epoch {epoch + 1}: loss {float(torch.stack(losses).mean()):.3f}, "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )
    save(model.eval().state_dict())


def augment(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror half of the scenes, and shift each by up to four pixels."""
    result = np.empty_like(pixels)
    for row, image in enumerate(pixels):
        down, across = rng.integers(-4, 5, 2)
        moved = np.roll(image, (down, across), axis=(0, 1))
        result[row] = moved[:, ::-1] if rng.random() < 0.5 else moved
    return result


def save(state: dict[str, Any]) -> None:
    """Write configuration and weights; weights in float16, whole or not at all."""
    import torch
    from safetensors.torch import save_file

    OUTPUT.mkdir(exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": {**STATISTICS, **GEOMETRY}}
    (OUTPUT / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    half = {
        name: value.to(torch.float16) if value.is_floating_point() else value
        for name, value in state.items()
    }
    temporary = OUTPUT / ".open_clip_model.safetensors.tmp"
    save_file({name: value.contiguous() for name, value in half.items()}, temporary)
    temporary.chmod(0o644)
    os.replace(temporary, OUTPUT / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
