"""The engine of jobs on a trivial work: plan, commit, races, deaths, refusals."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from bulk_fixtures import parts_done, wait_for
from job_fixtures import TrivialWork, result, run_trivial

from bliss_index.errors import CorruptStoreError, JobError, OutputError, StoreError
from bliss_index.jobs import JobListener, JobOptions, Part, Plan, run
from bliss_index.jobs.manifest import Files, PartFile, is_written, write_manifest
from bliss_index.jobs.numerics import processor
from bliss_index.jobs.part import PlanFile
from bliss_index.jobs.record import Record, commit, output_name, record_name
from bliss_index.jobs.stopping import sigterm_noted
from bliss_index.storage import files, open_directory
from bliss_index.storage.files import NewFile, make_directory


class Notes(JobListener):
    def __init__(self):
        self.texts = []

    def notice(self, text):
        self.texts.append(text)


@pytest.fixture
def whole(tmp_path):
    run_trivial(tmp_path / "whole")
    return result(tmp_path / "whole")


def test_workers_and_tasks_write_the_same(whole, tmp_path):
    run(TrivialWork(20), tmp_path / "w", JobOptions(workers=3))
    assert result(tmp_path / "w") == whole
    for task in range(4):
        run(TrivialWork(20), tmp_path / "t", JobOptions(task=f"{task}/4"))
    assert not (tmp_path / "t" / "manifest.json").exists()
    assert run(TrivialWork(20), tmp_path / "t").rows_now == 0
    assert result(tmp_path / "t") == whole


@pytest.mark.slow
def test_ray_writes_the_same_and_gives_up_a_deadly_part(whole, tmp_path):
    """On a cluster of three nodes; a part that kills its actor is tried twice, then reported."""
    pytest.importorskip("ray")
    armed = tmp_path / "armed"
    armed.write_text("")
    script = textwrap.dedent(
        """
        import json, os, sys
        os.environ["RAY_AUTH_MODE"] = "disabled"
        from ray.cluster_utils import Cluster
        cluster = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        os.environ["RAY_ADDRESS"] = cluster.address
        from bliss_index.jobs import JobOptions, JobListener, run
        from job_fixtures import TrivialWork
        notes = []
        class Notes(JobListener):
            def notice(self, text):
                notes.append(text)
        work = TrivialWork(20, deadly=7, armed=sys.argv[2])
        summary = run(work, sys.argv[1], JobOptions(workers=3, engine="ray"), Notes())
        print(json.dumps([summary.to_json(), notes]))
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", script, str(tmp_path / "s"), str(armed)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    summary, notes = json.loads(done.stdout)
    ((name, reason),) = summary["failed"]
    assert (name, reason.startswith("its actor ended twice")) == ("piece 7", True)
    assert sum("its actor ended" in note for note in notes) == 3  # two deaths, and the failure
    assert len(list((tmp_path / "s" / "_deaths").iterdir())) == 2
    armed.unlink()
    assert run(TrivialWork(20), tmp_path / "s").complete
    assert result(tmp_path / "s") == whole


def test_a_part_that_kills_its_process_is_tried_twice_and_remembered(whole, tmp_path):
    armed = tmp_path / "armed"
    armed.write_text("")
    work = TrivialWork(20, deadly=3, armed=str(armed))
    summary = run(work, tmp_path / "s", JobOptions(workers=2))
    assert summary.failed == (("piece 3", "its process ended twice (SIGKILL)"),)
    assert summary.parts_done == 19
    deaths = sorted(p.name for p in (tmp_path / "s" / "_deaths").iterdir())
    assert deaths == ["part-00000003.1.txt", "part-00000003.2.txt"]
    armed.unlink()
    assert run(work, tmp_path / "s", JobOptions(workers=2)).complete
    assert result(tmp_path / "s") == whole


STOPPED = """
import sys
from bulk_fixtures import children_of, parts_done, wait_for
from job_fixtures import TrivialWork
from bliss_index.jobs import JobOptions, run
if __name__ == "__main__":
    engine, workers, task = sys.argv[2:]
    options = JobOptions(engine=engine, workers=int(workers), task=task or None)
    run(TrivialWork(20, seconds=0.5), sys.argv[1], options)
    print("whole")
"""


