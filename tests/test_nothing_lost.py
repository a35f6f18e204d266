"""Files as people have them: no value on another row's key, and nothing left out in silence."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import re
import subprocess
import sys
import tarfile
import uuid
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from bulk_fixtures import DIM, unit
from PIL import Image

from bliss_index import load_encoder
from bliss_index.calibration.labels import Labels
from bliss_index.encode.decode import DecodeError, decode_image
from bliss_index.encode.image_rows import passed_over
from bliss_index.encode.image_work import encode_image_store
from bliss_index.encode.images import open_images
from bliss_index.errors import BlissError, InvalidInputError
from bliss_index.jobs import JobListener
from bliss_index.scoring import run_job
from bliss_index.scoring.score_inputs import open_input
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.columns import read_names
from bliss_index.store.import_work import import_embeddings
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.sources import open_source
from bliss_index.vocabulary import load_vocabulary

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


def parquet_of(count, **options):
    """A file, as bytes, of rows that no other count has."""
    content = io.BytesIO()
    columns = {
        "embedding": list(rows(count, count)),
        "text": [f"{count}:{n}" for n in range(count)],
    }
    pq.write_table(pa.table(columns), content, **options)
    return content.getvalue()


def feather_of(count, compression):
    content = io.BytesIO()
    columns = {"embedding": list(rows(count, count)), "text": ["a", "b"] * (count // 2)}
    table = pa.table(columns)
    table = table.set_column(1, "text", table.column("text").dictionary_encode())
    pyarrow.feather.write_feather(table, content, compression=compression, chunksize=4)
    return content.getvalue()


def archive_of(count, save):
    content = io.BytesIO()
    save(content, rows(count, count))
    return content.getvalue()


TWICE = {
    ".parquet": parquet_of,
    "groups.parquet": lambda count: parquet_of(count, row_group_size=3, compression="zstd"),
    "plain.parquet": lambda count: parquet_of(
        count, use_dictionary=False, write_statistics=False, compression="none"
    ),
    "indexed.parquet": lambda count: parquet_of(
        count, write_page_index=True, bloom_filter_options={"text": True}
    ),
    ".arrow": lambda count: feather_of(count, "uncompressed"),
    ".feather": lambda count: feather_of(count, "zstd"),
    ".npz": lambda count: archive_of(count, np.savez),
    "small.npz": lambda count: archive_of(count, np.savez_compressed),
    ".pt": lambda count: archive_of(count, lambda to, x: torch.save(torch.from_numpy(x), to)),
}


@pytest.mark.parametrize("counts", [(6, 10), (10, 6), (6, 6), (200, 6), (6, 200)])
@pytest.mark.parametrize("name", TWICE)
def test_a_file_with_another_in_front(tmp_path, name, counts):
    """Their readers look at the end of a file, and so see the last one only."""
    first, second = map(TWICE[name], counts)
    path = tmp_path / f"e{name}"
    path.write_bytes(first + second)
    with pytest.raises(
        InvalidInputError, match=f"two files, one after the other: {len(first)} bytes are in front"
    ) as caught:
        open_source(path)
    (line,) = re.findall("Separate them: (.*)$", str(caught.value))
    path.rename(tmp_path / "both")
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    for separate, count in zip(("first", "second"), counts, strict=True):
        (tmp_path / separate).rename(path)
        (part,) = open_source(path).readers
        found = np.concatenate([batch.embeddings for batch in part.batches()])
        np.testing.assert_array_equal(found, rows(count, count))


def test_other_readers_of_parquet_see_another_in_front(tmp_path):
    (tmp_path / "e.parquet").write_bytes(parquet_of(6) + parquet_of(10))
    for read in (
        lambda path: read_names(path, "text"),
        lambda path: load_vocabulary(path).entries,
        Labels.read,
    ):
        with pytest.raises(InvalidInputError, match="two files, one after the other"):
            read(tmp_path / "e.parquet")
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    pq.write_table(pa.table({"image": [image.getvalue()]}), tmp_path / "i.parquet")
    (tmp_path / "i.parquet").write_bytes(2 * (tmp_path / "i.parquet").read_bytes())
    with pytest.raises(InvalidInputError, match="two files, one after the other"):
        open_images(tmp_path / "i.parquet")


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
    for part in open_source(tmp_path / "in", kind=of_kind).readers:
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
    assert [part.name for part in open_source(tmp_path / "in").readers] == ["a/x.npy", "b/x.npy"]


def test_folders_that_begin_with_an_underscore_and_have_a_value(tmp_path):
    for year in (2020, 2021):
        folder = tmp_path / "in" / f"_year={year}"
        folder.mkdir(parents=True)
        table = pa.table({"id": [f"{year}"], "embedding": listed(rows(1))})
        pq.write_table(table, folder / "0.parquet")
    assert [part.name[:10] for part in open_source(tmp_path / "in").readers] == [
        "_year=2020", "_year=2021",
    ]  # fmt: skip


BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)]


def bytes_column(kind, values=("a1", "é")):
    return pa.array([value.encode() for value in values], kind)


@pytest.mark.parametrize("kind", BYTES, ids=str)
@pytest.mark.parametrize("dictionary", [False, True])
def test_bytes_are_texts_in_every_table(tmp_path, kind, dictionary):
    """Spark and Hive write strings as binary columns."""
    column = bytes_column(kind)
    if dictionary:
        if pa.types.is_binary_view(kind):
            pytest.skip("Arrow makes no dictionary of them")
        column = column.dictionary_encode()
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"key": column, "label": column}), path)
    labels = Labels.read(path)
    assert (labels.keys, labels.values) == (("a1", "é"), ("a1", "é"))
    assert read_names(path, "key") == ["a1", "é"]
    pq.write_table(pa.table({"text": column}), path)
    assert load_vocabulary(path).entries == ("a1", "é")
    pq.write_table(pa.table({"id": column, "text": column, "embedding": listed(rows(2))}), path)
    _, store = imported(path, tmp_path / "i")
    assert store.keys() == ["a1", "é"]
    _, store = imported(path, tmp_path / "t", "text")
    assert store.texts() == ["a1", "é"]
    assert read_texts_of_score(path) == ["a1", "é"]


def read_texts_of_score(path):
    (part,) = open_input(path).parts
    return [key for batch in part.read(10) for key in batch.keys.to_pylist()]


def test_bytes_are_texts_in_an_npy(tmp_path):
    np.save(tmp_path / "k.npy", np.array(["a1", "b"], "S"))
    assert read_names(tmp_path / "k.npy", "key") == ["a1", "b"]
    assert Labels.read(tmp_path / "k.npy").values == ("a1", "b")
    np.save(tmp_path / "k.npy", np.array([b"ok", b"\xe9"]))
    with pytest.raises(InvalidInputError, match=r"k\.npy, row 1: the bytes b'\\xe9' are no UTF-8"):
        read_names(tmp_path / "k.npy", "key")
    np.save(tmp_path / "k.npy", np.array([b"ok", b"\xe9"], "V2"))
    with pytest.raises(InvalidInputError, match=r"type \|V2, expected texts"):
        read_names(tmp_path / "k.npy", "key")


@pytest.mark.parametrize("name", ["id", "text"])
def test_bytes_that_are_no_texts_are_named(tmp_path, name):
    values = [b"ok"] * 700 + [b"caf\xe9"]
    columns = {
        "id": [b"%d" % row for row in range(701)],
        "text": values,
        "embedding": listed(rows(701)),
    }
    columns[name] = values if name == "text" else [b"%d" % r for r in range(700)] + [b"caf\xe9"]
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=300)
    expected = rf"t\.parquet: column '{name}', row 700: the bytes b'caf\\xe9' are no UTF-8"
    with pytest.raises(InvalidInputError, match=expected):
        imported(tmp_path / "t.parquet", tmp_path / "s", "text" if name == "text" else "image")
    pq.write_table(pa.table({"text": values}), tmp_path / "v.parquet", row_group_size=300)
    with pytest.raises(InvalidInputError, match=r"v\.parquet: column 'text', row 700: the bytes"):
        load_vocabulary(tmp_path / "v.parquet")
    with pytest.raises(InvalidInputError, match=r"v\.parquet: column 'text', row 700: the bytes"):
        Labels.read(tmp_path / "v.parquet", ("text",))


def test_two_arrays_in_a_file_of_keys(tmp_path):
    saved_one_after_the_other(tmp_path / "k.npy", [np.array(["a"]), np.array(["b"])])
    with pytest.raises(InvalidInputError, match=r"k\.npy has \d+ bytes, its header promises"):
        read_names(tmp_path / "k.npy", "key")


def test_whole_numbers_that_a_table_keeps_as_floats(tmp_path):
    """As pandas does where a value is missing."""
    np.save(tmp_path / "k.npy", np.array([1.0, 2.0, 2.5]))
    assert read_names(tmp_path / "k.npy", "key") == ["1", "2", "2.5"]
    for kind in (pa.float64(), pa.float32(), pa.float16()):
        numbers = pa.array([1.0, 2.0, None, float("nan")], pa.float64()).cast(kind)
        table = pa.table({"id": numbers, "embedding": listed(rows(4))})
        pq.write_table(table, tmp_path / "t.parquet")
        _, store = imported(tmp_path / "t.parquet", tmp_path / f"s{kind}")
        assert store.keys() == ["1", "2", "2", "3"]
        assert list(store.shard(0).status) == ["ok", "ok", "missing_key", "missing_key"]
    pq.write_table(pa.table({"key": [1.0, 2.0], "label": ["cat", "dog"]}), tmp_path / "l.parquet")
    assert Labels.read(tmp_path / "l.parquet").keys == ("1", "2")
    (tmp_path / "l.csv").write_text("key,label\n1.0,cat\n2.0,dog\n")
    assert Labels.read(tmp_path / "l.csv").of_rows(lambda: [["2", "1"]], 2) == ["dog", "cat"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\n\n", "\r\n\r\n", ""])
def test_separators_are_recognised(tmp_path, suffix, mark, end):
    path = tmp_path / f"t{suffix}"
    lines = [["key", "text", "n"], ["a.jpg", "cat", "1"], ["b.jpg", "dog", "2"]]
    text = ("\r\n" if "\r" in end else "\n").join(mark.join(line) for line in lines) + end
    path.write_text(text, newline="")
    labels = Labels.read(path, ("text",))
    assert (labels.keys, labels.values) == (("a.jpg", "b.jpg"), ("cat", "dog"))
    assert read_names(path, "key", rows=2) == ["a.jpg", "b.jpg"]
    assert load_vocabulary(path).entries == ("cat", "dog")
    path.write_text(text.replace("text", "path"), newline="")
    assert [row.key for row in open_images(path).iter()] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("mark", ["\t", ";", "|"])
def test_a_table_in_a_file_of_lines_is_refused(tmp_path, mark):
    (tmp_path / "t.txt").write_text(f"a.jpg{mark}cat\nb.jpg{mark}dog\n\n")
    expected = r"t\.txt should hold one value a line, and every line has 1 .* name it \.csv or"
    for read in (Labels.read, lambda path: read_names(path, "key"), load_vocabulary):
        with pytest.raises(InvalidInputError, match=expected):
            read(tmp_path / "t.txt")


def test_lines_with_marks_that_are_no_table(tmp_path):
    lines = ["a cat; a dog", "plain", "this | that", "x;y;z"]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    assert load_vocabulary(tmp_path / "t.txt").entries == tuple(lines)
    assert read_names(tmp_path / "t.txt", "text", rows=4) == lines
    (tmp_path / "t.csv").write_text("text\na cat; a dog\nx;y;z\n")
    assert load_vocabulary(tmp_path / "t.csv").entries == ("a cat; a dog", "x;y;z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key;text|n\na;b|c|d;e\n", "expected columns separated by commas, but the header"),
        ("text\na cat, sitting\n", "2 fields, the header has 1"),
        ("key,label\na,b\n\nc,d,e\n", "3 fields, the header has 2"),
        ("label,label\na,b\n", "two columns 'label'|columns 'label', 'label'"),
    ],
)
def test_tables_that_are_unclear(tmp_path, text, expected):
    (tmp_path / "t.csv").write_text(text)
    for read in (Labels.read, load_vocabulary):
        with pytest.raises(InvalidInputError, match=expected):
            read(tmp_path / "t.csv")


def test_excel_names_the_separator(tmp_path):
    (tmp_path / "t.csv").write_text("sep=;\nkey;label\na;cat, or so\n")
    assert Labels.read(tmp_path / "t.csv").values == ("cat, or so",)


def test_names_of_columns_in_capitals_and_with_blanks(tmp_path):
    """Else the keys would be taken for nothing, and the labels for those of the rows in order."""
    (tmp_path / "t.csv").write_text(" Key ,LABEL\nb,dog\na,cat\n")
    assert Labels.read(tmp_path / "t.csv").of_rows(lambda: [["a", "b"]], 2) == ["cat", "dog"]
    pq.write_table(pa.table({"Key": ["b"], "label": ["dog"]}), tmp_path / "t.parquet")
    assert Labels.read(tmp_path / "t.parquet").keys == ("b",)


def test_blank_lines_at_the_end(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"a\r\nb\r\n\r\n\r\n")
    assert read_names(tmp_path / "t.txt", "key", rows=2) == ["a", "b"]
    assert Labels.read(tmp_path / "t.txt").of_rows(lambda: [["0", "1"]], 2) == ["a", "b"]
    assert Labels.read(tmp_path / "t.txt").of_rows(lambda: [["0", "1", "2"]], 3)[2] is None
    (tmp_path / "t.csv").write_text("label\ncat\n\ndog\n\n")
    assert Labels.read(tmp_path / "t.csv").of_rows(lambda: [["0", "1", "2"]], 3) == [
        "cat", None, "dog",
    ]  # fmt: skip


@pytest.mark.parametrize("written", ["./a/é.jpg", "a\\é.jpg", "a/e\N{COMBINING ACUTE ACCENT}.jpg"])
def test_keys_that_are_written_otherwise(tmp_path, written):
    labels = Labels("l.csv", ("cat", "dog"), (written, "b"))
    assert labels.of_rows(lambda: [["b"], ["a/é.jpg", "c"]], 3) == ["dog", "cat", None]
    with pytest.raises(InvalidInputError, match="1 keys that no row has"):
        labels.of_rows(lambda: [["b", "a/é.jpg", "./a/é.jpg"][: 3 if written[0] != "." else 1]], 3)
    exact = Labels("l.csv", ("cat", "dog"), (written, "a/é.jpg"))
    assert exact.of_rows(lambda: [["a/é.jpg", written]], 2) == ["dog", "cat"]


def test_labels_in_row_order_of_names_without_zeros():
    """Letters or numbers: where the labels would differ, nobody knows which was meant."""
    keys = ["1.png", "10.png", "2.png"]
    with pytest.raises(InvalidInputError, match=r"'10\.png' is row 1; .* numbers that is '2\.png'"):
        Labels("l.txt", ("a", "b", "c")).of_rows(lambda: [keys], 3)
    assert Labels("l.txt", ("a", "b", "b")).of_rows(lambda: [keys], 3) == ["a", "b", "b"]
    by_number = ["1.png", "2.png", "10.png"]
    assert Labels("l.txt", ("a", "b", "c")).of_rows(lambda: [by_number], 3) == ["a", "b", "c"]


def write_parts(folder, *columns):
    folder.mkdir(exist_ok=True)
    for number, others in enumerate(columns):
        keys = [f"{number}-{row}" for row in range(2)]
        table = pa.table({"id": keys, "embedding": listed(rows(2, number)), **others})
        pq.write_table(table, folder / f"{number}.parquet")
    return folder


TEXTS = pa.array(["x", "y"])
DIFFERENT = {
    "null, then text": (pa.nulls(2), TEXTS, [None, None, "x", "y"]),
    "text, then null": (TEXTS, pa.nulls(2), ["x", "y", None, None]),
    "integers, then floats": (pa.array([1, 2]), pa.array([1.5, None]), [1.0, 2.0, 1.5, None]),
    "floats, then integers": (pa.array([1.5, None]), pa.array([1, 2]), [1.5, None, 1.0, 2.0]),
    "text, then large text": (TEXTS, TEXTS.cast(pa.large_string()), ["x", "y", "x", "y"]),
    "text, then text views": (TEXTS, TEXTS.cast(pa.string_view()), ["x", "y", "x", "y"]),
    "dictionary, then text": (TEXTS.dictionary_encode(), TEXTS, ["x", "y", "x", "y"]),
    "only in the first": (TEXTS, None, ["x", "y", None, None]),
    "only in the second": (None, TEXTS, [None, None, "x", "y"]),
    "bytes, then text": (pa.array([b"x", b"y"]), TEXTS, [b"x", b"y"] * 2),
    "small integers, then others": (
        pa.array([1, 2], pa.int8()), pa.array([3, 4], pa.uint64()), [1, 2, 3, 4],
    ),
    "dictionaries of others": (
        TEXTS.dictionary_encode(), pa.array(["y", "z"]).dictionary_encode(), ["x", "y", "y", "z"],
    ),
    "lists, then nothing": (pa.array([[1], []]), pa.nulls(2), [[1], [], None, None]),
    "uuid": (
        pa.array([bytes(16)] * 2, pa.uuid()), pa.array([b"1" * 16] * 2, pa.uuid()),
        [uuid.UUID(bytes=bytes(16))] * 2 + [uuid.UUID(bytes=b"1" * 16)] * 2,
    ),
    "a struct that gains a field": (
        pa.array([{"a": 1}] * 2), pa.array([{"b": "z", "a": 2}] * 2),
        [{"a": 1, "b": None}] * 2 + [{"a": 2, "b": "z"}] * 2,
    ),
    "a struct that loses a field": (
        pa.array([{"b": "z", "a": 2}] * 2), pa.array([{"a": 1}] * 2),
        [{"a": 2, "b": "z"}] * 2 + [{"a": 1, "b": None}] * 2,
    ),
    "a list of structs that gain a field": (
        pa.array([[{"a": 1}]] * 2), pa.array([[{"a": 1, "b": 2}]] * 2),
        [[{"a": 1, "b": None}]] * 2 + [[{"a": 1, "b": 2}]] * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_columns_that_differ_between_files(tmp_path, case):
    first, second, expected = DIFFERENT[case]
    given = [{} if column is None else {"c": column} for column in (first, second)]
    _, store = imported(write_parts(tmp_path / "in", *given), tmp_path / "s")
    found = [shard.metadata().column("c").to_pylist() for shard in store.iter_shards()]
    assert [*itertools.chain(*found)] == expected
    types = {shard.metadata().schema.field("c").type for shard in store.iter_shards()}
    assert len(types) == 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (TEXTS, pa.array([1, 2]), r"'c' is of type string in 0\.parquet and of type int64 in 1\."),
        (pa.array([1, 2]), pa.array([True, None]), "type int64 in 0.parquet and of type bool in 1"),
        (pa.array([2**53 + 1, 0]), pa.array([0.5, 1]), r"0\.parquet: column 'c' is of type int64"),
        (pa.array([1, 2]).cast(pa.decimal128(21, 2)), pa.array([0.5, 1]), "decimal.* holds both"),
        (pa.array([bytes(16)] * 2, pa.uuid()), TEXTS, "extension<arrow.uuid> in 0.*holds both"),
        (pa.array([1, 2], pa.timestamp("us", "UTC")), pa.array([1, 2], pa.timestamp("us")),
         "tz=UTC. in 0.parquet and of type timestamp.us. in 1.parquet"),
        (pa.array([1, 2], pa.int8()), pa.array([2**64 - 1, 0], pa.uint64()), "becomes int64, wh"),
        (pa.array([2**62] * 2, pa.timestamp("us")), pa.array([1, 2], pa.timestamp("ns")),
         r"0\.parquet: column 'c' is of type timestamp\[us\]"),
    ],
)  # fmt: skip
def test_columns_that_no_type_holds(tmp_path, first, second, expected):
    folder = write_parts(tmp_path / "in", {"c": first}, {"c": second})
    with pytest.raises(InvalidInputError, match=expected):
        imported(folder, tmp_path / "s")


def test_a_column_has_a_name_of_the_stores_own_in_one_file(tmp_path):
    folder = write_parts(
        tmp_path / "in", {"status": TEXTS}, {"source_status": TEXTS, "status": TEXTS}
    )
    _, store = imported(folder, tmp_path / "s")
    found = [shard.metadata().to_pydict() for shard in store.iter_shards()]
    merged = {name: [*itertools.chain(*(each[name] for each in found))] for name in found[0]}
    assert merged == {
        "source_source_status": ["x", "y"] * 2, "source_status": [None, None, "x", "y"],
    }  # fmt: skip


def test_a_column_that_comes_in_with_a_later_file(tmp_path):
    """A store that grows: the column is kept in the new rows, or refused by name."""
    folder = write_parts(tmp_path / "in", {"c": TEXTS})
    imported(folder, tmp_path / "s")
    write_parts(folder, {"c": TEXTS}, {"c": TEXTS, "d": TEXTS})
    os.utime(folder / "0.parquet", (0, 0))
    _, store = imported(folder, tmp_path / "s")
    found = [shard.metadata() for shard in store.iter_shards()]
    assert found[-1].column("d").to_pylist() == ["x", "y"]


def test_two_columns_of_one_name(job, tmp_path):
    keys, vectors = pa.array(["a", "b"]), listed(rows(2))
    for own in ("id", "embedding", "text"):
        columns = {"id": keys, "embedding": vectors, "text": keys}
        names, values = [*columns, own], [*columns.values(), columns[own]]
        pq.write_table(pa.table(values, names=names), tmp_path / "t.parquet")
        with pytest.raises(InvalidInputError, match=f"t.parquet has two columns '{own}'; rename"):
            imported(tmp_path / "t.parquet", tmp_path / "s", "text")
    table = pa.table([keys, vectors, keys, keys], names=["id", "embedding", "x", "x"])
    pq.write_table(table, tmp_path / "t.parquet")
    _, store = imported(tmp_path / "t.parquet", tmp_path / "s")
    assert store.shard(0).metadata().to_pydict() == {"x": ["a", "b"], "x_2": ["a", "b"]}
    assert run_job(tmp_path / "t.parquet", tmp_path / "t", job.settings()).rows == 2
    pq.write_table(pa.table([keys, keys], names=["label", "label"]), tmp_path / "l.parquet")
    with pytest.raises(InvalidInputError, match="two columns 'label'"):
        Labels.read(tmp_path / "l.parquet")
    pq.write_table(pa.table([keys, keys, keys], names=["label", "x", "x"]), tmp_path / "l.parquet")
    assert Labels.read(tmp_path / "l.parquet").values == ("a", "b")


def write_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    ".parquet": pq.write_table,
    ".feather": pyarrow.feather.write_feather,
    ".arrow": lambda t, path: pyarrow.feather.write_feather(t, path, compression="uncompressed"),
    ".arrows": lambda table, path: write_stream(table, path),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("between", ["no rows", "nulls", "no lists", "no type", "no type, no rows"])
@pytest.mark.parametrize("given", ["lists", "bytes"])
def test_files_without_an_embedding_in_a_folder_of_good_ones(job, tmp_path, between, suffix, given):
    folder = tmp_path / "in"
    folder.mkdir()
    odd = {"no rows": [], "no lists": [[], []], "no type, no rows": []}.get(between, [None, None])
    for number, vectors in enumerate((odd, rows(2), odd, rows(2))):
        keys = pa.array([f"{number}{row}" for row in range(len(vectors))], pa.string())
        values = [v if v is None else list(map(float, v)) for v in vectors]
        column = pa.array(values, pa.list_(pa.float32()))
        if given == "bytes":
            packed = [v if v is None else np.asarray(v, "<f4").tobytes() for v in values]
            column = pa.array(packed, pa.binary())
        if between.startswith("no type") and vectors is odd:
            column = pa.nulls(len(odd))
        table = pa.table({"id": keys, "embedding": column})
        WRITERS[suffix](table, str(folder / f"{number}{suffix}"))
    columns = ColumnNames(dtype="float32" if given == "bytes" else None)
    _, store = imported(folder, tmp_path / "s", columns=columns)
    bad = 2 * len(odd)
    assert (store.rows, store.manifest.bad_rows) == (4 + bad, bad)
    np.testing.assert_allclose(store.embeddings()[[len(odd), -1]], unit(rows(2)), atol=1e-3)
    summary = run_job(folder, tmp_path / "t", job.settings(), columns=columns)
    assert (summary.rows, summary.bad_rows, summary.complete) == (4 + bad, bad, True)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_whose_embeddings_have_no_type(tmp_path, suffix):
    keys = ["a", "b"]
    table = pa.table({"id": keys, "embedding": pa.nulls(2)})
    WRITERS[suffix](table, str(tmp_path / f"e{suffix}"))
    with pytest.raises(InvalidInputError, match="holds no embedding, of whatever dimension"):
        open_source(tmp_path / f"e{suffix}")
    # Another column is what is meant then.
    table = table.append_column("v", pa.array(list(rows(2))))
    WRITERS[suffix](table, str(tmp_path / f"e{suffix}"))
    assert open_source(tmp_path / f"e{suffix}").dim == DIM


@pytest.mark.parametrize("first", [[], [0.0], None])
def test_a_first_row_that_is_a_placeholder(tmp_path, first):
    column = pa.array([first, *map(list, rows(3).tolist())], pa.list_(pa.float32()))
    pq.write_table(pa.table({"embedding": column}), tmp_path / "t.parquet")
    _, store = imported(tmp_path / "t.parquet", tmp_path / "s")
    assert (store.dim, store.rows, store.manifest.bad_rows) == (DIM, 4, 1)


def test_embeddings_that_are_tensors(tmp_path):
    tensors = [pa.FixedShapeTensorArray.from_numpy_ndarray(rows(3, seed)) for seed in (0, 1)]
    table = pa.table(tensors, names=["embedding", "beside"])
    pq.write_table(table, tmp_path / "t.parquet")
    _, store = imported(tmp_path / "t.parquet", tmp_path / "s")
    assert (store.dim, store.rows, store.manifest.bad_rows) == (DIM, 3, 0)
    np.testing.assert_array_equal(
        store.shard(0).metadata().column("beside").combine_chunks().to_numpy_ndarray(), rows(3, 1)
    )


def test_two_columns_of_lists_and_very_many_columns(tmp_path):
    pq.write_table(pa.table({"a": listed(rows(2)), "b": listed(rows(2))}), tmp_path / "t.parquet")
    with pytest.raises(InvalidInputError, match="a, b; name one with --embedding-column"):
        open_source(tmp_path / "t.parquet")
    wide = pa.table({f"c{number}": [0.5] for number in range(513)})
    pq.write_table(wide, tmp_path / "t.parquet")
    with pytest.raises(InvalidInputError, match="and 508 more") as caught:
        open_source(tmp_path / "t.parquet")
    assert len(str(caught.value)) < 500


def tar_of(path, members, *, end=True):
    """Write members: bytes, or ('link' or 'symlink', target)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                member.type = {"link": tarfile.LNKTYPE, "symlink": tarfile.SYMTYPE}[data[0]]
                member.linkname = data[1]
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        blocks = archive.offset
    data = content.getvalue()[: None if end else blocks]
    path.write_bytes(gzip.compress(data) if path.suffix in (".gz", ".tgz") else data)
    return path


