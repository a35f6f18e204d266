"""Files as people have them: no value on another row's key, and nothing left out in silence."""

from __future__ import annotations

import io
import os
import re
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import DIM

from bliss_index.errors import InvalidInputError
from bliss_index.jobs import JobListener
from bliss_index.scoring import run_job
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.import_work import import_embeddings
from bliss_index.store.sources import open_source

MODEL = ModelIdentity("ViT-B-32", "openai")


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype("float32")


def listed(matrix):
    return pa.array([None if row is None else list(map(float, row)) for row in matrix])


def imported(location, out, kind="image", **options):
    summary = import_embeddings(location, out, kind=kind, model=MODEL, **options)
    return summary, EmbeddingStore.open(out)


class Heard(JobListener):
    def __init__(self):
        self.texts = []

    def notice(self, text):
        self.texts.append(text)


def saved_one_after_the_other(path, arrays):
    with path.open("wb") as stream:
        for array in arrays:
            np.save(stream, array)


@pytest.mark.parametrize("behind", ["array", "empty array", "a byte", "text"])
def test_more_in_an_npy_than_its_header_says(job, tmp_path, behind):
    what = {"array": rows(6, 1), "empty array": rows(0)}
    if behind in what:
        saved_one_after_the_other(tmp_path / "e.npy", [rows(10), what[behind]])
    else:
        np.save(tmp_path / "e.npy", rows(10))
        with (tmp_path / "e.npy").open("ab") as stream:
            stream.write(b"\n" if behind == "a byte" else b"the end")
    expected = r"e.npy has \d+ bytes, its header promises \d+, of 10 rows; .*numpy.concatenate"
    with pytest.raises(InvalidInputError, match=expected):
        imported(tmp_path / "e.npy", tmp_path / "s")
    with pytest.raises(InvalidInputError, match=expected):
        run_job(tmp_path / "e.npy", tmp_path / "t", job.settings())


@pytest.mark.parametrize("compressed", [False, True])
def test_more_in_a_member_of_an_npz_than_its_header_says(tmp_path, compressed):
    content = io.BytesIO()
    np.save(content, rows(5))
    np.save(content, rows(5))
    how = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "e.npz", "w", how) as archive:
        archive.writestr("embeddings.npy", content.getvalue())
    with pytest.raises(InvalidInputError, match="its header promises"):
        open_source(tmp_path / "e.npz")


