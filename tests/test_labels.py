"""Labels in the forms in which tables, arrays and other systems keep them."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bliss_reference import clip_like
from command import run

from bliss_index.calibration import Calibration
from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.from_store import calibrate_store
from bliss_index.calibration.labels import Labels
from bliss_index.calibration.unlabelled import assign_labels
from bliss_index.errors import CalibrationError, InvalidInputError
from bliss_index.store import EmbeddingStore, ModelIdentity, StoreWriter

MODEL = ModelIdentity("ViT-B-32", "openai")
NAMES = ("café", "hot dog", "cow")


@pytest.fixture
def stored(rng, tmp_path):
    """A store of 90 images, their class numbers, and the classes' texts."""
    images, _, texts, labels = clip_like(rng, 90, 40, 3, 16)
    with StoreWriter(
        tmp_path / "images", kind="image", model=MODEL, dim=16, dtype="float32"
    ) as writer:
        writer.append([f"k{i}" for i in range(90)], images.astype(np.float32))
    return EmbeddingStore.open(tmp_path / "images"), labels, ClassTexts(
        NAMES, texts, MODEL, "classes", None
    )  # fmt: skip


def calibration_of(stored, path, **more):
    images, _, texts = stored
    return calibrate_store(images, Labels.read(path), texts, **more)


def test_a_name_may_be_written_with_combined_letters_and_other_spaces(stored, tmp_path):
    _, labels, _ = stored
    written = ["cafe\N{COMBINING ACUTE ACCENT}", "hot  dog ", "cow"]
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    plain.write_text("".join(f"{NAMES[c]}\n" for c in labels), encoding="utf-8")
    other.write_text("".join(f"{written[c]}\n" for c in labels), encoding="utf-8")
    first, second = (calibration_of(stored, path).calibration for path in (plain, other))
    assert first.content_hash == second.content_hash


def test_names_that_match_as_they_are_come_first(stored, tmp_path):
    images, _, texts = stored
    texts = ClassTexts(("a  b", "a b", "c"), texts.embeddings, MODEL, "classes", None)
    (tmp_path / "l.txt").write_text("a b\na  b\nc\n" * 30)
    summary = calibrate_store(images, Labels.read(tmp_path / "l.txt"), texts)
    expected = images.embeddings().astype(np.float64)
    np.testing.assert_allclose(summary.calibration.moments[0].mean, expected[1::3].mean(axis=0))
    np.testing.assert_allclose(summary.calibration.moments[1].mean, expected[0::3].mean(axis=0))


@pytest.mark.parametrize("form", ["nan.npy", "null.parquet", "empty.csv", "float.csv"])
def test_missing_labels_are_assigned_in_every_form(stored, tmp_path, form):
    """Missing are NaN in arrays, nulls in Parquet, empty in CSV, where numbers become 1.0."""
    images, labels, texts = stored
    missing = np.arange(90) % 9 == 0
    path = tmp_path / form
    if form == "nan.npy":
        np.save(path, np.where(missing, np.nan, labels))
    elif form == "null.parquet":
        pq.write_table(pa.table({"label": pa.array(labels, mask=missing)}), path)
    else:
        numbers = labels if form == "empty.csv" else labels.astype(float)
        lines = ["" if gap else str(n) for n, gap in zip(numbers, missing, strict=True)]
        path.write_text("key,label\n" + "".join(f"k{i},{v}\n" for i, v in enumerate(lines)))
    assert calibration_of(stored, path).unlabelled == 10
    summary = calibration_of(stored, path, assign=True)
    assert (summary.unlabelled, summary.calibration.attributes["labels_assigned"]) == (0, 10)
    given = assign_labels(images.embeddings(), texts.embeddings)
    counts = np.bincount(np.where(missing, given, labels), minlength=3)
    assert [m.count for m in summary.calibration.moments] == counts.tolist()


def test_labels_of_no_class_are_named_where_classes_lack_images(stored, tmp_path):
    _, labels, _ = stored
    written = ["café", "hot dog", "Cow"]
    (tmp_path / "l.txt").write_text("".join(f"{written[c]}\n" for c in labels), encoding="utf-8")
    count = int((labels == 2).sum())
    with pytest.raises(
        CalibrationError, match=rf"'cow' \(0\).* 1 labels name none of the classes: 'Cow' \({count}"
    ):
        calibration_of(stored, tmp_path / "l.txt")


