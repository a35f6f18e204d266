"""The same rows in every layout give the same store and the same scores; what is odd is said."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import shlex
import shutil
import struct
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import scipy.io
import torch
from layouts import ARRAYS, TABLES, Rows, tar_of, written
from PIL import Image
from typer.testing import CliRunner

from bliss_index.cli.app import app
from bliss_index.errors import InvalidInputError, JobError
from bliss_index.scoring import run_job
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.formats import tables, tar
from bliss_index.store.import_work import import_embeddings
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.sources import LAYOUTS, open_source

MODEL = ModelIdentity("ViT-B-32", "openai")
NAMED = {"npz": "vectors", "safetensors": "vectors", "torch.save": "vectors"}


def columns_of(layout):
    return ColumnNames(NAMED.get(layout), dtype="float32" if layout == "Spark" else None)


def imported(location, out, kind="image", **options):
    import_embeddings(location, out, kind=kind, model=MODEL, dtype="float32", **options)
    return EmbeddingStore.open(out)


def table_of(store):
    """All rows of a store with all columns, in Arrow's plain types."""
    found = pa.concat_tables(
        [
            shard.metadata().append_column("key", pa.array(shard.keys))
            for shard in store.iter_shards()
        ]
    )
    return {name: found.column(name).to_pylist() for name in sorted(found.column_names)}


@pytest.mark.parametrize("layout", TABLES)
def test_tables_of_the_same_rows_give_the_same_store(tmp_path, layout):
    rows = Rows.of(1000)
    store = imported(
        written(layout, rows, tmp_path / "in"), tmp_path / "s", columns=columns_of(layout)
    )
    assert store.embeddings("float32").tobytes() == rows.matrix.tobytes()
    found = table_of(store)
    if layout == "Spark":
        found["caption"] = [text.decode() for text in found["caption"]]
    assert found == {"key": rows.keys, "caption": rows.texts, "n": rows.counts}


@pytest.mark.parametrize("layout", ARRAYS)
def test_arrays_of_the_same_rows_give_the_same_store(tmp_path, layout):
    rows = Rows.of(1000)
    store = imported(
        written(layout, rows, tmp_path / "in"), tmp_path / "s", columns=columns_of(layout)
    )
    assert store.embeddings("float32").tobytes() == rows.matrix.tobytes()
    if layout == "webdataset":
        keys = [key.removesuffix(".jpg") for key in rows.keys]
        assert table_of(store) == {"key": keys, "txt": rows.texts}
    else:
        assert store.keys() == list(map(str, range(1000)))


@pytest.mark.parametrize("layout", [*TABLES, *ARRAYS])
def test_every_layout_scores_as_the_array_does(job, tmp_path, layout):
    rows = Rows.of(60)
    np.save(tmp_path / "e.npy", rows.matrix)
    run_job(tmp_path / "e.npy", tmp_path / "expected", job.settings())
    source = written(layout, rows, tmp_path / "in")
    run_job(source, tmp_path / "found", job.settings(), columns=columns_of(layout))
    expected, found = (
        pa.concat_tables([pq.read_table(p) for p in sorted((tmp_path / n).glob("part-*.parquet"))])
        for n in ("expected", "found")
    )
    for name in ("anomaly_score", "nearest_class", "status"):
        assert found.column(name).equals(expected.column(name))


@pytest.mark.parametrize("layout", [*TABLES, *ARRAYS])
def test_every_layout_is_read_in_parts(tmp_path, layout):
    """From any row on, in batches of any size, and cut by rows: the same rows."""
    rows = Rows.of(400)
    location = written(layout, rows, tmp_path / "in")
    source = open_source(location, columns=columns_of(layout))
    found = []
    for piece in source.pieces(130, 1 << 30, carried=True):
        part, start = piece.reader, piece.start
        batches = list(part.batches(50, start=start, count=piece.rows))
        found += [batch.embeddings for batch in batches]
        (again,) = part.batches(1000, start=start + piece.rows - 1, count=1, carried=False)
        np.testing.assert_array_equal(again.embeddings[0], batches[-1].embeddings[-1])
    np.testing.assert_array_equal(np.concatenate(found), rows.matrix)


