"""A key that occurs in several parts: whoever looks it up is told, and where it is."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_index.calibration.labels import Labels, class_numbers
from bliss_index.cli.app import app
from bliss_index.cli.options import as_key
from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.from_scores import evaluate_directory
from bliss_index.report.explanation import explain_image
from bliss_index.scoring import run_job
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.import_work import import_embeddings


@pytest.fixture(scope="module")
def repeated(job, tmp_path_factory):
    """Two files with a key in common, and in the first one key twice; scored, and as a store."""
    folder = tmp_path_factory.mktemp("repeated")
    (folder / "in").mkdir()
    rows = EmbeddingStore.open(job.images).embeddings()
    keys = [*(f"a{i}" for i in range(8)), "a0", "both"], [*(f"b{i}" for i in range(9)), "both"]
    for number, names in enumerate(keys):
        vectors = rows[10 * number : 10 * number + 10].astype(np.float32)
        table = pa.table({"key": names, "embedding": list(vectors)})
        pq.write_table(table, folder / "in" / f"{number}.parquet")
    run_job(folder / "in", folder / "scores", job.settings())
    import_embeddings(
        folder / "in", folder / "store", kind="image", model=ModelIdentity("ViT-B-32", "openai")
    )
    return folder, [*keys[0], *keys[1]]


def write_labels(path, keys, value=lambda key: "cat"):
    path.write_text("key,label\n" + "".join(f"{key},{value(key)}\n" for key in keys))
    return path


def test_explain(repeated):
    folder, _ = repeated
    with pytest.raises(InvalidInputError, match=r"2 parts of .* 'both': row 9 of 0.parquet, row 9"):
        explain_image(folder / "scores", "both")
    assert explain_image(folder / "scores", "a0").anomaly_score is not None  # the other has none
    assert explain_image(folder / "scores", "b3").key == "b3"


def test_labels_by_key(repeated, tmp_path):
    folder, keys = repeated
    store = EmbeddingStore.open(folder / "store")
    ambiguous = write_labels(tmp_path / "l.csv", ["a0", "a1", "both"])
    with pytest.raises(InvalidInputError, match="label for 'both', of which shards 0 and 1"):
        class_numbers(Labels.read(ambiguous), store, ["cat"])
    clear = write_labels(tmp_path / "clear.csv", ["a0", "a1"])
    found = class_numbers(Labels.read(clear), store, ["cat"])
    assert np.flatnonzero(found.numbers == 0).tolist() == [0, 1]
    by_row = tmp_path / "rows.txt"
    by_row.write_text("cat\n" * len(keys))
    assert class_numbers(Labels.read(by_row), store, ["cat"]).unlabelled == 0


def test_known_anomalies_by_key(repeated, tmp_path):
    folder, _ = repeated
    known = write_labels(tmp_path / "l.csv", ["a1", "both"], lambda key: int(key == "both"))
    with pytest.raises(InvalidInputError, match="shards 0 and 1 both have a row"):
        evaluate_directory(folder / "scores", known)


@pytest.fixture(scope="module")
def named(job, tmp_path_factory):
    """Scores of keys as people have them: folders, accents, bytes of no text."""
    folder = tmp_path_factory.mktemp("named")
    keys = [
        "2026/03/IMG_1234.jpg", "2026/04/IMG_1234.jpg", "2026/04/IMG_77.jpg", "é/a.png",
        "old\\xe9.jpg", "./b.png", "7",
    ]  # fmt: skip
    rows = EmbeddingStore.open(job.images).embeddings()[: len(keys)].astype(np.float32)
    pq.write_table(pa.table({"key": keys, "embedding": list(rows)}), folder / "e.parquet")
    run_job(folder / "e.parquet", folder / "scores", job.settings())
    return folder / "scores"


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ("2026/03/IMG_1234.jpg", "2026/03/IMG_1234.jpg"),
        ("IMG_77.jpg", "2026/04/IMG_77.jpg"),
        ("04/IMG_1234.jpg", "2026/04/IMG_1234.jpg"),
        ("./2026/03/IMG_1234.jpg", "2026/03/IMG_1234.jpg"),
        ("2026\\03\\IMG_1234.jpg", "2026/03/IMG_1234.jpg"),
        ("e\N{COMBINING ACUTE ACCENT}/a.png", "é/a.png"),
        ("a.png", "é/a.png"),
        ("b.png", "./b.png"),
        ("7.0", "7"),
        (b"old\xe9.jpg", "old\\xe9.jpg"),
    ],
)
def test_explain_finds_what_is_meant(named, asked, key, capsys):
    argument = os.fsdecode(asked) if isinstance(asked, bytes) else asked
    app(["explain", str(named), argument, "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["key"] == key


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("IMG_1234.jpg", "2 end like it: 2026/03/IMG_1234.jpg, 2026/04/IMG_1234.jpg"),
        ("2026/04/IMG_78.jpg", "near to it are '2026/04/IMG_77.jpg', '2026/04/IMG_1234.jpg'"),
        ("MG_77.jpg", "none of the 7 rows of .* is 'MG_77.jpg'; near to it are '2026/04/IMG_77"),
        ("nothing", "is 'nothing'; the first is '2026/03/IMG_1234.jpg'"),
        ("", "is ''; the first is"),
    ],
)
def test_explain_says_what_is_near(named, asked, message):
    with pytest.raises(InvalidInputError, match=message):
        explain_image(named, asked)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_bytes_of_a_shell_are_a_key_in_any_locale(monkeypatch, encoding):
    """The system's encoding decides what an argument looks like, not what its bytes are."""
    errors = "surrogateescape"
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode(encoding, errors))
    for raw, key in ((b"a\xc3\xa9.jpg", "aé.jpg"), (b"a\xe9.jpg", "a\\xe9.jpg"), (b"a", "a")):
        assert as_key(raw.decode(encoding, errors)) == key
