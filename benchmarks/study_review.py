"""The page of ``review`` over millions of synthetic rows: first page, filters, verdicts, memory.

    python benchmarks/study_review.py FOLDER --rows 10000000 --json benchmarks/results/review.json

Embeddings are drawn, scored with their entries by a real job, and grouped; the highest scores have
pictures. The command is then started twice: with an empty cache, and with what it kept. First pages
are taken in headless Chromium, all else over HTTP, from before a request to its whole answer: a
filter, that is its view and the first 60 rows of it. FOLDER takes some 500 bytes a row.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from machine import describe_machine, write_result
from PIL import Image
from playwright.sync_api import sync_playwright

from bliss_index.bench.synthetic import clip_like
from bliss_index.calibration import calibrate
from bliss_index.report.aggregate import aggregate, read_rows
from bliss_index.report.groups import groups
from bliss_index.scoring import ScoresDirectory, ScoreSettings, run_job
from bliss_index.store import EmbeddingStore, ModelIdentity, StoreWriter

DIM, ENTRIES, CLASSES, NORMAL = 64, 2000, 20, 4000
MODEL = ModelIdentity("synthetic", None)
PICTURES = 1000
FLAGGED = 0.01
ROWS = 60
REPEATS = 20
_BLOCK = 250_000
_SHOWN = (
    "[...document.querySelectorAll('.tile img')].filter((image) => image.complete && "
    "image.naturalWidth).length"
)
_FLAGS = [f"--{flag}" for flag in ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
          "disable-background-networking", "disable-component-update", "disable-sync")]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-review-") as folder:
        place = Path(folder)
        prepare(place, given.rows)
        os.environ["BLISS_INDEX_CACHE"] = str(place / "cache")
        result: dict[str, Any] = {
            "benchmark": "review",
            "machine": describe_machine(os.cpu_count() or 1),
            "command": f"python benchmarks/study_review.py FOLDER --rows {given.rows}",
            "rows": given.rows,
            "entries an image": 10,
            "scores_bytes": sum(f.stat().st_size for f in (place / "scores").glob("part-*")),
        }
        with serving(place) as server:
            result["first start"] = {**first_page(server), "peak_mib": high_water(server["pid"])}
            print(result, file=sys.stderr, flush=True)
        with serving(place) as server:
            result["later start"] = first_page(server)
            print(result["later start"], file=sys.stderr, flush=True)
            result["seconds"] = requests(server, place)
            result["later start"]["peak_mib"] = high_water(server["pid"])
        result["cache_bytes"] = sum(f.stat().st_size for f in (place / "cache").rglob("*.*"))
        write_result(given.json, result)


def prepare(place: Path, rows: int) -> None:
    """Score drawn embeddings, group the flagged ones, and draw pictures of the highest scores."""
    names = [f"word {i}" for i in range(ENTRIES)]
    with StoreWriter(place / "corpus", kind="text", model=MODEL, dim=DIM) as writer:
        writer.append(names, clip_like(ENTRIES, DIM, "text", 1, np.float16), texts=names)
    known = clip_like(NORMAL, DIM, "image", 2, np.float16)
    with StoreWriter(place / "normal", kind="image", model=MODEL, dim=DIM) as writer:
        writer.append([f"normal/{i}.jpg" for i in range(NORMAL)], known)
    calibrate(
        [(known, np.arange(NORMAL) % CLASSES)], clip_like(CLASSES, DIM, "text", 3),
        [f"class {i}" for i in range(CLASSES)], model=MODEL,
        attributes={"images": EmbeddingStore.open(place / "normal").content_hash},
    ).save(place / "calibration")  # fmt: skip
    for name, count in (("some", min(rows, 100_000)), ("images", rows)):
        with StoreWriter(
            place / name, kind="image", model=MODEL, dim=DIM, rows_per_shard=_BLOCK
        ) as writer:
            for start in range(0, count, _BLOCK):
                size = min(_BLOCK, count - start)
                block = clip_like(size, DIM, "image", 100 + start, np.float16)
                block[size // 2 : size // 2 + size // 1000] = block[: size // 1000]  # copies
                keys = [f"{n // 1000:05}/image {n:08}.jpg" for n in range(start, start + size)]
                writer.append(keys, block)
    threshold = None
    for name in ("some", "images"):
        settings = ScoreSettings(
            str(place / "corpus"), str(place / "calibration"), explain=True, threshold=threshold
        )
        out = place / ("scores" if name == "images" else "scores of some")
        assert run_job(place / name, out, settings).complete
        if threshold is None:
            found = ScoresDirectory.open(out).table(["anomaly_score"]).column(0).to_numpy()
            threshold = float(np.quantile(found, 1 - FLAGGED))
    groups(place / "scores", out=place / "groups.parquet")
    directory = ScoresDirectory.open(place / "scores")
    rng = np.random.default_rng(0)
    for row in read_rows_of(directory, PICTURES):
        path = place / "photos" / row["key"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(path, quality=85)


def read_rows_of(directory: ScoresDirectory, count: int) -> list[dict[str, Any]]:
    """The rows with the highest scores."""
    return read_rows(directory, sorted(aggregate(directory, 0).most_anomalous(count)))


@contextmanager
def serving(place: Path) -> Iterator[dict[str, Any]]:
    """Run the command; yield its address, process and the time until it listened."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bliss_index", "review", place / "scores", "--port", "0",
         "--images", place / "photos", "--groups", place / "groups.parquet", "--normal",
         place / "normal", "--person", "bench"], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        for line in process.stdout:
            if found := re.search(r"(http://127\.0\.0\.1:(\d+)/\?token=(\S+))", line):
                yield {"address": found[1], "port": int(found[2]), "token": found[3],
                       "pid": process.pid, "began": began,
                       "listening": time.perf_counter() - began}  # fmt: skip
                break
    finally:
        process.kill()
        process.wait()


