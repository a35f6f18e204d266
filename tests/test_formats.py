"""What docs/formats.md says: its writers' output is read, and it names what the package writes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bliss_reference import reference_scores
from command import run

from bliss_index.calibration import Calibration, calibrate
from bliss_index.store import EmbeddingStore, verify_store

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "formats.md").read_text()
GOLDEN = ROOT / "tests" / "golden" / "v2"
MODEL = {"name": "ViT-B-32", "pretrained": "openai"}


def unit(rng, n, dim):
    rows = rng.normal(size=(n, dim)) + 0.5
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A vocabulary, images and a calibration, by the page's examples alone."""
    folder = tmp_path_factory.mktemp("written")
    scope: dict = {}
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert not any("bliss_index import" in example for example in examples)
    for example in examples:
        exec(example, scope)
    rng = np.random.default_rng(3)
    vocabulary, images, texts = unit(rng, 50, 8), unit(rng, 30, 8), unit(rng, 2, 8)
    normal = [unit(rng, 20, 8), unit(rng, 15, 8)]
    words = [f"word {i}" for i in range(50)]
    scope["write_store"](folder / "corpus", "text", words, vocabulary, MODEL)
    scope["write_store"](folder / "images", "image", [f"{i}.jpg" for i in range(30)], images, MODEL)
    scope["write_calibration"](folder / "calibration", ["cat", "dog"], texts, normal, MODEL)
    return folder, texts, normal


def test_what_the_page_writes_is_read_and_whole(written):
    folder, *_ = written
    for name, rows in (("corpus", 50), ("images", 30)):
        assert EmbeddingStore.open(folder / name).rows == rows
        assert verify_store(folder / name).problems == []
        run("verify", folder / name)
    run("verify", folder / "calibration")


def test_a_calibration_of_the_page_is_that_of_the_package(written):
    folder, texts, normal = written
    found = Calibration.load(folder / "calibration")
    labels = np.repeat([0, 1], [len(rows) for rows in normal])
    expected = calibrate([(np.concatenate(normal), labels)], texts, ["cat", "dog"])
    for ours, theirs in zip(found.moments, expected.moments, strict=True):
        assert ours.count == theirs.count
        np.testing.assert_allclose(ours.mean, theirs.mean, atol=1e-12)
        np.testing.assert_allclose(ours.scatter, theirs.scatter, atol=1e-9)


def test_scores_of_what_the_page_writes(written, tmp_path):
    folder, texts, normal = written
    run("score", folder / "images", "--corpus", folder / "corpus", "--calibration",
        folder / "calibration", "-k", 5, "--out", tmp_path / "scores")  # fmt: skip
    table = pq.read_table(tmp_path / "scores")
    stored = [EmbeddingStore.open(folder / name).embeddings() for name in ("images", "corpus")]
    labels = np.repeat([0, 1], [len(rows) for rows in normal])
    expected = reference_scores(*stored, texts, np.concatenate(normal), labels, k=5, lam=0.5)
    np.testing.assert_allclose(table.column("anomaly_score"), expected.anomaly, atol=1e-4)


def keys_named(heading: str) -> set[str]:
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    return set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize(
    ("heading", "file"),
    [
        ("A store", "images/manifest.json"),
        ("A calibration", "calibration/manifest.json"),
        ("A directory that a job writes", "scores/_job.json"),
        ("A directory that a job writes", "scores/_records/part-00000000.json"),
        ("An index", "corpus/index/flat.json"),
    ],
)
def test_the_page_names_every_key_and_no_other_format(heading, file):
    found = json.loads((GOLDEN / file).read_text())
    assert set(found) <= keys_named(heading)
    assert str(found.get("format_version", 2)) in PAGE


def test_the_page_names_every_column():
    tables = {
        "A store": GOLDEN.glob("*/part-*.arrow"),
        "A calibration": GOLDEN.glob("calibration/*.arrow"),
        "A directory that a job writes": GOLDEN.glob("scores/_plan/*.arrow"),
    }
    for heading, files in tables.items():
        names = set()
        for file in files:
            names |= set(pa.ipc.open_file(file).schema.names)
        assert names
        assert names <= keys_named(heading), heading
    (file, *_) = GOLDEN.glob("scores/*.parquet")
    assert set(pq.read_schema(file).names) <= keys_named("Scores")


def test_the_content_hash_is_that_of_the_page():
    found = json.loads((GOLDEN / "images" / "manifest.json").read_text())
    hashed = {key: found[key] for key in ("dim", "dtype", "kind", "model", "prompt")}
    hashed["shards"] = [part["sha256"] for part in found["parts"]]
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert EmbeddingStore.open(GOLDEN / "images").content_hash == digest
