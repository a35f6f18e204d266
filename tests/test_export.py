"""Exports: counts that add up, lists in every format, and files that can always be brought back."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from command import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from object_store import s3_server, upload
from test_report import HOSTILE, write_scores
from typer.testing import CliRunner

from bliss_index.cli.app import app
from bliss_index.errors import CorruptStoreError, InvalidInputError, OutputError
from bliss_index.export import Choice, FileAction, export, transfer_files, undo_moves
from bliss_index.export import choice as choice_module
from bliss_index.export import files as files_module
from bliss_index.report.groups import groups
from bliss_index.review.judgement_log import JudgementLog
from bliss_index.storage import open_directory

CLASSES = ("cat", "dog")


def rows_of(scores, names=None):
    return [
        (f"{i:03}.png" if names is None else names[i], None if s is None else float(s),
         CLASSES[i % 2])
        for i, s in enumerate(scores)
    ]  # fmt: skip


def lists(folder, kind="csv"):
    read = pa_csv.read_csv if kind == "csv" else pq.read_table
    return {
        name: read(folder / f"{name}.{kind}").to_pylist() for name in ("keep", "drop", "unscored")
    }


scores_lists = st.lists(
    st.lists(st.none() | st.integers(-3, 3).map(lambda n: n / 2), max_size=12), max_size=4
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    parts=scores_lists,
    flagged=st.booleans(),
    choice=st.one_of(
        st.builds(Choice, threshold=st.sampled_from([-9, -0.5, 0.5, 2, 9])),
        st.builds(Choice, top=st.integers(0, 60)),
        st.just(Choice()),
    ),
)
def test_counts_add_up_and_no_row_is_lost(tmp_path_factory, parts, flagged, choice):
    folder = tmp_path_factory.mktemp("export")
    names = iter(f"image {n}" for n in range(100))
    rows = [[(next(names), s, "cat") for s in part] for part in parts if part]
    write_scores(folder / "scores", rows, CLASSES, threshold=0.5 if flagged else None)
    if not flagged and choice == Choice():
        with pytest.raises(InvalidInputError, match="has no flags.*--threshold"):
            export(folder / "scores", folder / "lists", choice)
        assert not (folder / "lists").exists()
        return
    found = export(folder / "scores", folder / "lists", choice, formats=("parquet", "txt"))
    whole = [row for part in rows for row in part]
    assert found.rows == len(whole) == found.kept + found.dropped + found.unscored
    written = lists(folder / "lists", "parquet")
    assert [len(written[n]) for n in ("keep", "drop", "unscored")] == [
        found.kept, found.dropped, found.unscored
    ]  # fmt: skip
    limit = 0.5 if choice.threshold is None else choice.threshold
    known = [(s, i) for i, (_, s, _) in enumerate(whole) if s is not None]
    if choice.top is not None:
        first = sorted(known, key=lambda pair: (-pair[0], pair[1]))[: choice.top]
        expected = {whole[i][0] for _, i in first}
    else:
        expected = {whole[i][0] for s, i in known if s >= limit}
    assert {row["key"] for row in written["drop"]} == expected
    assert [row["key"] for row in written["unscored"]] == [k for k, s, _ in whole if s is None]
    for name, rows_ in written.items():
        text = (folder / "lists" / f"{name}.txt").read_text()
        assert text.splitlines() == [row["key"] for row in rows_]
    assert all(row["reasons"] for row in written["drop"])
    assert export(folder / "scores", folder / "none", choice, dry_run=True).rows == found.rows
    assert not (folder / "none").exists()


def test_every_list_has_scores_reasons_and_what_was_decided(tmp_path):
    names = ['a, "b".png', "=cmd|' /C calc'!A0", "plain"]
    scores = write_scores(tmp_path / "s", [rows_of([2.0, 0.1, None], names)], CLASSES, threshold=1)
    plain = write_scores(tmp_path / "p", [rows_of([2.0])], CLASSES, threshold=1, explain=False)
    export(plain, tmp_path / "plain")
    assert lists(tmp_path / "plain")["drop"][0]["reasons"] == "internal +1.500, external +1.000"
    found = export(scores, tmp_path / "lists", formats=("csv", "metadata"))
    written = lists(tmp_path / "lists")
    (dropped,) = written["drop"]
    assert dropped["key"] == names[0] and dropped["anomaly_score"] == 2.0
    assert dropped["reasons"] == f"entry +0.250, {HOSTILE} -0.125"
    assert dropped["decision"] == "drop" and dropped["nearest_class"] == "cat"
    assert written["unscored"][0]["status"] == "zero_embedding"
    with (tmp_path / "lists" / "metadata.csv").open(newline="") as file:
        assert [row["file_name"] for row in csv.DictReader(file)] == [names[1]]
    saved = json.loads((tmp_path / "lists" / "export.json").read_text())
    assert saved["dropped"] == 1 and saved["choice"]["top"] is None
    assert found.files == tuple(saved["files"])
    assert all(Path(file).exists() for file in found.files)


def test_lists_of_tars(tmp_path):
    keys = ["0.tar/a", "0.tar/b", "dir/1.tar.gz/c/d", "dir/1.tar.gz/e"]
    scores = write_scores(tmp_path / "s", [rows_of([2, 0, 2, None], keys)], CLASSES, threshold=1)
    export(scores, tmp_path / "lists", formats=("tars",))
    assert (tmp_path / "lists/drop/0.tar.txt").read_text() == "a\n"
    assert (tmp_path / "lists/keep/0.tar.txt").read_text() == "b\n"
    assert (tmp_path / "lists/drop/dir/1.tar.gz.txt").read_text() == "c/d\n"
    assert (tmp_path / "lists/unscored/dir/1.tar.gz.txt").read_text() == "e\n"
    for keys, message in (
        (["x.png"], "--key-prefix"),
        (["../0.tar/a"], "does not name its tar"),
        (["0.tar/a", "1.tar/b", "0.tar/c"], "do not follow one another"),
    ):
        other = write_scores(
            tmp_path / keys[-1].replace("/", "_"), [rows_of([2] * len(keys), keys)], CLASSES,
            threshold=1,
        )  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            export(other, tmp_path / "more", formats=("tars",))
    broken = write_scores(tmp_path / "line", [rows_of([2.0], ["a\nb"])], CLASSES, threshold=1)
    with pytest.raises(InvalidInputError, match="line break"):
        export(broken, tmp_path / "more", formats=("txt",))


def test_groups_are_a_column_and_a_choice(job_of_kinds, tmp_path):
    at = job_of_kinds.folder / "scores"
    found = groups(at, out=tmp_path / "g.parquet")
    one = found.groups[0]
    file = str(tmp_path / "g.parquet")
    summary = export(at, tmp_path / "lists", Choice(groups=(one.name,), groups_file=file))
    assert summary.dropped == one.images
    written = lists(tmp_path / "lists")
    assert {row["group"] for row in written["drop"]} == {one.name}
    grouped = {w["key"]: w["group"] for w in pq.read_table(file).to_pylist()}
    assert {r["key"]: r["group"] for r in written["keep"] if r["group"]} == {
        key: name for key, name in grouped.items() if name != one.name
    }
    assert export(at, tmp_path / "all", Choice(groups_file=file)).dropped == found.flagged
    scores = [row["anomaly_score"] for row in written["drop"]]
    middle = sorted(scores)[len(scores) // 2]
    both = Choice(threshold=middle, groups=(one.name,), groups_file=file)
    assert 0 < export(at, tmp_path / "both", both).dropped == sum(s >= middle for s in scores)
    with pytest.raises(InvalidInputError, match="has no group 'nothing'"):
        export(at, tmp_path / "no", Choice(groups=("nothing",), groups_file=file))
    with pytest.raises(InvalidInputError, match="made by 'bliss-index groups"):
        Choice(groups=("a",))


@pytest.fixture
def photos(tmp_path):
    """A folder of files, half of which are dropped, and its scores."""
    folder = tmp_path / "photos"
    names = [f"{n % 3}/photo {n}.png" for n in range(12)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    values = [n % 2 for n in range(11)] + [None]
    write_scores(tmp_path / "scores", [rows_of(values, names)], CLASSES, threshold=0.5)
    return tmp_path / "scores", folder


def content(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*") if p.is_file() and p.name != files_module.JOURNAL
    }  # fmt: skip


@pytest.mark.parametrize("action", ["copy", "link", "move"])
def test_files_arrive_and_nothing_is_lost(photos, tmp_path, action):
    scores, folder = photos
    before = content(folder)
    dry = transfer_files(scores, folder, tmp_path / "out", action, dry_run=True)
    assert dry.done == 5 and not (tmp_path / "out").exists() and content(folder) == before
    for _ in range(2):  # the second finds all done
        found = transfer_files(scores, folder, tmp_path / "out", action)
        assert (found.done, found.missing) == (5, 0)
        arrived = content(tmp_path / "out")
        dropped = {k for k, v in before.items() if int(k[8:-4]) % 2 and k != "2/photo 11.png"}
        assert arrived == {key: before[key] for key in dropped}
        rest = before if action != "move" else {k: v for k, v in before.items() if k not in dropped}
        assert content(folder) == rest
    if action == "move":
        assert undo_moves(tmp_path / "out", dry_run=True).done == 5 and content(folder) == rest
        assert undo_moves(tmp_path / "out").done == 5
        assert content(folder) == before and content(tmp_path / "out") == {}
    with pytest.raises(InvalidInputError, match="nothing was moved there"):
        undo_moves(tmp_path / "out")


@pytest.mark.parametrize("step", range(14))
def test_a_move_that_dies_can_go_on_or_back(photos, tmp_path, monkeypatch, step):
    scores, folder = photos
    before = content(folder)
    calls = iter(range(100))

    def dying(function):
        def call(*arguments, **more):
            if next(calls) == step:
                raise KeyboardInterrupt
            return function(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", dying(os.link))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            transfer_files(scores, folder, tmp_path / "out", "move")
            died = False
        except KeyboardInterrupt:
            died = True
    assert died or step > 10
    assert {**content(folder), **content(tmp_path / "out")} == before
    if step % 2:
        assert transfer_files(scores, folder, tmp_path / "out", "move").done == 5
        assert len(content(folder)) == 7 and len(content(tmp_path / "out")) == 5
    if (tmp_path / "out" / files_module.JOURNAL).exists():
        undo_moves(tmp_path / "out")
    assert content(folder) == before and content(tmp_path / "out") == {}


_KILLED = """
import os, signal, sys
from bliss_index.export import files
link, left = os.link, [int(sys.argv[4])]
def killing(*a, **m):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return link(*a, **m)
files.os.link = killing
files.transfer_files(*sys.argv[1:4], "move")
"""


def test_a_killed_move_is_undone_from_the_command_line(photos, tmp_path):
    scores, folder = photos
    before, out = content(folder), tmp_path / "out"
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, scores, folder, out, "4"], timeout=60, check=False
    )
    assert killed.returncode == -9
    assert content(out) and len(content(folder)) > 7
    run("export", "--undo", out)
    assert content(folder) == before and content(out) == {}


def test_nothing_is_replaced(photos, tmp_path):
    scores, folder = photos
    before, out = content(folder), tmp_path / "out"
    (out / "1").mkdir(parents=True)
    (out / "1" / "photo 1.png").write_bytes(b"mine")
    for action in ("copy", "link", "move"):
        with pytest.raises(OutputError, match="other files in the place of 1: 1/photo 1.png"):
            transfer_files(scores, folder, out, action)
    assert content(folder) == before and content(out) == {"1/photo 1.png": b"mine"}
    (out / "1" / "photo 1.png").unlink()
    transfer_files(scores, folder, out, "move")
    (folder / "1" / "photo 1.png").write_bytes(b"new")
    with pytest.raises(OutputError, match="are others now: 1/photo 1.png"):
        undo_moves(out)
    assert content(folder)["1/photo 1.png"] == b"new" and len(content(out)) == 5


def test_a_file_that_comes_into_being_meanwhile_stops_a_move(photos, tmp_path, monkeypatch):
    scores, folder = photos
    before, out = content(folder), tmp_path / "out"
    (out / "1").mkdir(parents=True)
    (out / "1" / "photo 1.png").write_bytes(b"mine")
    monkeypatch.setattr(files_module, "_check_places", lambda *arguments: None)
    with pytest.raises(OutputError, match="came into being meanwhile"):
        transfer_files(scores, folder, out, "move")
    assert content(out)["1/photo 1.png"] == b"mine"
    assert content(folder)["1/photo 1.png"] == before["1/photo 1.png"]


def test_missing_files_links_and_keys_that_lead_out(photos, tmp_path):
    scores, folder = photos
    (folder / "1/photo 1.png").unlink()
    found = transfer_files(scores, folder, tmp_path / "out", "copy")
    assert (found.done, found.first_missing) == (4, ("1/photo 1.png",))
    (folder / "1/photo 1.png").symlink_to("photo 4.png")
    with pytest.raises(InvalidInputError, match="1 files are links"):
        transfer_files(scores, folder, tmp_path / "moved", "move")
    assert not (tmp_path / "moved").exists()
    for name, message in (
        ("../secret", "not the path"), ("/etc/passwd", "not the path"), ("up/x", "through a link"),
        ("a\0b", "not the path"), (files_module.JOURNAL, "as the journal"),
    ):  # fmt: skip
        (tmp_path / "secret").write_bytes(b"")
        if not (folder / "up").is_symlink():
            (folder / "up").symlink_to(tmp_path)
        at = write_scores(tmp_path / f"s{abs(hash(name))}", [rows_of([1.0], [name])], CLASSES,
                          threshold=0.5)  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            transfer_files(at, folder, tmp_path / "moved", "move")
    twice = write_scores(
        tmp_path / "twice", [rows_of([1.0, 0.0], ["1/photo 4.png"] * 2)], CLASSES, threshold=0.5
    )
    with pytest.raises(InvalidInputError, match="that of several rows"):
        transfer_files(twice, folder, tmp_path / "moved", "move")
    with pytest.raises(InvalidInputError, match="is or holds"):
        transfer_files(scores, folder, folder, "move")


def test_a_damaged_journal_moves_nothing(photos, tmp_path):
    scores, folder = photos
    transfer_files(scores, folder, tmp_path / "out", "move")
    journal = tmp_path / "out" / files_module.JOURNAL
    lines = journal.read_text().splitlines()
    for damaged in (lines[:-1], [lines[0], '"../../x"', *lines[2:]], ["{}"], ["x"]):
        journal.write_text("\n".join(damaged) + "\n")
        with pytest.raises((CorruptStoreError, InvalidInputError)):
            undo_moves(tmp_path / "out")
    assert len(content(tmp_path / "out")) == 5


def test_the_command(photos, tmp_path):
    scores, folder = photos
    call = partial(CliRunner(env={"COLUMNS": "200"}).invoke, app)

    def ok(*arguments):
        done = call(["export", *map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.stdout

    counts = json.loads(ok(scores, "--out", tmp_path / "lists", "--format", "txt", "--json"))
    assert (counts["kept"], counts["dropped"], counts["unscored"]) == (6, 5, 1)
    to_out = ["--move", tmp_path / "out", "--images", folder]
    assert "would be moved  5 files" in ok(scores, *to_out, "--dry-run")
    assert not (tmp_path / "out").exists()
    assert f"bliss-index export --undo {tmp_path / 'out'}" in ok(scores, "--top", "2", *to_out)
    assert "moved back" in ok("--undo", tmp_path / "out")
    for arguments in (["--undo", "x", "--out", "y"], [scores], [scores, "--move", "x"],
                      [scores, "--out", "y", "--format", "xls"]):  # fmt: skip
        assert call(["export", *map(str, arguments)]).exit_code == 2


def test_what_was_judged_is_kept_or_dropped_as_it_was_judged(tmp_path):
    names = [f"{n}.png" for n in range(9)]
    values = [9, 9, 9, 9, 0, 0, 0, 0, None]
    rows = rows_of(values, names)
    scores = write_scores(tmp_path / "s", [rows[:4], rows[4:]], CLASSES, threshold=5)
    say = {"ann": {"belongs": [0, 2, 4], "does_not_belong": [3, 5, 8], "skip": [6]},
           "ben": {"does_not_belong": [2]}}  # fmt: skip
    for person, verdicts in say.items():
        with JudgementLog(tmp_path / "logs", person) as log:
            for verdict, numbers in verdicts.items():
                log.judge(verdict, [names[n] for n in numbers])
    logs = str(tmp_path / "logs")
    expected = {0: "keep", 1: "drop", 2: "drop", 3: "drop", 4: "keep", 5: "drop", 6: "keep",
                7: "keep", 8: "drop"}  # fmt: skip
    found = export(scores, tmp_path / "lists", Choice(judgements=logs))
    assert (found.kept, found.dropped, found.unscored) == (4, 5, 0)
    assert (found.judged, found.disputed) == (5, 1)
    listed = {row["key"]: row for rows in lists(tmp_path / "lists").values() for row in rows}
    assert {n: listed[name]["decision"] for n, name in enumerate(names)} == expected
    assert [listed[name]["judgement"] or "" for name in names] == [
        "belongs", "", "disputed", "does_not_belong", "belongs", "does_not_belong", "skip", "",
        "does_not_belong",
    ]  # fmt: skip
    assert listed["3.png"]["reasons"].startswith("judged not to belong; entry +0.250")
    assert listed["8.png"]["reasons"] == "judged not to belong; no score"
    only = export(scores, tmp_path / "only", Choice(top=0, judgements=logs))
    assert (only.kept, only.dropped) == (6, 3)  # three were judged not to belong
    flagless = write_scores(tmp_path / "f", [rows], CLASSES)
    assert export(flagless, tmp_path / "f2", Choice(judgements=logs)).dropped == 3
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(name.encode())
    out, _ = run("export", scores, "--judgements", logs, "--top", "0", "--move", tmp_path / "away",
                 "--images", folder)  # fmt: skip
    assert "as judged        5" in out and "disputed         1" in out
    assert sorted(content(tmp_path / "away")) == ["3.png", "5.png", "8.png"]
    _, err = run("export", scores, "--judgements", tmp_path, "--out", tmp_path / "x", code=1)
    assert "holds no judgements" in err and not (tmp_path / "x").exists()


def test_a_judgement_is_of_the_first_row_with_its_key(tmp_path, monkeypatch):
    scores = write_scores(tmp_path / "s", [rows_of([0, None], ["a", "a"])], CLASSES, threshold=5)
    with JudgementLog(tmp_path / "logs", "ann") as log:
        log.judge("does_not_belong", ["a"])
    monkeypatch.setattr(
        choice_module, "DUPLICATE_KEY", "zero_embedding"
    )  # the status written there
    found = export(scores, tmp_path / "lists", Choice(judgements=str(tmp_path / "logs")))
    assert (found.dropped, found.unscored, found.judged) == (1, 1, 1)


def test_equal_scores_are_dropped_in_row_order(tmp_path):
    scores = write_scores(tmp_path / "s", [rows_of([1, 3, 3, 3, None])], CLASSES)
    export(scores, tmp_path / "lists", Choice(top=2), formats=("txt",))
    assert (tmp_path / "lists" / "drop.txt").read_text() == "001.png\n002.png\n"


@pytest.mark.filterwarnings("ignore")  # the server's own
def test_lists_in_an_object_store_are_those_on_a_disk(tmp_path, monkeypatch):
    pytest.importorskip("obstore")
    pytest.importorskip("moto.server")
    keys = [f"{n // 2}.tar/{n}" for n in range(8)]
    scores = [2.0, 0.1, None, 1.5, 0.2, 3.0, 0.3, 0.4]
    write_scores(tmp_path / "s", [rows_of(scores, keys)], CLASSES, threshold=1)
    every = ("csv", "parquet", "txt", "tars", "metadata")
    options = [word for one in every for word in ("--format", one)]
    with s3_server() as (environment, bucket):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))
        upload(tmp_path / "s", f"{bucket}/scores")
        there = f"{bucket}/lists/a"
        there_directory, asked = open_directory(there), ["export", f"{bucket}/scores"]
        run(*asked, "--out", there, *options, "--dry-run")
        assert there_directory.everything() == []
        for _ in range(2):  # the second replaces the first
            printed = json.loads(run(*asked, "--out", there, *options, "--json")[0])
        found = export(tmp_path / "s", tmp_path / "lists", formats=every)
        assert (printed["kept"], printed["dropped"], printed["unscored"]) == (4, 3, 1)
        local = [name.relative_to(tmp_path / "lists").as_posix()
                 for name in (tmp_path / "lists").rglob("*") if name.is_file()]  # fmt: skip
        assert len(local) > 12
        for name in set(local) - {"export.json"}:
            assert there_directory.read(name) == (tmp_path / "lists" / name).read_bytes(), name
        expected = [name.replace(str(tmp_path / "lists"), there) for name in found.files]
        assert json.loads(there_directory.read("export.json"))["files"] == expected
        assert printed["files"] == expected
        with pytest.raises(OutputError, match="cannot write s3://none/lists.*another output"):
            export(tmp_path / "s", "s3://none/lists")
        broken = rows_of([2.0, 1.5], ["a", "line\nbreak"])
        write_scores(tmp_path / "b", [broken], CLASSES, threshold=1)
        with pytest.raises(InvalidInputError, match="has a line break"):
            export(tmp_path / "b", f"{bucket}/none", formats=("txt",))
        assert open_directory(f"{bucket}/none").everything() == []  # whole lists or none


@pytest.mark.parametrize("option", ["--copy", "--link", "--move", "--images", "--undo"])
def test_files_are_not_brought_into_an_object_store(tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    given = (
        ["--images", "s3://b/x", "--copy", "mine"] if option == "--images" else [option, "s3://b/x"]
    )
    scores = [] if option == "--undo" else ["scores"]
    said = " ".join(run("export", *scores, *given, code=2)[1].replace("│", " ").split())
    assert option in said and "s3://b/x is an address" in said and "--out takes addresses" in said
    write_scores(tmp_path / "s", [rows_of([2.0])], CLASSES, threshold=1)
    (tmp_path / "images").mkdir()
    for images, target in (("s3://b/x", "mine"), ("images", "s3://b/x")):
        with pytest.raises(InvalidInputError, match="s3://b/x is an address.*with export"):
            transfer_files(tmp_path / "s", images, target, FileAction.COPY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "s"]