def first_page(server: dict[str, Any]) -> dict[str, float]:
    """Seconds until the command listens, and until a browser shows pictures of its first page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        opened = []
        for _ in range(5):
            began = time.perf_counter()
            page.goto(server["address"])
            while page.evaluate(_SHOWN) < 10:
                time.sleep(0.01)
            opened.append(time.perf_counter() - began)
        browser.close()
    return {
        "seconds_until_it_listens": round(server["listening"], 2),
        "seconds_from_address_to_pictures": round(opened[0], 2),
        "seconds_reloaded_median": round(float(np.median(opened[1:])), 3),
    }


def requests(server: dict[str, Any], place: Path) -> dict[str, Any]:
    """Median and 95 % quantile of the seconds of every kind of request."""
    scores = [row["anomaly_score"] for row in read_rows_of(
        ScoresDirectory.open(place / "scores"), PICTURES)]  # fmt: skip
    connection = HTTPConnection("127.0.0.1", server["port"], timeout=600)
    headers = {"Cookie": f"bliss_review_{server['port']}={server['token']}"}

    def ask(name: str, **values: Any) -> Any:
        connection.request("GET", f"/{name}?{urlencode(values)}", headers=headers)
        return answer()

    def post(name: str, **values: Any) -> Any:
        more = {**headers, "Content-Type": "application/json"}
        connection.request("POST", f"/{name}", json.dumps(values), more)
        return answer()

    def answer() -> Any:
        got = connection.getresponse()
        content = got.read()
        if got.status != 200:
            sys.exit(f"{got.status}: {content[:200]!r}")
        return json.loads(content)

    def filtered(**values: Any) -> dict[str, Any]:
        view = ask("view", **values)
        ask("rows", view=view["view"], first=0, count=ROWS)
        return view

    facts = ask("facts")
    whole = filtered()
    rng = np.random.default_rng(1)
    words = [word for word, _, _ in facts["words"]][:REPEATS]
    kinds: dict[str, Callable[[int], Any]] = {
        "all": lambda i: filtered(),
        "a group": lambda i: filtered(group=facts["groups"][i % len(facts["groups"])][0]),
        "a class": lambda i: filtered(nearest_class=facts["classes"][i % CLASSES][0]),
        "flagged": lambda i: filtered(status="flagged"),
        "not flagged": lambda i: filtered(status="unflagged"),
        "a score and above": lambda i: filtered(least=scores[i]),
        "lowest first": lambda i: filtered(order="lowest"),
        "as they came in": lambda i: filtered(order="input"),
        "not judged yet": lambda i: filtered(verdict="unjudged"),
        "a part of the key": lambda i: filtered(text=f"{int(rng.integers(1000)):05}/"),
        "a word, the first time": lambda i: filtered(word=words[i], pull=0.0),
        "a word, again": lambda i: filtered(word=words[-1 - i % 4], pull=0.0),
        "60 rows anywhere": lambda i: ask(
            "rows", view=whole["view"], first=int(rng.integers(whole["shown"] - ROWS)), count=ROWS),
        "one image in full": lambda i: ask("image", id=int(rng.integers(facts["rows"]))),
        "a verdict on one image": lambda i: post(
            "judge", view=whole["view"], ranges=[[i, i + 1]], verdict="belongs"),
        "a verdict on 10,000": lambda i: post(
            "judge", view=whole["view"], ranges=[[3000 * i, 3000 * i + 10_000]], verdict="skip"),
        "an undo of 10,000": lambda i: post("undo"),
        "a draw of 100": lambda i: post("draw", of="unflagged", size=100),
    }  # fmt: skip
    found = {}
    for name, do in kinds.items():
        taken = []
        for i in range(REPEATS):
            if name in ("60 rows anywhere", "a verdict on one image", "a verdict on 10,000"):
                whole = ask("view")  # the last ones are kept
            began = time.perf_counter()
            do(i)
            taken.append(time.perf_counter() - began)
        found[name] = {
            "median": round(float(np.median(taken)), 4),
            "p95": round(float(np.quantile(taken, 0.95)), 4),
            "n": REPEATS,
        }
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def high_water(pid: int) -> float:
    """Largest resident memory of a process so far, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024, 1)


if __name__ == "__main__":
    main()
