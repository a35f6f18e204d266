"""Embeddings of other tools become stores: every layout, every kind of bad row."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bliss_reference import unit

from bliss_index.errors import InvalidInputError, JobError
from bliss_index.jobs.listener import JobListener, RowsListener
from bliss_index.store import EmbeddingStore, ModelIdentity, verify_store
from bliss_index.store.import_work import import_embeddings
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.sources import open_source

MODEL = ModelIdentity("ViT-B-32", "openai")
DIM = 6


@pytest.fixture
def rows(rng):
    return (rng.normal(size=(50, DIM)) * 3).astype(np.float32)


def bring(location, out, kind="image", **more):
    summary = import_embeddings(location, out, kind=kind, model=MODEL, **more)
    assert verify_store(out).ok
    return summary, EmbeddingStore.open(out)


def list_column(rows, kind):
    if kind == "fixed":
        flat = pa.array(np.asarray(rows, dtype=np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, DIM)
    value = pa.float64() if kind == "large" else pa.float32()
    return pa.array([list(map(float, row)) for row in rows], (
        pa.large_list(value) if kind == "large" else pa.list_(value)
    ))  # fmt: skip


def write_layout(folder, layout, rows):
    """Write 50 rows in one of the layouts; return what to import."""
    folder.mkdir()
    if layout == "npy":
        np.save(folder / "e.npy", rows)
        return folder / "e.npy"
    if layout == "npz":
        np.savez_compressed(folder / "e.npz", embeddings=rows, other=np.arange(3))
        return folder / "e.npz"
    if layout == "npy folder":
        np.save(folder / "a.npy", rows[:20])
        np.save(folder / "b.npy", rows[20:])
        return folder
    if layout == "clip-retrieval":
        for part in ("img_emb", "metadata"):
            (folder / part).mkdir()
        for number, part in enumerate((slice(0, 30), slice(30, 50))):
            np.save(folder / "img_emb" / f"img_emb_{number}.npy", rows[part].astype(np.float16))
            names = [f"image{i}.jpg" for i in range(50)][part]
            table = pa.table({"image_path": names, "caption": [f"a {n}" for n in names]})
            pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
        return folder
    table = pa.table({"embedding": list_column(rows, layout), "id": [f"i{i}" for i in range(50)]})
    pq.write_table(table, folder / "e.parquet", row_group_size=7)
    return folder / "e.parquet"


LAYOUTS = ["npy", "npz", "npy folder", "clip-retrieval", "list", "large", "fixed"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path, rows, layout):
    location = write_layout(tmp_path / "in", layout, rows)
    summary, store = bring(location, tmp_path / "s", dtype="float32")
    assert (summary.rows, summary.bad_rows, summary.status) == (50, 0, {"ok": 50})
    half = layout == "clip-retrieval"
    given = rows.astype(np.float16) if half else rows
    np.testing.assert_array_equal(store.embeddings(), unit(given).astype(np.float32))
    expected = {
        "clip-retrieval": [f"image{i}.jpg" for i in range(50)],
        "list": [f"i{i}" for i in range(50)],
        "large": [f"i{i}" for i in range(50)],
        "fixed": [f"i{i}" for i in range(50)],
    }.get(layout, [str(i) for i in range(50)])
    assert store.keys() == expected
    assert store.model == MODEL


def test_clip_retrieval_carries_its_columns(tmp_path, rows):
    location = write_layout(tmp_path / "in", "clip-retrieval", rows)
    _, store = bring(location, tmp_path / "s")
    part = open_source(location).readers[1]
    assert next(part.batches()).keys[0] == "image30.jpg"
    assert store.shard(1).metadata().column("caption").to_pylist()[0] == "a image30.jpg"


def test_an_array_stored_column_by_column(tmp_path, rows):
    np.save(tmp_path / "e.npy", np.asfortranarray(rows))
    part = open_source(tmp_path / "e.npy").readers[0]
    np.testing.assert_array_equal(
        np.concatenate([batch.embeddings for batch in part.batches(rows=7)]), rows
    )
    _, store = bring(tmp_path / "e.npy", tmp_path / "s", dtype="float32")
    np.testing.assert_array_equal(store.embeddings(), unit(rows).astype(np.float32))


def test_columns_named_like_the_stores_own_are_carried_under_another_name(tmp_path, rows):
    columns = {"embedding": list_column(rows, "list"), "status": ["success"] * 50}
    table = pa.table({**columns, "text": ["a cat"] * 50, "source_text": ["web"] * 50})
    pq.write_table(table, tmp_path / "e.parquet")
    _, store = bring(tmp_path / "e.parquet", tmp_path / "s")
    carried = store.shard(0).metadata()
    assert carried.column_names == ["source_status", "source_source_text", "source_text"]
    assert carried.slice(49).to_pylist() == [
        {"source_status": "success", "source_source_text": "a cat", "source_text": "web"}
    ]


def test_an_import_that_is_done_is_left_alone(tmp_path, rows):
    rows[3] = 0
    np.save(tmp_path / "e.npy", rows)
    (tmp_path / "k.txt").write_text("".join(f"k{i % 40}\n" for i in range(50)))
    first, _ = bring(tmp_path / "e.npy", tmp_path / "s", keys=tmp_path / "k.txt")
    assert first.status == {"ok": 39, "zero_embedding": 1, "duplicate_key": 10}
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s").iterdir()}
    again, _ = bring(tmp_path / "e.npy", tmp_path / "s", keys=tmp_path / "k.txt")
    assert again == first
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s").iterdir()} == before
    (tmp_path / "k.txt").write_text("".join(f"k{i}\n" for i in range(50)))
    with pytest.raises(JobError, match=r"with attributes keys \['k.txt', .*choose another output"):
        bring(tmp_path / "e.npy", tmp_path / "s", keys=tmp_path / "k.txt")
    np.save(tmp_path / "e.npy", rows[:49])
    with pytest.raises(InvalidInputError, match="50 values, the embeddings have 49 rows"):
        bring(tmp_path / "e.npy", tmp_path / "s", keys=tmp_path / "k.txt")
    with pytest.raises(JobError, match="with attributes keys "):
        bring(tmp_path / "e.npy", tmp_path / "s")
    (tmp_path / "k.txt").write_text("".join(f"k{i % 40}\n" for i in range(50)))
    np.save(tmp_path / "e.npy", rows[::-1])
    with pytest.raises(JobError, match="e.npy was imported with SHA-256 .* replaced since"):
        bring(tmp_path / "e.npy", tmp_path / "s", keys=tmp_path / "k.txt")


def test_other_columns_are_carried(tmp_path, rows):
    table = pa.table({"embedding": list_column(rows, "list"), "width": list(range(50))})
    pq.write_table(table, tmp_path / "e.parquet")
    _, store = bring(tmp_path / "e.parquet", tmp_path / "s")
    assert store.shard(0).metadata().column("width").to_pylist() == list(range(50))


def test_half_precision_is_the_default_and_unit_rows_stay(tmp_path, rows):
    half = unit(rows).astype(np.float16)
    np.save(tmp_path / "e.npy", half)
    _, store = bring(tmp_path / "e.npy", tmp_path / "s")
    assert store.dtype == "float16"
    np.testing.assert_array_equal(store.embeddings(), half)


def test_texts_and_keys(tmp_path, rows):
    np.save(tmp_path / "e.npy", rows)
    (tmp_path / "texts.txt").write_text("".join(f"word {i}\n" for i in range(50)))
    np.save(tmp_path / "keys.npy", np.array([f"key{i}" for i in range(50)]))
    _, store = bring(tmp_path / "e.npy", tmp_path / "t", "text", texts=tmp_path / "texts.txt")
    assert store.texts() == [f"word {i}" for i in range(50)]
    assert store.keys() == [str(i) for i in range(50)]
    _, store = bring(tmp_path / "e.npy", tmp_path / "i", keys=tmp_path / "keys.npy")
    assert store.keys()[49] == "key49"
    lines = "".join(f"a{i}.jpg,k{i}\n" for i in range(50))
    (tmp_path / "keys.csv").write_text("file,key\n" + lines)
    _, store = bring(tmp_path / "e.npy", tmp_path / "j", keys=tmp_path / "keys.csv")
    assert store.keys()[:2] == ["k0", "k1"]


@pytest.mark.parametrize("where", ["in the source", "in a file"])
def test_texts_with_keys_of_another_order_are_refused(tmp_path, rows, where):
    keys = [f"w{row}" for row in range(50)]
    table = pa.table({"embedding": list_column(rows, "list"), "key": keys})
    pq.write_table(table, tmp_path / "e.parquet")
    more = {}
    if where == "in a file":
        pq.write_table(table.drop_columns("key"), tmp_path / "e.parquet")
        (tmp_path / "k.txt").write_text("\n".join(keys))
        more["keys"] = tmp_path / "k.txt"

    def with_texts(order, out):
        lines = [f"{key},the word {row}" for row, key in order]
        (tmp_path / "t.csv").write_text("\n".join(["key,text", *lines]))
        return bring(tmp_path / "e.parquet", out, "text", texts=tmp_path / "t.csv", **more)[1]

    numbered = list(enumerate(keys))
    assert with_texts(numbered, tmp_path / "a").texts()[7] == "the word 7"
    others = [(row, f"{row}") for row, _ in numbered]
    assert with_texts(others, tmp_path / "b").texts()[7] == "the word 7"
    with pytest.raises(InvalidInputError, match=r"row 0 has the key 'w49', .* the key 'w0'"):
        with_texts(numbered[::-1], tmp_path / "c")


def test_bad_rows_of_images_keep_their_place(tmp_path, rows):
    rows[3], rows[7, 2], rows[9, 0] = 0, np.nan, -np.inf
    np.save(tmp_path / "e.npy", rows)
    summary, store = bring(tmp_path / "e.npy", tmp_path / "s")
    assert summary.status == {"ok": 47, "zero_embedding": 1, "nonfinite_embedding": 2}
    assert summary.bad_rows == 3
    assert np.flatnonzero(~store.shard(0).good).tolist() == [3, 7, 9]
    error = store.shard(0).error
    assert (error[2], error[3]) == (None, "the embedding is zero")
    assert error[7] == error[9] == "the embedding holds NaN or infinity"


def test_bad_rows_of_a_parquet_column(tmp_path, rows):
    lists = [row.tolist() for row in rows]
    lists[4], lists[5] = None, [1.0, 2.0]
    lists[6][1] = None
    keys = [f"i{i}" for i in range(50)]
    keys[8], keys[11] = None, "i2"
    table = pa.table({"vector": pa.array(lists, pa.list_(pa.float32())), "key": keys})
    pq.write_table(table, tmp_path / "e.parquet")
    summary, store = bring(tmp_path / "e.parquet", tmp_path / "s")
    shard = store.shard(0)
    found = {row: shard.status[row] for row in range(50) if not shard.good[row]}
    assert found == {
        4: "missing_embedding", 5: "wrong_dimension", 6: "nonfinite_embedding",
        8: "missing_key", 11: "duplicate_key",
    }  # fmt: skip
    assert shard.error[5] == "the embedding has dimension 2, not 6"
    assert store.rows == summary.rows == 50


def test_bad_rows_of_texts_are_refused_or_dropped(tmp_path, rows):
    rows[3], rows[7] = 0, np.nan
    np.save(tmp_path / "e.npy", rows)
    (tmp_path / "t.txt").write_text("".join(f"w{i}\n" for i in range(50)))
    with pytest.raises(InvalidInputError, match=r"row\(s\) 3 \(zero_embedding\), 7 \(nonfinite"):
        bring(tmp_path / "e.npy", tmp_path / "a", "text", texts=tmp_path / "t.txt")
    summary, store = bring(
        tmp_path / "e.npy", tmp_path / "b", "text", texts=tmp_path / "t.txt", drop_bad_rows=True
    )
    assert (summary.rows, summary.dropped) == (48, 2)
    assert store.texts()[:5] == ["w0", "w1", "w2", "w4", "w5"]


@pytest.mark.parametrize("kind", ["image", "text"])
def test_an_interrupted_import_continues(tmp_path, rows, kind):
    rows[3] = 0
    np.save(tmp_path / "e.npy", rows)
    (tmp_path / "t.txt").write_text("".join(f"w{i}\n" for i in range(50)))
    more = {"rows_per_shard": 20}
    if kind == "text":
        more.update(texts=tmp_path / "t.txt", drop_bad_rows=True)
    bring(tmp_path / "e.npy", tmp_path / "whole", kind, **more)

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path / "e.npy", tmp_path / "s", kind, listener=RowsListener(stop), **more)
    summary, _ = bring(tmp_path / "e.npy", tmp_path / "s", kind, **more)
    assert sum(summary.status.values()) + summary.dropped == 50
    for file in (tmp_path / "whole").iterdir():
        if file.is_file() and file.name != "_job.json":
            assert file.read_bytes() == (tmp_path / "s" / file.name).read_bytes()


def test_another_file_does_not_continue_an_import(tmp_path, rows):
    np.save(tmp_path / "e.npy", rows)

    class Stopping(JobListener):
        def finished_part(self, record):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path / "e.npy", tmp_path / "s", listener=Stopping(), rows_per_shard=20)
    np.save(tmp_path / "e.npy", rows[::-1])
    with pytest.raises(JobError, match=r"e.npy\[0:20\] was imported with SHA-256 .* was replaced"):
        bring(tmp_path / "e.npy", tmp_path / "s", rows_per_shard=20)


def test_columns_by_name(tmp_path, rows):
    table = pa.table({
        "a": list_column(rows, "list"), "b": list_column(-rows, "list"), "c": list(range(50)),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "e.parquet")
    with pytest.raises(InvalidInputError, match=r"columns are a \(list.*, b \(list.*, c \(int64\)"):
        open_source(tmp_path / "e.parquet")
    _, store = bring(
        tmp_path / "e.parquet", tmp_path / "s", columns=ColumnNames(embedding="b", key="c"),
        dtype="float32",
    )  # fmt: skip
    np.testing.assert_array_equal(store.embeddings(), unit(-rows).astype(np.float32))
    assert store.keys()[10] == "10"
    with pytest.raises(InvalidInputError, match="has no column 'd'; it has a, b, c"):
        open_source(tmp_path / "e.parquet", columns=ColumnNames(embedding="b", key="d"))


def test_what_cannot_be_read(tmp_path, rows):
    def refused(name, message, **more):
        with pytest.raises(InvalidInputError, match=message):
            bring(tmp_path / name, tmp_path / "s", **more)

    refused("nothing.npy", "nothing.npy does not exist")
    (tmp_path / "e.pkl").write_bytes(b"x")
    refused("e.pkl", "of an unknown type; known are .npy, .npz, .parquet")
    np.save(tmp_path / "flat.npy", rows.reshape(-1))
    refused("flat.npy", r"shape \(300,\), expected \(rows, dim\)")
    np.save(tmp_path / "int.npy", rows.astype(np.int32))
    refused("int.npy", "values of type int32, expected float16")
    np.save(tmp_path / "object.npy", np.array([[None]]), allow_pickle=True)
    refused("object.npy", "values of type object")
    np.save(tmp_path / "cut.npy", rows)
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-5])
    refused("cut.npy", rf"has {len(whole) - 5} bytes, its header promises {len(whole)}: truncated")
    np.savez(tmp_path / "e.npz", a=rows, b=rows)
    refused(
        "e.npz",
        r"2 arrays that may be the embeddings: a float32 \[50, 6\], b .*name one",
    )
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    refused("bad.npz", "bad.npz cannot be read as .npz")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    refused("bad.parquet", "bad.parquet cannot be read as Parquet")
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "none.parquet")
    refused("none.parquet", r"no column 'embedding' or .* its columns are x \(int64\)")
    np.save(tmp_path / "norows.npy", rows[:0])
    refused("norows.npy", "norows.npy holds 0 rows of embeddings; nothing to import")
    (tmp_path / "empty").mkdir()
    refused("empty", "empty holds no embedding files")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    np.save(mixed / "a.npy", rows)
    np.save(mixed / "b.npy", rows[:, :4])
    refused("mixed", "a.npy holds embeddings of dimension 6, b.npy of dimension 4")
    np.save(tmp_path / "good.npy", rows)
    (tmp_path / "keys.txt").write_text("a\nb\n")
    refused(
        "good.npy",
        "keys.txt holds 2 values, the embeddings have 50 rows",
        keys=tmp_path / "keys.txt",
    )
    with pytest.raises(InvalidInputError, match="holds no texts; a text store needs them: --texts"):
        bring(tmp_path / "good.npy", tmp_path / "s2", "text")
    for more in ({"texts": tmp_path / "keys.txt"}, {"columns": ColumnNames(text="caption")}):
        with pytest.raises(InvalidInputError, match="an image store takes no texts"):
            bring(tmp_path / "good.npy", tmp_path / "s3", **more)


def test_a_uri(tmp_path, rows):
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://bliss/e.npy", "wb") as file:
        np.save(file, rows)
    _, store = bring("memory://bliss/e.npy", tmp_path / "s", dtype="float32")
    np.testing.assert_array_equal(store.embeddings(), unit(rows).astype(np.float32))
    with pytest.raises(InvalidInputError, match="memory://bliss/none.npy does not exist"):
        bring("memory://bliss/none.npy", tmp_path / "s2")
    (tmp_path / "text.zip").write_text("no archive")
    for archive, reason in (("none.zip", "No such file"), ("text.zip", "not a zip file")):
        uri = f"zip://e.npy::file://{tmp_path / archive}"
        with pytest.raises(InvalidInputError, match=f"{archive} cannot be opened: .*{reason}"):
            bring(uri, tmp_path / "s3")


def test_a_command_does_not_load_pandas(tmp_path, rows):
    """Arrow would, and takes longer for it than the work does."""
    pytest.importorskip("pandas")
    np.save(tmp_path / "rows.npy", rows)
    script = (
        "import sys\n"
        "sys.argv = ['bliss-index', 'import', sys.argv[1], '--kind', 'image', '--model',"
        "            'ViT-B-32', '--pretrained', 'openai', '--out', sys.argv[2]]\n"
        "from bliss_index.cli import main\n"
        "try: main()\n"
        "finally:\n"
        "    assert 'pyarrow' in sys.modules and 'pandas' not in sys.modules\n"
        "    import pandas, pyarrow\n"  # who wants it has it
        "    assert pandas.DataFrame({'a': [1]}).shape == (1, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "rows.npy"), str(tmp_path / "store")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert EmbeddingStore.open(tmp_path / "store").rows == 50
