"""No command takes an address for a local path, in any of its options."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from click.testing import CliRunner
from typer.models import ArgumentInfo

from bliss_index.cli.app import app
from bliss_index.cli.export import local_folder
from bliss_index.cli.options import path, path_or_any_uri, path_or_uri, tag_or_file
from bliss_index.errors import OutputError
from bliss_index.storage import open_directory
from bliss_index.storage.directory import write_file
from bliss_index.storage.files import make_directory

NO_PATHS = {
    "model", "template", "key", "device", "devices", "precision", "dtype", "preprocess", "engine",
    "task", "memory", "kind", "prompt", "embedding_column", "embedding_dtype", "key_column",
    "text_column", "index", "search", "protocol", "detectors", "group", "formats", "what",
    "image_weight", "person", "allow_host",
}  # fmt: skip
VALUES = {"kind": "image", "model": "bliss-tiny"}
LOCAL = ("s3:/bucket/x", "s3://bucket/x", "http://127.0.0.1:9/x", "file:///tmp/x")
REFUSED = {
    path: LOCAL,
    tag_or_file: LOCAL,
    local_folder: LOCAL,
    path_or_uri: ("s3:/bucket/x", "http://127.0.0.1:9/x", "file:///tmp/x", "ftp://host/x"),
    path_or_any_uri: ("s3:/bucket/x", "http:/host/x"),
}


@dataclass(frozen=True)
class Given:
    """An option or argument of a command, as its signature declares it."""

    command: str
    name: str
    kind: Any
    info: Any
    required: bool

    @property
    def shown(self) -> str:
        return self.name if isinstance(self.info, ArgumentInfo) else str(self.info.default)

    def with_value(self, value: str) -> list[str]:
        return [value] if isinstance(self.info, ArgumentInfo) else [self.shown, value]


def declared() -> list[Given]:
    found = []
    for command in app.registered_commands:
        signature = inspect.signature(command.callback, eval_str=True)
        for name, parameter in signature.parameters.items():
            kind, info = get_args(parameter.annotation)
            required = parameter.default is inspect.Parameter.empty
            found.append(Given(command.name, name, kind, info, required))
    return found


ALL = declared()
COMMANDS = typer.main.get_command(app)


@pytest.mark.parametrize(
    "given", [pytest.param(g, id=f"{g.command} {g.shown}") for g in ALL if g.info.parser]
)
def test_an_address_is_never_taken_for_a_path(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in REFUSED[given.info.parser]:
        arguments = given.with_value(address)
        for other in ALL:
            if other.command == given.command and other.required and other is not given:
                arguments += other.with_value(VALUES.get(other.name, "mine"))
        done = CliRunner().invoke(COMMANDS, [given.command, *arguments], env={"COLUMNS": "300"})
        assert done.exit_code == 2, done.output
        assert given.shown in done.output.lower() and address in done.output
        assert list(tmp_path.iterdir()) == []


def test_a_data_set_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    protocol = ["--protocol", "cifar10-one-class", "--encoded", "e", "--corpus", "c"]
    done = CliRunner().invoke(COMMANDS, ["evaluate", "s3://bucket/x", *protocol])
    assert done.exit_code == 2 and "TARGET with --encoded" in done.output, done.output
    assert list(tmp_path.iterdir()) == []


def test_every_path_is_read_as_one():
    # Those that are text are known to be something else; a new one is to be thought about.
    texts = [g for g in ALL if g.info.parser is None and g.kind not in (int, float, bool)]
    texts = [g for g in texts if not {int, float, bool} & set(get_args(g.kind))]
    assert {g.name for g in texts} - {"pretrained"} == NO_PATHS
    assert {g.command for g in texts if g.name == "pretrained"} == {"import"}  # a tag alone


def test_no_directory_is_made_for_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for refused in (
        lambda: open_directory(Path("s3://bucket/x")),
        lambda: open_directory("ftp://host/x"),
        lambda: write_file(Path("s3://bucket/x.html"), b""),
        lambda: make_directory(Path("s3://bucket/x")),
    ):
        with pytest.raises(OutputError, match=r"s3:/bucket|ftp://host"):
            refused()
    assert list(tmp_path.iterdir()) == []
