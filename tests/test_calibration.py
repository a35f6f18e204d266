"""Moments, their merge, and calibrations on disk."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from bliss_reference import clip_like, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from bliss_index.calibration import Calibration, ClassMoments, calibrate
from bliss_index.calibration.variances import similarity_sums
from bliss_index.errors import (
    CalibrationError,
    CorruptStoreError,
    InvalidInputError,
    OutputError,
    StoreError,
)
from bliss_index.search.native.backend import load_native
from bliss_index.store import ModelIdentity


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 300),
    cuts=st.lists(st.integers(0, 300), max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_moments_of_any_split_equal_the_whole(count, cuts, order):
    rng = np.random.default_rng(count)
    dim = 24
    images = unit(rng.normal(size=(count, dim)) + 2 * rng.normal(size=dim))
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [images[a:b] for a, b in pairwise(edges)]
    order.shuffle(parts)
    merged = ClassMoments.empty(dim)
    for part in parts:
        merged = merged.merge(ClassMoments.of(part))
    assert merged.count == count
    assert relative(merged.mean, images.mean(0)) < 1e-12
    centred = images - images.mean(0)
    if count < dim:
        assert merged.scatter is None
        assert merged.images is not None
        np.testing.assert_array_equal(np.sort(merged.images, 0), np.sort(images, 0))
    else:
        assert merged.scatter is not None
        assert relative(merged.scatter, centred.T @ centred) < 1e-12
    assert merged.variance == pytest.approx((centred**2).sum() / count, rel=1e-12)


@pytest.mark.parametrize("count", [2, 5, 31, 32, 33, 500])
def test_statistics_equal_direct_similarities(rng, count):
    images, entries, _, _ = clip_like(rng, count, 700, 1, 32, np.float64)
    mu, sigma = ClassMoments.of(images).statistics(entries)
    similarity = images @ entries.T
    np.testing.assert_allclose(mu, similarity.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(sigma, similarity.std(0) + 1e-8, rtol=1e-6)


def test_statistics_of_an_entry_do_not_depend_on_the_others(rng):
    images, entries, _, _ = clip_like(rng, 300, 700, 1, 32, np.float64)
    moments = ClassMoments.of(images)
    mu, sigma = moments.statistics(entries)
    for chosen in ([5], [699, 3], list(range(100, 400))):
        some_mu, some_sigma = moments.statistics(entries[chosen])
        np.testing.assert_array_equal(some_mu, mu[chosen])
        np.testing.assert_array_equal(some_sigma, sigma[chosen])


NATIVE = load_native()[0]
KERNELS = [] if NATIVE is None else NATIVE.kernel_names()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dim", [3, 24, 67])
def test_compiled_sums_equal_those_of_numpy(rng, kernel, dtype, dim):
    """For classes of one image, of fewer and of more than there are coordinates."""
    images, entries, _, _ = clip_like(rng, 400, 1100, 1, dim, np.float64)
    counts = (1, 2, 31, 32, 33, dim - 1, dim, 300)
    moments = [ClassMoments.of(images[: max(1, count)]) for count in counts]
    texts = entries.astype(dtype)
    sums = similarity_sums(moments, texts, threads=3, kernel=kernel)
    for c, one in enumerate(moments):
        kept = images[: one.count]
        products = texts.astype(np.float64) @ kept.T
        np.testing.assert_allclose(sums[0][:, c], products.mean(1), rtol=1e-12, atol=1e-14)
        expected = ((products - products.mean(1)[:, None]) ** 2).sum(1)
        np.testing.assert_allclose(sums[1][:, c], expected, rtol=1e-9, atol=1e-14)
    by_numpy = similarity_sums(moments, texts, native=False)
    for compiled, plain in zip(sums, by_numpy, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-9, atol=1e-14)
    # Nothing depends on threads, the instructions, or the other texts and classes.
    for others in ({"threads": 1}, {"kernel": KERNELS[-1]}):
        for one, same in zip(sums, similarity_sums(moments, texts, **others), strict=True):
            np.testing.assert_array_equal(one, same)
    some = similarity_sums(moments[3:6], texts[[1099, 4]], threads=2, kernel=kernel)
    for one, part in zip(sums, some, strict=True):
        np.testing.assert_array_equal(part, one[[1099, 4], 3:6])


def test_deviations_survive_a_large_common_mean(rng):
    # All images nearly equal: the deviation is what is left of numbers close to 1.
    images = unit(np.ones(16) + 1e-4 * rng.normal(size=(400, 16)))
    entries = unit(rng.normal(size=(50, 16)))
    _, sigma = ClassMoments.of(images).statistics(entries)
    np.testing.assert_allclose(sigma, (images @ entries.T).std(0) + 1e-8, rtol=1e-6)


def test_batches_by_class(rng):
    images, _, texts, labels = clip_like(rng, 600, 10, 4, 16)
    labels[:50] = -1
    whole = calibrate([(images, labels)], texts, ["a", "b", "c", "d"])
    split = calibrate(((images[i : i + 97], labels[i : i + 97]) for i in range(0, 600, 97)), texts)
    assert whole.images == 550
    for one, other in zip(whole.moments, split.moments, strict=True):
        assert one.count == other.count
        assert relative(other.scatter, one.scatter) < 1e-12


def test_too_few_images_are_refused(rng):
    images, _, texts, labels = clip_like(rng, 60, 10, 3, 16)
    labels = np.where(labels == 2, 1, labels)
    with pytest.raises(
        CalibrationError, match=r"1 of 3 classes .* 2 calibration images: 'c' \(0\)"
    ):
        calibrate([(images, labels)], texts, ["a", "b", "c"])
    labels[0] = 2
    with pytest.raises(CalibrationError, match=r"'c' \(1\).*add images .* or leave"):
        calibrate([(images, labels)], texts, ["a", "b", "c"])
    images[1:4], labels[1:4] = images[0], 2
    with pytest.raises(CalibrationError, match="the 4 calibration images of class 'c' are all the"):
        calibrate([(images, labels)], texts, ["a", "b", "c"])


def test_what_does_not_fit_is_refused(rng):
    images, _, texts, labels = clip_like(rng, 60, 10, 3, 16)
    with pytest.raises(InvalidInputError, match="59 labels for 60 images"):
        calibrate([(images, labels[:59])], texts)
    with pytest.raises(InvalidInputError, match=r"\(60, 15\), class embeddings dimension 16"):
        calibrate([(images[:, :15], labels)], texts)
    with pytest.raises(InvalidInputError, match="between 3 and 5, there are 3 classes"):
        calibrate([(images, labels + 3)], texts)
    with pytest.raises(InvalidInputError, match="class 'a' is listed more than once"):
        calibrate([(images, labels)], texts, ["a", "b", "a"])
    with pytest.raises(InvalidInputError, match="2 classes with embeddings of shape"):
        calibrate([(images, labels)], texts, ["a", "b"])
    with pytest.raises(InvalidInputError, match="dimension 16 and 15 cannot be merged"):
        ClassMoments.of(images).merge(ClassMoments.of(images[:, :15]))


@pytest.fixture
def calibration(rng):
    images, _, texts, labels = clip_like(rng, 100, 10, 3, 16)
    labels[:90] = np.where(labels[:90] == 2, 0, labels[:90])  # the third class has few images
    labels[95:] = 2
    return calibrate(
        [(images, labels)],
        texts,
        ["a", "ü", "c"],
        model=ModelIdentity("ViT-B-32", "openai"),
        attributes={"images": "hash"},
    )


def test_written_and_read(calibration, tmp_path):
    calibration.save(tmp_path / "c")
    found = Calibration.load(tmp_path / "c")
    assert found.classes == calibration.classes
    assert found.model == calibration.model
    assert found.attributes == calibration.attributes
    assert found.content_hash == calibration.content_hash
    assert {m.images is None for m in found.moments} == {True, False}
    entries = np.random.default_rng(0).normal(size=(40, 16))
    for one, other in zip(found.statistics(entries), calibration.statistics(entries), strict=True):
        np.testing.assert_array_equal(one, other)
    (path,) = (tmp_path / "c").glob("classes.*.arrow")
    before = path.read_bytes()
    calibration.save(tmp_path / "c")
    assert path.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [path.name, "manifest.json"]


def test_selected_classes(calibration):
    chosen = calibration.select([2, 0])
    assert chosen.classes == ("c", "a")
    np.testing.assert_array_equal(chosen.class_embeddings, calibration.class_embeddings[[2, 0]])


def test_damage_is_noticed(calibration, tmp_path):
    folder = tmp_path / "c"
    calibration.save(folder)
    (classes,) = folder.glob("classes.*.arrow")
    whole = classes.read_bytes()
    classes.write_bytes(whole[:-100])
    with pytest.raises(CorruptStoreError, match=r"classes.*arrow has SHA-256 .* calibrate again"):
        Calibration.load(folder)
    classes.unlink()
    with pytest.raises(CorruptStoreError, match=r"classes.*arrow cannot be read"):
        Calibration.load(folder)
    classes.write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 9}))
    with pytest.raises(CorruptStoreError, match="format version 9, this version reads 2"):
        Calibration.load(folder)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "dim": 15}))
    with pytest.raises(CorruptStoreError, match="holds 16 values, not 15"):
        Calibration.load(folder)
    with pytest.raises(StoreError, match="is not a calibration: it has no manifest.json"):
        Calibration.load(tmp_path)


def test_outputs_that_are_something_else(calibration, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match=r"not a calibration \(it holds 'letter.txt'\)"):
        calibration.save(tmp_path)
    with pytest.raises(OutputError, match=r"cannot write .*letter.txt"):
        calibration.save(tmp_path / "letter.txt" / "c")
