"""``verify`` of scores whose input has moved, gone, or is not what was scored."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from bulk_fixtures import scored, shard
from command import run

from bliss_index.errors import InvalidInputError
from bliss_index.report.verification import verify_directory
from bliss_index.scoring import run_job, verify_scores
from bliss_index.store import EmbeddingStore


@pytest.fixture(params=["store", "arrays"])
def moved(job, tmp_path, request):
    """Scores, where their input was, and where it is now."""
    before, now = tmp_path / "images", tmp_path / "archive" / "images"
    if request.param == "store":
        shutil.copytree(job.images, before)
    else:
        before.mkdir()
        rows = EmbeddingStore.open(job.images).embeddings()
        np.save(before / "a.npy", rows[:100])
        np.save(before / "b.npy", rows[100:])
    run_job(before, tmp_path / "s", job.settings())
    now.parent.mkdir()
    before.rename(now)
    return tmp_path / "s", before, now


def test_whole_scores_without_their_input_are_well(moved):
    scores, before, _ = moved
    report = verify_scores(scores)
    assert (report.ok, report.problems, report.rows) == (True, [], 300)
    (line,) = report.unchecked
    assert line == (
        f"the input is not at {before} any more: its hashes and the keys in their order were not "
        "compared; --images names its new place"
    )
    assert report.to_json()["unchecked"] == [line]


def test_the_scores_themselves_are_checked_all_the_same(moved):
    scores, _, _ = moved
    output = scored(scores, 1)
    content = bytearray(output.read_bytes())
    content[len(content) // 2] ^= 1
    output.write_bytes(content)
    report = verify_scores(scores)
    assert not report.ok
    assert "altered; remove it and run the job again" in report.problems[0]


def test_the_new_place_is_compared_in_full(moved):
    scores, before, now = moved
    report = verify_scores(scores, images=now)
    assert (report.ok, report.problems, report.unchecked) == (True, [], [])
    first = sorted(p for p in now.iterdir() if p.suffix in (".arrow", ".npy"))[0]
    content = bytearray(first.read_bytes())
    content[-600] ^= 1
    first.write_bytes(content)
    report = verify_scores(scores, images=now)
    assert len(report.problems) == 1
    assert f"part {first.name}" in report.problems[0]
    report = verify_scores(scores, images=before)  # named, and not there
    assert not report.ok
    assert report.problems[0].startswith("the input cannot be read, hashes and keys were not")
    assert str(before) in report.problems[0]
    assert report.unchecked == []


def test_another_input_is_refused_with_the_first_difference(moved, job, tmp_path):
    scores, _, _ = moved
    np.save(tmp_path / "c.npy", EmbeddingStore.open(job.images).embeddings()[:40])
    (problem,) = verify_scores(scores, images=tmp_path / "c.npy").problems
    assert problem.startswith(f"{tmp_path / 'c.npy'} is not what was scored: ")
    assert problem.endswith(" was scored, c.npy with 40 rows is there")


def test_a_part_that_is_missing_is_a_problem_of_the_input(moved):
    """The input is there, but not as it was: that is told, whatever the scores are."""
    scores, before, now = moved
    now.rename(before)
    ((before / "b.npy") if (before / "b.npy").exists() else shard(before, 1)).unlink()
    report = verify_scores(scores)
    assert not report.ok
    assert report.unchecked == []


def test_an_input_by_uri_is_contacted_only_where_it_is_named(job, tmp_path):
    """What a file names is not opened: a directory of somebody else's may name any address."""
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://moved/rows.npy", "wb") as file:
        np.save(file, EmbeddingStore.open(job.images).embeddings())
    run_job("memory://moved/rows.npy", tmp_path / "s", job.settings())
    (line,) = verify_scores(tmp_path / "s").unchecked
    assert "the input is at memory://moved/rows.npy" in line
    assert "is not contacted" in line
    report = verify_scores(tmp_path / "s", images="memory://moved/rows.npy")
    assert (report.ok, report.unchecked) == (True, [])
    files = fsspec.filesystem("memory")
    files.mv("moved/rows.npy", "elsewhere/rows.npy")
    report = verify_scores(tmp_path / "s", images="memory://elsewhere/rows.npy")
    assert (report.ok, report.unchecked) == (True, [])


@pytest.mark.parametrize("address", ["reference::", "http://127.0.0.1:9/x", "s3://bucket/x"])
def test_no_address_of_a_foreign_directory_is_contacted(job, tmp_path, monkeypatch, address):
    run_job(job.images, tmp_path / "s", job.settings())
    description = tmp_path / "s" / "_job.json"
    values = json.loads(description.read_text())
    values["facts"].update(images=address, corpus=address, calibration=address)
    description.write_text(json.dumps(values))

    def contacted(*values, **more):
        raise AssertionError(f"{values} was contacted")

    monkeypatch.setattr("bliss_index.store.source_file.resolve", contacted)
    monkeypatch.setattr("socket.socket.connect", contacted)
    report = verify_scores(tmp_path / "s")
    assert report.ok
    assert len(report.unchecked) == 1


def test_the_command(moved):
    scores, before, now = moved

    out, err = run("verify", scores)
    assert "all is well, as far as it could be checked" in out
    assert f"not checked: the input is not at {before} any more" in err
    out, _ = run("verify", scores, "--json")
    assert len(json.loads(out)["unchecked"]) == 1
    out, err = run("verify", scores, "--images", now)
    assert "checked" not in out + err
    _, err = run("verify", scores, "--images", before, code=1)
    assert "problem: the input cannot be read" in err


def test_images_belong_to_scores(job):
    with pytest.raises(InvalidInputError, match=r"names the input of scores, .*corpus is a store"):
        verify_directory(job.corpus, images=job.images)
    with pytest.raises(InvalidInputError, match=r"names the input of scores, .* a calibration"):
        verify_directory(job.calibration, images=job.images)
