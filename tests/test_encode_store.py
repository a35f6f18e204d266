"""Encoding into stores: killed and continued, every source, every bad file; the embedded model."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

if find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

from bulk_fixtures import kill_at_random

from bliss_index.encode import load_encoder
from bliss_index.encode.encode_store import encode_image_store, encode_text_store, finished_store
from bliss_index.encode.images import open_images
from bliss_index.encode.scenes import draw_scene
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.store import EmbeddingStore, verify_store
from bliss_index.vocabulary import render_prompts

SCRIPT = """
import pathlib, sys
from bliss_index.encode import load_encoder
from bliss_index.encode.encode_store import (
    encode_image_store, encode_text_store, finished_store,
)
from bliss_index.encode.images import open_images
if __name__ == "__main__":
    kind, source, out = sys.argv[1:]
    if finished_store(out, kind):  # killed between its last commit and its end
        sys.exit(0)
    encoder = load_encoder("bliss-tiny", device="cpu", batch_size=64)
    if kind == "text":
        entries = [f"word number {i}" for i in range(16_000)]
        encode_text_store(encoder, entries, out, templates=["a {}"], rows_per_shard=500)
    else:
        encode_image_store(encoder, open_images(source), out, rows_per_shard=64, workers=1)
"""


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("bliss-tiny", device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of drawn scenes, as PNG."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(40):
        scene = draw_scene(np.random.default_rng([3, number]), size=64)
        (folder / f"group{number % 2}").mkdir(exist_ok=True)
        scene.image.save(folder / f"group{number % 2}" / f"{number:03}.png")
    return folder


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_a_text_store_holds_the_encoders_embeddings(encoder, tmp_path):
    entries = [f"thing {i}" for i in range(50)]
    summary = encode_text_store(
        encoder, entries, tmp_path / "s", templates=["a photo of a {}"], dtype="float32",
        rows_per_shard=16,
    )  # fmt: skip
    store = EmbeddingStore.open(tmp_path / "s", kind="text")
    assert (summary.rows, summary.rows_now, store.texts()) == (50, 50, entries)
    assert store.prompt == "a photo of a {}"
    assert store.model == encoder.identity
    expected = encoder.encode_text(render_prompts(entries, "a photo of a {}"))
    np.testing.assert_allclose(store.embeddings(), expected, atol=2e-6)
    assert finished_store(tmp_path / "s", "text").rows == 50
    with pytest.raises(StoreError, match="complete store of text embeddings"):
        finished_store(tmp_path / "s", "image")


def test_an_ensemble_of_prompts(encoder, tmp_path):
    templates = ["a photo of a {}", "a drawing of a {}"]
    encode_text_store(
        encoder, ["cat", "tree"], tmp_path / "s", templates=templates, dtype="float32"
    )
    rows = [
        encoder.encode_text(render_prompts(["cat", "tree"], t)).astype(float) for t in templates
    ]
    mean = np.mean(rows, axis=0)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(EmbeddingStore.open(tmp_path / "s").embeddings(), mean, atol=2e-6)
    with pytest.raises(InvalidInputError, match="no entries to encode"):
        encode_text_store(encoder, [], tmp_path / "t", templates=templates)


def test_a_folder_a_tar_and_a_parquet_give_the_same(encoder, pictures, tmp_path):
    files = sorted(pictures.rglob("*.png"))
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        for file in files:
            archive.add(file, str(file.relative_to(pictures)))
    table = pa.table({
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "key": [str(file.relative_to(pictures)) for file in files],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "p.parquet")
    found = {}
    for name, source in [
        ("folder", pictures), ("tar", tmp_path / "p.tar"), ("parquet", tmp_path / "p.parquet"),
    ]:  # fmt: skip
        encode_image_store(encoder, open_images(source), tmp_path / name, workers=0)
        store = EmbeddingStore.open(tmp_path / name)
        assert verify_store(tmp_path / name).ok
        listed = store.keys()
        keys = [key.removesuffix(".png") for key in listed]
        found[name] = dict(zip(keys, store.embeddings(), strict=True))
    assert set(found["folder"]) == set(found["tar"]) == set(found["parquet"])
    for key, row in found["folder"].items():
        np.testing.assert_array_equal(row, found["tar"][key])
        np.testing.assert_array_equal(row, found["parquet"][key])


@pytest.mark.parametrize("kind", ["text", "image"])
def test_killed_and_continued(pictures, tmp_path, kind):
    """SIGKILL at random moments: the finished store is the uninterrupted one, byte for byte."""
    if kind == "image":
        source = tmp_path / "many"
        source.mkdir()
        files = sorted(pictures.rglob("*.png"))
        for number in range(700):
            os.link(files[number % len(files)], source / f"{number:05}.png")
    script = tmp_path / "encode.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), kind, str(tmp_path / "many")]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    whole = time.monotonic() - began
    kills = kill_at_random(
        [*command, str(tmp_path / "s")],
        np.random.default_rng(4), least=0.3 * whole, most=0.7 * whole, kills=4,
    )  # fmt: skip
    assert kills > 0
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")
    assert verify_store(tmp_path / "s").ok


def test_bad_files_through_the_command_line(pictures, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = Image.open(next(pictures.rglob("*.png"))).convert("RGB")
    buffer = io.BytesIO()
    good.save(buffer, format="JPEG")
    jpeg = buffer.getvalue()
    (folder / "a good.jpg").write_bytes(jpeg)
    good.convert("CMYK").save(folder / "b cmyk.jpg")
    good.convert("P").save(folder / "c palette.png")
    good.convert("RGBA").save(folder / "d alpha.png")
    good.convert("L").save(folder / "e grey.png")
    Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)).save(folder / "f 16 bit.png")
    good.save(folder / "g animated.gif", save_all=True, append_images=[good.rotate(90)])
    (folder / "m empty.png").write_bytes(b"")
    (folder / "n text.jpg").write_bytes(b"not a picture at all")
    (folder / "o cut.png").write_bytes((folder / "d alpha.png").read_bytes()[:60])
    (folder / "p noise.webp").write_bytes(os.urandom(500))
    out = tmp_path / "s"
    done = subprocess.run(
        [sys.executable, "-m", "bliss_index", "encode-images", str(folder), "--model", "bliss-tiny",
         "--out", str(out), "--workers", "1", "--device", "cpu", "--json"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["bad_rows"]) == (11, 4)
    shard = EmbeddingStore.open(out).shard(0)
    status = dict(zip(shard.keys, shard.status, strict=True))
    assert {Path(key).name[0] for key, code in status.items() if code == "ok"} == set("abcdefg")
    assert set(status.values()) == {"ok", "undecodable_image"}
    assert all(shard.error[row] for row in range(11) if not shard.good[row])
    again = subprocess.run(
        [sys.executable, "-m", "bliss_index", "encode-images", str(folder), "--model", "bliss-tiny",
         "--out", str(out), "--json"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert again.returncode == 3
    assert "is complete already: 11 images" in again.stderr
