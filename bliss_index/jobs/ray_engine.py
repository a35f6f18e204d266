"""The same job on Ray: actors that do parts, replaced and counted by ourselves."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bliss_index.errors import BlissError, JobError, MissingDependencyError
from bliss_index.jobs.part import Part
from bliss_index.jobs.processes import Died
from bliss_index.jobs.record import Record
from bliss_index.jobs.task import WorkerTask
from bliss_index.jobs.work import Notify, Outcome, Progress, Worker

_OBJECT_STORE_BYTES = 256 << 20  # only parts and records travel
_ATTEMPTS = 2
_WAIT_SECONDS = 1.0
_START_SECONDS = 300.0


def run_on_ray(
    task: WorkerTask,
    parts: Sequence[Part],
    pending: Sequence[int],
    *,
    workers: int,
    device: str,
    progress: Progress,
    notify: Notify,
    died: Died,
) -> Iterator[Outcome]:
    """Do parts with actors of Ray, one per GPU where the device is one.

    Connects to the cluster that ``RAY_ADDRESS`` names, else starts Ray on this machine. Inputs and
    output must be on storage that all its nodes share. An actor that dies is replaced; a part that
    kills two is given up.

    Parameters
    ----------
    task
        The job.
    parts, pending
        All parts of the job, and the numbers of those to do.
    workers
        Actors.
    device
        Of all actors; "cuda" gives each a GPU.
    progress, notify, died
        Called with the rows of every finished part, with sentences to be shown, and with the
        number of a part whose actor died and how.

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    JobError
        Ray itself fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            f"--engine ray needs Ray ({error}); pip install 'bliss-index[ray]'"
        ) from error
    started = not ray.is_initialized()
    with _stdout_to_stderr(), tempfile.TemporaryDirectory(
        prefix="bliss-ray-", ignore_cleanup_errors=True
    ) as place:  # fmt: skip
        try:
            if started:
                _start(ray, place)
            yield from _run(ray, task, parts, pending, workers, device, progress, notify, died)
        except ray.exceptions.RayError as error:
            raise JobError(
                f"Ray failed: {error}. What is done is kept; run the same command again."
            ) from error
        finally:
            if started:
                ray.shutdown()


def _run(
    ray: Any,
    task: WorkerTask,
    parts: Sequence[Part],
    pending: Sequence[int],
    workers: int,
    device: str,
    progress: Progress,
    notify: Notify,
    died: Died,
) -> Iterator[Outcome]:
    actor_class = ray.remote(_Actor).options(
        num_cpus=task.work.threads,
        num_gpus=1 if device.startswith("cuda") else 0,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )
    waiting = deque((index, 0) for index in pending)
    running: dict[Any, tuple[Any, int, int]] = {}  # answer to actor, part and its deaths
    idle = [actor_class.remote(task, device) for _ in range(min(workers, len(pending)))]
    lost_starts = 0
    while waiting or running:
        while waiting and idle:
            index, deaths = waiting.popleft()
            actor = idle.pop()
            running[actor.run.remote(parts[index])] = (actor, index, deaths)
        ready, _ = ray.wait(list(running), num_returns=1, timeout=_WAIT_SECONDS)
        for answer in ready:
            actor, index, deaths = running.pop(answer)
            try:
                outcome = _outcome(ray.get(answer))
            except ray.exceptions.RayActorError as error:
                reason = str(error).strip().splitlines()[0]
                notify(f"part {index}: its actor ended ({reason})")
                died(index, reason)
                if deaths + 1 < _ATTEMPTS:
                    waiting.append((index, deaths + 1))
                else:
                    yield Outcome(index, None, f"its actor ended twice ({reason})")
                lost_starts += 1
                if lost_starts <= len(pending) * _ATTEMPTS:
                    idle.append(actor_class.remote(task, device))
                continue
            idle.append(actor)
            if outcome.record is not None:
                progress(outcome.record.rows)
            yield outcome


class _Actor:
    """Opens the job's inputs once; does one part a call."""

    def __init__(self, task: WorkerTask, device: str) -> None:
        self._worker: Worker | None = None
        self._reason = ""
        try:
            self._worker = task.open(device, lambda rows: None, lambda text: None)
        except BlissError as error:
            self._reason = f"{type(error).__name__}: {error}"

    def run(self, part: Part) -> tuple[int, dict[str, Any] | None, str, bool]:
        if self._worker is None:
            return part.index, None, self._reason, False
        (outcome,) = self._worker.run([part])
        record = None if outcome.record is None else asdict(outcome.record)
        return outcome.index, record, outcome.reason, outcome.stops


def _outcome(answer: tuple[int, dict[str, Any] | None, str, bool]) -> Outcome:
    index, record, reason, stops = answer
    return Outcome(index, None if record is None else Record(**record), reason, stops)


def _start(ray: Any, place: str) -> None:
    import logging

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    ray.init(
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=place,
        **quiet,
    )


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep what Ray prints out of our results, which are written afterwards."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
