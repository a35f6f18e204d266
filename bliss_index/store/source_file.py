"""Files on any file system that pyarrow or fsspec knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.storage.objects import is_object_store, obstore

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
    except (ValueError, ImportError) as error:
        raise InvalidInputError(f"{text} cannot be opened: {error}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(target)), path


def list_files(filesystem: pafs.FileSystem, path: str) -> list[SourceFile]:
    """Return the files below a folder by name, without hidden ones and those that begin with _."""
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    root = path.rstrip("/") + "/"
    files = []
    for info in found:
        name = info.path.removeprefix(root).removeprefix(root.lstrip("/"))
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        if info.type == pafs.FileType.File and not hidden:
            files.append(SourceFile(filesystem, info.path, name))
    return sorted(files, key=lambda file: file.name)