@pytest.mark.parametrize("layout", [*TABLES, *ARRAYS])
def test_two_files_of_a_layout_in_a_folder(tmp_path, layout):
    parts = [Rows.of(40, seed=seed) for seed in (0, 1)]
    for number, rows in enumerate(parts):
        written(layout, rows, tmp_path / "in" / f"{number}")
    source = open_source(tmp_path / "in", columns=columns_of(layout))
    found = [batch.embeddings for part in source.readers for batch in part.batches()]
    np.testing.assert_array_equal(
        np.concatenate(found), np.concatenate([rows.matrix for rows in parts])
    )


def stream_of(table, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table, 2)
    return sink.getvalue().to_pybytes()


def torch_bytes(value, **options):
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def safetensors_bytes(**tensors):
    return safetensors.torch.save(tensors)


def fvecs(*vectors):
    return b"".join(struct.pack("<i", len(v)) + np.asarray(v).tobytes() for v in vectors)


def block(matrix, shape=None):
    return struct.pack("<II", *(shape or matrix.shape)) + matrix.tobytes()


@pytest.mark.parametrize("layout", ["npy", *TABLES, *ARRAYS])
def test_a_file_that_is_cut_fails_alone(job, tmp_path, layout):
    """The others are scored; where a folder is one data set, all of it is refused."""
    rows = Rows.of(60)
    if layout == "npy":
        np.save(tmp_path / "e.npy", rows.matrix)
        whole = tmp_path / "e.npy"
    else:
        whole = written(layout, rows, tmp_path / "in")
    if whole.is_dir() and layout != "Lance":
        pytest.skip("it is a folder by itself")
    folder = tmp_path / "three"
    folder.mkdir()
    for number in range(3):
        copied = shutil.copytree if whole.is_dir() else shutil.copy
        copied(whole, folder / f"{number}{''.join(whole.suffixes)}")
    cut = folder / f"1{''.join(whole.suffixes)}"
    cut = next((cut / "data").iterdir()) if cut.is_dir() else cut
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) * 2 // 5 + 5])
    summary = run_job(folder, tmp_path / "out", job.settings(), columns=columns_of(layout))
    assert (summary.rows, summary.complete) == (120, False)
    ((name, reason),) = summary.failed
    assert name.startswith("1.")
    assert reason.startswith("CorruptStoreError: 1.")


class Program:
    def __reduce__(self):
        return print, ("a file ran a program",)


SIX = Rows.of(6)


def flipped(content):
    """Change a bit of the matrix that a file holds."""
    at = content.index(SIX.matrix.tobytes()) + 100
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


