"""Object stores: input, output, races, lost answers; the same bytes as on a disk."""

from __future__ import annotations

import tarfile
import threading
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import outputs
from job_fixtures import TrivialWork, result, run_trivial

if not all(map(find_spec, ("obstore", "moto"))):
    pytest.skip("the extra 'object-stores' or moto is not installed", allow_module_level=True)

from object_store import s3_server

from bliss_index.errors import BlissError, StoreError
from bliss_index.jobs import JobOptions, Part, run
from bliss_index.jobs.record import commit
from bliss_index.scoring import run_job
from bliss_index.storage import open_directory
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.import_work import import_embeddings

pytestmark = pytest.mark.filterwarnings("ignore")  # the server's own


@pytest.fixture(scope="module")
def server():
    with s3_server() as (environment, bucket):
        yield environment, bucket


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    environment, bucket = server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))
    return f"{bucket}/{tmp_path.name}"


def fetched(uri: str, folder="") -> dict[str, bytes]:
    """The files of a job that must be the same whatever made them."""
    directory = open_directory(uri)
    names = directory.names()
    found = {n: directory.read(n) for n in names if not n.startswith("_")}
    return {**found, **{f"_plan/{n}": directory.read(f"_plan/{n}")
                        for n in directory.names("_plan")}}  # fmt: skip


def upload(folder, uri: str) -> None:
    directory = open_directory(uri)
    for path in folder.rglob("*"):
        if path.is_file():
            directory.replace(path.relative_to(folder).as_posix(), path.read_bytes())


def test_a_job_writes_there_what_it_writes_on_a_disk(bucket, tmp_path):
    run_trivial(tmp_path / "s")
    for name, options in [("one", JobOptions()), ("two", JobOptions(workers=2))]:
        assert run(TrivialWork(20), f"{bucket}/{name}", options).complete
        assert fetched(f"{bucket}/{name}") == result(tmp_path / "s")
        assert run(TrivialWork(20), f"{bucket}/{name}").rows_now == 0
    for task in range(2):
        run(TrivialWork(20), f"{bucket}/tasks", JobOptions(task=f"{task}/2"))
    run(TrivialWork(20), f"{bucket}/tasks")
    assert fetched(f"{bucket}/tasks") == result(tmp_path / "s")


def test_answers_that_are_lost(tmp_path, monkeypatch):
    run_trivial(tmp_path / "s", 40)
    with s3_server(dropped=10) as (environment, bucket):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for _ in range(10):
            try:
                if run(TrivialWork(40), f"{bucket}/x").complete:
                    break
            except BlissError:
                continue  # one message, and the same command again
        assert fetched(f"{bucket}/x") == result(tmp_path / "s")


def test_two_runners_of_every_part(bucket, tmp_path):
    run_trivial(tmp_path / "s", 30)
    errors = []

    def runner():
        try:
            run(TrivialWork(30), f"{bucket}/x")
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=runner) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert fetched(f"{bucket}/x") == result(tmp_path / "s")


def test_the_first_record_wins(bucket):
    directory = open_directory(f"{bucket}/x")
    part = Part(5, "five", 1, "same")

    def committed(data):
        content = directory.new_file()
        content.sink.write(data)
        return commit(directory, part, content, "arrow", status={"ok": 1}, given="g", seconds=0.0)

    first = committed(b"one")
    assert committed(b"another") == first
    assert list(directory.names()) == [first.file]


def test_import_and_score_from_and_to_a_bucket(job, whole, bucket, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings()
    np.save(tmp_path / "e.npy", rows)
    open_directory(f"{bucket}/in").replace("e.npy", (tmp_path / "e.npy").read_bytes())
    options = {"kind": "image", "model": ModelIdentity("ViT-B-32", "openai"), "rows_per_shard": 50}
    import_embeddings(tmp_path / "e.npy", tmp_path / "s", **options)
    import_embeddings(f"{bucket}/in/e.npy", f"{bucket}/s", **options)
    local, remote = EmbeddingStore.open(tmp_path / "s"), EmbeddingStore.open(f"{bucket}/s")
    assert local.content_hash == remote.content_hash
    np.testing.assert_array_equal(local.embeddings(), remote.embeddings())
    for name in ("corpus", "calibration", "images"):
        upload(job.folder / name, f"{bucket}/{name}")
    elsewhere = type(job)(job.folder, f"{bucket}/corpus", f"{bucket}/calibration", "")
    summary = run_job(f"{bucket}/images", f"{bucket}/scores", elsewhere.settings())
    assert (summary.rows, summary.complete) == (300, True)
    directory = open_directory(f"{bucket}/scores")
    found = {n: directory.read(n) for n in directory.names() if n.endswith(".parquet")}
    assert found == whole == outputs(job.folder / "whole")


def test_a_bit_that_flips_there_is_noticed(job, bucket, tmp_path):
    upload(job.folder / "images", f"{bucket}/images")
    directory = open_directory(f"{bucket}/images")
    name = EmbeddingStore.open(f"{bucket}/images").shards[2].file
    content = bytearray(directory.read(name))
    content[len(content) // 2] ^= 1
    directory.replace(name, bytes(content))
    summary = run_job(f"{bucket}/images", tmp_path / "s", job.settings())
    assert [failed for failed, _ in summary.failed] == [name]


def test_what_is_not_there_is_one_message(job, bucket, tmp_path):
    with pytest.raises(StoreError, match="s3://no-such-bucket/x.* cannot be listed"):
        run_trivial("s3://no-such-bucket/x")
    with pytest.raises(StoreError, match="is not an embedding store|does not exist"):
        EmbeddingStore.open(f"{bucket}/nothing")


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")
@pytest.mark.parametrize("layout", ["folder", "tar", "parquet"])
def test_images_are_encoded_from_and_to_a_bucket(bucket, tmp_path, layout):
    from bliss_index.demo.scenes import draw_scene
    from bliss_index.encode import load_encoder
    from bliss_index.encode.image_work import encode_image_store
    from bliss_index.encode.images import open_images

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(20):
        scene = draw_scene(np.random.default_rng([6, number]), size=32)
        scene.image.save(pictures / f"{number:02}.png")
    if layout == "folder":
        source = pictures
    elif layout == "tar":
        source = tmp_path / "p.tar"
        with tarfile.open(source, "w") as archive:
            for path in sorted(pictures.iterdir()):
                archive.add(path, path.name)
    else:
        source = tmp_path / "p.parquet"
        files = sorted(pictures.iterdir())
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
        pq.write_table(pa.table({"image": cells}), source, row_group_size=6)
    if source.is_dir():
        upload(source, f"{bucket}/{source.name}")
    else:
        open_directory(bucket).replace(source.name, source.read_bytes())
    encoder = load_encoder("bliss-tiny", device="cpu", batch_size=4)
    for given, output in ((source, tmp_path / "s"), (f"{bucket}/{source.name}", f"{bucket}/s")):
        summary = encode_image_store(
            encoder, open_images(given), output, rows_per_shard=6, decoders=0
        )
        assert (summary.rows, summary.bad_rows) == (20, 0)
    local, remote = EmbeddingStore.open(tmp_path / "s"), EmbeddingStore.open(f"{bucket}/s")
    assert local.keys() == remote.keys()
    assert [s.sha256 for s in local.shards] == [s.sha256 for s in remote.shards]
