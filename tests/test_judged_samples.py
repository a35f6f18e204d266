"""Judged random samples feed thresholds and metrics; what was looked at for its score does not."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

if not all(map(find_spec, ("duckdb", "jinja2", "matplotlib", "PIL"))):
    pytest.skip("the extras 'review' and 'report' are not installed", allow_module_level=True)

from command import run
from review_fixtures import make_with_copies

from bliss_index.calibration import Calibration
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.review.inputs import ReviewInputs
from bliss_index.review.judgement_log import BELONGS, DOES_NOT_BELONG, SKIP, JudgementLog
from bliss_index.review.sample import judged_sample
from bliss_index.scoring import ScoresDirectory
from bliss_index.scoring.normal_scores import NormalScores
from bliss_index.store import EmbeddingStore


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_with_copies(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def judged(place, tmp_path):
    """A draw of 30 images in order, of which 24 are judged before one that is not."""
    table = ScoresDirectory.open(place / "scores").table(["key", "anomaly_score"]).to_pylist()
    keys = [row["key"] for row in table]
    rng = np.random.default_rng(4)
    rows = rng.permutation([r for r in range(40) if r not in (7, 8)])[:30].tolist()
    verdicts = rng.choice([BELONGS, BELONGS, DOES_NOT_BELONG, SKIP], 30).tolist()
    with JudgementLog(tmp_path / "logs", "ann") as log:
        others = sorted(set(range(40)) - set(rows))
        log.judge(DOES_NOT_BELONG, [keys[row] for row in others])  # not drawn: looked at
        log.draw("scored", 38, [keys[row] for row in rows])
        log.draw("unflagged", 9, [keys[row] for row in others], 1.0)
        for place_, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
            if place_ != 24:
                log.judge(verdict, [keys[row]])
    counted = {
        row: verdict for row, verdict in zip(rows[:24], verdicts[:24], strict=True)
        if row not in (3, 19, 20)  # these calibrated
    }  # fmt: skip
    return tmp_path / "logs", counted, [row["anomaly_score"] for row in table], rows[:24]


def of(counted, verdict):
    return sorted(row for row, said in counted.items() if said == verdict)


def test_the_sample_is_what_was_drawn_and_judged_in_order(place, judged):
    logs, counted, _, drawn = judged
    found = judged_sample(place / "scores", logs, place / "normal")
    assert found.normal.tolist() == of(counted, BELONGS) and found.normal.size > 5
    assert found.anomalies.tolist() == of(counted, DOES_NOT_BELONG) and found.anomalies.size > 2
    assert found.undecided == len(of(counted, SKIP))
    assert found.calibrated == 24 - len(counted) == len({3, 19, 20} & set(drawn)) > 0


def test_evaluate_takes_the_sample(place, judged):
    logs, counted, scores, _ = judged
    out, err = run("evaluate", place / "scores", "--judgements", logs, "--normal", place / "normal",
                   "--resamples", "0", "--json")  # fmt: skip
    metrics = json.loads(out)
    normal, bad = ([scores[row] for row in of(counted, v)] for v in (BELONGS, DOES_NOT_BELONG))
    pairs = [(a > b) + 0.5 * (a == b) for a in bad for b in normal]
    assert metrics["auroc"] == pytest.approx(np.mean(pairs))
    assert (metrics["normal"], metrics["anomalies"]) == (len(normal), len(bad))
    assert re.search(r"\d undecided images, \d that calibrated and 0 without a score", err)
    for arguments in (["--labels", "x.csv"], ["--protocol", "one-class"]):
        run("evaluate", place / "scores", "--judgements", logs, *arguments, code=2)


def test_threshold_takes_the_sample(place, judged, tmp_path):
    logs, counted, scores, _ = judged
    command = ["threshold", place / "normal", "--calibration", place / "calibration", "--corpus",
               place / "corpus", "--scores", place / "scores", "--judgements", logs]  # fmt: skip
    run(*command, "--k", "4", "--out", tmp_path / "n.parquet")
    found = NormalScores.read(tmp_path / "n.parquet")
    assert found.scores.tolist() == [scores[row] for row in of(counted, BELONGS)]
    found.require(ReviewInputs.open(place / "scores").identity, "x")
    _, err = run(*command, "--k", "5", "--out", tmp_path / "x.parquet", code=1)
    assert "was made with k 4, this job has 5" in err and not (tmp_path / "x.parquet").exists()
    run(*command[:-2], "--out", tmp_path / "x.parquet", code=2)
    score = ["score", place / "images", "--calibration", place / "calibration", "--corpus",
             place / "corpus", "--k", "4", "--out", tmp_path / "s"]  # fmt: skip
    run(*score, "--normal-scores", tmp_path / "n.parquet", "--false-alarm-rate", "0.2", code=3)


def test_without_a_sample_or_calibration_nothing_is_taken(place, judged, tmp_path):
    logs, *_ = judged
    with JudgementLog(tmp_path / "top", "ann") as log:
        log.judge(BELONGS, ["a"])
        log.draw("unflagged", 9, ["a"], 1.0)
    with pytest.raises(InvalidInputError, match="no random sample of all images"):
        judged_sample(place / "scores", tmp_path / "top", place / "normal")
    with pytest.raises(StoreError, match="which images calibrated .* is not known"):
        judged_sample(place / "scores", logs)
    with pytest.raises(StoreError, match="give the store that calibrated"):
        judged_sample(place / "scores", logs, place / "images")
    with JudgementLog(tmp_path / "few", "ann") as log:
        keys = ScoresDirectory.open(place / "scores").table(["key"]).column("key").to_pylist()
        log.draw("scored", 38, [keys[3]])
        log.judge(BELONGS, [keys[3]])
    few = judged_sample(place / "scores", tmp_path / "few", place / "normal")
    with pytest.raises(InvalidInputError, match="1 that calibrated"):
        few.normal_scores()


def test_images_that_calibrated_themselves_never_count(place, tmp_path):
    """Of a screen without known images all did."""
    own = tmp_path / "own"
    shutil.copytree(place, own)
    shutil.rmtree(own / "calibration")
    before = Calibration.load(place / "calibration")
    Calibration(
        before.classes, before.class_embeddings, before.moments, before.model,
        {"images": EmbeddingStore.open(own / "images").content_hash},
    ).save(own / "calibration")  # fmt: skip
    job = json.loads((own / "scores" / "_job.json").read_text())
    job["facts"].update(images=str(own / "images"), calibration=str(own / "calibration"))
    (own / "scores" / "_job.json").write_text(json.dumps(job))
    inputs = ReviewInputs.open(own / "scores")
    assert inputs.identical.calibrated.tolist() == [r for r in range(40) if r not in (7, 8)]
