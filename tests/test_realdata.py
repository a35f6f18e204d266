"""Real CLIP embeddings through the command line, against the formulas in float64.

Needs BLISS_INDEX_REALDATA; skipped without it. Caltech101: the classes whose text embedding exists,
vocabulary = the first 1000 text rows, one split calibrates, the other is scored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from bliss_reference import reference_scores, unit
from command import run
from detector_reference import EXPECTED, DetectorData, expected_neglabel

from bliss_index.calibration import Calibration
from bliss_index.evaluation.detector import Reference, blocks
from bliss_index.evaluation.paper.protocols import all_but_one, one_class, random_classes
from bliss_index.evaluation.registry import DETECTORS, make_detectors
from bliss_index.report.grouping import ImageGrouper
from bliss_index.scoring import ScoresDirectory
from bliss_index.search import exact_search
from bliss_index.store import EmbeddingStore

K, LAM = 10, 0.5
MODEL = ["--model", "ViT-B-32", "--pretrained", "openai"]


@dataclass
class Caltech:
    folder: object
    classes: list[str]
    texts: np.ndarray
    labels: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def caltech(realdata, tmp_path_factory) -> Caltech:
    folder = tmp_path_factory.mktemp("caltech")
    texts = np.load(realdata / "text_vitb32.npz")
    listed = json.loads((realdata / "caltech101_classes.json").read_text())
    classes = [name for name in listed["classes"] if name in listed["text_row"]]
    np.save(folder / "vocabulary.npy", texts["embeddings"][:1000])
    lines = "".join(f"{name}\n" for name in texts["names"][:1000])
    (folder / "vocabulary.txt").write_text(lines)
    run("import", folder / "vocabulary.npy", "--kind", "text", *MODEL,
        "--texts", folder / "vocabulary.txt", "--out", folder / "corpus")  # fmt: skip
    run("build", folder / "corpus")
    labels = {}
    for split in ("val", "test"):
        images = np.load(realdata / f"img_caltech101_{split}.npz")
        names = np.array(listed["classes"])[images["labels"]]
        known = np.isin(names, classes)
        np.savez(folder / f"{split}.npz", embeddings=images["embeddings"][known])
        labels[split] = names[known]
        run("import", folder / f"{split}.npz", "--kind", "image", *MODEL, "--out", folder / split)
        (folder / f"{split}.txt").write_text("".join(f"{n}\n" for n in labels[split]))
    rows = [listed["text_row"][name] for name in classes]
    return Caltech(folder, classes, texts["embeddings"][rows], labels)


def cli_scores(caltech, normal, name):
    """Import the classes, calibrate, score and evaluate by the commands of the README."""
    folder = caltech.folder / name
    folder.mkdir()
    np.save(folder / "classes.npy", caltech.texts[normal])
    names = [caltech.classes[c] for c in normal]
    (folder / "classes.txt").write_text("".join(f"{n}\n" for n in names))
    anomaly = ~np.isin(caltech.labels["test"], names)
    np.save(folder / "anomaly.npy", anomaly.astype(np.int64))
    root = caltech.folder
    run("import", folder / "classes.npy", "--kind", "text", "--texts", folder / "classes.txt",
        *MODEL, "--out", folder / "classes")  # fmt: skip
    run("calibrate", root / "val", "--labels", root / "val.txt", "--classes", folder / "classes",
        "--out", folder / "calibration")  # fmt: skip
    run("score", root / "test", "--corpus", root / "corpus",
        "--calibration", folder / "calibration", "--out", folder / "scores")  # fmt: skip
    return ScoresDirectory.open(folder / "scores").table(), anomaly


def auroc(scores, anomaly):
    """Share of pairs in which the anomaly scores higher, ties counted half: the definition."""
    high, low = scores[anomaly][:, None], scores[~anomaly][None, :]
    return float(np.mean((high > low) + 0.5 * (high == low)))


def reference(caltech, normal):
    names = [caltech.classes[c] for c in normal]
    folder = caltech.folder
    stored = {
        part: EmbeddingStore.open(folder / part).embeddings("float64")
        for part in ("corpus", "val", "test")
    }
    chosen = np.isin(caltech.labels["val"], names)
    position = {name: number for number, name in enumerate(names)}
    labels = np.array([position[n] for n in caltech.labels["val"][chosen]])
    texts = unit(caltech.texts[normal], np.float16)
    return reference_scores(
        stored["test"], stored["corpus"], texts, stored["val"][chosen], labels, k=K, lam=LAM
    )


@pytest.mark.parametrize("kind", ["one-class", "6 normal", "all-but-one"])
def test_scores_and_auroc_equal_the_formulas(caltech, kind):
    count = len(caltech.classes)
    assert count == 69
    protocol = {
        "one-class": one_class(count),
        "6 normal": random_classes(count, 6, 20, seed=0),
        "all-but-one": all_but_one(count),
    }[kind]
    for number in (0, len(protocol.runs) - 1):
        normal = list(protocol.runs[number])
        table, anomaly = cli_scores(caltech, normal, f"{kind}-{number}")
        expected = reference(caltech, normal)
        found = table.column("anomaly_score").to_numpy()
        assert np.abs(found - expected.anomaly).max() < 1e-4
        names = [caltech.classes[c] for c in normal]
        assert table.column("nearest_class").to_pylist() == [
            names[c] for c in expected.nearest_class
        ]
        out, _ = run(
            "evaluate", caltech.folder / f"{kind}-{number}" / "scores", "--json",
            "--resamples", "0", "--labels",
            caltech.folder / f"{kind}-{number}" / "anomaly.npy")  # fmt: skip
        printed = json.loads(out)["auroc"]
        assert round(printed, 4) == round(auroc(expected.anomaly, anomaly), 4)


def test_moments_of_real_images(caltech):
    """Real embeddings have a few coordinates much larger than the others."""
    cli_scores(caltech, list(range(6)), "moments")
    calibration = Calibration.load(caltech.folder / "moments" / "calibration")
    images = EmbeddingStore.open(caltech.folder / "val").embeddings("float64")
    entries = EmbeddingStore.open(caltech.folder / "corpus").embeddings("float64")
    mu, sigma = calibration.statistics(entries)
    for number, name in enumerate(calibration.classes):
        similarity = images[caltech.labels["val"] == name] @ entries.T
        np.testing.assert_allclose(mu[:, number], similarity.mean(0), rtol=1e-12)
        np.testing.assert_allclose(sigma[:, number], similarity.std(0) + 1e-8, rtol=1e-6)


@pytest.mark.parametrize("kind", ["one-class", "6 normal", "all-but-one"])
def test_every_detector_on_real_images(caltech, kind):
    """The first and the last run of a protocol, all detectors, image by image, in float64."""
    folder, count = caltech.folder, len(caltech.classes)
    normal, test, vocabulary = (
        EmbeddingStore.open(folder / name).embeddings("float32")
        for name in ("val", "test", "corpus")
    )
    number = {name: c for c, name in enumerate(caltech.classes)}
    labels = np.array([number[name] for name in caltech.labels["val"]])
    texts = unit(caltech.texts, np.float32)
    protocol = {
        "one-class": one_class(count),
        "6 normal": random_classes(count, 6, 20, seed=0),
        "all-but-one": all_but_one(count),
    }[kind]
    runs = [protocol.runs[0], protocol.runs[-1]]
    search = exact_search(vocabulary, K, threads=1)
    reference = Reference(texts, normal, labels, vocabulary, search)
    known = DetectorData(normal, labels, test, texts, vocabulary, K).wide()
    for name in DETECTORS:
        fitted = make_detectors(name)[0].fit(reference)
        found = np.concatenate(
            [fitted.score_runs(block, runs) for _, block in blocks(test, reference)], axis=1
        )
        for row, classes in zip(found, runs, strict=True):
            if name == "neglabel":
                expected = expected_neglabel(known, classes, fitted.groups(classes))
            else:
                expected = EXPECTED[name](known, classes)
            np.testing.assert_allclose(row, expected, atol=1e-4, rtol=1e-4, err_msg=name)


def test_groups_of_outliers_are_kinds_with_their_names(caltech, realdata):
    """Six classes normal, the images of the others grouped; bounds well below what is measured."""
    metrics = pytest.importorskip("sklearn.metrics")
    texts = np.load(realdata / "text_vitb32.npz")
    _names, first = np.unique(texts["names"], return_index=True)
    entries = unit(texts["embeddings"][first])
    images, labels = [], []
    for split in ("val", "test"):
        images.append(np.load(caltech.folder / f"{split}.npz")["embeddings"])
        labels.append(caltech.labels[split])
    kinds = np.concatenate(labels)
    order = np.random.default_rng(20).permutation(len(caltech.classes))
    some = ~np.isin(kinds, np.array(caltech.classes)[order[:6]])
    rows, kinds = unit(np.concatenate(images)[some]), kinds[some]
    similarities, ids = exact_search(entries.astype(np.float32), K).search(rows.astype(np.float32))
    grouper = ImageGrouper(entries)
    grouper.count(ids)
    grouper.add(ids, similarities)
    found = grouper.finish()
    own = grouper.assign(found, ids, similarities)
    called = entries @ unit(caltech.texts).T  # the vocabulary's name of every class
    right = dict(zip(caltech.classes, called.argmax(axis=0), strict=True))
    named = []
    for number, (name, *_) in enumerate(found.names):
        classes, counts = np.unique(kinds[own == number], return_counts=True)
        named.append(name == right[classes[counts.argmax()]])
    assert metrics.normalized_mutual_info_score(kinds, own) > 0.9
    assert 60 < len(found.names) < 95 and np.mean(named) > 0.45  # of 63 kinds
    assert np.mean([found.names[g][0] == right[k] for g, k in zip(own, kinds, strict=True)]) > 0.45
