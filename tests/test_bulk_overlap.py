"""Parts whose end overlaps with the search of the next: order, errors, interruptions, bounds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import pytest
from bulk_fixtures import wait_for

from bliss_index.errors import CorruptStoreError, JobError, OutputError
from bliss_index.jobs import JobListener, Outcome
from bliss_index.jobs.processes import _after_death, _hand_out, _Question, _Worker
from bliss_index.jobs.record import RECORD_FOLDER
from bliss_index.scoring import run_job
from bliss_index.scoring.score_finish import Finishing
from bliss_index.scoring.score_inputs import open_input
from bliss_index.scoring.score_output import PartOutput
from bliss_index.scoring.score_part import PartScorer
from bliss_index.scoring.score_settings import ScoringInputs
from bliss_index.search import ExactSearch
from bliss_index.storage import files, open_directory
from bliss_index.storage.files import NewFile
from bliss_index.storage.hashing import file_sha256
from bliss_index.store import EmbeddingStore


@pytest.fixture
def scorer(job, tmp_path):
    """A scorer of parts, the parts, and the directory that it writes to."""
    directory = tmp_path / "s"
    (directory / RECORD_FOLDER).mkdir(parents=True)
    parts = PartScorer(
        ScoringInputs.open(job.settings()).make_scorer(), open_directory(directory), batch_rows=16
    )
    sources = open_input(job.images).parts
    return parts, [(source.planned(i), source) for i, source in enumerate(sources)], directory


def named(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.rglob("*") if p.is_file())


def kinds(directory: Path) -> list[str]:
    """Names without the hash of their content."""
    plan = [re.sub(r"^[0-9a-f]{16}\.arrow$", "plan.arrow", name) for name in named(directory)]
    return sorted(re.sub(r"\.[0-9a-f]{16}\.", ".", name) for name in plan)


def test_a_part_is_committed_while_the_next_one_is_searched(scorer, monkeypatch):
    """The first part's file may not reach the disk before a batch of the second was searched."""
    parts, numbered, directory = scorer
    searches = []
    second = threading.Event()
    true_search, true_commit = ExactSearch.search, NewFile.commit

    def search(self, images):
        searches.append(len(images))
        if sum(searches) > 50:
            assert not list(directory.glob("*.parquet"))
            second.set()
        return true_search(self, images)

    def commit(self, name, **more):
        assert second.wait(60)
        return true_commit(self, name, **more)

    monkeypatch.setattr(ExactSearch, "search", search)
    monkeypatch.setattr(NewFile, "commit", commit)
    outcomes = parts.score_parts(numbered[:2])
    assert next(outcomes).index == 0
    monkeypatch.setattr(ExactSearch, "search", true_search)
    assert [outcome.index for outcome in outcomes] == [1]


def test_parts_get_their_names_in_order(scorer, whole, monkeypatch):
    """File, then record, then the next part's file: whatever is there is whole."""
    parts, numbered, directory = scorer
    linked = []
    link = files.os.link

    def noted(source, target, **more):
        linked.append(Path(target).name)
        link(source, target, **more)

    monkeypatch.setattr("os.link", noted)
    outcomes = list(parts.score_parts(numbered))
    assert [outcome.index for outcome in outcomes] == list(range(6))
    assert linked == [name for file in sorted(whole) for name in (file, f"{file[:13]}.json")]
    assert {p.name: p.read_bytes() for p in directory.glob("*.parquet")} == whole


def test_a_part_that_fails_leaves_its_neighbours_alone(scorer, whole, monkeypatch):
    parts, numbered, directory = scorer
    check = EmbeddingStore.check_hash

    def damaged(store, index, between=None):
        if index in (1, 4):
            raise CorruptStoreError(f"shard {index} is damaged")
        return check(store, index, between)

    monkeypatch.setattr(EmbeddingStore, "check_hash", damaged)
    outcomes = list(parts.score_parts(numbered))
    assert [str(outcome.error) for outcome in outcomes if outcome.record is None] == [
        "shard 1 is damaged", "shard 4 is damaged",
    ]  # fmt: skip
    left = {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}
    failed = ("part-00000001", "part-00000004")
    assert left == {name: content for name, content in whole.items() if name[:13] not in failed}


