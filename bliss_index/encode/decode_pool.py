"""Processes that decode images, and never hang the job.

Every worker holds one task at a time and its parent knows which, and since when. A worker that
dies (a codec's crash, the memory killer) or exceeds its time is replaced. Answers come image by
image, so the image at fault is known and is the only one given up, with the reason. Workers are
spawned, not forked: a fork after torch has started threads deadlocks.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
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
_POLL_SECONDS = 0.5

Content = bytes | str
Pixels = npt.NDArray[np.uint8] | str
"""(height, width, 3) uint8, or the reason why there are none."""


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


def decode_pixels(content: Content, settings: DecodeSettings) -> Pixels:
    """Decode, resize and crop one image; a reason instead of an error."""
    try:
        image = decode_image(content, max_pixels=settings.max_pixels)
        return settings.preprocess.pixels(image)
    except DecodeError as error:
        return str(error)
    except InvalidInputError as error:
        return f"unsupported_shape: {error}"
    except MemoryError:
        return "too_large: not enough memory to decode and resize it"


@dataclass
class _Task:
    number: int
    contents: list[Content]
    offset: int = 0  # of its first image within the task as it was given
    done: int = 0
    repeated: bool = False


@dataclass
class _Worker:
    process: Any
    connection: Any
    deadline: float
    ready: bool = False
    task: _Task | None = None


@dataclass
class _Result:
    missing: int
    pixels: list[Pixels]


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
        self._context = multiprocessing.get_context("spawn")
        self._stopped = False
        self._repeats: deque[_Task] = deque()
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

    def map(self, tasks: Iterable[Sequence[Content]]) -> Iterator[list[Pixels]]:
        """Pixels of each task's images, in the order of the tasks.

        Raises
        ------
        JobError
            The processes do not start.
        """
        if not self._workers:
            for contents in tasks:
                yield [decode_pixels(content, self._settings) for content in contents]
            return
        source = enumerate(tasks)
        following, exhausted = 0, False
        while not self._stopped:
            for worker in [w for w in self._workers if w.ready and w.task is None]:
                task = self._repeats.popleft() if self._repeats else None
                # Read ahead only as far as the slowest task allows.
                if task is None and not exhausted and len(self._results) < 3 * len(self._workers):
                    number, contents = next(source, (-1, ()))
                    exhausted = number < 0
                    if not exhausted:
                        self._results[number] = _Result(len(contents), [""] * len(contents))
                        task = _Task(number, list(contents)) if contents else None
                if task is not None:
                    self._give(worker, task)
            while following in self._results and self._results[following].missing == 0:
                yield self._results.pop(following).pixels
                following += 1
            if exhausted and not self._results:
                return
            self._collect()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._settings), daemon=True, name="bliss-index-decoder"
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, time.monotonic() + START_SECONDS)

    def _give(self, worker: _Worker, task: _Task) -> None:
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

    def _receive(self, worker: _Worker) -> None:
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
        self._store(task, task.done, answer)
        task.done += 1
        if task.done == len(task.contents):
            worker.task = None

    def _store(self, task: _Task, position: int, pixels: Pixels) -> None:
        result = self._results[task.number]
        result.pixels[task.offset + position] = pixels
        result.missing -= 1

    def _replace(self, worker: _Worker, timeout: str | None = None) -> None:
        """End a worker and start another; give up the image it had, or try it once more."""
        worker.process.join(0 if timeout else 1.0)
        code = worker.process.exitcode
        self._workers.remove(worker)
        _end(worker)
        if not worker.ready:
            raise JobError(
                f"a decoding process did not start (exit code {code}, waited up to "
                f"{START_SECONDS:g} s); a script that encodes images needs "
                "`if __name__ == '__main__':` around its code, or use decoders=0"
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
            self._repeats.append(_Task(task.number, culprit, task.offset + at, repeated=True))
        rest = task.contents[at + 1 :]
        if rest:
            self._repeats.append(_Task(task.number, rest, task.offset + at + 1))


def _end(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.kill()
    worker.process.join()
    worker.process.close()


def _serve(connection: Any, settings: DecodeSettings) -> None:
    """A worker's life: images in, pixels out one by one, until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which are the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    try:
        connection.send("ready")
        while True:
            for content in connection.recv():
                connection.send(decode_pixels(content, settings))
    except (EOFError, OSError):
        return
