"""Directories of every format, as they were first written, are read by all later versions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bliss_index.calibration import Calibration
from bliss_index.report.verification import verify_directory
from bliss_index.scoring import ScoresDirectory, ScoreSettings, run_job, verify_scores
from bliss_index.search import exact_search
from bliss_index.search.index import open_index
from bliss_index.search.native.backend import load_native
from bliss_index.store import EmbeddingStore, verify_store

GOLDEN = sorted((Path(__file__).parent / "golden").iterdir())


@pytest.fixture(params=GOLDEN, ids=lambda path: path.name)
def golden(request, tmp_path):
    """A copy that may be written."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def test_stores(golden):
    corpus = EmbeddingStore.open(golden / "corpus", kind="text")
    assert corpus.texts() == [f"word {i}" for i in range(30)]
    images = EmbeddingStore.open(golden / "images", kind="image")
    assert (images.rows, images.bad_rows, len(images.shards)) == (24, 1, 3)
    assert images.shard(0).status[5] == "undecodable_image"
    for name in ("corpus", "images"):
        assert verify_store(golden / name).ok
    assert corpus.content_hash.startswith(CONTENT[golden.name])


CONTENT = {"v2": "579c9085f3ac31e0"}
"""Content hashes must not change: indexes, calibrations and scores are tied to them."""


def test_a_calibration(golden):
    calibration = Calibration.load(golden / "calibration")
    assert calibration.classes == ("cat", "dog")
    assert [m.count for m in calibration.moments] == [12, 12]


@pytest.mark.parametrize("kind", ["flat", "near"])
def test_an_index(golden, kind):
    if kind == "flat":
        pytest.importorskip("faiss")
    elif load_native()[0] is None:
        pytest.skip("no compiled search here")
    corpus, images = EmbeddingStore.open(golden / "corpus"), EmbeddingStore.open(golden / "images")
    found = open_index(corpus, 3, kind).search(images.good_embeddings())
    expected = exact_search(corpus.embeddings(), 3).search(images.good_embeddings())
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)
    assert verify_directory(golden / "corpus").ok


def test_scores(golden):
    scores = ScoresDirectory.open(golden / "scores")
    assert (scores.rows, scores.bad_rows, scores.classes) == (24, 1, ("cat", "dog"))
    assert scores.table().column("anomaly_score").null_count == 1
    assert verify_scores(golden / "scores", images=golden / "images").ok


def test_a_job_that_is_half_done_is_continued(golden):
    """By this version, with the same scores."""
    settings = ScoreSettings(
        str(golden / "corpus"), str(golden / "calibration"), k=3, device="cpu", search="native"
    )
    summary = run_job(golden / "images", golden / "half-done", settings)
    assert (summary.parts_earlier, summary.parts_done, summary.complete) == (2, 3, True)
    expected = ScoresDirectory.open(golden / "scores").table()
    assert ScoresDirectory.open(golden / "half-done").table().equals(expected)
    assert pq.read_table(golden / "half-done").num_rows == 24