def test_files_that_look_like_labels(tmp_path, stored):
    np.save(tmp_path / "o.npy", np.array(["cow"] * 90, dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInputError, match=r"pickled objects, .* save array.astype\(str\)"):
        Labels.read(tmp_path / "o.npy")
    (tmp_path / "twice.csv").write_text("label,label\na,b\n")
    with pytest.raises(InvalidInputError, match="has two columns 'label'"):
        Labels.read(tmp_path / "twice.csv")
    (tmp_path / "headless.csv").write_text("cow\n" * 90)
    with pytest.raises(InvalidInputError, match="holds 89 labels .the first line was taken for"):
        calibration_of(stored, tmp_path / "headless.csv")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A store of drawn scenes in folders of their kinds, and one image in no folder."""
    from bliss_index.demo.scenes import draw_scene
    from bliss_index.encode import load_encoder
    from bliss_index.encode.image_work import encode_image_store
    from bliss_index.encode.images import open_images

    folder = tmp_path_factory.mktemp("scenes")
    for number, kind in enumerate(("cat", "castle", "bicycle")):
        (folder / "known" / kind / "inner").mkdir(parents=True)
        for image in range(4):
            place = folder / "known" / kind / ("inner" if image else ".") / f"{image}.png"
            draw_scene(np.random.default_rng([number, image]), kind, size=32).image.save(place)
    (folder / "known" / "cat.png").write_bytes((folder / "known/cat/0.png").read_bytes())
    encoder = load_encoder("bliss-tiny", device="cpu")
    encode_image_store(encoder, open_images(folder / "known"), folder / "store", decoders=0)
    return folder


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")
def test_folders_are_labels_and_name_the_classes(scenes):
    labels = scenes / "labels.csv"
    keys = EmbeddingStore.open(scenes / "store").keys()
    rows = [f"{key},{key.split('/')[0]}\n" for key in keys if "/" in key]
    labels.write_text("key,label\n" + "".join(rows))
    (scenes / "classes.txt").write_text("bicycle\ncastle\ncat\n")
    run("calibrate", "store", "--labels", "labels.csv", "--classes", "classes.txt",
        "--out", "by-file", cwd=scenes)  # fmt: skip
    _, err = run("calibrate", "store", "--labels", "folders", "--out", "by-folder", cwd=scenes)
    assert "1 images without a label are left out" in err
    by_file, by_folder = (Calibration.load(scenes / name) for name in ("by-file", "by-folder"))
    assert by_folder.content_hash == by_file.content_hash
    assert by_folder.classes == ("bicycle", "castle", "cat")
    _, err = run("calibrate", "store", "--labels", "folders", "--classes", "cat.txt",
                 "--out", "x", cwd=scenes, code=1)  # fmt: skip
    assert "'cat.txt'" in err
    (scenes / "cat.txt").write_text("cat\n")
    _, err = run("calibrate", "store", "--labels", "folders", "--classes", "cat.txt",
                 "--out", "one", cwd=scenes)  # fmt: skip
    assert "8 images of other labels are left out: 'bicycle' (4), 'castle' (4)" in err
    run("encode-text", "classes.txt", "--model", "bliss-tiny", "--out", "corpus",
                 cwd=scenes)  # fmt: skip
    options = ["--calibration", "by-folder", "--corpus", "corpus", "-k", "2", "--json"]
    by_name, _ = run("threshold", "store", *options, "--labels", "folders", "--out", "a",
                     cwd=scenes)  # fmt: skip
    listed, _ = run("threshold", "store", *options, "--labels", "labels.csv", "--out", "b",
                    cwd=scenes)  # fmt: skip
    assert by_name == listed
    assert (scenes / "a").read_bytes() == (scenes / "b").read_bytes()


def test_classes_without_names_or_folders_are_refused(stored, tmp_path):
    images, _, _ = stored
    _, err = run("calibrate", images.path, "--out", tmp_path / "c", code=1)
    assert "--classes FILE, or --labels folders" in err
    _, err = run("calibrate", images.path, "--labels", "folders", "--out", tmp_path / "c", code=1)
    assert "none of the 90 keys of" in err and "give a file of labels" in err
    assert not (tmp_path / "c").exists()
