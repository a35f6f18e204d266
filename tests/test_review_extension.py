"""A group that is normal, too: what changes is what the formulas say, and nothing is replaced."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec

import numpy as np
import pytest

if not all(map(find_spec, ("starlette", "uvicorn", "duckdb", "jinja2", "matplotlib", "PIL"))):
    pytest.skip("the extras 'review' and 'report' are not installed", allow_module_level=True)

from review_fixtures import TOKEN, ask, make_run, post

from bliss_index.calibration import Calibration, ClassMoments
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.review.catalogue import Filters
from bliss_index.review.extension import Extension
from bliss_index.review.inputs import ReviewInputs, ReviewOptions
from bliss_index.review.judgement_log import BELONGS, DOES_NOT_BELONG
from bliss_index.review.server import make_app
from bliss_index.review.session import ReviewSession
from bliss_index.scoring import ScoresDirectory
from bliss_index.scoring.normal_scores import NormalScores
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.thresholds import threshold_at
from bliss_index.search import exact_search
from bliss_index.store import EmbeddingStore


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def session(run):
    with ReviewSession(ReviewInputs.open(run), "ann") as made:
        yield made


def tree(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file() and "extended" not in str(path)
    }  # fmt: skip


def tried(session, group, name=None):
    session.propose(group, name or group)
    session._proposal.wait(120)
    return session.proposal()


def test_scores_and_flags_are_those_of_one_class_more(session, run, tmp_path):
    before = tree(run)
    group = session.catalogue.group_names[0]
    grouped = session.inputs.groups
    rows = grouped.rows[grouped.numbers == 0]
    found = tried(session, group)
    assert found["state"] == "done", found["error"]
    assert found["images"] == rows.size and tree(run) == before
    # By the definition: the smaller of the score before, and that of the new class alone.
    photos = EmbeddingStore.open(run / "photos").embeddings()
    corpus = EmbeddingStore.open(tmp_path / "corpus")
    text = corpus.embeddings()[[corpus.texts().index(group)]].astype(np.float64)
    text /= np.linalg.norm(text)
    alone = Calibration((group,), text.astype(np.float32), (ClassMoments.of(photos[rows]),))
    new = BlissScorer(exact_search(corpus.embeddings(), 6), corpus.embeddings(), alone).score(
        photos
    )
    old = ScoresDirectory.open(run / "scores").table().to_pydict()
    after = ScoresDirectory.open(run / "extended-1" / "scores").table().to_pydict()
    expected = np.minimum(old["anomaly_score"], new.anomaly)
    np.testing.assert_allclose(after["anomaly_score"], expected, rtol=2e-5, atol=2e-5)
    nearest = [
        group if added < was else name
        for name, added, was in zip(
            old["nearest_class"], new.anomaly, old["anomaly_score"], strict=True)
    ]  # fmt: skip
    assert after["nearest_class"] == nearest and nearest.count(group) >= rows.size - 1
    held_out = NormalScores.read(run / "extended-1" / "normal-scores.parquet")
    assert held_out.scores.size == 80 + rows.size
    rate = (1 + (NormalScores.read(run / "normal-scores.parquet").scores
                 >= found["threshold"][0]).sum()) / 81  # fmt: skip
    assert rate <= 0.1 and found["threshold"][1] == threshold_at(held_out.scores, rate).value
    was, now = (np.array(table["flag"]) for table in (old, after))
    assert found["flagged"] == (was.sum(), now.sum())
    assert found["no_longer"] == (was & ~now).sum() > 10 and found["newly"] == (now & ~was).sum()
    keys = [one["key"] for one in found["examples"]["no_longer"]]
    gone = np.flatnonzero(was & ~now)
    order = gone[np.argsort(-np.array(old["anomaly_score"])[gone], kind="stable")]
    assert keys == [old["key"][row] for row in order[:12]]
    by_name = {name: (one, other) for name, one, other in found["groups"]}
    assert by_name[group] == (rows.size, now[rows].sum()) and by_name[group][1] < 4
    assert sum(one for one, _ in by_name.values()) == was.sum()


def test_images_judged_not_to_belong_are_left_out_and_counted(session, run):
    group = session.catalogue.group_names[0]
    view = session.make_view(Filters(group=group))
    session.judge(view["view"], [(0, 2)], DOES_NOT_BELONG)
    found = tried(session, group)
    assert found["images"] == view["images"] - 2
    flag = ScoresDirectory.open(run / "extended-1" / "scores").table(["key", "flag"]).to_pylist()
    judged = {row["key"] for row in session.rows(view["view"], 0, 2)}
    assert found["contradicted"] == sum(not r["flag"] for r in flag if r["key"] in judged)


def test_accepted_it_is_a_run_and_the_judgements_go_on(session, run):
    group, other = session.catalogue.group_names[:2]
    view = session.make_view(Filters(group=other))
    session.judge(view["view"], [(0, 3)], BELONGS)
    with pytest.raises(InvalidInputError, match="no class to accept"):
        session.accept()
    tried(session, group)
    assert session.accept()["state"] == "accepted"
    with pytest.raises(InvalidInputError, match="no class to accept"):
        session.accept()
    inputs = ReviewInputs.open(run / "extended-1")
    assert inputs.judgements == run / "judgements" and inputs.images == session.inputs.images
    with ReviewSession(inputs, "ben") as second:
        assert second.inputs.notices == []
        assert second.counts()[BELONGS] == 3 and group not in second.catalogue.group_names
        assert group in {name for name, _ in second.facts()["classes"]}
        normal = ReviewInputs.open(run / "extended-1" / "scores").calibrating
        assert normal.rows == 80 + session.proposal()["images"]
        calibrated = set(inputs.identical.calibrated.tolist())
        assert calibrated == set(session.inputs.groups.rows[session.inputs.groups.numbers == 0])
        done = tried(second, other)
        assert done["state"] == "done" and done["folder"].endswith("extended-1/extended-1")
        second.accept()
    assert ReviewInputs.open(run / "extended-1" / "extended-1").judgements == run / "judgements"


def test_what_was_not_accepted_gives_way(session, run):
    group, other = session.catalogue.group_names[:2]
    Extension.begin(session.inputs, other, np.arange(5))  # killed before it was made
    (run / "extended-1" / "mine.txt").write_text("x")
    (run / "extended-note.txt").write_text("mine")
    (run / "extended-7").mkdir()
    (run / "extended-7" / "mine.txt").write_text("mine")
    found = tried(session, group)
    assert found["folder"] == str(run / "extended-8")
    assert not (run / "extended-1").exists()
    assert (run / "extended-7" / "mine.txt").exists() and (run / "extended-note.txt").exists()
    session.accept()
    assert tried(session, other)["folder"] == str(run / "extended-9")


def test_images_that_calibrated_themselves_leave_their_class(tmp_path):
    run = make_run(tmp_path, own=True)
    with ReviewSession(ReviewInputs.open(run), "ann") as session:
        group = session.catalogue.group_names[0]
        found = tried(session, group)
        assert found["state"] == "done", found["error"]
        grouped = session.inputs.groups
        rows = set(grouped.rows[grouped.numbers == 0].tolist())
        before = Extension(session.inputs, group, np.array(sorted(rows)), tmp_path / "x").known[1]
        others = sum(1 for row, number in enumerate(before.tolist())
                     if number >= 0 and row not in rows)  # fmt: skip
    normal = EmbeddingStore.open(run / "extended-1" / "normal")
    assert normal.rows == others + len(rows) and normal.bad_rows == 0
    made = Calibration.load(run / "extended-1" / "calibration")
    assert made.classes == ("cat", "dog", group) and made.moments[2].count == len(rows)
    assert sum(one.count for one in made.moments) == normal.rows


def test_what_cannot_be_done_is_refused_before_anything_is_made(session, run, tmp_path):
    group = session.catalogue.group_names[0]
    for name, rows, message in (
        ("cat", 5, "is a normal class already"), ("nothing", 5, "is no entry of the vocabulary"),
        (group, 2, "at least 3 images, got 2"),
    ):  # fmt: skip
        with pytest.raises(InvalidInputError, match=message):
            Extension.begin(session.inputs, name, np.arange(rows))
    alone = ReviewInputs.open(
        run / "scores", ReviewOptions(normal_scores=str(run / "normal-scores.parquet"))
    )
    object.__setattr__(alone, "run", None)
    with pytest.raises(InvalidInputError, match="not part of a run"):
        Extension.begin(alone, group, np.arange(5))
    (run / "normal").rename(run / "elsewhere")
    with pytest.raises(StoreError, match="images that calibrated are missing"):
        Extension.begin(ReviewInputs.open(run), group, np.arange(5))
    assert not list(run.glob("extended-*"))
    app = make_app(session, TOKEN)
    assert post(app, "/propose", {"group": "x", "name": "y"})[0] == 400
    assert post(app, "/accept", {})[0] == 400 and ask(app, "/proposal")[2]["state"] == "none"
