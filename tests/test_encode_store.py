"""Encoding into stores: killed and continued, every source, every bad file; the embedded model."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

if find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

from bliss_index.cli.app import app
from bliss_index.demo.scenes import draw_scene
from bliss_index.encode import load_encoder
from bliss_index.encode.image_work import encode_image_store
from bliss_index.encode.images import open_images
from bliss_index.encode.spooled_vocabulary import spool_vocabulary
from bliss_index.encode.text_work import encode_text_store
from bliss_index.errors import InvalidInputError, JobError
from bliss_index.jobs import JobListener
from bliss_index.store import EmbeddingStore, ModelIdentity, StoreWriter, verify_store
from bliss_index.vocabulary import load_vocabulary, render_prompts

SCRIPT = """
import pathlib, sys
from bliss_index.encode import load_encoder
from bliss_index.encode.image_work import encode_image_store
from bliss_index.encode.text_work import encode_text_store
from bliss_index.encode.images import open_images
from bliss_index.encode.spooled_vocabulary import spool_vocabulary
if __name__ == "__main__":
    kind, source, out = sys.argv[1:]
    encoder = load_encoder("bliss-tiny", device="cpu", batch_size=64)
    if kind == "text":
        with spool_vocabulary(source, out) as entries:
            encode_text_store(encoder, entries, out, templates=["a {}"], rows_per_shard=500)
    else:
        encode_image_store(encoder, open_images(source), out, rows_per_shard=64, decoders=1)
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
    """The files that must be the same, however they were made."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.parent.name != "_records" and p.name != "_job.json"
    }


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


def test_a_list_on_disk_gives_the_same_bytes_as_one_in_memory(encoder, tmp_path):
    lines = ["cat", " cat", "", "long " * 90, *(f"thing {i % 70}" for i in range(100)), "a\u0301"]
    (tmp_path / "words.txt").write_text("\n".join(lines), encoding="utf-8")
    options = {"templates": ["a {}", "one more {}"], "rows_per_shard": 16}
    loaded = load_vocabulary(tmp_path / "words.txt")
    first = encode_text_store(encoder, loaded.entries, tmp_path / "memory", **options)
    with spool_vocabulary(tmp_path / "words.txt", tmp_path, block_rows=7) as spooled:
        second = encode_text_store(encoder, spooled, tmp_path / "disk", **options)
        third = encode_text_store(encoder, spooled, tmp_path / "disk", **options)
    assert bytes_of(tmp_path / "disk") == bytes_of(tmp_path / "memory")
    assert (first.rows, first.truncated) == (second.rows, second.truncated) == (73, 1)
    assert (second.rows_now, third.rows_now, third.truncated) == (73, 0, 1)


def test_a_complete_store_of_something_else_is_not_taken_for_done(encoder, pictures, tmp_path):
    store, images = tmp_path / "text", tmp_path / "image"
    encode_text_store(encoder, ["cat", "dog"], store, templates=["a {}"])
    other = load_encoder("bliss-tiny", device="cpu", preprocess="authors")
    refused = [
        (
            lambda: encode_text_store(encoder, ["cat", "owl"], store, templates=["a {}"]),
            "gone: 'dog';",
        ),
        (lambda: encode_text_store(encoder, ["cat", "dog"], store, templates=["the {}"]), "'the {"),
        (
            lambda: encode_text_store(
                encoder, ["cat", "dog"], store, templates=["a {}"], dtype="float32"
            ),
            "dtype 'float16', now it is 'float32'",
        ),
        (
            lambda: encode_image_store(encoder, open_images(pictures), store),
            "now it is",
        ),
    ]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        draw_scene(np.random.default_rng(number), size=32).image.save(folder / f"{number}.png")
    source = open_images(folder)
    encode_image_store(encoder, source, images, decoders=0)
    assert encode_image_store(encoder, source, images, decoders=0).rows_now == 0
    refused.append((lambda: encode_image_store(other, source, images), "preprocess"))
    for ask, message in refused:
        with pytest.raises(JobError) as caught:
            ask()
        assert message in str(caught.value)
        assert "choose another output" in str(caught.value)
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes())
    summary = encode_image_store(encoder, source, images)
    assert (summary.rows, summary.rows_now) == (4, 1)


def test_a_folder_that_grew_before_it_was_continued(encoder, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        draw_scene(np.random.default_rng(number), size=32).image.save(folder / f"b{number}.png")
    source = open_images(folder)

    class Stopping(JobListener):
        def finished_part(self, record):
            raise KeyboardInterrupt

    options = {"decoders": 0, "rows_per_shard": 2}
    with pytest.raises(KeyboardInterrupt):
        encode_image_store(encoder, source, tmp_path / "s", listener=Stopping(), **options)
    (folder / "a.png").write_bytes((folder / "b0.png").read_bytes())
    assert encode_image_store(encoder, source, tmp_path / "s", **options).rows_now == 3
    keys = ["b0.png", "b1.png", "b2.png", "b3.png", "a.png"]
    assert EmbeddingStore.open(tmp_path / "s").keys() == keys


MODEL = ModelIdentity("m", None)


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


def test_the_commands_take_clips_ensemble(tmp_path):
    from command import run

    from bliss_index.calibration.class_texts import ClassTexts
    from bliss_index.vocabulary import PROMPT_ENSEMBLE, prompt_templates

    (tmp_path / "words.txt").write_text("cat\ntree\n")
    model = ("--model", "bliss-tiny", "--dtype", "float32")
    run("encode-text", tmp_path / "words.txt", "--out", tmp_path / "s", "--prompt-ensemble", *model)
    store = EmbeddingStore.open(tmp_path / "s")
    tiny = load_encoder("bliss-tiny")
    rows = tiny.encode_ensemble(["cat", "tree"], prompt_templates(PROMPT_ENSEMBLE))
    np.testing.assert_allclose(store.embeddings(), rows, atol=2e-6)
    texts = ClassTexts.of_names(["cat", "tree"], store.model, template=PROMPT_ENSEMBLE)
    np.testing.assert_allclose(texts.embeddings, rows, atol=2e-6)
    assert texts.prompt == store.prompt and store.prompt.count("{}") == 80
    _, stderr = run("encode-text", tmp_path / "words.txt", "--out", tmp_path / "t",
                    "--prompt-ensemble", "--template", "a {}", *model, code=2)  # fmt: skip
    assert "takes the place of --template" in stderr


def test_entries_that_say_nearly_the_same_are_named(tmp_path):
    from command import run

    from bliss_index.search.near import NEAR, near_entries

    rng = np.random.default_rng(0)
    rows = rng.standard_normal((60, 32))
    rows[7] = rows[3] + 0.01 * rng.standard_normal(32)
    rows[9] = rows[8]
    rows[20:23] = rows[30] + 0.1 * rng.standard_normal((3, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    with StoreWriter(tmp_path / "s", kind="text", model=MODEL, dim=32, dtype="float32") as writer:
        names = [f"w{i}" for i in range(60)]
        writer.append(names, rows, texts=names)
    found = near_entries(EmbeddingStore.open(tmp_path / "s"))
    similar = rows.astype(float) @ rows.astype(float).T
    np.fill_diagonal(similar, -1)
    assert (found.compared, found.near) == (60, int((similar.max(axis=1) >= NEAR).sum()))
    assert found.near == 8 and [pair[:2] for pair in found.examples[:2]] == [
        ("w8", "w9"),
        ("w3", "w7"),
    ]
    assert len({pair[:2] for pair in found.examples}) == len(found.examples)
    (tmp_path / "words.txt").write_text("cat\ncat.\ntree\n")
    command = ("encode-text", tmp_path / "words.txt", "--model", "bliss-tiny")
    stdout, stderr = run(*command, "--out", tmp_path / "t", "--json")
    said = json.loads(stdout)["near_entries"]
    assert said["compared"] == 3 and said["similarity"] == NEAR
    assert ("nearly the same" in stderr) == bool(said["near"])
    assert json.loads(run(*command, "--out", tmp_path / "t", "--json")[0])["near_entries"] is None


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
        encode_image_store(encoder, open_images(source), tmp_path / name, decoders=0)
        store = EmbeddingStore.open(tmp_path / name)
        assert verify_store(tmp_path / name).ok
        listed = store.keys()
        keys = [key.removesuffix(".png") for key in listed]
        found[name] = dict(zip(keys, store.embeddings(), strict=True))
    assert set(found["folder"]) == set(found["tar"]) == set(found["parquet"])
    for key, row in found["folder"].items():
        np.testing.assert_array_equal(row, found["tar"][key])
        np.testing.assert_array_equal(row, found["parquet"][key])


def killed_after(more, command, store, random):
    """Start a command and kill it, somewhere, after it has written so many shards more."""
    wanted = len(list(store.glob("part-*.arrow"))) + more
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        if len(list(store.glob("part-*.arrow"))) >= wanted:
            time.sleep(random.uniform(0, 0.05))
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait() == -signal.SIGKILL
        time.sleep(0.005)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "image"])
def test_killed_and_continued(pictures, tmp_path, kind):
    """SIGKILL at random moments: the finished store is the uninterrupted one, byte for byte."""
    source = tmp_path / "many.txt"
    if kind == "text":
        lines = [f"word number {row % 16_000}\n" for row in range(16_500)]
        source.write_text("".join(lines))
    else:
        source = tmp_path / "many"
        source.mkdir()
        files = sorted(pictures.rglob("*.png"))
        for number in range(700):
            os.link(files[number % len(files)], source / f"{number:05}.png")
    script = tmp_path / "encode.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), kind, str(source)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    random = np.random.default_rng(4)
    for more in (1, 4):
        assert killed_after(more, [*command, str(tmp_path / "s")], tmp_path / "s", random)
        assert not (tmp_path / "s" / "manifest.json").exists()
    subprocess.run([*command, str(tmp_path / "s")], check=True, capture_output=True)
    assert bytes_of(tmp_path / "s") == bytes_of(tmp_path / "whole")
    assert verify_store(tmp_path / "s").ok


def write_files_of_every_kind(folder, good):
    """Files whose names begin with 'ok' are images, with 'bad' they are not; how many of each."""
    rotated = good.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    rotated.save(folder / "ok exif.png", exif=exif)
    good.save(folder / "ok plain.png")
    good.save(folder / "ok.jpg", quality=95)
    good.convert("CMYK").save(folder / "ok cmyk.jpg", quality=95)
    good.quantize(64).save(folder / "ok palette.png")
    good.convert("RGBA").save(folder / "ok alpha.png")
    good.convert("L").save(folder / "ok grey.png")
    grey = np.asarray(good.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "ok 16 bit.png")
    good.save(folder / "ok animated.gif", save_all=True, append_images=[good.rotate(90)])
    good.save(folder / "ok \u00fcnicode\nand newline.webp")
    os.symlink("ok.jpg", folder / "ok link.jpg")
    (folder / "directory.jpg").mkdir()
    good.save(folder / "directory.jpg" / "ok inside.PNG")

    png, jpeg = (folder / "ok plain.png").read_bytes(), (folder / "ok.jpg").read_bytes()
    (folder / "bad empty.png").write_bytes(b"")
    (folder / "bad text.jpg").write_bytes(b"not a picture at all")
    (folder / "bad cut.png").write_bytes(png[: len(png) // 2])
    (folder / "bad cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "bad noise.webp").write_bytes(np.random.default_rng(0).bytes(500))
    header = struct.pack(">II", 40_000, 40_000) + b"\x08\x02\x00\x00\x00"
    chunk = b"IHDR" + header
    bomb = png[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    (folder / "bad bomb.png").write_bytes(bomb)
    os.symlink("nowhere.jpg", folder / "bad link.jpg")
    os.mkfifo(folder / "bad pipe.jpg")
    os.symlink("/dev/zero", folder / "bad device.png")
    locked = folder / "bad locked.png"
    locked.write_bytes(png)
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root reads everything
        locked.unlink()
    files = [path.name for path in folder.rglob("*") if path.name.startswith(("ok", "bad"))]
    bad = sum(name.startswith("bad") for name in files)
    return len(files) - bad, bad


@pytest.mark.parametrize("decoders", ["0", "1"])
def test_bad_files_through_the_command_line(pictures, tmp_path, decoders, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    image = Image.open(next(pictures.rglob("*.png"))).convert("RGB")
    good, bad = write_files_of_every_kind(folder, image)
    out = tmp_path / "s"
    command = ["encode-images", str(folder), "--model", "bliss-tiny", "--out", str(out),
               "--decoders", decoders, "--device", "cpu", "--json"]  # fmt: skip
    assert app(command, standalone_mode=False) == 3
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["bad_rows"]) == (good + bad, bad)
    shard = EmbeddingStore.open(out).shard(0)
    for row, key in enumerate(shard.keys):
        name = Path(key).name
        expected = "ok" if name.startswith("ok") else "undecodable_image"
        assert (name, shard.status[row]) == (name, expected)
        assert bool(shard.error[row]) == (expected != "ok")
    rows = dict(zip(shard.keys, shard.embeddings.astype(float), strict=True))
    for key, row in rows.items():
        if key.startswith(("ok", "directory")):
            other = rows["ok grey.png" if "16 bit" in key else "ok plain.png"]
            assert row @ other > (0.5 if "grey" in key else 0.98), key
    np.testing.assert_array_equal(rows["ok exif.png"], rows["ok plain.png"])
    np.testing.assert_array_equal(rows["ok alpha.png"], rows["ok plain.png"])
    np.testing.assert_array_equal(rows["directory.jpg/ok inside.PNG"], rows["ok plain.png"])
    np.testing.assert_array_equal(rows["ok 16 bit.png"], rows["ok grey.png"])
    np.testing.assert_array_equal(rows["ok link.jpg"], rows["ok.jpg"])
    assert app(command, standalone_mode=False) == 3
    assert f"was complete already: {good + bad} images" in capsys.readouterr().err
