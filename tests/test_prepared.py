"""A search that was prepared once: right, shared, and never used where it does not fit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bulk_fixtures import MODEL, full_disk, outputs, write_text
from command import run
from object_store import s3_server, upload

from bliss_index.bench.synthetic import clip_like
from bliss_index.errors import CorruptStoreError, InvalidInputError, OutputError
from bliss_index.search import exact_search, prepared, reference_search
from bliss_index.search.native.backend import load_native
from bliss_index.search.prepared import (
    SEARCH_FOLDER,
    corpus_search,
    prepared_records,
    read_prepared,
    save_prepared,
    verify_prepared,
)
from bliss_index.storage import open_directory
from bliss_index.storage.locks import locked
from bliss_index.store import EmbeddingStore

native, KERNEL = load_native()
pytestmark = pytest.mark.skipif(native is None, reason="no compiled search here")
DIM = 40


def entries_of(count, repeated=0, seed=1):
    rows = clip_like(count, DIM, "text", seed, dtype=np.float16)
    rows[:repeated] = rows[count - repeated :]  # the same bytes
    return rows


def make_corpus(path, rows) -> EmbeddingStore:
    write_text(path, rows)
    return EmbeddingStore.open(path)


@pytest.fixture(params=[0, 70], ids=["different", "repeated"])
def corpus(tmp_path, request):
    return make_corpus(tmp_path / "corpus", entries_of(900, request.param))


@pytest.fixture
def queries():
    return clip_like(64, DIM, "image", 2)


def codes_of(corpus) -> Path:
    (found,) = (Path(corpus.path) / SEARCH_FOLDER).glob("*.codes")
    return found


def aligned(packed):
    """A copy that begins at a cache line, as files do when they are mapped."""
    room = np.empty(packed.size + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + packed.size] = packed
    return room[start : start + packed.size]


def assert_right(search, corpus, queries):
    similarities, ids = search.search(queries)
    expected = reference_search(corpus.embeddings(), queries, search.k)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(similarities, expected[0])


@pytest.mark.parametrize("kernel", native.kernel_names() if native else [])
def test_results_are_those_of_a_search_prepared_anew(corpus, queries, kernel):
    from bliss_index.search.native.backend import NativeBackend

    search = corpus_search(corpus, 20)
    entries = corpus.embeddings()
    same = search.prepared.duplicates
    different = entries if same is None else entries[same.first]
    made = NativeBackend(different, 20, threads=2, kernel=kernel)
    name, packed = made.packed
    kept = NativeBackend(different, 20, threads=1, kernel=kernel, prepared=aligned(packed))
    assert name == kernel and kept.packed[1].tobytes() == packed.tobytes()
    for before, after in zip(made.search(queries, 0), kept.search(queries, 0), strict=True):
        np.testing.assert_array_equal(before, after) if isinstance(before, np.ndarray) else None
    others = NativeBackend(different, 20, threads=3, kernel=kernel).packed[1]
    assert others.tobytes() == packed.tobytes()  # whatever the number of threads


def test_it_is_written_read_and_right(corpus, queries):
    assert read_prepared(corpus, KERNEL) is None
    made = corpus_search(corpus, 10, threads=2)
    record = save_prepared(made, corpus)
    assert prepared_records(corpus) == [record] and record.kernel == KERNEL
    opened = corpus_search(corpus, 10)
    assert isinstance(opened._backend._prepared, np.memmap)
    assert_right(opened, corpus, queries)
    assert_right(corpus_search(corpus, 1), corpus, queries)
    # Kept again, from a file or anew, it is the same file.
    again = save_prepared(opened, corpus)
    assert again == record
    assert save_prepared(exact_search(corpus.embeddings(), 3, threads=1), corpus) == record
    assert codes_of(corpus).name == record.file
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines()
              if record.file in line]  # fmt: skip
    assert mapped and all(" r--" in line for line in mapped)


def test_another_engine_is_not_given_what_is_prepared(corpus, queries):
    save_prepared(corpus_search(corpus, 10), corpus)
    for more in ({"backend": "torch"}, {"device": "cpu"}):
        search = corpus_search(corpus, 10, **more)
        assert search.backend == "torch" and search.prepared is None
        assert_right(search, corpus, queries)


def test_other_engines_have_nothing_to_keep(corpus):
    with pytest.raises(InvalidInputError, match="backend='native'"):
        save_prepared(exact_search(corpus.embeddings(), 3, backend="torch"), corpus)
    assert not (Path(corpus.path) / SEARCH_FOLDER).exists()


def test_what_does_not_fit_is_refused_by_the_engine(corpus, queries):
    rows = corpus.embeddings()
    kept = exact_search(rows, 5).prepared
    for other in (rows[:-200], np.ascontiguousarray(rows[:, :-8])):
        with pytest.raises(InvalidInputError, match="not of these entries"):
            exact_search(other, 5, threads=1).__class__(
                other, 5, prepared=replace(kept, duplicates=None)
            )


def test_any_bit_that_flips_is_never_used(corpus, queries, caplog):
    save_prepared(corpus_search(corpus, 10), corpus)
    record = Path(corpus.path) / SEARCH_FOLDER / f"{KERNEL}.json"
    rng = np.random.default_rng(0)
    for path in (codes_of(corpus), record):
        good = path.read_bytes()
        for at in [0, len(good) - 1, *rng.integers(0, len(good), 20)]:
            bad = bytearray(good)
            bad[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            caplog.clear()
            search = corpus_search(corpus, 10)
            taken = search._backend._prepared is not None
            if path == record and taken:  # a bit of a field that says nothing of the content
                assert json.loads(bytes(bad))["sha256"] == json.loads(good)["sha256"]
            else:
                assert not taken
            if path != record:
                assert "prepared anew" in caplog.text and "SHA-256" in caplog.text
            assert_right(search, corpus, queries)
        for bad in (b"", good[:-2], good[: len(good) // 2], good + b"x"):
            path.write_bytes(bad)
            search = corpus_search(corpus, 10)
            assert search._backend._prepared is None
        path.write_bytes(good)
    assert corpus_search(corpus, 10)._backend._prepared is not None
    codes_of(corpus).unlink()
    assert corpus_search(corpus, 10)._backend._prepared is None
    assert "prepared anew" in caplog.text


def test_of_another_content_version_or_kernel_it_is_not_used(corpus, tmp_path, queries):
    save_prepared(corpus_search(corpus, 10), corpus)
    other = make_corpus(tmp_path / "other", entries_of(900, seed=9))
    (Path(other.path) / SEARCH_FOLDER).mkdir()
    for file in (Path(corpus.path) / SEARCH_FOLDER).iterdir():
        (Path(other.path) / SEARCH_FOLDER / file.name).write_bytes(file.read_bytes())
    assert_right(corpus_search(other, 10), other, queries)
    assert corpus_search(other, 10)._backend._prepared is None
    record = Path(corpus.path) / SEARCH_FOLDER / f"{KERNEL}.json"
    values = json.loads(record.read_text())
    for changed in ({"packed_version": 99}, {"format_version": 99}, {"rows": 899},
                    {"sets": values["sets"] - 1}, {"sets": 901}, {"kernel": "other"},
                    {"file": "../manifest.json"}):  # fmt: skip
        record.write_text(json.dumps({**values, **changed}))
        assert corpus_search(corpus, 10)._backend._prepared is None
        assert_right(corpus_search(corpus, 10), corpus, queries)
    # What stood there before is replaced, and its file goes.
    record.write_text(json.dumps({**values, "packed_version": 99}))
    stale = Path(corpus.path) / SEARCH_FOLDER / f"{KERNEL}.{'0' * 16}.codes"
    stale.write_bytes(b"old")
    save_prepared(corpus_search(corpus, 10), corpus)
    assert not stale.exists() and corpus_search(corpus, 10)._backend._prepared is not None


def test_verify_and_info_know_it(corpus):
    run("build", corpus.path)
    stdout, _ = run("info", corpus.path, "--json")
    assert json.loads(stdout)["prepared_search"] == {KERNEL: {"stale": False}}
    run("verify", corpus.path)
    path = codes_of(corpus)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    stdout, stderr = run("verify", corpus.path, code=1)
    assert "SHA-256" in stdout + stderr and "bliss-index build" in stdout + stderr
    path.write_bytes(good)
    orphan = path.with_name(f"{KERNEL}.{'1' * 16}.codes")
    orphan.write_bytes(b"left over")
    stdout, stderr = run("verify", corpus.path, code=1)
    assert orphan.name in stdout + stderr


@pytest.fixture
def large(job, tmp_path, monkeypatch):
    """The jobs' corpus, as if it were large, and the arguments that score with it."""
    corpus = tmp_path / "corpus"
    write_text(corpus, EmbeddingStore.open(job.corpus).embeddings())
    opened = EmbeddingStore.open(corpus)
    monkeypatch.setattr(prepared, "KEPT_FROM", opened.rows)  # just large enough
    return opened, ("score", job.images, "--corpus", corpus,
                                         "--calibration", job.calibration)  # fmt: skip