def listing(source):
    found = [(row.key, row.content, row.metadata) for row in source.iter()]
    assert source.rows() == len(found)
    for size in (1, 2, 100):  # the same from every place where a part may begin
        pieces = [list(source.read(piece.detail)) for piece in source.pieces(size)]
        assert [(r.key, r.content, r.metadata) for r in itertools.chain(*pieces)] == found
    return found


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_links_in_a_tar(tmp_path, suffix):
    """A hard link has content, of which the archive holds one copy."""
    members = [
        ("d/0.png", b"zero"), ("d/1.png", b"one"), ("d/2.png", ("link", "d/0.png")),
        ("d/2.txt", b"a caption"), ("d/3.png", ("symlink", "1.png")),
        ("d/4.png", ("link", "d/nowhere.png")), ("d/5.jpg", ("link", "d/1.png")),
    ]  # fmt: skip
    source = open_images(tar_of(tmp_path / f"x.{suffix}", members))
    assert listing(source) == [
        ("d/0", b"zero", {}), ("d/1", b"one", {}), ("d/2", b"zero", {"txt": "a caption"}),
        ("d/5", b"one", {}),
    ]  # fmt: skip
    assert source.skipped == {"symbolic link": 1, "hard link to nowhere": 1}


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["a.1.jpg", "a.2.jpg"], ["a.1", "a.2"]),
        (["x/2020.01.01.png", "x/2020.01.02.png"], ["x/2020.01.01", "x/2020.01.02"]),
        (["a.left.jpg", "a.right.jpg", "b.jpg"], ["a.left", "a.right", "b"]),
        (["a.img.jpg", "b.img.jpg"], ["a", "b"]),
        (["a.jpg", "a.png"], ["a"]),
        (["a.JPG", "b.v1.JPG", "b.v2.jpeg"], ["a", "b.v1", "b.v2"]),
        (["d.1/a.jpg", "d.1/b.jpg"], ["d.1/a", "d.1/b"]),
        (["a.1.jpg", "b.jpg", "a.2.jpg"], ["a", "b", "a"]),
    ],
)
def test_names_with_several_dots_are_not_merged(tmp_path, names, keys):
    source = open_images(tar_of(tmp_path / "x.tar", [(name, name.encode()) for name in names]))
    assert [key for key, _, _ in listing(source)] == keys
    assert source.skipped == ({"other member": 1} if names == ["a.jpg", "a.png"] else {})


