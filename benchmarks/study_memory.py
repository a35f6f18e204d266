"""Peak memory of every work against the plan that it prints, in all layouts of input.

    python benchmarks/study_memory.py FOLDER --json benchmarks/results/memory.json

Every figure is of a command in a process of its own: the largest resident memory of it and of the
processes that it started (VmHWM), summed, against "memory: at most ..." as it was printed.
FOLDER takes up to 3 GB at a time and is left as it was. With ``--only``, the figures of other
layouts that the JSON holds already are kept.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe_machine, write_result

from bliss_index.bench.synthetic import clip_like
from bliss_index.calibration import calibrate
from bliss_index.jobs.memory import parse_bytes
from bliss_index.store import ModelIdentity, StoreWriter

DIM, ENTRIES, CLASSES, IMAGES_A_CLASS = 64, 2000, 1000, 200
MODEL = ModelIdentity("synthetic", None)
BUDGET = "1GiB"
MILLION = 1_000_000
_BLOCK = 100_000
_SEEDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "memory",
        "machine": describe_machine(os.cpu_count() or 1),
        "budget": BUDGET,
        "dim": DIM,
        "entries": ENTRIES,
        "classes": CLASSES,
        "images a class": IMAGES_A_CLASS,
        "runs": [],
    }
    if given.json is not None and given.json.exists():
        before = json.loads(given.json.read_text())["runs"]
        result["runs"] = [run for run in before if run["layout"] not in given.only]
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-memory-") as folder:
        place = Path(folder)
        prepare(place)
        for name in given.only:
            for run in LAYOUTS[name](place):
                row = {"layout": name, **run}
                result["runs"].append(row)
                print(row, file=sys.stderr, flush=True)
            result["all within"] = all(run["peak_mib"] <= run["plan_mib"] for run in result["runs"])
            write_result(given.json, result)


def prepare(place: Path) -> None:
    """Make a vocabulary and a calibration of many classes."""
    with StoreWriter(place / "corpus", kind="text", model=MODEL, dim=DIM) as writer:
        names = [f"word {i}" for i in range(ENTRIES)]
        writer.append(names, clip_like(ENTRIES, DIM, "text", 1, np.float16), texts=names)
    count = CLASSES * IMAGES_A_CLASS
    images = clip_like(count, DIM, "image", 2)
    classes = [f"class {i}" for i in range(CLASSES)]
    texts = clip_like(CLASSES, DIM, "text", 3)
    calibrate([(images, np.arange(count) % CLASSES)], texts, classes, model=MODEL).save(
        place / "calibration"
    )


def blocks(rows: int, dtype: str = "float32") -> Iterator[np.ndarray]:
    """Rows in blocks; the same few again and again."""
    drawn = [
        clip_like(_BLOCK, DIM, "image", 10 + i, dtype)
        for i in range(min(_SEEDS, -(-rows // _BLOCK)))
    ]
    for number, start in enumerate(range(0, rows, _BLOCK)):
        yield drawn[number % len(drawn)][: rows - start]


def measured(*command: object) -> dict[str, Any]:
    """Run a command of bliss-index; return its plan, and the peaks of its processes."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bliss_index", *map(str, command)],
            stdout=subprocess.DEVNULL, stderr=errors,
        )  # fmt: skip
        peaks: dict[int, int] = {}
        while process.poll() is None:
            for pid in descendants(process.pid):
                # The last one counts: before it begins its program, a child is its parent's image.
                peaks[pid] = high_water(pid) or peaks.get(pid, 0)
            time.sleep(0.01)
        errors.seek(0)
        said = errors.read()
    plan = re.search(r"memory: at most ([\d.]+ \w+) of", said)
    if process.returncode or plan is None:
        sys.exit(f"{command} ended with {process.returncode}:\n{said}")
    return {
        "command": command[0],
        "processes": len(peaks),
        "peak_mib": round(sum(peaks.values()) / 1024),
        "plan_mib": round(parse_bytes(plan[1]) / 2**20),
        "plan": re.search(r"memory: (.*)", said)[1],  # type: ignore[index]
        "seconds": round(time.perf_counter() - began, 1),
    }


