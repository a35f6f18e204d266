"""Scores against the formulas in float64, and against the authors' scheme."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from bliss_reference import authors_scheme, clip_like, reference_scores, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from bliss_index.calibration import calibrate
from bliss_index.errors import InvalidInputError
from bliss_index.scoring.formulas import label_scores, raw_scores
from bliss_index.scoring.native_kernel import NativeScoreKernel, score_kernel_available
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search import exact_search
from bliss_index.search.native.backend import load_native

NATIVE = load_native()[0]
KERNELS = [] if NATIVE is None else NATIVE.kernel_names()


def make_scorer(vocabulary, texts, images, labels, *, k, lam=0.5, backend="auto"):
    calibration = calibrate([(images, labels)], texts)
    search = exact_search(vocabulary, k, backend=backend, threads=1)
    return BlissScorer(search, vocabulary, calibration, lam=lam)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("classes", "dim", "k", "lam"), [(1, 8, 1, 0.5), (7, 40, 10, 0.5), (3, 17, 25, 2.0)]
)
def test_scores_equal_the_formulas(rng, dtype, classes, dim, k, lam):
    images, vocabulary, texts, labels = clip_like(rng, 400, 300, classes, dim, dtype)
    scorer = make_scorer(vocabulary, texts, images[:200], labels[:200], k=k, lam=lam)
    scores = scorer.score(images[200:])
    expected = reference_scores(
        images[200:], vocabulary, texts, images[:200], labels[:200], k=k, lam=lam
    )
    np.testing.assert_array_equal(scores.ids, expected.ids)
    np.testing.assert_array_equal(scores.nearest_class, expected.nearest_class)
    np.testing.assert_allclose(scores.anomaly, expected.anomaly, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(scores.internal, expected.internal, atol=1e-9, rtol=1e-9)
    np.testing.assert_allclose(scores.external, expected.external, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(
        scores.anomaly, scores.internal + lam * scores.external, atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize(
    "case", ["random", "ties", "duplicates", "k = W", "k = 1", "one image", "one class", "far off"]
)
def test_the_authors_scheme_gives_the_same(rng, case, backend):
    classes = 1 if case == "one class" else 4
    images, vocabulary, texts, labels = clip_like(rng, 300, 120, classes, 24)
    test = images[150:]
    k = {"k = W": 120, "k = 1": 1}.get(case, 10)
    if case == "ties":
        # Coordinates of few values: many entries have exactly equal similarities.
        vocabulary = unit(rng.choice([-1.0, 1.0], size=(120, 24)), np.float32)
        test = np.eye(24, dtype=np.float32)
    if case == "duplicates":
        vocabulary = vocabulary[rng.integers(0, 12, 120)]
    if case == "one image":
        test = test[:1]
    if case == "far off":
        test = -test
    scorer = make_scorer(vocabulary, texts, images[:150], labels[:150], k=k, backend=backend)
    expected = authors_scheme(test, vocabulary, texts, images[:150], labels[:150], k=k, lam=0.5)
    np.testing.assert_allclose(scorer.score(test).anomaly, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("native", sorted({False, score_kernel_available()}))
def test_more_images_than_a_block_has_rows(rng, native):
    images, vocabulary, texts, labels = clip_like(rng, 2600, 90, 3, 16)
    calibration = calibrate([(images[:100], labels[:100])], texts)
    search = exact_search(vocabulary, 5)
    scorer = BlissScorer(search, vocabulary, calibration, lam=0.7, native=native)
    expected = reference_scores(images, vocabulary, texts, images[:100], labels[:100], k=5, lam=0.7)
    np.testing.assert_allclose(scorer.score(images).anomaly, expected.anomaly, atol=1e-5, rtol=1e-5)
    own = scorer.internal_scores(images)
    assert own.shape == (2600, 3)
    nearest = scorer.score(images)
    picked = own[np.arange(2600), nearest.nearest_class]
    np.testing.assert_allclose(picked, nearest.internal, rtol=1e-9, atol=1e-9)


def test_without_lambda_the_label_term_is_the_score(rng):
    images, vocabulary, texts, labels = clip_like(rng, 200, 90, 3, 16)
    scorer = make_scorer(vocabulary, texts, images[:100], labels[:100], k=5, lam=0.0)
    found = scorer.score(images)
    np.testing.assert_array_equal(found.anomaly, found.internal)
    np.testing.assert_allclose(found.anomaly, scorer.internal_scores(images).min(1), rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 1500), max_size=6), seed=st.integers(0, 5))
def test_scores_do_not_depend_on_batches(cuts, seed):
    rng = np.random.default_rng(seed)
    images, vocabulary, texts, labels = clip_like(rng, 1500, 90, 3, 16)
    scorer = make_scorer(vocabulary, texts, images[:100], labels[:100], k=5)
    whole = scorer.score(images)
    fresh = make_scorer(vocabulary, texts, images[:100], labels[:100], k=5)
    edges = [0, *sorted(cuts), 1500]
    parts = [fresh.score(images[a:b]) for a, b in pairwise(edges) if a < b]
    for name in ("anomaly", "nearest_class", "internal", "external", "similarities", "ids"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)
        )


@pytest.mark.skipif(not score_kernel_available(), reason="the native extension is not built")
@pytest.mark.parametrize(
    ("classes", "k", "threads"), [(1, 1, 1), (3, 10, 2), (17, 7, 3), (300, 5, 2)]
)
def test_the_native_scoring_kernel_agrees_with_numpy(rng, classes, k, threads):
    images, vocabulary, texts, labels = clip_like(rng, 20 * classes + 500, 90, classes, 24)
    labels[: 2 * classes] = np.arange(2 * classes) % classes
    calibration = calibrate([(images, labels)], texts)
    search = exact_search(vocabulary, k, threads=1)
    native = BlissScorer(search, vocabulary, calibration, lam=0.7, threads=threads, native=True)
    portable = BlissScorer(search, vocabulary, calibration, lam=0.7, native=False)
    one, other = native.score(images), portable.score(images)
    np.testing.assert_array_equal(one.nearest_class, other.nearest_class)
    np.testing.assert_array_equal(one.external, other.external)
    for name in ("anomaly", "internal"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not score_kernel_available(), reason="the native extension is not built")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("classes", [1, 8, 9, 31, 75])
def test_native_internal_scores_have_one_value(rng, dtype, classes):
    """Whatever the threads, whatever the rows around an image; near the float64 formula."""
    images, vocabulary, texts, labels = clip_like(rng, 4 * classes + 300, 20, classes, 37, dtype)
    labels[: 2 * classes] = np.arange(2 * classes) % classes
    calibration = calibrate([(images, labels)], texts)
    search = exact_search(vocabulary, 3, threads=1)
    scorers = [BlissScorer(search, vocabulary, calibration, threads=t) for t in (1, 3)]
    whole = scorers[0].internal_scores(images)
    np.testing.assert_array_equal(scorers[1].internal_scores(images), whole)
    for at in (0, 95, 96, 101, len(images) - 1):
        np.testing.assert_array_equal(scorers[0].internal_scores(images[at : at + 1])[0], whole[at])
    scores = scorers[1].score(images)
    rows = np.arange(len(images))
    np.testing.assert_array_equal(scores.internal, whole[rows, scores.nearest_class])
    mu, sigma = calibration.label_statistics()
    expected = (mu - images.astype(np.float64) @ texts.astype(np.float64).T) / sigma
    np.testing.assert_allclose(whole, expected, rtol=1e-12, atol=1e-12)


def screening_case(rng, case, classes, dim, k):
    """Texts, mu, sigma, lam, images, similarities, ids, scale and shift that suit `case`."""
    texts = unit(rng.normal(size=(classes, dim)) + 1.0, np.float64)
    images = unit(rng.normal(size=(150, dim)) + 0.5, np.float64)
    mu = rng.normal(0.25, 0.02, classes)
    sigma = rng.uniform(0.01, 0.04, classes)
    scale = rng.uniform(20, 60, size=(40, classes)).astype(np.float32)
    shift = (0.2 * scale + rng.normal(size=scale.shape)).astype(np.float32)
    lam = 0.5
    if case == "equal classes":
        texts[:], mu[:], sigma[:], scale[:], shift[:] = texts[0], mu[0], sigma[0], 30.0, 6.0
    elif case == "pairs of equal classes":
        texts[1::2], mu[1::2], sigma[1::2] = texts[::2], mu[::2], sigma[::2]
        scale[:, 1::2], shift[:, 1::2] = scale[:, ::2], shift[:, ::2]
    elif case == "near-ties":
        texts[:] = texts[0] * (1 + 1e-15 * rng.integers(-4, 5, size=texts.shape))
        mu[:], sigma[:], scale[:], shift[:] = mu[0], sigma[0], 30.0, 6.0
    elif case in ("few near-ties", "few near-ties of float32"):
        # Of the second kind float32 products get the order wrong.
        step = 1e-15 if case == "few near-ties" else 1e-7
        texts[20:] *= -1.0
        texts[:20] = texts[0] * (1 + step * rng.integers(-4, 5, size=(20, dim)))
        mu[:], sigma[:], scale[:], shift[:] = mu[0], sigma[0], 30.0, 6.0
    elif case == "tiny sigma":
        sigma[::3] = 1e-8
        scale[:, ::3], shift[:, ::3] = 1e8, 2e7
    elif case == "huge sigma":
        sigma[::3] = 1e30
    elif case == "cancelling sums":
        shift[:] = scale * np.float32(0.25) + np.float32(1e-6) * shift
        scale[:, ::5] *= 1e12
        shift[:, ::5] *= 1e12
    elif case == "norms from 1e-30 to 1e30":
        images *= 10.0 ** rng.integers(-30, 31, size=(150, 1))
    elif case == "norms of float32's ends":
        images *= 10.0 ** rng.choice([-44.0, -19.0, 0.0, 19.0, 38.0], size=(150, 1))
    elif case == "tiny coordinates":
        images[:, ::2] *= 1e-42
        texts[:, 1::2] *= 1e-40
    elif case == "long texts":
        texts[::7] *= 1e20
    elif case == "lam 0":
        lam = 0.0
    elif case == "lam 1e6":
        lam = 1e6
    elif case == "not a number":
        shift[3] = np.nan
        scale[5, 10:] = np.inf
    elif case == "zero images":
        images[::2] = 0.0
    similarities = rng.normal(0.25, 0.03, size=(150, k)).astype(np.float32)
    ids = rng.integers(0, 40, size=(150, k))
    return texts, mu, sigma, lam, images, similarities, ids, scale, shift


@pytest.mark.skipif(not score_kernel_available(), reason="the native extension is not built")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "case",
    [
        "random", "equal classes", "pairs of equal classes", "near-ties", "few near-ties",
        "few near-ties of float32", "tiny sigma", "huge sigma", "cancelling sums",
        "norms from 1e-30 to 1e30",
        "norms of float32's ends", "tiny coordinates", "long texts", "lam 0", "lam 1e6",
        "not a number", "zero images",
    ],
)  # fmt: skip
def test_screened_classes_change_no_bit(rng, case, dtype):
    """The winners are those of all classes in float64, for any number of them and any threads."""
    with np.errstate(all="ignore"):
        for classes, dim, k in ((64, 40, 3), (100, 17, 1), (334, 64, 10)):
            texts, mu, sigma, lam, images, similarities, ids, scale, shift = screening_case(
                rng, case, classes, dim, k
            )
            images = images.astype(dtype)
            images[~np.isfinite(images)] = 1.0
            scorer = NativeScoreKernel(texts, mu, sigma, lam, 2)
            inner = scorer.internal_scores(images)
            outer = np.zeros_like(inner)
            for j in range(k):
                term = similarities[:, j].astype(np.float64)[:, None] * scale[ids[:, j]]
                outer += term - shift[ids[:, j]]
            outer /= k
            total = inner + lam * outer
            # The first of the smallest, with which nothing that is not a number compares.
            nearest = [first_smallest(row) for row in total]
            rows = np.arange(len(images))
            expected = (total[rows, nearest], nearest, inner[rows, nearest], outer[rows, nearest])
            for threads, kernel in ((1, ""), (3, ""), *((1, name) for name in KERNELS)):
                scorer = NativeScoreKernel(texts, mu, sigma, lam, threads, kernel=kernel)
                np.testing.assert_array_equal(scorer.internal_scores(images), inner)
                found = scorer.winners(images, similarities, ids, tables_of(scale, shift, rng))
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(one, other)


def tables_of(scale, shift, rng):
    """Tables with some of the rows kept from earlier, and the others computed since."""
    order = rng.permutation(len(scale))
    rows = np.stack([scale[order], shift[order]], axis=1)
    kept = int(rng.integers(len(scale) + 1))
    return SimpleNamespace(places=np.argsort(order), kept=rows[:kept].copy(), fresh=rows[kept:])


def first_smallest(row):
    best = 0
    for c in range(1, len(row)):
        if row[c] < row[best]:
            best = c
    return best


def test_contributions_sum_to_the_external_part(rng):
    images, vocabulary, texts, labels = clip_like(rng, 200, 100, 3)
    scorer = make_scorer(vocabulary, texts, images, labels, k=7, lam=0.8)
    scores = scorer.score(images[:50])
    contributions = scorer.contributions(scores)
    assert contributions.shape == (50, 7)
    np.testing.assert_allclose(contributions.sum(1), 0.8 * scores.external, atol=1e-10)


def test_rare_entries_bring_others_into_the_tables(rng):
    images, vocabulary, texts, labels = clip_like(rng, 200, 5000, 3)
    scorer = make_scorer(vocabulary, texts, images, labels, k=3)
    tables = scorer.tables
    first = scorer.score(images[:10])
    assert tables.known == 256
    known = [256]
    for start in range(10, 200, 10):  # rare entries in every batch
        scorer.score(images[start : start + 10])
        known.append(tables.known)
    assert all(count % 256 == 0 for count in known) and known == sorted(known) and known[-1] < 5000
    mu, sigma = scorer.calibration.statistics(vocabulary)
    rows = tables.rows(first.ids)
    np.testing.assert_array_equal(rows[..., 0, :], np.float32(1 / sigma[first.ids]))
    np.testing.assert_array_equal(rows[..., 1, :], np.float32((mu / sigma)[first.ids]))
    tables.fresh[tables.places[first.ids]] = 7  # what is known is not computed again
    tables.require(np.arange(5000))
    assert tables.known == 5000
    right = np.stack([np.float32(1 / sigma), np.float32(mu / sigma)], axis=1)
    right[first.ids] = 7
    np.testing.assert_array_equal(tables.rows(np.arange(5000)), right)


@pytest.mark.parametrize("native", sorted({False, score_kernel_available()}))
def test_equal_classes_give_the_first(rng, native):
    images, vocabulary, texts, _ = clip_like(rng, 60, 50, 1)
    labels = np.zeros(60, dtype=np.int64)
    calibration = calibrate(
        [(images, labels), (images, labels + 1)], np.concatenate([texts, texts]), ["a", "b"]
    )
    search = exact_search(vocabulary, 5, threads=1)
    scores = BlissScorer(search, vocabulary, calibration, native=native).score(images)
    assert (scores.nearest_class == 0).all()


def test_comparison_scores(rng):
    images, _, texts, labels = clip_like(rng, 200, 50, 3)
    calibration = calibrate([(images, labels)], texts)
    exact = images.astype(np.float64) @ texts.astype(np.float64).T
    np.testing.assert_allclose(raw_scores(images, calibration), -exact.max(1), atol=1e-12)
    own = [exact[labels == c, c] for c in range(3)]
    expected = np.min([-(exact[:, c] - own[c].mean()) / (own[c].std() + 1e-8) for c in range(3)], 0)
    np.testing.assert_allclose(label_scores(images, calibration), expected, rtol=1e-9)


def test_what_does_not_fit_is_refused(rng):
    images, vocabulary, texts, labels = clip_like(rng, 60, 50, 2, 16)
    calibration = calibrate([(images, labels)], texts)
    search = exact_search(vocabulary, 5, threads=1)
    with pytest.raises(InvalidInputError, match="lam must be .* got -1"):
        BlissScorer(search, vocabulary, calibration, lam=-1)
    with pytest.raises(InvalidInputError, match="50 x 16 entries, the vocabulary is 49 x 16"):
        BlissScorer(search, vocabulary[:49], calibration)
    other = exact_search(vocabulary[:, :8].copy(), 5, threads=1)
    with pytest.raises(InvalidInputError, match="dimension 16, the vocabulary 8"):
        BlissScorer(other, vocabulary[:, :8], calibration)
    with pytest.raises(InvalidInputError, match="k = 51 .* 50 entries"):
        exact_search(vocabulary, 51)
    with pytest.raises(InvalidInputError, match="dimension 15, the vocabulary has dimension 16"):
        BlissScorer(search, vocabulary, calibration).score(images[:, :15])
