"""A small job for the tests of the bulk engine, and ways to interrupt and compare it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bliss_reference import clip_like

from bliss_index.calibration import calibrate
from bliss_index.scoring import ScoreSettings, run_job
from bliss_index.search.native.backend import load_native
from bliss_index.store import EmbeddingStore, ModelIdentity, StoreWriter

MODEL = ModelIdentity("ViT-B-32", "openai")
DIM = 16
SEARCH = "native" if load_native()[0] is not None else "torch"  # where nothing is compiled


@dataclass(frozen=True)
class Job:
    """Folders of a corpus, a calibration and images."""

    folder: Path
    corpus: Path
    calibration: Path
    images: Path

    def settings(self, **more) -> ScoreSettings:
        values = {"k": 5, "search": SEARCH, "threads": 1, "device": "cpu", **more}
        return ScoreSettings(str(self.corpus), str(self.calibration), **values)


def make_job(folder: Path, *, shards=6, rows=50, entries=80, dim=DIM) -> Job:
    """A corpus, a calibration, and an image store of `shards` shards of `rows` rows."""
    count = shards * rows
    images, vocabulary, texts, labels = clip_like(
        np.random.default_rng(1), count + 200, entries, 3, dim
    )
    write_text(folder / "corpus", vocabulary)
    calibration = calibrate(
        [(images[:200], labels[:200])], texts, ["cat", "dog", "cow"], model=MODEL
    )
    calibration.save(folder / "calibration")
    write_images(folder / "images", images[200:], rows)
    return Job(folder, folder / "corpus", folder / "calibration", folder / "images")


def write_text(path: Path, rows: np.ndarray, model=MODEL) -> None:
    with StoreWriter(path, kind="text", model=model, dim=rows.shape[1]) as writer:
        names = [f"word {i}" for i in range(len(rows))]
        writer.append(names, rows, texts=names)


def write_images(path: Path, rows: np.ndarray, rows_per_shard: int, **more) -> None:
    with StoreWriter(
        path, kind="image", model=MODEL, dim=rows.shape[1], rows_per_shard=rows_per_shard
    ) as writer:
        writer.append([f"image {i}" for i in range(len(rows))], rows, **more)


def outputs(folder: Path) -> dict[str, bytes]:
    """The Parquet files of a scores directory; anything left over is an error."""
    names = {p.name for p in folder.iterdir()}
    files = {name for name in names if name.endswith(".parquet")}
    assert names - files - {"_deaths"} == {
        "_job.json", "_plan", "_records", "_statistics.json", "_manifest.json",
    }, names  # fmt: skip
    records = {p.name for p in (folder / "_records").iterdir()}
    assert records == {f"{name[:13]}.json" for name in files}
    return {name: (folder / name).read_bytes() for name in sorted(files)}


def scored(folder: Path, index: int = 0) -> Path:
    """The file of scores of a part."""
    (path,) = folder.glob(f"part-{index:08d}.*.parquet")
    return path


def record(folder: Path, index: int = 0) -> Path:
    """The record of a part."""
    return folder / "_records" / f"part-{index:08d}.json"


def shard(folder: Path, index: int = 0) -> Path:
    """The file of a shard of a store."""
    return folder / EmbeddingStore.open(folder).shards[index].file


def score_command(job: Job, out: Path, *more) -> list[str]:
    return [
        sys.executable, "-m", "bliss_index", "score", str(job.images),
        "--corpus", str(job.corpus), "--calibration", str(job.calibration), "--out", str(out),
        "-k", "5", "--search", SEARCH, "--devices", "cpu", "--threads", "1", *map(str, more),
    ]  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: how long the process had run, and how many parts were done then."""

    seconds: float
    parts_done: int
    while_starting: bool


def kill_over_its_life(
    command: list[str], out, rng, *, parts, kills, start_seconds=1.0, part_seconds=0.05,
    done_in=None,
) -> list[Kill]:  # fmt: skip
    """Run a job again and again and kill it, from its beginning to near its end; then to its end.

    Every fifth kill comes while the job starts, at a random moment of `start_seconds`. The others
    are spread over the parts: the n-th waits until the n-th share of them is done, at least one by
    the process that is killed, and then for a random time of up to that of two parts. `done_in`
    counts the parts that are done in `out`; by default those of a directory.

    Returns
    -------
    The kills; fewer than were asked for where the job ended before one.
    """
    done_in = done_in or parts_done
    done: list[Kill] = []
    for number in range(kills):
        process, began = _start(command), time.monotonic()
        before = done_in(out)
        while_starting = number % 5 == 4
        if while_starting:
            time.sleep(rng.uniform(0, start_seconds))
        else:
            target = max(before + 1, int(0.95 * parts * (number + rng.uniform()) / kills))
            wait_for(lambda: process.poll() is not None or done_in(out) >= target, 300)  # noqa: B023
            time.sleep(rng.uniform(0, 2 * part_seconds))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1].decode()
            return done
        # The parent alone: its workers must not outlive it by themselves.
        process.send_signal(signal.SIGKILL)
        process.communicate()
        done.append(Kill(round(time.monotonic() - began, 3), done_in(out), while_starting))
    process = _start(command)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    return done


def _start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def parts_done(out: Path) -> int:
    """How many parts of a job have their record."""
    return len(list(out.glob("_records/part-*.json")))


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """A limit on the size of files stands for the full disk: writing fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def wait_for(condition, seconds=60.0):
    """Wait until something is true; return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("waited in vain")


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry))
    return found


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def make_job_of_kinds(folder: Path) -> Job:
    """Scores of 90 images in three parts: 25 normal ones, five other kinds, and two bad rows.

    Of every kind the vocabulary has three near synonyms. ``scores`` have flags and entries,
    ``plain`` no entries, ``flagless`` no flags.
    """
    rng = np.random.default_rng(3)
    centres = unit(rng.normal(size=(8, DIM)))
    synonyms = unit(centres[:, None] + 0.05 * rng.normal(size=(8, 3, DIM))).reshape(24, DIM)
    others = unit(rng.normal(size=(40, DIM)))
    write_text(folder / "corpus", np.concatenate([others, synonyms]).astype(np.float32))

    def images(kinds: np.ndarray) -> np.ndarray:
        return unit(centres[kinds] + 0.12 * rng.normal(size=(kinds.size, DIM))).astype(np.float32)

    labels = np.arange(200) % 3
    calibrate(
        [(images(labels), labels)], centres[:3].astype(np.float32), ["cat", "dog", "cow"],
        model=MODEL,
    ).save(folder / "calibration")  # fmt: skip
    kinds = rng.permutation(np.repeat([0, 1, 3, 4, 5, 6, 7], [15, 10, 20, 18, 14, 10, 3]))
    status = np.where(np.isin(np.arange(90), (31, 45)), "decode_error", "ok").tolist()
    reasons = [None if code == "ok" else "broken" for code in status]
    write_images(folder / "images", images(kinds), 30, status=status, error=reasons)
    job = Job(folder, folder / "corpus", folder / "calibration", folder / "images")
    for name, more in (
        ("scores", {"explain": True, "threshold": 3.5}),
        ("plain", {"threshold": 3.5}),
        ("flagless", {"explain": True}),
    ):
        run_job(job.images, folder / name, job.settings(**more))
    return job
