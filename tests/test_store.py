"""Embedding stores: written resumably, read mapped, verified."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pytest
from bliss_reference import unit
from bulk_fixtures import full_disk, wait_for
from bulk_fixtures import shard as shard_of

from bliss_index import EmbeddingStore, StoreWriter
from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    ModelMismatchError,
    OutputError,
    StoreError,
)
from bliss_index.store import ModelIdentity, require_same_model, verify_store
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.normalise import norm_defects, unit_rows

MODEL = ModelIdentity("ViT-B-32", "openai")


def rows_of(count, dim=12, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, dim)), np.float32)


def write(path, count=250, *, kind="image", dtype="float16", step=70, rows_per_shard=100, **more):
    rows = rows_of(count)
    keys = [f"k{i}" for i in range(count)]
    with StoreWriter(
        path, kind=kind, model=MODEL, dim=12, dtype=dtype, rows_per_shard=rows_per_shard, **more
    ) as writer:
        for start in range(writer.rows, count, step):
            part = slice(start, start + step)
            texts = [f"text {key}" for key in keys[part]] if kind == "text" else None
            writer.append(keys[part], rows[part], texts=texts)
    return rows


def shards(folder):
    """How many shards are written."""
    return len(list(folder.glob("part-*.arrow")))


def bytes_of(folder):
    """All files but the job's description, which says where it was begun."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "_job.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_written_and_read(tmp_path, kind, dtype):
    rows = write(tmp_path / "s", kind=kind, dtype=dtype)
    store = EmbeddingStore.open(tmp_path / "s", kind=kind)
    assert (store.rows, store.dim, store.dtype, store.kind) == (250, 12, dtype, kind)
    assert [shard.rows for shard in store.shards] == [100, 100, 50]
    assert store.model == MODEL
    np.testing.assert_array_equal(store.embeddings(), rows.astype(dtype))
    assert store.embeddings("float64").dtype == np.float64
    assert store.keys() == [f"k{i}" for i in range(250)]
    if kind == "text":
        assert store.texts() == [f"text k{i}" for i in range(250)]
    else:
        with pytest.raises(StoreError, match="is an image store, it has no texts"):
            store.texts()
    report = verify_store(tmp_path / "s")
    assert report.ok
    assert (report.rows, report.files) == (250, 3)
    names = [re.sub(r"\.[0-9a-f]{16}\.", ".", p.name) for p in (tmp_path / "s").iterdir()]
    assert sorted(names) == [
        "_job.json", "_records", "manifest.json", "part-00000000.arrow", "part-00000001.arrow",
        "part-00000002.arrow",
    ]  # fmt: skip


def test_a_shard_is_a_view_of_its_file(tmp_path):
    write(tmp_path / "s", 100)
    matrix = EmbeddingStore.open(tmp_path / "s").embeddings()
    assert not matrix.flags.writeable
    assert not matrix.flags.owndata


def test_bytes_do_not_depend_on_how_rows_come(tmp_path):
    write(tmp_path / "a", step=1)
    write(tmp_path / "b", step=250)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


@pytest.mark.parametrize("count", [0, 1, 100])
def test_sizes_at_the_edge(tmp_path, count):
    rows = write(tmp_path / "s", count)
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.rows == count
    np.testing.assert_array_equal(store.embeddings(), rows.astype(np.float16))
    assert verify_store(tmp_path / "s").ok


def test_statuses_errors_and_metadata(tmp_path):
    rows = rows_of(5)
    rows[2] = np.nan
    table = pa.table({"width": [1, 2, 3, 4, 5]})
    with StoreWriter(
        tmp_path / "s", kind="image", model=MODEL, dim=12, metadata=table.schema
    ) as writer:
        writer.append(
            ["a", "b", "c", "a", "e"],
            rows,
            status=["ok", "ok", "undecodable_image", "ok", "ok"],
            error=[None, None, "no image", None, None],
            metadata=table,
        )
    shard = EmbeddingStore.open(tmp_path / "s").shard(0)
    assert shard.status == ["ok", "ok", "undecodable_image", "duplicate_key", "ok"]
    assert shard.error == [None, None, "no image", "an earlier row has the same key", None]
    assert shard.good.tolist() == [True, True, False, False, True]
    assert (shard.embeddings[~shard.good] == 0).all()
    assert shard.metadata().column("width").to_pylist() == [1, 2, 3, 4, 5]
    report = verify_store(tmp_path / "s")
    assert report.ok
    assert report.bad_rows == 2


