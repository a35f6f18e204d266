"""The same rows in every layout give the same store and the same scores; what is odd is said."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import ARRAYS, TABLES, Rows, written

from bliss_index.scoring import run_job
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.import_work import import_embeddings
from bliss_index.store.source_part import ColumnNames
from bliss_index.store.sources import open_source

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
    rows = Rows.of(1000)
    location = written(layout, rows, tmp_path / "in")
    source = open_source(location, columns=columns_of(layout))
    found = []
    for piece in source.pieces(130, 1 << 30, carried=True):
        part, start = piece.part, piece.start
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
    found = [batch.embeddings for part in source.parts for batch in part.batches()]
    np.testing.assert_array_equal(
        np.concatenate(found), np.concatenate([rows.matrix for rows in parts])
    )
