"""BlissDetector: the habits of scikit-learn, on arrays and on stores."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from bliss_reference import clip_like, reference_scores, unit

from bliss_index import BlissDetector, EmbeddingStore, StoreWriter, exact_search
from bliss_index.errors import (
    CalibrationError,
    CalibrationWarning,
    InvalidInputError,
    ModelMismatchError,
)
from bliss_index.scoring.thresholds import held_out_scores
from bliss_index.store import ModelIdentity

MODEL = ModelIdentity("ViT-B-32", "openai")


@pytest.fixture
def data(rng):
    return clip_like(rng, 300, 80, 3, 16)


def write(path, rows, *, texts=None, model=MODEL, status=None):
    kind = "image" if texts is None else "text"
    with StoreWriter(path, kind=kind, model=model, dim=16, dtype="float32") as writer:
        keys = [f"row{i}" for i in range(len(rows))]
        writer.append(keys, rows, texts=texts, status=status)
    return EmbeddingStore.open(path)


def test_scores_and_predictions(data):
    images, vocabulary, texts, labels = data
    detector = BlissDetector(vocabulary, texts, k=5, lam=0.7).fit(images[:200], labels[:200])
    scores = detector.anomaly_score(images[200:])
    expected = reference_scores(
        images[200:], vocabulary, texts, images[:200], labels[:200], k=5, lam=0.7
    )
    np.testing.assert_allclose(scores, expected.anomaly, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(detector.score_samples(images[200:]), -scores)
    decision = detector.decision_function(images[200:])
    np.testing.assert_array_equal(decision, -scores - detector.offset_)
    assert detector.offset_ == -detector.threshold_
    np.testing.assert_array_equal(detector.predict(images[200:]), np.where(decision >= 0, 1, -1))
    assert detector.classes_.tolist() == ["0", "1", "2"]


def test_contamination_and_threshold(data):
    images, vocabulary, texts, labels = data
    detector = BlissDetector(vocabulary, texts, k=5, contamination=0.1)
    detector.fit(images, labels)
    held = held_out_scores(images, labels, texts, vocabulary, exact_search(vocabulary, 5))
    assert (held > detector.threshold_).sum() == 29  # of 300; 30 of 301 with a new one
    assert np.isin(detector.threshold_, held)
    detector.set_params(threshold=1e9).fit(images, labels)
    assert detector.threshold_ == 1e9
    assert (detector.predict(images) == 1).all()


def test_parameters_and_clone(data):
    sklearn_base = pytest.importorskip("sklearn.base")
    _, vocabulary, texts, _ = data
    detector = BlissDetector(vocabulary, texts, k=7, lam=0.25)
    assert detector.get_params()["k"] == 7
    twin = sklearn_base.clone(detector)
    assert twin is not detector
    assert (twin.k, twin.lam) == (7, 0.25)
    np.testing.assert_array_equal(twin.vocabulary, vocabulary)
    with pytest.raises(InvalidInputError, match="no parameter 'K'; it has vocabulary, class_emb"):
        detector.set_params(K=3)


def test_stores_and_paths_give_what_arrays_give(data, tmp_path):
    images, vocabulary, texts, labels = data
    names = ["cat", "dog", "cow"]
    corpus = write(tmp_path / "corpus", vocabulary, texts=[f"w{i}" for i in range(80)])
    classes = write(tmp_path / "classes", texts, texts=names)
    write(tmp_path / "images", images)
    by_name = [names[c] for c in labels]
    detector = BlissDetector(corpus, str(classes.path), k=5).fit(tmp_path / "images", by_name)
    expected = BlissDetector(vocabulary, texts, k=5).fit(images, labels).anomaly_score(images)
    np.testing.assert_array_equal(detector.anomaly_score(tmp_path / "images"), expected)
    assert detector.classes_.tolist() == names
    with pytest.raises(InvalidInputError, match="y names 1 classes .*: 'horse'"):
        detector.fit(tmp_path / "images", ["horse", *by_name[1:]])


def test_bad_rows_of_a_store_have_no_score(data, tmp_path):
    images, vocabulary, texts, labels = data
    status = ["ok"] * 300
    status[7] = "undecodable_image"
    store = write(tmp_path / "images", images, status=status)
    detector = BlissDetector(vocabulary, texts, k=5).fit(store, labels)
    scores = detector.anomaly_score(store)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [7]
    assert detector.predict(store)[7] == -1
    assert sum(m.count for m in detector.calibration_.moments) == 299


def test_one_class_needs_no_labels(data):
    images, vocabulary, texts, _ = data
    detector = BlissDetector(vocabulary, texts[:1], k=5).fit(images)
    assert detector.anomaly_score(images).shape == (300,)
    with pytest.raises(InvalidInputError, match="y is needed to tell 3 classes apart"):
        BlissDetector(vocabulary, texts, k=5).fit(images)


def test_explain_gives_parts_and_entries(data):
    images, vocabulary, texts, labels = data
    detector = BlissDetector(vocabulary, texts, k=5).fit(images, labels)
    scores = detector.explain(images[:4])
    assert scores.ids.shape == (4, 5)
    np.testing.assert_array_equal(scores.anomaly, detector.anomaly_score(images[:4]))


def test_predict_flags_no_more_new_images_than_it_says():
    """Over many sets of twelve images a class; their own scores would promise too much."""
    rng = np.random.default_rng(0)
    dim, classes = 12, 3
    vocabulary, texts = unit(rng.normal(size=(60, dim))), unit(rng.normal(size=(classes, dim)))
    centres = rng.normal(size=(classes, dim))

    def draw(count):
        labels = np.arange(count) % classes
        return unit(centres[labels] + 0.7 * rng.normal(size=(count, dim))), labels

    flagged, own = [], []
    for _ in range(30):
        images, labels = draw(36)
        detector = BlissDetector(vocabulary, texts, k=5, contamination=0.1).fit(images, labels)
        scores = detector.anomaly_score(draw(600)[0])
        flagged.append((scores > detector.threshold_).mean())
        own.append((scores > np.quantile(detector.anomaly_score(images), 0.9)).mean())
    assert np.mean(flagged) <= 0.1 < np.mean(own)


def test_thresholds_of_few_images(data):
    images, vocabulary, texts, labels = data
    rows = np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate((2, 2, 20))])
    with pytest.warns(CalibrationWarning) as caught:
        detector = BlissDetector(vocabulary, texts, k=5).fit(images[rows], labels[rows])
    assert len(caught) == 1  # of few images; the third class is held out
    search = exact_search(vocabulary, 5)
    held = labels[rows] == 2
    scores = held_out_scores(images[rows], labels[rows], texts, vocabulary, search, held=held)
    assert detector.threshold_ == np.sort(scores[held])[19]  # 21 x 0.95, rounded up
    rows = rows[:4]
    with pytest.warns(CalibrationWarning) as caught:
        BlissDetector(vocabulary, texts[:2], k=5).fit(images[rows], labels[rows])
    assert len(caught) == 2
    assert "no class has three images" in str(caught[1].message)
    with pytest.warns(CalibrationWarning) as caught:
        BlissDetector(vocabulary, texts[:2], k=5, threshold=1.0).fit(images[rows], labels[rows])
    assert len(caught) == 1
    BlissDetector(vocabulary, texts[:2], k=5, shrinkage=3).fit(images[rows], labels[rows])


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_detector_can_be_pickled_and_copied(data, backend):
    images, vocabulary, texts, labels = data
    twice = np.concatenate([vocabulary, vocabulary[:9]])
    detector = BlissDetector(twice, texts, k=5, backend=backend).fit(images[:200], labels[:200])
    expected = detector.anomaly_score(images)
    pickled = pickle.dumps(detector)
    assert len(pickled) < 6 * twice.nbytes + 100_000  # the vocabulary is in it once, not per part
    for twin in (pickle.loads(pickled), copy.deepcopy(detector)):
        np.testing.assert_array_equal(twin.anomaly_score(images), expected)
        assert twin.offset_ == detector.offset_
    search = exact_search(twice, k=5, backend=backend, threads=1)
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.search(images)[1], search.search(images)[1])
    assert (again.backend, again.size, again.k) == (search.backend, search.size, search.k)


def test_scikit_learn_takes_it_as_an_outlier_detector(data):
    base = pytest.importorskip("sklearn.base")
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer
    from sklearn.utils.validation import check_is_fitted

    images, vocabulary, texts, labels = data
    detector = BlissDetector(vocabulary, texts, k=5)
    assert base.is_outlier_detector(detector)
    assert not base.is_classifier(detector)
    chain = make_pipeline(Normalizer(), detector).fit(images, labels)
    np.testing.assert_allclose(
        chain.score_samples(images), detector.fit(images, labels).score_samples(images), atol=1e-4
    )
    check_is_fitted(detector)
    values = cross_val_score(
        detector, images, labels, cv=StratifiedKFold(3),
        scoring=lambda fitted, X, y: fitted.score_samples(X).mean(),
    )  # fmt: skip
    assert np.isfinite(values).all()


def test_labels_as_tables_and_other_systems_write_them(data, tmp_path):
    images, vocabulary, texts, labels = data
    expected = BlissDetector(vocabulary, texts, k=5).fit(images, labels).anomaly_score(images)
    for y in (labels.astype(float), labels.astype(np.uint8), [str(c) for c in labels]):
        found = BlissDetector(vocabulary, texts, k=5).fit(images, y).anomaly_score(images)
        np.testing.assert_array_equal(found, expected)
    names = ["café", "hot dog", "cow"]
    classes = write(tmp_path / "classes", texts, texts=names)
    written = ["cafe\N{COMBINING ACUTE ACCENT}", " hot  dog", "cow"]
    detector = BlissDetector(vocabulary, classes, k=5).fit(images, [written[c] for c in labels])
    np.testing.assert_array_equal(detector.anomaly_score(images), expected)
    with pytest.raises(InvalidInputError, match=r"y holds 0.5; class numbers are whole, 0 to 2"):
        BlissDetector(vocabulary, texts, k=5).fit(images, np.where(labels == 0, 0.5, labels))


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_table_whose_column_holds_lists(data, library):
    images, vocabulary, texts, labels = data
    fitted = BlissDetector(vocabulary, texts, k=5).fit(images, labels)
    columns = {"key": [str(row) for row in range(len(images))], "embedding": list(images)}
    library = pytest.importorskip(library)
    table = (library.table if library.__name__ == "pyarrow" else library.DataFrame)(columns)
    with pytest.raises(InvalidInputError, match="X is a table whose column 'embedding'") as caught:
        fitted.anomaly_score(table)
    (line,) = re.findall("give (numpy.*)$", str(caught.value))
    matrix = eval(line, {"numpy": np, "X": table})
    np.testing.assert_array_equal(matrix, images)


def test_bad_input(data, tmp_path):
    images, vocabulary, texts, labels = data
    fitted = BlissDetector(vocabulary, texts, k=5).fit(images, labels)
    with pytest.raises(InvalidInputError, match="not fitted; call fit"):
        BlissDetector(vocabulary, texts).anomaly_score(images)
    for rows, message in [
        (images * 2, r"300 of 300 rows of X .* 0, 1, 2, 3, 4 and 295 more; the first has norm 2"),
        (np.where(np.arange(300)[:, None] == 3, 0, images), r"1 of 300 .* row\(s\) 3; .* norm 0"),
        (np.where(np.arange(300)[:, None] == 9, np.nan, images), r"row\(s\) 9; .* norm nan"),
        (images[:, :8], "vocabulary has dimension 16, X has dimension 8"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            fitted.anomaly_score(rows)
    with pytest.raises(InvalidInputError, match=r"y has shape \(299,\), X has 300 rows"):
        fitted.fit(images, labels[:299])
    with pytest.raises(
        InvalidInputError, match="k = 81 is larger than the vocabulary, which has 80"
    ):
        BlissDetector(vocabulary, texts, k=81).fit(images, labels)
    for share in (0.7, 0, 0.0, -0.1):
        with pytest.raises(
            InvalidInputError, match=rf"contamination must lie in \(0, 0.5\], got {share}"
        ):
            BlissDetector(vocabulary, texts, contamination=share).fit(images, labels)
    BlissDetector(vocabulary, texts, contamination=0.5).fit(images, labels)
    for lam in ("0.5", None, True, np.nan):
        with pytest.raises(InvalidInputError, match="lam must be a finite number of at least 0"):
            BlissDetector(vocabulary, texts, k=5, lam=lam).fit(images, labels)
    with pytest.raises(InvalidInputError, match="X must be float16, float32 or float64, got int64"):
        fitted.fit(np.zeros((3, 16), dtype=np.int64), labels)
    with pytest.raises(InvalidInputError, match="vocabulary is missing"):
        BlissDetector(None, texts).fit(images, labels)
    with pytest.raises(CalibrationError, match="'2' "):
        fitted.fit(images, np.minimum(labels, 1))
    other = write(tmp_path / "other", images, model=ModelIdentity("RN50", "openai"))
    corpus = write(tmp_path / "corpus", vocabulary, texts=[f"w{i}" for i in range(80)])
    with pytest.raises(ModelMismatchError, match=r"'ViT-B-32' and 'RN50'"):
        BlissDetector(corpus, texts, k=5).fit(other, labels)
