"""Searches have one list: what it names can be chosen everywhere, and used or refused in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bliss_reference import clip_like

from bliss_index import exact_search
from bliss_index.errors import BlissError, MissingDependencyError
from bliss_index.search import reference_search
from bliss_index.search.exact import available_backends
from bliss_index.search.native.backend import load_native
from bliss_index.search.near_index import NearSearch
from bliss_index.search.protocol import TopKSearch
from bliss_index.search.registry import (
    ENGINES,
    FAISS,
    NEAR,
    UNAVAILABLE,
    exact_names,
    index_names,
    is_exact,
    search_names,
)

PACKAGE = Path(__file__).parents[1] / "bliss_index"
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"
PREPARE = """
import json, os, sys, traceback
# The copy that lies here, and not the package that an editable install points to.
sys.meta_path = [f for f in sys.meta_path if "Scikit" not in type(f).__name__]
sys.path.insert(0, sys.argv[1])
import numpy as np
import bliss_index
assert bliss_index.__file__.startswith(sys.argv[1]), bliss_index.__file__
from typer.testing import CliRunner
from bliss_index.cli.app import app
rng = np.random.default_rng(0)
import torch, pyarrow.parquet, bliss_index.scoring, bliss_index.store.sources
for name, use in json.load(sys.stdin).items():
    child = os.fork()
    if not child:
        code = 1
        try:
            with open(sys.argv[1] + "/" + name, "w") as sys.stdout:
                exec(use)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.waitpid(child, 0)
"""
USE_ENGINE = """
from bliss_index import exact_search
from bliss_index.report.information import describe_installation
from bliss_index.scoring import ScoreSettings
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
USE_DETECTOR = """
from bliss_index.evaluation.detector import Reference
from bliss_index.evaluation.paper.protocol_run import evaluate_protocol
from bliss_index.evaluation.paper.protocols import one_class
from bliss_index.evaluation.registry import make_detectors
texts, images = rng.standard_normal((3, 8)), rng.standard_normal((30, 8))
labels = np.arange(30) % 3
made = make_detectors("raw,mean:weight=2")
found = made[1].fit(Reference(texts)).score(images)
report = evaluate_protocol(Reference(texts), images, labels, one_class(3), made)
print(json.dumps({
    "scores": found.tolist(),
    "expected": (-2 * (images @ texts.T).mean(1)).tolist(),
    "detectors": list(report.detectors),
    "help": "mean" in CliRunner().invoke(app, ["evaluate", "--help"]).output,
}))
"""

USE_LAYOUT = """
from bliss_index import EmbeddingStore
rows = rng.standard_normal((50, 8)).astype("<f4")
for place in ("one.toy", "two.toy"):
    with open(sys.argv[1] + "/" + place, "wb") as file:
        file.write(np.int32(8).tobytes() + rows.tobytes())
names = ["--kind", "image", "--model", "ViT-B-32"]
def imported(place):
    out = sys.argv[1] + "/out " + place.replace("/", " ")
    done = CliRunner().invoke(app, ["import", sys.argv[1] + place, "--out", out, *names])
    assert done.exit_code == 0, done.output
    return EmbeddingStore.open(out)
store = imported("/one.toy")
import os
other = sys.argv[1] + "/other.vec"
open(other, "w").close()
os.mkdir(sys.argv[1] + "/folder")
for place in ("one.toy", "two.toy"):
    os.rename(sys.argv[1] + "/" + place, sys.argv[1] + "/folder/" + place)
print(json.dumps({
    "rows": store.embeddings().astype(float).tolist(),
    "expected": (rows / np.linalg.norm(rows, axis=1, keepdims=True)).tolist(),
    "both": imported("/folder").rows,
    "unknown": str(CliRunner().invoke(app, ["import", other, "--out", "x", *names]).exception),
}))
"""
USE_COMMAND = """
from bliss_index.store import ModelIdentity, StoreWriter
store = sys.argv[1] + "/store"
with StoreWriter(store, kind="image", model=ModelIdentity("m", None), dim=4) as writer:
    writer.append(["a", "b\\tc"], np.eye(4, dtype=np.float32)[:2])
def run(*words):
    done = CliRunner().invoke(app, ["keys", *words])
    return [done.exit_code, done.stdout]
print(json.dumps([run(store), run(store, "--json"), run("file:///tmp/x")[0]]))
"""


