"""Shrunken deviations: against the formula in float64, on every path, and unchanged without."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from bliss_reference import clip_like, mean_variances, reference_scores, shrunken_deviation, unit
from bulk_fixtures import MODEL, make_job, outputs
from command import run

from bliss_index import BlissDetector
from bliss_index.calibration import Calibration, calibrate
from bliss_index.calibration.advice import FEW_IMAGES, MEASURED, SHRINKAGE, few_images_warning
from bliss_index.calibration.moments import SIGMA_FLOOR, ClassMoments
from bliss_index.calibration.variances import similarity_sums
from bliss_index.errors import (
    CalibrationError,
    CalibrationWarning,
    CorruptStoreError,
    InvalidInputError,
)
from bliss_index.evaluation.bliss import Bliss
from bliss_index.evaluation.detector import Reference
from bliss_index.report.explanation import explain_image
from bliss_index.scoring import run_job
from bliss_index.scoring.native_kernel import score_kernel_available
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.thresholds import deal, held_out_scores
from bliss_index.search import exact_search

PATHS = ["numpy", "tensors", *(["native"] if score_kernel_available() else [])]
EXACT = {"rtol": 1e-6, "atol": 1e-6}
K, LAM = 7, 0.7


def data(counts, dim=24, entries=300, seed=3):
    """Calibration images of classes of these sizes, labels, vocabulary, texts, test images."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    images, vocabulary, texts, _ = clip_like(rng, 400, entries, len(counts), dim, np.float64)
    centres = images[: len(counts)]
    normal = unit(centres[labels] + 0.3 * rng.normal(size=(labels.size, dim)) / dim**0.5)
    return normal, labels, vocabulary, texts, images


def scorer_of(path, vocabulary, calibration, lam=LAM):
    if path == "tensors":
        from test_device_scoring import OnTensors

        from bliss_index.scoring.device_scorer import DeviceScorer

        return DeviceScorer(OnTensors(vocabulary, K), vocabulary, calibration, lam=lam)
    search = exact_search(vocabulary, K, threads=1)
    return BlissScorer(search, vocabulary, calibration, lam=lam, native=path == "native")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shrinkage", [0, 0.5, 10])
@pytest.mark.parametrize("counts", [(2, 3, 50), (60,), (2,), (1, 5, 40), (1, 1, 1)])
def test_scores_equal_the_formulas(path, shrinkage, counts):
    if not shrinkage and min(counts) < 2:
        pytest.skip("the paper's deviations need two images")
    normal, labels, vocabulary, texts, images = data(counts)
    calibration = calibrate([(normal, labels)], texts, shrinkage=shrinkage)
    found = scorer_of(path, vocabulary, calibration).score(images)
    expected = reference_scores(
        images, vocabulary, texts, normal, labels, k=K, lam=LAM, shrinkage=shrinkage
    )
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.nearest_class, expected.nearest_class)
    # Without shrinkage a deviation of two images may be tiny, and tables are kept in float32.
    near = EXACT if shrinkage else {"rtol": 1e-5, "atol": 1e-5}
    for name in ("anomaly", "internal", "external"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), **near)


@pytest.mark.parametrize("counts", [(2, 3, 50), (1, 5, 40), (1, 1, 1)])
def test_deviations_equal_the_formula(counts):
    normal, labels, vocabulary, texts, _ = data(counts)
    calibration = calibrate([(normal, labels)], texts, shrinkage=4)
    prior = calibration.mean_variances(vocabulary)
    tau = mean_variances(vocabulary, normal, labels, len(counts))
    np.testing.assert_allclose(prior, tau, rtol=1e-9)
    _, sigma = calibration.statistics(vocabulary, prior)
    _, on_labels = calibration.label_statistics(prior)
    for c in range(len(counts)):
        own = normal[labels == c]
        expected = shrunken_deviation(own @ vocabulary.T, tau[c], 4)
        np.testing.assert_allclose(sigma[:, c], expected, rtol=1e-6)
        expected = shrunken_deviation(own @ texts[c : c + 1].T, tau[c], 4)
        np.testing.assert_allclose(on_labels[c], expected[0], rtol=1e-6)
    with pytest.raises(InvalidInputError, match=r"prior=calibration.mean_variances\(vocabulary\)"):
        calibration.statistics(vocabulary)


def test_without_shrinkage_not_a_bit_changes():
    normal, labels, vocabulary, texts, _ = data((5, 90))
    calibration = calibrate([(normal, labels)], texts, ["a", "b"], model=MODEL)
    mu, sigma = calibration.statistics(vocabulary)
    digest = hashlib.sha256(json.dumps([MODEL.to_json(), ["a", "b"]], sort_keys=True).encode())
    digest.update(texts.tobytes())
    means, squares = similarity_sums(calibration.moments, vocabulary)
    np.testing.assert_array_equal(mu, means)
    for c, moments in enumerate(calibration.moments):
        before = np.sqrt(squares[:, c] / moments.count) + SIGMA_FLOOR
        np.testing.assert_array_equal(sigma[:, c], before)
        digest.update(str(moments.count).encode())
        kept = moments.scatter if moments.images is None else moments.images
        digest.update(moments.mean.tobytes() + np.ascontiguousarray(kept).tobytes())
    assert calibration.content_hash == digest.hexdigest()


