"""What the pages tell people to type exists: commands, options, files; README's example runs."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from bliss_index.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app).commands


def typed_lines(page: Path) -> list[list[str]]:
    """The words of every ``bliss-index`` line in a page's code, continued lines joined."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (?:\w+=\S+ )*bliss-index (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    for command, *words in typed_lines(page):
        options = {
            name
            for parameter in COMMANDS[command].params
            for name in parameter.opts + parameter.secondary_opts
        }
        options.add("--help")
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in options, f"{command} {word}"


def test_the_readme_shows_commands():
    shown = {words[0] for words in typed_lines(ROOT / "README.md")}
    assert {"encode-text", "encode-images", "calibrate", "score", "report", "evaluate"} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(
        r"\b(?:benchmarks|scripts|tests|docs)/[\w./]+\.(?:py|sh|json|txt|md|png)", text
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is not installed")
def test_the_readmes_example_in_python_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(example, {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines()[-1] == "[ 1  1 -1 -1]"