def blocks_of(title: str) -> list[tuple[str, str, str]]:
    """Kind, path and text of the code blocks below a heading of CONTRIBUTING.md."""
    section = CONTRIBUTING.read_text().split(f"\n### {title}\n")[1].split("\n### ")[0]
    found = re.findall(r"```(python|diff)\n# (\S+)\n(.*?)```", section, re.DOTALL)
    assert [kind for kind, _, _ in found] == ["python", "diff"]
    return found


USES = {
    "A search engine": USE_ENGINE,
    "A detector to compare with": USE_DETECTOR,
    "A layout of embeddings": USE_LAYOUT,
    "A command": USE_COMMAND,
}


@pytest.fixture(scope="module")
def use_of_added(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What programs print with a copy of the package in which the guides were followed.

    Each adds one file and one line; the programs are forks of one process.
    """
    folder = tmp_path_factory.mktemp("added")
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".cu", ".json") and "__pycache__" not in path.parts:
            target = folder / path.relative_to(PACKAGE.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for title in USES:
        add(title, folder)
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(folder)],
        input=json.dumps(USES),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr

    def found(title: str) -> Any:
        lines = (folder / title).read_text().splitlines()
        assert lines, done.stderr
        return json.loads(lines[-1])

    return found


def add(title: str, folder: Path) -> None:
    """Follow a guide in a copy of the package."""
    (_, path, text), (_, listed, change) = blocks_of(title)
    assert not (folder / path).exists()
    (folder / path).write_text(text)
    text = (folder / listed).read_text()
    rows = [(row[:1], row[1:]) for row in change.splitlines()]
    for (_, context), (plus, line) in zip(rows[::2], rows[1::2], strict=True):
        assert plus == "+"
        assert text.count(f"{context}\n") == 1
        text = text.replace(f"{context}\n", f"{context}\n{line}\n")
    (folder / listed).write_text(text)


def test_another_engine_is_one_file_and_one_line(use_of_added: Any) -> None:
    found = use_of_added("A search engine")
    assert found["backend"] == "toy"
    assert found["ids"] == found["expected"]
    assert found["codes"] == [1, 2]
    assert found["info"] == "any processor"


def test_another_detector_is_one_file_and_one_line(use_of_added: Any) -> None:
    found = use_of_added("A detector to compare with")
    np.testing.assert_allclose(found["scores"], found["expected"], rtol=1e-12)
    assert found["detectors"] == ["raw", "mean:weight=2"]
    assert found["help"]


def test_another_layout_is_one_file_and_one_line(use_of_added: Any) -> None:
    found = use_of_added("A layout of embeddings")
    np.testing.assert_allclose(found["rows"], found["expected"], atol=1e-3)
    assert found["both"] == 100
    assert "known are .toy, .npy, .npz, .parquet" in " ".join(found["unknown"].split())


def test_another_command_is_one_file_and_two_lines(use_of_added: Any) -> None:
    plain, as_json, refused = use_of_added("A command")
    assert plain == [0, "a\nb\ufffdc\n"]
    assert (as_json[0], json.loads(as_json[1])) == (0, ["a", "b\tc"])
    assert refused == 2


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
    images, entries, _, _ = clip_like(np.random.default_rng(1), 20, 600, 1, 16)
    try:
        search = made(entries, name)
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


def made(entries: np.ndarray, name: str) -> TopKSearch:
    if name == NEAR:
        if load_native()[0] is None:
            pytest.skip("no compiled search here")
        return NearSearch(entries, 5)
    pytest.importorskip("faiss")
    from bliss_index.search.faiss.build import build_index

    return build_index(entries, name, k=5)


def test_names_are_told_apart() -> None:
    assert len(set(search_names())) == len(search_names())
    assert {"auto", FAISS, "flat"} <= {name for name in search_names() if is_exact(name)}
    assert not any(is_exact(name) for name in ("ivf", "ivfpq", "hnsw", "cagra", NEAR))
    assert set(exact_names()) == {"auto", FAISS, *(engine.name for engine in ENGINES)}
