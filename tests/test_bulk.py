"""The bulk job: what it writes, however it is run, killed and continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_fixtures import (
    DIM,
    children_of,
    kill_over_its_life,
    make_job,
    outputs,
    score_command,
    scored,
    shard,
    wait_for,
    write_images,
)

from bliss_index.errors import InvalidInputError, JobError, OutputError, StoreError
from bliss_index.jobs import JobListener, Record
from bliss_index.jobs.memory import MemoryPlan, parse_bytes
from bliss_index.scoring import JobOptions, ScoresDirectory, run_job, verify_scores
from bliss_index.scoring import score_output as part_output
from bliss_index.scoring.score_memory import plan_memory
from bliss_index.search import ExactSearch
from bliss_index.storage import open_directory
from bliss_index.store import EmbeddingStore
from bliss_index.store.source_reader import ColumnNames


class Notes(JobListener):
    def __init__(self):
        self.rows, self.parts, self.texts, self.plan = 0, 0, [], None

    def planned(self, plan, rows, rows_done):
        self.plan = (plan, rows, rows_done)

    def advanced(self, rows):
        self.rows += rows

    def finished_part(self, record):
        self.parts += 1

    def notice(self, text):
        self.texts.append(text)


def test_one_file_a_shard_one_row_an_image(job, whole):
    assert len(whole) == 6
    scores = ScoresDirectory.open(job.folder / "whole")
    table = scores.table()
    assert table.column("key").to_pylist() == EmbeddingStore.open(job.images).keys()
    assert table.schema.names == [
        "key", "anomaly_score", "nearest_class", "internal_score", "external_score", "status",
        "error",
    ]  # fmt: skip
    report = verify_scores(job.folder / "whole")
    assert report.ok, report.problems
    assert report.rows == 300


def test_what_a_listener_hears(job, tmp_path):
    notes = Notes()
    summary = run_job(job.images, tmp_path / "s", job.settings(), listener=notes)
    assert (notes.rows, notes.parts) == (300, 6)
    plan, rows, done = notes.plan
    assert isinstance(plan, MemoryPlan)
    assert (rows, done) == (300, 0)
    statistics = json.loads((tmp_path / "s" / "_statistics.json").read_text())
    assert statistics["rows"] == summary.rows == 300
    assert summary.rows_per_second > 0


@pytest.mark.parametrize("batch_rows", [1, 7, 64, 8192])
def test_batches_do_not_matter(job, tmp_path, monkeypatch, batch_rows):
    monkeypatch.setattr("bliss_index.scoring.score_memory.MOST_BATCH_ROWS", batch_rows)
    monkeypatch.setattr("bliss_index.scoring.score_memory.LEAST_BATCH_ROWS", 1)
    monkeypatch.setattr(part_output, "ROW_GROUP_ROWS", 16)
    run_job(job.images, tmp_path / "a", job.settings())
    monkeypatch.setattr("bliss_index.scoring.score_memory.MOST_BATCH_ROWS", 8192)
    run_job(job.images, tmp_path / "b", job.settings())
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    assert pq.ParquetFile(scored(tmp_path / "a")).num_row_groups == 4


def test_two_workers_write_the_same(job, whole, tmp_path):
    summary = run_job(job.images, tmp_path / "s", job.settings(), JobOptions(workers=2))
    assert summary.complete
    assert outputs(tmp_path / "s") == whole


def test_the_tasks_of_an_array_write_the_same(job, whole, tmp_path):
    first = run_job(job.images, tmp_path / "s", job.settings(), JobOptions(task="0/2"))
    assert (first.parts_done, first.complete) == (3, False)
    name = shard(job.images, 1).name
    with pytest.raises(StoreError, match=f"is not complete: part {name} is not scored"):
        ScoresDirectory.open(tmp_path / "s")
    second = run_job(job.images, tmp_path / "s", job.settings(), JobOptions(task="1/2"))
    assert second.complete
    run_job(job.images, tmp_path / "s", job.settings())
    assert outputs(tmp_path / "s") == whole


@pytest.mark.slow
def test_ray_writes_the_same(job, whole, tmp_path):
    pytest.importorskip("ray")
    subprocess.run(
        score_command(job, tmp_path / "s", "--engine", "ray", "--workers", 2),
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    assert outputs(tmp_path / "s") == whole


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_over_its_whole_life(tmp_path, workers):
    """SIGKILL, several times from the start to near the end: the same bytes, nothing left over."""
    slow = make_job(tmp_path / "slow", shards=30, rows=4000, entries=20_000, dim=128)
    run_job(slow.images, tmp_path / "a", slow.settings())
    command = score_command(slow, tmp_path / "b", "--workers", workers)
    rng = np.random.default_rng(workers)
    kills = kill_over_its_life(command, tmp_path / "b", rng, parts=30, kills=5)
    while_scoring = [kill for kill in kills if not kill.while_starting]
    assert len(while_scoring) >= 2
    assert all(kill.parts_done > 0 for kill in while_scoring)
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    assert verify_scores(tmp_path / "b").ok


@pytest.mark.slow
def test_a_damaged_part_fails_alone_on_ray(job, whole, tmp_path):
    """Its reason comes back with the row, the exit code is 1, the next run completes."""
    pytest.importorskip("ray")
    shutil.copytree(job.images, tmp_path / "images")
    mine = type(job)(job.folder, job.corpus, job.calibration, tmp_path / "images")
    damaged = shard(mine.images, 2)
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-9])
    command = score_command(mine, tmp_path / "s", "--engine", "ray", "--workers", 2, "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["parts_done"], summary["complete"]) == (5, False)
    ((name, reason),) = summary["failed"]
    assert (name, "CorruptStoreError" in reason) == (damaged.name, True)
    damaged.write_bytes(good)
    subprocess.run(command, capture_output=True, check=True, timeout=300)
    assert outputs(tmp_path / "s") == whole


@pytest.mark.slow
def test_killed_over_its_whole_life_with_ray(tmp_path):
    """SIGKILL to the driver, while Ray starts and while its actors score; then to the end."""
    pytest.importorskip("ray")
    slow = make_job(tmp_path / "slow", shards=60, rows=2000, entries=20_000, dim=128)
    run_job(slow.images, tmp_path / "a", slow.settings())
    command = score_command(slow, tmp_path / "b", "--engine", "ray", "--workers", 2)
    kills = kill_over_its_life(
        command, tmp_path / "b", np.random.default_rng(3), parts=60, kills=3, start_seconds=9
    )
    assert kills
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    assert verify_scores(tmp_path / "b").ok


@pytest.fixture(scope="module")
def many_parts(tmp_path_factory):
    """A job that takes seconds, to be interrupted."""
    return make_job(tmp_path_factory.mktemp("many"), shards=40, rows=4000, entries=4000, dim=64)


def test_workers_end_with_their_parent(many_parts, tmp_path):
    process = subprocess.Popen(
        score_command(many_parts, tmp_path / "s", "--workers", 2), stderr=subprocess.DEVNULL
    )
    try:
        workers = wait_for(lambda: len(c := children_of(process.pid)) >= 2 and c)
        wait_for(lambda: list((tmp_path / "s").glob("*.parquet")))
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), 10)


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    slow = make_job(tmp_path, shards=12, rows=4000, entries=4000, dim=64)
    run_job(slow.images, tmp_path / "a", slow.settings())
    process = subprocess.Popen(
        score_command(slow, tmp_path / "b", "--workers", 2), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list((tmp_path / "b").glob("part-*.parquet")))
    victims = [
        pid for pid in children_of(process.pid)
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]  # fmt: skip
    os.kill(victims[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "its process ended (SIGKILL)" in errors
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_keep_what_is_done(many_parts, tmp_path, number, code, workers):
    slow, out = many_parts, tmp_path / "s"
    process = subprocess.Popen(
        score_command(slow, out, "--workers", workers), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list(out.glob("_records/part-*.json")))
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == code
    assert "interrupted; what is done is kept" in errors
    done = len(list(out.glob("_records/*.json")))
    assert 0 < done < 40
    assert not list(out.glob(".*.tmp"))
    summary = run_job(slow.images, out, slow.settings())
    assert summary.complete
    assert summary.parts_earlier == done


def test_a_second_job_is_refused_while_the_first_lives(many_parts, tmp_path):
    slow = many_parts
    process = subprocess.Popen(score_command(slow, tmp_path / "s"), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list((tmp_path / "s").glob("part-*.parquet")))
        with pytest.raises(OutputError, match=f"in use by another job .process {process.pid} on"):
            run_job(slow.images, tmp_path / "s", slow.settings())
        with pytest.raises(OutputError, match="in use by another job"):
            run_job(slow.images, tmp_path / "s", slow.settings(), JobOptions(task="0/2"))
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "s" / ".lock").exists()  # of the dead process: no obstacle
    assert run_job(slow.images, tmp_path / "s", slow.settings()).complete
    outputs(tmp_path / "s")


def test_other_settings_are_refused(job, tmp_path):
    run_job(job.images, tmp_path / "s", job.settings())
    for change, message in [
        ({"k": 6}, "begun with k 5, now it is 6"),
        ({"lam": 0.7}, "begun with lam 0.5, now it is 0.7"),
        ({"explain": True}, "begun with explain False, now it is True"),
        ({"threshold": 1.0}, "begun with threshold None, now it is 1.0"),
    ]:
        with pytest.raises(JobError, match=message):
            run_job(job.images, tmp_path / "s", job.settings(**change))
    other = make_job(tmp_path / "other", shards=2, entries=81)
    with pytest.raises(JobError, match="begun with corpus content hash '[0-9a-f]{64}', now it is"):
        run_job(job.images, tmp_path / "s", type(job)(
            job.folder, other.corpus, job.calibration, job.images
        ).settings())  # fmt: skip
    with pytest.raises(JobError, match="begun with other input: .* changed since|gone since"):
        run_job(other.images, tmp_path / "s", job.settings())
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"not a scores directory \(it holds 'thesis.tex'\)"):
        run_job(job.images, tmp_path / "stranger", job.settings())


def test_ways_to_search_do_not_count_as_other_settings(job, whole, tmp_path):
    run_job(job.images, tmp_path / "s", job.settings(search="torch"), JobOptions(task="0/2"))
    run_job(job.images, tmp_path / "s", job.settings(search="auto"))
    assert outputs(tmp_path / "s") == whole


def test_flags_and_explanations(job, tmp_path):
    run_job(job.images, tmp_path / "s", job.settings(explain=True, threshold=0.5))
    table = ScoresDirectory.open(tmp_path / "s").table()
    scores = table.column("anomaly_score").to_numpy()
    assert table.column("flag").to_pylist() == (scores >= 0.5).tolist()
    contributions = np.array(table.column("contributions").to_pylist())
    external = table.column("external_score").to_numpy()
    np.testing.assert_allclose(contributions.sum(1), 0.5 * external, atol=1e-5)


def test_memory_that_runs_out_halves_the_batches(job, whole, tmp_path, monkeypatch):
    true_search = ExactSearch.search

    def short_of_memory(self, images):
        if len(images) > 16:
            raise MemoryError("no more")
        return true_search(self, images)

    monkeypatch.setattr(ExactSearch, "search", short_of_memory)
    notes = Notes()
    run_job(job.images, tmp_path / "s", job.settings(), listener=notes)
    assert outputs(tmp_path / "s") == whole
    halved = [text for text in notes.texts if "out of memory" in text]
    assert halved[-1] == "out of memory: going on with batches of 16 images"


def test_the_memory_plan():
    sizes = {"entries": 20_000, "dim": 512, "item_bytes": 2, "classes": 10, "k": 10, "threads": 2}
    plan = plan_memory(**sizes, workers=2, budget=parse_bytes("8GiB"))
    assert plan.total <= plan.budget == 8 << 30
    assert plan.batch_rows == 8192
    assert "memory: at most" in plan.describe()
    smaller = plan_memory(**sizes, workers=2, budget=parse_bytes("1768MiB"))
    assert smaller.total <= 1768 << 20
    assert smaller.batch_rows < 8192
    with pytest.raises(JobError, match=r"2 workers need at least 1.7 GiB .* budget is 1.5 GiB"):
        plan_memory(**sizes, workers=2, budget=parse_bytes("1.5GiB"))
    for text in ("", "much", "-3GB", "0"):
        with pytest.raises(InvalidInputError, match="is not a size; write for example 8GiB"):
            parse_bytes(text)
    assert (parse_bytes("2 GB"), parse_bytes("1.5KiB")) == (2_000_000_000, 1536)


def test_bad_options():
    with pytest.raises(InvalidInputError, match="workers must be at least 1, got 0"):
        JobOptions(workers=0)
    with pytest.raises(InvalidInputError, match="name one device, .* got devices cuda:0, cuda:1"):
        JobOptions(engine="ray", devices=("cuda:0", "cuda:1"))
    with pytest.raises(InvalidInputError, match="engine must be local or ray, got 'spark'"):
        JobOptions(engine="spark")
    for task in ("3", "2/2", "a/b", "-1/4"):
        with pytest.raises(InvalidInputError, match="task must be i/n with i from 0"):
            JobOptions(task=task)
    with pytest.raises(InvalidInputError, match="max_bad_fraction must lie between 0 and 1, got 2"):
        JobOptions(max_bad_fraction=2)


def layouts(folder, job):
    """The same embeddings as people have them: one name and location each."""
    rows = EmbeddingStore.open(job.images).embeddings()
    keys = EmbeddingStore.open(job.images).keys()
    (folder / "tables").mkdir()
    (folder / "arrays").mkdir()
    for part in ("clip/img_emb", "clip/metadata"):
        (folder / part).mkdir(parents=True)
    for number in range(3):
        part = slice(100 * number, 100 * number + 100)
        flat = pa.array(rows[part].reshape(-1))
        table = pa.table(
            {"embedding": pa.FixedSizeListArray.from_arrays(flat, DIM), "key": keys[part]}
        )
        pq.write_table(table, folder / "tables" / f"p{number}.parquet", row_group_size=33)
        np.save(folder / "arrays" / f"a{number}.npy", rows[part])
        np.save(folder / "clip" / "img_emb" / f"img_emb_{number}.npy", rows[part])
        pq.write_table(pa.table({"image_path": keys[part]}),
                       folder / "clip" / "metadata" / f"metadata_{number}.parquet")  # fmt: skip
    return {"tables": True, "arrays": False, "clip": True}


def test_inputs_without_an_import(job, whole, tmp_path):
    expected = ScoresDirectory.open(job.folder / "whole").table()
    for name, has_keys in layouts(tmp_path, job).items():
        out = tmp_path / f"scores of {name}"
        summary = run_job(tmp_path / name, out, job.settings())
        assert (summary.rows, summary.parts, summary.complete) == (300, 3, True)
        table = ScoresDirectory.open(out).table()
        for column in ("anomaly_score", "nearest_class", "internal_score", "external_score"):
            assert table.column(column).equals(expected.column(column)), (name, column)
        keys = expected.column("key").to_pylist() if has_keys else [str(i) for i in range(300)]
        assert table.column("key").to_pylist() == keys
        assert verify_scores(out).ok
        before = outputs(out)
        run_job(tmp_path / name, out, job.settings())
        assert outputs(out) == before


def test_an_input_by_uri(job, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    rows = EmbeddingStore.open(job.images).embeddings()
    with fsspec.open("memory://bulk/rows.npy", "wb") as file:
        np.save(file, rows)
    summary = run_job("memory://bulk/rows.npy", tmp_path / "s", job.settings())
    assert summary.rows == 300
    assert verify_scores(tmp_path / "s").ok


def test_named_columns(job, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings()
    lists = pa.array(list(rows.astype(np.float32)))
    table = pa.table({"a": lists, "b": lists, "name": [f"n{i}" for i in range(300)]})
    pq.write_table(table, tmp_path / "t.parquet")
    columns = ColumnNames("b", "name")
    run_job(tmp_path / "t.parquet", tmp_path / "s", job.settings(), columns=columns)
    assert ScoresDirectory.open(tmp_path / "s").table().column("key")[7].as_py() == "n7"
    assert verify_scores(tmp_path / "s", columns).ok


def test_the_output_opens_anywhere(job, whole):
    pattern = str(job.folder / "whole" / "*.parquet")
    expected = (
        ScoresDirectory.open(job.folder / "whole").table().column("anomaly_score").to_pylist()
    )
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(f"select anomaly_score from '{pattern}'").fetchall()
    assert sorted(row[0] for row in found) == sorted(expected)
    polars = pytest.importorskip("polars")
    assert polars.read_parquet(pattern)["anomaly_score"].to_list() == expected
    pandas = pytest.importorskip("pandas")
    assert pandas.read_parquet(job.folder / "whole")["anomaly_score"].tolist() == expected


def test_records_are_what_verify_compares(job, tmp_path):
    run_job(job.images, tmp_path / "s", job.settings())
    record = Record.read(open_directory(tmp_path / "s"), 3)
    name = shard(job.images, 3).name
    assert (record.part, record.rows, record.status) == (name, 50, {"ok": 50})
    assert record.input == EmbeddingStore.open(job.images).shards[3].sha256


def test_empty_and_single_rows(job, tmp_path):
    rows = EmbeddingStore.open(job.images).embeddings()
    write_images(tmp_path / "one", rows[:1], 10)
    write_images(tmp_path / "none", rows[:0], 10)
    assert run_job(tmp_path / "one", tmp_path / "s1", job.settings()).rows == 1
    summary = run_job(tmp_path / "none", tmp_path / "s0", job.settings())
    assert (summary.rows, summary.complete) == (0, True)
    np.save(tmp_path / "empty.npy", rows[:0])
    run_job(tmp_path / "empty.npy", tmp_path / "s2", job.settings())
    assert pq.read_table(scored(tmp_path / "s2")).num_rows == 0
    for name in ("s0", "s1", "s2"):
        assert verify_scores(tmp_path / name).ok
