"""What tests of the review share: scores with pictures, a server, requests without a browser."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bulk_fixtures import DIM, MODEL, unit, write_images, write_text
from PIL import Image
from test_report import write_scores

from bliss_index.calibration import calibrate
from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.from_store import calibrate_store
from bliss_index.calibration.labels import Labels
from bliss_index.jobs.description import JobDescription
from bliss_index.report.groups import groups
from bliss_index.scoring import ScoreSettings, run_job
from bliss_index.scoring.normal_scores import score_held_out
from bliss_index.search import exact_search
from bliss_index.storage import open_directory
from bliss_index.store import EmbeddingStore, StoreWriter

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">",
    "'\"><script>document.title='owned'</script>",
    "javascript:document.title='owned'",
    "{{constructor.constructor('document.title=1')()}}",
    "\u202efdp.gnp",
)
TOKEN = "a-token"


def make_pictures(folder: Path, rows: int = 60) -> Path:
    """Scores of pictures, some with hostile names, none decodable that has no file."""
    rng = np.random.default_rng(1)
    images = folder / "images"
    images.mkdir(parents=True)
    names = [f"{n:03}.png" for n in range(rows)]
    names[:5] = [name.replace("/", "|") for name in HOSTILE]
    for name in names[:-2]:
        Image.new("RGB", (64, 48), tuple(rng.integers(0, 255, 3).tolist())).save(
            images / name, format="PNG"
        )
    names[-2:] = ["../outside.png", "gone.png"]
    Image.new("RGB", (8, 8)).save(folder / "outside.png")
    scored = [
        (name, None if n == 7 else float(rows - n), HOSTILE[0] if n % 3 else "dog")
        for n, name in enumerate(names)
    ]
    write_scores(
        folder / "scores", [scored[: rows // 2], scored[rows // 2 :]], (HOSTILE[0], "dog"),
        threshold=rows / 2,
    )  # fmt: skip
    return folder / "scores"


def make_with_copies(folder: Path) -> Path:
    """Scores of 40 images, some of them copies, some calibrated; two have no embedding."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 16)).astype(np.float32)
    rows[[5, 17, 33]] = rows[2]
    rows[20] = rows[19]
    rows[30] = rows[29] + 0.02 * rng.normal(size=16)
    rows[[7, 8]] = 0
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(norm == 0, 1, norm)
    status = ["zero_embedding" if i in (7, 8) else "ok" for i in range(40)]
    error = ["zero" if i in (7, 8) else None for i in range(40)]
    write_images(folder / "images", rows, 15, status=status, error=error)
    known = np.concatenate([rng.normal(size=(30, 16)), rows[[3, 19]]]).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    write_images(folder / "normal", known, 20)
    words = rng.normal(size=(30, 16)).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    write_text(folder / "corpus", words)
    calibrate(
        [(known, np.zeros(32, np.int64))], words[:1], ["cat"], model=MODEL,
        attributes={"images": EmbeddingStore.open(folder / "normal").content_hash},
    ).save(folder / "calibration")  # fmt: skip
    settings = ScoreSettings(
        str(folder / "corpus"), str(folder / "calibration"), 4, 0.5, explain=True, threshold=2.0
    )
    assert run_job(folder / "images", folder / "scores", settings).complete
    return folder