def descendants(pid: int) -> list[int]:
    """A process and all that it started, but those of multiprocessing that only watch."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(found for child in children for found in descendants(int(child)))]


def high_water(pid: int) -> int:
    """Largest resident memory of a process so far, in KiB; 0 where it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", lines)
    return int(found[1]) if found else 0


def score(place: Path, images: Path, *more: object) -> dict[str, Any]:
    found = measured(
        "score", images, "--corpus", place / "corpus", "--calibration", place / "calibration",
        "--out", place / "scores", "--memory", BUDGET, "--search", "native", *more,
    )  # fmt: skip
    remove(place / "scores")
    return found


def bring(place: Path, source: Path, *more: object) -> dict[str, Any]:
    found = measured(
        "import", source, "--kind", "image", "--model", "synthetic", "--out", place / "imported",
        "--memory", BUDGET, *more,
    )  # fmt: skip
    remove(place / "imported")
    return found


def remove(path: Path) -> None:
    subprocess.run(["rm", "-rf", str(path)], check=True)


def both(place: Path, source: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Score and import a source, then remove it; by the nearest entry alone, which is faster."""
    size = sum(p.stat().st_size for p in (source.rglob("*") if source.is_dir() else [source]))
    facts = {"rows": rows, "input_mib": round(size / 2**20)}
    yield {**facts, "k": 1, **score(place, source, "-k", 1)}
    yield {**facts, **bring(place, source)}
    remove(source)


def stores(dtype: str, *more: object):
    def run(place: Path) -> Iterator[dict[str, Any]]:
        with StoreWriter(
            place / "images", kind="image", model=MODEL, dim=DIM, dtype=dtype, distinct_keys=True
        ) as writer:
            for number, rows in enumerate(blocks(MILLION, dtype)):
                writer.append([f"{number}/{i}" for i in range(len(rows))], rows)
        yield {"rows": MILLION, "k": 10, **score(place, place / "images", *more)}
        remove(place / "images")

    return run


def write_npy(path: Path, rows: int, dtype: str = "float32") -> None:
    with open(path, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, DIM)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks(rows, dtype):
            block.tofile(file)


def npy(rows: int, dtype: str):
    def run(place: Path) -> Iterator[dict[str, Any]]:
        write_npy(place / "images.npy", rows, dtype)
        yield from both(place, place / "images.npy", rows)

    return run


def npy_folder(place: Path) -> Iterator[dict[str, Any]]:
    (place / "images").mkdir()
    for number in range(10):
        write_npy(place / "images" / f"{number}.npy", MILLION // 10)
    yield from both(place, place / "images", MILLION)


def npz(compressed: bool):
    def run(place: Path) -> Iterator[dict[str, Any]]:
        rows = np.concatenate(list(blocks(MILLION)))
        save = np.savez_compressed if compressed else np.savez
        save(place / "images.npz", embeddings=rows)
        del rows
        yield from both(place, place / "images.npz", MILLION)

    return run


def vectors(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM)


def write_table(path: Path, rows: int, group: int, others: Any = None) -> None:
    """Keys, embeddings, and what `others` makes of a number of rows; `group` rows a row group."""
    writer = None
    waiting: list[pa.Table] = []
    for number, block in enumerate(blocks(rows)):
        keys = [f"image {number}/{i}.jpg" for i in range(len(block))]
        table = pa.table(
            {"key": keys, "embedding": vectors(block), **(others(len(block)) if others else {})}
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        waiting.append(table)
        if sum(t.num_rows for t in waiting) >= group:
            writer.write_table(pa.concat_tables(waiting), row_group_size=group)
            waiting = []
    if waiting:
        writer.write_table(pa.concat_tables(waiting), row_group_size=group)
    writer.close()


def parquet(rows: int, group: int, others: Any = None):
    def run(place: Path) -> Iterator[dict[str, Any]]:
        write_table(place / "images.parquet", rows, group, others)
        yield from both(place, place / "images.parquet", rows)

    return run


def large_values(count: int) -> dict[str, Any]:
    """200 kB of each row."""
    rng = np.random.default_rng(5)
    return {"picture": pa.array([rng.bytes(200_000) for _ in range(count)], pa.binary())}


def many_columns(count: int) -> dict[str, Any]:
    """Fifty columns of numbers and a caption."""
    rng = np.random.default_rng(6)
    columns: dict[str, Any] = {f"number {i}": rng.normal(size=count) for i in range(50)}
    return {**columns, "caption": [f"a picture of number {i} of them all" for i in range(count)]}


def parquet_folder(place: Path) -> Iterator[dict[str, Any]]:
    (place / "images").mkdir()
    for number in range(10):
        write_table(place / "images" / f"{number}.parquet", MILLION // 10, 1 << 20)
    yield from both(place, place / "images", MILLION)


def clip_retrieval(place: Path) -> Iterator[dict[str, Any]]:
    for name in ("img_emb", "metadata"):
        (place / "images" / name).mkdir(parents=True)
    for number in range(2):
        write_npy(place / "images" / "img_emb" / f"img_emb_{number}.npy", MILLION // 2, "float16")
        paths = [f"{number}/{i}.jpg" for i in range(MILLION // 2)]
        captions = [f"a caption of the picture of number {i}" for i in range(MILLION // 2)]
        table = pa.table({"image_path": paths, "caption": captions})
        pq.write_table(table, place / "images" / "metadata" / f"metadata_{number}.parquet")
    yield from both(place, place / "images", MILLION)


def pictures(count: int) -> Iterator[tuple[str, bytes]]:
    """Small photos: noise, enlarged."""
    from PIL import Image

    rng = np.random.default_rng(7)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        content = io.BytesIO()
        small.resize((640, 480)).save(content, "JPEG")
        yield f"{number:06}.jpg", content.getvalue()


def encode(place: Path, source: Path, *more: object) -> dict[str, Any]:
    found = measured(
        "encode-images", source, "--model", "bliss-tiny", "--device", "cpu", "--memory", "4GiB",
        "--out", place / "encoded", *more,
    )  # fmt: skip
    remove(place / "encoded")
    return found


def image_folder(place: Path) -> Iterator[dict[str, Any]]:
    (place / "photos").mkdir()
    for name, content in pictures(1500):
        (place / "photos" / name).write_bytes(content)
    for workers, decoders in ((1, 0), (1, 2), (2, 0)):
        more = ("--workers", workers, "--decoders", decoders)
        facts = {"rows": 1500, "workers": workers, "decoders": decoders}
        yield {**facts, **encode(place, place / "photos", *more)}
    remove(place / "photos")


def image_tar(place: Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(place / "photos.tar", "w") as archive:
        for name, content in pictures(1500):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    found = encode(place, place / "photos.tar", "--workers", 1, "--decoders", 0)
    yield {"rows": 1500, "workers": 1, "decoders": 0, **found}
    remove(place / "photos.tar")


def words(place: Path) -> Iterator[dict[str, Any]]:
    with open(place / "words.txt", "w") as file:
        file.writelines(f"word number {i}\n" for i in range(100_000))
    found = measured(
        "encode-text", place / "words.txt", "--model", "bliss-tiny", "--device", "cpu",
        "--workers", 1, "--memory", "4GiB", "--out", place / "encoded",
    )  # fmt: skip
    yield {"rows": 100_000, **found}
    remove(place / "encoded")
    remove(place / "words.txt")


LAYOUTS: dict[str, Any] = {
    "store float16": stores("float16"),
    "store float32": stores("float32"),
    "npy": npy(MILLION, "float32"),
    "npy 10M": npy(10 * MILLION, "float16"),
    "folder of npy": npy_folder,
    "npz": npz(False),
    "npz deflated": npz(True),
    "parquet": parquet(MILLION, 100_000),
    "parquet 10M": parquet(10 * MILLION, 1 << 20),
    "parquet, 200 kB of others a row": parquet(2000, 200, large_values),
    "parquet, 50 other columns": parquet(MILLION, 100_000, many_columns),
    "folder of parquet": parquet_folder,
    "clip-retrieval": clip_retrieval,
    "folder of images": image_folder,
    "tar of images": image_tar,
    "words": words,
}


if __name__ == "__main__":
    main()