def test_it_belongs_to_the_calibrations_identity_and_files(tmp_path):
    normal, labels, vocabulary, texts, images = data((1, 30))
    calibration = calibrate([(normal, labels)], texts, shrinkage=2.5)
    calibration.save(tmp_path / "c")
    found = Calibration.load(tmp_path / "c")
    assert found.shrinkage == 2.5
    assert found.content_hash == calibration.content_hash
    assert found.content_hash != replace(calibration, shrinkage=2.0).content_hash
    assert found.select([1]).shrinkage == 2.5
    one, other = (scorer_of("numpy", vocabulary, c).score(images) for c in (found, calibration))
    np.testing.assert_array_equal(one.anomaly, other.anomaly)
    manifest = tmp_path / "c" / "manifest.json"
    values = json.loads(manifest.read_text())
    for bad in ("much", True, -1, float("nan")):
        manifest.write_text(json.dumps({**values, "shrinkage": bad}))
        with pytest.raises(CorruptStoreError, match="shrinkage"):
            Calibration.load(tmp_path / "c")
    calibrate([(normal[labels == 1], labels[labels == 1] - 1)], texts[1:]).save(tmp_path / "c")
    values = json.loads(manifest.read_text())
    del values["shrinkage"]  # as the first calibrations were written
    manifest.write_text(json.dumps(values))
    assert Calibration.load(tmp_path / "c").shrinkage == 0


def test_what_cannot_be_shrunk_is_refused():
    normal, labels, vocabulary, texts, _ = data((1, 3))
    with pytest.raises(CalibrationError, match=r"'0' \(1\).*calibrate --shrinkage 10.*or leave"):
        calibrate([(normal, labels)], texts)
    with pytest.raises(CalibrationError, match=r"no calibration images: '1' \(0\)"):
        calibrate([(normal, np.where(labels == 1, -1, labels))], texts, shrinkage=1)
    with pytest.raises(CalibrationError, match="all 3 calibration images are the same"):
        calibrate([(normal[[0, 0, 0]], np.array([0, 1, 1]))], texts, shrinkage=1)
    for bad in (-1, float("nan"), float("inf"), "2", True):
        with pytest.raises(InvalidInputError, match="shrinkage must be a finite number"):
            calibrate([(normal, labels)], texts, shrinkage=bad)
    # Copies of one image say as little as the image.
    twice = calibrate([(normal[[0, 0, *range(1, 4)]], labels[[0, 0, 1, 2, 3]])], texts, shrinkage=1)
    assert (twice.mean_variances(vocabulary) > 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_scores_do_not_depend_on_batches(path):
    normal, labels, vocabulary, texts, images = data((2, 3, 50))
    calibration = calibrate([(normal, labels)], texts, shrinkage=5)
    whole = scorer_of(path, vocabulary, calibration).score(images)
    fresh = scorer_of(path, vocabulary, calibration)
    parts = [fresh.score(images[a:b]) for a, b in pairwise([0, 1, 3, 17, 300, 400])]
    for name in ("nearest_class", "ids", "similarities"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))
    joined = np.concatenate([part.anomaly for part in parts])
    if path == "tensors":
        np.testing.assert_allclose(joined, whole.anomaly, rtol=1e-12, atol=1e-12)
    else:
        np.testing.assert_array_equal(joined, whole.anomaly)


def test_held_out_scores_are_shrunk():
    normal, labels, vocabulary, texts, _ = data((2, 4, 30))
    search = exact_search(vocabulary, K, threads=1)
    found = held_out_scores(
        normal, labels, texts, vocabulary, search, lam=LAM, folds=4, seed=2, shrinkage=3
    )
    fold_of = deal(labels, 3, 4, 2, remaining=1)
    for fold in range(4):
        held = fold_of == fold
        expected = reference_scores(
            normal[held], vocabulary, texts, normal[~held], labels[~held], k=K, lam=LAM,
            shrinkage=3,
        )  # fmt: skip
        np.testing.assert_allclose(found[held], expected.anomaly, **EXACT)
    with pytest.raises(CalibrationError, match="class 0 has 2 images.*every class needs 3"):
        held_out_scores(normal, labels, texts, vocabulary, search)
    with pytest.raises(CalibrationError, match="has 1 images.*at least 1 .*every class needs 2"):
        deal(np.array([0, 1, 1, 1]), 2, 3, remaining=1)


def test_jobs_and_explanations(tmp_path):
    job = make_job(tmp_path)
    paper = Calibration.load(job.calibration)
    shrunk = replace(paper, shrinkage=6.0)
    run_job(job.images, tmp_path / "paper", job.settings())
    shrunk.save(job.calibration)
    for name, more in (("a", {}), ("b", {"search": "torch"}), ("c", {"threads": 2})):
        run_job(job.images, tmp_path / name, job.settings(**more))
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b") == outputs(tmp_path / "c")
    assert outputs(tmp_path / "a") != outputs(tmp_path / "paper")
    found = explain_image(tmp_path / "a", "image 3")
    total = found.internal_score + found.lam * found.external_score
    assert found.anomaly_score == pytest.approx(total)
    pulls = sum(entry.contribution for entry in found.entries)
    assert pulls == pytest.approx(found.lam * found.external_score)