def test_texts_of_names_with_several_dots(tmp_path):
    names = ["a.json", "a.1.txt", "a.1.jpg", "a.2.jpg", "a.2.txt", "a.cls", "b.x.jpg", "b.txt"]
    source = open_images(tar_of(tmp_path / "x.tar", [(name, name.encode()) for name in names]))
    assert [(key, texts) for key, _, texts in listing(source)] == [
        ("a.1", {"txt": "a.1.txt", "json": "a.json", "cls": "a.cls"}),
        ("a.2", {"txt": "a.2.txt", "json": "a.json", "cls": "a.cls"}),
        ("b", {"txt": "b.txt"}),
    ]
    assert source.skipped == {}


def test_a_text_beside_an_image_that_is_no_utf8(tmp_path):
    source = open_images(tar_of(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.txt", b"caf\xe9")]))
    assert listing(source) == [("a", b"x", {"txt": "caf\\xe9"})]


MEMBERS = [(f"{number}.jpg", b"x" * 700) for number in range(4)]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "cut within", "header", "two in one", "behind"])
def test_a_tar_that_is_not_whole(tmp_path, suffix, damage):
    """tarfile takes all of these for the end of the archive."""
    whole = tar_of(tmp_path / "w.tar", MEMBERS).read_bytes()
    data = bytearray(whole)
    if damage == "cut":
        del data[2 * 1536 :]
    elif damage == "cut within":
        del data[2 * 1536 + 512 + 512 :]
    elif damage == "header":
        data[2 * 1536 + 150] ^= 1
    elif damage == "two in one":
        data += tar_of(tmp_path / "v.tar", [("v.jpg", b"y")]).read_bytes()
    else:
        data += b"more" * 128
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix == "tar.gz" else data)
    source = open_images(path)
    for read in (source.rows, lambda: list(source.iter()), lambda: list(source.pieces(2))):
        with pytest.raises(
            InvalidInputError, match=r"x\.tar.* is damaged or truncated after [234] im"
        ):
            read()