def test_an_output_that_cannot_be_written_is_told_at_once(scorer, monkeypatch):
    """Before the next part, which may take hours, is through; its hash is not waited for."""
    parts, numbered, directory = scorer

    def full(self, name, **more):
        self.discard()
        raise OutputError("no space left")

    monkeypatch.setattr(NewFile, "commit", full)
    finished = threading.Event()
    hashed = EmbeddingStore.check_hash

    def endless(store, index, between=None):
        while index == 1 and not finished.wait(0.01):
            between()
        return hashed(store, index, between)

    monkeypatch.setattr(EmbeddingStore, "check_hash", endless)
    outcomes = parts.score_parts(numbered)
    first = next(outcomes)
    assert (first.index, str(first.error)) == (0, "no space left")
    outcomes.close()
    assert named(directory) == []


def test_who_stops_asking_waits_for_no_hash_and_leaves_no_file(scorer, monkeypatch):
    parts, numbered, directory = scorer
    begun = threading.Event()

    def endless(store, index, between=None):
        if index == 0:
            return store.shards[0].sha256
        begun.set()
        while True:
            between()

    monkeypatch.setattr(EmbeddingStore, "check_hash", endless)
    outcomes = parts.score_parts(numbered)
    assert next(outcomes).index == 0
    assert begun.wait(60)
    outcomes.close()
    assert kinds(directory) == ["part-00000000.json", "part-00000000.parquet"]


def test_too_many_bad_rows_stop_what_was_begun(job, tmp_path):
    """The listener stops the job at the first part: later ones that were begun get no name."""

    class Stopping(JobListener):
        def finished_part(self, record):
            raise JobError("enough")

    with pytest.raises(JobError, match="enough"):
        run_job(job.images, tmp_path / "s", job.settings(), listener=Stopping())
    assert kinds(tmp_path / "s") == [
        "_job.json", "part-00000000.json", "part-00000000.parquet", "plan.arrow",
    ]  # fmt: skip


@pytest.mark.parametrize("behind", [1, 5])
def test_what_waits_to_be_finished_is_bounded(scorer, behind):
    """A disk that is slow makes the search wait; it does not fill the memory."""
    _, numbered, directory = scorer
    go_on = threading.Event()
    told: list[int] = []
    with Finishing(told.append) as finishing:
        output = PartOutput(directory, *numbered[0], None)
        for _ in range(behind):
            finishing.add(output, 10, lambda: go_on.wait(60) and None)
        if behind <= 2:
            assert list(finishing.outcomes()) == []
            assert told == []
            go_on.set()
            assert list(finishing.outcomes(all_of_them=True)) == []
        else:
            threading.Timer(0.2, go_on.set).start()
            assert list(finishing.outcomes()) == []  # has waited until two are left at most
            assert len(told) >= behind - 2
            assert go_on.is_set()


def test_an_unforeseen_error_is_no_part_failure(job, tmp_path, monkeypatch):
    """A mistake of ours must not look like a damaged part."""

    def broken(self, images):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(ExactSearch, "search", broken)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        run_job(job.images, tmp_path / "s", job.settings())
    assert kinds(tmp_path / "s") == ["_job.json", "plan.arrow"]


def test_a_hash_can_be_ended(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(10 << 18))

    def ended_after(pieces):
        left = iter(range(pieces))

        def between():
            if next(left, None) is None:
                raise KeyboardInterrupt

        return between

    for pieces in (0, 4, 9):
        with pytest.raises(KeyboardInterrupt):
            file_sha256(path, ended_after(pieces))
    assert file_sha256(path, ended_after(100)) == file_sha256(path)


