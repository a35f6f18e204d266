"""Mutated files give typed errors: no other exception, no crash, no hang.

BLISS_INDEX_FUZZ sets the mutations of each kind of file; the default keeps the tests quick.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import make_job
from fuzz_target import TARGETS

from bliss_index.bulk import run_job
from bliss_index.store import EmbeddingStore

COUNT = int(os.environ.get("BLISS_INDEX_FUZZ", "150"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    job = make_job(folder, shards=2, rows=20)
    run_job(job.images, folder / "scores", job.settings(explain=True))
    rows = EmbeddingStore.open(job.images).embeddings("float32")
    np.save(folder / "t.npy", rows)
    np.savez(folder / "t.npz", embeddings=rows)
    lists = pa.array(list(rows))
    pq.write_table(
        pa.table({"embedding": lists, "key": [f"k{i}" for i in range(40)]}), folder / "t.parquet"
    )
    (folder / "labels.csv").write_text(
        "key,label\n" + "".join(f"k{i},{i % 3}\n" for i in range(40))
    )
    pq.write_table(pa.table({"label": [i % 3 for i in range(40)]}), folder / "labels.parquet")
    if pytest.importorskip("faiss"):
        from bliss_index.search.faiss_build import build_index
        from bliss_index.search.faiss_index import save_index

        corpus = EmbeddingStore.open(job.corpus)
        save_index(build_index(corpus.embeddings(), "flat"), corpus)
    return folder


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files(folder, target):
    command = [sys.executable, str(Path(__file__).with_name("fuzz_target.py"))]
    command += [str(folder), target, str(COUNT), "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30 + COUNT / 5
    )
    at = (folder / "progress").read_text().strip()
    assert done.returncode == 0, f"mutation {at} of {target}: {done.stderr[-2000:]}"
    assert int(done.stdout) > COUNT / 50