def test_a_tar_whose_end_is_short_or_long(tmp_path):
    """One block of zeros ends it, and any number may follow."""
    data = tar_of(tmp_path / "w.tar", MEMBERS, end=False).read_bytes()
    for blocks in (1, 2, 5000):
        (tmp_path / "x.tar").write_bytes(data + bytes(512 * blocks))
        assert open_images(tmp_path / "x.tar").rows() == 4


def png(value):
    content = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def table_of_images(path, columns):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path)
    return open_images(path)


IMAGES = [png(40), png(80)]
ODD_COLUMNS = {
    "year 148000": pa.array([2**62] * 2, pa.timestamp("us")),
    "year 0": pa.array([-62170000000000] * 2, pa.timestamp("ms")),
    "date of year 12000": pa.array([3663000] * 2, pa.date32()),
    "nanoseconds": pa.array([1700000000000000001] * 2, pa.timestamp("ns", "UTC")),
    "duration": pa.array([1, None], pa.duration("ns")),
    "decimal": pa.array([1, 2]).cast(pa.decimal256(40, 2)),
    "half": pa.array(np.float16([0.1, 0.2])),
    "views": pa.array(["a", None], pa.string_view()),
    "dictionary": pa.array(["a", None]).dictionary_encode(),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(rows(2)),
    "uuid": pa.array([bytes([1] * 16), None], pa.uuid()),
    "bytes": pa.array(["a", "b"]),
}


