"""Whether the classes' names work: counted right, warned of, and reported by calibrate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bliss_reference import unit
from bulk_fixtures import MODEL, write_images

from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.from_store import calibrate_store
from bliss_index.calibration.labels import Labels
from bliss_index.calibration.names import NamesCheck
from bliss_index.cli.app import app
from bliss_index.store import EmbeddingStore

NAMES = ["cup", "wug", "dog", "cat"]


def scene(rng, dim=16, count=25):
    """Class texts, and images that lie near the text of their class."""
    texts = np.eye(4, dim) + 0.05 * rng.normal(size=(4, dim))
    labels = rng.permutation(np.repeat(np.arange(4), count))
    images = 0.5 * texts[labels] + 0.2 * rng.normal(size=(labels.size, dim))
    return unit(texts, np.float32), unit(images, np.float32), labels


def test_the_counts_are_those_of_zero_shot_classification(rng):
    texts, images, labels = scene(rng)
    labels[:7] = -1
    check = NamesCheck(NAMES, texts)
    for part in np.array_split(np.arange(labels.size), 6):
        check.add(images[part], labels[part])
    report = check.report()
    nearest = (images.astype(float) @ texts.astype(float).T).argmax(1)
    known = labels >= 0
    for c in range(4):
        own = labels == c
        assert (report.images[c], report.right[c]) == (own.sum(), (nearest[own] == c).sum())
        wrong = np.bincount(nearest[own & (nearest != c)], minlength=4)
        assert report.taken_for[c] == (wrong.argmax() if wrong.any() else -1)
        assert report.accuracy[c] == (nearest[own] == c).mean()
    assert report.overall == (nearest == labels)[known].mean()
    assert report.warning() is None
    nothing = NamesCheck(NAMES, texts).report()
    assert nothing.failing == []
    assert nothing.to_json()["classes"]["cup"]["accuracy"] is None


def test_the_warning_names_the_class_and_what_it_is_taken_for(rng):
    texts, images, labels = scene(rng)
    texts[1] = -texts[1]  # a name that says nothing
    images[labels == 1] += 0.4 * texts[0]
    check = NamesCheck(NAMES, texts)
    check.add(unit(images), labels)
    report = check.report()
    assert report.failing == [1]
    assert report.mistaken_for(1) == "cup"
    right = report.right[1]
    assert f"1 of 4 classes do not tell their images from the other classes': 'wug' ({right} of " \
        f"25 images are nearest to it, most others to 'cup')" in report.warning()  # fmt: skip
    assert "--template" in report.warning()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_shuffled_names_are_noticed(rng, share):
    """A growing share of the names stands for another class: as many are warned of."""
    count = 20
    texts = unit(np.eye(count, 32) + 0.05 * rng.normal(size=(count, 32)), np.float32)
    labels = np.repeat(np.arange(count), 12)
    images = unit(0.5 * texts[labels] + 0.1 * rng.normal(size=(labels.size, 32)), np.float32)
    wrong = np.arange(round(share * count))
    texts[wrong] = texts[np.roll(wrong, 1)]
    check = NamesCheck([f"name {c}" for c in range(count)], texts)
    check.add(images, labels)
    assert sorted(check.report().failing) == wrong.tolist()


def test_calibrate_reports_it(rng, tmp_path, capsys):
    texts, images, labels = scene(rng)
    texts[[0, 1]] = texts[[1, 0]]
    write_images(tmp_path / "images", images, 30)
    with_names = EmbeddingStore.open(_texts(tmp_path / "classes", texts))
    (tmp_path / "labels.txt").write_text("\n".join(np.array(NAMES)[labels]))
    given, store = Labels.read(tmp_path / "labels.txt"), EmbeddingStore.open(tmp_path / "images")
    summary = calibrate_store(store, given, ClassTexts.of_store(with_names.path))
    assert summary.names.failing == [0, 1]
    arguments = ["calibrate", tmp_path / "images", "--classes", tmp_path / "classes",
                 "--out", tmp_path / "c"]  # fmt: skip
    app([*map(str, arguments), "--labels", str(tmp_path / "labels.txt"), "--json"],
        standalone_mode=False)  # fmt: skip
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert printed["names"]["classes"]["dog"]["accuracy"] > 0.9
    assert printed["names"]["classes"]["wug"]["mistaken_for"] == "cup"
    assert printed["names"]["zero_shot_accuracy"] == pytest.approx(0.5, abs=0.1)
    assert "warning: the names of 2 of 4 classes" in shown.err
    assert len(printed["warnings"]) == 1
    # Images that were given the class of the nearest text say nothing of the texts.
    app([*map(str, arguments), "--assign", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["names"] is None


def _texts(path, rows):
    from bliss_index.store import StoreWriter

    with StoreWriter(path, kind="text", model=MODEL, dim=rows.shape[1]) as writer:
        writer.append(NAMES, rows, texts=NAMES)
    return path
