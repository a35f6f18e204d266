"""Detectors and protocols against independent implementations in float64."""

from __future__ import annotations

import numpy as np
import pytest
from bliss_reference import clip_like
from detector_reference import (
    EXPECTED,
    DetectorData,
    expected_knn,
    expected_label,
    expected_mcm,
    expected_neglabel,
)

from bliss_index.errors import CalibrationError, InvalidInputError
from bliss_index.evaluation.bliss import Bliss
from bliss_index.evaluation.detector import ImageBlock, Reference, blocks
from bliss_index.evaluation.detectors import MaximumConceptMatching, NearestImages, NegLabel
from bliss_index.evaluation.paper.protocol_run import evaluate_protocol
from bliss_index.evaluation.paper.protocols import (
    EvaluationProtocol,
    all_but_one,
    find_protocol,
    one_class,
)
from bliss_index.evaluation.registry import DETECTORS, make_detectors
from bliss_index.search import exact_search

CLASSES, K = 5, 7


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(11)
    images, vocabulary, texts, labels = clip_like(rng, 700, 150, CLASSES, 24)
    return images, vocabulary, texts, labels


@pytest.fixture(scope="module")
def reference(data):
    images, vocabulary, texts, labels = data
    search = exact_search(vocabulary, K, threads=1)
    return Reference(texts, images[:400], labels[:400], vocabulary, search)


@pytest.fixture(scope="module")
def known(data):
    images, vocabulary, texts, labels = data
    return DetectorData(images[:400], labels[:400], images[400:], texts, vocabulary, K).wide()


RUNS = [(0,), (2, 4), (0, 1, 3), tuple(range(CLASSES))]


@pytest.mark.parametrize("name", EXPECTED)
def test_detectors_equal_their_formulas(data, known, reference, name):
    images = data[0]
    fitted = make_detectors(name)[0].fit(reference)
    found = np.concatenate(
        [fitted.score_runs(block, RUNS) for _, block in blocks(images[400:], reference, 64)], axis=1
    )
    for row, run in enumerate(RUNS):
        np.testing.assert_allclose(found[row], EXPECTED[name](known, run), atol=2e-5, rtol=2e-5)


def test_neglabel_equals_its_formula(data, known, reference):
    settings = NegLabel(negatives=0.4, group_size=21, temperature=0.05)
    fitted = settings.fit(reference)
    run = (1, 3)
    groups = fitted.groups(run)
    assert groups.shape == (3, 20)
    # The negatives are the entries farthest from the labels.
    distance = np.quantile(
        -(known.vocabulary @ known.texts[list(run)].T), settings.quantile, axis=1
    )
    farthest = set(np.argsort(-distance)[:60].tolist())
    assert set(groups.ravel().tolist()) == farthest
    found = fitted.score_runs(ImageBlock(data[0][400:], reference), [run])[0]
    np.testing.assert_allclose(found, expected_neglabel(known, run, groups, 0.05), atol=1e-5)


def test_other_settings(data, known, reference):
    images = data[0]
    everything = tuple(range(CLASSES))
    found = MaximumConceptMatching(temperature=0.1).fit(reference).score(images[400:])
    np.testing.assert_allclose(found, expected_mcm(known, everything, 0.1), atol=1e-9)
    found = NearestImages(neighbours=1).fit(reference).score(images[400:])
    np.testing.assert_allclose(found, expected_knn(known, everything, 1), atol=1e-6)
    assert (Bliss(lam=0.0).fit(reference).score(images[400:]) == pytest.approx(
        expected_label(known, everything)
    ))  # fmt: skip


@pytest.mark.parametrize("make", [one_class, all_but_one])
def test_a_protocol_is_its_runs(data, known, reference, make):
    images, _, _, labels = data
    protocol = make(CLASSES)
    report = evaluate_protocol(
        reference, images[400:], labels[400:], protocol, make_detectors("bliss,raw")
    )
    for name in ("bliss", "raw"):
        aurocs = []
        for run in protocol.runs:
            scores = EXPECTED[name](known, run)
            anomaly = ~np.isin(labels[400:], run)
            high, low = scores[anomaly][:, None], scores[~anomaly][None, :]
            aurocs.append(np.mean((high > low) + 0.5 * (high == low)))
        assert report.per_run[name]["auroc"] == pytest.approx(aurocs, abs=1e-4)
        assert report.detectors[name]["auroc"].mean == pytest.approx(np.mean(aurocs), abs=1e-4)
        assert report.detectors[name]["auroc"].deviation == pytest.approx(np.std(aurocs), abs=1e-4)
    table = report.to_markdown()
    assert f"| bliss | {100 * report.detectors['bliss']['auroc'].mean:.2f} ±" in table
    assert report.to_json()["runs"] == len(protocol.runs)