@pytest.mark.parametrize(
    ("engine", "workers", "task"),
    [
        ("local", 1, ""),
        ("local", 2, ""),
        ("local", 1, "1/2"),
        pytest.param("ray", 2, "", marks=pytest.mark.slow),
    ],
)
def test_sigterm_finishes_what_is_under_way(whole, tmp_path, engine, workers, task):
    """As a scheduler sends it, to all processes; nothing counts as dead, nothing is lost."""
    if engine == "ray":
        pytest.importorskip("ray")
    (tmp_path / "stopped.py").write_text(STOPPED)
    out = tmp_path / "s"
    process = started(tmp_path / "stopped.py", out, engine, workers, task)
    wait_for(lambda: parts_done(out) >= 2)
    time.sleep(0.1)  # the next part is under way
    # Ray's own processes would end with it.
    (os.kill if engine == "ray" else os.killpg)(process.pid, signal.SIGTERM)
    seen = parts_done(out)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (143, "")
    done = parts_done(out)
    assert seen < done <= seen + 1 + workers < (10 if task else 20)
    assert not (out / "_deaths").exists()
    assert run(TrivialWork(20), out).parts_earlier == done
    assert result(out) == whole


def test_a_second_sigterm_ends_at_once(whole, tmp_path):
    seconds = f"seconds=4, noted={str(tmp_path / 'begun')!r}"
    (tmp_path / "stopped.py").write_text(STOPPED.replace("seconds=0.5", seconds))
    process = started(tmp_path / "stopped.py", tmp_path / "s", "local", 2, "")
    wait_for((tmp_path / "begun").exists)
    for _ in range(2):
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - began < 2
    assert run(TrivialWork(20), tmp_path / "s").complete
    assert result(tmp_path / "s") == whole


def started(script, *arguments):
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)}, start_new_session=True,
    )  # fmt: skip


def test_sigterm_that_is_somebody_elses_stays_theirs():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with sigterm_noted() as stopped:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert not stopped()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_part_that_hangs_is_killed_and_given_up(whole, tmp_path, monkeypatch, engine):
    if engine == "ray":
        pytest.importorskip("ray")
        monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))  # for its actors
    armed = tmp_path / "armed"
    armed.write_text("")
    work = TrivialWork(20, hanging=5, armed=str(armed))
    options = JobOptions(engine=engine, workers=2, deadline=3.0)
    summary = run(work, tmp_path / "s", options)
    what = "actor" if engine == "ray" else "process"
    assert summary.failed == (("piece 5", f"its {what} ended twice (no progress for 3 s)"),)
    assert summary.parts_done == 19
    assert len(list((tmp_path / "s" / "_deaths").iterdir())) == 2
    armed.unlink()
    assert run(work, tmp_path / "s", options).complete
    assert result(tmp_path / "s") == whole


def test_slow_parts_are_not_taken_for_hanging_ones(whole, tmp_path):
    """Who waits for work is not silent either."""
    run(TrivialWork(3, seconds=1.0), tmp_path / "s", JobOptions(workers=2, deadline=1.9))
    assert not (tmp_path / "s" / "_deaths").exists()


def test_a_part_that_fails_is_tried_again_by_the_next_run(whole, tmp_path):
    summary = run(TrivialWork(20, failing=4), tmp_path / "s")
    assert summary.failed == (("piece 4", "OSError: it cannot be read"),)
    assert not (tmp_path / "s" / "manifest.json").exists()
    summary = run(TrivialWork(20), tmp_path / "s")
    assert (summary.complete, summary.rows_now) == (True, 1)
    assert result(tmp_path / "s") == whole


def test_two_runners_of_every_part_without_locks(whole, tmp_path, monkeypatch):
    """As on file systems that grant flock to everyone: the first record counts, nothing is lost."""
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, kind: None)
    errors = []

    def runner():
        try:
            run(TrivialWork(20), tmp_path / f"s{number}")
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    for number in range(5):
        threads = [threading.Thread(target=runner) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert result(tmp_path / f"s{number}") == whole


def test_the_first_record_wins_and_the_loser_removes_its_file(tmp_path):
    directory = open_directory(tmp_path / "s")
    directory.make()
    part = Part(5, "five", 1, "same")

    def committed(data):
        content = directory.new_file()
        content.sink.write(data)
        return commit(directory, part, content, "arrow", status={"ok": 1}, given="g", seconds=0.0)

    first = committed(b"one")
    assert committed(b"another") == first
    assert committed(b"one") == first
    assert [p.name for p in (tmp_path / "s").iterdir() if p.is_file()] == [first.file]
    (tmp_path / "s" / first.file).write_bytes(b"damaged")
    assert committed(b"one") == first
    assert (tmp_path / "s" / first.file).read_bytes() == b"one"


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 10**10}, {"rows": -1}, {"file": "../../x"}, {"other": 1}, {"rows": "3"},
        {"bytes": -1}, {"bad_rows": -1}, {"rows": True}, {"seconds": None}, {"status": []},
        {"sha256": 5},
    ],
)  # fmt: skip
def test_records_that_cannot_be_are_made_again(whole, tmp_path, change):
    run_trivial(tmp_path / "s")
    path = tmp_path / "s" / record_name(2)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    notes = Notes()
    summary = run(TrivialWork(20), tmp_path / "s", listener=notes)
    assert (summary.parts_earlier, summary.complete) == (19, True)
    assert "part piece 2 is done again" in notes.texts[0]
    assert result(tmp_path / "s") == whole


