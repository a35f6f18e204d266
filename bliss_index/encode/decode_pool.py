"""Processes that decode images, and never hang the job.

Every worker holds one task at a time and its parent knows which, and since when. A worker that
dies (a codec's crash, the memory killer) or exceeds its time is replaced. Answers come image by
image, so the image at fault is known and is the only one given up, with the reason. Pixels lie in
memory that both map, only reasons are sent. A worker is a program of its own: a fork after torch
has started threads deadlocks, and multiprocessing's spawn would run the caller's script again.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.encode.decode import MAX_PIXELS, DecodeError, decode_image
from bliss_index.encode.preprocess import Preprocess
from bliss_index.errors import InvalidInputError, JobError

if TYPE_CHECKING:
    from typing_extensions import Self

START_SECONDS = 120.0
TASK_IMAGES = 8
"""Images that a worker is given at a time, at most."""

_POLL_SECONDS = 0.5
_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from bliss_index.encode.decode_pool import serve
serve({connection}, {memory})
"""

Content = bytes | str
Pixels = npt.NDArray[np.uint8]
Task = tuple[Sequence[Content], Pixels]
"""Images, and where their pixels go: (images, height, width, 3) uint8."""


@dataclass(frozen=True)
class DecodeSettings:
    """What a worker needs to know.

    Attributes
    ----------
    preprocess : Preprocess
    max_pixels : int
        Larger images are refused by their header.
    timeout : float
        Seconds for one image.
    """

    preprocess: Preprocess
    max_pixels: int = MAX_PIXELS
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or not self.timeout > 0:
            raise InvalidInputError(
                f"max_pixels is {self.max_pixels}, timeout is {self.timeout}; both must be positive"
            )


def decode_pixels(content: Content, settings: DecodeSettings, out: Pixels) -> str:
    """Decode, resize and crop one image; return the reason if there are no pixels, else ""."""
    try:
        image = decode_image(content, max_pixels=settings.max_pixels)
        out[...] = settings.preprocess.pixels(image)
    except DecodeError as error:
        return str(error)
    except InvalidInputError as error:
        return f"unsupported_shape: {error}"
    except MemoryError:
        return "too_large: not enough memory to decode and resize it"
    return ""


@dataclass
class _Given:
    """Images of a task, of which a worker has done some."""

    number: int
    contents: list[Content]
    out: Pixels
    offset: int = 0  # of its first image within the task as it was given
    done: int = 0
    repeated: bool = False


@dataclass
class _Decoder:
    process: subprocess.Popen[bytes]
    connection: Any
    pixels: Pixels
    deadline: float
    ready: bool = False
    task: _Given | None = None


@dataclass
class _Result:
    missing: int
    reasons: list[str]


