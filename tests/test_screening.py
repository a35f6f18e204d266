"""From the command line: thresholds, p-values, assigned labels, trimming, explanations."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from bliss_reference import reference_scores
from bulk_fixtures import scored
from command import run
from test_cli import MODEL, SCORE, chain

from bliss_index.calibration import Calibration
from bliss_index.errors import CorruptStoreError, InvalidInputError, StoreError
from bliss_index.scoring.normal_scores import NormalScores, ScoreIdentity
from bliss_index.store import EmbeddingStore

__all__ = ["chain"]
THRESHOLD = ["threshold", "normal", *SCORE, "--labels", "labels.txt"]


@pytest.fixture(scope="module")
def normal_scores(chain, tmp_path_factory):
    """Scores of the held-out calibration images, made by the command, and what it printed."""
    path = tmp_path_factory.mktemp("normal") / "normal.parquet"
    out, err = run(*THRESHOLD, "--out", path, "--json", cwd=chain[0])
    return path, json.loads(out), err


def embeddings(folder, *names):
    return [EmbeddingStore.open(folder / name).embeddings("float64") for name in names]


def test_held_out_scores_come_from_calibrations_without_the_image(chain, normal_scores):
    """Against the plain formulas: a fold's images, calibrated with all the others."""
    from bliss_index.scoring.thresholds import deal

    folder, labels = chain
    path, printed, err = normal_scores
    found = NormalScores.read(path)
    images, vocabulary, texts = embeddings(folder, "normal", "corpus", "classes")
    fold_of = deal(labels[:200], 3, 5, 0)
    for fold in range(5):
        out = fold_of == fold
        expected = reference_scores(
            images[out], vocabulary, texts, images[~out], labels[:200][~out], k=10, lam=0.5
        )
        np.testing.assert_allclose(found.scores[out], expected.anomaly, atol=1e-4, rtol=1e-5)
    assert printed["images"] == 200
    assert printed["thresholds"]["0.001"] is None
    assert "needs at least 999 held-out normal images, got 200" in err
    assert (found.scores >= printed["thresholds"]["0.05"]).sum() == 9  # 201 x 0.05, rounded down


def test_flags_and_p_values(chain, normal_scores, tmp_path):
    folder, _ = chain
    path, printed, _ = normal_scores
    more = ["--normal-scores", path, "--false-alarm-rate", 0.05]
    run("score", "holes", *SCORE, "--out", tmp_path / "s", *more, cwd=folder, code=3)
    table = pq.read_table(scored(tmp_path / "s")).to_pydict()
    normal = NormalScores.read(path).scores
    for score, flag, p in zip(table["anomaly_score"], table["flag"], table["p_value"], strict=True):
        if score is None:
            assert flag is None
            assert p is None
            continue
        assert flag == (score >= printed["thresholds"]["0.05"])
        assert p == pytest.approx((1 + (normal >= score).sum()) / 201, rel=1e-6)
    job = json.loads((tmp_path / "s" / "_job.json").read_text())
    assert job["settings"]["threshold"] == printed["thresholds"]["0.05"]
    again = ["--normal-scores", path, "--false-alarm-rate", 0.1]
    _, err = run("score", "holes", *SCORE, "--out", tmp_path / "s", *again, cwd=folder, code=1)
    assert "was begun with threshold" in err


def test_normal_scores_must_be_of_the_same_settings(chain, normal_scores, tmp_path):
    folder, _ = chain
    path = normal_scores[0]
    out = ["--out", tmp_path / "s"]
    _, err = run("score", "test", *SCORE, *out, "-k", 5, "--normal-scores", path,
                 cwd=folder, code=1)  # fmt: skip
    assert "was made with k 10, this job has 5" in err
    _, err = run("score", "test", *SCORE, *out, "--false-alarm-rate", 0.1, cwd=folder, code=1)
    assert "needs the scores of held-out normal images" in err
    _, err = run("score", "test", *SCORE, *out, "--normal-scores", path, "--threshold", 1,
                 "--false-alarm-rate", 0.1, cwd=folder, code=1)  # fmt: skip
    assert "either a threshold (1.0) or a false-alarm rate (0.1), not both" in err
    _, err = run("threshold", "test", *SCORE, "--out", tmp_path / "n.parquet", cwd=folder, code=1)
    assert "the calibration was made of images with content hash" in err