@pytest.mark.parametrize("case", ODD_COLUMNS)
def test_columns_beside_images_keep_their_values(tmp_path, case):
    column = ODD_COLUMNS[case]
    source = table_of_images(tmp_path / "i.parquet", {"image": IMAGES, "c": column})
    plain = column.dictionary_decode() if case == "dictionary" else column
    found = source.metadata_table(list(source.iter())).column("c").combine_chunks()
    assert found.equals(plain)
    assert source.metadata_table([]).num_rows == 0
    both = open_images([tmp_path / "i.parquet", tmp_path / "i.parquet"])
    assert len(both.metadata_table(list(both.iter()))) == 4


def test_a_tensor_beside_images_comes_into_the_store(tmp_path):
    column = ODD_COLUMNS["tensor"]
    source = table_of_images(tmp_path / "i.parquet", {"image": IMAGES, "c": column})
    encode_image_store(load_encoder("bliss-tiny", device="cpu"), source, tmp_path / "s", decoders=0)
    shard = EmbeddingStore.open(tmp_path / "s").shard(0)
    assert shard.metadata().column("c").combine_chunks().equals(column)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"images": [[content] for content in IMAGES], "text": TEXTS}, "'images' is of type list<"),
        ({"image": pa.array([[1, 2]] * 2, pa.list_(pa.uint8())), "caption": TEXTS},
         "'image' is of type list<.*expected the bytes of an encoded image"),
        ({"pixel_values": [[0.5]] * 2, "path": TEXTS}, "'pixel_values' is of type list"),
        ({"caption": TEXTS, "n": [1, 2]}, r"no column of image bytes or paths.*caption \(string"),
        ({"key": TEXTS, "label": TEXTS}, r"no column of image bytes or paths"),
        (pa.table([IMAGES, IMAGES], names=["image", "image"]), "two columns 'image'"),
        (pa.table([IMAGES, TEXTS, TEXTS], names=["image", "x", "x"]), "two columns 'x'"),
    ],
)  # fmt: skip
def test_tables_without_images_that_are_readable(tmp_path, columns, message):
    with pytest.raises(InvalidInputError, match=message):
        table_of_images(tmp_path / "i.parquet", columns)


