"""Files that are either whole or absent, on local and shared file systems."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bliss_index.errors import CorruptStoreError, OutputError
from bliss_index.storage.hashing import file_sha256

TEMPORARY = re.compile(r"\.bliss-[0-9a-f]{16}\.tmp")
"""Names of temporary files, where a file system has no files without a name."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


class HashingFile(io.RawIOBase):
    """A binary file opened for writing that keeps the SHA-256 and size of what passes through."""

    def __init__(self, target: BinaryIO) -> None:
        super().__init__()
        self._target = target
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._target.write(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._target.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def output_error(path: Path | str, error: OSError) -> OutputError:
    """Turn the operating system's refusal to write `path` into an error that says what to do."""
    reason = error.strerror or str(error)
    advice = "choose another output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space and run the same command again; finished parts are kept"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "make it writable or choose another output"
    return OutputError(f"cannot write {path}: {reason}; {advice}")


def is_address(location: str | Path) -> bool:
    """Whether a location is an address; one that was a Path for a while has one slash only."""
    return _ADDRESS.match(str(location)) is not None


def make_directory(path: Path) -> None:
    """Create a directory and its parents durably.

    Raises
    ------
    OutputError
        That is not possible, or the directory is there and cannot be written.
    """
    if is_address(path):
        raise OutputError(f"cannot write {path}: it is an address, not a local directory")
    missing = []
    at = path
    try:
        while not at.exists() and at != at.parent:
            missing.append(at)
            at = at.parent
        path.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_directory(made.parent)
    except OSError as error:
        raise output_error(path, error) from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"cannot write into {path}: it is read-only for this user")


def sync_directory(path: Path) -> None:
    """Make new names inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not know how to sync a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


class NewFile:
    """A file that gets its name only when it is whole and on disk.

    Until then it has no name, so that nothing is left of a killed process. Where a file system
    cannot do that, its name is random and hidden (:data:`TEMPORARY`), and no link is followed.

    Parameters
    ----------
    folder : Path
        Directory in which it will be.

    Attributes
    ----------
    sink : HashingFile
        Where to write the content.

    Raises
    ------
    OutputError
        The operating system refuses: full disk, read-only directory, missing parent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._temporary: Path | None = None
        try:
            self._raw = os.fdopen(self._opened(), "wb")
        except OSError as error:
            raise output_error(folder, error) from error
        self.sink = HashingFile(self._raw)

    def _opened(self) -> int:
        unnamed = getattr(os, "O_TMPFILE", 0)
        if unnamed:
            try:
                return os.open(self._folder, os.O_WRONLY | os.O_CLOEXEC | unnamed, 0o666)
            except OSError as error:
                if error.errno not in _NO_UNNAMED_FILES:
                    raise
        self._temporary = self._folder / _temporary_name()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._temporary, flags, 0o666)

    def commit(self, name: str, *, replace: bool = False) -> bool:
        """Bring the content to disk and give the file its name.

        Parameters
        ----------
        name
            Its name in the folder.
        replace : bool, default=False
            Whether it takes the place of what has the name.

        Returns
        -------
        Whether it has the name now; False where another has it, which stays.

        Raises
        ------
        OutputError
            The operating system refuses; nothing is left behind.
        """
        path = self._folder / name
        try:
            self._raw.flush()
            os.fsync(self._raw.fileno())
            named = self._named(path, replace)
            self._raw.close()
            sync_directory(self._folder)
            return named
        except OSError as error:
            raise output_error(path, error) from error
        finally:
            self.discard()

    def _named(self, path: Path, replace: bool) -> bool:
        if replace:
            if self._temporary is None:
                self._temporary = self._folder / _temporary_name()
                self._link(self._temporary)
            os.replace(self._temporary, path)
            self._temporary = None
            return True
        try:
            self._link(path)
        except FileExistsError:
            return False
        return True

    def _link(self, path: Path) -> None:
        if self._temporary is not None and self._temporary != path:
            os.link(self._temporary, path, follow_symlinks=False)
            return
        # A file without a name is linked by its descriptor (see open(2), O_TMPFILE).
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            source = f"/proc/self/fd/{self._raw.fileno()}"
            os.link(source, path, src_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Leave nothing behind that has no name yet; what had the name before keeps it."""
        with contextlib.suppress(OSError):
            self._raw.close()  # which tries once more to write what a full disk did not take
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            self._temporary = None


def _temporary_name() -> str:
    return f".bliss-{secrets.token_hex(8)}.tmp"


def commit_content(file: NewFile, folder: Path, name: str) -> None:
    """Give a file a name that says its content; a damaged one of that name is replaced.

    Raises
    ------
    OutputError
        The operating system refuses.
    """
    path = folder / name
    try:
        there: str | None = file_sha256(path)
    except OSError:
        there = None
    if there == file.sink.sha256:
        file.discard()
    else:
        file.commit(name, replace=there is not None)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[HashingFile]:
    """Write a file that replaces what is at `path` only when it is whole and on disk.

    On any exception `path` is left as it was.

    Raises
    ------
    OutputError
        When the operating system refuses: full disk, read-only directory, missing parent.
    """
    file = NewFile(path.parent)
    try:
        yield file.sink
        file.commit(path.name, replace=True)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        file.discard()


def remove_temporaries(directory: Path) -> None:
    """Remove our temporary files of a directory that is ours, once nobody else writes there."""
    for leftover in directory.iterdir():
        if TEMPORARY.fullmatch(leftover.name):
            with contextlib.suppress(FileNotFoundError):
                leftover.unlink()


def json_bytes(values: Any) -> bytes:
    """Write `values` as JSON with sorted keys: equal values give equal bytes."""
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def write_json(path: Path, values: Any) -> None:
    """Write `values` as JSON, atomically, with sorted keys."""
    with atomic_file(path) as sink:
        sink.write(json_bytes(values))


def parse_json(data: bytes, name: Path | str) -> dict[str, Any]:
    """Read a JSON object; raise `CorruptStoreError`, naming the file, if it is none."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{name} is not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptStoreError(f"{name} holds a {type(values).__name__}, expected an object")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise `CorruptStoreError`, naming the file, if it does not hold one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptStoreError(f"{path} is not readable as JSON: {error}") from error
    return parse_json(data, path)
