"""Image sources and the decoding pipeline: rows in = rows out, in order, with reasons."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile

import encode_models as models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from slow_path import SlowPath

from bliss_index.encode import load_encoder
from bliss_index.encode.decode import decode_image
from bliss_index.encode.decode_pool import DecodePool, DecodeSettings
from bliss_index.encode.image_work import encode_image_store
from bliss_index.encode.images import open_images
from bliss_index.encode.pipeline import PipelineTimes, iter_encoded
from bliss_index.encode.preprocess import Preprocess
from bliss_index.errors import InvalidInputError, JobError
from bliss_index.store import EmbeddingStore

NAMES = ["a/one.png", "a.b/two.jpg", "a0.png", "b/c/three.png", "four.png", "z.webp", "zz.png"]
BAD = {3: "truncated", 5: "unsupported_type"}


def content_of(number):
    image = models.noise_image(number, (40 + number, 33))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    if number == 3:
        return stream.getvalue()[:600]
    return b"no image at all" if number == 5 else stream.getvalue()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    directory = models.save_model(tmp_path_factory.mktemp("clip"), models.CLIP)
    return load_encoder(f"local-dir:{directory}", device="cpu", batch_size=3)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for number, name in enumerate(sorted(NAMES)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content_of(number))
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_bytes(b"")
    (root / ".DS_Store").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    os.symlink(root / "a", root / "link")
    return root


@pytest.fixture
def tar(tmp_path):
    path = tmp_path / "images.tar"
    with tarfile.open(path, "w") as archive:
        for number in range(len(NAMES)):
            for extension, body in [
                ("json", json.dumps({"n": number}).encode()),
                ("png", content_of(number)),
                ("txt", f" caption {number}\n".encode()),
            ]:
                member = tarfile.TarInfo(f"shard/{number:05d}.{extension}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
        member = tarfile.TarInfo("shard/alone.json")
        archive.addfile(member, io.BytesIO(b""))
    return path


@pytest.fixture
def parquet(tmp_path):
    rows = [{"bytes": content_of(n), "path": name} for n, name in enumerate(sorted(NAMES))]
    table = pa.table(
        {
            "image": rows,
            "label": pa.array(range(len(NAMES)), pa.int32()),
            "kind": pa.array(["x", "y"] * 3 + [None]).dictionary_encode(),
            "boxes": [[1, 2]] * len(NAMES),
        }
    )
    path = tmp_path / "images.parquet"
    pq.write_table(table, path, row_group_size=2)
    return path


def collect(batches):
    batches = list(batches)
    return {
        "keys": [key for batch in batches for key in batch.keys],
        "embeddings": np.concatenate([batch.embeddings for batch in batches]),
        "status": [status for batch in batches for status in batch.status],
        "error": [error for batch in batches for error in batch.error],
        "sizes": [len(batch) for batch in batches],
        "metadata": [row for b in batches if b.metadata for row in b.metadata.to_pylist()],
    }


@pytest.mark.parametrize("decoders", [0, 2])
def test_rows_out_equal_rows_in(encoder, folder, decoders):
    times = PipelineTimes()
    source = open_images(folder)
    result = collect(iter_encoded(encoder, source, decoders=decoders, times=times))
    assert result["keys"] == sorted(NAMES)
    assert source.skipped == {"hidden": 2, "no image extension": 1, "link to a directory": 1}
    assert source.rows() == len(NAMES)
    for row, error in enumerate(result["error"]):
        if row in BAD:
            assert result["status"][row] == "undecodable_image"
            assert error.startswith(BAD[row] + ": ")
            assert not result["embeddings"][row].any()
        else:
            assert (result["status"][row], error) == ("ok", None)
            expected = encoder.encode_images([content_of(row)])[0]
            np.testing.assert_allclose(result["embeddings"][row], expected, atol=1e-6)
    assert (times.rows, times.quarantined, times.replaced) == (7, 2, 0)
    assert 0 < times.busy <= 1


def test_folder_tar_and_parquet_give_the_same(encoder, folder, tar, parquet, tmp_path):
    table = tmp_path / "images.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["split", "path"])
        writer.writerows([["train", f"images/{name}"] for name in sorted(NAMES)])
    paths = tmp_path / "paths.parquet"
    names = [f"images/{name}" for name in sorted(NAMES)]
    pq.write_table(pa.table({"path": names, "key": [f"k{n}" for n in range(7)]}), paths)
    results = {
        path.name: collect(iter_encoded(encoder, open_images(path), decoders=0))
        for path in (folder, tar, parquet, table, paths)
    }
    for result in results.values():
        np.testing.assert_array_equal(result["embeddings"], results["images"]["embeddings"])
        assert result["status"] == results["images"]["status"]
    assert results["images.tar"]["keys"] == [f"shard/{n:05d}" for n in range(7)]
    assert results["images.tar"]["metadata"][2] == {
        "json": '{"n": 2}',
        "txt": "caption 2",
        "cls": None,
    }
    assert results["images.parquet"]["keys"] == [f"images.parquet:{n}" for n in range(7)]
    assert results["images.parquet"]["metadata"][6] == {
        "label": 6, "kind": None, "boxes": [1, 2],
    }  # fmt: skip
    assert results["images.csv"]["keys"] == names
    assert results["images.csv"]["metadata"][0] == {"split": "train"}
    assert results["paths.parquet"]["keys"] == [f"k{n}" for n in range(7)]


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "csv", "all"])
def test_every_source_resumes_at_any_row(kind, request, tmp_path):
    if kind == "all":
        for name in ("one", "two"):
            os.makedirs(tmp_path / "both", exist_ok=True)
            body = request.getfixturevalue("tar").read_bytes()
            (tmp_path / "both" / f"{name}.tar").write_bytes(body)
        source = open_images(tmp_path / "both")
    else:
        source = open_images(request.getfixturevalue("csv_file" if kind == "csv" else kind))
    whole = list(source.iter())
    assert source.rows() == len(whole) == (14 if kind == "all" else 7)
    source = pickle.loads(pickle.dumps(source))  # as it comes to workers of a job
    for start in range(len(whole) + 2):
        assert list(source.iter(start)) == whole[start:]


@pytest.fixture
def csv_file(folder):
    path = folder.parent / "images.csv"
    path.write_text("\n".join(["path", *(f"images/{name}" for name in NAMES)]))
    return path


def test_batches_do_not_cross_shards_and_resume_alike(encoder, folder):
    whole = collect(iter_encoded(encoder, open_images(folder), decoders=0, align=4))
    assert whole["sizes"] == [3, 1, 3]
    rest = collect(iter_encoded(encoder, open_images(folder), decoders=1, align=4, start=4))
    assert rest["sizes"] == [3]
    np.testing.assert_array_equal(rest["embeddings"], whole["embeddings"][4:])
    assert [b.start for b in iter_encoded(encoder, open_images(folder), decoders=0, start=5)] == [5]


def test_the_consumer_may_stop_early(encoder, folder):
    batches = iter_encoded(encoder, open_images(folder), decoders=1, batch_size=1)
    assert len(next(batches)) == 1
    batches.close()


def settings(timeout=60.0):
    return DecodeSettings(Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3), timeout=timeout)


def decoded(pool, tasks):
    """Reasons and pixels of each task."""
    pixels = [np.zeros((len(task), 8, 8, 3), np.uint8) for task in tasks]
    return list(pool.map(zip(tasks, pixels, strict=True))), pixels


def pixels_of(number):
    return settings().preprocess.pixels(decode_image(content_of(number)))


def test_a_hanging_image_is_given_up_and_no_other():
    tasks = [[content_of(0), SlowPath(), content_of(1)], [content_of(2)]]
    with DecodePool(settings(timeout=1.0), 1) as pool:
        reasons, pixels = decoded(pool, tasks)
        assert pool.replaced == 1
    assert reasons == [["", "timeout: not decoded in 1 s", ""], [""]]
    for image, number in ((pixels[0][0], 0), (pixels[0][2], 1), (pixels[1][0], 2)):
        np.testing.assert_array_equal(image, pixels_of(number))


class Deadly:
    """Content whose arrival ends the process that receives it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_dying_process_costs_its_image_only():
    tasks = [[content_of(0), Deadly(), content_of(1)], [content_of(2)]]
    with DecodePool(settings(), 2) as pool:
        reasons, pixels = decoded(pool, tasks)
        assert pool.replaced == 3  # with the first image, with the second, and with it alone
    assert reasons == [["", "decoder_died: its process ended with code 3, twice", ""], [""]]
    for image, number in ((pixels[0][0], 0), (pixels[0][2], 1), (pixels[1][0], 2)):
        np.testing.assert_array_equal(image, pixels_of(number))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_pixels_are_those_of_their_images(workers):
    """Tasks of every length, more than there are processes, some images damaged."""
    lengths = [1, 8, 0, 3, 8, 8, 5]
    tasks, expected, number = [], [], 10
    for length in lengths:
        numbers = range(number, number + length)
        number += length
        tasks.append([b"damaged" if i % 7 == 3 else content_of(i) for i in numbers])
        expected.append([None if i % 7 == 3 else pixels_of(i) for i in numbers])
    with DecodePool(settings(), workers) as pool:
        reasons, pixels = decoded(pool, tasks)
    assert [len(found) for found in reasons] == lengths
    for task, images in enumerate(expected):
        for at, image in enumerate(images):
            if image is None:
                assert reasons[task][at].startswith("unsupported_type: ")
            else:
                assert reasons[task][at] == ""
                np.testing.assert_array_equal(pixels[task][at], image)


