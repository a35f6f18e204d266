"""Remedies that errors and notices print: they exist, and the main ones help when they are run."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
from command import run
from test_cli import MODEL, SCORE, chain

from bliss_index.cli.app import app
from bliss_index.errors import install_line

PACKAGE = Path(__file__).parents[1] / "bliss_index"
APP = typer.main.get_command(app)
COMMANDS = APP.commands
OPTIONS = {
    name: {
        "--help",
        *(option for given in command.params for option in given.opts + given.secondary_opts),
    }
    for name, command in COMMANDS.items()
}
EVERY_OPTION = set().union(*OPTIONS.values(), *(param.opts for param in APP.params))
EXTRAS = re.findall(r"^(\S+) = \[", (PACKAGE.parent / "pyproject.toml").read_text().split(
    "[project.optional-dependencies]")[1].split("\n[")[0], re.MULTILINE)  # fmt: skip
# A command, perhaps what it works on, and its options.
_USE = re.compile(rf"(?<!-)\b({'|'.join(COMMANDS)})((?: [A-Z/][^\s;]*)*(?: --?[a-z-]+[^;.)']*)+)")
# A compiler's options; and any extra's line, whose extras a test below looks at.
SILENT = {"search/hopper/launch.py", "errors.py"}

_ = chain  # a fixture


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Strings of a module with their lines, what is filled in as X; no docstrings."""
    tree = ast.parse(source)
    inner = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node) if part is not node
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(id(node.value))
    for node in ast.walk(tree):
        if id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def wrong_in(text: str) -> list[str]:
    """What a text tells people to type that does not exist."""
    found = []
    for command in re.findall(r"bliss-index ([a-z][a-z-]*)", text):
        if command not in COMMANDS:
            found.append(f"no command {command}")
    named = _USE.findall(text)
    for command, words in named:
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", words):
            if option not in OPTIONS[command]:
                found.append(f"{command} has no {option}")
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
        if option not in EVERY_OPTION:
            found.append(f"no command has {option}")
    for extra in re.findall(r"bliss-index\[([\w-]+)\]", text):
        if extra not in EXTRAS:
            found.append(f"no extra {extra}")
    return found


def test_what_messages_tell_people_to_type_exists():
    remedies, wrong = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name in SILENT:
            continue
        for line, text in texts_of(path.read_text()):
            remedies += "bliss-index " in text or " --" in text
            wrong += [f"{name}:{line}: {what}" for what in wrong_in(text)]
    assert wrong == []
    assert remedies > 50  # else they are not found any more


def test_extras_that_messages_install_exist():
    named = [
        ast.literal_eval(node.args[0])
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "install_line"
    ]
    assert set(named) <= set(EXTRAS)
    assert len(named) > 5  # else they are not found any more


def test_an_extra_is_added_without_an_index_that_has_the_package():
    """pip takes the package from where it is installed; all that the extra needs is here."""
    for needed in ("jinja2", "matplotlib", "sklearn", "pip"):
        pytest.importorskip(needed)
    line = shlex.split(install_line("report"))
    here = [sys.executable, "-m", *line, "--no-index", "--dry-run", "--isolated"]
    done = subprocess.run(here, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    elsewhere = [*here[:4], "bliss-index-of-nobody[report]", *here[5:]]
    assert subprocess.run(elsewhere, capture_output=True, check=False, timeout=120).returncode


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("build it: bliss-index build X --index flat", []),
        ("build it: bliss-index make X", ["no command make"]),
        ("build it: bliss-index build X --kind flat", ["build has no --kind"]),
        ("set a shrinkage (calibrate --shrink 10)", ["calibrate has no --shrink",
                                                     "no command has --shrink"]),
        ("leave --texts out, lower --wrokers", ["no command has --wrokers"]),
        ("pip install 'bliss-index[ryay]'", ["no extra ryay"]),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_found(text, wrong):
    assert wrong_in(text) == wrong


def command_in(message: str) -> list[str]:
    """The command that a message says to run."""
    (found,) = re.findall(r"bliss-index (\S+ .*?)(?:$|;|\.\s)", message, re.MULTILINE)
    return shlex.split(found)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_that_is_missing_or_damaged_is_built_as_said(chain, tmp_path, kind):
    pytest.importorskip("faiss")
    folder, _ = chain
    shutil.copytree(folder / "corpus", tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus" / "index", ignore_errors=True)
    score = ["score", folder / "test", "--corpus", tmp_path / "corpus", "--calibration",
             folder / "calibration", "--search", kind, "--out"]  # fmt: skip
    _, err = run(*score, tmp_path / "s", code=1)
    run(*command_in(err))
    run(*score, tmp_path / "s")
    (file,) = (tmp_path / "corpus" / "index").glob("*.faiss")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    _, err = run(*score, tmp_path / "t", code=1)
    run(*command_in(err))
    run(*score, tmp_path / "t")


def test_options_that_errors_name_help(chain, tmp_path):
    """Each with the values that the message suggests, or the only ones that make sense."""
    folder, _ = chain
    rows = ["import", folder / "vocabulary.npy", "--kind", "text", *MODEL, "--out", tmp_path / "w"]
    for command, option, values in [
        (rows, "--texts", [folder / "vocabulary.txt"]),
        (["calibrate", folder / "normal", "--classes", folder / "classes", "--out",
          tmp_path / "c"], "--assign", ["--shrinkage", 10]),
        (["score", folder / "test", *SCORE, "--out", tmp_path / "s", "--memory", "1MiB"],
         "--memory", ["8GiB"]),
        (["evaluate", folder / "test", "--protocol", "one-class", "--labels",
          folder / "test.txt", "--normal", folder / "normal", "--normal-labels",
          folder / "labels.txt", "--corpus", folder / "corpus"], "--classes",
         [folder / "classes"]),
    ]:  # fmt: skip
        (folder / "test.txt").write_text("cat\n" * 50 + "dog\n" * 40 + "cow\n" * 10)
        _, err = run(*command, cwd=folder, code=2 if "evaluate" in command else 1)
        assert option in err
        run(*command, option, *values, cwd=folder)


def test_bad_rows_of_texts_are_dropped_into_another_store(chain, tmp_path):
    folder, _ = chain
    rows = np.load(folder / "vocabulary.npy")
    rows[3] = 0
    np.save(tmp_path / "rows.npy", rows)
    command = ["import", tmp_path / "rows.npy", "--kind", "text", *MODEL, "--texts",
               folder / "vocabulary.txt", "--out"]  # fmt: skip
    _, err = run(*command, tmp_path / "a", code=1)
    assert "--drop-bad-rows and another --out" in err
    run(*command, tmp_path / "b", "--drop-bad-rows")
