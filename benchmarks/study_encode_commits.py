"""Encoding by two checkouts of this project in turn: what a change did to the commands' rates.

    python benchmarks/study_encode_commits.py --before ../older --json result.json

Both encode the same drawn JPEGs and the same words, with the same random weights, by
``encode-images`` and ``encode-text`` with their defaults, as whole commands and by the rate that
they print. `--python` names an interpreter in which the package itself is not installed, so that
each side imports its own checkout; compiled kernels are not needed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from PIL import Image

from bliss_index.encode.random_weights import save_random_model

ROOT = Path(__file__).parents[1]
_DRAWN = 2048  # different pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--commits", nargs=2, default=[], help="of the two, where git is missing")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--words", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sides = {"before": given.before.resolve(), "after": ROOT}
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "model").mkdir()
        save_random_model(given.model, place / "model")
        _draw(place / "pictures", given.images)
        words = "".join(f"a thing with the number {i}\n" for i in range(given.words))
        (place / "words.txt").write_text(words)
        model = ["--model", f"local-dir:{place / 'model'}", "--precision", given.precision]
        commands = {
            "encode-images": ["encode-images", str(place / "pictures"), *model],
            "encode-text": ["encode-text", str(place / "words.txt"), *model],
        }
        for turn in range(given.rounds):
            for name, arguments in commands.items():
                for side, checkout in list(sides.items())[:: 1 if turn % 2 == 0 else -1]:
                    out = place / f"{name} {side} {turn}"
                    run = _run(given.python, checkout, [*arguments, "--out", str(out), "--json"])
                    found.setdefault(name, {}).setdefault(side, []).append(run)
                    print(turn, name, side, run, flush=True)
    result: dict[str, Any] = {
        "model": given.model, "precision": given.precision, "images": given.images,
        "words": given.words, "runs": found,
        "commits": dict(zip(sides, given.commits or map(_commit, sides.values()), strict=True)),
        "after_over_before": {
            name: {
                what: round(median(
                    after[what] / before[what]
                    for before, after in zip(runs["before"], runs["after"], strict=True)
                ), 3)
                for what in ("rows_per_second", "rows_per_second_of_the_command")
            }
            for name, runs in found.items()
        },
    }  # fmt: skip
    print(json.dumps(result["after_over_before"], indent=1))
    if given.json:
        write_result(given.json, {**describe_machine(threads=2), **result})


def _draw(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(min(count, _DRAWN)):
        small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        drawn.append(file.getvalue())
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(drawn[number % len(drawn)])


def _run(python: str, checkout: Path, arguments: list[str]) -> dict[str, float]:
    folders = (str(checkout), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    began = time.perf_counter()
    done = subprocess.run(
        [python, "-m", "bliss_index", *arguments],
        capture_output=True, text=True, env=environment, cwd=checkout, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr}")
    printed = json.loads(done.stdout)
    return {
        "rows_per_second": printed["rows_per_second"],
        "rows_per_second_of_the_command": round(printed["rows"] / seconds, 2),
        "seconds_of_the_command": round(seconds, 2),
    }


def _commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()


if __name__ == "__main__":
    main()
