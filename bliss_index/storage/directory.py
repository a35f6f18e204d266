"""A directory of a job, wherever it is: files are created exclusively and never change."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from bliss_index.errors import CorruptStoreError, OutputError, StoreError
from bliss_index.storage.files import (
    HashingFile,
    NewFile,
    atomic_file,
    commit_content,
    is_address,
    json_bytes,
    make_directory,
    output_error,
    remove_temporaries,
)
from bliss_index.storage.hashing import stream_sha256
from bliss_index.storage.objects import SCHEMES, ObjectDirectory, is_object_store

N = TypeVar("N")
T = TypeVar("T")


class NewContent(Protocol):
    """A file that is being written; see :meth:`Directory.new_file`.

    Attributes
    ----------
    sink : HashingFile
        Where to write the content.
    """

    sink: HashingFile

    def commit(self, name: str) -> None:
        """Make it durable under a name that says its content; OutputError where that fails."""
        ...

    def discard(self) -> None:
        """Leave nothing behind."""
        ...


class Directory(Protocol):
    """Files by name, in a local directory or an object store.

    Attributes
    ----------
    uri : str
        Path or URI, for messages and to open it elsewhere.
    """

    uri: str

    def make(self) -> None:
        """Create it where it is missing; OutputError where it cannot be written."""
        ...

    def names(self, folder: str = "") -> dict[str, int]:
        """Names and sizes of the files in a folder of it; empty where there is none."""
        ...

    def listed(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """The same one by one, without a dictionary of all of them."""
        ...

    def everything(self) -> list[str]:
        """Names of all that it holds, folders too; empty where it is missing."""
        ...

    def read(self, name: str) -> bytes:
        """Read a file; FileNotFoundError where it is missing, CorruptStoreError on failure."""
        ...

    def mapped(self, name: str) -> pa.Buffer:
        """The content of a file that never changes; FileNotFoundError where it is missing."""
        ...

    def open(self, name: str) -> Any:
        """Open a file for random reading; errors as of :meth:`read`."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file durably unless it is there already, whole or not at all.

        Returns
        -------
        Whether it was written; False where there was one, which stays.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a file durably in the place of what may be there."""
        ...

    def new_file(self, folder: str = "") -> NewContent:
        """Begin a file, in a folder of it, that gets its name when it is whole."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file of ours; does nothing where it is missing."""
        ...

    def tidy(self) -> None:
        """Remove temporary files of ours; only once nobody else writes here."""
        ...


class LocalDirectory:
    """A directory of a local or shared file system; see :class:`Directory`.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.uri = str(path)

    def make(self) -> None:
        make_directory(self.path)

    def names(self, folder: str = "") -> dict[str, int]:
        return dict(self.listed(folder))

    def listed(self, folder: str = "") -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    # A file that another process has just removed is none, nor is a link that
                    # leads to itself.
                    try:
                        found = os.stat(entry.path)
                    except OSError as error:
                        if error.errno not in (errno.ENOENT, errno.ELOOP):
                            raise
                        continue
                    if stat.S_ISREG(found.st_mode):
                        yield entry.name, found.st_size
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StoreError(f"{self.path / folder} cannot be read: {error.strerror}") from error

    def everything(self) -> list[str]:
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(str(error)) from error
        except OSError as error:
            raise CorruptStoreError(
                f"{self.path / name} cannot be read: {error.strerror}"
            ) from error

    def mapped(self, name: str) -> pa.Buffer:
        try:
            if (self.path / name).stat().st_size == 0:
                return pa.py_buffer(b"")
            with pa.memory_map(str(self.path / name)) as source:
                return source.read_buffer()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CorruptStoreError(f"{self.path / name} cannot be read: {error}") from error

    def open(self, name: str) -> Any:
        try:
            return pa.OSFile(str(self.path / name))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CorruptStoreError(f"{self.path / name} cannot be read: {error}") from error

    def create(self, name: str, data: bytes) -> bool:
        return self._write(name, data, replace=False)

    def replace(self, name: str, data: bytes) -> None:
        self._write(name, data, replace=True)

    def _write(self, name: str, data: bytes, *, replace: bool) -> bool:
        path = self.path / name
        if not path.parent.is_dir():
            make_directory(path.parent)
        file = NewFile(path.parent)
        try:
            file.sink.write(data)
            return file.commit(path.name, replace=replace)
        except OSError as error:
            raise output_error(path, error) from error
        finally:
            file.discard()

    def new_file(self, folder: str = "") -> NewContent:
        if folder:
            make_directory(self.path / folder)
        return _LocalContent(self.path / folder)

    def remove(self, name: str) -> None:
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise output_error(self.path / name, error) from error

    def tidy(self) -> None:
        for folder in (self.path, *(p for p in self.path.glob("_*") if p.is_dir())):
            remove_temporaries(folder)


class _LocalContent:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = NewFile(folder)
        self.sink = self._file.sink

    def commit(self, name: str) -> None:
        commit_content(self._file, self._folder, name)

    def discard(self) -> None:
        self._file.discard()


def open_directory(location: str | Path) -> Directory:
    """Open a directory by path; nothing is created yet.

    Raises
    ------
    OutputError
        It is an address of a kind that cannot be written.
    MissingDependencyError
        It is in an object store, and obstore is not installed.
    """
    if is_object_store(str(location)):
        return ObjectDirectory(str(location))
    if is_address(location):
        raise OutputError(
            f"{location} cannot be used: a directory of bliss_index is in a (shared) file system "
            f"or in an object store ({', '.join(f'{scheme}://' for scheme in SCHEMES)})"
        )
    return LocalDirectory(location)


def write_file(location: str | Path, data: bytes) -> None:
    """Write a file, whole or not at all, in the place of what may be there; make its directory.

    Raises
    ------
    OutputError
        It cannot be written there.
    """
    folder, _, name = str(location).rpartition("/")
    directory = open_directory(folder or ("/" if str(location).startswith("/") else "."))
    directory.make()
    directory.replace(name, data)


@contextlib.contextmanager
def whole_file(directory: Directory, name: str) -> Iterator[HashingFile]:
    """Write a file of a directory, in place of what may be there, when the block ends well.

    Raises
    ------
    OutputError
        It cannot be written there; nothing is left behind then.
    """
    if isinstance(directory, LocalDirectory):
        path = directory.path / name
        make_directory(path.parent)
        with atomic_file(path) as sink:
            yield sink
        return
    folder, _, last = name.rpartition("/")
    file = directory.new_file(folder)
    try:
        yield file.sink
        file.commit(last)
    except OSError as error:  # of the local disk, where it is gathered
        raise output_error(f"{directory.uri}/{name}", error) from error
    finally:
        file.discard()


def content_sha256(directory: Directory, name: str) -> str:
    """Return the SHA-256 of a file of a directory; errors as of :meth:`Directory.read`."""
    try:
        with directory.open(name) as file:
            return stream_sha256(file)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptStoreError(f"{directory.uri}/{name} cannot be read: {error}") from error


def write_json(directory: Directory, name: str, values: object) -> None:
    """Replace a JSON file of a directory."""
    directory.replace(name, json_bytes(values))


def read_named(name: Callable[[], N], read: Callable[[N], T]) -> T:
    """Read what a manifest names; again where that has been replaced meanwhile.

    Parameters
    ----------
    name, read
        Read the manifest, and what it names.

    Raises
    ------
    CorruptStoreError
        What is named cannot be read, twice.
    """
    failed: list[N] = []
    while True:
        named = name()
        try:
            return read(named)
        except CorruptStoreError:
            if failed[-1:] == [named]:
                raise
            failed.append(named)