@pytest.mark.parametrize("harm", ["cut", "longer", "empty", "gone"])
def test_files_of_another_size_are_made_again(whole, tmp_path, harm):
    run_trivial(tmp_path / "s")
    record = Record.read(open_directory(tmp_path / "s"), 2)
    path = tmp_path / "s" / record.file
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        harmed = {"cut": content[:-1], "longer": content + b"x", "empty": b""}
        path.write_bytes(harmed[harm])
    notes = Notes()
    summary = run(TrivialWork(20), tmp_path / "s", listener=notes)
    assert (summary.parts_earlier, summary.complete) == (19, True)
    assert "part piece 2 is done again" in notes.texts[0]
    assert result(tmp_path / "s") == whole


def test_other_settings_or_another_kind_are_refused(tmp_path):
    run_trivial(tmp_path / "s")
    with pytest.raises(JobError, match="was begun with line 'x', now it is 'y'"):
        run(TrivialWork(20, "y"), tmp_path / "s")
    other = TrivialWork(20)
    object.__setattr__(other, "kind", "other")
    with pytest.raises(StoreError, match="holds trivia, 'a test' makes other"):
        run(other, tmp_path / "s")


def test_a_refused_directory_keeps_every_file(tmp_path):
    """Also hidden ones that look temporary: they are somebody's notes."""
    for name in (".notes.tmp", ".x.1.tmp", "letter.txt"):
        (tmp_path / name).write_text("dear")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(StoreError, match="not a trivia directory"):
        run_trivial(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_directories_of_the_first_format_are_refused_by_one_message(tmp_path):
    old = {"format": "bliss_index.embedding_store", "format_version": 1}
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    message = "has format version 1, of a bliss_index before its first release; this version reads"
    with pytest.raises(StoreError, match=message):
        run_trivial(tmp_path)
    (tmp_path / "manifest.json").rename(tmp_path / "_job.json")
    with pytest.raises(StoreError, match=message):
        run_trivial(tmp_path)


def test_a_uri_is_never_taken_for_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"cannot be used: .* in an object store"):
        run(TrivialWork(2), "ftp://bucket/x")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_what_its_name_says(tmp_path):
    directory = open_directory(tmp_path)
    plan = Plan.of(Part(i, f"p{i}", i, "f", "d" * i) for i in range(10_000))
    assert len(plan) == 10_000
    assert plan.rows == sum(range(10_000))
    assert plan[9_999] == Part(9_999, "p9999", 9_999, "f", "d" * 9_999)
    (file,) = plan.files
    file.write(directory)
    again = Plan.read(directory, file.name)
    assert list(again)[5_000] == plan[5_000]
    path = tmp_path / file.name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptStoreError, match="not that of its name: altered"):
        Plan.read(directory, file.name)
    file.write(directory)
    assert Plan.read(directory, file.name).rows == plan.rows


# Files


@pytest.fixture
def named_temporaries(monkeypatch):
    """As on a file system without files that have no name."""
    monkeypatch.setattr(files.os, "O_TMPFILE", 0)


def test_files_where_every_file_has_a_name(named_temporaries, whole, tmp_path):
    run_trivial(tmp_path / "s")
    assert result(tmp_path / "s") == whole
    assert not list((tmp_path / "s").rglob("*.tmp"))


def test_a_temporary_name_follows_no_link(named_temporaries, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 16)
    (tmp_path / f".bliss-{'0' * 16}.tmp").symlink_to(tmp_path / "secret")
    with pytest.raises(OutputError, match="File exists"):
        NewFile(tmp_path)
    assert (tmp_path / "secret").read_text() == "mine"