def test_the_detector_and_the_evaluation_take_it():
    normal, labels, vocabulary, texts, images = data((1, 12, 15))
    expected = reference_scores(
        images, vocabulary, texts, normal, labels, k=K, lam=LAM, shrinkage=8
    ).anomaly
    detector = BlissDetector(vocabulary, texts, k=K, lam=LAM, shrinkage=8).fit(normal, labels)
    np.testing.assert_allclose(detector.anomaly_score(images), expected, **EXACT)
    assert detector.get_params()["shrinkage"] == 8
    search = exact_search(vocabulary, K, threads=1)
    fitted = Bliss(lam=LAM, shrinkage=8.0).fit(
        Reference(texts, normal, labels, vocabulary, search)
    )  # fmt: skip
    np.testing.assert_allclose(fitted.score(images), expected, **EXACT)
    with pytest.raises(InvalidInputError, match="shrinkage must be"):
        Bliss(shrinkage=-1)


def test_few_images_are_warned_of_once():
    normal, labels, vocabulary, texts, _ = data((FEW_IMAGES - 1, FEW_IMAGES, 30))
    text = rf"1 of 3 classes have fewer than 10 .*: '0' \(9\)\..*shrinkage={SHRINKAGE}\).*AUROC"
    with pytest.warns(CalibrationWarning, match=text) as caught:
        BlissDetector(vocabulary, texts, threshold=0).fit(normal, labels)
    assert len(caught) == 1
    assert few_images_warning(calibrate([(normal, labels)], texts, shrinkage=1)) is None
    enough = labels > 0
    assert few_images_warning(calibrate([(normal[enough], labels[enough] - 1)], texts[1:])) is None


def test_the_warnings_figures_are_those_of_the_benchmark():
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "few_images.json"
    sets = json.loads(path.read_text())["sets"]
    for (title, count), shown in MEASURED.items():
        found = sets[title][str(count)]["auroc"]["6 normal"]
        assert shown == tuple(round(100 * found[n]["mean"], 1) for n in ("0", str(SHRINKAGE)))


def test_moments_of_no_images_have_no_variance():
    assert ClassMoments.empty(3).mean_variance(np.eye(3)) == 0


def test_the_command(tmp_path, monkeypatch):
    """Calibrate with one image of a class, find thresholds, score, explain, by the commands."""
    job = make_job(tmp_path)
    normal, labels, vocabulary, texts, _ = data((1, 20, 30), dim=16, entries=80)
    from bulk_fixtures import write_images, write_text

    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "normal", normal.astype(np.float32), 30)
    write_text(tmp_path / "names", texts.astype(np.float32))
    write_text(tmp_path / "words", vocabulary.astype(np.float32))
    names = np.array(["word 0", "word 1", "word 2"])
    (tmp_path / "labels.txt").write_text("\n".join(names[labels]))

    calibrating = ["calibrate", "normal", "--labels", "labels.txt", "--classes", "names",
                   "--out", "shrunk"]  # fmt: skip
    _, err = run(*calibrating, code=1)
    assert "--shrinkage 10" in err
    out, err = run(*calibrating, "--shrinkage", 10, "--json")
    assert json.loads(out)["shrinkage"] == 10
    assert "fewer than" not in err
    assert json.loads(run("info", "shrunk", "--json")[0])["shrinkage"] == 10
    run("score", job.images, "--corpus", "words", "--calibration", "shrunk", "--out", "scores")
    images = np.concatenate([
        table.column("anomaly_score").to_numpy() for table in _tables(tmp_path / "scores")
    ])  # fmt: skip
    from bliss_index.store import EmbeddingStore

    stored = {
        name: EmbeddingStore.open(tmp_path / name).embeddings("float64")
        for name in ("images", "words", "names", "normal")
    }
    expected = reference_scores(
        stored["images"], stored["words"], stored["names"], stored["normal"], labels,
        k=10, lam=0.5, shrinkage=10,
    )  # fmt: skip
    np.testing.assert_allclose(images, expected.anomaly, rtol=1e-5, atol=1e-5)
    shown = json.loads(run("explain", "scores", "image 5", "--json")[0])
    assert shown["anomaly_score"] == pytest.approx(expected.anomaly[5], rel=1e-5)
    _, err = run("calibrate", "images", "--classes", "names", "--assign", "--out", "assigned")
    assert ("fewer than 10" in err) == (min(_counts(tmp_path / "assigned")) < 10)


def _counts(path):
    return [moments.count for moments in Calibration.load(path).moments]


def _tables(path):
    import pyarrow.parquet as pq

    return [pq.read_table(p) for p in sorted(path.glob("*.parquet"))]
