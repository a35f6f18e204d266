"""Tables kept for the next job: the same scores, and never used where they do not fit."""

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bulk_fixtures import MODEL, outputs, write_images, write_text
from command import run

from bliss_index.bench.synthetic import clip_like
from bliss_index.calibration import calibrate
from bliss_index.errors import CorruptStoreError
from bliss_index.report.verification import verify_directory
from bliss_index.scoring import kept_tables
from bliss_index.scoring.kept_tables import keep_tables, read_tables, tables_records
from bliss_index.scoring.native_kernel import score_kernel_available
from bliss_index.scoring.score_settings import ScoreSettings, ScoringInputs
from bliss_index.scoring.tables import ExternalTables
from bliss_index.storage.kept import write_arrays
from bliss_index.store import EmbeddingStore

DIM, CLASSES, ENTRIES = 24, 3, 2000


@pytest.fixture(autouse=True)
def all_are_kept(monkeypatch):
    monkeypatch.setattr(kept_tables, "KEPT_FROM_SECONDS", 0.0)


def make_calibration(path, seed=1, shrinkage=0.0):
    images = clip_like(90, DIM, "image", seed)
    texts = clip_like(CLASSES, DIM, "text", seed)
    made = calibrate(
        [(images, np.arange(90) % CLASSES)], texts, list("abc"), model=MODEL, shrinkage=shrinkage
    )
    made.save(path)


@pytest.fixture(params=[0.0, 10.0], ids=["plain", "shrunken"])
def inputs(tmp_path, request):
    write_text(tmp_path / "corpus", clip_like(ENTRIES, DIM, "text", 2, dtype=np.float16))
    make_calibration(tmp_path / "calibration", shrinkage=request.param)
    settings = ScoreSettings(str(tmp_path / "corpus"), str(tmp_path / "calibration"), 5)
    return ScoringInputs.open(settings)


@pytest.fixture
def images():
    return clip_like(60, DIM, "image", 3)


def reopened(inputs):
    return ScoringInputs.open(inputs.settings)


def folder(inputs) -> Path:
    return Path(inputs.settings.calibration) / "tables"


def same(found, expected):
    for name in ("anomaly", "nearest_class", "internal", "external", "ids", "similarities"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_next_job_computes_what_is_missing(inputs, images):
    scorer = inputs.make_scorer()
    assert len(scorer.tables.kept) == 0
    first = scorer.score(images)
    inputs.keep_tables(scorer)
    (record,) = tables_records(inputs.settings.calibration)
    assert record.rows == scorer.tables.known < ENTRIES
    assert (record.prior is not None) == bool(inputs.calibration.shrinkage)

    later = reopened(inputs).make_scorer()
    assert len(later.tables.kept) == record.rows and not later.tables.kept.flags.writeable
    same(later.score(images), first)
    assert later.tables.known == record.rows and later.tables.seconds == 0
    others = clip_like(500, DIM, "image", 9)
    fresh = inputs.make_scorer()
    fresh.tables = ExternalTables(fresh.search.vocabulary, inputs.calibration)
    same(later.score(others), fresh.score(others))
    assert later.tables.known > record.rows and later.tables.seconds > 0
    every = np.arange(ENTRIES)
    later.tables.require(every)
    fresh.tables.require(every)
    np.testing.assert_array_equal(later.tables.rows(every), fresh.tables.rows(every))


@pytest.mark.parametrize("native", sorted({False, score_kernel_available()}))
def test_contributions_and_scores_by_every_way(inputs, images, native):
    from bliss_index.scoring.scorer import BlissScorer

    def scorer(before):
        search = inputs.make_scorer().search
        return BlissScorer(
            search, search.vocabulary, inputs.calibration, native=native, before=before
        )

    plain = scorer(None)
    plain.score(images[:30])
    keep_tables(plain.tables, inputs.settings.calibration, inputs.calibration, inputs.corpus)
    before = read_tables(inputs.settings.calibration, inputs.calibration, inputs.corpus)
    found, expected = scorer(before), scorer(None)
    same(found.score(images), expected.score(images))
    np.testing.assert_array_equal(
        found.contributions(found.score(images)), expected.contributions(expected.score(images))
    )


def test_what_two_jobs_computed_is_kept_together(inputs):
    one, other = inputs.make_scorer(), inputs.make_scorer()
    one.tables.require(np.arange(0, 600))
    other.tables.require(np.arange(300, 1200))
    inputs.keep_tables(one)
    inputs.keep_tables(other)
    assert one.tables.seconds == 0  # and is not kept again
    rows = read_tables(inputs.settings.calibration, inputs.calibration, inputs.corpus)
    np.testing.assert_array_equal(rows.ids, np.arange(1200))
    whole = inputs.make_scorer().tables
    np.testing.assert_array_equal(whole.rows(np.arange(1200)), rows.rows)
    assert len(list(folder(inputs).glob("*.tables"))) == 1


def test_few_and_many_are_not_kept(inputs, images, monkeypatch):
    scorer = inputs.make_scorer()
    scorer.score(images)
    with monkeypatch.context() as patch:
        patch.setattr(kept_tables, "KEPT_FROM_SECONDS", 60.0)
        inputs.keep_tables(scorer)
    with monkeypatch.context() as patch:
        patch.setattr(kept_tables, "MOST_BYTES", 1000)
        inputs.keep_tables(scorer)
    assert not folder(inputs).exists()


def test_of_another_calibration_or_vocabulary(inputs, images, tmp_path):
    scorer = inputs.make_scorer()
    scorer.score(images)
    inputs.keep_tables(scorer)
    make_calibration(inputs.settings.calibration, seed=7, shrinkage=inputs.calibration.shrinkage)
    again = reopened(inputs)
    later = again.make_scorer()
    assert len(later.tables.kept) == 0
    later.score(images)
    again.keep_tables(later)
    assert sorted(path.suffix for path in folder(inputs).iterdir()) == [".json", ".tables"]
    write_text(tmp_path / "other", clip_like(ENTRIES, DIM, "text", 5, dtype=np.float16))
    other = EmbeddingStore.open(tmp_path / "other")
    assert read_tables(inputs.settings.calibration, again.calibration, other) is None
    assert read_tables(inputs.settings.calibration, again.calibration, inputs.corpus) is not None


def damage(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content) or content)