X, T = SIX.matrix, torch.from_numpy(SIX.matrix)
STREAM = stream_of(SIX.table())
ids = np.arange(96, dtype="<i4").reshape(6, 16)
whole = (X * 1000).astype("<i4")
parquet_bytes = pa.BufferOutputStream()
pq.write_table(SIX.table(), parquet_bytes)
PARQUET = parquet_bytes.getvalue().to_pybytes()
REFUSED = {
    "a stream cut between batches": ("e.arrow", STREAM[:-8], {}, "without its end mark"),
    "a stream cut in a batch": ("e.arrow", STREAM[:-100], {}, "cannot be read as Arrow"),
    "two streams": ("e.arrow", STREAM + STREAM, {}, "more than one stream in a file"),
    "an empty file": ("e.arrow", b"", {}, "e.arrow is empty"),
    "feather 1": ("e.feather", b"FEA1" + bytes(40), {}, "read_feather.old..to_feather.new"),
    "Parquet by another name": ("e.arrow", PARQUET, {}, "is Parquet by its content; rename it"),
    "numpy by another name": ("e.parquet", b"\x93NUMPY" + bytes(99), {}, "to end in .npy"),
    "Arrow by no known name": ("e.dat", b"ARROW1" + bytes(99), {}, "an Arrow file by its content"),
    "a pointer of Git LFS": ("e.parquet", b"version https://git-lfs.x", {}, "git lfs pull"),
    "a page of HTML": ("e.npy", b"<!doctype html><html>", {}, "a page of HTML"),
    "two tensors": ("e.safetensors", safetensors_bytes(a=T, b=T + 1), {}, "a F32 .6, 16., b F32"),
    "a tensor that is not there": ("e.safetensors", safetensors_bytes(a=T), {"embedding": "x"},
                                   "no array 'x'; it has a F32"),
    "integers": ("e.safetensors", safetensors_bytes(embeddings=T.to(torch.int8)), {}, "type I8"),
    "three dimensions": ("e.safetensors", safetensors_bytes(a=T[None]), {}, r"a F32 \[1, 6, 16\]"),
    "more than the header says": ("e.safetensors", safetensors_bytes(a=T) + b"x", {}, "promises"),
    "tensors with steps": ("e.pt", torch_bytes(torch.cat([T, T], 1)[:, ::2]), {}, "contiguous()"),
    "tensors one a row": ("e.pt", torch_bytes({"a": T[0], "b": T[1]}), {}, "2 vectors of 16 val"),
    "an old file": ("e.pt", torch_bytes(T, _use_new_zipfile_serialization=False), {}, "1.6"),
    "a program": ("e.pt", torch_bytes({"a": Program(), "b": T}), {}, "can run programs"),
    "a numpy array in a pickle": ("e.pt", torch_bytes({"a": X}), {}, r"plain values \(numpy"),
    "a sparse tensor": ("e.pt", torch_bytes(T.to_sparse()), {}, "no array"),
    "one vector": ("e.pt", torch_bytes(T[0]), {}, r"shape \(16,\)"),
    "a bit that flipped": ("e.pt", flipped(torch_bytes({"a": T})), {}, "e.pt: a is damaged.*CRC"),
    "another name before the values": (
        "e.pt", torch_bytes({"a": T}).replace(b"archive/data/0", b"\xffrchive/data/0", 1), {},
        "e.pt: a is damaged.*decode byte 0xff",
    ),
    "half a file": ("e.pt", torch_bytes(T)[:-50], {}, "cannot be read as a file of torch.save"),
    "rows of two dimensions": ("e.fvecs", fvecs(X[0], X[1][:8], X[2][:7]), {},
                               "row 1: the dimension is 8, in row 0 it is 16"),
    "rows cut": ("e.fvecs", fvecs(*X)[:-4], {}, "whole number of rows"),
    "a row of another dimension": ("e.fvecs", fvecs(X[0]) + b"\1\0\0\0" + fvecs(X[1])[4:], {},
                                   "row 1: the dimension is 1, in row 0 it is 16"),
    "neighbours": ("g.ivecs", fvecs(*ids), {}, "the numbers of nearest neighbours"),
    "neighbours in a block": ("g.ibin", block(ids), {}, "the numbers of nearest neighbours"),
    "neighbours and distances": ("g.ibin", block(np.vstack([ids, ids]), (6, 16)), {}, "take 392"),
    "a block cut": ("e.fbin", block(X)[:-1], {}, "391 bytes; 6 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_named(tmp_path, capfd, case):
    name, content, columns, message = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=message) as caught:
        for part in open_source(tmp_path / name, columns=ColumnNames(**columns)).readers:
            list(part.batches())
    assert name in str(caught.value)
    assert "ran a program" not in capfd.readouterr().out


HALF = T.bfloat16()
ring = [{"e": T}]
ring.append(ring)
small = np.abs(X * 200).astype("u1")
READ = {
    "bfloat16 of safetensors": ("e.safetensors", safetensors_bytes(a=HALF), {}, HALF),
    "a named tensor": ("e.safetensors", safetensors_bytes(a=T, b=T * 2), {"embedding": "b"}, T * 2),
    "bfloat16 of torch": ("e.pt", torch_bytes(HALF), {}, HALF),
    "half of torch": ("e.pth", torch_bytes({"embeddings": T.half(), "ids": [1]}), {}, T.half()),
    "float64 of torch": ("e.pt", torch_bytes(T.double()), {}, T),
    "a transposed tensor": ("e.pt", torch_bytes(T.T.contiguous().T), {}, T),
    "a view of a larger tensor": ("e.pt", torch_bytes(torch.cat([T, T])[2:8]), {},
                                  torch.cat([T, T])[2:8]),
    "a list that holds itself": ("e.pt", torch_bytes(ring), {}, T),
    "a parameter": ("e.pt", torch_bytes(torch.nn.Parameter(T)), {}, T),
    "a tensor within": ("e.pt", torch_bytes({"m": {"e": HALF, "w": T}}), {"embedding": "m.w"}, T),
    "bytes of bvecs": ("e.bvecs", fvecs(*small), {}, small),
    "integers of ivecs": ("e.ivecs", fvecs(*whole), {}, whole),
    "i8bin": ("e.i8bin", block((X * 127).astype("i1")), {}, (X * 127).astype("i1")),
    "u8bin": ("e.u8bin", block(small), {}, small),
    "ibin": ("e.ibin", block(whole), {}, whole),
    "a stream named as a file": ("e.feather", STREAM, {}, T),
    "capitals": ("E.FBIN", block(X), {}, T),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_read(tmp_path, case):
    name, content, columns, expected = READ[case]
    (tmp_path / name).write_bytes(content)
    (part,) = open_source(tmp_path / name, columns=ColumnNames(**columns)).readers
    for start in (0, 3):
        (batch,) = part.batches(start=start)
        wanted = torch.as_tensor(expected).detach().float().numpy()
        np.testing.assert_array_equal(batch.embeddings, wanted[start:])


def test_arrow_files_of_odd_columns(tmp_path):
    """Dictionaries that change, batches of nulls and of nothing, compression, list views."""
    table = SIX.table()
    changing = [pa.array(two).dictionary_encode() for two in (["a", "b"], ["c", "a"], ["d", "e"])]
    nulls = pa.nulls(2, pa.list_(pa.float32()))
    column = [nulls, table.column("embedding").combine_chunks().slice(2)]
    table = table.set_column(1, "caption", pa.chunked_array(changing))
    table = table.set_column(3, "embedding", pa.chunked_array(column))
    (tmp_path / "e.arrow").write_bytes(stream_of(table))
    options = pa.ipc.IpcWriteOptions(compression="lz4", unify_dictionaries=True)
    (tmp_path / "f.arrow").mkdir()
    with pa.ipc.new_file(tmp_path / "f.arrow" / "0.arrow", table.schema, options=options) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table, 3)
    for name in ("e.arrow", "f.arrow"):
        store = imported(tmp_path / name, tmp_path / f"s {name}")
        assert (store.rows, store.manifest.bad_rows) == (6, 2)
        assert table_of(store)["caption"] == ["a", "b", "c", "a", "d", "e"]
    views = pa.array([*X[:5].tolist(), None], pa.list_view(pa.float32()))
    (tmp_path / "v.arrow").write_bytes(stream_of(table.set_column(3, "embedding", views)))
    (part,) = open_source(tmp_path / "v.arrow").readers
    (batch,) = part.batches()
    np.testing.assert_array_equal(batch.embeddings[:5], X[:5])
    assert batch.errors == {5: ("missing_embedding", "the embedding is null")}


def test_what_lies_beside_a_saved_data_set_is_not_its_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    location = written("saved data set", SIX, tmp_path)
    datasets.load_from_disk(str(location)).map(lambda row: {"n": row["n"] + 1})  # kept beside
    source = open_source(location)
    assert source.rows == 6
    assert "passed over 1 (beside the files of a saved data set): cache-" in source.notices()[0]
    first = next(location.glob("data-00000*"))
    first.unlink()
    with pytest.raises(InvalidInputError, match=f"state.json lists {first.name}, which"):
        open_source(location)
    (location / "state.json").write_text("{")
    with pytest.raises(InvalidInputError, match="state.json cannot be read as the list"):
        open_source(location)
    (location / "state.json").write_text("{}")  # of something else
    assert open_source(location).rows == 4 + 6


def test_splits_are_read_in_their_order(tmp_path):
    """Which is not that of letters: keys in row order are refused beside them."""
    datasets = pytest.importorskip("datasets")
    table = SIX.table()
    splits = {
        "train": datasets.Dataset(table.slice(0, 4)),
        "test": datasets.Dataset(table.slice(4)),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    assert imported(tmp_path / "d", tmp_path / "s").keys() == SIX.keys
    (tmp_path / "k.txt").write_text("a\nb\nc\nd\ne\nf\n")
    with pytest.raises(InvalidInputError, match=r"train/d.* is read before test/d.*k\.txt may"):
        imported(tmp_path / "d", tmp_path / "t", keys=tmp_path / "k.txt")


def test_a_selection_is_saved_as_it_was_ordered(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset(SIX.table()).select([4, 2]).save_to_disk(tmp_path / "d")
    assert imported(tmp_path / "d", tmp_path / "s").keys() == [SIX.keys[4], SIX.keys[2]]


TARS = {
    "none in one": ({"a.npy": X[0], "b.txt": "x", "c.npy": X[2]}, {}, [True, False, True]),
    "a row of a matrix": ({"a.npy": X[:1], "b.npy": X[1], "c.npy": X[:2]}, {}, [True, True, False]),
    "short": ({"a.npy": X[0], "b.npy": X[1][:3]}, {}, [True, False]),
    "half, then single": ({"a.npy": X[0].astype("f2"), "b.npy": X[1].astype("f4")}, {}, [True] * 2),
    "images beside": ({"x/a.jpg": b"z", "x/a.npy": X[0], "x/b.npy": X[1]}, {}, [True] * 2),
    "one of two": ({"a.i.npy": X[0], "a.t.npy": X[1]}, {"embedding": "t"}, [True]),
}


@pytest.mark.parametrize("case", TARS)
def test_arrays_in_tars(tmp_path, case):
    members, columns, good = TARS[case]
    tar_of(tmp_path / "e.tar", members)
    store = imported(tmp_path / "e.tar", tmp_path / "s", columns=ColumnNames(**columns))
    (shard,) = store.iter_shards()
    assert shard.good.tolist() == good
    assert shard.keys == list(dict.fromkeys(name.partition(".")[0] for name in members))
    said = open_source(tmp_path / "e.tar", columns=ColumnNames(**columns)).notices()
    assert (".jpg" in str(said), ".i.npy" in str(said)) == ("images" in case, case == "one of two")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"x", "a.txt": "t"}, r"no .npy in its samples; it has .jpg \(1\).*encode-im"),
        ({"a.i.npy": X[0], "a.t.npy": X[1]}, "several arrays in a sample: i.npy, t.npy; name one"),
        ({"a.npy": X[0].astype(int)}, "a.npy holds values of type int64"),
        ({"a.npy": b"no array"}, "a.npy cannot be read as .npy"),
        ({"a.npy": np.zeros(1 << 19)}, "a.npy has 4194432 bytes, at most"),
        ({f"{n:04d}.npy": X[0].astype("f2" if n < 1024 else "f4") for n in range(1025)},
         "1024.npy is of type float32, those before it of type float16"),
        ({}, "it has no member"),
    ],
)  # fmt: skip
def test_tars_without_arrays_that_are_readable(tmp_path, members, message):
    tar_of(tmp_path / "e.tar", members)
    with pytest.raises(InvalidInputError, match=message):
        for part in open_source(tmp_path / "e.tar").readers:
            list(part.batches())


