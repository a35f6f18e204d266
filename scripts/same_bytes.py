"""Run all four works in five ways, and compare the SHA-256 of every file that they make.

    python scripts/same_bytes.py --images 20000 --words 100000 \
        --json benchmarks/results/same_bytes.json

encode-text (words), encode-images (drawn JPEGs), import (random rows) and score (those images) run
as one process, as 3 worker processes, as 4 array tasks at once, on Ray with a simulated cluster of
3 nodes, and with input and output on an S3 server of this machine (moto's). On S3 the images that
are scored, the corpus and the calibration are those made there; `calibrate` is compared too.

Prints the number of files and rows, the hash of the sorted list of hashes and the seconds of every
way; ends with exit code 1 if any two differ.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import numpy as np
from machine import describe_machine, write_result
from object_store import s3_server

from bliss_index.demo.scenes import draw_scene
from bliss_index.storage import open_directory

MODEL = ["--model", "bliss-tiny", "--device", "cpu"]
CLASSES = ("car", "tree", "house")
NODES = 3
TASKS = 4
WAYS: dict[str, list[str]] = {
    "one process": ["--workers", "1"],
    "3 workers": ["--workers", "3"],
    "4 array tasks": ["--workers", "1"],
    "Ray, 3 nodes": ["--engine", "ray", "--workers", str(NODES)],
    "S3": ["--workers", "1"],
}
Environment = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=300_000, help="to import")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_input(folder, given.images, given.words, given.rows, given.pixels)
        for way in WAYS:
            with place_of(way, folder) as (root, environment):
                found[way] = run_way(way, folder, root, environment)
            print(json.dumps({way: found[way]}, indent=2), file=sys.stderr)
    works = next(iter(found.values()))
    same = {w: len({way[w]["sha256"] for way in found.values() if w in way}) == 1 for w in works}
    result = {
        **describe_machine(1),
        "images": given.images, "pixels": given.pixels, "words": given.words, "rows": given.rows,
        "same": same,
        "ways": found,
    }  # fmt: skip
    write_result(None, result)
    if given.json:
        write_result(given.json, result)
    sys.exit(0 if all(same.values()) else 1)


def make_input(folder: Path, images: int, words: int, rows: int, pixels: int) -> None:
    """Draw the pictures; write words, classes and rows."""
    (folder / "pictures").mkdir()
    with ProcessPoolExecutor(2) as pool:
        for _ in pool.map(draw, repeat(folder), range(images), repeat(pixels), chunksize=100):
            pass
    (folder / "words.txt").write_text("".join(f"word number {i}\n" for i in range(words)))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    embeddings = np.random.default_rng(1).normal(size=(rows, 64)).astype(np.float16)
    np.save(folder / "rows.npy", embeddings)


def draw(folder: Path, number: int, pixels: int) -> None:
    """Draw one scene as a JPEG."""
    scene = draw_scene(np.random.default_rng([13, number]), size=pixels)
    scene.image.save(folder / "pictures" / f"{number:06}.jpg", quality=90)


@contextlib.contextmanager
def place_of(way: str, folder: Path) -> Iterator[tuple[str, Environment]]:
    """Yield where a way finds its input and writes its output, and its environment."""
    if way == "S3":
        with s3_server() as (environment, bucket):
            os.environ.update(environment)
            upload(folder, bucket)
            cache = {"BLISS_INDEX_CACHE": str(folder / "cache")}
            yield bucket, {**environment, **cache}
    elif way.startswith("Ray"):
        os.environ["RAY_AUTH_MODE"] = "disabled"
        from ray.cluster_utils import Cluster

        memory = 80 << 20
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1, "object_store_memory": memory, "include_dashboard": False
            },
        )  # fmt: skip
        try:
            for _ in range(NODES - 1):
                cluster.add_node(num_cpus=1, object_store_memory=memory)
            yield str(folder), {"RAY_ADDRESS": cluster.address}
        finally:
            cluster.shutdown()
    else:
        yield str(folder), {}


def upload(folder: Path, bucket: str) -> None:
    """Put the input into a bucket."""
    directory = open_directory(bucket)
    names = [path for path in folder.iterdir() if path.is_file()]
    names.extend((folder / "pictures").iterdir())

    def put(path: Path) -> None:
        directory.replace(path.relative_to(folder).as_posix(), path.read_bytes())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, names))


def run_way(way: str, folder: Path, root: str, environment: Environment) -> dict[str, Any]:
    """Run the four works, and where there is no calibration yet, `calibrate`."""
    out = f"{root}/{way.replace(' ', '-').replace(',', '')}"
    made = out if way == "S3" else f"{folder}/one-process"
    found: dict[str, Any] = {}

    def done(work: str, output: str, command: list[str]) -> None:
        began = time.perf_counter()
        if way == "4 array tasks" and work != "calibrate":
            several = [[*command, *WAYS[way], "--task", f"{i}/{TASKS}"] for i in range(TASKS)]
            with ThreadPoolExecutor(TASKS) as pool:
                list(pool.map(run, several, repeat(environment)))
        run([*command, *([] if work == "calibrate" else WAYS[way])], environment)
        found[work] = {"seconds": round(time.perf_counter() - began, 1), **summed(output)}

    def at(work: str) -> str:
        return f"{out}/{work}"

    done("encode-text", at("text"),
         ["encode-text", f"{root}/words.txt", *MODEL, "--out", at("text")])  # fmt: skip
    done("encode-images", at("images"),
         ["encode-images", f"{root}/pictures", *MODEL, "--out", at("images")])  # fmt: skip
    done("import", at("import"),
         ["import", f"{root}/rows.npy", "--kind", "image", "--model", "other",
          "--out", at("import")])  # fmt: skip
    if made == out:
        done("calibrate", at("calibration"),
             ["calibrate", at("images"), "--classes", f"{root}/classes.txt", "--assign",
              "--device", "cpu", "--out", at("calibration")])  # fmt: skip
    done("score", at("scores"),
         ["score", f"{made}/images", "--corpus", f"{made}/text", "--calibration",
          f"{made}/calibration", "--search", "native", "--devices", "cpu", "--threads", "1",
          "--out", at("scores")])  # fmt: skip
    return found


def run(command: list[str], environment: Environment) -> None:
    """Run a command to its good end."""
    subprocess.run(
        [sys.executable, "-m", "bliss_index", *command],
        stdout=subprocess.DEVNULL, env={**os.environ, **environment}, check=True,
    )  # fmt: skip


def summed(output: str) -> dict[str, Any]:
    """Count the data files of a directory, and hash the sorted list of their hashes."""
    directory = open_directory(output)
    names = [name for name in directory.names() if name.endswith((".arrow", ".parquet"))]
    hashes = sorted(hashlib.sha256(directory.read(name)).hexdigest() for name in names)
    total = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return {"files": len(names), "sha256": total}


if __name__ == "__main__":
    main()