@pytest.mark.parametrize("kind", BYTES[:3], ids=str)
def test_keys_and_paths_of_images_that_are_bytes(tmp_path, kind):
    (tmp_path / "é.png").write_bytes(IMAGES[0])
    paths = pa.array(["é.png".encode(), b"gone.png"], kind)
    source = table_of_images(tmp_path / "i.parquet", {"path": paths})
    first, second = source.iter()
    assert (first.key, first.content) == ("é.png", str(tmp_path / "é.png"))
    assert second.key == "gone.png"
    source = table_of_images(tmp_path / "i.parquet", {"image": IMAGES, "__key__": ["k", None]})
    assert [row.key for row in source.iter()] == ["k", "i.parquet:1"]
    columns = {"image": pa.array(IMAGES, pa.binary_view()), "key": [1.0, 2.0]}
    assert [row.key for row in table_of_images(tmp_path / "i.parquet", columns).iter()] == [
        "1",
        "2",
    ]
    source = table_of_images(tmp_path / "i.parquet", {"path": pa.array([b"ok", b"\xe9"], kind)})
    with pytest.raises(InvalidInputError, match=r"column 'path', row 1: the bytes b'\\xe9' are no"):
        list(source.iter())


@pytest.mark.parametrize("value", [2.0, -9999.0, 0.0, 1.0, 0.5])
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pictures_of_one_value(value, kind):
    """Of a range nobody declared: black, and no division by zero."""
    content = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, kind)).save(content, "TIFF")
    pixels = np.unique(np.asarray(decode_image(content.getvalue())))
    assert pixels.tolist() == [round(255 * value) if kind is np.float32 and 0 <= value <= 1 else 0]


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc"])
def test_heic_without_the_package_that_reads_it(tmp_path, monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(40))
    (row,) = open_images(tmp_path).iter()
    with pytest.raises(
        DecodeError, match=r"unsupported_type: .* pip install 'bliss-index\[heic\]'"
    ):
        decode_image(row.content)


def test_heic_with_it(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    content = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), (200, 10, 10))).save(content)
    assert np.asarray(decode_image(content.getvalue()))[5, 5].argmax() == 0


def test_keys_of_two_tars_that_are_numbered_alike(tmp_path):
    members = [("000.png", IMAGES[0]), ("001.png", IMAGES[1])]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths = [tmp_path / name for name in ("a/0.tar", "b/0.tar", "b/1.tar")]
    for path in paths:
        tar_of(path, members)
    keys = [row.key for row in open_images(paths[1:], key_prefix=True).iter()]
    assert keys == ["0.tar/000", "0.tar/001", "1.tar/000", "1.tar/001"]
    source = open_images(paths, key_prefix=True)
    expected = [f"{name}/00{row}" for name in ("a/0.tar", "b/0.tar", "b/1.tar") for row in (0, 1)]
    assert [key for key, _, _ in listing(source)] == expected
    assert [row.key for row in source.iter(3)] == expected[3:]
    (first, _) = open_images(paths[0], key_prefix=True).iter()
    assert first.key == "0.tar/000"
    encoder = load_encoder("bliss-tiny", device="cpu")
    summary = encode_image_store(encoder, open_images(paths), tmp_path / "s", decoders=0)
    assert (summary.repeated_keys, summary.bad_rows) == (2, 0)
    summary = encode_image_store(encoder, source, tmp_path / "t", decoders=0)
    assert (summary.repeated_keys, summary.bad_rows) == (0, 0)
    assert EmbeddingStore.open(tmp_path / "t").keys() == expected
    with pytest.raises(BlissError, match="key_prefix"):
        encode_image_store(encoder, source, tmp_path / "s", decoders=0)
    with pytest.raises(InvalidInputError, match="given twice"):
        open_images([paths[0], paths[0]], key_prefix=True)


