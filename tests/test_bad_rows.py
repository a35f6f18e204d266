"""Rows without a usable embedding count nowhere: results are those of a store without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bliss_reference import clip_like
from bulk_fixtures import MODEL, write_images, write_text

from bliss_index import BlissDetector, EmbeddingStore, StoreWriter, exact_search
from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.from_store import calibrate_store
from bliss_index.calibration.labels import Labels
from bliss_index.errors import CalibrationWarning
from bliss_index.scoring.normal_scores import score_held_out
from bliss_index.scoring.score_inputs import open_input

DIM = 16


class Scene:
    """Images of two stores, of which one has bad rows between the others."""

    def __init__(self, folder: Path, rng: np.random.Generator, count: int = 60) -> None:
        images, self.vocabulary, self.texts, labels = clip_like(rng, count, 80, 3, DIM)
        self.good = np.sort(rng.permutation(count + count // 3)[:count])
        status = np.full(count + count // 3, "undecodable_image", dtype=object)
        status[self.good] = "ok"
        rows = np.zeros((status.size, DIM), dtype=np.float32)
        rows[self.good] = images
        self.all_labels = rng.integers(0, 3, status.size)
        self.all_labels[self.good] = labels
        self.labels = labels
        write_images(folder / "good", images, rows_per_shard=17)
        self.only_good = EmbeddingStore.open(folder / "good")
        with StoreWriter(
            folder / "all", kind="image", model=MODEL, dim=DIM, rows_per_shard=13
        ) as writer:
            writer.append([f"row{i}" for i in range(status.size)], rows, status=list(status))
        self.all = EmbeddingStore.open(folder / "all")
        write_text(folder / "corpus", self.vocabulary)
        self.corpus = EmbeddingStore.open(folder / "corpus")
        self.names = ClassTexts(("a", "b", "c"), self.texts, MODEL, "classes", None)

    def both(self) -> list[tuple[EmbeddingStore, Labels]]:
        """Each store with its labels."""
        return [
            (self.only_good, Labels("good", tuple(self.labels.tolist()))),
            (self.all, Labels("all", tuple(self.all_labels.tolist()))),
        ]


@pytest.fixture
def scene(tmp_path: Path, rng: np.random.Generator) -> Scene:
    return Scene(tmp_path, rng)


@pytest.mark.parametrize("trim", [0.0, 0.2])
def test_of_a_calibration(scene: Scene, trim: float) -> None:
    (one, its), (other, theirs) = scene.both()
    clean = calibrate_store(one, its, scene.names, trim=trim)
    found = calibrate_store(other, theirs, scene.names, trim=trim)
    assert found.trimmed == clean.trimmed
    for a, b in zip(clean.calibration.moments, found.calibration.moments, strict=True):
        assert a.count == b.count
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9)


def test_of_a_calibration_of_one_class_which_needs_no_labels(scene: Scene) -> None:
    texts = ClassTexts(("a",), scene.texts[:1], MODEL, "classes", None)
    clean = calibrate_store(scene.only_good, None, texts)
    found = calibrate_store(scene.all, None, texts)
    assert (clean.unlabelled, found.unlabelled) == (0, 0)
    (a,), (b,) = clean.calibration.moments, found.calibration.moments
    assert a.count == b.count == 60
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9)


@pytest.mark.parametrize("trim", [0.0, 0.2])
def test_of_the_scores_of_held_out_images(scene: Scene, trim: float) -> None:
    search = exact_search(scene.corpus.embeddings(), 5)
    scores = []
    for store, labels in scene.both():
        calibration = calibrate_store(store, labels, scene.names, trim=trim).calibration
        found = score_held_out(store, labels, calibration, scene.corpus, search)
        scores.append(found.scores)
    assert np.isfinite(scores[1]).all()
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6, atol=1e-6)


def test_of_a_detectors_threshold(scene: Scene) -> None:
    detector = BlissDetector(scene.vocabulary, scene.texts, k=5)
    expected = detector.fit(scene.only_good, scene.labels).threshold_
    assert np.isfinite(expected)
    assert detector.fit(scene.all, scene.all_labels).threshold_ == pytest.approx(expected, rel=1e-6)


def test_of_a_detectors_threshold_from_images_that_it_knows(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    scene = Scene(tmp_path, rng, count=6)
    scene.labels = np.array([0, 1, 2, 0, 1, 2])
    scene.all_labels[scene.good] = scene.labels
    detector = BlissDetector(scene.vocabulary, scene.texts, k=5)
    thresholds = []
    for store, labels in ((scene.only_good, scene.labels), (scene.all, scene.all_labels)):
        with pytest.warns(CalibrationWarning) as caught:
            thresholds.append(detector.fit(store, labels).threshold_)
        assert "no class has three images" in str(caught[-1].message)
    assert np.isfinite(thresholds).all()
    assert thresholds[1] == pytest.approx(thresholds[0], rel=1e-6)


def test_of_what_a_scoring_job_searches(tmp_path: Path, rng: np.random.Generator) -> None:
    """Quarantined rows of somebody else's file: repeated keys, zeros, NaN."""
    rows: Any = rng.standard_normal((6, DIM)).astype(np.float32)
    rows[2], rows[3, 0] = 0, np.nan
    keys = ["a", "b", "c", "d", "a", "e"]
    table = {"key": keys, "embedding": pa.FixedSizeListArray.from_arrays(rows.ravel(), DIM)}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    (part,) = open_input(tmp_path / "x.parquet").parts
    (found,) = part.read(100)
    assert found.status.to_pylist() == [
        "ok", "ok", "zero_embedding", "nonfinite_embedding", "duplicate_key", "ok",
    ]  # fmt: skip
    unit = rows[[0, 1, 5]] / np.linalg.norm(rows[[0, 1, 5]], axis=1, keepdims=True)
    np.testing.assert_allclose(found.good_embeddings, unit, rtol=1e-3, atol=1e-3)
    assert not found.embeddings[[2, 3, 4]].any()