def test_a_key_of_an_earlier_shard_is_noticed(tmp_path):
    with StoreWriter(
        tmp_path / "s", kind="image", model=MODEL, dim=12, rows_per_shard=10
    ) as writer:
        writer.append([str(i % 15) for i in range(30)], rows_of(30))
    status = [
        code for shard in EmbeddingStore.open(tmp_path / "s").iter_shards() for code in shard.status
    ]
    assert status == ["ok"] * 15 + ["duplicate_key"] * 15


def test_an_interrupted_writer_continues(tmp_path):
    write(tmp_path / "whole")
    rows = rows_of(250)
    keys = [f"k{i}" for i in range(250)]
    writer = StoreWriter(tmp_path / "s", kind="image", model=MODEL, dim=12, rows_per_shard=100)
    with pytest.raises(KeyboardInterrupt), writer:
        writer.append(keys[:170], rows[:170])
        raise KeyboardInterrupt
    with pytest.raises(StoreError, match="is not complete: 100 rows are written so far"):
        EmbeddingStore.open(tmp_path / "s")
    assert not verify_store(tmp_path / "s").ok
    orphan = "part-00000001.0123456789abcdef.arrow"
    (tmp_path / "s" / orphan).write_bytes(b"written, but no record names it")
    (tmp_path / "s" / ".bliss-0123456789abcdef.tmp").write_bytes(b"half a shard")
    with StoreWriter(
        tmp_path / "s", kind="image", model=MODEL, dim=12, rows_per_shard=100
    ) as writer:
        assert writer.rows == 100
        writer.append(keys[100:], rows[100:])
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """SIGKILL at random moments; run again until done; the same bytes as without any."""
    script = textwrap.dedent(
        """
        import sys, test_store
        test_store.write(__import__("pathlib").Path(sys.argv[1]), 6000, rows_per_shard=40, step=31)
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", script]
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True)
    rng, kills = np.random.default_rng(0), 0
    for wanted in (0, 1, 20, 40, 60, 80, 100, 120):
        process = subprocess.Popen([*command, str(tmp_path / "s")], env=environment)
        wait_for(lambda: process.poll() is not None or shards(tmp_path / "s") >= wanted)  # noqa: B023
        time.sleep(0.02 * rng.random())
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        # It may be killed when the store is complete and nothing but its end is left.
        if (tmp_path / "s" / "manifest.json").exists():
            break
        assert process.returncode == -signal.SIGKILL
    else:
        subprocess.run([*command, str(tmp_path / "s")], env=environment, check=True)
    assert kills > 2
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")


def test_continuing_with_other_settings_is_refused(tmp_path):
    begun = {"kind": "image", "model": MODEL, "dim": 12, "rows_per_shard": 4}
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "s", **begun) as writer:
        writer.append(list("abcd"), rows_of(4))
        raise KeyboardInterrupt
    other = ModelIdentity("RN50", "openai")
    for changed, message in [
        ({"dim": 13}, "was begun with dim 12, now it is 13"),
        ({"dtype": "float32"}, "was begun with dtype 'float16', now it is 'float32'"),
        ({"attributes": {"a": 1}}, "was begun with attributes a None, now it is 1"),
        ({"model": other}, f"was begun with model name {MODEL.name!r}, now it is 'RN50'"),
    ]:
        with pytest.raises(StoreError, match=message):
            StoreWriter(tmp_path / "s", **{**begun, **changed})
    with StoreWriter(tmp_path / "s", **begun) as writer:
        assert writer.rows == 4


def test_a_store_without_rows_is_begun_anew(tmp_path):
    StoreWriter(tmp_path / "s", kind="image", model=MODEL, dim=12).release()
    with StoreWriter(tmp_path / "s", kind="image", model=MODEL, dim=13) as writer:
        assert (writer.rows, EmbeddingStore(tmp_path / "s", writer.close()).dim) == (0, 13)


def test_outputs_that_are_something_else(tmp_path):
    write(tmp_path / "done")
    with pytest.raises(StoreError, match="already holds a complete image store of 250 rows"):
        write(tmp_path / "done")
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"not a store \(it holds 'thesis.tex'\)"):
        write(tmp_path / "stranger")


def test_two_writers_on_one_directory(tmp_path):
    writer = StoreWriter(tmp_path / "s", kind="image", model=MODEL, dim=12)
    with pytest.raises(OutputError, match=rf"in use by another job \(process {os.getpid()} on"):
        StoreWriter(tmp_path / "s", kind="image", model=MODEL, dim=12)
    writer.release()
    write(tmp_path / "s", rows_per_shard=65536)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="make it writable or choose another output"):
        write(tmp_path / "s")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_an_output_that_the_system_refuses(tmp_path, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(OutputError, match=rf"s: {os.strerror(code)}; make it writable or choose"):
        write(tmp_path / "s")
    monkeypatch.undo()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="it is read-only for this user"):
        write(tmp_path / "t")


def test_an_output_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*file/s: Not a directory"):
        write(tmp_path / "file" / "s")


def test_a_full_disk_leaves_what_was_committed(tmp_path):
    with (
        full_disk(60_000),
        pytest.raises(OutputError, match="part-00000000.arrow: File too large"),
    ):
        write(tmp_path / "s", 2000, rows_per_shard=1500, dtype="float32")
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["_job.json"]


def test_what_a_writer_refuses(tmp_path):
    rows = rows_of(4)
    keys = list("abcd")
    image = StoreWriter(tmp_path / "i", kind="image", model=MODEL, dim=12)
    text = StoreWriter(tmp_path / "t", kind="text", model=MODEL, dim=12)
    with pytest.raises(InvalidInputError, match=r"shape \(4, 11\), expected \(n, 12\)"):
        image.append(keys, rows[:, :11])
    with pytest.raises(InvalidInputError, match="3 keys for 4 embeddings"):
        image.append(keys[:3], rows)
    with pytest.raises(InvalidInputError, match=r"2 of 4 .* unit norm \(row\(s\) 1, 3\)"):
        image.append(keys, rows * np.array([[1], [2], [1], [0]], dtype=np.float32))
    with pytest.raises(InvalidInputError, match=r"1 of 4 .* \(row\(s\) 2\)"):
        image.append(keys, np.where(np.arange(4)[:, None] == 2, np.nan, rows))
    with pytest.raises(InvalidInputError, match="takes no texts"):
        image.append(keys, rows, texts=keys)
    with pytest.raises(InvalidInputError, match="takes texts with its rows"):
        text.append(keys, rows)
    with pytest.raises(
        InvalidInputError, match=r"metadata columns are \['w'\], declared were \[\]"
    ):
        image.append(keys, rows, metadata=pa.table({"w": [1, 2, 3, 4]}))
    text.append(list("abca"), rows, texts=keys)
    with pytest.raises(InvalidInputError, match="1 keys occur more than once, the first is 'a'"):
        text.close()
    for changed, message in [
        ({"kind": "sound"}, "kind must be text or image, got 'sound'"),
        ({"dtype": "int8"}, "dtype must be float16 or float32, got 'int8'"),
        ({"dim": 0}, "dim must lie between 1 and 65536, got 0"),
        ({"rows_per_shard": 0}, "rows_per_shard must be at least 1, got 0"),
        ({"metadata": pa.schema([("status", pa.string())])}, "'status' has the name of one of"),
    ]:
        settings = {"kind": "image", "model": MODEL, "dim": 12, **changed}
        with pytest.raises(InvalidInputError, match=message):
            StoreWriter(tmp_path / "x", **settings)


def test_damaged_stores(tmp_path):
    write(tmp_path / "s")
    shard = shard_of(tmp_path / "s", 1)
    whole = shard.read_bytes()
    store = EmbeddingStore.open(tmp_path / "s")

    shard.write_bytes(whole[:-1])
    with pytest.raises(
        CorruptStoreError, match=rf"has {len(whole) - 1} bytes, .* says {len(whole)}"
    ):
        store.embeddings()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(CorruptStoreError, match=r"has SHA-256 .*: altered; restore it"):
        list(store.iter_shards())
    assert "altered" in verify_store(tmp_path / "s").problems[0]
    shard.write_bytes(bytes(len(whole)))
    with pytest.raises(CorruptStoreError, match="not readable as Arrow IPC"):
        store.shard(1, check_hash=False)
    shard.unlink()
    with pytest.raises(CorruptStoreError, match="cannot be read: No such file"):
        store.embeddings()
    shard.write_bytes(whole)
    (tmp_path / "s" / "part-00000009.0123456789abcdef.arrow").write_bytes(whole)
    assert verify_store(tmp_path / "s").problems == [
        "part-00000009.0123456789abcdef.arrow is an orphan: no record names it; safe to remove"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 251}, "251 rows, but 250 in its parts"),
        (
            {"format": "photo_album"},
            "has format 'photo_album', expected 'bliss_index.store'",
        ),
        ({"format_version": 3}, "format version 3, this version reads 2; written by a newer"),
        ({"dim": "12"}, "'dim' is '12', expected a whole number"),
        ({"dtype": "int8"}, "'dtype' is 'int8', expected one of float16, float32"),
        ({"model": {"pretrained": "x"}}, "model identity needs a 'name'"),
        ({"parts": [{}]}, "damaged: part 0 is {}"),
    ],
)
def test_damaged_manifests(tmp_path, change, message):
    write(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CorruptStoreError, match=message):
        EmbeddingStore.open(tmp_path / "s")


def test_no_store_at_all(tmp_path):
    with pytest.raises(StoreError, match="is not an embedding store: it has no manifest.json"):
        EmbeddingStore.open(tmp_path)
    write(tmp_path / "s")
    with pytest.raises(StoreError, match="is a store of image embeddings, here one of text"):
        EmbeddingStore.open(tmp_path / "s", kind="text")
    (tmp_path / "s" / "manifest.json").write_text("[1, 2")
    with pytest.raises(CorruptStoreError, match="not readable as JSON"):
        EmbeddingStore.open(tmp_path / "s")


def test_verify_reads_norms_and_keys(tmp_path):
    write(tmp_path / "s", 50)
    path = shard_of(tmp_path / "s")
    batch = pa.ipc.open_file(path).get_batch(0)
    matrix = batch.column("embedding").flatten().to_numpy().reshape(50, 12).copy()
    matrix[4] *= 2
    keys = batch.column("key").to_pylist()
    keys[8] = keys[3]
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns["key"] = pa.array(keys)
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(
        pa.array(matrix.reshape(-1)), type=batch.schema.field("embedding").type
    )
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=batch.schema))
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    from bliss_index.storage.hashing import file_sha256

    manifest["parts"][0].update(bytes=path.stat().st_size, sha256=file_sha256(path))
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(manifest))
    problems = verify_store(tmp_path / "s").problems
    assert "1 embeddings are not of unit norm, the first in row 4" in problems[0]
    assert "1 keys occurred before, the first is 'k3' in row 8" in problems[1]


def test_content_hash_tells_contents_apart(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    write(tmp_path / "c", 249)
    hashes = [EmbeddingStore.open(tmp_path / name).content_hash for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_models_are_compared():
    same = ModelIdentity("ViT-B-32", "openai", weights_sha256="ab" * 32)
    require_same_model(MODEL, same, "images", "corpus")
    other = ModelIdentity("ViT-B-32", "laion2b_s34b_b79k", weights_sha256="cd" * 32)
    with pytest.raises(
        ModelMismatchError, match="pretrained tag is 'openai' and 'laion2b_s34b_b79k'"
    ):
        require_same_model(MODEL, other, "images", "corpus")
    with pytest.raises(ModelMismatchError, match="weights' SHA-256 is 'abab"):
        require_same_model(same, other, "images", "corpus")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_unit_rows(dtype):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(8, 40)) * np.array([[1, 1e-300, 1e300, 1, 1, 5, 1, 1]]).T
    rows[3], rows[4, 7], rows[6, 1] = 0, np.nan, np.inf
    found, status = unit_rows(rows, dtype)
    assert status.tolist() == [
        "ok", "ok", "ok", "zero_embedding", "nonfinite_embedding", "ok", "nonfinite_embedding",
        "ok",
    ]  # fmt: skip
    good = status == "ok"
    scaled = rows[good] / np.abs(rows[good]).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(found[good], unit(scaled).astype(dtype))
    assert (found[~good] == 0).all()
    assert norm_defects(found).tolist() == [3, 4, 6]


def test_rows_of_unit_norm_stay_bit_for_bit():
    half = rows_of(50, 512).astype(np.float16)
    found, _ = unit_rows(half, "float16")
    np.testing.assert_array_equal(found, half)


def test_key_registry_against_a_set():
    rng = np.random.default_rng(0)
    registry = KeyRegistry()
    seen: set[str] = set()
    for _ in range(60):
        keys = [f"k{i}" for i in rng.integers(0, 4000, rng.integers(0, 90))]
        expected = []
        for key in keys:
            expected.append(key in seen)
            seen.add(key)
        assert registry.register(keys).tolist() == expected
    assert len(registry) == len(seen)