def clip_retrieval(folder, arrays, tables, kind="img"):
    (folder / f"{kind}_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for name in arrays:
        path = folder / f"{kind}_emb" / f"{kind}_emb{name}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, rows(4))
    for name in tables:
        path = folder / "metadata" / f"metadata{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        keys = [f"{name}:{row}" for row in range(4)]
        pq.write_table(pa.table({"image_path": keys, "caption": keys}), path)


@pytest.mark.parametrize(
    ("arrays", "tables", "alone"),
    [
        (["_0", "_1", "_3"], ["_0", "_1", "_2"], "img_emb_3.npy, metadata/metadata_2.parquet have"),
        (["_0", "_1"], ["_0"], "img_emb_1.npy has"),
        (["_0"], ["_0", "_1"], "metadata_1.parquet has"),
        (["_0"], ["_1"], "img_emb_0.npy, metadata/metadata_1.parquet have"),
        (["_0"], [""], "img_emb_0.npy, metadata/metadata.parquet have"),
        (["_1", "_01"], ["_1", "_2"], "img_emb_1.npy have the same number"),
    ],
)
def test_files_pair_by_their_numbers(tmp_path, arrays, tables, alone):
    clip_retrieval(tmp_path / "in", arrays, tables)
    with pytest.raises(InvalidInputError, match=alone):
        open_source(tmp_path / "in")


@pytest.mark.parametrize(
    ("arrays", "tables"),
    [
        (["_0", "_2", "_10"], ["_10", "_2", "_0"]),
        (["_00", "_01"], ["_0", "_1"]),
        ([""], [""]),
        (["_2_of_3", "_10_of_3"], ["_2_of_3", "_10_of_3"]),
    ],
)
@pytest.mark.parametrize("kind", ["img", "text"])
def test_files_with_the_same_numbers_belong_together(tmp_path, arrays, tables, kind):
    clip_retrieval(tmp_path / "in", arrays, tables, kind)
    of_kind = "image" if kind == "img" else "text"
    for part in open_source(tmp_path / "in", kind=of_kind).parts:
        (batch,) = part.batches()
        of_array, of_key = (re.findall("[0-9]+", name) for name in (part.name, batch.keys[3]))
        assert [*map(int, of_array)] == [*map(int, of_key[:-1])]


def test_numbers_without_zeros_are_read_by_number(job, tmp_path):
    (tmp_path / "in").mkdir()
    for number in (1, 2, 10):
        np.save(tmp_path / "in" / f"emb_{number}.npy", rows(3, number))
    heard = Heard()
    _, store = imported(tmp_path / "in", tmp_path / "s", dtype="float32", listener=heard)
    found = store.embeddings()[6:]
    expected = rows(3, 10) / np.linalg.norm(rows(3, 10), axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    (said,) = heard.texts
    assert "emb_2.npy is read before emb_10.npy, by number" in said
    heard = Heard()
    run_job(tmp_path / "in", tmp_path / "t", job.settings(), listener=heard)
    assert any("emb_2.npy is read before emb_10.npy" in text for text in heard.texts)


@pytest.mark.parametrize("option", ["keys", "texts"])
def test_numbers_without_zeros_beside_something_in_row_order(tmp_path, option):
    """Nobody knows which order the keys were written in: both are named."""
    (tmp_path / "in").mkdir()
    for number in (1, 2, 10):
        np.save(tmp_path / "in" / f"emb_{number}.npy", rows(3, number))
    (tmp_path / "names.txt").write_text("".join(f"n{row}\n" for row in range(9)))
    options = {"kind": "text" if option == "texts" else "image", option: tmp_path / "names.txt"}
    with pytest.raises(InvalidInputError, match=r"emb_2.npy is read before emb_10.npy.*either ord"):
        imported(tmp_path / "in", tmp_path / "s", **options)
    for number in (1, 2):
        os.rename(tmp_path / "in" / f"emb_{number}.npy", tmp_path / "in" / f"emb_0{number}.npy")
    _, store = imported(tmp_path / "in", tmp_path / "s", **options)
    assert (store.texts() if option == "texts" else store.keys())[8] == "n8"


def test_what_a_folder_holds_besides_embeddings_is_named(job, tmp_path):
    folder = tmp_path / "in"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "a.npy").write_bytes(b"x")
    np.save(folder / "a.npy", rows(3))
    np.savez(folder / "b.npz", embeddings=rows(2))
    np.savez_compressed(folder / "C.NPZ", embeddings=rows(2))
    np.save(folder / "d.npy", rows(1))
    os.rename(folder / "d.npy", folder / "D.NPY")
    (folder / "notes.txt").write_text("x")
    (folder / "_SUCCESS").write_text("")
    os.symlink(folder, folder / "loop")
    os.symlink("itself", folder / "itself")
    os.symlink("nowhere.txt", folder / "gone.txt")
    os.mkfifo(folder / "pipe.npy")
    heard = Heard()
    summary, store = imported(folder, tmp_path / "s", listener=heard)
    assert store.rows == 8
    assert summary.skipped_files == {
        "hidden": 2, "link to a folder that it is in": 1, "no file": 1,
        "no embeddings by its name": 3,
    }  # fmt: skip
    assert any("gone.txt, itself, notes.txt" in text for text in heard.texts)
    heard = Heard()
    assert run_job(folder, tmp_path / "t", job.settings(), listener=heard).rows == 8
    assert any("gone.txt, itself, notes.txt" in text for text in heard.texts)


def test_a_link_to_nowhere_is_not_left_out(job, tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", rows(3))
    os.symlink("nowhere.npy", tmp_path / "in" / "b.npy")
    with pytest.raises(InvalidInputError, match=r"b\.npy cannot be read"):
        imported(tmp_path / "in", tmp_path / "s")
    summary = run_job(tmp_path / "in", tmp_path / "t", job.settings())
    assert ([name for name, _ in summary.failed], summary.rows) == (["b.npy"], 3)


def test_linked_folders_and_files_are_read(tmp_path):
    """As Hugging Face's cache has them."""
    (tmp_path / "blobs").mkdir()
    np.save(tmp_path / "blobs" / "1.npy", rows(3))
    (tmp_path / "in" / "a").mkdir(parents=True)
    os.symlink("../../blobs/1.npy", tmp_path / "in" / "a" / "x.npy")
    os.symlink("a", tmp_path / "in" / "b")
    assert [part.name for part in open_source(tmp_path / "in").parts] == ["a/x.npy", "b/x.npy"]


def test_folders_that_begin_with_an_underscore_and_have_a_value(tmp_path):
    for year in (2020, 2021):
        folder = tmp_path / "in" / f"_year={year}"
        folder.mkdir(parents=True)
        table = pa.table({"id": [f"{year}"], "embedding": listed(rows(1))})
        pq.write_table(table, folder / "0.parquet")
    assert [part.name[:10] for part in open_source(tmp_path / "in").parts] == [
        "_year=2020", "_year=2021",
    ]  # fmt: skip