@pytest.mark.parametrize("count", [1, 2])
def test_the_folder_that_img2dataset_writes(tmp_path, count):
    keys = []
    for shard in range(count):
        names = [f"{shard:05d}{row:04d}" for row in range(2)]
        tar_of(tmp_path / f"{shard:05d}.tar", [(f"{name}.jpg", IMAGES[0]) for name in names])
        pq.write_table(
            pa.table({"key": names, "caption": names}), tmp_path / f"{shard:05d}.parquet"
        )
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
        keys += names
    source = open_images(tmp_path)
    assert [key for key, _, _ in listing(source)] == keys
    assert source.skipped == {"beside the tars": 2 * count}
    (tmp_path / "photo.jpg").write_bytes(IMAGES[0])  # now it is a folder of images
    assert [row.key for row in open_images(tmp_path).iter()] == ["photo.jpg"]


@pytest.mark.parametrize("off", [0.0, 9e-4, -9e-4, 9.9e-6, 2e-5, 1.0, -0.5])
@pytest.mark.parametrize("given", ["float16", "float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", "float32"])
def test_rows_of_about_unit_norm_are_stored_in_any_type(tmp_path, off, given, stored):
    """Float16 rounds a norm by up to 1e-3, which float32 is not."""
    matrix = rows(50).astype("float64")
    matrix *= (1 + off) / np.linalg.norm(matrix, axis=1, keepdims=True)
    np.save(tmp_path / "e.npy", matrix.astype(given))
    _, store = imported(tmp_path / "e.npy", tmp_path / "s", dtype=stored)
    assert (store.rows, store.manifest.bad_rows) == (50, 0)
    np.testing.assert_allclose(
        np.linalg.norm(store.embeddings().astype("float64"), axis=1), 1,
        atol=1e-3 if stored == "float16" else 1e-5,
    )  # fmt: skip


def with_folders(place, folders):
    for number, folder in enumerate(folders):
        (place / folder).mkdir(parents=True)
        keys = [f"{number}-{row}" for row in range(2)]
        table = pa.table({"id": keys, "embedding": listed(rows(2, number)), "n": [7, 8]})
        pq.write_table(table, place / folder / "part.parquet")
    return place


HIVE = {
    "numbers": (["_year=2020", "_year=2021"], {"_year": [2020, 2020, 2021, 2021]}),
    "without the mark": (["year=2", "year=10"], {"year": [2, 2, 10, 10]}),
    "two levels": (["a=x/b=1", "a=y/b=2"], {"a": ["x", "x", "y", "y"], "b": [1, 1, 2, 2]}),
    "zeros before": (["m=01", "m=02"], {"m": ["01", "01", "02", "02"]}),
    "a number and a text": (["m=1", "m=two"], {"m": ["1", "1", "two", "two"]}),
    "nothing": (["m=1", "m=__HIVE_DEFAULT_PARTITION__"], {"m": [1, 1, None, None]}),
    "an empty text": (["m=", "m=x"], {"m": ["", "", "x", "x"]}),
    "signs in a text": (["m=a%2Fb", "m=%3D1"], {"m": ["=1", "=1", "a/b", "a/b"]}),
    "beyond 64 bits": (["m=1", f"m={10**19}"], {"m": ["1", "1", f"{10**19}", f"{10**19}"]}),
    "in one file only": (["m=1", "other"], {"m": [1, 1, None, None]}),
    "a name of the store's own": (["status=1", "status=2"], {"source_status": [1, 1, 2, 2]}),
    "a column of the file": (["n=1", "n=2"], {}),
    "the column of keys": (["id=1", "id=2"], {}),
}


@pytest.mark.parametrize("case", HIVE)
def test_what_folders_say_is_a_column(job, tmp_path, case):
    folders, expected = HIVE[case]
    place = with_folders(tmp_path / "in", folders)
    _, store = imported(place, tmp_path / "s")
    found = [shard.metadata().to_pydict() for shard in store.iter_shards()]
    merged = {name: [*itertools.chain(*(each[name] for each in found))] for name in found[0]}
    assert merged == {"n": [7, 8, 7, 8], **expected}
    assert run_job(place, tmp_path / "t", job.settings()).rows == 4
    sources = {shard.metadata().schema for shard in store.iter_shards()}
    assert len(sources) == 1


