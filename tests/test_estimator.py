"""BlissDetector in notebooks and beside scikit-learn: names, words, tables, conventions."""

from __future__ import annotations

import html
import re

import numpy as np
import pyarrow as pa
import pytest
from bliss_reference import clip_like
from bulk_fixtures import MODEL

import bliss_index
from bliss_index import BlissDetector, EmbeddingStore, StoreWriter, exact_search
from bliss_index.calibration import Calibration
from bliss_index.devices import find_gpu
from bliss_index.errors import BlissError, InvalidInputError, NotFittedError
from bliss_index.report.groups import groups
from bliss_index.scoring.scorer import BlissScorer

CLASSES = ["cat", "dog", "<b>cow"]
WORDS = [f"word {i}" for i in range(79)] + ["<script>"]


@pytest.fixture(scope="module")
def data():
    return clip_like(np.random.default_rng(4), 300, 80, 3, 16)


@pytest.fixture(scope="module")
def fitted(data):
    images, vocabulary, texts, labels = data
    detector = BlissDetector(vocabulary, texts, class_names=CLASSES, entry_names=WORDS, k=5)
    return detector.fit(images[:200], [CLASSES[c] for c in labels[:200]])


def test_names_with_arrays_give_what_numbers_give(data, fitted):
    images, vocabulary, texts, labels = data
    plain = BlissDetector(vocabulary, texts, k=5).fit(images[:200], labels[:200])
    np.testing.assert_array_equal(fitted.anomaly_score(images), plain.anomaly_score(images))
    assert fitted.classes_.tolist() == CLASSES and plain.classes_.tolist() == ["0", "1", "2"]
    assert plain.explain(images[:1]).entries[0, 0].startswith("entry ")
    for more, message in (
        ({"class_names": CLASSES[:2]}, "class_names must be one for each of the 3 rows"),
        ({"class_names": ["a", "a", "b"]}, "class_names must be different"),
        ({"entry_names": ["a"]}, "entry_names must be one for each of the 80 rows"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            BlissDetector(vocabulary, texts, k=5, **more).fit(images, labels)
    with pytest.raises(InvalidInputError, match="y names 1 classes .*'horse'"):
        fitted.fit(images, ["horse"] * 300)


def test_names_are_for_arrays_only(data, tmp_path):
    images, vocabulary, texts, labels = data
    with StoreWriter(tmp_path / "c", kind="text", model=MODEL, dim=16) as writer:
        writer.append(CLASSES, texts, texts=CLASSES)
    detector = BlissDetector(vocabulary, tmp_path / "c", class_names=CLASSES, k=5)
    with pytest.raises(InvalidInputError, match="class_names are for arrays"):
        detector.fit(images, labels)


def test_an_explanation_is_words_and_a_table(data, fitted):
    images, vocabulary, _, _ = data
    found = fitted.explain(images[200:240])
    table = found.to_arrow()
    assert len(found) == table.num_rows == 40
    np.testing.assert_array_equal(
        table.column("anomaly_score"), fitted.anomaly_score(images[200:240])
    )
    similarities = images[200:240] @ vocabulary.T
    for row, one in enumerate(table.to_pylist()):
        best = np.argsort(-similarities[row], kind="stable")[:5]
        assert one["entries"] == [WORDS[i] for i in best]
        assert one["nearest_class"] == CLASSES[found.nearest_class[row]]
        assert one["flag"] == (fitted.predict(images[200 + row : 201 + row])[0] == -1)
        total = one["internal_score"] + sum(one["contributions"])
        assert one["anomaly_score"] == pytest.approx(total)
    frame = pytest.importorskip("pandas") and found.to_pandas()
    assert frame.columns.tolist() == table.column_names and len(frame) == 40
    shown = found._repr_html_()
    assert "40 images" in shown and shown.count("<tr>") == 21
    assert "<b>" not in shown and "<script>" not in shown
    assert html.escape(found.nearest_names[0]) in shown
    text, pull = found.reasons(3)[0]
    assert abs(pull) == np.abs(found.contributions[3]).max() and text in found.entries[3]
    assert "40 images" in repr(found)


def test_a_plot_shows_what_every_entry_adds(data, fitted):
    pytest.importorskip("matplotlib")
    found = fitted.explain(data[0][:3])
    axes = found.plot(2)
    widths = [bar.get_width() for bar in axes.patches]
    assert sorted(widths) == pytest.approx(sorted(found.contributions[2]))
    assert [t.get_text() for t in axes.get_yticklabels()][-1] == found.reasons(2)[0][0]
    assert found.plot(0, axes) is axes
    with pytest.raises(InvalidInputError, match="between 0 and 2, got 3"):
        found.plot(3)


def test_a_report_of_arrays(data, fitted, tmp_path):
    pytest.importorskip("jinja2")
    images = data[0][200:]
    keys = [f"{i}.png" for i in range(100)]
    summary = fitted.report(images, tmp_path / "mine.html", keys=keys, gallery=100)
    page = html.unescape((tmp_path / "mine.html").read_text())
    assert summary.rows == 100 and "Anomaly scores: <bdi>mine" in page
    flagged = int((fitted.predict(images) == -1).sum())
    assert flagged and f"<dt>flagged</dt><dd>{flagged} (" in page
    best = int(fitted.anomaly_score(images).argmax())
    gallery = page.split("<h2>Most anomalous")[1]
    assert re.search(r'class="key">([^<]+)<', gallery).group(1) == f"{best}.png"
    with pytest.raises(InvalidInputError, match="keys must be 100 different names"):
        fitted.report(images, tmp_path / "no.html", keys=["a"] * 100)


def test_a_report_of_a_store_names_its_bad_rows(data, fitted, tmp_path):
    pytest.importorskip("jinja2")
    with StoreWriter(tmp_path / "i", kind="image", model=MODEL, dim=16) as writer:
        status = ["ok"] * 20
        status[3] = "decode_error"
        writer.append([f"k{i}" for i in range(20)], data[0][:20], status=status)
    summary = fitted.report(EmbeddingStore.open(tmp_path / "i"), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert summary.rows == 20 and "no_embedding: 1" in page and "k3" in page


def test_groups_of_arrays_are_those_of_a_job(job_of_kinds):
    calibration = Calibration.load(job_of_kinds.calibration)
    store = EmbeddingStore.open(job_of_kinds.images)
    corpus = EmbeddingStore.open(job_of_kinds.corpus)
    detector = BlissDetector(
        corpus, calibration.class_embeddings, k=5, threshold=float(np.nextafter(3.5, 0))
    )
    detector.fit(store, np.arange(90) % 3)
    detector._scorer = BlissScorer(  # calibrated as the job was
        exact_search(corpus.embeddings(), 5), corpus.embeddings(), calibration
    )
    found = detector.groups(store)
    expected = groups(job_of_kinds.folder / "scores")
    assert found.flagged == expected.flagged > 40
    for one, other in zip(found.groups, expected.groups, strict=True):
        assert (one.name, one.also, one.images) == (other.name, other.also, other.images)
        assert one.examples == other.examples
        assert one.typical_score == pytest.approx(other.typical_score)


def test_tensors_and_tables(data, fitted):
    torch = pytest.importorskip("torch")
    images = data[0][200:]
    expected = fitted.anomaly_score(images)
    tensor = torch.from_numpy(images.astype(np.float32)).requires_grad_()
    np.testing.assert_allclose(fitted.anomaly_score(tensor), expected, rtol=1e-4, atol=1e-4)
    half = tensor.to(torch.bfloat16)  # of unit norm but for rounding, and with a gradient
    norms = half.detach().double().norm(dim=1)
    assert (norms - 1).abs().max() > 1e-4
    unit = (half.detach().double() / norms[:, None]).numpy()
    for given in (half, half.detach()):
        np.testing.assert_allclose(fitted.anomaly_score(given), fitted.anomaly_score(unit),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip
    words = torch.from_numpy(data[1].astype(np.float32)).to(torch.bfloat16)
    twin = BlissDetector(words, data[2], k=5).fit(data[0], data[3])
    assert np.corrcoef(twin.anomaly_score(images), expected)[0, 1] > 0.99
    with pytest.raises(InvalidInputError, match=r"row\(s\) 0, .* has norm 1\.5"):
        fitted.anomaly_score(1.5 * half)
    zero = half.detach().clone()
    zero[3] = 0
    with pytest.raises(InvalidInputError, match=r"1 of .* row\(s\) 3"):
        fitted.anomaly_score(zero)
    with pytest.raises(InvalidInputError, match="meta"):
        fitted.anomaly_score(tensor.detach().to("meta"))
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(images, columns=[f"x{i}" for i in range(16)])
    twin = BlissDetector(data[1], data[2], k=5).fit(frame, data[3][200:])
    assert twin.feature_names_in_.tolist() == frame.columns.tolist()
    with pytest.raises(InvalidInputError, match="2 columns that fit did not see: y0, y1"):
        twin.predict(frame.rename(columns={"x0": "y0", "x1": "y1"}))
    arrow = pa.table({name: frame[name].to_numpy() for name in frame.columns})
    np.testing.assert_array_equal(twin.anomaly_score(arrow.to_pandas()), twin.anomaly_score(frame))


@pytest.mark.gpu
@pytest.mark.skipif(find_gpu()[0] is None, reason="no GPU")
def test_a_tensor_on_a_gpu(data, fitted):
    torch = pytest.importorskip("torch")
    images = data[0][200:].astype(np.float32)
    found = fitted.anomaly_score(torch.from_numpy(images).cuda())
    np.testing.assert_array_equal(found, fitted.anomaly_score(images))


@pytest.mark.gpu
@pytest.mark.skipif(find_gpu()[0] is None, reason="no GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_step_takes_tensors_of_a_gpu(data, device):
    torch = pytest.importorskip("torch")
    images, vocabulary, texts, labels = (
        given.astype(np.float32) if given.dtype.kind == "f" else given for given in data
    )
    made = []
    for place in (np.asarray, lambda given: torch.from_numpy(given).cuda()):
        detector = BlissDetector(place(vocabulary), place(texts), k=5, device=device)
        detector.fit(place(images[:200]), labels[:200])
        groups = detector.groups(place(images))
        made.append((
            detector.anomaly_score(place(images)), detector.predict(place(images)),
            detector.explain(place(images[:20])).entries, groups.groups,
        ))  # fmt: skip
    for array, tensor in zip(*made, strict=True):
        assert len(array) and len(array) == len(tensor)
        for left, right in zip(array, tensor, strict=True):
            if isinstance(left, np.ndarray):
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right


def test_scikit_learns_conventions(data, fitted):
    base = pytest.importorskip("sklearn.base")
    exceptions = pytest.importorskip("sklearn.exceptions")
    images = data[0]
    assert isinstance(fitted, base.BaseEstimator) and isinstance(fitted, base.OutlierMixin)
    decision = fitted.decision_function(images)
    np.testing.assert_array_equal(decision, fitted.score_samples(images) - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(images) == -1, decision < 0)
    assert fitted.offset_ == -fitted.threshold_
    fresh = base.clone(fitted)
    with pytest.raises(exceptions.NotFittedError) as caught:
        fresh.predict(images)
    assert isinstance(caught.value, (BlissError, NotFittedError, ValueError))
    assert isinstance(caught.value, AttributeError) and "fit(X, y) first" in str(caught.value)


# Of check_estimator's checks those that do not bring X of their own making: X must be of unit norm
# and have the vocabulary's dimension.
APPLICABLE = {
    "check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types",
    "check_estimator_repr", "check_no_attributes_set_in_init", "check_mixin_order",
    "check_parameters_default_constructible", "check_get_params_invariance", "check_set_params",
    "check_do_not_raise_errors_in_init_or_set_param", "check_estimators_unfitted",
}  # fmt: skip


def test_the_applicable_checks_of_scikit_learn(data):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    if not hasattr(checks, "estimator_checks_generator"):
        pytest.skip("this scikit-learn lists its checks otherwise")
    detector = BlissDetector(data[1], data[2][:1], k=5)
    done = set()
    for estimator, check in checks.estimator_checks_generator(detector, legacy=True):
        name = getattr(check, "func", check).__name__
        if name in APPLICABLE:
            check(estimator)
            done.add(name)
    assert len(done) >= 9, sorted(APPLICABLE - done)


def test_without_scikit_learn_the_error_is_ours(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.exceptions", None)
    with pytest.raises(NotFittedError, match="not fitted"):
        BlissDetector().predict(np.eye(3))
    assert bliss_index.BlissDetector is BlissDetector
