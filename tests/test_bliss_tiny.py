"""The embedded model: a real one, through the same code as any other; and the demo on it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

if find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

from command import run

import bliss_index.encode
from bliss_index.demo.scenes import OBJECT_KINDS, draw_scene
from bliss_index.encode import load_encoder
from bliss_index.vocabulary import render_prompts


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("bliss-tiny", device="cpu")


def test_it_is_small_and_has_an_identity(encoder):
    folder = Path(bliss_index.encode.__file__).parent / "bliss_tiny"
    weights = folder / "open_clip_model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    identity = encoder.identity
    assert (identity.name, identity.pretrained) == ("bliss-tiny", "scenes")
    assert len(identity.weights_sha256) == 64
    assert load_encoder("bliss-tiny", device="cpu").identity == identity


def test_it_tells_kinds_apart_that_it_never_saw_in_these_pictures(encoder):
    """Freshly drawn scenes; the full figure is in benchmarks/results/bliss_tiny_zero_shot.json."""
    texts = encoder.encode_text(render_prompts(OBJECT_KINDS))
    scenes = [
        draw_scene(np.random.default_rng([77_000, kind, n]), kind=OBJECT_KINDS[kind])
        for kind in range(len(OBJECT_KINDS))
        for n in range(3)
    ]
    images = encoder.encode_images([scene.image for scene in scenes])
    assert images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    found = (images @ texts.T).argmax(1)
    accuracy = np.mean(found == np.repeat(np.arange(len(OBJECT_KINDS)), 3))
    assert accuracy > 0.5  # chance is 1 in 64


def test_the_committed_figure_is_of_these_weights(encoder):
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "bliss_tiny_zero_shot.json"
    figures = json.loads(path.read_text())
    assert figures["model"] == encoder.identity.describe()
    assert figures["kinds"] == len(OBJECT_KINDS)


def test_shorter_text_gives_the_same_embeddings(encoder):
    words = ["cat", "This is a photo of a red house", "zzz qqq unheard of"]
    single = np.concatenate([encoder.encode_text([word]) for word in words])
    np.testing.assert_allclose(encoder.encode_text(words), single, atol=1e-5)


def test_the_demo(tmp_path):
    command = ["demo", "--out", tmp_path / "d", "--json", "--images"]
    out, _ = run(*command, 8)
    result = json.loads(out)
    assert result["images"] == 8 * 18
    assert set(result["auroc"]) == {
        "BLISS", "raw similarity to the nearest label", "label term alone",
    }  # fmt: skip
    assert all(0 < value <= 1 for value in result["auroc"].values())
    assert result["auroc"]["BLISS"] > 0.6
    table = pq.read_table(result["scores"])
    assert table.num_rows == result["images"]
    assert set(table.column("status").to_pylist()) == {"ok"}
    assert all(Path(path).exists() for path in result["files"].values())
    if find_spec("jinja2") and find_spec("matplotlib"):
        assert "castle" in (tmp_path / "d" / "report.html").read_text()
    _, err = run(*command, 9, code=1)
    assert "'images_per_class': 8, 'seed': 0}, asked for is {'images_per_class': 9" in err
    again, _ = run(*command, 8)
    assert json.loads(again)["auroc"] == result["auroc"]
