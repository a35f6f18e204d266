"""Files on any file system that pyarrow or fsspec knows."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.storage.objects import is_object_store, obstore

HIDDEN = "hidden"
NO_FILE = "no file"
_DIGITS = re.compile(r"([0-9]+)")
_PROTOCOLS: dict[str, Any] = {"s3a": "s3", "gcs": "gs", "az": "abfs", "abfss": "abfs"}


@dataclass(frozen=True)
class SourceFile:
    """A file on some file system; `name` is its path within the source."""

    filesystem: pafs.FileSystem
    path: str
    name: str

    def open(self) -> Any:
        """Open for random reading, as a pyarrow file."""
        try:
            handler = getattr(self.filesystem, "handler", None)
            if isinstance(handler, pafs.FSSpecHandler) and "memory" in handler.fs.protocol:
                # All who open such a file share one position in it.
                return pa.BufferReader(handler.fs.cat_file(self.path))
            return self.filesystem.open_input_file(self.path)
        except OSError as error:
            raise InvalidInputError(f"{self.name} cannot be read: {error}") from error

    def stamp(self) -> list[Any]:
        """Its size and modification time in nanoseconds, or an object's tag."""
        handler = getattr(self.filesystem, "handler", None)
        if isinstance(handler, pafs.FSSpecHandler):
            found = handler.fs.info(self.path)
            if tag := found.get("e_tag") or found.get("etag") or found.get("ETag"):
                return [found.get("size"), str(tag)]
        info = self.filesystem.get_file_info(self.path)
        return [info.size, info.mtime_ns]


def resolve(location: str | Path) -> tuple[pafs.FileSystem, str]:
    """Return the file system and the path on it that a path or URI means."""
    text = str(location)
    if "://" not in text:
        return pafs.LocalFileSystem(), str(Path(text).absolute())
    if is_object_store(text):
        obstore()
        from obstore.fsspec import FsspecStore

        scheme, _, path = text.partition("://")
        store = FsspecStore(_PROTOCOLS.get(scheme, scheme))
        return pafs.PyFileSystem(pafs.FSSpecHandler(store)), path.rstrip("/")
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
        return filesystem, path
    except pa.ArrowInvalid:
        pass
    except (pa.ArrowException, OSError) as error:
        raise InvalidInputError(f"{text} cannot be opened: {error}") from error
    try:
        import fsspec
    except ImportError as error:
        raise MissingDependencyError(
            f"{text} needs fsspec to be read ({error}); pip install fsspec"
        ) from error
    try:
        target, path = fsspec.core.url_to_fs(text)
    except Exception as error:  # each of its file systems has errors of its own
        raise InvalidInputError(f"{text} cannot be opened: {error}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(target)), path


def list_files(
    filesystem: pafs.FileSystem, path: str, whole: tuple[str, ...] = ()
) -> tuple[list[SourceFile], dict[str, list[str]]]:
    """Return the files below a folder in order, and the names that were passed over, by reason.

    A folder whose name ends as one of `whole` counts as a file.

    Names are in the order of the numbers in them: ``emb_2`` before ``emb_10``. Passed over are
    hidden names, those that begin with ``_`` (but not ``_year=2020``), and what is no file. A link
    to nowhere is among the files: opening it says so.
    """
    if isinstance(filesystem, pafs.LocalFileSystem):
        found = _walk(path, "", (), whole)
    else:
        root = path.rstrip("/") + "/"
        found = iter(
            dict.fromkeys(
                _within(
                    i.path,
                    i.path.removeprefix(root).removeprefix(root.lstrip("/")),
                    NO_FILE if i.type == pafs.FileType.Unknown else None,
                    whole,
                )
                for i in filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
                if i.type != pafs.FileType.Directory
            )
        )
    files, skipped = [], dict[str, list[str]]()
    for full, name, reason in found:
        if any(map(_is_hidden, name.split("/"))):
            reason = HIDDEN
        if reason is None:
            files.append(SourceFile(filesystem, full, name))
        else:
            skipped.setdefault(reason, []).append(name)
    return sorted(files, key=lambda file: natural(file.name)), skipped


def _within(
    path: str, name: str, reason: str | None, whole: tuple[str, ...]
) -> tuple[str, str, str | None]:
    """A file of a listing, or the folder with it that counts as one."""
    parts = name.split("/")
    for number, part in enumerate(parts[:-1], 1):
        if part.lower().endswith(whole or "/"):
            kept = "/".join(parts[:number])
            return path[: len(path) - len(name)] + kept, kept, None
    return path, name, reason


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort by this to have numbers in the order of their values: ``emb_2`` before ``emb_10``."""
    words: list[str | int] = list(_DIGITS.split(name))
    words[1::2] = map(int, words[1::2])
    return words, name


def _walk(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...], whole: tuple[str, ...]
) -> Iterator[tuple[str, str, str | None]]:
    """Path, name and perhaps a reason against it of all there is below a folder of this machine."""
    try:
        here = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InvalidInputError(f"folder {folder} cannot be read: {error}") from error
    above = (*above, (here.st_dev, here.st_ino))
    for entry in entries:
        name, reason = prefix + entry.name, None
        with contextlib.suppress(OSError):
            found = os.stat(entry.path)  # of a link, of what it leads to
            is_folder = stat.S_ISDIR(found.st_mode) and not _is_hidden(entry.name)
            if is_folder and not entry.name.lower().endswith(whole or "/"):
                if (found.st_dev, found.st_ino) not in above:
                    yield from _walk(entry.path, f"{name}/", above, whole)
                    continue
                reason = "link to a folder that it is in"
            elif not is_folder and not stat.S_ISREG(found.st_mode):
                reason = NO_FILE
        yield entry.path, name, reason


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)
