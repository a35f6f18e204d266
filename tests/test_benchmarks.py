"""The benchmarks: what is called slower is, what is noise is not, and every way can be run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from bliss_index.bench.paired import Paired, Way
from bliss_index.bench.synthetic import clustered

ROOT = Path(__file__).parents[1]
# pytest-benchmark times nothing where it believes to be a worker of several.
ALONE = {name: value for name, value in os.environ.items() if "XDIST" not in name}
COMMAND = [sys.executable, "-m", "pytest", "benchmarks", "--scale", "0.01", "-q"]


@pytest.fixture(scope="module")
def compare():
    spec = spec_from_file_location("compare", ROOT / "benchmarks" / "compare.py")
    module = module_from_spec(spec)
    sys.modules["compare"] = module  # for its dataclass
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compare"]


def run_of(factor, seed, noise=0.02):
    """Seven rounds over the yardstick, of a benchmark that takes `factor` times as long."""
    values = factor * 0.25 * np.random.default_rng(seed).normal(1, noise, 7)
    return {"a": {"extra_info": {"over_yardstick": values.tolist()}, "stats": {"data": [9.0]}}}


@pytest.mark.parametrize("seed", range(20))
def test_a_fifth_more_is_found_and_noise_is_not(compare, seed):
    before = run_of(1, seed)
    for factor, slower in ((1.2, True), (1.0, False), (0.8, False)):
        (found,) = compare.compared(before, run_of(factor, 100 + seed), sure=3, least=0.05)
        assert found.slower == slower, found
        assert found.factor == pytest.approx(factor, abs=0.06)


def test_the_more_noise_the_less_is_said(compare):
    (found,) = compare.compared(run_of(1, 1, 0.3), run_of(1.2, 2, 0.3), sure=3, least=0.05)
    assert not found.slower and found.noise > 0.05


def test_without_a_yardstick_times_themselves_count(compare):
    before, now = ({"a": {"extra_info": {}, "stats": {"data": [t] * 5}}} for t in (1.0, 1.5))
    (found,) = compare.compared(before, {**now, "b": {}}, sure=3, least=0.05)
    assert found.slower and "1.50 times as long" in str(found)


def test_ways_take_turns():
    called = []
    ways = {name: Way(lambda name=name: called.append(name), 2) for name in "ab"}
    paired = Paired(ways)
    paired.run(3)
    assert called == list("ababab")
    paired.seconds = {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}
    assert paired.medians() == {"a": 2.0, "b": 2.0}
    assert paired.ratios("a", "b") == [0.5, 1.0, 2.0]


def test_a_vocabulary_of_near_entries():
    rows = clustered(1000, 32, 1, near=100)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    similar = rows @ rows.T > 1 - 0.05**2 * 2  # within twice the distance of each other
    assert np.median(similar.sum(1)) == 100
    assert np.array_equal(rows, clustered(1000, 32, 1, near=100))
    assert clustered(1000, 32, 1, near=100, dtype=np.float16).dtype == np.float16


def test_a_benchmark_is_saved_and_compared(tmp_path):
    """Words are read slower than a yardstick; beside itself nothing is slower."""
    saved = tmp_path / "saved.json"
    command = [*COMMAND, "-k", "test_reading_words and memory"]
    subprocess.run([*command, f"--benchmark-json={saved}"], cwd=ROOT, env=ALONE, check=True,
                   capture_output=True)  # fmt: skip
    found = json.loads(saved.read_text())
    (one,) = found["benchmarks"]
    assert one["group"] == "text" and one["extra_info"]["yardstick"] == "lines"
    assert len(one["extra_info"]["over_yardstick"]) == 5
    assert one["extra_info"]["ways"]["lines"]["times_slower"] < 1
    assert {"processor", "versions", "openblas_coretype"} <= set(found["machine_info"])
    one["extra_info"]["over_yardstick"] = [
        value / 50 for value in one["extra_info"]["over_yardstick"]
    ]
    (tmp_path / "quick.json").write_text(json.dumps(found))
    compared = f"--benchmark-compare={tmp_path / 'quick.json'}"
    done = subprocess.run([*command, compared], cwd=ROOT, env=ALONE, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert "SLOWER benchmarks/bench_text.py::test_reading_words[memory]" in done.stdout
    assert "1 of 1 are slower beyond their noise" in done.stdout


@pytest.mark.slow
def test_every_benchmark_runs():
    if not all(find_spec(package) for package in ("faiss", "open_clip")):
        pytest.skip("faiss or open_clip is not installed")
    done = subprocess.run(
        [*COMMAND, "-m", "not slow", "--benchmark-disable"], cwd=ROOT, env=ALONE,
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
