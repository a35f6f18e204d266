"""The paper's data sets as they lie on disk: made files in their layouts, through the command."""

from __future__ import annotations

import io
import json
import pickle
import struct
from importlib.util import find_spec

import numpy as np
import pytest
from command import run

if not all(map(find_spec, ("open_clip", "PIL"))):
    pytest.skip("the extra 'clip' is not installed", allow_module_level=True)

from PIL import Image

from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.cli.app import app
from bliss_index.encode import load_encoder
from bliss_index.errors import CorruptStoreError, InvalidInputError, JobError
from bliss_index.evaluation.from_stores import evaluate_stores
from bliss_index.evaluation.paper.datasets import dataset_of_protocol, open_dataset
from bliss_index.evaluation.paper.protocols import PROTOCOLS
from bliss_index.store import EmbeddingStore
from bliss_index.vocabulary import render_prompts

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def colours(labels: np.ndarray, seed: int) -> np.ndarray:
    """Pictures of one colour a class, with noise, as CIFAR stores them: (n, 3072) planes."""
    rng = np.random.default_rng(seed)
    plain = np.random.default_rng(0).integers(0, 200, (100, 3))[labels]
    pixels = plain[:, :, None] + rng.integers(0, 50, (labels.size, 3, 1024))
    return pixels.reshape(labels.size, 3072).astype(np.uint8)


