"""Local copies of what was read from an object store, by content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bliss_index.errors import StoreError
from bliss_index.storage.directory import Directory, open_directory
from bliss_index.storage.files import NewFile, make_directory

MANIFEST_NAME = "manifest.json"
_FOLDERS = ("", "index")


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
    """
    if "://" not in str(location):
        return Path(location)
    directory = open_directory(location)
    try:
        manifest = directory.read(MANIFEST_NAME)
    except FileNotFoundError as error:
        raise StoreError(
            f"{location} holds no {MANIFEST_NAME}: nothing complete is there"
        ) from error
    copy = cache_folder() / hashlib.sha256(manifest).hexdigest()[:32]
    for folder in _FOLDERS:
        for name, size in directory.names(folder).items():
            if not name.startswith("_"):
                _fetch(directory, copy, folder, name, size)
    return copy


def _fetch(directory: Directory, copy: Path, folder: str, name: str, size: int) -> None:
    target = copy / folder / name
    # Records of indexes change while their directory stays the same.
    if (
        not (folder and name.endswith(".json"))
        and target.is_file()
        and (target.stat().st_size == size)
    ):
        return
    make_directory(target.parent)
    file = NewFile(target.parent)
    try:
        file.sink.write(directory.mapped(f"{folder}/{name}" if folder else name))
        file.commit(name, replace=True)
    finally:
        file.discard()
