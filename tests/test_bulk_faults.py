"""What goes wrong in bulk jobs: disks, damage, changes between runs, bad rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import (
    children_of,
    full_disk,
    outputs,
    record,
    score_command,
    scored,
    shard,
    wait_for,
    write_images,
    write_text,
)

from bliss_index.errors import CorruptStoreError, JobError, OutputError
from bliss_index.jobs import JobListener
from bliss_index.jobs.record import RECORD_FOLDER
from bliss_index.scoring import JobOptions, ScoresDirectory, run_job, verify_scores
from bliss_index.scoring.score_inputs import open_input
from bliss_index.scoring.score_part import PartScorer
from bliss_index.scoring.score_settings import ScoringInputs
from bliss_index.search import ExactSearch
from bliss_index.storage import open_directory
from bliss_index.store import EmbeddingStore


@pytest.fixture
def copy(job, tmp_path):
    """The job with images of its own, to be damaged."""
    shutil.copytree(job.images, tmp_path / "images")
    return type(job)(job.folder, job.corpus, job.calibration, tmp_path / "images")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function that mounts it again with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> int:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    if os.geteuid() != 0 or mount("size=40k") != 0:
        pytest.skip("only root may mount a small disk")
    try:
        yield place, lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_small_disk_that_fills_up(job, whole, small_disk, workers):
    """A real one: one clear error, no file left half, what was done kept; space, and it goes on."""
    place, remount = small_disk
    options = JobOptions(workers=workers)
    message = "cannot write .*s.*No space left on device; free some space and run the same"
    with pytest.raises(OutputError, match=message):
        run_job(job.images, place / "s", job.settings(), options)
    done = {p.name: p.read_bytes() for p in (place / "s").glob("part-*.parquet")}
    records = {p.stem for p in (place / "s" / "_records").iterdir()}
    assert 0 < len(done) < 6
    assert records <= {name[:13] for name in done}
    assert not list((place / "s").rglob("*.tmp"))
    assert all(whole[name] == content for name, content in done.items())
    (place / "filler").write_bytes(b"")
    with pytest.raises(OutputError, match="No space left on device"):  # still full
        run_job(job.images, place / "s", job.settings(), options)
    assert remount("size=10m") == 0
    summary = run_job(job.images, place / "s", job.settings())
    assert (summary.complete, summary.parts_earlier) == (True, len(records))
    assert outputs(place / "s") == whole


def test_a_disk_that_becomes_read_only(job, whole, small_disk):
    place, remount = small_disk
    assert remount("size=10m") == 0
    run_job(job.images, place / "s", job.settings(), JobOptions(task="0/2"))
    assert remount("ro") == 0
    done = subprocess.run(
        score_command(job, place / "s"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot write into")
    assert "Traceback" not in done.stderr
    assert remount("rw") == 0
    assert run_job(job.images, place / "s", job.settings()).parts_earlier == 3
    assert outputs(place / "s") == whole


def test_a_full_disk(job, whole, tmp_path):
    with full_disk(2500), pytest.raises(OutputError, match="cannot write .*File too large"):
        run_job(job.images, tmp_path / "s", job.settings())
    assert not list((tmp_path / "s").glob(".*.tmp"))
    assert run_job(job.images, tmp_path / "s", job.settings()).complete
    assert outputs(tmp_path / "s") == whole


def test_a_read_only_output(job, tmp_path):
    """For those who are not root, whom a directory's mode stops."""
    script = textwrap.dedent(
        """
        import os, pathlib, sys
        from bliss_index.scoring import run_job
        from bliss_index.errors import OutputError
        from bulk_fixtures import Job
        folder, out = map(pathlib.Path, sys.argv[1:])
        job = Job(folder, folder / "corpus", folder / "calibration", folder / "images")
        settings = job.settings()
        os.chdir(folder)  # whose parents others may not pass
        job = Job(pathlib.Path("."), *map(pathlib.Path, ("corpus", "calibration", "images")))
        if os.geteuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        try:
            run_job(job.images, pathlib.Path("locked/s"), job.settings())
        except OutputError as error:
            print(error)
        """
    )
    (job.folder / "locked").mkdir()
    (job.folder / "locked").chmod(0o500)
    job.folder.chmod(0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(job.folder), str(tmp_path / "s")],
            env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
            check=False, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        (job.folder / "locked").rmdir()
    assert "make it writable or choose another output" in done.stdout, done.stderr


