"""What a directory says of the job that writes it: ``_job.json``."""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from bliss_index.errors import CorruptStoreError, JobError, StoreError
from bliss_index.storage import Directory
from bliss_index.storage.files import json_bytes, parse_json

JOB_NAME = "_job.json"
SCREEN_KIND = "screen"
"""Of a directory that holds the directories of several works; see ``screening/``."""
MANIFEST_NAME = "manifest.json"
JOB_FORMAT = "bliss_index.job"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class JobDescription:
    """The description of a job; written once, when it begins.

    Attributes
    ----------
    kind : str
        What it makes.
    settings : dict
        Everything that decides the output; must not change between runs.
    plan : str or None
        Name of the file that lists its parts; None where they are made up as rows come in.
    facts : dict
        What else is good to know: where the input was, names.
    versions : dict
        Of the libraries that began the job.
    begun_in : str
        Working directory in which it was begun: what relative paths are relative to.
    """

    kind: str
    settings: dict[str, Any]
    plan: str | None
    facts: dict[str, Any]
    versions: dict[str, str]
    begun_in: str = "."

    def find(self, path: str) -> str:
        """Return where a path of the job is now, also when asked from another directory."""
        if "://" not in path and not Path(path).exists():
            elsewhere = Path(self.begun_in) / path
            if elsewhere.exists():
                return str(elsewhere)
        return path

    def create(self, directory: Directory) -> bool:
        """Write ``_job.json``; False where another runner was first."""
        values = {"format": JOB_FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return directory.create(JOB_NAME, json_bytes(values))

    @classmethod
    def read(cls, directory: Directory) -> JobDescription:
        """Read ``_job.json``.

        Raises
        ------
        FileNotFoundError
            There is none.
        CorruptStoreError
            It is damaged, or of another format version.
        """
        name = f"{directory.uri}/{JOB_NAME}"
        values = parse_json(directory.read(JOB_NAME), name)
        require_format(name, values, JOB_FORMAT)
        kinds: dict[str, Any] = {
            "kind": str, "settings": dict, "plan": (str, type(None)), "facts": dict,
            "versions": dict, "begun_in": str,
        }  # fmt: skip
        for key, kind in kinds.items():
            if not isinstance(values.get(key), kind):
                raise CorruptStoreError(f"{name} is damaged: {key!r} is {values.get(key)!r}")
        return cls(**{key: values[key] for key in kinds})


def begun_in() -> str:
    """The working directory, '.' where it was removed; then all paths are absolute."""
    try:
        return str(Path.cwd())
    except OSError:
        return "."


def read_description(directory: Directory, expected: str, *, what: str, how: str) -> dict[str, Any]:
    """Read the manifest that says what a directory is.

    Parameters
    ----------
    directory
        The directory.
    expected
        The format that it must have.
    what, how
        What the directory should be, and the commands that make one, for the message.

    Raises
    ------
    StoreError
        The directory has no manifest.
    CorruptStoreError
        It is no JSON object, of another format, or of another version.
    """
    name = f"{directory.uri}/{MANIFEST_NAME}"
    try:
        values = parse_json(directory.read(MANIFEST_NAME), name)
    except FileNotFoundError:
        raise StoreError(
            f"{directory.uri} is not {what}: it has no {MANIFEST_NAME}. Make one with {how}."
        ) from None
    require_format(name, values, expected)
    return values


def require_format(path: Path | str, values: dict[str, Any], expected: str) -> None:
    """Refuse a JSON file of another kind or of another format version, naming both."""
    found = values.get("format")
    if found != expected and not str(found).startswith("bliss_index."):
        raise CorruptStoreError(
            f"{path} has format {found!r}, expected {expected!r}: is this the right directory?"
        )
    version = values.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version > FORMAT_VERSION:
        raise CorruptStoreError(
            f"{path} has format version {version!r}, this version reads {FORMAT_VERSION}; "
            "written by a newer bliss_index? Upgrade, or make it again."
        )
    if version < FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {version}, of a bliss_index before its first release; "
            f"this version reads {FORMAT_VERSION}. Make it again: run the command that made it "
            "with another output"
        )
    if found != expected:
        raise CorruptStoreError(
            f"{path} has format {found!r}, expected {expected!r}: is this the right directory?"
        )


def require_same(
    begun: dict[str, Any],
    now: dict[str, Any],
    directory: str | Path,
    incidental: Collection[str] = (),
) -> None:
    """Refuse what differs from what a job was begun with, naming both values.

    Names that end in one of `incidental` are not compared.

    Raises
    ------
    JobError
        A setting differs.
    """
    before, after = _flat(begun), _flat(now)
    for name in sorted({*before, *after}):
        if name.rpartition(" ")[2] not in incidental and before.get(name) != after.get(name):
            raise JobError(
                f"{directory} was begun with {name} {before.get(name)!r}, now it is "
                f"{after.get(name)!r}; continue with what it was begun with, or choose another "
                "output"
            )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings under both their names, so that a message shows only what differs."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            result.update({f"{name} {inner}": item for inner, item in value.items()})
        else:
            result[name] = value
    return result


def library_versions() -> dict[str, str]:
    """Versions of the packages that make and read embeddings, of those that are installed."""
    versions = {"python": platform.python_version()}
    for name in ("bliss-index", "numpy", "pyarrow", "torch", "open_clip_torch"):
        if (version := _installed_version(name)) is not None:
            versions[name] = version
    return versions


@cache
def _installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