def test_equal_process_numbers_do_not_collide(named_temporaries, tmp_path, monkeypatch):
    """As tasks in containers have them: no temporary name rests on them."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    several = [NewFile(tmp_path) for _ in range(50)]
    for number, file in enumerate(several):
        file.sink.write(b"x")
        assert file.commit(str(number))
    assert len(list(tmp_path.iterdir())) == 50


def test_the_parents_of_a_new_directory_are_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    make_directory(tmp_path / "a" / "b")
    assert sorted(synced) == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_a_disk_that_fails_is_one_message(tmp_path, monkeypatch, call):
    def broken(*values, **more):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, call, broken)
    with pytest.raises(OutputError, match="cannot write .*Input/output error"):
        run_trivial(tmp_path / "s")
    monkeypatch.undo()
    assert not list((tmp_path / "s").rglob("part-*"))


def test_content_that_cannot_be_synced_gets_no_name(tmp_path, monkeypatch):
    """Not that of the directory, which comes later: the file's own."""
    sync = os.fsync

    def broken(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    file = NewFile(tmp_path)
    file.sink.write(b"content")
    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OutputError, match="Input/output error"):
        file.commit("name")
    assert not list(tmp_path.iterdir())


def test_a_close_that_fails_is_one_message(tmp_path):
    class Raw:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def close(self):
            self._file.close()
            raise OSError(errno.EIO, "Input/output error")

    file = NewFile(tmp_path)
    file.sink.write(b"x")
    file._raw = Raw(file._raw)
    with pytest.raises(OutputError, match="cannot write .*Input/output error"):
        file.commit("name")


def test_nothing_is_left_of_a_killed_writer(tmp_path):
    """A file has no name before it is whole, so none is left, not even a temporary one."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from bliss_index.storage.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1]) / 'scores.parquet') as sink:\n"
        "    sink.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_read_back(tmp_path):
    run_trivial(tmp_path / "s", 3)
    record = Record.read(open_directory(tmp_path / "s"), 1)
    assert (record.part, record.rows, record.status) == ("piece 1", 1, {"ok": 1})
    assert (tmp_path / "s" / record.file).stat().st_size == record.bytes
    assert Path(record.file).suffix == ".arrow"


def test_files_are_held_in_any_order_and_written_line_by_line(tmp_path):
    """Beyond the size that was foreseen, too; what stands is compared without being parsed."""
    directory = open_directory(tmp_path)
    records = [
        Record(f"p{i}", i, i % 2, "x", output_name(i, f"{i:064x}", ("arrow", "parquet")[i % 2]), 7,
               f"{i:064x}", 0.1, {"ok": i})
        for i in range(50)
    ]  # fmt: skip
    files = Files(3)
    for index in [30, 2, 49, *(i for i in range(50) if i not in (2, 30, 49))]:
        assert index not in files
        files.add(index, records[index])
    assert (len(files), files.rows, files.bad_rows) == (50, sum(range(50)), 25)
    assert list(files) == [PartFile.of(record) for record in records]
    assert not is_written(directory, "m.json", files)
    write_manifest(directory, "m.json", files, {"format": "f", "parts of": {"parts": []}})
    assert is_written(directory, "m.json", files)
    stands = json.loads((tmp_path / "m.json").read_bytes())
    assert stands["parts"] == [asdict(PartFile.of(record)) for record in records]
    assert (stands["rows"], stands["bad_rows"]) == (files.rows, 25)
    files.add(50, records[49])
    assert not is_written(directory, "m.json", files)
    (tmp_path / "m.json").write_bytes((tmp_path / "m.json").read_bytes()[:-1])
    assert not is_written(directory, "m.json", list(files)[:-1])


def test_a_record_says_what_computed_it_and_nothing_compares_that(whole, tmp_path):
    run_trivial(tmp_path / "s")
    path = tmp_path / "s" / record_name(3)
    values = json.loads(path.read_bytes())
    assert processor() in values["made_by"]
    path.write_text(json.dumps({**values, "made_by": "another machine"}))
    assert run(TrivialWork(20), tmp_path / "s").rows_now == 0
    assert result(tmp_path / "s") == whole


def test_a_plan_that_cannot_be_written_leaves_nothing_open(tmp_path):
    class Full:
        size = 1

        def slice(self, *_):
            raise OSError("no space")

    directory = open_directory(tmp_path)
    directory.make()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OutputError, match=r"_plan/0\.arrow.*no space") as caught:
        PlanFile("_plan/0.arrow", Full()).write(directory)
    assert set(os.listdir("/proc/self/fd")) == before  # while the error still holds its frames
    del caught
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
