"""Reads mutated copies of one of our files; anything but a typed error is a failure.

Run as a script, so that a crash of the process is seen: fuzz_target.py FOLDER TARGET COUNT SEED.
With a FOLDER alone it reads such words and seconds from stdin, a list in JSON a line, and does each
in a fork. The number of the current mutation is in FOLDER/progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import make_job
from bulk_fixtures import shard as shard_of
from layouts import Rows, written

from bliss_index.calibration import Calibration
from bliss_index.calibration.labels import Labels
from bliss_index.errors import BlissError
from bliss_index.jobs import Record
from bliss_index.scoring import ScoresDirectory, run_job, verify_scores
from bliss_index.scoring.normal_scores import NormalScores, ScoreIdentity
from bliss_index.search.index import index_records
from bliss_index.storage import open_directory
from bliss_index.store import EmbeddingStore, verify_store
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.sources import open_source


def read_store(path: Path) -> None:
    verify_store(path)
    for shard in EmbeddingStore.open(path).iter_shards():
        shard.embeddings.sum()
        _ = shard.keys, shard.status, shard.error, shard.metadata()


def read_scores(path: Path) -> None:
    verify_scores(path)
    for table in ScoresDirectory.open(path).iter_tables():
        table.validate(full=True)


def read_source(path: Path) -> None:
    for part in open_source(path).readers:
        for batch in part.batches():
            batch.embeddings.sum()


def read_plan(path: Path) -> None:
    verify_scores(path)


def read_record(path: Path) -> None:
    verify_scores(path)
    Record.read(open_directory(path), 0)


def read_index(path: Path) -> None:
    index_records(EmbeddingStore.open(path))


# What is mutated, below the folder, and what is read then.
TARGETS = {
    "store manifest": ("images/manifest.json", read_store, "images"),
    "store shard": ("images/*-*1.*arrow", read_store, "images"),
    "store shard, unchecked": ("images/*-*1.*arrow", None, "images"),
    "calibration manifest": ("calibration/manifest.json", Calibration.load, "calibration"),
    "calibration classes": ("calibration/classes.*arrow", None, "calibration"),
    "job": ("scores/_job.json", read_scores, "scores"),
    "record": ("scores/_records/part-00000000.json", read_record, "scores"),
    "scores manifest": ("scores/_manifest.json", read_scores, "scores"),
    "plan": ("scores/_plan/*.arrow", read_plan, "scores"),
    "scores": ("scores/part-00000000.*.parquet", read_scores, "scores"),
    "parquet": ("t.parquet", read_source, "t.parquet"),
    "npy": ("t.npy", read_source, "t.npy"),
    "npz": ("t.npz", read_source, "t.npz"),
    "labels": ("labels.csv", Labels.read, "labels.csv"),
    "labels text": ("labels.txt", Labels.read, "labels.txt"),
    "labels npy": ("labels.npy", Labels.read, "labels.npy"),
    "labels parquet": ("labels.parquet", Labels.read, "labels.parquet"),
    "normal scores": ("normal.parquet", NormalScores.read, "normal.parquet"),
    "index": ("corpus/index/flat.json", read_index, "corpus"),
}
# Of embeddings of others: written by their own libraries, left out where one is missing.
LAYOUTS = {
    "arrow file": ("Arrow file/e.arrow", "Arrow file/e.arrow"),
    "arrow stream": ("Arrow stream/e.arrows", "Arrow stream/e.arrows"),
    "feather": ("Feather/e.feather", "Feather/e.feather"),
    "saved data set": ("saved data set/saved/data-00000*.arrow", "saved data set/saved"),
    "saved data set's list": ("saved data set/saved/state.json", "saved data set/saved"),
    "lance": ("Lance/e.lance/data/*.lance", "Lance/e.lance"),
    "lance manifest": ("Lance/e.lance/_versions/*.manifest", "Lance/e.lance"),
    "tar": ("webdataset/e.tar", "webdataset/e.tar"),
    "safetensors": ("safetensors/e.safetensors", "safetensors/e.safetensors"),
    "torch.save": ("torch.save/e.pt", "torch.save/e.pt"),
    "fvecs": ("fvecs/e.fvecs", "fvecs/e.fvecs"),
    "fbin": ("fbin/e.fbin", "fbin/e.fbin"),
    "spark": ("Spark/part-00000*.parquet", "Spark"),
}
TARGETS |= {name: (file, None, location) for name, (file, location) in LAYOUTS.items()}


def make_files(folder: Path) -> None:
    """Write one of every kind of file that is mutated."""
    job = make_job(folder, shards=2, rows=20)
    run_job(job.images, folder / "scores", job.settings(explain=True))
    rows = EmbeddingStore.open(job.images).embeddings("float32")
    np.save(folder / "t.npy", rows)
    np.savez(folder / "t.npz", embeddings=rows)
    keys = [f"k{i}" for i in range(40)]
    pq.write_table(pa.table({"embedding": pa.array(list(rows)), "key": keys}), folder / "t.parquet")
    lines = [f"k{i},{i % 3}\n" for i in range(40)]
    (folder / "labels.csv").write_text("key,label\n" + "".join(lines))
    (folder / "labels.txt").write_text("".join(f"class {i % 3}\n" for i in range(40)))
    np.save(folder / "labels.npy", np.arange(40) % 3)
    pq.write_table(pa.table({"label": [i % 3 for i in range(40)]}), folder / "labels.parquet")
    few = Rows.of(40)
    for layout in dict.fromkeys(file.partition("/")[0] for file, _ in LAYOUTS.values()):
        with contextlib.suppress(pytest.skip.Exception):
            written(layout, few, folder / layout)
    identity = ScoreIdentity(5, 0.5, "corpus", "calibration")
    NormalScores(np.linspace(0, 1, 40), identity, 5).write(folder / "normal.parquet")
    from bliss_index.search.faiss.build import build_index
    from bliss_index.search.index import save_index

    corpus = EmbeddingStore.open(job.corpus)
    save_index(build_index(corpus.embeddings(), "flat"), corpus)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip bits, replace bytes, cut, repeat or insert."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, len(data) + 1))
        kind = int(rng.integers(0, 6))
        if kind == 0 and place < len(data):
            data[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1 and place < len(data):
            data[place] = int(rng.integers(0, 256))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 4:
            end = min(len(data), place + int(rng.integers(1, 40)))
            data[place:place] = data[place:end]
        else:
            end = min(len(data), place + 8)
            data[place:end] = b"\xff" * (end - place)
        if not data:
            break
    return bytes(data)


def reader_of(target: str, path: Path):
    """Readers that look behind the hash, as if the mutation had come before it was taken."""
    if target in LAYOUTS:
        of_bytes = "float32" if target == "spark" else None
        if target.startswith("lance"):
            fork_lance()

        def read_layout(location: Path) -> None:
            columns = ColumnNames(dtype=of_bytes)
            for part in open_source(location, columns=columns).readers:
                for batch in part.batches():
                    batch.embeddings.sum()
                    batch.checked(part.dtype)
                    _ = batch.metadata and batch.metadata.to_pylist()

        return read_layout
    if target == "store shard, unchecked":
        from bliss_index.store.schema import open_batch, require_columns, shard_schema

        def read(folder: Path) -> None:
            file = shard_of(folder, 1)
            batch = open_batch(pa.py_buffer(file.read_bytes()), file)
            require_columns(batch, shard_schema("image", 16, "float16"), file)
            for name in batch.schema.names:
                batch.column(name).to_pylist()

        return read
    if target == "calibration classes":
        import bliss_index.calibration.files as files

        files.file_sha256 = lambda path: _HASHES["classes"]
        _HASHES["classes"] = __import__("json").loads((path / "manifest.json").read_text())[
            "classes_sha256"
        ]
        return Calibration.load
    return TARGETS[target][1]


_HASHES: dict[str, str] = {}


class ForkedProgram:
    """Stands for subprocess.Popen of a Python program: a fork that runs it.

    What it imports is imported already, which is most of the time that it takes to begin.
    """

    def __init__(self, command, *, stdin, stdout, stderr):
        here, there = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(there, 1)
            os.dup2(stderr.fileno(), 2)
            sys.argv = command[1:]
            sys.path.insert(0, str(Path(command[1]).parent))  # as Python does
            code = 1
            try:
                runpy.run_path(command[1], run_name="__main__")
                code = 0
            except SystemExit as error:
                os.write(2, str(error.code).encode())
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(there)
        self.stdout, self.code = os.fdopen(here, "rb"), None

    def wait(self):
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill(self):
        if self.code is None:
            os.kill(self.pid, 9)


def fork_lance() -> None:
    """Have the program that reads Lance forked."""
    import subprocess
    import warnings

    from bliss_index.store.formats import lance as reader

    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        import lance  # noqa: F401
    warnings.filterwarnings("ignore", "lance is not fork-safe")  # it is, before its first call
    reader.subprocess = SimpleNamespace(
        Popen=ForkedProgram, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL
    )


def refusals(folder: Path, target: str, count: int, seed: int) -> int:
    """Read mutated copies; how many were refused, or -1 where what writes it is not installed."""
    file, _, location = TARGETS[target]
    path = next(folder.glob(file), None)
    if path is None:
        return -1
    reader = reader_of(target, folder / location)
    content = path.read_bytes()
    refused = 0
    with open(folder / "progress", "wb") as progress:
        for number in range(count):
            path.unlink()  # a new file: what is mapped still must not change
            path.write_bytes(mutate(content, np.random.default_rng([seed, number])))
            os.pwrite(progress.fileno(), f"{number:9}".encode(), 0)
            try:
                reader(folder / location)
            except BlissError:
                refused += 1
    path.write_bytes(content)
    return refused


def serve(folder: Path) -> None:
    """Do what is asked for, each in a fork: its exit code goes to stdout, the rest into files."""
    for line in sys.stdin:
        target, count, seed, seconds = json.loads(line)
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(os.open(folder / "errors", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
                signal.alarm(seconds)
                (folder / "refused").write_text(str(refusals(folder, target, count, seed)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def main() -> None:
    if len(sys.argv) == 2:
        serve(Path(sys.argv[1]))
        return
    print(refusals(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))


if __name__ == "__main__":
    main()
