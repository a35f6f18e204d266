"""Write small directories of every format, to be read by the tests of all later versions.

    python scripts/make_golden.py tests/golden/v2

Run once a format version; the directories of earlier versions stay as they were written.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np

from bliss_index.bench.synthetic import clip_like
from bliss_index.calibration import calibrate
from bliss_index.jobs import job
from bliss_index.scoring import JobOptions, ScoreSettings, run_job
from bliss_index.search.faiss.build import build_index
from bliss_index.search.index import save_index
from bliss_index.search.near_index import NearSearch
from bliss_index.storage.files import make_directory
from bliss_index.store import EmbeddingStore, ModelIdentity, StoreWriter
from bliss_index.store import writer as writer_module

MODEL = ModelIdentity("ViT-B-32", "openai")
DIM, ENTRIES, IMAGES = 16, 30, 24


def main() -> None:
    """Write all of them."""
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    make_directory(Path(sys.argv[1]))
    os.chdir(sys.argv[1])
    folder = Path()
    # The files shall not say where they were made.
    job.begun_in = writer_module.begun_in = lambda: "."
    entries = clip_like(ENTRIES, DIM, "text", 1, np.float16)
    images = clip_like(IMAGES, DIM, "image", 2, np.float16)
    with StoreWriter(folder / "corpus", kind="text", model=MODEL, dim=DIM) as writer:
        names = [f"word {i}" for i in range(ENTRIES)]
        writer.append(names, entries, texts=names)
    with StoreWriter(
        folder / "images", kind="image", model=MODEL, dim=DIM, rows_per_shard=8
    ) as writer:
        status = ["ok"] * IMAGES
        status[5] = "undecodable_image"
        errors = [None if code == "ok" else "truncated: 3 bytes" for code in status]
        writer.append([f"image {i}" for i in range(IMAGES)], images, status=status, error=errors)
    labels = np.arange(IMAGES) % 2
    calibrate([(images, labels)], entries[:2], ["cat", "dog"], model=MODEL).save(
        folder / "calibration"
    )
    corpus = EmbeddingStore.open(folder / "corpus")
    save_index(build_index(corpus.embeddings(), "flat"), corpus)
    save_index(NearSearch(corpus.embeddings(), 3), corpus)
    settings = ScoreSettings(
        str(folder / "corpus"), str(folder / "calibration"), k=3, device="cpu", search="native"
    )
    run_job(folder / "images", folder / "scores", settings)
    run_job(folder / "images", folder / "half-done", settings, JobOptions(task="0/2"))
    for lock in folder.rglob(".lock*"):
        lock.unlink()


if __name__ == "__main__":
    main()