def test_thresholds_with_confidence(chain, normal_scores, tmp_path):
    folder, _ = chain
    path, printed, _ = normal_scores
    sure = tmp_path / "sure.parquet"
    out, err = run(*THRESHOLD, "--out", sure, "--confidence", 0.95, "--json", cwd=folder)
    shown = json.loads(out)
    assert printed["confidence"] is None
    assert shown["confidence"] == 0.95
    assert "0.01 with confidence 0.95 needs at least 299 held-out normal images, got 200" in err
    normal = NormalScores.read(sure)
    assert normal.content_hash != NormalScores.read(path).content_hash
    # P(Binomial(200, 0.05) <= 4) = 0.026 and P(... <= 5) = 0.062
    assert (normal.scores >= shown["thresholds"]["0.05"]).sum() == 4
    assert shown["rates_kept_with_95_percent"]["0.05"] <= 0.05
    assert printed["rates_kept_with_95_percent"]["0.05"] > 0.05
    run("score", "test", *SCORE, "--out", tmp_path / "s", "--normal-scores", sure,
        "--false-alarm-rate", 0.05, cwd=folder)  # fmt: skip
    job = json.loads((tmp_path / "s" / "_job.json").read_text())
    assert job["settings"]["threshold"] == shown["thresholds"]["0.05"]
    table, _ = run(*THRESHOLD, "--out", sure, cwd=folder)
    assert "false alarms, on average" in table
    _, err = run(*THRESHOLD, "--out", sure, "--confidence", 1, cwd=folder, code=2)
    assert "1.0 does not lie between 0 and 1" in err