def test_ctrl_c_does_not_wait_for_a_hash(job, tmp_path):
    """A shard whose hash never ends stands for one of a terabyte."""
    script = textwrap.dedent(
        """
        import sys, time
        from bliss_index.store import EmbeddingStore

        def endless(store, index, between=None):
            while between is not None:
                between()
                time.sleep(0.01)

        EmbeddingStore.check_hash = endless
        from bliss_index.cli.app import run
        run()
        """
    )
    command = [
        sys.executable, "-c", script, "score", str(job.images),
        "--corpus", str(job.corpus), "--calibration", str(job.calibration),
        "--out", str(tmp_path / "s"), "-k", "5", "--search", "native", "--devices", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        # Nothing is written before a group of rows is full, or the part is at its end.
        wait_for(lambda: (tmp_path / "s" / "_job.json").exists())
        wait_for(lambda: opened_below(process.pid, tmp_path / "s"))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "interrupted; what is done is kept" in errors
    assert kinds(tmp_path / "s") == ["_job.json", "plan.arrow"]
    assert run_job(job.images, tmp_path / "s", job.settings()).complete


def opened_below(pid: int, folder: Path) -> list[str]:
    """Files without a name that a process writes in a folder."""
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.append(os.readlink(path))
    return [link for link in links if link.startswith(f"{folder}/") and "(deleted)" in link]


class Process:
    """A worker as its parent sees it, without a process."""

    restart = staticmethod(lambda: "SIGKILL")
    may_take = _Worker.may_take

    def __init__(self, parts=(), *, asks=True):
        self.parts, self.asks, self.told = dict(parts), asks, []

    def answer(self, index, deaths=0):
        self.told.append(index)
        self.asks = False
        if index is not None:
            self.parts[index] = deaths


def no_note(index, reason):
    """Deaths are not remembered here."""


def test_parts_go_first_to_those_that_have_none():
    waiting = deque([(7, 0), (8, 0)])
    busy, idle, silent = Process({3: 0}), Process(), Process(asks=False)
    _hand_out(waiting, [busy, silent, idle])
    assert (idle.told, busy.told, silent.told) == ([7], [8], [])
    late = Process({4: 0})
    _hand_out(waiting, [late])
    assert late.told == [None]  # finish what you have
    nobody = Process()
    _hand_out(waiting, [nobody])
    assert (nobody.told, nobody.asks) == ([], True)


def test_a_part_that_may_be_deadly_is_tried_alone():
    """Both parts of a process that died are suspects, and neither may take others with it."""
    waiting, notes = deque([(9, 0)]), []
    assert list(_after_death(Process({5: 0, 6: 0}), waiting, notes.append, no_note)) == []
    assert list(waiting) == [(5, 1), (6, 1), (9, 0)]
    assert notes == [f"part {i}: its process ended (SIGKILL)" for i in (6, 5)]
    busy, idle = Process({4: 0}), Process()
    _hand_out(waiting, [busy])
    assert busy.told == [None]
    _hand_out(waiting, [idle])
    assert idle.told == [5]
    idle.asks = True  # it asks for another while it commits the suspect
    _hand_out(waiting, [idle])
    assert idle.told == [5, None]
    given_up = list(_after_death(idle, waiting, notes.append, no_note))
    assert given_up == [Outcome(5, None, "its process ended twice (SIGKILL)")]
    assert list(waiting) == [(6, 1), (9, 0)]


def test_a_process_that_dies_while_it_starts_counts_against_the_next_part():
    """Else it would be started for ever; one that waits for work has nothing to do with any."""
    waiting = deque([(5, 0)])
    starting = Process(asks=False)
    assert list(_after_death(starting, waiting, lambda text: None, no_note)) == []
    assert list(waiting) == [(5, 1)]
    assert [r.index for r in _after_death(starting, waiting, lambda text: None, no_note)] == [5]
    assert list(_after_death(starting, waiting, lambda text: None, no_note)) == []


def test_messages_of_a_process():
    worker = _Worker.__new__(_Worker)
    worker.parts, worker.asks = {3: 0, 4: 0}, False
    messages = iter([10, _Question(), Outcome(3, None, "why"), "a notice", Outcome(4, None)])

    class Connection:
        recv = staticmethod(lambda: next(messages))

    worker.connection = Connection()
    seen = []
    for _ in range(5):
        worker.receive()
        seen.append((sorted(worker.parts), worker.asks))
    assert seen == [([3, 4], False), ([3, 4], True), ([4], True), ([4], True), ([], True)]


def test_no_part_is_committed_before_the_last_outcome_was_taken(scorer, monkeypatch):
    """However fast it is: who stops at a part has no later one."""
    parts, numbered, directory = scorer
    outcomes = parts.score_parts(numbered)
    for index in range(3):
        assert next(outcomes).index == index
        assert len(list(directory.glob("*.parquet"))) == index + 1
        time.sleep(0.05)
        assert len(list(directory.glob("*.parquet"))) == index + 1
    outcomes.close()
    assert kinds(directory) == [f"part-{i:08d}.{k}" for i in range(3) for k in ("json", "parquet")]
