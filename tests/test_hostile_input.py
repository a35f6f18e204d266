"""What a hostile but fair person types: one clear error each, nothing lost, nothing begun."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from bulk_fixtures import make_job, shard, write_images

from bliss_index.cli.app import app
from bliss_index.errors import EncoderError, InvalidInputError, MissingDependencyError
from bliss_index.evaluation.from_scores import evaluate_directory
from bliss_index.evaluation.metrics import evaluate_scores
from bliss_index.report.explanation import explain_image
from bliss_index.scoring import JobOptions, ScoresDirectory, run_job, verify_scores
from bliss_index.store import EmbeddingStore
from bliss_index.store.sources import open_source


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("job"), shards=3)


@pytest.fixture(scope="module")
def scored(job):
    run_job(job.images, job.folder / "scored", job.settings())
    return job.folder / "scored"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lam": float("nan")}, "lam must be a finite number of at least 0, got nan"),
        ({"lam": -1.0}, "lam must be a finite number of at least 0, got -1.0"),
        ({"threshold": float("inf")}, "the threshold must be a finite number, got inf"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_numbers_that_are_none(job, settings, message):
    with pytest.raises(InvalidInputError, match=message):
        job.settings(**settings)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:97", "device 'cuda:97' (cannot be used: .*or take the CPU|is not here: torch sees)"),
        ("banana", "device 'banana' is not known; give 'auto' or one of cpu, .* listed as '0,1'"),
        ("", "device '' is not known"),
    ],
)
def test_devices_that_are_not_here(job, tmp_path, device, message):
    absent = (InvalidInputError, MissingDependencyError)
    with pytest.raises(absent, match=message):
        run_job(job.images, tmp_path / "s", job.settings(device=device))
    with pytest.raises(absent, match=message):
        options = JobOptions(workers=2, devices=("cpu", device))
        run_job(job.images, tmp_path / "s", job.settings(), options)
    assert not (tmp_path / "s").exists()


def test_labels_of_some_images(scored, tmp_path):
    """By key, those without a label are left out and counted; in row order there must be all."""
    table = ScoresDirectory.open(scored).table()
    keys, scores = table.column("key").to_pylist(), table.column("anomaly_score").to_numpy()
    chosen = np.arange(40, 100)
    anomaly = chosen % 3 == 0
    lines = [f"{keys[i]},{int(a)}\n" for i, a in zip(chosen, anomaly, strict=True)]
    (tmp_path / "some.csv").write_text("key,label\n" + "".join(lines) + f"{keys[0]},\n")
    found = evaluate_directory(scored, tmp_path / "some.csv")
    assert found == replace(evaluate_scores(scores[chosen], anomaly), unlabelled=90)
    (tmp_path / "few.txt").write_text("0\n1\n")
    with pytest.raises(InvalidInputError, match="holds 2 labels, there are 150 rows"):
        evaluate_directory(scored, tmp_path / "few.txt")
    (tmp_path / "odd.csv").write_text(f"key,label\n{keys[3]},nan\n")
    with pytest.raises(InvalidInputError, match="label 'nan' of row 3 is neither 0"):
        evaluate_directory(scored, tmp_path / "odd.csv")
    with pytest.raises(InvalidInputError, match="is a directory"):
        evaluate_directory(scored, tmp_path)


def test_a_report_with_labels_of_some_images(scored, tmp_path, capsys):
    pytest.importorskip("jinja2")
    keys = ScoresDirectory.open(scored).table(["key"]).column("key").to_pylist()
    (tmp_path / "l.csv").write_text(f"key,label\n{keys[0]},0\n{keys[1]},1\n{keys[2]},0\n")
    command = ["report", scored, "--labels", tmp_path / "l.csv", "--out", tmp_path / "r.html"]
    app([str(c) for c in command], standalone_mode=False)
    page = (tmp_path / "r.html").read_text()
    assert "1 anomalies, 2 normal images; of 147 images nothing is known." in page
    app(["evaluate", str(scored), "--labels", str(tmp_path / "l.csv")], standalone_mode=False)
    assert "147 images without a label are left out" in capsys.readouterr().err


def test_no_images_at_all(job, tmp_path):
    """A job of nothing is complete; what needs images says that there are none."""
    write_images(tmp_path / "none", np.empty((0, 16), np.float32), 10)
    run_job(tmp_path / "none", tmp_path / "s", job.settings())
    assert verify_scores(tmp_path / "s").ok
    (tmp_path / "l.txt").write_text("")
    with pytest.raises(InvalidInputError, match="both kinds of images are needed, got 0"):
        evaluate_directory(tmp_path / "s", tmp_path / "l.txt")
    with pytest.raises(InvalidInputError, match="none of the 0 rows"):
        explain_image(tmp_path / "s", "x")
    pytest.importorskip("jinja2")
    app(["report", str(tmp_path / "s"), "--out", str(tmp_path / "r.html")], standalone_mode=False)
    assert "No image has a score." in (tmp_path / "r.html").read_text()


def test_keys_that_break_lines(job, tmp_path, capsys):
    """Newlines, quotes, markup, terminal codes: the same key comes out, and can be asked for."""
    keys = [
        "a\nb",
        "q\"'",
        "<script>",
        "[red]x[/red]",
        "\x1b[31mred",
        "tab\there",
        "",
        " ",
        "ü\u202e",
    ]
    from bliss_index.store import StoreWriter

    rows = EmbeddingStore.open(job.images).embeddings("float32")[: len(keys)]
    model = EmbeddingStore.open(job.images).model
    with StoreWriter(tmp_path / "i", kind="image", model=model, dim=16) as writer:
        writer.append(keys, rows)
    run_job(tmp_path / "i", tmp_path / "s", job.settings())
    assert ScoresDirectory.open(tmp_path / "s").table().column("key").to_pylist() == keys
    assert verify_scores(tmp_path / "s").ok
    for key in keys:
        assert explain_image(tmp_path / "s", key).key == key
        capsys.readouterr()
        app(["explain", str(tmp_path / "s"), "--", key], standalone_mode=False)
        shown = capsys.readouterr().out
        assert "\x1b[31m" not in shown
        assert key != "[red]x[/red]" or key in shown


def test_places_that_cannot_be_reached(monkeypatch):
    def unreachable(uri):
        raise OSError("could not resolve host")

    class Refusing:
        def get_file_info(self, path):
            raise pa.ArrowException("access denied")

    with monkeypatch.context() as here:
        fake = SimpleNamespace(FileSystem=SimpleNamespace(from_uri=unreachable))
        here.setattr("bliss_index.store.source_file.pafs", fake)
        with pytest.raises(InvalidInputError, match="hf://b/x cannot be opened: could not resolve"):
            open_source("hf://b/x")
    monkeypatch.setattr("bliss_index.store.sources.resolve", lambda where: (Refusing(), "x"))
    with pytest.raises(InvalidInputError, match="s3://b/x cannot be reached: access denied"):
        open_source("s3://b/x")


def test_a_model_that_is_not_there_is_said_before_anything_is_measured(tmp_path):
    if find_spec("open_clip") is None:
        pytest.skip("the extra 'clip' is not installed")
    from bliss_index.bench.measure import BenchSettings, run_bench

    said: list[str] = []
    with pytest.raises(EncoderError, match="open_clip knows no model 'ViT-X'"):
        run_bench(BenchSettings(model="ViT-X", folder=str(tmp_path)), said.append)
    assert said == ["encoding texts and images with ViT-X"]
    assert list(tmp_path.iterdir()) == []


def test_the_summary_says_what_failed(job, tmp_path, capsys):
    """A program reads the same from --json as a person from the lines."""
    from click.exceptions import Exit

    shutil.copytree(job.images, tmp_path / "i")
    second = shard(tmp_path / "i", 1)
    second.unlink()
    command = ["score", tmp_path / "i", "--corpus", job.corpus, "--calibration", job.calibration,
               "-k", 5, "--search", "native", "--out", tmp_path / "s", "--json"]  # fmt: skip
    try:
        code = app([str(c) for c in command], standalone_mode=False)
    except Exit as end:
        code = end.exit_code
    assert code == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["complete"], summary["parts_done"], summary["rows"]) == (False, 2, 100)
    assert summary["failed"][0][0] == second.name
