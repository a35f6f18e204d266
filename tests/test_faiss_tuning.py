"""Effort chosen on image queries: recall counted as the tests count it, on the right halves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bliss_index.errors import InvalidInputError

pytest.importorskip("faiss")

from bliss_index.search.index import IndexParameters, build_index
from bliss_index.search.tuning import smallest_effort, tune_index


def two_cones(seed: int, texts: int, images: int, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Texts in clusters about one direction, images about another, as CLIP's are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim)) / np.sqrt(dim)
    text = centres[rng.integers(0, 40, texts)] + 0.3 * rng.normal(size=(texts, dim)) / np.sqrt(dim)
    image = centres[rng.integers(0, 40, images)] + 1.5 * rng.normal(size=(images, dim)) / np.sqrt(
        dim
    )
    text += 1.5 * np.eye(dim)[0]
    image += 1.5 * np.eye(dim)[1]
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    return text.astype(np.float16), image.astype(np.float16)


def recall_of(search: Any, entries: np.ndarray, queries: np.ndarray) -> float:
    scores = queries.astype(np.float64) @ entries.astype(np.float64).T
    kth = np.sort(scores, axis=1)[:, -search.k].astype(np.float32)
    return float((search.search(queries)[0] >= kth[:, None]).mean())


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_the_smallest_effort_that_reaches_the_target(kind: str) -> None:
    entries, images = two_cones(0, 3000, 400)
    index = build_index(entries, kind, k=10, threads=1)
    report = tune_index(index, images, 0.9, seed=3, threads=1)
    order = np.random.default_rng(3).permutation(400)
    choosing, measuring = images[np.sort(order[:200])], images[np.sort(order[200:])]
    tuned = index.replace(effort=report.parameter)
    assert recall_of(tuned, entries, choosing) >= 0.9
    if report.parameter > 1:
        less = index.replace(effort=report.parameter - 1)
        assert recall_of(less, entries, choosing) < 0.9
    assert report.recall == pytest.approx(recall_of(tuned, entries, measuring), abs=1e-12)
    assert report.queries == 200 and report.target == 0.9 and report.k == 10
    assert report.effort_name == index.effort_name


def test_text_queries_suggest_less_than_images_need() -> None:
    entries, images = two_cones(1, 3000, 400)
    index = build_index(entries, "ivf", k=10, threads=1)
    report = tune_index(index, images, 0.9, threads=1)
    assert report.text_parameter is not None and report.text_parameter < report.parameter
    assert report.text_recall_reported >= 0.9 > report.image_recall_at_text_parameter
    data = report.to_json()
    assert data["parameter"] == report.parameter
    for value in (report.parameter, report.text_parameter, f"{report.recall:.4f}"):
        assert str(value) in data["measured_on"]


def test_entries_as_queries_do_not_find_themselves() -> None:
    entries, images = two_cones(2, 300, 60)
    index = build_index(entries, "ivf", k=5, threads=1)
    report = tune_index(index, images, 1.0, threads=1)
    least = index.replace(k=6, effort=1)
    scores = entries.astype(np.float64) @ entries.astype(np.float64).T
    np.fill_diagonal(scores, -np.inf)
    kth = np.sort(scores, axis=1)[:, -5].astype(np.float32)
    _, ids = least.search(entries)
    hits = [
        (scores[row, [i for i in found if i != row][:5]].astype(np.float32) >= kth[row]).mean()
        for row, found in enumerate(ids.tolist())
    ]
    text_at_one = tune_index(index, images, 1e-9, threads=1)
    assert text_at_one.parameter == 1 and text_at_one.text_queries == 300
    assert text_at_one.text_recall_at_parameter == pytest.approx(np.mean(hits), abs=1e-12)
    assert report.text_recall_reported == 1.0


def test_held_out_text_queries_may_be_given() -> None:
    entries, images = two_cones(3, 1000, 80)
    more, _ = two_cones(4, 70, 1)
    report = tune_index(
        build_index(entries, "hnsw", threads=1), images, 0.9, 5, text_queries=more, threads=1
    )
    assert report.text_queries == 70 and report.k == 5


def test_what_cannot_be_tuned_is_named() -> None:
    entries, images = two_cones(5, 600, 60)
    with pytest.raises(InvalidInputError, match="flat index is exact"):
        tune_index(build_index(entries, "flat", threads=1), images)
    index = build_index(entries, "ivf", threads=1)
    with pytest.raises(InvalidInputError, match=r"in \(0, 1\], got 1.5"):
        tune_index(index, images, 1.5)
    with pytest.raises(InvalidInputError, match="at least 20 image queries, got 19"):
        tune_index(index, images[:19])
    with pytest.raises(InvalidInputError, match="dimension 31.*dimension 32"):
        tune_index(index, images[:, :31])
    coarse = build_index(entries, "ivfpq", IndexParameters(subspaces=1, bits=1), k=10, threads=1)
    with pytest.raises(InvalidInputError) as caught:
        tune_index(coarse, images, 0.99, threads=1)
    best = recall_of(
        coarse.replace(effort=coarse.most_effort),
        entries,
        images[np.sort(np.random.default_rng(0).permutation(60)[:30])],
    )
    assert "0.99 cannot be reached" in str(caught.value)
    assert f"{best:.4f}" in str(caught.value) and "search exactly" in str(caught.value)


@pytest.mark.parametrize("most", [1, 2, 7, 100])
def test_smallest_effort_is_found_wherever_it_is(most: int) -> None:
    for answer in range(1, most + 1):
        found = smallest_effort(lambda e, a=answer: float(e >= a), most, 0.5)
        assert found == answer
    assert smallest_effort(lambda e: 0.0, most, 0.5) is None


@pytest.mark.skipif("BLISS_INDEX_REALDATA" not in os.environ, reason="no real embeddings named")
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_real_images_need_more_than_text_suggests(kind: str) -> None:
    folder = Path(os.environ["BLISS_INDEX_REALDATA"])
    text = np.load(folder / "text_vitb32.npz")["embeddings"].astype(np.float64)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    images = np.load(folder / "img_caltech101_test.npz")["embeddings"]
    index = build_index(text.astype(np.float16), kind, k=10, threads=1)
    report = tune_index(index, images, 0.95, threads=1)
    print(report.describe())
    assert report.recall > 0.93
    assert report.text_parameter is not None and 1.5 * report.text_parameter < report.parameter
    assert report.image_recall_at_text_parameter < 0.92
