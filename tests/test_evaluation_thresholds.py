"""Thresholds and p-values keep what they promise; labels and trims against plain definitions."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bliss_reference import clip_like, reference_scores, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from bliss_index.calibration import calibrate
from bliss_index.calibration.unlabelled import assign_labels, trim_mask
from bliss_index.errors import CalibrationError, CorruptStoreError, InvalidInputError
from bliss_index.scoring.normal_scores import NormalScores, ScoreIdentity
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.thresholds import (
    conformal_p_values,
    deal,
    held_out_scores,
    rate_kept,
    threshold_at,
)
from bliss_index.search import exact_search


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=30),
    st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 0.9]),
)
def test_any_of_the_images_would_be_flagged_rarely_enough(pool: list[int], rate: float) -> None:
    """Each of n + 1 exchangeable scores in turn is the new one: at most a share `rate` is flagged.

    That is the guarantee itself, not an estimate of it.
    """
    flagged = 0
    for new in range(len(pool)):
        others = [s for i, s in enumerate(pool) if i != new]
        try:
            threshold = threshold_at(others, rate)
        except InvalidInputError:
            assert len(pool) < 1 / rate
            return
        flagged += int(threshold.flags([pool[new]])[0])
    assert flagged <= rate * len(pool) + 1e-9
    if len(set(pool)) == len(pool):
        assert flagged == int(rate * len(pool) + 1e-9), "no image more than needed is passed"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=25))
def test_p_values_are_small_rarely_enough(pool: list[int]) -> None:
    p = [
        conformal_p_values([s for i, s in enumerate(pool) if i != new], [pool[new]])[0]
        for new in range(len(pool))
    ]
    for u in np.arange(1, len(pool) + 1) / len(pool):
        assert np.mean(np.array(p) <= u + 1e-12) <= u + 1e-12


def test_thresholds_and_p_values_agree() -> None:
    rng = np.random.default_rng(0)
    normal, scores = rng.normal(size=499), rng.normal(size=2000) + 0.5
    p = conformal_p_values(normal, scores)
    for rate in (0.002, 0.05, 0.2):
        np.testing.assert_array_equal(threshold_at(normal, rate).flags(scores), p <= rate + 1e-12)
    expected = [(1 + np.sum(normal >= s)) / 500 for s in scores]
    np.testing.assert_allclose(p, expected, rtol=1e-15)
    assert np.isnan(conformal_p_values(normal, [np.nan])[0])
    assert threshold_at(normal, 0.1).flags([np.nan])[0]


def test_what_thresholds_refuse() -> None:
    with pytest.raises(
        InvalidInputError, match="rate of 0.01 needs at least 99 held-out normal images, got 98"
    ):
        threshold_at(np.arange(98), 0.01)
    assert threshold_at(np.arange(99), 0.01).images == 99
    with pytest.raises(InvalidInputError, match="between 0 and 1, got 1.0"):
        threshold_at([1, 2], 1.0)
    with pytest.raises(InvalidInputError, match="1 of 3 .* not finite, the first at row 1"):
        threshold_at([1, np.inf, 2], 0.5)
    with pytest.raises(InvalidInputError, match=r"at least one, got \(0,\)"):
        conformal_p_values([], [1])


def at_most(n: int, p: Fraction, m: int) -> Fraction:
    """P(Binomial(n, p) <= m), exactly."""
    return sum((comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(m + 1)), Fraction(0))


@pytest.mark.parametrize("n", [59, 60, 93, 200])
@pytest.mark.parametrize(
    ("rate", "sure"), [(Fraction(1, 20), Fraction(19, 20)), (Fraction(1, 4), Fraction(3, 5))]
)
def test_a_rate_with_confidence_is_the_largest_order_statistic_that_keeps_it(n, rate, sure) -> None:
    """With m of n scores above, the rate is kept with probability 1 - P(Binomial(n, rate) <= m)."""
    threshold = threshold_at(np.arange(n), float(rate), confidence=float(sure))
    above = int(threshold.flags(np.arange(n)).sum())
    assert threshold.confidence == float(sure)
    assert 1 - at_most(n, rate, above) >= sure > 1 - at_most(n, rate, above + 1)
    upper = Fraction(rate_kept(np.arange(n), threshold.value, float(sure)))
    assert upper <= rate
    assert abs(float(at_most(n, upper, above)) - float(1 - sure)) < 1e-9


def test_how_many_images_a_confidence_needs() -> None:
    assert threshold_at(np.arange(59), 0.05, confidence=0.95).images == 59
    with pytest.raises(
        InvalidInputError, match=r"0.05 with confidence 0.95 needs at least 59 .*, got 58; hold out"
    ):
        threshold_at(np.arange(58), 0.05, confidence=0.95)
    with pytest.raises(InvalidInputError, match="at least 299"):
        threshold_at(np.arange(99), 0.01, confidence=0.95)
    for bad in (0.0, 1.0, -1.0):
        with pytest.raises(InvalidInputError, match="the confidence must lie between 0 and 1"):
            threshold_at(np.arange(99), 0.05, confidence=bad)
    large = threshold_at(np.arange(1_000_000), 0.001, confidence=0.95)
    assert 1_000_000 - large.value == pytest.approx(1000 - 1.645 * 1000**0.5, abs=5)
    assert rate_kept([1, 2, 3], 0) == 1.0


def test_what_is_promised_is_kept_over_many_sets_of_images() -> None:
    """Uniform scores: the share of normal images above a threshold is 1 - threshold."""
    rng = np.random.default_rng(3)
    for n, rate in ((99, 0.05), (400, 0.01), (400, 0.1)):
        sets = rng.uniform(size=(3000, n))
        average = np.array([1 - threshold_at(s, rate).value for s in sets])
        assert average.mean() <= rate * 1.03, "kept on average"
        assert (average > rate).mean() > 0.3, "and by far not by every set"
        if n >= 99 and (1 - rate) ** n <= 0.05:
            sure = np.array([1 - threshold_at(s, rate, confidence=0.95).value for s in sets])
            assert (sure > rate).mean() <= 0.05 + 3 * (0.05 * 0.95 / 3000) ** 0.5
            assert (sure > rate).mean() > 0.005, "no more careful than needed"


def test_the_confidence_holds_for_held_out_scores() -> None:
    """Classes from which new normal images can be drawn without end: the rate itself is known."""
    rng = np.random.default_rng(5)
    dim, classes, count = 12, 3, 50
    vocabulary, texts = unit(rng.normal(size=(60, dim))), unit(rng.normal(size=(classes, dim)))
    search = exact_search(vocabulary, 5, threads=1)
    centres = rng.normal(size=(classes, dim))
    rates: dict[float | None, list[float]] = {None: [], 0.95: []}
    for _ in range(60):
        labels = np.repeat(np.arange(classes), count)
        images = unit(centres[labels] + 0.7 * rng.normal(size=(labels.size, dim)))
        held = held_out_scores(images, labels, texts, vocabulary, search)
        new = unit(centres[rng.integers(0, classes, 3000)] + 0.7 * rng.normal(size=(3000, dim)))
        scores = BlissScorer(search, vocabulary, calibrate([(images, labels)], texts)).score(new)
        for sure, found in rates.items():
            flags = threshold_at(held, 0.1, confidence=sure).flags(scores.anomaly)
            found.append(float(flags.mean()))
    assert np.mean(rates[None]) <= 0.1
    assert np.mean(np.array(rates[None]) > 0.1) > 0.15
    # 6 of 60 or more would happen once in 13 times at 5 %; the observed rate adds a little noise.
    assert np.sum(np.array(rates[0.95]) > 0.1) <= 6


def test_images_that_always_calibrate(rng: np.random.Generator) -> None:
    images, vocabulary, texts, labels = clip_like(rng, 120, 80, 3)
    labels[:2], labels[2:] = 2, np.arange(118) % 2
    search = exact_search(vocabulary, 5, threads=1)
    held = labels < 2
    found = held_out_scores(images, labels, texts, vocabulary, search, folds=3, held=held)
    assert np.isnan(found[~held]).all()
    fold_of = deal(labels[held], 3, 3, others=np.array([0, 0, 2]))
    for fold in range(3):
        mine = np.zeros(120, dtype=bool)
        mine[np.flatnonzero(held)[fold_of == fold]] = True
        expected = reference_scores(
            images[mine], vocabulary, texts, images[~mine], labels[~mine], k=5, lam=0.5
        ).anomaly
        np.testing.assert_allclose(found[mine], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(CalibrationError, match="class 2 has 2 images"):
        held_out_scores(images, labels, texts, vocabulary, search, folds=3)


def test_held_out_scores_know_nothing_of_the_image(rng: np.random.Generator) -> None:
    images, vocabulary, texts, labels = clip_like(rng, 200, 80, 3)
    search = exact_search(vocabulary, 5, threads=1)
    found = held_out_scores(images, labels, texts, vocabulary, search, lam=0.7, folds=4, seed=2)
    fold_of = deal(labels, 3, 4, 2)
    for fold in range(4):
        held = fold_of == fold
        expected = reference_scores(
            images[held], vocabulary, texts, images[~held], labels[~held], k=5, lam=0.7
        ).anomaly
        np.testing.assert_allclose(found[held], expected, rtol=1e-4, atol=1e-4)
    for c in range(3):
        sizes = np.bincount(fold_of[labels == c], minlength=4)
        assert sizes.max() - sizes.min() <= 1
    with pytest.raises(CalibrationError, match="class 1 has 3 images; .* every class needs 4"):
        deal(np.array([0] * 9 + [1] * 3), 2, 2)
    assert set(deal(np.array([0] * 9 + [1] * 3), 2, 3)) == {0, 1, 2}
    with pytest.raises(InvalidInputError, match="at least 2 folds are needed .* got 1"):
        deal(labels, 3, 1)
    with pytest.raises(InvalidInputError, match="class numbers 0 to 1"):
        deal(labels, 2, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_labels_are_the_nearest(rng: np.random.Generator, dtype: type) -> None:
    images, _, texts, _ = clip_like(rng, 300, 5, 4, dtype=dtype)
    similarity = images.astype(float) @ texts.astype(float).T
    np.testing.assert_array_equal(assign_labels(images, texts), similarity.argmax(1))
    with pytest.raises(InvalidInputError, match=r"shape \(300, 32\), class embeddings \(4, 31\)"):
        assign_labels(images, texts[:, 1:])
    broken = images.copy()
    broken[7, 3] = np.nan
    with pytest.raises(InvalidInputError, match="image 7 holds NaN"):
        assign_labels(broken, texts)


@pytest.mark.parametrize(("images", "texts"), [((4, 3), (2, 5)), ((3,), (2, 3)), ((4, 3), (3,))])
def test_labels_of_what_does_not_fit_are_refused(images: Any, texts: Any) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(str(images))):
        assign_labels(np.ones(images), np.ones(texts))


def test_outliers_are_trimmed(rng: np.random.Generator) -> None:
    centres = rng.normal(size=(3, 24))
    labels = np.repeat([0, 1, -1], [100, 50, 10])
    rows = centres[labels] + 0.3 * rng.normal(size=(160, 24))
    outliers = np.zeros(160, dtype=bool)
    outliers[[3, 20, 21, 70, 110, 111]] = True
    rows[outliers] = centres[2] + 0.3 * rng.normal(size=(6, 24))
    keep = trim_mask(unit(rows), labels, 0.04)
    np.testing.assert_array_equal(keep, ~outliers & (labels >= 0))
    np.testing.assert_array_equal(trim_mask(unit(rows), labels, 0.0), labels >= 0)
    assert trim_mask(unit(rows), labels, 0.29).sum() == 100 - 29 + 50 - 14


def test_trimming_stops_where_no_exchange_helps(rng: np.random.Generator) -> None:
    rows = unit(rng.normal(size=(60, 8)))
    keep = trim_mask(rows, np.zeros(60, dtype=int), 0.25)
    distance = np.linalg.norm(rows - rows[keep].mean(0), axis=1)
    assert keep.sum() == 45 and distance[keep].max() <= distance[~keep].min()
    with pytest.raises(InvalidInputError, match="below 0.5, got 0.5"):
        trim_mask(rows, np.zeros(60, dtype=int), 0.5)
    with pytest.raises(InvalidInputError, match=r"60 images need .* float64 of shape \(60,\)"):
        trim_mask(rows, np.zeros(60), 0.1)


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_altered_scores_on_disk_are_refused(tmp_path: Path, confidence: float | None) -> None:
    """Each fact of the file by itself: its scores, what they depend on, their confidence."""
    identity = ScoreIdentity(5, 0.5, "a" * 64, "b" * 64)
    whole = NormalScores(np.array([0.5, -1.0, 2.0]), identity, 5, confidence)
    path = tmp_path / "normal.parquet"
    whole.write(path)
    again = NormalScores.read(path)
    assert again.content_hash == whole.content_hash
    assert (again.identity, again.folds, again.confidence) == (identity, 5, confidence)
    np.testing.assert_array_equal(again.scores, whole.scores)
    table = pq.read_table(path)
    (name,) = [n for n in table.schema.metadata if n.startswith(b"bliss_index")]
    facts = json.loads(table.schema.metadata[name])

    def write(changed: dict[str, Any], scores: list[float]) -> None:
        content = pa.table({"anomaly_score": scores})
        pq.write_table(content.replace_schema_metadata({name: json.dumps(changed)}), path)

    for changed in (
        {**facts, "confidence": 0.95},
        {**facts, "confidence": None if confidence else 0.9},
        {**facts, "identity": {**facts["identity"], "k": 6}},
        {**facts, "identity": {**facts["identity"], "corpus": "c" * 64}},
    ):
        write(changed, [0.5, -1.0, 2.0])
        with pytest.raises(CorruptStoreError, match="altered"):
            NormalScores.read(path)
    write(facts, [0.5, -1.0, 2.5])
    with pytest.raises(CorruptStoreError, match="altered"):
        NormalScores.read(path)
    write({**facts, "format_version": 99}, [0.5, -1.0, 2.0])
    with pytest.raises(CorruptStoreError, match="format version 99, this is 1"):
        NormalScores.read(path)
    write(facts, [0.5, -1.0, 2.0])
    assert NormalScores.read(path).content_hash == whole.content_hash
