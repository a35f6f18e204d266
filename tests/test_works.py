"""All four works: the same bytes in this process, in three, as tasks, and on Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from command import run, run_apart
from job_fixtures import result
from object_store import s3_server, upload

from bliss_index.storage import open_directory
from bliss_index.store import EmbeddingStore, verify_store

if find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

from bliss_index.demo.scenes import draw_scene


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Pictures, words, embeddings, and the commands of four works on them."""
    folder = tmp_path_factory.mktemp("works")
    (folder / "pictures").mkdir()
    for number in range(300):
        scene = draw_scene(np.random.default_rng([5, number]), size=32)
        scene.image.save(folder / "pictures" / f"{number:03}.png")
    (folder / "words.txt").write_text("".join(f"word {i}\n" for i in range(900)))
    (folder / "classes.txt").write_text("cat\ntree\n")
    rng = np.random.default_rng(0)
    np.save(folder / "e.npy", rng.normal(size=(140_000, 8)).astype(np.float32))
    run(*COMMANDS["text"], "corpus", cwd=folder)
    run(*COMMANDS["images"], "images", cwd=folder)
    run("calibrate", "images", "--classes", "classes.txt", "--assign",
        "--out", "calibration", cwd=folder)  # fmt: skip
    return folder


MODEL = ["--model", "bliss-tiny", "--device", "cpu"]
COMMANDS = {
    "text": ["encode-text", "words.txt", *MODEL, "--out"],
    "images": ["encode-images", "pictures", *MODEL, "--decoders", "0", "--out"],
    "import": ["import", "e.npy", "--kind", "image", "--model", "other", "--out"],
    "scores": [
        "score", "images", "--corpus", "corpus", "--calibration", "calibration", "-k", "5",
        "--devices", "cpu", "--threads", "1", "--search", "native", "--out",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("work", COMMANDS)
def test_processes_and_tasks_write_the_same(chain, tmp_path, work):
    command = COMMANDS[work]
    run(*command, tmp_path / "one", "--workers", 1, cwd=chain)
    whole = result(tmp_path / "one")
    assert len([name for name in whole if name.startswith("part-")]) > 2
    run_apart(*command, tmp_path / "three", "--workers", 3, cwd=chain)
    assert result(tmp_path / "three") == whole
    for number in (2, 0, 1, 3):
        task = ["--task", f"{number}/4", "--workers", 1]
        run_apart(*command, tmp_path / "tasks", *task, cwd=chain)
    run_apart(*command, tmp_path / "tasks", cwd=chain)
    assert result(tmp_path / "tasks") == whole
    run("verify", tmp_path / "tasks")


@pytest.mark.slow
@pytest.mark.parametrize("work", COMMANDS)
def test_a_cluster_of_three_nodes_writes_the_same(chain, tmp_path, work):
    pytest.importorskip("ray")
    command = COMMANDS[work]
    run(*command, tmp_path / "one", "--workers", 1, cwd=chain)
    script = textwrap.dedent(
        """
        import json, os, subprocess, sys
        os.environ["RAY_AUTH_MODE"] = "disabled"
        from ray.cluster_utils import Cluster
        cluster = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        os.environ["RAY_ADDRESS"] = cluster.address
        command = [sys.executable, "-m", "bliss_index", *sys.argv[1:]]
        command += ["--engine", "ray", "--workers", "3", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        print(json.dumps([done.returncode, done.stdout, done.stderr]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, command), str(tmp_path / "ray")],
        capture_output=True, text=True, cwd=chain, timeout=400, check=True,
    )  # fmt: skip
    code, out, err = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, err
    assert json.loads(out)["rows"] > 0  # nothing of Ray's is on stdout
    assert result(tmp_path / "ray") == result(tmp_path / "one")


@pytest.fixture(scope="module")
def bucket(chain):
    """The chain's files on an S3 server, and the environment that leads there."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    with s3_server() as (environment, uri), pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, "BLISS_INDEX_CACHE": str(chain / "cache")}.items():
            patch.setenv(name, value)
        upload(chain, uri)
        yield uri


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the server's own
@pytest.mark.parametrize("work", COMMANDS)
def test_an_object_store_gives_and_gets_the_same(chain, bucket, tmp_path, work):
    there = [f"{bucket}/{word}" if (chain / word).exists() else word for word in COMMANDS[work]]
    run(*COMMANDS[work], tmp_path / "one", "--workers", 1, cwd=chain)
    whole = {n: data for n, data in result(tmp_path / "one").items() if n.startswith("part-")}
    uri = f"{bucket}/made/{work}"
    run_apart(*there, uri, "--workers", 2, cwd=tmp_path)
    directory = open_directory(uri)
    files = (name for name in directory.names() if name.startswith("part-"))
    assert {name: directory.read(name) for name in files} == whole
    run("verify", uri, cwd=tmp_path)


def test_a_source_that_changed_is_named(chain, tmp_path):
    pictures = tmp_path / "p"
    pictures.mkdir()
    for path in sorted((chain / "pictures").iterdir())[:200]:
        os.link(path, pictures / path.name)
    command = ["encode-images", "p", *MODEL, "--decoders", "0", "--out", "s"]
    run(*command, cwd=tmp_path)
    (pictures / "000.png").unlink()
    (pictures / "000.png").write_bytes((pictures / "001.png").read_bytes())
    _, err = run(*command, cwd=tmp_path)
    assert "1 of what was planned have changed since, their rows stay as they were: 000.png" in err


def test_keys_that_occur_in_two_parts_are_counted(tmp_path):
    rows = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        np.save(tmp_path / "in" / f"{name}.npy", rows)
    keys = [f"k{i}" for i in range(10)] + ["k3"] + [f"l{i}" for i in range(9)]
    (tmp_path / "k.txt").write_text("\n".join(keys) + "\n")
    _, err = run("import", "in", "--kind", "image", "--model", "m", "--keys", "k.txt",
                 "--out", "s", cwd=tmp_path)  # fmt: skip
    assert "1 keys occur in several parts" in err
    manifest = EmbeddingStore.open(tmp_path / "s").manifest
    assert manifest.repeated_keys == {"count": 1, "first": ["k3"]}
    (tmp_path / "t.txt").write_text("".join(f"t{i}\n" for i in range(20)))
    assert not verify_store(tmp_path / "s").ok
    assert Path(tmp_path / "s" / "manifest.json").is_file()
