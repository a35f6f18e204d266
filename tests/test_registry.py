"""Searches have one list: what it names can be chosen everywhere, and used or refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bliss_reference import clip_like

from bliss_index import exact_search
from bliss_index.errors import BlissError, MissingDependencyError
from bliss_index.search import reference_search
from bliss_index.search.exact import available_backends
from bliss_index.search.registry import (
    ENGINES,
    FAISS,
    UNAVAILABLE,
    exact_names,
    index_names,
    is_exact,
    search_names,
)

PACKAGE = Path(__file__).parents[1] / "bliss_index"
ENGINE = '''"""A toy: brute force, one query at a time."""

import numpy as np

from bliss_index.search.certificate.ordering import exact_dot
from bliss_index.search.protocol import SearchStatistics


class ToyBackend:
    name = "toy"
    description = "brute force in exact arithmetic"
    chunk_rows = 100

    @staticmethod
    def availability():
        return True, "any processor"

    @staticmethod
    def unfit(vocabulary):
        return ""

    @classmethod
    def prepare(cls, vocabulary, k, *, threads, device, tile, reason):
        made = cls()
        made.vocabulary, made.k, made.memory_bytes = vocabulary, k, vocabulary.nbytes
        return made

    def search(self, queries, first_row):
        values = np.empty((len(queries), self.k))
        ids = np.empty((len(queries), self.k), np.int64)
        for row, query in enumerate(queries):
            scores = np.array([exact_dot(query, entry) for entry in self.vocabulary])
            ids[row] = np.argsort(-scores, kind="stable")[: self.k]
            values[row] = scores[ids[row]]
        return values, ids, SearchStatistics(queries=len(queries))
'''
LINE = '    Engine("toy", "bliss_index.search.toy:ToyBackend"),\n'
USE = """
import json, sys
# The copy that lies here, and not the package that an editable install points to.
sys.meta_path = [f for f in sys.meta_path if "Scikit" not in type(f).__name__]
sys.path.insert(0, sys.argv[1])
import numpy as np
import bliss_index
assert bliss_index.__file__.startswith(sys.argv[1]), bliss_index.__file__
from typer.testing import CliRunner
from bliss_index import exact_search
from bliss_index.cli.app import app
from bliss_index.report.information import describe_installation
from bliss_index.scoring import ScoreSettings
rng = np.random.default_rng(0)
entries, queries = rng.standard_normal((60, 8)), rng.standard_normal((5, 8))
search = exact_search(entries, 3, backend="toy")
ScoreSettings("corpus", "calibration", search="toy")
def code(name):  # 2: no such value of an option
    options = ["--corpus", "c", "--calibration", "c", "--out", sys.argv[1] + "/s"]
    return CliRunner().invoke(app, ["score", "x", *options, "--search", name]).exit_code
print(json.dumps({
    "backend": search.backend,
    "ids": search.search(queries)[1].tolist(),
    "expected": np.argsort(-(queries @ entries.T), 1, kind="stable")[:, :3].tolist(),
    "codes": [code("toy"), code("nothing")],
    "info": describe_installation()[0]["exact_search"]["toy"],
}))
"""


def test_another_engine_is_one_file_and_one_line(tmp_path: Path) -> None:
    copy = tmp_path / "bliss_index"
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".cu", ".json") and "__pycache__" not in path.parts:
            target = copy / path.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (copy / "search" / "toy.py").write_text(ENGINE)
    registry = copy / "search" / "registry.py"
    text = registry.read_text()
    assert text.count("ENGINES = (\n") == 1
    registry.write_text(text.replace("ENGINES = (\n", "ENGINES = (\n" + LINE))
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == "toy"
    assert found["ids"] == found["expected"]
    assert found["codes"] == [1, 2]
    assert found["info"] == "any processor"


@pytest.mark.parametrize("name", [engine.name for engine in ENGINES])
def test_every_engine_is_right_or_says_why_not(name: str) -> None:
    images, entries, _, _ = clip_like(np.random.default_rng(1), 20, 300, 1, 16)
    what = available_backends()[name]
    if what.startswith(UNAVAILABLE):
        with pytest.raises(BlissError):
            exact_search(entries, 5, backend=name)
        return
    ids = exact_search(entries, 5, backend=name).search(images)[1]
    np.testing.assert_array_equal(ids, reference_search(entries, images, 5)[1])


@pytest.mark.parametrize("name", index_names())
def test_every_kind_of_index_can_be_built_or_says_what_is_missing(name: str) -> None:
    pytest.importorskip("faiss")
    from bliss_index.search.faiss.build import build_index

    images, entries, _, _ = clip_like(np.random.default_rng(1), 20, 600, 1, 16)
    try:
        search = build_index(entries, name, k=5)
    except MissingDependencyError as error:
        assert name == "cagra"
        assert "faiss-gpu" in str(error) or "cuVS" in str(error)
        return
    expected = reference_search(entries, images, 5)[1]
    found = search.search(images)[1]
    if is_exact(name):
        np.testing.assert_array_equal(found, expected)
    else:
        assert (
            np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, expected, strict=True)]) > 0.5
        )


def test_names_are_told_apart() -> None:
    assert len(set(search_names())) == len(search_names())
    assert {"auto", FAISS, "flat"} <= {name for name in search_names() if is_exact(name)}
    assert not any(is_exact(name) for name in ("ivf", "ivfpq", "hnsw", "cagra"))
    assert set(exact_names()) == {"auto", FAISS, *(engine.name for engine in ENGINES)}
