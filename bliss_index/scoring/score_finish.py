"""What follows a search, done in order by a thread of its own while the next rows are searched."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from bliss_index.jobs.record import Record
from bliss_index.scoring.score_output import PartOutput

_BATCHES_BEHIND = 2
_PARTS_BEHIND = 2
_CHECKS_AT_ONCE = 2


@dataclass(frozen=True)
class PartOutcome:
    """What became of a part: its record, or its error."""

    index: int
    record: Record | None
    error: Exception | None = None


@dataclass(frozen=True)
class _Step:
    """Work under way: some rows of a part, or its end."""

    done: Future[PartOutcome | int]
    ends: bool


class Finishing:
    """Finishes batches and commits parts, one after another in the order given.

    So part after part gets its name and its record in order, and while one is committed the next is
    searched. No part is committed before the outcome of the last one was taken: who stops there
    stops before it. A context manager: on leaving, what is not committed is abandoned and leaves no
    file.

    Parameters
    ----------
    progress
        Called with the number of rows just finished, by whoever takes the :meth:`outcomes`.
    """

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._checks = ThreadPoolExecutor(_CHECKS_AT_ONCE, thread_name_prefix="check")
        self._steps: deque[_Step] = deque()
        self._open: list[PartOutput] = []
        self._stopped = threading.Event()
        self._last_is_taken = threading.Semaphore(1)
        self._committed = 0.0

    def __enter__(self) -> Finishing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()  # a hash may have long to go
        self._last_is_taken.release()
        self._writer.shutdown(cancel_futures=True)
        self._checks.shutdown(cancel_futures=True)
        for output in self._open:
            output.discard()

    def begin(self, output: PartOutput) -> None:
        """Begin a part. Errors are the part's, and come out with it."""
        self._open.append(output)
        try:
            output.begin(self._checks, self._between)
        except Exception as error:
            output.fail(error)

    def _between(self) -> None:
        if self._stopped.is_set():
            raise CancelledError

    def add(self, output: PartOutput, rows: int, finish: Callable[[], None]) -> None:
        """Take rows whose search is done; `finish` hands them to the part's output."""

        def run() -> int:
            if output.failed:
                return 0
            try:
                finish()
            except Exception as error:
                output.fail(error)
                return 0
            return rows

        self._steps.append(_Step(self._writer.submit(run), ends=False))

    def end(self, output: PartOutput) -> None:
        """Take the end of a part: what was added of it is committed, if nothing went wrong."""

        def commit() -> PartOutcome:
            self._last_is_taken.acquire()
            if self._stopped.is_set():
                return PartOutcome(output.index, None, CancelledError())
            try:
                return PartOutcome(output.index, output.commit(self._committed))
            except Exception as error:
                return PartOutcome(output.index, None, error)
            finally:
                self._committed = time.perf_counter()
                self._open.remove(output)

        self._steps.append(_Step(self._writer.submit(commit), ends=True))

    def outcomes(self, *, all_of_them: bool = False) -> Iterator[PartOutcome]:
        """Yield what is done; wait where too much is not, for memory is bounded."""
        while self._steps and (all_of_them or self._too_many() or self._steps[0].done.done()):
            result = self._steps.popleft().done.result()
            if isinstance(result, PartOutcome):
                yield result
                self._last_is_taken.release()
            elif result:
                self._progress(result)

    def _too_many(self) -> bool:
        ends = sum(step.ends for step in self._steps)
        return ends > _PARTS_BEHIND or len(self._steps) - ends > _BATCHES_BEHIND