def test_a_tar_is_read_from_the_group_that_has_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_GROUP_SAMPLES", 32)
    matrix = Rows.of(80).matrix
    tar_of(tmp_path / "e.tar", {f"{row}.npy": vector for row, vector in enumerate(matrix)})
    (part,) = open_source(tmp_path / "e.tar").readers
    assert (part.rows, part.origin(70), len(part.starts)) == (80, 64, 3)
    (batch,) = part.batches(start=70, count=5)
    np.testing.assert_array_equal(batch.embeddings, matrix[70:75])
    assert batch.keys == [str(row) for row in range(70, 75)]
    (tmp_path / "f.tgz").write_bytes(gzip.compress((tmp_path / "e.tar").read_bytes(), 1))
    (packed,) = open_source(tmp_path / "f.tgz").readers
    assert packed.starts is None
    (batch,) = packed.batches(start=70, count=5)
    np.testing.assert_array_equal(batch.embeddings, matrix[70:75])


def test_embeddings_as_bytes(tmp_path):
    values = [row.tobytes() for row in X]
    values[1:4] = None, values[1][:7], b""
    kinds = [pa.binary(), pa.large_binary(), pa.binary_view()]
    for number, kind in enumerate(kinds):
        columns = {"embedding": pa.array(values, kind), "image": [b"x"] * 6}
        pq.write_table(pa.table(columns), tmp_path / "e.parquet")
        with pytest.raises(InvalidInputError, match="holds bytes .*such as --embedding-dtype fl"):
            open_source(tmp_path / "e.parquet")
        store = imported(
            tmp_path / "e.parquet", tmp_path / f"{number}", columns=ColumnNames(dtype="float32")
        )
        assert store.shard(0).good.tolist() == [True, False, False, False, True, True]
        np.testing.assert_array_equal(store.embeddings()[4], X[4])
    half = X.astype(np.float16)
    fixed = pa.array([row.tobytes() for row in half], pa.binary(32))
    pq.write_table(pa.table({"v": fixed}), tmp_path / "e.parquet")
    (part,) = open_source(tmp_path / "e.parquet", columns=ColumnNames("v", dtype="float16")).readers
    assert (part.dim, part.dtype) == (16, "float16")
    np.testing.assert_array_equal(next(part.batches()).embeddings, half)
    pq.write_table(pa.table({"v": [b"12345"], "w": [b"1"]}), tmp_path / "e.parquet")
    for columns, message in (
        (ColumnNames("v", dtype="float32"), "5 bytes a row, which are no float32 values of 4"),
        (ColumnNames(dtype="float32"), "2 columns that may be the embeddings: v, w"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            open_source(tmp_path / "e.parquet", columns=columns)
    pq.write_table(SIX.table(), tmp_path / "e.parquet")
    with pytest.raises(InvalidInputError, match="leave --embedding-dtype out"):
        open_source(tmp_path / "e.parquet", columns=ColumnNames(dtype="float32"))


def test_of_texts_and_images_in_one_file_those_of_the_kind_are_read(tmp_path):
    both = {"image_embedding": X, "text_embedding": X[::-1]}
    np.savez(tmp_path / "e.npz", **both)
    lists = {name: list(matrix) for name, matrix in both.items()}
    pq.write_table(pa.table({**lists, "text": SIX.texts}), tmp_path / "e.parquet")
    for name in ("e.npz", "e.parquet"):
        for kind, expected in (("image", X), ("text", X[::-1])):
            (part,) = open_source(tmp_path / name, kind=kind).readers
            np.testing.assert_array_equal(next(part.batches()).embeddings, expected)
    assert open_source(tmp_path / "e.npz").notices() == [
        f"{tmp_path / 'e.npz'}: passed over 1 (beside the embeddings in a file): "
        "e.npz: text_embedding"
    ]


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ({f"{n}": [0.5] for n in range(512)}, r"and 507 more; 512 are numbers.*embedding=list"),
        ({"f": [{"type": 1, "values": [0.5]}]}, "'f' looks like a vector of Spark's"),
        ({"embedding": ["[0.5, 1]"]}, r"\.map\(json.loads\)"),
        ({"embedding": [[1, 2]]}, "write it as lists of float32"),
        ({"vector": [[[0.5]]]}, "write it as lists of float32"),
    ],
)  # fmt: skip
def test_columns_that_are_nearly_embeddings(tmp_path, columns, hint):
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    with pytest.raises(InvalidInputError, match=hint):
        open_source(tmp_path / "e.parquet")


