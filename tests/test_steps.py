"""The steps as functions: they do what the commands do, and the notebook runs."""

from __future__ import annotations

import ast
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bulk_fixtures import MODEL, write_text
from typer.testing import CliRunner

import bliss_index
from bliss_index.calibration import Calibration
from bliss_index.cli.app import app
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.scoring import ScoresDirectory
from bliss_index.store import EmbeddingStore, StoreWriter

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_look.ipynb"


def call(*arguments, code=0):
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


@pytest.fixture(scope="module")
def in_folders(job_of_kinds, tmp_path_factory):
    """The images of the job again, under keys with folders; and a store of three classes."""
    folder = tmp_path_factory.mktemp("steps")
    store = EmbeddingStore.open(job_of_kinds.images)
    names = ["cat", "dog", "cow"]
    calibration = Calibration.load(job_of_kinds.calibration)
    with StoreWriter(folder / "classes", kind="text", model=MODEL, dim=store.dim) as writer:
        writer.append(names, calibration.class_embeddings.astype(np.float32), texts=names)
    rows = store.embeddings()[np.array([s == "ok" for shard in store.iter_shards()
                                        for s in shard.status])]  # fmt: skip
    scores = ScoresDirectory.open(job_of_kinds.folder / "scores").table()
    kept = [row for row in scores.to_pylist() if row["status"] == "ok"]
    keys = [
        f"{'bicycle' if one['flag'] else one['nearest_class']}/{i}" for i, one in enumerate(kept)
    ]
    with StoreWriter(folder / "images", kind="image", model=MODEL, dim=store.dim) as writer:
        writer.append(keys, rows)
    return folder, keys


def test_functions_are_the_commands(job_of_kinds, in_folders, tmp_path):
    folder, keys = in_folders
    names = [("cat", "dog", "cow")[row % 3] for row in range(len(keys))]
    labels = tmp_path / "labels.csv"
    rows = (f"{key},{name}\n" for key, name in zip(keys, names, strict=True))
    labels.write_text("key,label\n" + "".join(rows))
    given = ["--labels", labels, "--classes", folder / "classes", "--shrinkage", "10"]
    call("calibrate", folder / "images", *given, "--out", tmp_path / "theirs")
    made = bliss_index.calibrate(
        folder / "images", tmp_path / "mine", labels=labels, classes=folder / "classes",
        shrinkage=10,
    )  # fmt: skip
    hashes = [Calibration.load(tmp_path / name).content_hash for name in ("mine", "theirs")]
    assert hashes[0] == hashes[1] == made.calibration.content_hash

    more = {"k": 5, "threshold": 3.5, "explain": True}
    done = bliss_index.score(
        folder / "images", tmp_path / "scores", corpus=job_of_kinds.corpus,
        calibration=job_of_kinds.calibration, devices="cpu", **more,
    )  # fmt: skip
    assert done.complete and done.rows == len(keys)
    table = bliss_index.read_scores(tmp_path / "scores")
    assert table.column("key").to_pylist() == keys
    assert bliss_index.read_scores(tmp_path / "scores", ["flag"]).column_names == ["flag"]

    found = bliss_index.evaluate(tmp_path / "scores", "folders", resamples=0)
    flagged = sum(key.startswith("bicycle/") for key in keys)
    assert (found.anomalies, found.normal) == (flagged, len(keys) - flagged)
    assert found.auroc == 1.0  # the folders were made of the flags
    printed = call("evaluate", tmp_path / "scores", "--labels", "folders", "--resamples", "0",
                   "--json").stdout  # fmt: skip
    assert json.loads(printed)["auroc"] == 1.0
    assert bliss_index.groups(tmp_path / "scores").flagged == flagged


def test_score_says_how_many_are_flagged(job_of_kinds, tmp_path):
    common = ["score", job_of_kinds.images, "--corpus", job_of_kinds.corpus, "--calibration",
              job_of_kinds.calibration, "-k", "5", "--devices", "cpu", "--out"]  # fmt: skip
    again = call(*common, tmp_path / "s", "--threshold", "3.5", code=3)
    flagged = ScoresDirectory.open(job_of_kinds.folder / "scores").flagged
    assert f"flagged   {flagged} of 88 (" in again.stdout
    printed = call(*common, tmp_path / "s", "--threshold", "3.5", "--json", code=3)
    assert json.loads(printed.stdout)["flagged"] == flagged
    plain = call(*common, tmp_path / "p", "--json", code=3)
    assert json.loads(plain.stdout)["flagged"] is None


def test_folders_that_are_no_classes_are_refused(job_of_kinds, in_folders):
    with pytest.raises(InvalidInputError, match="no key has a folder; give a file of labels"):
        bliss_index.evaluate(job_of_kinds.folder / "scores", "folders")


def test_what_holds_no_scores(tmp_path):
    write_text(tmp_path / "corpus", np.eye(16, dtype=np.float32))
    with pytest.raises(StoreError, match="is not a scores directory"):
        bliss_index.read_scores(tmp_path / "corpus")


def test_version_help_and_completion():
    assert call("--version").stdout == f"bliss-index {bliss_index.__version__}\n"
    for arguments in (["-h"], ["score", "-h"], ["export", "-h"]):
        assert "Usage: " in call(*arguments).stdout
    assert "--install-completion" in call("--help").stdout


def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("jinja2")
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.mkdtemp", partial(str, tmp_path / "work"))
    (tmp_path / "work").mkdir()
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    shown, names = [], {}
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"] and cell["execution_count"] is None
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names))
    predicted, explained, figure, table, groups, scores, report = shown
    anomalies = [kind not in ("cat", "castle") for kind in names["kinds"]]
    assert (predicted == -1).tolist() == anomalies == table["flag"]
    assert "bicycle" in explained._repr_html_() and figure.axes
    assert sum(images for _, images in groups) == sum(filter(None, scores["flag"]))
    assert {"bicycle"} <= {name for name, _ in groups} and Path(report).is_file()
