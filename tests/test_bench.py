"""Measuring the machine: every part is run, and the report says what was measured."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
from command import run

from bliss_index.bench import measure
from bliss_index.bench.measure import (
    BenchReport,
    BenchSettings,
    measure_approximate,
    paired_rates,
    run_bench,
)
from bliss_index.bench.synthetic import IMAGE_NORM, TEXT_NORM, clip_like
from bliss_index.errors import InvalidInputError
from bliss_index.search.choice import make_exact
from bliss_index.search.native.backend import load_native


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch):
    """Rounds of milliseconds: what is measured is not the point."""
    monkeypatch.setattr(measure, "_ROUND_SECONDS", 0.01)


SMALL = {"entries": 300, "classes": 3, "dim": 32, "k": 5, "images": 500, "threads": 1}


def test_rates_are_rows_per_second(monkeypatch):
    """A clock that the functions move themselves: what they cost is what is reported."""
    clock = [0.0]
    monkeypatch.setattr("bliss_index.bench.measure.time.perf_counter", lambda: clock[0])

    def costing(seconds_a_row):
        def function(rows):
            clock[0] += seconds_a_row * len(rows)

        return function

    rates = paired_rates({"fast": costing(1e-4), "slow": costing(1e-2)}, np.zeros((4096, 2)))
    assert rates == pytest.approx({"fast": 1e4, "slow": 1e2})


def test_everything_is_measured(tmp_path):
    said = []
    report = run_bench(BenchSettings(**SMALL, folder=str(tmp_path)), said.append)
    found = set(report.search) | set(report.search_unavailable)
    assert found == {"native", "torch", "cuda", "faiss"}
    assert "torch" in report.search
    assert min(*report.search.values(), report.scoring, report.job) > 0
    assert report.job_images == 500
    assert report.search[report.fastest] == max(report.search.values())
    assert report.to_json()["settings"]["entries"] == 300
    assert any("300 entries of dimension 32" in text for text in said)
    assert report.first_rows_seconds > 0
    assert report.approximate is None  # so few entries are searched faster than any index
    assert list(tmp_path.iterdir()) == []  # nothing stays behind


def test_an_approximate_index_is_tuned_and_compared():
    if load_native()[0] is None:
        pytest.skip("no compiled search here")
    entries, queries = (clip_like(3000, 32, kind, 1) for kind in ("text", "image"))
    settings = BenchSettings(entries=3000, dim=32, k=5, threads=1)
    exact = make_exact("auto", entries, 5, threads=1)
    found = measure_approximate(entries, queries, exact, settings, lambda text: None)
    assert found.kind == "near" and 0.9 < found.recall <= 1
    assert found.rate > 0 and found.gain > 0


def test_what_many_images_take():
    report = BenchReport(BenchSettings(), {"torch": 1.0}, {}, 1.0, 2000.0, 10, 5.0)
    assert report.job_seconds(1e6) == 505.0


def test_sizes_are_checked():
    with pytest.raises(InvalidInputError, match="k = 10 is more than the 5 entries"):
        BenchSettings(entries=5)
    with pytest.raises(InvalidInputError, match="dim must be at least 1, got 0"):
        BenchSettings(dim=0)


def test_the_command(tmp_path):
    sizes = ["--entries", 300, "--dim", 32, "--images", 500, "--threads", 1]
    command = ["bench", "--folder", tmp_path / "f", *sizes]
    model = ["--model", "bliss-tiny"] if find_spec("open_clip") is not None else []
    out, err = run(*command, *model)
    assert "whole job, 500 images" in out
    assert "100 million images: scoring takes" in err
    assert "that job's first rows came after" in err
    out, _ = run(*command, "--json")
    assert json.loads(out)["job_images"] == 500


def test_synthetic_embeddings_have_the_gap_of_clip():
    for kind, norm in (("text", TEXT_NORM), ("image", IMAGE_NORM)):
        rows = clip_like(5000, 64, kind, 1)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        assert np.linalg.norm(rows.mean(0)) == pytest.approx(norm, abs=0.02)
    assert np.array_equal(clip_like(10, 8, "text", 3), clip_like(10, 8, "text", 3))
    assert not np.array_equal(clip_like(10, 8, "text", 3), clip_like(10, 8, "text", 4))
