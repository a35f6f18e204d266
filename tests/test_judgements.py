"""Logs of judgements: nothing that counted is lost, nothing damaged counts, people merge."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bliss_index.errors import (
    BlissError,
    CorruptStoreError,
    InvalidInputError,
    OutputError,
    StoreError,
)
from bliss_index.review import judgement_log
from bliss_index.review.judgement_log import (
    BELONGS,
    DOES_NOT_BELONG,
    SKIP,
    VERDICTS,
    JudgementLog,
    PersonalLog,
    read_log,
)
from bliss_index.review.judgements import DISPUTED, Judgements

HOSTILE = "<script>\u202e\n\x00é\udcff".encode("utf-8", "replace").decode()


def named(log: PersonalLog) -> dict[str, str]:
    return {key: VERDICTS[code] for key, code in log.verdicts.items()}


@pytest.mark.parametrize("lines", [10_000, 2])
def test_any_history_of_verdicts_and_undos_is_read_back(tmp_path, monkeypatch, lines):
    """Against a stack of whole states, with the log closed and opened at any point."""
    monkeypatch.setattr(judgement_log, "_KEYS_PER_LINE", lines)
    rng = np.random.default_rng(3)
    keys = [HOSTILE, *(f"{n}.png" for n in range(9))]
    states: list[dict[str, str]] = [{}]
    log = None
    for _ in range(120):
        if log is None or rng.random() < 0.1:
            if log is not None:
                log.__exit__()
            log = JudgementLog(tmp_path, "ann")
            log.__enter__()
        if rng.random() < 0.4:
            done = log.undo()
            assert (done is None) == (len(states) == 1)
            if done is not None:
                before = states.pop()
                assert {before[key] for key in done[1]} == {done[0]}
        else:
            chosen = [keys[i] for i in rng.choice(10, rng.integers(1, 10), replace=False)]
            verdict = VERDICTS[rng.integers(3)]
            log.judge(verdict, chosen)
            states.append({**states[-1], **dict.fromkeys(chosen, verdict)})
        assert named(log.log) == states[-1]
        assert named(read_log(log.path)) == states[-1]
    while log.undo() is not None:
        states.pop()
    assert named(log.log) == {} and len(states) == 1
    log.__exit__()
    assert Judgements.read(tmp_path).counts == dict.fromkeys((*VERDICTS, DISPUTED), 0)


def test_a_log_torn_at_any_byte_loses_only_what_was_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(judgement_log, "_KEYS_PER_LINE", 2)
    with JudgementLog(tmp_path / "whole", "ann") as log:
        log.judge(BELONGS, ["a", "b"])
        before = log.path.stat().st_size
        log.judge(DOES_NOT_BELONG, ["b", "c", "d"])  # two lines
        whole = log.path.read_bytes()
    for end in range(before, len(whole) - 1):
        folder = tmp_path / "torn"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "ann.jsonl").write_bytes(whole[:end])
        found = read_log(folder / "ann.jsonl")
        assert named(found) == {"a": BELONGS, "b": BELONGS}
        assert bool(found.notes) == (end > before)
        with JudgementLog(folder, "ann") as again:
            again.judge(SKIP, ["c"])
        assert (folder / "ann.jsonl").read_bytes().startswith(whole[:end])  # nothing is rewritten
        found = read_log(folder / "ann.jsonl")
        assert named(found) == {"a": BELONGS, "b": BELONGS, "c": SKIP}
        assert bool(found.notes) == (end > before)
        assert all("never shown as saved" in note for note in found.notes)
    (folder / "ann.jsonl").write_bytes(whole[:-1])  # all but the end of the last line
    with JudgementLog(folder, "ann") as again:
        again.judge(SKIP, ["c"])
    found = read_log(folder / "ann.jsonl")
    verdicts = dict.fromkeys("bd", DOES_NOT_BELONG)
    assert named(found) == {"a": BELONGS, **verdicts, "c": SKIP} and not found.notes


def test_a_process_killed_after_its_answer_has_lost_nothing(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from bliss_index.review.judgement_log import JudgementLog\n"
        "from pathlib import Path\n"
        "with JudgementLog(Path(sys.argv[1]), 'ann') as log:\n"
        "    for n in range(20):\n"
        "        log.judge('belongs', [str(n)])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], timeout=60, check=False)
    assert done.returncode == -9
    with JudgementLog(tmp_path, "ann") as log:  # its lock ended with it
        assert named(log.log) == {str(n): BELONGS for n in range(20)} and not log.log.notes


def test_every_flipped_bit_is_noticed(tmp_path):
    with JudgementLog(tmp_path, "ann") as log:
        log.judge(BELONGS, ["a"])
        log.judge(SKIP, ["b"])
        log.undo()
        path, whole = log.path, log.path.read_bytes()
    rng = np.random.default_rng(0)
    last = whole.rindex(b"\n", 0, -1)
    for at in rng.choice(last, 150, replace=False).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(BlissError, match="ann.jsonl"):
            read_log(path)


def test_other_files_are_refused(tmp_path):
    for content, kind in ((b"", CorruptStoreError), (b"x\n", CorruptStoreError)):
        (tmp_path / "ann.jsonl").write_bytes(content)
        with pytest.raises(kind, match="line 1"):
            Judgements.read(tmp_path)
    with JudgementLog(tmp_path / "logs", "ben") as log:
        log.judge(SKIP, ["a"])
    shutil.copy(tmp_path / "logs" / "ben.jsonl", tmp_path / "ann.jsonl")
    with pytest.raises(CorruptStoreError, match="it is the log of 'ben'"):
        read_log(tmp_path / "ann.jsonl")
    with pytest.raises(StoreError, match="'bliss-index review'"):
        Judgements.read(tmp_path / "nothing")
    for name in ("", "../x", ".x", "a/b", "x" * 65, "a b"):
        with pytest.raises(InvalidInputError, match="--person ann"):
            JudgementLog(tmp_path, name)


def test_one_process_writes_a_log(tmp_path):
    with (
        JudgementLog(tmp_path, "ann"),
        pytest.raises(OutputError, match="--person NAME"),
        JudgementLog(tmp_path, "ann"),
    ):
        pass
    with JudgementLog(tmp_path, "ann"), JudgementLog(tmp_path, "ben"):
        pass


def test_what_cannot_be_written_does_not_count(tmp_path, monkeypatch):
    with JudgementLog(tmp_path, "ann") as log:
        log.judge(BELONGS, ["a"])
        before = log.path.read_bytes()

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            for act in (lambda: log.judge(SKIP, ["a", "b"]), log.undo,
                        lambda: log.draw("scored", 5, ["a"])):  # fmt: skip
                with pytest.raises(OutputError, match="free some space"):
                    act()
        assert named(log.log) == {"a": BELONGS} and log.path.read_bytes() == before
        log.judge(SKIP, ["a"])
    assert named(read_log(log.path)) == {"a": SKIP} and not read_log(log.path).notes


def test_a_verdict_is_on_disk_before_it_counts(tmp_path, monkeypatch):
    with JudgementLog(tmp_path, "ann") as log:
        seen = []
        monkeypatch.setattr(
            os, "fsync", lambda _: seen.append((log.path.read_bytes(), dict(log.log.verdicts)))
        )
        log.judge(BELONGS, ["a key"])
    ((content, counted),) = seen
    assert b"a key" in content and counted == {}


def test_people_merge_the_same_in_any_order():
    say = {"ann": {"a": 0, "b": 0, "c": 2, "d": 1}, "ben": {"a": 0, "b": 1, "c": 1, "e": 2},
           "cid": {"b": 0, "d": 2, "e": 2}}  # fmt: skip
    expected = {"a": BELONGS, "b": DISPUTED, "c": DOES_NOT_BELONG, "d": DOES_NOT_BELONG, "e": SKIP}
    for order in itertools.permutations(say):
        merged = Judgements.merge(PersonalLog(name, dict(say[name])) for name in order)
        assert merged.verdicts == expected and merged.people == ("ann", "ben", "cid")
    assert merged.counts == {BELONGS: 1, DOES_NOT_BELONG: 2, SKIP: 1, DISPUTED: 1}
    everything = {name: {f"{i}{j}{k}": (i, j, k)[n] for i in range(4) for j in range(4)
                         for k in range(4) if (i, j, k)[n] < 3}
                  for n, name in enumerate(say)}  # fmt: skip
    for key, verdict in Judgements.merge(
        PersonalLog(name, codes) for name, codes in everything.items()
    ).verdicts.items():
        opinions = set(key) - {"3", "2"}
        by_definition = (
            DISPUTED if len(opinions) == 2 else VERDICTS[int(*opinions)] if opinions else SKIP
        )
        assert verdict == by_definition, key


def test_only_images_judged_in_the_order_of_a_draw_are_a_random_sample(tmp_path):
    with JudgementLog(tmp_path, "ann") as log:
        log.judge(DOES_NOT_BELONG, ["top"])
        log.draw("scored", 100, ["c", "top", "a", "b"])
        log.draw("unflagged", 90, ["x", "y"], 1.5)
        log.judge(BELONGS, ["a", "x"])
        assert Judgements.read(tmp_path).random_sample() == {}  # c has no verdict yet
        log.judge(BELONGS, ["c"])
        found = Judgements.read(tmp_path)
        assert found.random_sample() == {"c": BELONGS, "top": DOES_NOT_BELONG, "a": BELONGS}
        log.undo()
        assert Judgements.read(tmp_path).random_sample() == {}
    audit = found.draws[1]
    assert (audit.of, audit.threshold, audit.population, audit.keys) == (
        "unflagged", 1.5, 90, ("x", "y"),
    )  # fmt: skip
    assert found.judged(audit) == (BELONGS,)


def test_a_log_is_lines_of_json(tmp_path):
    with JudgementLog(tmp_path, "ann") as log:
        log.judge(BELONGS, [HOSTILE], {"view": {"group": "table"}})
        log.undo()
    header, verdict, undone = map(json.loads, log.path.read_text().splitlines())
    assert header["person"] == "ann"
    assert verdict["keys"] == [HOSTILE] and verdict["why"] == {"view": {"group": "table"}}
    assert undone["undoes"] == verdict["action"] == 1