def test_a_corpus_that_is_replaced_between_runs(job, tmp_path):
    """The same path, other entries: refused with both hashes; the first one back, it goes on."""
    shutil.copytree(job.corpus, tmp_path / "corpus")
    mine = type(job)(job.folder, tmp_path / "corpus", job.calibration, job.images)
    run_job(job.images, tmp_path / "s", mine.settings(), JobOptions(task="0/2"))
    before = EmbeddingStore.open(mine.corpus)
    rows = before.embeddings("float32")[::-1]
    shutil.rmtree(mine.corpus)
    write_text(mine.corpus, rows)
    after = EmbeddingStore.open(mine.corpus)
    with pytest.raises(
        JobError,
        match=f"corpus content hash '{before.content_hash}', now it is '{after.content_hash}'",
    ):
        run_job(job.images, tmp_path / "s", mine.settings())
    shutil.rmtree(mine.corpus)
    shutil.copytree(job.corpus, mine.corpus)
    assert run_job(job.images, tmp_path / "s", mine.settings()).complete


@pytest.mark.parametrize("replaced", ["corpus", "images"])
def test_what_is_replaced_while_the_job_runs_is_noticed(job, tmp_path, replaced):
    """Workers open everything anew; what they find must be what the job began with."""
    for name in ("corpus", "images"):
        shutil.copytree(job.folder / name, tmp_path / name)
    mine = type(job)(job.folder, tmp_path / "corpus", job.calibration, tmp_path / "images")
    rows = EmbeddingStore.open(mine.folder / replaced).embeddings("float32")[::-1]

    class Replacing(JobListener):
        def planned(self, plan, rows_in_all, rows_done):
            shutil.rmtree(tmp_path / replaced)
            if replaced == "corpus":
                write_text(tmp_path / replaced, rows)
            else:
                write_images(tmp_path / replaced, rows, 50)

    # One worker fails while it opens, of two each does in its own process.
    with pytest.raises(JobError, match=f"was begun with {replaced} .*now it is"):
        run_job(mine.images, tmp_path / "s1", mine.settings(), listener=Replacing())
    assert not list((tmp_path / "s1").glob("part-*"))
    for name in ("corpus", "images"):
        shutil.rmtree(tmp_path / name)
        shutil.copytree(job.folder / name, tmp_path / name)
    with pytest.raises(JobError, match=f"was begun with {replaced} .*now it is"):
        run_job(mine.images, tmp_path / "s2", mine.settings(), JobOptions(workers=2), Replacing())


def test_a_part_whose_process_dies_twice_is_given_up(job, tmp_path):
    """As the memory killer would: SIGKILL to the worker, then to the one in its place."""
    (tmp_path / "one").mkdir()
    write_images(tmp_path / "images", EmbeddingStore.open(job.images).embeddings("float32"), 300)
    mine = type(job)(job.folder, job.corpus, job.calibration, tmp_path / "images")
    process = subprocess.Popen(
        score_command(mine, tmp_path / "s", "--workers", 2), stderr=subprocess.PIPE, text=True
    )
    killed = set()

    def kill_a_worker():
        for pid in set(children_of(process.pid)) - killed:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"spawn_main" in command:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        return len(killed) == 2

    wait_for(kill_a_worker)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "its process ended twice (SIGKILL)" in errors
    assert "run the same command again to try them once more" in errors
    assert not list((tmp_path / "s").glob(".*.tmp"))
    assert run_job(mine.images, tmp_path / "s", mine.settings()).complete