def old_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A dictionary as Python 2 and its numpy wrote it, which is what the data sets are."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    shape = number(data.shape[0]) + number(data.shape[1]) + b"\x86"
    kind = (
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
        + number(-1) + number(-1) + b"K\x00tb"
    )  # fmt: skip
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR("
        b"K\x01" + shape + kind + b"\x89" + text(data.tobytes()) + b"tb"
    )  # fmt: skip
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """CIFAR-10 and CIFAR-100, 20 training images a file and class or so, in torchvision's root."""
    root = tmp_path_factory.mktemp("data")
    ten = root / "cifar-10-batches-py"
    ten.mkdir()
    labels = np.arange(30) % 10
    for number in range(1, 6):
        content = old_pickle(colours(labels, number), labels.tolist())
        (ten / f"data_batch_{number}").write_bytes(content)
    (ten / "test_batch").write_bytes(old_pickle(colours(labels, 9), labels.tolist()))
    (ten / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10}, 2))
    hundred = root / "cifar-100-python"
    hundred.mkdir()
    fine = np.arange(400) % 100
    for name, count in (("train", 400), ("test", 200)):
        values = {
            "data": colours(fine[:count], count), "fine_labels": fine[:count].tolist(),
            "coarse_labels": (fine[:count] // 5).tolist(),
        }  # fmt: skip
        (hundred / name).write_bytes(pickle.dumps(values, 2))
    names = ["aquarium_fish"] + [f"thing_{i}" for i in range(1, 100)]
    (hundred / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    return root


def test_cifar_is_read_as_it_was_written(root):
    found = open_dataset(root, "cifar10")
    assert found.classes == tuple(CIFAR10)
    assert found.train.source.rows() == len(found.train.labels.values) == 150
    assert found.test.labels.values == tuple(np.arange(30).tolist()[i] % 10 for i in range(30))
    rows = list(found.train.source.iter(31))
    assert (rows[0].key, rows[-1].key, len(rows)) == (
        "data_batch_2/00001",
        "data_batch_5/00029",
        119,
    )
    pixels = np.asarray(Image.open(io.BytesIO(rows[0].content)))
    expected = colours(np.arange(30) % 10, 2)[1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels, expected)
    fine = open_dataset(root / "cifar-100-python", "cifar100")
    assert fine.classes[0] == "aquarium fish"
    assert fine.train.labels.values[199] == 99


def test_every_protocol_of_the_paper_has_its_data_set():
    assert {dataset_of_protocol(name) for name in PROTOCOLS} == {
        "cifar10", "cifar100", "tinyimagenet",
    }  # fmt: skip
    with pytest.raises(InvalidInputError, match="'one-class' does not name a data set"):
        dataset_of_protocol("one-class")


def test_the_command_encodes_once_and_evaluates(root, tmp_path, capsys):
    def here(*arguments) -> str:
        capsys.readouterr()
        app([str(a) for a in arguments], standalone_mode=False)
        return capsys.readouterr().out

    (tmp_path / "words.txt").write_text("".join(f"word {i}\n" for i in range(40)))
    corpus, encoded = tmp_path / "corpus", tmp_path / "encoded"
    here("encode-text", tmp_path / "words.txt", "--model", "bliss-tiny", "--out", corpus)
    command = ["evaluate", root, "--corpus", corpus, "--encoded", encoded, "--json",
               "--detectors", "bliss,raw,knn:neighbours=1", "--protocol"]  # fmt: skip
    report = json.loads(here(*command, "cifar10-6-vs-4"))
    assert (report["runs"], report["images"], report["calibration_images"]) == (5, 30, 150)
    # One colour a class: the nearest training image settles it.
    assert report["detectors"]["knn:neighbours=1"]["auroc"]["mean"] > 0.9
    before = (encoded / "test" / "manifest.json").stat().st_mtime_ns
    assert json.loads(here(*command, "cifar10-6-vs-4"))["per_run"] == report["per_run"]
    assert (encoded / "test" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(JobError, match="was begun with model preprocess"):
        here(*command, "cifar10-6-vs-4", "--preprocess", "authors")
    with pytest.raises(JobError, match="was begun with attributes source"):
        here(*command, "cifar100-20-vs-80")
    command[5] = tmp_path / "hundred"
    assert json.loads(here(*command, "cifar100-20-vs-80"))["images"] == 200


def test_one_command_is_the_papers_setting(root, tmp_path):
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    command = (
        "evaluate",
        root,
        "--protocol",
        "cifar100-20-vs-80",
        "--model",
        "bliss-tiny",
        "--json",
    )
    paper = (*command, "--encoded", tmp_path / "paper", "--preprocess", "authors")
    report = json.loads(run(*paper)[0])
    corpus = EmbeddingStore.open(tmp_path / "paper" / "corpus")
    assert corpus.rows == len(corpus.texts()) == 1860
    # As the authors read it: synonyms keep the blank before them, and some repeat others.
    assert corpus.texts()[:2] == ["tench", " Tinca tinca"]
    assert len(set(map(str.strip, corpus.texts()))) == 1842
    # Names as in the files, underscores and all, and the authors' pixels.
    encoder = load_encoder("bliss-tiny")
    fine = open_dataset(root, "cifar100")
    assert fine.named[0] == "aquarium_fish" and fine.classes[0] == "aquarium fish"
    texts = encoder.encode_text(render_prompts(fine.named))
    classes = ClassTexts(fine.classes, texts, encoder.identity, "c", None)
    stores = (tmp_path / "paper" / "test", tmp_path / "paper" / "train")
    expected = evaluate_stores(
        stores[0], fine.test.labels, stores[1], fine.train.labels, classes, corpus.path,
        "cifar100-20-vs-80",
    )  # fmt: skip
    assert expected.to_json()["per_run"] == report["per_run"]
    # Again, everything is there; with other entries the directory is refused.
    assert json.loads(run(*paper)[0])["per_run"] == report["per_run"]
    _, err = run(*command, "--encoded", tmp_path / "paper", code=1)
    assert "1842 with this preprocessing" in err
    assert run(*command, "--encoded", tmp_path / "own", "--detectors", "raw")[0]
    assert EmbeddingStore.open(tmp_path / "own" / "corpus").rows == 1842


def test_options_that_do_not_go_together(tmp_path):
    _, err = run("evaluate", "d", "--protocol", "cifar10-9-vs-1", "--encoded", "e", "--corpus", "c",
                 "--model", "bliss-tiny", code=2)  # fmt: skip
    assert "--model cannot be given with --corpus" in err
    _, err = run("evaluate", "d", "--labels", "l", "--model", "bliss-tiny", code=2)
    assert "--model requires --protocol" in err
    _, err = run("evaluate", "d", "--protocol", "cifar10-9-vs-1", "--encoded", "e", "--corpus", "c",
                 "--labels", "l", code=2)  # fmt: skip
    assert "--labels cannot be given with --encoded" in err
    _, err = run("evaluate", "d", code=2)
    assert "TARGET needs --labels" in err
    _, err = run("evaluate", "d", "--labels", "l", "--corpus", "c", code=2)
    assert "--corpus requires --protocol" in err
    _, err = run("evaluate", tmp_path, "--protocol", "cifar10-9-vs-1", "--encoded", "e",
                 "--corpus", "c", code=1)  # fmt: skip
    assert "holds no cifar-10-batches-py; download cifar10 there" in err


def test_tiny_imagenet(tmp_path):
    base = tmp_path / "tiny-imagenet-200"
    wnids = [f"n{i:08}" for i in range(200)]
    (base / "val" / "images").mkdir(parents=True)
    (base / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    words = "".join(f"{wnid}\tthing {i}, synonym\n" for i, wnid in enumerate(wnids))
    (base / "words.txt").write_text("n99999999\tnot used\n" + words)
    picture = Image.new("RGB", (4, 4))
    for wnid in (wnids[7], wnids[199]):
        (base / "train" / wnid / "images").mkdir(parents=True)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\n")
        for number in range(2):
            picture.save(base / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
    annotations = []
    for number, wnid in enumerate((wnids[3], wnids[0])):
        picture.save(base / "val" / "images" / f"val_{number}.JPEG")
        annotations.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t3\t3\n")
    (base / "val" / "val_annotations.txt").write_text("".join(annotations))
    found = open_dataset(tmp_path, "tinyimagenet")
    assert found.classes[7] == "thing 7"
    assert found.train.labels.values == (7, 7, 199, 199)
    assert found.test.labels.values == (3, 0)
    assert [row.key for row in found.test.source.iter()] == [
        "images/val_0.JPEG",
        "images/val_1.JPEG",
    ]
    (base / "val" / "val_annotations.txt").write_text(annotations[0])
    with pytest.raises(CorruptStoreError, match="val_1.JPEG belongs to none of the classes"):
        open_dataset(tmp_path, "tinyimagenet")
    (base / "wnids.txt").write_text("n1\n")
    with pytest.raises(CorruptStoreError, match="lists 1 classes, expected 200"):
        open_dataset(base, "tinyimagenet")


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"data": Evil()}, 2), "it asks for __builtin__.print"),
        (pickle.dumps({"data": Evil()}), "it asks for builtins.print"),
        (b"\x80\x02}", "cannot be read as arrays"),
        (pickle.dumps([1], 2), "holds a list"),
        (pickle.dumps({"data": np.zeros((3, 5), np.uint8)}, 2), "no array 'data' of bytes"),
        (pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [0]}, 2), "of 3 labels"),
        (
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 2),
            "not 0 to 9",
        ),
    ],
)
def test_pickles_run_nothing(root, tmp_path, content, message, capsys):
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    for path in (root / "cifar-10-batches-py").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    (base / "data_batch_3").write_bytes(content)
    with pytest.raises(CorruptStoreError, match=message):
        open_dataset(tmp_path, "cifar10")
    assert capsys.readouterr().out == ""


def test_mutated_pickles_are_typed_errors(root, tmp_path):
    base = tmp_path / "cifar-100-python"
    base.mkdir()
    small = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}, 2)
    for name in ("meta", "test"):
        (base / name).write_bytes((root / "cifar-100-python" / name).read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(small)
        for place in rng.integers(0, 200, 3):
            content[place] = int(rng.integers(0, 256))
        (base / "train").write_bytes(content)
        try:
            open_dataset(tmp_path, "cifar100")
        except CorruptStoreError:
            refused += 1
    assert refused > 200