class DecodePool:
    """Decode lists of images in order, by several processes.

    Parameters
    ----------
    settings : DecodeSettings
    workers : int
        Number of processes; 0 decodes in the calling thread, without a time limit.

    Attributes
    ----------
    replaced : int
        Processes that died or were ended for exceeding their time.

    Notes
    -----
    Use as a context manager; leaving it ends the processes.
    """

    def __init__(self, settings: DecodeSettings, workers: int) -> None:
        if workers < 0:
            raise InvalidInputError(f"decoders is {workers}, must be 0 or more")
        self._settings = settings
        self._stopped = False
        self._repeats: deque[_Given] = deque()
        self._results: dict[int, _Result] = {}
        self.replaced = 0
        self._workers = [self._start() for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._workers:
            _end(self._workers.pop())

    def stop(self) -> None:
        """Let :meth:`map` return early; callable from another thread."""
        self._stopped = True

    def map(self, tasks: Iterable[Task]) -> Iterator[list[str]]:
        """Fill in the pixels of each task's images, in the order of the tasks.

        A task holds at most :data:`TASK_IMAGES` images.

        Yields
        ------
        list of str
            For each image of a task the reason why it has no pixels, or "".

        Raises
        ------
        JobError
            The processes do not start.
        """
        if not self._workers:
            for contents, out in tasks:
                yield [
                    decode_pixels(content, self._settings, pixels)
                    for content, pixels in zip(contents, out, strict=True)
                ]
            return
        source = enumerate(tasks)
        following, exhausted = 0, False
        while not self._stopped:
            for worker in [w for w in self._workers if w.ready and w.task is None]:
                task = self._repeats.popleft() if self._repeats else None
                # Read ahead only as far as the slowest task allows.
                if task is None and not exhausted and len(self._results) < 3 * len(self._workers):
                    number, given = next(source, (-1, None))
                    exhausted = given is None
                    if given is not None:
                        contents = list(given[0])
                        self._results[number] = _Result(len(contents), [""] * len(contents))
                        task = _Given(number, contents, given[1]) if contents else None
                if task is not None:
                    self._give(worker, task)
            while following in self._results and self._results[following].missing == 0:
                yield self._results.pop(following).reasons
                following += 1
            if exhausted and not self._results:
                return
            self._collect()

    def _start(self) -> _Decoder:
        shape = (TASK_IMAGES, *self._settings.preprocess.size, 3)
        memory = _unnamed_file(int(np.prod(shape)))
        ours, theirs = multiprocessing.Pipe()
        try:
            program = _PROGRAM.format(path=sys.path, connection=theirs.fileno(), memory=memory)
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
            )
            pixels = _mapped(memory, shape)
        finally:
            theirs.close()
            os.close(memory)
        worker = _Decoder(process, ours, pixels, time.monotonic() + START_SECONDS)
        with contextlib.suppress(OSError):  # it has ended already, which is noticed as it answers
            ours.send(self._settings)
        return worker

    def _give(self, worker: _Decoder, task: _Given) -> None:
        worker.task = task
        worker.deadline = time.monotonic() + self._settings.timeout
        try:
            worker.connection.send(task.contents)
        except OSError:
            self._replace(worker)

    def _collect(self) -> None:
        """Take the next answers, and replace who died or exceeded the time."""
        waiting = [w for w in self._workers if w.task is not None or not w.ready]
        if not waiting:
            return
        answered = multiprocessing.connection.wait([w.connection for w in waiting], _POLL_SECONDS)
        for worker in waiting:
            if worker.connection in answered:
                self._receive(worker)
            elif worker.deadline <= time.monotonic():
                self._replace(worker, f"timeout: not decoded in {self._settings.timeout:g} s")

    def _receive(self, worker: _Decoder) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        worker.deadline = time.monotonic() + self._settings.timeout
        task = worker.task
        if task is None:
            worker.ready = True
            return
        if not answer:
            task.out[task.done] = worker.pixels[task.done]
        self._store(task, task.done, answer)
        task.done += 1
        if task.done == len(task.contents):
            worker.task = None

    def _store(self, task: _Given, position: int, reason: str) -> None:
        result = self._results[task.number]
        result.reasons[task.offset + position] = reason
        result.missing -= 1

    def _replace(self, worker: _Decoder, timeout: str | None = None) -> None:
        """End a worker and start another; give up the image it had, or try it once more."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(0 if timeout else 1.0)
        code = worker.process.returncode
        self._workers.remove(worker)
        _end(worker)
        if not worker.ready:
            raise JobError(
                f"a decoding process did not start (exit code {code}, waited up to "
                f"{START_SECONDS:g} s; what it wrote is on stderr); decoders=0 (--decoders 0) "
                "decodes without any"
            )
        self._workers.append(self._start())
        self.replaced += 1
        task = worker.task
        if task is None:
            return
        at = task.done
        if timeout is not None:
            self._store(task, at, timeout)
        elif task.repeated and at == 0:
            self._store(task, at, f"decoder_died: its process ended with code {code}, twice")
        else:  # perhaps another process took the memory: once more, alone
            culprit = task.contents[at : at + 1]
            self._repeats.append(
                _Given(task.number, culprit, task.out[at : at + 1], task.offset + at, repeated=True)
            )
        rest = task.contents[at + 1 :]
        if rest:
            self._repeats.append(
                _Given(task.number, rest, task.out[at + 1 :], task.offset + at + 1)
            )


def _end(worker: _Decoder) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.wait()


def _unnamed_file(size: int) -> int:
    """Memory that two processes can map, and that is gone with them; a descriptor."""
    if hasattr(os, "memfd_create"):  # no share of /dev/shm, which is 64 MB in a container
        descriptor = os.memfd_create("bliss-index-decoder")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _mapped(descriptor: int, shape: tuple[int, ...]) -> Pixels:
    memory = mmap.mmap(descriptor, int(np.prod(shape)))
    return np.frombuffer(memory, dtype=np.uint8).reshape(shape)


def serve(connection: int, memory: int) -> None:
    """Live as a worker: images in, pixels out one by one, until the parent is gone.

    The answer to an image is the reason why it has no pixels, or "" once they lie in its slot.

    Parameters
    ----------
    connection, memory : int
        Descriptors.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # which are the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.connection.Connection(connection)
    try:
        settings: DecodeSettings = parent.recv()
        slots = _mapped(memory, (TASK_IMAGES, *settings.preprocess.size, 3))
        os.close(memory)
        parent.send("ready")
        while True:
            for content, slot in zip(parent.recv(), slots, strict=False):
                parent.send(decode_pixels(content, settings, slot))
    except (EOFError, OSError):
        return
