"""A directory used by one job at a time: a courtesy to people, on which no result depends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from bliss_index.errors import OutputError
from bliss_index.storage.directory import Directory, LocalDirectory
from bliss_index.storage.files import output_error

LOCK_NAME = ".lock"
_POLL_SECONDS = 0.02


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
    wait : float, default=0.0
        Seconds to wait for another process that holds it.

    Raises
    ------
    OutputError
        On entry, when another living process holds the lock; it is named.
    """

    def __init__(
        self, directory: Path, name: str = LOCK_NAME, *, shared: bool = False, wait: float = 0.0
    ) -> None:
        self.path = directory / name
        self._wait = wait
        self._kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock; raise OutputError, naming its holder, if another process has it."""
        until = time.monotonic() + self._wait
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
                if time.monotonic() < until:
                    time.sleep(_POLL_SECONDS)
                    continue
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


@contextlib.contextmanager
def locked(directory: Directory, task: str | None = None, *, wait: float = 0.0) -> Iterator[None]:
    """Keep others out of a local directory; the tasks of one array share it.

    Nothing rests on it: without locks, parts are done twice and the first record counts.

    Raises
    ------
    OutputError
        Another job has it; its process is named.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(directory, LocalDirectory):
            stack.enter_context(DirectoryLock(directory.path, shared=task is not None, wait=wait))
            if task is not None:
                name = f".lock-{task.replace('/', '-of-')}"
                stack.enter_context(DirectoryLock(directory.path, name))
        yield
