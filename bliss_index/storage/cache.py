"""Local copies of what was read from an object store, by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from bliss_index.errors import CorruptStoreError, InvalidInputError, OutputError, StoreError
from bliss_index.storage.directory import Directory, LocalDirectory, open_directory
from bliss_index.storage.files import NewFile, make_directory
from bliss_index.storage.hashing import file_sha256

MANIFEST_NAME = "manifest.json"
_CONTENT_NAME = re.compile(r".*\.([0-9a-f]{16})\.[a-z]+")


def cache_folder() -> Path:
    """Where copies are: BLISS_INDEX_CACHE, else the user's folder for caches."""
    given = os.environ.get("BLISS_INDEX_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bliss_index"


def local_copy(location: str | Path) -> Path:
    """Return a local directory with the content of a corpus or calibration.

    A path is returned as it is. A URI's files are fetched, unless they are there already: a copy
    is named by the manifest's hash, and its files are compared with the manifest when they are
    read, like all others.

    Raises
    ------
    StoreError
        There is no manifest, or it cannot be fetched.
    CorruptStoreError
        A file is not what its name says.
    """
    directory = open_directory(location)
    if isinstance(directory, LocalDirectory):
        return directory.path
    try:
        manifest = directory.read(MANIFEST_NAME)
    except FileNotFoundError as error:
        raise StoreError(
            f"{location} holds no {MANIFEST_NAME}: nothing complete is there"
        ) from error
    copy = LocalDirectory(cache_folder() / hashlib.sha256(manifest).hexdigest()[:32])
    have = copy.names()
    for name, size in directory.names().items():
        if _CONTENT_NAME.fullmatch(name) and have.get(name) != size:
            _fetch(directory, name, copy.path, name)
    if have.get(MANIFEST_NAME) != len(manifest):  # not fetched again: it may be another by now
        copy.replace(MANIFEST_NAME, manifest)
    return copy.path


def local_file(location: str | Path) -> Path:
    """Return a local file with the content of a list, labels or scores: a path, or a copy.

    Raises
    ------
    InvalidInputError
        There is no such object.
    """
    folder, _, name = str(location).rpartition("/")
    directory = open_directory(folder or "/")
    if isinstance(directory, LocalDirectory):
        return Path(location)
    try:
        return _fetch(directory, name, cache_folder())
    except FileNotFoundError as error:
        raise InvalidInputError(f"{location} does not exist") from error


def checked_file(directory: Directory, name: str, sha256: str) -> Path:
    """Return a local file, or a copy, with the content that a file of a directory should have.

    Raises
    ------
    FileNotFoundError
        It is missing.
    CorruptStoreError
        It has another hash; both are named.
    """
    if isinstance(directory, LocalDirectory):
        path = directory.path / name
    else:
        short = name.rpartition("/")[2]
        path = cache_folder() / sha256[:32] / short
        if not path.is_file() or file_sha256(path) != sha256:
            path = _fetch(directory, name, path.parent, short)
    found = file_sha256(path)
    if found != sha256:
        raise CorruptStoreError(
            f"{directory.uri}/{name} has SHA-256 {found}, its record says {sha256}: truncated or "
            "altered"
        )
    return path


def _fetch(directory: Directory, name: str, folder: Path, target: str = "") -> Path:
    """Copy a file into a folder, under a name that begins with its hash if none is given."""
    with directory.open(name) as source, _copying(folder) as file:
        shutil.copyfileobj(source, file.sink, 1 << 20)
        digest = file.sink.sha256
        named = _CONTENT_NAME.fullmatch(name)
        if named is not None and not digest.startswith(named[1]):
            raise CorruptStoreError(
                f"{directory.uri}/{name} has SHA-256 {digest}, its name says {named[1]}: "
                "altered; restore it, or make it again"
            )
        target = target or f"{digest[:32]}-{name}"
        file.commit(target, replace=True)
    return folder / target


@contextlib.contextmanager
def _copying(folder: Path) -> Iterator[NewFile]:
    """A new file of the cache; OutputError where it cannot be written."""
    try:
        make_directory(folder)
        file = NewFile(folder)
        try:
            yield file
        finally:
            file.discard()
    except (OSError, OutputError) as error:
        raise OutputError(
            f"what is in an object store is copied to {folder}, which fails: {error}. "
            "BLISS_INDEX_CACHE names another folder"
        ) from error