def test_what_folders_of_arrays_say_is_a_column(tmp_path):
    for folder in ("y=1", "y=2", "z"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        np.save(tmp_path / "in" / folder / "e.npy", rows(1))
    _, store = imported(tmp_path / "in", tmp_path / "s")
    found = [shard.metadata().column("y").to_pylist() for shard in store.iter_shards()]
    assert found == [[1], [2], [None]]
    texts = with_folders(tmp_path / "t", ["y=1", "y=2"])  # texts carry no columns
    (tmp_path / "w.txt").write_text("a\nb\nc\nd\n")
    assert imported(texts, tmp_path / "u", "text", texts=tmp_path / "w.txt")[1].rows == 4


KEYS_OF_LABELS = {
    "key": ({"key": ["b", "a"], "id": [1, 2]}, True),
    "id": ({"id": ["b", "a"]}, True),
    "path": ({"path": ["b", "a"]}, True),
    "image_path": ({"image_path": ["b", "a"], "path": ["x", "y"]}, True),
    "file_name": ({"file_name": ["b", "a"]}, True),
    "image": ({"Image": ["b", "a"]}, True),
    "__key__": ({"__key__": ["b", "a"]}, True),
    "another": ({"weight": [1, 2]}, False),
}


@pytest.mark.parametrize("case", KEYS_OF_LABELS)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_labels_belong_to_the_keys_beside_them(tmp_path, case, suffix):
    columns, keyed = KEYS_OF_LABELS[case]
    table = pa.table({"label": ["dog", "cat"], **columns})
    path = tmp_path / f"l{suffix}"
    if suffix == ".csv":
        lines = [",".join(table.column_names)]
        lines += [",".join(map(str, row.values())) for row in table.to_pylist()]
        path.write_text("\n".join(lines))
    else:
        pq.write_table(table, path)
    found = Labels.read(path).of_rows(lambda: [["a", "b"]], 2)
    assert found == (["cat", "dog"] if keyed else ["dog", "cat"])


def test_keys_of_a_table_that_has_other_columns(tmp_path):
    """Not its captions, which have a name that is known as well."""
    (tmp_path / "k.csv").write_text("path,text\na.jpg,a cat\nb.jpg,a dog\n")
    assert read_names(tmp_path / "k.csv", "key", rows=2) == ["a.jpg", "b.jpg"]
    assert read_names(tmp_path / "k.csv", "text", rows=2) == ["a cat", "a dog"]


def test_labels_never_hold_all_keys_of_a_store():
    """Shards are asked for again where a key is written otherwise, and let go one by one."""
    alive = []

    class Keys(list):
        def __del__(self):
            alive.remove(id(self))

    def shards():
        for shard in range(6):
            keys = Keys(f"./{shard}/{row}" for row in range(2))
            alive.append(id(keys))
            assert len(alive) <= 3  # of all passes
            yield keys

    labels = Labels("l.csv", ("x", "y"), ("5/1", "./0/1"))
    expected = [None] * 12
    expected[1], expected[11] = "y", "x"
    assert labels.of_rows(shards, 12) == expected
    assert Labels("l.txt", tuple("abcdefghijkl")).of_rows(shards, 12) == list("abcdefghijkl")
    with pytest.raises(InvalidInputError, match=r"'3/9'; the first row's key is './0/0'"):
        Labels("l.csv", ("x",), ("3/9",)).of_rows(shards, 12)
    with pytest.raises(InvalidInputError, match=r"'a/1.jpg'; a row's key is './0/1'"):
        Labels("l.csv", ("x",), ("a/1.jpg",)).of_rows(shards, 12)
    with pytest.raises(InvalidInputError, match="shards 0 and 1 both have a row"):
        Labels("l.csv", ("x",), ("a/b",)).of_rows(lambda: [["./a/b"], ["./a/b"]], 2)


def test_image_sources_name_what_they_pass_over(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for number in range(7):
        (folder / "sub" / f"{number}.txt").write_text("")
    (folder / ".hidden").write_text("")
    (folder / "a.png").write_bytes(IMAGES[0])
    (folder / "sub" / "loop").symlink_to(folder)
    source = open_images(folder)
    assert [key for key, _, _ in listing(source)] == ["a.png"]
    assert source.skipped == {
        "hidden": 1, "no image extension": 7, "link to a directory": 1,
    }  # fmt: skip
    first = ", ".join(f"sub/{number}.txt" for number in range(5))
    assert passed_over(source) == (
        f"1 (hidden: .hidden), 7 (no image extension: {first} and 2 more), "
        "1 (link to a directory: sub/loop)"
    )
    tar_of(tmp_path / "t.tar", [("a.png", IMAGES[0]), ("b.txt", b"x"), (".c", b"")])
    both = open_images([folder, tmp_path / "t.tar"])
    listing(both)
    said = passed_over(both)
    assert "2 (hidden: .hidden, .c)" in said
    assert "1 (other member: b.txt), 1 (sample without an image: b)" in said
    assert f"7 (no image extension: {first} and 2 more)" in said


IMAGE_TABLES = {
    "only in the first": ({"c": TEXTS}, {}, ["x", "y", None, None]),
    "only in the second": ({}, {"c": TEXTS}, [None, None, "x", "y"]),
    "integers, then floats": ({"c": [1, 2]}, {"c": [0.5, None]}, [1.0, 2.0, 0.5, None]),
    "nothing, then texts": ({"c": pa.nulls(2)}, {"c": TEXTS}, [None, None, "x", "y"]),
    "dictionary, then texts": ({"c": TEXTS.dictionary_encode()}, {"c": TEXTS}, ["x", "y"] * 2),
    "texts, then large ones": ({"c": TEXTS}, {"c": TEXTS.cast(pa.large_string())}, ["x", "y"] * 2),
    "a struct that gains a field": (
        {"c": [{"a": 1}] * 2}, {"c": [{"a": 2, "b": "z"}] * 2},
        [{"a": 1, "b": None}] * 2 + [{"a": 2, "b": "z"}] * 2,
    ),
    "lists": ({"c": [[1], []]}, {"c": [None, [2]]}, [[1], [], None, [2]]),
}  # fmt: skip


@pytest.mark.parametrize("case", IMAGE_TABLES)
def test_tables_of_images_with_different_columns(tmp_path, case):
    first, second, expected = IMAGE_TABLES[case]
    for name, columns in (("0", first), ("1", second)):
        pq.write_table(pa.table({"image": IMAGES, **columns}), tmp_path / f"{name}.parquet")
    source = open_images([tmp_path / "0.parquet", tmp_path / "1.parquet"])
    found = source.metadata_table(list(source.iter())).column("c")
    assert found.to_pylist() == expected
    encode_image_store(load_encoder("bliss-tiny", device="cpu"), source, tmp_path / "s", decoders=0)
    store = EmbeddingStore.open(tmp_path / "s")
    assert table_column(store, "c") == expected


def table_column(store, name):
    shards = (shard.metadata().column(name).to_pylist() for shard in store.iter_shards())
    return [*itertools.chain(*shards)]


def test_tables_of_images_whose_columns_no_type_holds(tmp_path):
    for name, column in (("0", TEXTS), ("1", pa.array([1, 2]))):
        pq.write_table(pa.table({"image": IMAGES, "c": column}), tmp_path / f"{name}.parquet")
    with pytest.raises(InvalidInputError, match=r"'c' is of type string in .*0\.parquet and of t"):
        open_images([tmp_path / "0.parquet", tmp_path / "1.parquet"])


@pytest.mark.parametrize(
    ("case", "suffix"),
    [
        *itertools.product([*ODD_COLUMNS, "map", "list views"], ["parquet", "arrow"]),
        ("month", "arrow"),  # Parquet has none of these
        ("run ends", "arrow"),
    ],
)
def test_odd_columns_beside_embeddings_keep_their_values(job, tmp_path, case, suffix):
    """Python has none of some: they are compared as Arrow's."""
    odd = {
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int32())),
        "month": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
        "run ends": pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["a"])),
        "list views": pa.array([[1], None], pa.list_view(pa.int32())),
    }
    column = {**ODD_COLUMNS, **odd}[case]
    table = pa.table({"id": ["a", "b"], "embedding": listed(rows(2)), "c": column})
    path = tmp_path / f"e.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    _, store = imported(path, tmp_path / "s")
    found = store.shard(0).metadata().column("c").combine_chunks()
    written = pq.read_table(path).column("c").combine_chunks() if suffix == "parquet" else column
    assert found.type == written.type
    assert found.equals(written)
    assert run_job(path, tmp_path / "t", job.settings()).rows == 2
