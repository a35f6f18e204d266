"""The documentation site: built with warnings as errors, links, what it shows; recipes run."""

from __future__ import annotations

import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from object_store import s3_server, upload
from test_cli import chain

import bliss_index
from bliss_index.cli.app import app

ROOT = Path(__file__).parents[1]
_ = chain  # a fixture


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages by name."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*.html")}


@pytest.mark.slow
def test_links_lead_somewhere(site):
    anchors = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in site.items()}
    links, broken = 0, []
    for name, text in site.items():
        if name == "404.html":
            continue
        for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
            target = "index.html" if target == "." else target
            links += 1
            if target not in site or (anchor and anchor not in anchors[target]):
                broken.append(f"{name}: {link}")
    assert broken == []
    assert links > 1000


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site):
    for name, text in site.items():
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"([^\"]*)\"", text)
        assert [tag for tag in tags if re.match(r"(?:https?:)?//", tag)] == [], name


@pytest.mark.slow
def test_every_command_and_every_public_name_has_its_place(site):
    import typer

    commands = typer.main.get_command(app).commands
    shown = re.findall(r'<h2 id="([a-z-]+)">', site["cli.html"])
    assert shown == list(commands)
    for command in commands.values():
        for parameter in command.params:
            assert all(name in site["cli.html"] for name in parameter.opts if name[0] == "-")
    reference = "".join(text for name, text in site.items() if name.startswith("api/"))
    for name in set(bliss_index.__all__) - {"__version__"}:
        assert re.search(rf'id="bliss_index\.[\w.]*\b{name}"', reference), name


@pytest.mark.slow
def test_own_photos_are_a_click_away(site):
    """From the front page to the command that scores them."""
    links = re.findall(r'<a class="md-button[^"]*" href="([^"]+)"', site["index.html"])
    blocks = re.findall(r"<pre.*?</pre>", site[links[0]], re.DOTALL)
    first = html.unescape(re.sub("<[^>]+>", "", blocks[0]))
    assert first.strip() == "bliss-index screen photos/all --normal photos/normal --out run"
    python = re.findall(r"<pre.*?</pre>", site["python.html"], re.DOTALL)
    assert "from bliss_index import BlissDetector" in re.sub("<[^>]+>", "", python[0])


def recipes(heading: str) -> list[list[str]]:
    text = (ROOT / "docs" / "howto.md").read_text().replace("\\\n", " ")
    section = text.split(f"## {heading}", 1)[1].split("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"^    bliss-index (.*)$", section, re.M)]


@pytest.fixture
def folder(chain, tmp_path):
    """Where the recipes run: what the chain made, and test images in other layouts."""
    made, _ = chain
    for name in ("corpus", "calibration", "normal"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copytree(made / "test", tmp_path / "images")
    shutil.copy(made / "labels.txt", tmp_path)
    rows = np.load(made / "test.npy")
    (tmp_path / "clip-retrieval" / "img_emb").mkdir(parents=True)
    (tmp_path / "clip-retrieval" / "metadata").mkdir()
    np.save(tmp_path / "clip-retrieval" / "img_emb" / "img_emb_0.npy", rows)
    names = pa.table({"image_path": [f"{row}.jpg" for row in range(len(rows))]})
    pq.write_table(names, tmp_path / "clip-retrieval" / "metadata" / "metadata_0.parquet")
    return tmp_path


def scores(path: Path) -> list[float]:
    return pq.read_table(path, columns=["anomaly_score"]).column(0).to_pylist()


def test_a_clip_retrieval_folder(folder):
    for command in recipes("A clip-retrieval folder"):
        run(*command, cwd=folder)
    expected = scores(folder / "from-clip-retrieval")
    np.testing.assert_allclose(scores(folder / "from-clip-store"), expected, atol=0.05)


def test_a_saved_data_set(folder):
    datasets = pytest.importorskip("datasets")
    rows = np.load(folder / "clip-retrieval" / "img_emb" / "img_emb_0.npy")
    columns = {"key": [str(row) for row in range(len(rows))], "embedding": list(rows)}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder / "dataset"))
    for command in recipes("A Hugging Face data set"):
        run(*command, cwd=folder)
    assert len(scores(folder / "from-dataset")) == len(rows)


def test_tasks_thresholds_and_a_notebook(folder, monkeypatch):
    for heading in ("A cluster", "A threshold"):
        for command in recipes(heading):
            run(*command, cwd=folder)
    text = (ROOT / "docs" / "howto.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(example, {})
    assert scores(folder / "from-python") == scores(folder / "from-tasks")
    flags = pq.read_table(folder / "flagged", columns=["flag"]).column(0).to_pylist()
    assert set(flags) == {True, False}


def test_a_bucket(folder, monkeypatch):
    pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    with s3_server() as (environment, address):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("BLISS_INDEX_CACHE", str(folder / "cache"))
        for name in ("images", "corpus", "calibration"):
            upload(folder / name, f"{address}/{name}")
        for command in recipes("S3, and"):
            run(*command, cwd=folder)