def test_processes_that_never_start(monkeypatch):
    monkeypatch.setattr("bliss_index.encode.decode_pool._PROGRAM", "raise SystemExit(7)")
    with (
        pytest.raises(JobError, match="exit code 7.*--decoders 0"),
        DecodePool(settings(), 1) as pool,
    ):
        decoded(pool, [[b""]])


def test_a_script_needs_no_guard_to_encode(tmp_path, folder):
    """Decoding processes do not run the caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from bliss_index.encode.decode_pool import DecodePool, DecodeSettings\n"
        "from bliss_index.encode.images import open_images\n"
        "from bliss_index.encode.preprocess import Preprocess\n"
        "print('begun')\n"
        f"images = [item.content for item in open_images({str(folder)!r}).iter()]\n"
        "pixels = np.zeros((len(images), 8, 8, 3), np.uint8)\n"
        "preprocess = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)\n"
        "with DecodePool(DecodeSettings(preprocess), 2) as pool:\n"
        "    print(sum(map(len, pool.map([(images, pixels)]))))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    begun, rows = done.stdout.split()
    assert (begun, int(rows)) == ("begun", open_images(folder).rows())


def test_bad_sources(tmp_path, tar):
    def refused(path, *parts):
        with pytest.raises(InvalidInputError) as caught:
            list(open_images(path).iter())
        for part in parts:
            assert part in str(caught.value)

    refused(tmp_path / "gone", "gone", "does not exist")
    refused([], "no image source")
    other = tmp_path / "x.zip"
    other.write_bytes(b"")
    refused(other, "x.zip", ".tar", ".parquet")
    body = tar.read_bytes()
    for length in (0, 300, 1000, len(body) // 2 + 5, len(body) - 11000):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(body[:length])
        refused(cut, "cut.tar", "damaged or truncated after")
    table = tmp_path / "x.parquet"
    pq.write_table(pa.table({"n": [1]}), table)
    refused(table, "x.parquet", "n (int64)")
    pq.write_table(pa.table({"one": [b""], "two": [b""]}), table)
    refused(table, "'one', 'two'", "image")
    table.write_bytes(b"PAR1")
    refused(table, "x.parquet", "readable Parquet")
    text = tmp_path / "x.csv"
    text.write_text("")
    refused(text, "x.csv", "empty")
    text.write_text("path,label\na.png\n")
    refused(text, "row 0", "1 fields", "2")
    text.write_text("a,b\n1,2\n")
    refused(text, "'a', 'b'", "path")
    text.write_bytes(b"path\n\xff\n")
    refused(text, "x.csv", "UTF-8")
    text.write_text("path\na.png\n")
    pq.write_table(pa.table({"path": ["a.png"], "json": [1]}), table)
    refused([table, tar], "'json' is of type int64", "images.tar", "no type holds both")


def test_keys_may_be_numbers_and_columns_named_like_a_stores(encoder, tmp_path):
    table = tmp_path / "x.parquet"
    columns = {"image": [content_of(0), content_of(1)], "key": [7, None], "text": ["a", "b"]}
    pq.write_table(pa.table({**columns, "status": [1, 2]}), table)
    encode_image_store(encoder, open_images(table), tmp_path / "s", decoders=0)
    shard = EmbeddingStore.open(tmp_path / "s").shard(0)
    assert (shard.keys, shard.status) == (["7", "x.parquet:1"], ["ok", "ok"])
    assert shard.metadata().to_pylist() == [
        {"source_text": "a", "source_status": 1},
        {"source_text": "b", "source_status": 2},
    ]


def test_a_source_without_images_is_refused(encoder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidInputError, match="empty holds no images; passed over: nothing"):
        encode_image_store(encoder, open_images(empty), tmp_path / "s")
    (empty / "notes.txt").write_text("no image")
    (empty / ".hidden.png").write_bytes(b"")
    with pytest.raises(
        InvalidInputError, match=r"hidden.png\), 1 \(no image extension: notes.txt\)"
    ):
        encode_image_store(encoder, open_images(empty), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_missing_content_is_a_row_with_a_reason(encoder, tmp_path):
    table = tmp_path / "x.parquet"
    cells = [{"bytes": None, "path": None}, None, {"bytes": None, "path": "gone.png"}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), table)
    result = collect(iter_encoded(encoder, open_images(table), decoders=0))
    assert result["status"] == ["undecodable_image"] * 3
    assert result["error"][0] == result["error"][1]
    assert result["error"][0].startswith("empty: the row has neither bytes nor a path")
    assert result["error"][2].startswith("unreadable_file: ")


def test_bad_options(encoder, folder):
    for options, part in [
        ({"decoders": -1}, "decoders is -1"),
        ({"batch_size": -2}, "batch_size is -2"),
        ({"start": -1}, "start is -1"),
        ({"align": 0}, "align is 0"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"max_pixels": 0}, "max_pixels is 0"),
    ]:
        with pytest.raises(InvalidInputError, match=part):
            list(iter_encoded(encoder, open_images(folder), **options))