def test_the_first_job_keeps_it_and_the_next_takes_it(large, tmp_path):
    corpus, score = large
    _, stderr = run(*score, "--no-keep-search", "--out", tmp_path / "a")
    assert not (Path(corpus.path) / SEARCH_FOLDER).exists() and "prepared now" in stderr
    assert "to be kept" not in stderr
    _, stderr = run(*score, "--out", tmp_path / "b")
    assert f"prepared now, to be kept in {corpus.path}/search" in stderr
    made = codes_of(corpus).read_bytes()
    _, stderr = run(*score, "--out", tmp_path / "c")
    assert "prepared before" in stderr and codes_of(corpus).read_bytes() == made
    run(*score, "--out", tmp_path / "d", "--workers", 2)
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b") == outputs(tmp_path / "c")
    assert outputs(tmp_path / "a") == outputs(tmp_path / "d")
    # The corpus is the same corpus with it.
    run("verify", corpus.path)
    run("verify", tmp_path / "c")


def test_a_job_does_not_fail_where_it_cannot_be_kept(large, tmp_path):
    corpus, score = large
    folder = Path(corpus.path) / SEARCH_FOLDER
    folder.write_text("in the way")
    run(*score, "--out", tmp_path / "a")
    assert folder.read_text() == "in the way"
    with pytest.raises(OutputError):
        save_prepared(corpus_search(corpus, 5), corpus)
    run("build", corpus.path, code=1)
    folder.unlink()
    folder.mkdir()
    with locked(open_directory(folder)):  # another one is writing
        run(*score, "--out", tmp_path / "b")
        assert not list(folder.glob("*.codes"))


