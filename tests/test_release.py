"""What a release is made of agrees: versions, Pythons, wheels; workflows sleep until woken."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import bliss_index

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = (ROOT / "pyproject.toml").read_text()
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)


def test_the_version_is_written_once_and_followed():
    assert not re.search(r"^version = ", PROJECT, re.MULTILINE)
    if "bliss-index" in {name for d in metadata.distributions() if (name := d.name)}:
        assert metadata.version("bliss-index") == bliss_index.__version__
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == bliss_index.__version__
    assert f"({bliss_index.__version__})" in (ROOT / "CHANGELOG.md").read_text()


def test_this_python_is_among_those_that_are_named():
    oldest = re.search(r'^requires-python = ">=(\S+)"', PROJECT, re.MULTILINE)
    assert oldest is not None
    assert oldest[1] == PYTHONS[0]
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in PYTHONS


def test_readme_lists_every_extra():
    extras = PROJECT.split("[project.optional-dependencies]\n", 1)[1].split("\n[", 1)[0]
    names = set(re.findall(r"^([\w-]+) = \[", extras, re.MULTILINE)) - {"dev", "docs"}
    table = (ROOT / "README.md").read_text().split("| extra | what for |")[1].split("\n\n")[0]
    firsts = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`([\w-]+)`", "".join(firsts))) == names


def test_the_same_wheels_are_built_here_and_by_the_workflow():
    (built,) = re.findall(r"^build = \[(.*?)\]", PROJECT, re.MULTILINE)
    workflow = {f"3.{minor}" for minor in re.findall(r"cp3(\d+)-manylinux", built)}
    script = (ROOT / "scripts" / "build_wheels.sh").read_text()
    assert set(re.findall(r"\$\(find_python (3\.\d+)\)", script)) == workflow
    (stable,) = re.findall(r'^wheel.py-api = "cp3(\d+)"', PROJECT, re.MULTILINE)
    # Every Python has its own wheel, or the newest wheel's stable ABI.
    assert max(int(version[2:]) for version in workflow) == int(stable)
    assert {version for version in PYTHONS if int(version[2:]) <= int(stable)} == workflow


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_sleep_and_run_what_exists(path):
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(path.read_text())
    assert "workflow_dispatch" in workflow[True]  # YAML's "on"
    awake = {name for name, job in workflow["jobs"].items()
             if "vars." not in job.get("if", "")}  # fmt: skip
    for name in awake:  # follows one that sleeps
        needs = workflow["jobs"][name].get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        assert needs, name
        assert set(needs) - awake, name
    for script in re.findall(r"bash (\S+)", path.read_text()):
        assert (ROOT / script).is_file()
    for matrix in re.findall(r"python: \[(.*)\]", path.read_text()):
        assert re.findall(r"3\.\d+", matrix) == PYTHONS