def test_lance_data_sets(tmp_path):
    lance = pytest.importorskip("lance")
    lance.write_dataset(SIX.table("fixed"), tmp_path / "two" / "a.lance").delete("n = 2")
    nothing = SIX.table().set_column(3, "embedding", pa.nulls(6, pa.list_(pa.float32())))
    parts = pa.concat_tables([*[nothing] * 11, SIX.table()])  # none among the first 64
    lance.write_dataset(parts, tmp_path / "two" / "b.lance", mode="create")
    lance.write_dataset(SIX.table("fixed").slice(0, 2), tmp_path / "table")  # without the suffix
    source = open_source(tmp_path / "two")
    assert [(part.rows, part.dim) for part in source.readers] == [(5, 16), (72, 16)]
    assert open_source(tmp_path / "table").rows == 2
    file = next((tmp_path / "table" / "data").iterdir())
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InvalidInputError, match="table cannot be read as Lance"):
        list(open_source(tmp_path / "table").readers[0].batches())


def _csv(path, rows, separator=","):
    frame = pandas.DataFrame(rows.matrix.astype("float64"), columns=[f"x{n}" for n in range(16)])
    frame.insert(0, "id", range(len(rows.keys)))
    frame.to_csv(path, index=False, sep=separator)


def _json(path, rows, lines):
    frame = pandas.DataFrame({"key": rows.keys, "embedding": rows.matrix.tolist()})
    frame.to_json(path, orient="records", lines=lines, double_precision=15)