def test_files_of_normal_scores(tmp_path):
    scores = NormalScores(np.array([0.5, 2.0]), ScoreIdentity(3, 0.5, "a", "b"), 4)
    scores.write(tmp_path / "n.parquet")
    again = NormalScores.read(tmp_path / "n.parquet")
    assert again.scores.tolist() == [0.5, 2.0]
    assert (again.identity, again.folds) == (scores.identity, 4)
    with pytest.raises(InvalidInputError, match="with corpus 'a', this job has 'c'"):
        again.require(ScoreIdentity(3, 0.5, "c", "b"), "n.parquet")
    with pytest.raises(StoreError, match="is not a file; make it with"):
        NormalScores.read(tmp_path / "missing.parquet")
    table = pq.read_table(tmp_path / "n.parquet")
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="holds no scores of held-out normal images"):
        NormalScores.read(tmp_path / "other.parquet")
    pq.write_table(table.slice(1), tmp_path / "altered.parquet")
    with pytest.raises(CorruptStoreError, match="altered; make it again"):
        NormalScores.read(tmp_path / "altered.parquet")
    (tmp_path / "n.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        NormalScores.read(tmp_path / "n.parquet")


@pytest.fixture(scope="module")
def near_classes(chain, tmp_path_factory):
    """Class texts that are near their images, so that every class is the nearest of many."""
    folder, labels = chain
    path = tmp_path_factory.mktemp("near")
    images = embeddings(folder, "normal")[0]
    texts = [images[labels[:200] == c].mean(0) for c in range(3)]
    np.save(path / "texts.npy", np.stack(texts))
    run("import", path / "texts.npy", "--kind", "text", "--texts", folder / "classes.txt", *MODEL,
        "--out", path / "classes")  # fmt: skip
    return path / "classes"


def test_labels_are_assigned(chain, near_classes, tmp_path):
    folder, _ = chain
    make = ["calibrate", "normal", "--classes", near_classes, "--out", tmp_path / "c", "--json"]
    _, err = run(*make, cwd=folder, code=1)
    assert "or --assign give every image the nearest" in err
    out, err = run(*make, "--assign", cwd=folder)
    assert "200 images without a label were given the class nearest to them" in err
    images, texts = embeddings(folder, "normal", near_classes)
    nearest = (images @ texts.T).argmax(1)
    assert json.loads(out)["classes"] == {
        name: int((nearest == c).sum()) for c, name in enumerate(["cat", "dog", "cow"])
    }
    calibration = Calibration.load(tmp_path / "c")
    assert calibration.attributes["labels_assigned"] == 200
    np.testing.assert_allclose(calibration.moments[1].mean, images[nearest == 1].mean(0))
    # What is held out is labelled in the same way.
    run("threshold", "normal", "--corpus", "corpus", "--calibration", tmp_path / "c",
        "--out", tmp_path / "n.parquet", cwd=folder)  # fmt: skip
    assert NormalScores.read(tmp_path / "n.parquet").scores.size == 200


def test_only_images_without_a_label_are_assigned(chain, near_classes, tmp_path):
    folder, labels = chain
    given = (folder / "labels.txt").read_text().splitlines()
    keys = EmbeddingStore.open(folder / "normal").keys()
    rows = [f"{key},{'' if row < 50 else name}" for row, (key, name) in enumerate(
        zip(keys, given, strict=True))]  # fmt: skip
    rows[199] = f"{keys[199]},a stranger"
    (tmp_path / "l.csv").write_text("key,label\n" + "\n".join(rows) + "\n")
    out, _ = run("calibrate", "normal", "--classes", near_classes, "--out", tmp_path / "c",
                 "--labels", tmp_path / "l.csv", "--assign", "--json", cwd=folder)  # fmt: skip
    images, texts = embeddings(folder, "normal", near_classes)
    expected = np.where(np.arange(200) < 50, (images @ texts.T).argmax(1), labels[:200])[:199]
    found = json.loads(out)
    assert list(found["classes"].values()) == np.bincount(expected, minlength=3).tolist()
    assert (found["other_labels"], found["unlabelled"]) == ({"a stranger": 1}, 0)


def test_the_farthest_images_are_trimmed(chain, tmp_path):
    folder, labels = chain
    out, err = run("calibrate", "normal", "--classes", "classes", "--labels", "labels.txt",
                   "--trim", 0.1, "--out", tmp_path / "c", "--json", cwd=folder)  # fmt: skip
    counts = np.bincount(labels[:200])
    kept = counts - np.floor(0.1 * counts + 1e-9).astype(int)
    assert list(json.loads(out)["classes"].values()) == kept.tolist()
    assert json.loads(out)["trimmed"] == (counts - kept).sum()
    assert "are left out as the farthest from their class" in err
    assert Calibration.load(tmp_path / "c").attributes["trimmed_share"] == 0.1
    _, err = run("calibrate", "normal", "--classes", "classes", "--labels", "labels.txt",
                 "--trim", 0.7, "--out", tmp_path / "d", cwd=folder, code=1)  # fmt: skip
    assert "must be at least 0 and below 0.5, got 0.7" in err


def test_explain(chain, tmp_path):
    folder, labels = chain
    run("score", "holes", *SCORE, "--out", tmp_path / "s", cwd=folder, code=3)
    keys = EmbeddingStore.open(folder / "holes").keys()
    images, vocabulary, texts, normal = embeddings(folder, "test", "corpus", "classes", "normal")
    expected = reference_scores(images[[5]], vocabulary, texts, normal, labels[:200], k=10, lam=0.5)
    out, _ = run("explain", tmp_path / "s", keys[5], "--json", "--classes", 3, cwd=folder)
    found = json.loads(out)
    names = ["cat", "dog", "cow"]
    assert found["anomaly_score"] == pytest.approx(expected.anomaly[0], abs=1e-4)
    assert found["classes"][0]["name"] == names[expected.nearest_class[0]]
    totals = [c["anomaly_score"] for c in found["classes"]]
    assert totals == sorted(totals)
    assert [e["text"] for e in found["entries"]] == [f"word {i}" for i in expected.ids[0]]
    for entry, i in zip(found["entries"], expected.ids[0], strict=True):
        similarities = normal[labels[:200] == expected.nearest_class[0]] @ vocabulary[i]
        deviations = (images[5] @ vocabulary[i] - similarities.mean()) / similarities.std()
        assert entry["deviations"] == pytest.approx(deviations, abs=1e-3)
        assert entry["contribution"] == pytest.approx(0.05 * deviations, abs=1e-4)
    scores = pq.read_table(tmp_path / "s").column("anomaly_score").to_numpy()
    assert found["less_anomalous"] == pytest.approx((scores < scores[5]).sum() / 99)
    out, _ = run("explain", tmp_path / "s", keys[5], cwd=folder)
    assert "What the nearest vocabulary entries add" in out
    assert found["entries"][0]["text"] in out
    _, err = run("explain", tmp_path / "s", keys[7], cwd=folder, code=3)
    assert "has no score: zero_embedding" in err
    _, err = run("explain", tmp_path / "s", "nobody", cwd=folder, code=1)
    assert "none of the 100 rows" in err


def test_scores_can_be_looked_at_from_another_directory(chain, tmp_path):
    folder, _ = chain
    run("score", "test", *SCORE, "--out", tmp_path / "s", cwd=folder)
    out, _ = run("verify", tmp_path / "s", "--json", cwd=tmp_path)
    assert (json.loads(out)["problems"], json.loads(out)["unchecked"]) == ([], [])
    here, _ = run("explain", tmp_path / "s", "5", "--json", cwd=folder)
    there, _ = run("explain", tmp_path / "s", "5", "--json", cwd=tmp_path)
    assert here == there
    job = tmp_path / "s" / "_job.json"
    values = json.loads(job.read_text())
    values["begun_in"] = "."  # as where the working directory was removed
    job.write_text(json.dumps(values))
    run("verify", tmp_path / "s", cwd=folder)
    _, err = run("verify", tmp_path / "s", cwd=tmp_path)
    assert "not checked: the input is not at test any more" in err
    out, _ = run("verify", tmp_path / "s", "--images", folder / "test", "--json", cwd=tmp_path)
    assert (json.loads(out)["ok"], json.loads(out)["unchecked"]) == (True, [])


def test_explain_without_external_score(chain, tmp_path):
    folder, _ = chain
    run("score", "test", *SCORE, "--out", tmp_path / "s", "--lam", 0, cwd=folder)
    out, _ = run("explain", tmp_path / "s", "5", "--json", cwd=folder)
    found = json.loads(out)
    assert {entry["contribution"] for entry in found["entries"]} == {0.0}
    external = np.mean([entry["deviations"] for entry in found["entries"]])
    assert external == pytest.approx(found["external_score"], abs=1e-6)


def test_explain_notices_that_inputs_changed(chain, tmp_path):
    folder, _ = chain
    run("score", "test", *SCORE, "--out", tmp_path / "s", cwd=folder)
    key = EmbeddingStore.open(folder / "test").keys()[5]
    turned = np.load(folder / "test.npy")[::-1].copy()
    np.save(tmp_path / "turned.npy", turned)
    run("import", tmp_path / "turned.npy", "--kind", "image", *MODEL, "--out", tmp_path / "t")
    _, err = run("explain", tmp_path / "s", key, "--images", tmp_path / "t", cwd=folder, code=1)
    assert "is not what was scored; give the original with --images" in err
    out, _ = run("explain", tmp_path / "s", key, "--images", "test", "--json", cwd=folder)
    assert json.loads(out)["status"] == "ok"
