"""Nothing damaged is used: one flipped bit anywhere is an error that names the file."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from bulk_fixtures import shard
from typer.testing import CliRunner

from bliss_index.calibration import Calibration
from bliss_index.cli.app import app
from bliss_index.errors import BlissError, CorruptStoreError
from bliss_index.scoring import run_job
from bliss_index.store import EmbeddingStore


@pytest.fixture
def mine(job, tmp_path):
    """The job with files of its own, to be damaged."""
    for name in ("corpus", "calibration", "images"):
        shutil.copytree(job.folder / name, tmp_path / name)
    return type(job)(
        tmp_path, tmp_path / "corpus", tmp_path / "calibration", tmp_path / "images"
    )  # fmt: skip


def flip(path, place=0.5):
    """Flip a bit of a value, which every reader would take for a good one."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.unlink()
    path.write_bytes(content)


def refused(*arguments):
    """Run a command that must refuse its input; return the error."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(done.exception, BlissError), (done.output, done.exception)
    return str(done.exception)


def test_a_bit_of_the_corpus(mine, tmp_path):
    flip(shard(mine.corpus))
    name = EmbeddingStore.open(mine.corpus).shards[0].file
    with pytest.raises(CorruptStoreError, match=f"{name} has SHA-256 .* altered"):
        run_job(mine.images, tmp_path / "s", mine.settings())
    assert not list((tmp_path / "s").glob("part-*"))
    for command in (
        ("threshold", mine.images, "--corpus", mine.corpus, "--calibration", mine.calibration,
         "--out", tmp_path / "n.parquet", "-k", 5),
        ("build", mine.corpus, "--index", "flat", "-k", 5),
    ):  # fmt: skip
        assert f"{name} has SHA-256" in refused(*command)
    assert not (tmp_path / "n.parquet").exists()
    assert not (mine.corpus / "index").exists()


def test_a_bit_of_the_images(mine, tmp_path):
    images = EmbeddingStore.open(mine.images)
    made_of = {"images": images.content_hash, "labels_assigned": True}
    made = Calibration.load(mine.calibration)
    Calibration(made.classes, made.class_embeddings, made.moments, made.model, made_of).save(
        mine.calibration
    )
    flip(shard(mine.images, 3))
    name = images.shards[3].file
    assert f"{name} has SHA-256" in refused(
        "threshold", mine.images, "--corpus", mine.corpus, "--calibration", mine.calibration,
        "--out", tmp_path / "n.parquet", "-k", 5,
    )  # fmt: skip
    with pytest.raises(CorruptStoreError, match=f"{name} has SHA-256"):
        EmbeddingStore.open(mine.images).embeddings()


def test_a_bit_of_the_calibration(mine, tmp_path):
    (path,) = mine.calibration.glob("classes.*.arrow")
    flip(path)
    with pytest.raises(CorruptStoreError, match=f"{path.name} has SHA-256"):
        Calibration.load(mine.calibration)
    with pytest.raises(CorruptStoreError, match=f"{path.name} has SHA-256"):
        run_job(mine.images, tmp_path / "s", mine.settings())


def test_a_bit_of_an_index(mine, tmp_path):
    pytest.importorskip("faiss")
    from bliss_index.search.faiss.build import build_index
    from bliss_index.search.index import save_index

    corpus = EmbeddingStore.open(mine.corpus)
    record = save_index(build_index(corpus.embeddings(), "flat"), corpus)
    flip(mine.corpus / "index" / record.file)
    with pytest.raises(CorruptStoreError, match=f"{record.file} has SHA-256"):
        run_job(mine.images, tmp_path / "s", mine.settings(search="flat"))


def test_every_reader_of_a_store_compares(mine):
    flip(shard(mine.images, 1), 0.7)
    for read in ("embeddings", "good_embeddings", "keys"):
        with pytest.raises(CorruptStoreError, match="has SHA-256"):
            getattr(EmbeddingStore.open(mine.images), read)()
    assert np.isfinite(EmbeddingStore.open(mine.images).shard(0).embeddings.astype(float)).all()