@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing", "other bytes"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_shard_fails_alone(copy, whole, tmp_path, damage, workers):
    target = shard(copy.images, 2)
    content = bytearray(target.read_bytes())
    good = bytes(content)
    if damage == "truncated":
        target.write_bytes(good[:-17])
    elif damage == "one bit":
        content[len(content) // 2] ^= 4
        target.write_bytes(content)
    elif damage == "missing":
        target.unlink()
    else:
        target.write_bytes(os.urandom(len(good)))
    options = JobOptions(workers=workers)
    summary = run_job(copy.images, tmp_path / "s", copy.settings(), options)
    assert (summary.parts_done, summary.complete, summary.rows) == (5, False, 250)
    ((name, reason),) = summary.failed
    assert name == target.name
    assert "CorruptStoreError" in reason
    report = verify_scores(tmp_path / "s")
    assert any(target.name in problem for problem in report.problems)
    target.write_bytes(good)
    summary = run_job(copy.images, tmp_path / "s", copy.settings(), options)
    assert (summary.complete, summary.parts_earlier) == (True, 5)
    assert outputs(tmp_path / "s") == whole


def test_no_flipped_bit_is_ever_scored(job, copy, tmp_path):
    """Wherever it is, and whatever it makes of the rows: nothing gets a file name."""
    scorer = ScoringInputs.open(job.settings()).make_scorer()
    (tmp_path / "s" / RECORD_FOLDER).mkdir(parents=True)
    parts = PartScorer(scorer, open_directory(tmp_path / "s"), batch_rows=16)
    part = open_input(copy.images).parts[1]

    def score_part():
        (outcome,) = parts.score_parts([(part.planned(1), part)])
        if outcome.error is not None:
            raise outcome.error
        return outcome.record

    target = copy.images / part.name
    good = target.read_bytes()
    matrix = EmbeddingStore.open(job.images).shard(1).embeddings
    first = good.index(matrix[0].tobytes())
    places = np.random.default_rng(0).integers(0, len(good), 100).tolist()
    for place in [*places, *range(first, first + 40)]:
        content = bytearray(good)
        content[place] ^= 0x40
        target.write_bytes(content)
        with pytest.raises(CorruptStoreError, match=part.name):
            score_part()
    content = bytearray(good)
    content[first : first + 2] = np.float16("nan").tobytes()  # the search refuses such rows
    target.write_bytes(content)
    with pytest.raises(CorruptStoreError, match="has SHA-256 .* altered"):
        score_part()
    assert [path.name for path in (tmp_path / "s").rglob("*")] == [RECORD_FOLDER]
    target.write_bytes(good)
    assert score_part().rows == 50


def test_nothing_is_committed_before_the_hash_is_known(copy, tmp_path, monkeypatch):
    """The hash is slow; every row is scored by then, and the file still has no name."""
    content = bytearray(shard(copy.images, 0).read_bytes())
    content[-600] ^= 1
    scored: list[int] = []
    every_row = threading.Event()
    check = EmbeddingStore.check_hash

    def late(store, index, between=None):
        if index == 0 and store.kind == "image":
            assert every_row.wait(60)
            assert not list((tmp_path / "s").glob("*.parquet"))
            (tmp_path / "altered").write_bytes(content)
            # At once: a file that is cut off in place ends the process that has it mapped.
            (tmp_path / "altered").replace(shard(copy.images, 0))
        return check(store, index, between)

    class Listening(JobListener):
        def advanced(self, rows):
            scored.append(rows)
            if sum(scored) == 50:
                every_row.set()

    monkeypatch.setattr("bliss_index.scoring.score_work._sample", lambda part: np.empty((0, 0)))
    monkeypatch.setattr(EmbeddingStore, "check_hash", late)
    summary = run_job(copy.images, tmp_path / "s", copy.settings(), listener=Listening())
    assert [name for name, _ in summary.failed] == [shard(copy.images, 0).name]
    assert not list((tmp_path / "s").glob("part-00000000.*"))


def test_a_file_that_is_replaced_while_it_is_scored(job, tmp_path, monkeypatch):
    rows = EmbeddingStore.open(job.images).embeddings()
    np.save(tmp_path / "a.npy", rows[:100])
    search = ExactSearch.search

    def replacing(self, images):
        np.save(tmp_path / "a.npy", rows[100:200])
        return search(self, images)

    with monkeypatch.context() as while_scoring:
        while_scoring.setattr(ExactSearch, "search", replacing)
        summary = run_job(tmp_path / "a.npy", tmp_path / "s", job.settings())
    ((_, reason),) = summary.failed
    assert "a.npy was replaced while it was scored" in reason
    assert not list((tmp_path / "s").glob("*.parquet"))
    assert run_job(tmp_path / "a.npy", tmp_path / "s", job.settings()).complete


def test_an_input_that_is_replaced_between_runs(job, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings()
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", rows[:100])
    np.save(tmp_path / "in" / "b.npy", rows[100:200])
    run_job(tmp_path / "in", tmp_path / "s", job.settings())
    np.save(tmp_path / "in" / "b.npy", rows[200:300])
    with pytest.raises(JobError, match="b.npy was scored with SHA-256 .* it was replaced since"):
        run_job(tmp_path / "in", tmp_path / "s", job.settings())
    problems = verify_scores(tmp_path / "s").problems
    assert "it was scored with SHA-256" in problems[0]


def test_a_clock_that_is_set_back_changes_nothing(job, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings()
    np.save(tmp_path / "a.npy", rows)
    run_job(tmp_path / "a.npy", tmp_path / "s", job.settings())
    before = outputs(tmp_path / "s")
    os.utime(tmp_path / "a.npy", (1_000_000_000, 1_000_000_000))
    summary = run_job(tmp_path / "a.npy", tmp_path / "s", job.settings())
    assert (summary.rows_now, summary.parts_earlier) == (0, 1)
    assert outputs(tmp_path / "s") == before


def test_a_job_begun_in_the_future_continues_now(job, whole, tmp_path, monkeypatch):
    """The first run's clock was years ahead; nothing that it wrote may look too new to go on."""
    with monkeypatch.context() as ahead:
        ahead.setattr("time.time", lambda: 4_000_000_000.0)
        run_job(job.images, tmp_path / "s", job.settings(), JobOptions(task="0/2"))
    for path in (tmp_path / "s").rglob("*"):
        os.utime(path, (4_000_000_000, 4_000_000_000))
    summary = run_job(job.images, tmp_path / "s", job.settings())
    assert (summary.complete, summary.parts_earlier) == (True, 3)
    assert outputs(tmp_path / "s") == whole


def test_every_kind_of_bad_row_100000_times(job, tmp_path):
    count = 100_000
    rows = np.tile(EmbeddingStore.open(job.images).embeddings("float32")[:10], (count // 10, 1))
    kind = np.arange(count) % 5
    rows[kind == 1] = 0
    rows[kind == 2, 3] = np.nan
    rows[kind == 3, 5] = np.inf
    keys = [f"k{i}" if k != 4 else "twice" for i, k in enumerate(kind)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 16)
    pq.write_table(pa.table({"embedding": vectors, "key": keys}), tmp_path / "bad.parquet")
    summary = run_job(tmp_path / "bad.parquet", tmp_path / "s", job.settings())
    assert summary.complete
    assert summary.status == {
        "ok": 20_001, "zero_embedding": 20_000, "nonfinite_embedding": 40_000,
        "duplicate_key": 19_999,
    }  # fmt: skip
    table = pq.read_table(scored(tmp_path / "s"))
    assert table.num_rows == count
    assert table.column("anomaly_score").null_count == 79_999
    report = verify_scores(tmp_path / "s")
    assert report.ok, report.problems
    assert report.bad_rows == 79_999


def test_lists_that_are_null_short_or_hold_nulls(job, tmp_path):
    lists = [row.tolist() for row in EmbeddingStore.open(job.images).embeddings("float32")[:20]]
    lists[3], lists[5] = None, [1.0]
    lists[7][2] = None
    keys = [f"k{i}" for i in range(20)]
    keys[9] = None
    table = pa.table({"embedding": pa.array(lists, pa.list_(pa.float32())), "key": keys})
    pq.write_table(table, tmp_path / "t.parquet")
    run_job(tmp_path / "t.parquet", tmp_path / "s", job.settings())
    found = pq.read_table(scored(tmp_path / "s")).to_pylist()
    bad = {row: found[row]["status"] for row in range(20) if found[row]["status"] != "ok"}
    assert bad == {
        3: "missing_embedding", 5: "wrong_dimension", 7: "nonfinite_embedding", 9: "missing_key",
    }  # fmt: skip
    assert found[9]["key"] == "t.parquet:9"
    assert found[5]["error"] == "the embedding has dimension 1, not 16"
    assert found[7]["error"] == "the embedding holds NaN or infinity"
    assert all((row["error"] is None) == (row["status"] == "ok") for row in found)


def test_too_many_bad_rows_stop_the_job(job, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings("float32")
    status = np.where(np.arange(300) % 10 == 0, "undecodable_image", "ok")
    write_images(tmp_path / "images", rows, 50, status=status.tolist())
    settings = job.settings()
    with pytest.raises(JobError, match=r"5 of 50 rows are bad \(10.00%\), .* allows 5.00%"):
        run_job(tmp_path / "images", tmp_path / "s", settings, JobOptions(max_bad_fraction=0.05))
    assert scored(tmp_path / "s").exists()
    summary = run_job(
        tmp_path / "images", tmp_path / "s", settings, JobOptions(max_bad_fraction=0.1)
    )
    assert (summary.bad_rows, summary.parts_earlier) == (30, 1)


def test_records_and_outputs_that_were_damaged_are_made_again(job, whole, tmp_path):
    def again():
        summary = run_job(job.images, tmp_path / "s", job.settings())
        assert outputs(tmp_path / "s") == whole
        return summary.parts_earlier

    again()
    record(tmp_path / "s", 1).write_text("{")
    scored(tmp_path / "s", 3).write_bytes(b"PAR1")
    scored(tmp_path / "s", 4).unlink()
    assert again() == 3


def test_verify_finds_what_was_changed(job, tmp_path):
    run_job(job.images, tmp_path / "s", job.settings())
    output = scored(tmp_path / "s", 2)
    good = output.read_bytes()

    def problems():
        report = verify_scores(tmp_path / "s")
        assert not report.ok
        return " ".join(report.problems)

    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    output.write_bytes(flipped)
    assert "altered; remove it and run the job again" in problems()
    table = pq.read_table(pa.BufferReader(good))
    pq.write_table(table.slice(1), output)
    assert "altered" in problems()
    output.write_bytes(good)
    written = record(tmp_path / "s", 2)
    kept = written.read_text()
    written.write_text(json.dumps({**json.loads(kept), "rows": 49}))
    assert "49 rows are scored, the input has 50" in problems()
    written.unlink()
    assert "it is not scored; run the job again" in problems()
    written.write_text(kept)
    (tmp_path / "s" / ".bliss-0123456789abcdef.tmp").write_bytes(b"x")
    assert "is a temporary file of a job that was killed" in problems()


def test_scores_that_lack_a_column(job, tmp_path):
    run_job(job.images, tmp_path / "s", job.settings())
    path = scored(tmp_path / "s", 1)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["status"]), path)
    with pytest.raises(CorruptStoreError, match="has no column 'status'; it has .*'key'"):
        ScoresDirectory.open(tmp_path / "s").table()
    with pytest.raises(CorruptStoreError, match="status"):
        ScoresDirectory.open(tmp_path / "s").table(["key", "status"])
    pq.write_table(table, path)
    good = path.read_bytes()
    path.write_bytes(good.replace(b"nearest_class", b"nea\xf1est_class"))
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        ScoresDirectory.open(tmp_path / "s").table()
    keys = pa.array([b"\xff"] * table.num_rows, pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(table.set_column(0, "key", keys), path)
    with pytest.raises(CorruptStoreError, match="cannot be read: .*UTF8"):
        ScoresDirectory.open(tmp_path / "s").table(["key"])


def test_keys_that_occur_in_two_parts_are_found_by_verify(job, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings("float32")[:10]
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 16)
        keys = [f"{name}{i}" for i in range(9)] + ["shared"]
        pq.write_table(
            pa.table({"embedding": vectors, "key": keys}), tmp_path / "in" / f"{name}.parquet"
        )
    run_job(tmp_path / "in", tmp_path / "s", job.settings())
    assert verify_scores(tmp_path / "s").problems == [
        "part b.parquet: 1 scored rows have a key that occurred before, the first is 'shared' in "
        "row 9"
    ]


def test_memory_does_not_grow_with_the_images(job, tmp_path):
    """Ten times the images take the same memory; the large figures are in benchmarks/."""
    script = textwrap.dedent(
        """
        import pathlib, resource, sys
        from bliss_index.scoring import run_job
        from bulk_fixtures import Job
        folder, images, out = map(pathlib.Path, sys.argv[1:])
        job = Job(folder, folder / "corpus", folder / "calibration", images)
        run_job(images, out, job.settings())
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """
    )
    rows = EmbeddingStore.open(job.images).embeddings("float32")
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    peak = []
    for repeat in (40, 400):
        write_images(tmp_path / f"i{repeat}", np.tile(rows, (repeat, 1)), 6000)
        done = subprocess.run(
            [sys.executable, "-c", script, str(job.folder), str(tmp_path / f"i{repeat}"),
             str(tmp_path / f"s{repeat}")],
            env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        peak.append(int(done.stdout))
    assert peak[1] < 1.15 * peak[0]