def _hdf5(path, rows):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["embeddings"] = rows.matrix


def _faiss(path, rows):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(16)
    index.add(rows.matrix)
    faiss.write_index(index, str(path))


def _duckdb(path, rows):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(path)) as connection:
        connection.register("given", rows.table())
        connection.execute("create table embeddings as from given")


def _bin(path, rows):
    np.resize(rows.matrix, (6, 512)).tofile(path)


OTHERS = {
    ".csv": _csv,
    ".tsv": lambda path, rows: _csv(path, rows, "\t"),
    ".txt": lambda path, rows: np.savetxt(path, rows.matrix),
    ".jsonl": lambda path, rows: _json(path, rows, True),
    ".json": lambda path, rows: _json(path, rows, False),
    ".pickle": lambda path, rows: path.write_bytes(pickle.dumps(rows.matrix)),
    ".orc": lambda path, rows: pyarrow.orc.write_table(rows.table(), path),
    ".mat": lambda path, rows: scipy.io.savemat(path, {"embeddings": rows.matrix}),
    ".hdf5": _hdf5,
    ".faiss": _faiss,
    ".duckdb": _duckdb,
    ".raw": _bin,
}


@pytest.mark.parametrize("suffix", OTHERS)
def test_other_files_get_a_line_that_converts_them(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    OTHERS[suffix](tmp_path / f"old{suffix}", SIX)
    with pytest.raises(InvalidInputError, match="of an unknown type; known are .npy") as caught:
        open_source(tmp_path / f"old{suffix}")
    (line,) = re.findall(r"convert it: (.*)$", str(caught.value))
    exec(line, {})
    (made,) = tmp_path.glob("new.*")
    (part,) = open_source(made).readers
    (batch,) = part.batches()
    expected = SIX.matrix if suffix != ".raw" else np.resize(SIX.matrix, (6, 512))
    np.testing.assert_allclose(batch.embeddings, expected, rtol=1e-6)
    if suffix in (".csv", ".tsv"):
        assert batch.keys == [str(row) for row in range(6)]


def test_files_of_no_known_kind(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "e.gz").write_bytes(b"xx")
    with pytest.raises(InvalidInputError, match="holds e.gz. e.gz is compressed; unpack it: gun"):
        open_source(tmp_path / "in")
    (tmp_path / "e.xyz").write_bytes(b"xx")
    with pytest.raises(InvalidInputError, match="e.xyz is of no kind that is known; read it into"):
        open_source(tmp_path / "e.xyz")
    np.save(tmp_path / "in" / "a.npy", X)
    assert open_source(tmp_path / "in").skipped == {"no embeddings by its name": ["e.gz"]}
    torch.save({}, tmp_path / "in" / "w.pt")
    with pytest.raises(InvalidInputError, match=r"both .npy files \(a.npy\) and .pt files \(w"):
        open_source(tmp_path / "in")


@pytest.mark.parametrize("layout", ["Arrow file", "Feather", "Arrow stream", "webdataset", "fbin"])
def test_batches_are_small_whatever_the_file(tmp_path, layout, monkeypatch):
    """No batch has more bytes than asked for, though the file is one batch or one block."""
    monkeypatch.setattr(tables, "BATCH_BYTES", 64 * 100)
    rows = Rows.of(1000)
    location = written(layout, rows, tmp_path / "in")
    if layout.startswith("Arrow"):
        how = pa.ipc.new_file if layout == "Arrow file" else pa.ipc.new_stream
        with how(location, rows.table().schema) as writer:
            writer.write_batch(rows.table().combine_chunks().to_batches()[0])
    (part,) = open_source(location).readers
    stream = part.stream(0, False)
    asked = []
    if isinstance(part, tables.TableReader):
        with part.reading(0, part.columns.names, 100) as batches:
            before = pa.total_allocated_bytes()
            for batch in batches:
                asked.append(batch.num_rows)
                if layout.startswith("Arrow"):  # read where it lies
                    assert pa.total_allocated_bytes() - before < 64 * 100
        assert max(asked) <= 100 and sum(asked) == 1000
    assert stream.read(10).embeddings.shape == (10, 16)
    stream.close()
    held = {"Arrow file": 32 << 20, "Arrow stream": 32 << 20, "fbin": 0}.get(layout, part.held())
    assert part.held(carried=False) <= max(held, 1000 * 200)


PAGE = Path(__file__).parents[1] / "docs" / "layouts.md"
SHOWN = {
    "images.npy": "npy", "images.npz": "npz", "images.parquet": "Parquet", "spark": "Spark",
    "images.feather": "Feather", "images.arrows": "Arrow stream", "dataset": "saved data set",
    "images.tar": "webdataset", "images.safetensors": "safetensors", "images.pt": "torch.save",
    "images.fvecs": "fvecs", "images.fbin": "fbin", "images.lance": "Lance",
}  # fmt: skip


def commands_of(command):
    text = PAGE.read_text()
    return [shlex.split(line) for line in re.findall(rf"`bliss-index {command} (.*?)`", text)]


def exit_code(words):
    return CliRunner().invoke(app, words).exit_code


@pytest.mark.parametrize("words", commands_of("import"), ids=lambda words: words[0])
def test_the_page_shows_commands_that_work(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    if words[0] == "clip-retrieval":
        (tmp_path / words[0] / "img_emb").mkdir(parents=True)
        (tmp_path / words[0] / "metadata").mkdir()
        np.save(tmp_path / words[0] / "img_emb" / "img_emb_0.npy", X)
        paths = pa.table({"image_path": SIX.keys})
        pq.write_table(paths, tmp_path / words[0] / "metadata" / "metadata_0.parquet")
    else:
        written(SHOWN[words[0]], SIX, tmp_path / "in").rename(tmp_path / words[0])
    assert exit_code(["import", *words]) == 0
    assert EmbeddingStore.open("store").rows == 6


def test_the_page_shows_every_layout():
    assert {words[0] for words in commands_of("import")} == {*SHOWN, "clip-retrieval"}
    text = PAGE.read_text().lower()
    assert [suffix for suffix in LAYOUTS if suffix not in text and suffix not in UNNAMED] == []


UNNAMED = (".parquet", ".pq", ".arrow", ".arrows", ".feather", ".ipc", ".lance", ".tar", ".tar.gz",
           ".tgz", ".safetensors", ".pt", ".pth")  # fmt: skip


@pytest.mark.parametrize("words", commands_of("encode-images"), ids=lambda words: words[0])
def test_the_page_shows_commands_for_images(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    content = io.BytesIO()
    Image.new("RGB", (20, 20), (200, 10, 10)).save(content, "PNG")
    Path("photos").mkdir()
    Path("photos/a.png").write_bytes(content.getvalue())
    tar_of(Path("photos.tar"), {"a.png": content.getvalue()})
    pq.write_table(pa.table({"image": [content.getvalue()]}), "photos.parquet")
    Path("photos.csv").write_text("path\nphotos/a.png\n")
    Path("img2dataset").mkdir()
    tar_of(Path("img2dataset/00000.tar"), {"a.png": content.getvalue(), "a.txt": "red"})
    pq.write_table(pa.table({"key": ["a"]}), "img2dataset/00000.parquet")
    Path("img2dataset/00000_stats.json").write_text("{}")
    assert exit_code(["encode-images", *words, "--decoders", "0"]) == 0
    store = EmbeddingStore.open("store")
    assert (store.rows, store.manifest.bad_rows) == (1, 0)


def test_another_column_is_another_job(job, tmp_path):
    """Of one file, continued with another of its arrays: refused, and both are named."""
    np.savez(tmp_path / "e.npz", a=X, b=X[::-1])
    imported(tmp_path / "e.npz", tmp_path / "s", columns=ColumnNames("a"))
    run_job(tmp_path / "e.npz", tmp_path / "t", job.settings(), columns=ColumnNames("a"))
    for made in (
        lambda: imported(tmp_path / "e.npz", tmp_path / "s", columns=ColumnNames("b")),
        lambda: run_job(
            tmp_path / "e.npz", tmp_path / "t", job.settings(), columns=ColumnNames("b")
        ),
    ):
        with pytest.raises(JobError, match=r"'embedding': 'a'.*'embedding': 'b'"):
            made()
    imported(tmp_path / "e.npz", tmp_path / "s", columns=ColumnNames("a"))


@pytest.mark.parametrize("layout", [*TABLES, *ARRAYS])
def test_every_layout_is_read_from_elsewhere(tmp_path, layout):
    """From a file system of fsspec's, files and folders; Lance says that it needs a local one."""
    fsspec = pytest.importorskip("fsspec")
    local = written(layout, SIX, tmp_path / "in")
    place = f"/{tmp_path.name}/{local.name}"
    memory = fsspec.filesystem("memory")
    memory.put(str(local), place, recursive=local.is_dir())
    try:
        if layout == "Lance":
            with pytest.raises(InvalidInputError, match="read from a local folder; copy it: imp"):
                open_source(f"memory:/{place}")
            return
        source = open_source(f"memory:/{place}", columns=columns_of(layout))
        found = [batch.embeddings for part in source.readers for batch in part.batches()]
        np.testing.assert_array_equal(np.concatenate(found), X)
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)
