"""Object stores: input, output, races, lost answers; the same bytes as on a disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import threading
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import outputs, write_images, write_text
from job_fixtures import TrivialWork, result, run_trivial
from typer.testing import CliRunner

if not all(map(find_spec, ("obstore", "moto"))):
    pytest.skip("the extra 'object-stores' or moto is not installed", allow_module_level=True)

from object_store import s3_server, upload

from bliss_index.calibration.labels import Labels
from bliss_index.cli.app import app
from bliss_index.errors import (
    BlissError,
    CorruptStoreError,
    InvalidInputError,
    OutputError,
    StoreError,
)
from bliss_index.jobs import JobOptions, Part, run
from bliss_index.jobs.record import commit
from bliss_index.scoring import run_job
from bliss_index.storage import open_directory
from bliss_index.storage.cache import local_copy
from bliss_index.store import EmbeddingStore, ModelIdentity
from bliss_index.store.import_work import import_embeddings
from bliss_index.vocabulary import load_vocabulary

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


def command(*arguments, code=0, says=""):
    """Run a command in this process; return what it prints."""
    done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    error = done.exception if isinstance(done.exception, BlissError) else None
    assert done.exit_code == code and (error or code != 1 or done.output), done.output
    assert says in f"{error} {done.output}", f"{error} {done.output}"
    return done.stdout


def chain(root) -> list[tuple]:
    """Every command that reads what the works have made, on a corpus and images at a root."""
    inputs = ("--corpus", f"{root}/corpus", "--calibration", f"{root}/made")
    return [
        ("build", f"{root}/corpus"),
        ("build", f"{root}/corpus", "--index", "hnsw", "--queries", f"{root}/images", "-k", 5,
         "--threads", 1),
        ("calibrate", f"{root}/images", "--classes", f"{root}/classes", "--labels",
         f"{root}/classes.csv", "--out", f"{root}/made"),
        ("threshold", f"{root}/images", *inputs, "--labels", f"{root}/classes.csv", "-k", 5,
         "--out", f"{root}/normal.parquet"),
        ("score", f"{root}/images", *inputs, "--out", f"{root}/scores", "-k", 5, "--search",
         "hnsw", "--normal-scores", f"{root}/normal.parquet", "--false-alarm-rate", 0.05),
        ("evaluate", f"{root}/scores", "--labels", f"{root}/known.csv", "--resamples", 0),
        ("evaluate", f"{root}/images", "--labels", f"{root}/classes.csv", "--normal",
         f"{root}/images", "--normal-labels", f"{root}/classes.csv", "--classes",
         f"{root}/classes", "--corpus", f"{root}/corpus", "--protocol", "one-class", "-k", 5),
        ("explain", f"{root}/scores", "image 7", *inputs, "--images", f"{root}/images"),
        ("report", f"{root}/scores", "--labels", f"{root}/known.csv", "--plots", f"{root}/plots"),
        *(("verify", f"{root}/{name}") for name in ("corpus", "images", "made")),
        ("verify", f"{root}/scores", "--images", f"{root}/images"),
        *(("info", f"{root}/{name}") for name in ("corpus", "images", "made", "scores")),
    ]  # fmt: skip


@pytest.fixture
def roots(job, bucket, tmp_path):
    """The same files in a local folder and in a bucket."""
    folder = tmp_path / "local"
    shutil.copytree(job.corpus, folder / "corpus")
    write_images(folder / "images", EmbeddingStore.open(job.images).embeddings("float32"), 150)
    write_text(folder / "classes", EmbeddingStore.open(folder / "corpus").embeddings()[:3])
    keys = EmbeddingStore.open(folder / "images").keys()
    classes = [f"{key},word {row % 3}" for row, key in enumerate(keys)]
    (folder / "classes.csv").write_text("\n".join(["key,class", *classes]) + "\n")
    known = [f"{key},{row % 2}" for row, key in enumerate(keys)]
    (folder / "known.csv").write_text("\n".join(["key,anomaly", *known]) + "\n")
    upload(folder, f"{bucket}/all")
    return folder, f"{bucket}/all"


def facts_of(root, output: str) -> dict:
    facts = json.loads(output.replace(str(root), "ROOT"))
    return {n: v for n, v in facts.items() if n not in ("seconds", "rows_per_second", "bytes")}


def test_every_command_says_and_writes_the_same_there(roots, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    pytest.importorskip("jinja2")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    folder, uri = roots
    for here, there in zip(chain(folder), chain(uri), strict=True):
        assert facts_of(folder, command(*here, "--json")) == facts_of(
            uri, command(*there, "--json")
        )
    for name in ("corpus/index", "made", "scores", "plots", ""):
        where = open_directory(f"{uri}/{name}".rstrip("/"))
        for file in where.names():
            if not file.startswith("_") or file == "_manifest.json":
                assert where.read(file) == (folder / name / file).read_bytes(), file
    assert "_report.html" in open_directory(f"{uri}/scores").names()
    assert list((tmp_path / "work").iterdir()) == []


def test_what_a_file_names_is_not_contacted(roots, monkeypatch):
    folder, uri = roots
    inputs = {"corpus": f"{uri}/corpus", "calibration": f"{uri}/made"}
    command("calibrate", f"{uri}/images", "--classes", f"{uri}/classes", "--assign", "--out",
            f"{uri}/made")  # fmt: skip
    options = [word for name, at in inputs.items() for word in (f"--{name}", at)]
    command("score", f"{uri}/images", *options, "-k", 5, "--out", folder / "scores")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # whoever calls there, waits long
    command("verify", folder / "scores", says="--images s3://")
    command("report", folder / "scores")
    command("info", folder / "scores")
    named = []
    for name in ("images", "corpus", "calibration"):
        command("explain", folder / "scores", "image 7", *named, code=1, says=f"--{name} s3://")
        named += [f"--{name}", folder / name if name != "calibration" else folder / "made"]


@pytest.mark.slow
def test_verify_finds_there_what_is_damaged_and_left_over(roots):
    pytest.importorskip("faiss")
    _, uri = roots
    for one in chain(uri)[:5]:
        command(*one)
    for name in ("corpus", "images", "made", "scores"):
        assert_verify_finds(uri, name)


def assert_verify_finds(uri, name):
    directory = open_directory(f"{uri}/{name}")
    files = [n for n in directory.names() if n.endswith((".arrow", ".parquet"))]
    if name == "corpus":
        files += [f"index/{n}" for n in directory.names("index") if n.endswith(".faiss")]
    if name in ("corpus", "images", "scores"):
        files += [f"_plan/{n}" for n in directory.names("_plan")]
    command("verify", f"{uri}/{name}")
    for file in files:
        whole = directory.read(file)
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        directory.replace(file, bytes(content))
        command("verify", f"{uri}/{name}", code=1, says=file.rpartition("/")[2][:30])
        directory.replace(file, whole)
    orphans = {file.replace(file.split(".")[1], "0" * 16) for file in files if "_plan" not in file}
    for orphan in orphans:
        directory.replace(orphan, b"whole, and named by no record")
        command("verify", f"{uri}/{name}", code=1, says=f"{orphan.rpartition('/')[2]} is an orphan")
        directory.remove(orphan)
    command("verify", f"{uri}/{name}")


def test_a_corpus_that_is_damaged_there_or_in_its_copy(job, bucket, tmp_path):
    upload(job.folder / "corpus", f"{bucket}/corpus")
    directory = open_directory(f"{bucket}/corpus")
    (name,) = (n for n in directory.names() if n.startswith("part-"))
    whole = directory.read(name)
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    directory.replace(name, bytes(content))
    settings = type(job)(job.folder, f"{bucket}/corpus", job.calibration, "").settings()
    with pytest.raises(CorruptStoreError, match=f"{bucket}/corpus/{name} .*its name says"):
        run_job(job.images, tmp_path / "s", settings)
    directory.replace(name, whole)
    assert EmbeddingStore.open(f"{bucket}/corpus", kind="text").embeddings().shape == (80, 16)
    (copy,) = (tmp_path / "cache").rglob(name)
    copy.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=f"{copy} .*copy of {bucket}/corpus: remove it"):
        run_job(job.images, tmp_path / "s", settings)
    copy.unlink()
    assert run_job(job.images, tmp_path / "s", settings).complete


def test_an_object_that_goes_while_it_is_read(bucket):
    directory = open_directory(f"{bucket}/x")
    directory.replace("large", bytes(10 << 20))
    with directory.open("large") as file:
        assert file.read(10) == bytes(10)
        directory.remove("large")
        with pytest.raises(CorruptStoreError, match="large cannot be read"):
            file.read()


def test_a_copy_that_cannot_be_written(job, bucket, tmp_path, monkeypatch):
    upload(job.folder / "corpus", f"{bucket}/corpus")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="BLISS_INDEX_CACHE names another folder"):
        EmbeddingStore.open(f"{bucket}/corpus", kind="text")


def test_a_manifest_that_is_replaced_while_it_is_copied(job, bucket, tmp_path, monkeypatch):
    upload(job.folder / "corpus", f"{bucket}/corpus")
    directory = open_directory(f"{bucket}/corpus")
    first, names = directory.read("manifest.json"), type(directory).names

    def replaced_meanwhile(self, folder=""):
        directory.replace("manifest.json", first + b" ")
        return names(self, folder)

    monkeypatch.setattr(type(directory), "names", replaced_meanwhile)
    copy = local_copy(f"{bucket}/corpus")
    assert (copy / "manifest.json").read_bytes() == first
    assert copy.name == hashlib.sha256(first).hexdigest()[:32]


def test_what_is_not_there_is_one_message(job, bucket, tmp_path):
    with pytest.raises(StoreError, match="s3://no-such-bucket/x.* cannot be listed"):
        run_trivial("s3://no-such-bucket/x")
    for what in ("labels.csv", "labels.txt"):
        with pytest.raises(InvalidInputError, match=f"{bucket}/{what} does not exist"):
            Labels.read(f"{bucket}/{what}")
    with pytest.raises(InvalidInputError, match="words.txt does not exist"):
        load_vocabulary([f"{bucket}/words.txt"])
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


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")
def test_a_screen_from_and_to_a_bucket(bucket, tmp_path):
    from bliss_index.demo.scenes import draw_scene, scene_vocabulary
    from bliss_index.screening import ScreenSettings, screen

    for number in range(12):
        place = tmp_path / "known" / ("cat" if number % 2 else "castle") / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        scene = draw_scene(np.random.default_rng([8, number]), place.parent.name, size=32)
        scene.image.save(place)
        upload(place.parent, f"{bucket}/known/{place.parent.name}")
    (tmp_path / "words.txt").write_text("\n".join(scene_vocabulary()[:30]))
    found = []
    for at in (str(tmp_path), bucket):
        settings = ScreenSettings(
            (f"{at}/known",), normal=f"{at}/known", vocabulary=(str(tmp_path / "words.txt"),),
            model="bliss-tiny", batch_size=4,
        )  # fmt: skip
        found.append(screen(settings, f"{at}/run"))
        assert screen(settings, f"{at}/run").scored_now == 0
    local, remote = found
    assert remote.classes == {"castle": 6, "cat": 6}
    assert remote.most_anomalous == local.most_anomalous
    assert (remote.threshold, remote.flagged) == (local.threshold, local.flagged)
    there = open_directory(f"{bucket}/run").names()
    assert {"_job.json", "calibrated.json", "normal-scores.parquet", "summary.json"} <= set(there)