def make_run(folder: Path, *, own: bool = False) -> Path:
    """A run of embeddings: two normal classes, three other kinds; each kind has near synonyms.

    With `own`, the images calibrated themselves.
    """
    rng = np.random.default_rng(6)
    centres = unit(rng.normal(size=(5, DIM)))
    synonyms = unit(centres[:, None] + 0.05 * rng.normal(size=(5, 3, DIM))).reshape(15, DIM)
    words = np.concatenate([unit(rng.normal(size=(40, DIM))), synonyms]).astype(np.float32)
    run, names = folder / "run", ("cat", "dog")
    write_text(folder / "corpus", words)

    def write(place, kinds, keys):
        rows = unit(centres[kinds] + 0.12 * rng.normal(size=(kinds.size, DIM))).astype(np.float32)
        with StoreWriter(
            place, kind="image", model=MODEL, dim=DIM, dtype="float32", rows_per_shard=40
        ) as writer:
            writer.append(keys, rows)

    known = np.arange(80) % 2
    write(run / "normal", known, [f"{names[c]}/{i}.png" for i, c in enumerate(known)])
    kinds = rng.permutation(np.repeat([0, 1, 2, 3, 4], [30, 20, 25, 15, 5]))
    write(run / "photos", kinds, [f"{kind}/{i:02}.png" for i, kind in enumerate(kinds.tolist())])
    if own:
        shutil.rmtree(run / "normal")
    images = EmbeddingStore.open(run / ("photos" if own else "normal"))
    labels = None if own else Labels.of_folders(images)
    texts = ClassTexts(names, centres[:2].astype(np.float32), MODEL, "centres", None)
    made = calibrate_store(images, labels, texts, assign=own, trim=0.1 if own else 0.0)
    made.calibration.save(run / "calibration")
    corpus = EmbeddingStore.open(folder / "corpus")
    search = exact_search(corpus.embeddings(), 6)
    normal = score_held_out(images, labels, made.calibration, corpus, search)
    normal.write(run / "normal-scores.parquet")
    settings = ScoreSettings(
        str(folder / "corpus"), str(run / "calibration"), 6, 0.5, explain=True,
        normal_scores=str(run / "normal-scores.parquet"), false_alarm_rate=0.1,
    )  # fmt: skip
    assert run_job(run / "photos", run / "scores", settings).complete
    groups(run / "scores", out=run / "groups.parquet")
    begun = {"photos": [str(folder / "pictures")], "normal": None, "embeddings": False}
    facts = {"images": str(folder / "pictures")}
    JobDescription("screen", begun, None, facts, {}).create(open_directory(run))
    store = EmbeddingStore.open(run / "photos")
    for key in store.keys():  # noqa: SIM118
        path = folder / "pictures" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), tuple(rng.integers(0, 255, 3).tolist())).save(path)
    return run


def ask(app, path, method="GET", *, headers=(), body=b"", token=TOKEN, host="127.0.0.1:8700"):
    """Send a request to an application; return status, headers and body."""
    path, _, query = path.partition("?")
    given = {"host": host, "content-type": "application/json", **dict(headers)}
    if token:
        given["cookie"] = f"bliss_review={token}"
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "scheme": "http",
        "headers": [(k.encode(), v.encode()) for k, v in given.items()], "server": ("x", 1),
        "client": ("127.0.0.1", 2), "root_path": "",
    }  # fmt: skip
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    content = b"".join(message.get("body", b"") for message in sent[1:])
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    is_json = found.get("content-type") == "application/json"
    return sent[0]["status"], found, json.loads(content) if is_json else content


def post(app, path, values, **more):
    return ask(app, path, "POST", body=json.dumps(values).encode(), **more)


@contextmanager
def served(target: Path, images: Path | None = None):
    """Serve a review of ann's by a thread of this process; yield its address."""
    from bliss_index.review.inputs import ReviewInputs, ReviewOptions
    from bliss_index.review.server import HOST, listen, make_app, make_server
    from bliss_index.review.session import ReviewSession

    inputs = ReviewInputs.open(target, ReviewOptions(images=images))
    with listen(0) as listener, ReviewSession(inputs, "ann") as session:
        server = make_server(make_app(session, TOKEN))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}/?token={TOKEN}"
        finally:
            server.should_exit = True
            thread.join()
            del server, thread
            with warnings.catch_warnings():  # of connections that the browser had still open
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()


@contextmanager
def serving(target: Path, *arguments):
    """Run the command in a process of its own; yield the process and the address it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bliss_index", "review", str(target), *map(str, arguments)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line):
                yield process, found[0]
                break
        else:
            raise AssertionError(f"it ended with {process.wait()}")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