def test_neglabel_at_a_temperature_that_leaves_one_term(data, reference):
    """Exponentials of everything but the largest similarity vanish; nothing may be lost or NaN."""
    images, vocabulary, texts = (a.astype(float) for a in data[:3])
    fitted = NegLabel(negatives=1.0, group_size=150, temperature=1e-4).fit(reference)
    found = fitted.score(data[0][400:])
    gap = (images[400:] @ vocabulary.T).max(1) - (images[400:] @ texts.T).max(1)
    clear = np.abs(gap) > 2e-3
    assert clear.sum() > 200
    np.testing.assert_allclose(found[clear], gap[clear] > 0, atol=1e-6)


def test_settings_by_name(data, reference):
    images = data[0]
    made = make_detectors("bliss:lam=1.5:k=3, mcm:temperature=0.1,bliss,knn", lam=0.25)
    assert [d.name for d in made] == ["bliss:lam=1.5:k=3", "mcm:temperature=0.1", "bliss", "knn"]
    assert made[0] == Bliss(1.5, 3, "bliss:lam=1.5:k=3") and made[2] == Bliss(0.25)
    few = Reference(
        reference.class_embeddings, reference.images, reference.labels, reference.vocabulary,
        exact_search(reference.vocabulary, 3, threads=1),
    )  # fmt: skip
    expected = Bliss(1.5).fit(few).score(images[400:])
    np.testing.assert_allclose(made[0].fit(reference).score(images[400:]), expected, rtol=1e-12)
    with pytest.raises(InvalidInputError, match="'bliss' has no setting 'tau'; it has lam, k"):
        make_detectors("bliss:tau=1")
    with pytest.raises(
        InvalidInputError, match="setting 'k' of .*'bliss' must be of type int.*'x'"
    ):
        make_detectors("bliss:k=x")
    with pytest.raises(InvalidInputError, match="both at least 0, got -1.0 and 0"):
        make_detectors("bliss:lam=-1")
    with pytest.raises(InvalidInputError, match="k must lie between 1 and the search's 7, got 8"):
        Bliss(k=8).fit(reference).score(images[:2])


def test_classes_that_are_never_normal_need_no_images(data, reference):
    images, _, texts, labels = data
    kept = np.where(labels[:400] == 2, -1, labels[:400])
    without = Reference(texts, images[:400], kept, reference.vocabulary, reference.search)
    protocol = EvaluationProtocol("two", CLASSES, ((0, 4), (1, 4), (3,)))
    names = ",".join(DETECTORS)
    found = evaluate_protocol(without, images[400:], labels[400:], protocol, make_detectors(names))
    whole = evaluate_protocol(
        reference, images[400:], labels[400:], protocol, make_detectors(names)
    )
    assert found.per_run == whole.per_run
    assert (found.classes, found.vocabulary, found.k) == (4, 150, K)
    assert found.calibration_images == int((labels[:400] != 2).sum())
    with pytest.raises(CalibrationError, match=r"'2' \(0\)"):
        evaluate_protocol(without, images[400:], labels[400:], one_class(CLASSES), [Bliss()])


def test_what_does_not_fit(data, reference):
    images, _, texts, labels = data
    with pytest.raises(InvalidInputError, match="unknown detector 'magic'; known are bliss, label"):
        make_detectors("bliss,magic")
    with pytest.raises(InvalidInputError, match="unknown protocol 'cifar'; known are cifar10-one"):
        find_protocol("cifar")
    with pytest.raises(InvalidInputError, match="is for 10 classes, there are 5"):
        evaluate_protocol(reference, images, labels, find_protocol("cifar10-9-vs-1"), [Bliss()])
    with pytest.raises(InvalidInputError, match="699 labels for 700 test images"):
        evaluate_protocol(reference, images, labels[:699], one_class(5), [Bliss()])
    with pytest.raises(InvalidInputError, match="detector 'bliss' needs images; none were given"):
        Bliss().fit(Reference(texts))
    with pytest.raises(InvalidInputError, match="look.* for 500 neighbours"):
        NearestImages(neighbours=500).fit(reference).score(images)
    with pytest.raises(InvalidInputError, match="labels lie between 0 and 4, classes are 0 to 3"):
        Reference(texts[:4], images, labels)
    with pytest.raises(InvalidInputError, match="need as many labels, got none"):
        Reference(texts, images)