def test_a_full_disk(corpus, queries):
    search = corpus_search(corpus, 5)
    with full_disk(20_000), pytest.raises(OutputError, match="File too large"):
        save_prepared(search, corpus)
    assert not [name for name in os.listdir(Path(corpus.path) / SEARCH_FOLDER)
                if name != ".lock"]  # fmt: skip
    assert_right(corpus_search(corpus, 5), corpus, queries)


def test_killed_at_any_time_it_is_whole_or_absent(tmp_path, queries):
    corpus = make_corpus(tmp_path / "corpus", entries_of(40_000))
    script = (
        "import os, sys; from bliss_index.store import EmbeddingStore;"
        "from bliss_index.search.prepared import *; c = EmbeddingStore.open(sys.argv[1]);"
        "search = corpus_search(c, 5)\n"
        "for _ in sys.stdin:\n"
        "    child = os.fork()\n"
        "    while not child: save_prepared(search, c)\n"
        "    print(child, flush=True); os.waitpid(child, 0); print(flush=True)\n"
    )
    rng = np.random.default_rng(3)
    expected = reference_search(corpus.embeddings(), queries[:8], 5)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(corpus.path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        for _ in range(8):
            print(file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            time.sleep(rng.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "\n"
            search = corpus_search(corpus, 5)
            for record in prepared_records(corpus):
                assert (Path(corpus.path) / SEARCH_FOLDER / record.file).is_file()
            for found, right in zip(search.search(queries[:8]), expected, strict=True):
                np.testing.assert_array_equal(found, right)
        parent.stdin.close()
    save_prepared(corpus_search(corpus, 5), corpus)
    assert corpus_search(corpus, 5)._backend._prepared is not None


def test_a_corpus_in_an_object_store_brings_it_along(corpus, queries, tmp_path, monkeypatch):
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))
    with s3_server() as (environment, bucket):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        upload(Path(corpus.path), f"{bucket}/corpus")
        run("build", f"{bucket}/corpus")
        there = EmbeddingStore.open(f"{bucket}/corpus", kind="text")
        search = corpus_search(there, 10)
        assert search._backend._prepared is not None
        assert_right(search, corpus, queries)
        assert len(verify_prepared(there)) == 1


def test_a_store_of_one_model_stays_one(corpus):
    assert corpus.model == MODEL
    with pytest.raises(CorruptStoreError):
        record = Path(corpus.path) / SEARCH_FOLDER / f"{KERNEL}.json"
        record.parent.mkdir()
        record.write_text("{")
        prepared_records(corpus)
