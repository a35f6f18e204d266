"""Files that are either whole or absent, directories used by one job at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bliss_index.errors import CorruptStoreError, OutputError

TEMPORARY_SUFFIX = ".tmp"
LOCK_NAME = ".lock"


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


def output_error(path: Path, error: OSError) -> OutputError:
    """Turn the operating system's refusal to write `path` into an error that says what to do."""
    reason = error.strerror or str(error)
    advice = "choose another output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space and run the same command again; finished shards are kept"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "make it writable or choose another output"
    return OutputError(f"cannot write {path}: {reason}; {advice}")


def make_directory(path: Path) -> None:
    """Create a directory and its parents; raise `OutputError` where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    if not os.access(path, os.W_OK):
        raise OutputError(f"cannot write into {path}: it is read-only for this user")


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not know how to sync a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


class AtomicFile:
    """A file that appears under its name only when whole and on disk.

    The content goes to a temporary name in the same directory; :meth:`commit` syncs and renames it.
    :func:`atomic_file` does both where one block writes everything.

    Attributes
    ----------
    sink
        Where to write the content.

    Raises
    ------
    OutputError
        The operating system refuses: full disk, read-only directory, missing parent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
        try:
            self._raw = open(self._temporary, "wb")  # noqa: SIM115
        except OSError as error:
            raise output_error(path, error) from error
        self.sink = HashingFile(self._raw)

    def commit(self) -> None:
        """Bring the content to disk and give the file its name; raise OutputError, or do it."""
        try:
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            os.replace(self._temporary, self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            self.discard()
            raise output_error(self._path, error) from error

    def discard(self) -> None:
        """Remove what was written; what had the name before keeps it."""
        with contextlib.suppress(OSError):
            self._raw.close()  # which tries once more to write what a full disk did not take
        with contextlib.suppress(OSError):
            self._temporary.unlink()


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[HashingFile]:
    """Write a file that appears under its name only when whole and on disk.

    On any exception the temporary file is removed and `path` is left as it was.

    Raises
    ------
    OutputError
        When the operating system refuses: full disk, read-only directory, missing parent.
    """
    file = AtomicFile(path)
    try:
        yield file.sink
        file.commit()
    except BaseException as error:
        file.discard()
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise


def remove_temporaries(directory: Path) -> None:
    """Remove what a killed writer left behind; call it only while holding the directory's lock."""
    for leftover in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            leftover.unlink()


def write_json(path: Path, values: Any) -> None:
    """Write `values` as JSON, atomically, with sorted keys: equal values give equal bytes."""
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as sink:
        sink.write(text.encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise `CorruptStoreError`, naming the file, if it does not hold one."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptStoreError(f"{path} holds a {type(values).__name__}, expected an object")
    return values


class DirectoryLock:
    """Exclusive use of an output directory by one process, as a context manager.

    The lock is the operating system's (flock), so it ends with the process that holds it however
    that process ends: a lock file left by a dead process does not stand in the way.

    Parameters
    ----------
    directory
        What is locked.
    name
        Of the lock file in it.
    shared
        Let others in who also ask for a shared lock, as the tasks of one job array do.

    Raises
    ------
    OutputError
        On entry, when another living process holds the lock; it is named.
    """

    def __init__(self, directory: Path, name: str = LOCK_NAME, *, shared: bool = False) -> None:
        self.path = directory / name
        self._kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock; raise OutputError, naming its holder, if another process has it."""
        while self._descriptor is None:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise output_error(self.path, error) from error
            try:
                fcntl.flock(descriptor, self._kind | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise OutputError(
                    f"{self.path.parent} is in use by another job ({owner or 'starting'}). "
                    "Wait for it to end, or choose another output."
                ) from None
            except OSError as error:
                os.close(descriptor)
                raise output_error(self.path, error) from error
            if self._is_current(descriptor):
                self._descriptor = descriptor
            else:  # its last owner removed the file between our open and our lock
                os.close(descriptor)
        owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"
        # Who holds it is said for people only; on a full disk the lock holds all the same.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, owner.encode(), 0)

    def release(self) -> None:
        """Give the lock up; does nothing if it is not held."""
        if self._descriptor is not None:
            # The file goes with its last owner: who cannot have it alone leaves it to the others.
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> DirectoryLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.stat(self.path).st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False