def flip(content):
    content[len(content) // 2] ^= 4


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("tables", flip),
        ("tables", lambda content: content[:-8]),
        ("tables", None),
        ("json", lambda content: content[:20]),
        ("json", lambda content: content.replace(b'"rows": ', b'"rows": -')),
        ("json", lambda content: content.replace(b'"sha256"', b'"sha1"')),
        ("json", lambda content: re.sub(rb'("file": ")\w+', rb"\g<1>0123456789abcdef", content)),
    ],
    ids=[
        "bit",
        "cut",
        "gone",
        "record cut",
        "record of nonsense",
        "record of other fields",
        "record of another's file",
    ],
)
def test_damage_is_said_and_they_are_made_again(inputs, images, suffix, change, caplog):
    scorer = inputs.make_scorer()
    expected = scorer.score(images)
    inputs.keep_tables(scorer)
    (path,) = folder(inputs).glob(f"*.{suffix}")
    path.unlink() if change is None else damage(path, change)
    if suffix == "json":
        with pytest.raises(CorruptStoreError):
            tables_records(inputs.settings.calibration)
    report = verify_directory(inputs.settings.calibration)
    assert len(report.problems) == 1 and str(path.parent) in report.problems[0]
    with caplog.at_level(logging.WARNING, "bliss_index"):
        again = reopened(inputs).make_scorer()
    assert "computed anew" in caplog.text and len(again.tables.kept) == 0
    same(again.score(images), expected)
    inputs.keep_tables(again)
    assert verify_directory(inputs.settings.calibration).ok
    assert len(reopened(inputs).make_scorer().tables.kept) == again.tables.known


def test_records_of_other_versions_and_programs(inputs, images):
    scorer = inputs.make_scorer()
    scorer.score(images)
    inputs.keep_tables(scorer)
    (path,) = folder(inputs).glob("*.json")
    for change in ({"format_version": 99}, {"computed_by": "someone"}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        assert len(reopened(inputs).make_scorer().tables.kept) == 0
        assert reopened(inputs).calibration.content_hash == inputs.calibration.content_hash


def test_ids_that_cannot_be(inputs, images):
    from bliss_index.scoring.kept_tables import TABLES

    scorer = inputs.make_scorer()
    scorer.score(images)
    inputs.keep_tables(scorer)
    (record,) = tables_records(inputs.settings.calibration)
    rows = np.zeros((3, 2, CLASSES), "<f4")
    facts = {**record.__dict__, "rows": 3}
    del facts["file"], facts["sha256"]

    def write(ids):
        content = [np.array(ids, "<i8"), rows]
        place = inputs.settings.calibration
        TABLES.write(
            place, record.corpus[:16], lambda sink: write_arrays(sink, content), lambda: facts
        )

    for ids in ([0, 5, ENTRIES], [-1, 2, 3], [2, 2, 3]):
        write(ids)
        with pytest.raises(CorruptStoreError, match="ascending"):
            kept_tables._read(inputs.settings.calibration, inputs.calibration, inputs.corpus)
        assert len(reopened(inputs).make_scorer().tables.kept) == 0


def test_jobs_write_and_read_them(inputs, tmp_path):
    write_images(tmp_path / "images", clip_like(900, DIM, "image", 3), 300)
    place = inputs.settings
    score = (
        "score", tmp_path / "images", "--corpus", place.corpus, "--calibration", place.calibration,
        "--explain",
    )  # fmt: skip
    run(*score, "--no-keep-search", "--out", tmp_path / "a")
    assert not folder(inputs).exists()
    run(*score, "--out", tmp_path / "b")
    (first,) = tables_records(place.calibration)
    run(*score, "--out", tmp_path / "c")
    assert tables_records(place.calibration) == [first]
    assert outputs(tmp_path / "a") == outputs(tmp_path / "b") == outputs(tmp_path / "c")
    run("verify", place.calibration)
    run("verify", tmp_path / "c")
    known = {"entries": first.rows, "stale": False}
    stdout, _ = run("info", place.calibration, "--json")
    assert json.loads(stdout)["kept_tables"] == {first.corpus[:16]: known}
    make_calibration(place.calibration, seed=9)
    stdout, _ = run("info", place.calibration, "--json")
    assert json.loads(stdout)["kept_tables"] == {first.corpus[:16]: {**known, "stale": True}}
    make_calibration(place.calibration, shrinkage=inputs.calibration.shrinkage)
    for path in folder(inputs).iterdir():
        path.unlink()
    folder(inputs).rmdir()
    folder(inputs).write_text("in the way")
    run(*score, "--out", tmp_path / "d")  # not kept, which is no error
    assert outputs(tmp_path / "d") == outputs(tmp_path / "a")
    assert folder(inputs).read_text() == "in the way"


def test_two_jobs_that_end_at_once(inputs):
    halves = [inputs.make_scorer() for _ in range(2)]
    for number, scorer in enumerate(halves):
        scorer.tables.require(np.arange(500 * number, 500 * number + 500))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(inputs.keep_tables, halves))
    rows = read_tables(inputs.settings.calibration, inputs.calibration, inputs.corpus)
    np.testing.assert_array_equal(rows.ids, np.arange(1000))
    assert verify_directory(inputs.settings.calibration).ok
