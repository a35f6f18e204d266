"""The same job on Ray: actors that do parts, replaced and counted by ourselves."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bliss_index.errors import BlissError, JobError, MissingDependencyError, install_line
from bliss_index.jobs.part import Part
from bliss_index.jobs.task import Run, WorkerTask
from bliss_index.jobs.work import Outcome, Worker

_OBJECT_STORE_BYTES = 256 << 20  # only parts and records travel
_ATTEMPTS = 2
_WAIT_SECONDS = 1.0


def run_on_ray(run: Run) -> Iterator[Outcome]:
    """Do parts with actors of Ray, one a GPU where the device is one; see :class:`Run`.

    Connects to the cluster that ``RAY_ADDRESS`` names, else starts Ray on this machine. Inputs and
    output must be on storage that all its nodes share. An actor that dies, or reports no progress
    for the options' deadline, is replaced; a part that ends two is given up.

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
            f"--engine ray needs Ray ({error}); {install_line('ray')}"
        ) from error
    started = not ray.is_initialized()
    with _stdout_to_stderr(), tempfile.TemporaryDirectory(
        prefix="bliss-ray-", ignore_cleanup_errors=True
    ) as place:  # fmt: skip
        try:
            if started:
                _start(ray, place)
            yield from _run(ray, run)
        except ray.exceptions.RayError as error:
            raise JobError(
                f"Ray failed: {error}. What is done is kept; run the same command again."
            ) from error
        finally:
            if started:
                ray.shutdown()


@dataclass(eq=False)
class _Hand:
    """An actor as it is seen from here.

    Attributes
    ----------
    part : tuple of (int, int) or None
        The part that it does, and how many actors died of it.
    silent : float
        Seconds without progress.
    reason : str
        Why it was killed.
    known : bool
        Whether it has started.
    """

    actor: Any
    part: tuple[int, int] | None = None
    silent: float = 0.0
    reason: str = ""
    known: bool = False


def _run(ray: Any, run: Run) -> Iterator[Outcome]:
    device, deadline = run.devices[0], run.options.deadline
    actor_class = ray.remote(_Actor).options(
        num_cpus=run.task.work.threads,
        num_gpus=1 if device.startswith("cuda") else 0,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=2,  # one call works, the other tells of its progress
        scheduling_strategy="SPREAD",
    )
    waiting = deque((index, 0) for index in run.pending)
    hands: list[_Hand] = []
    idle: list[_Hand] = []
    calls: dict[Any, _Hand] = {}  # under way, each of an actor

    def start() -> None:
        hand = _Hand(actor_class.remote(run.task, device))
        hands.append(hand)
        calls[hand.actor.progressed.remote(0.0)] = hand

    for _ in range(min(run.options.processes, len(waiting))):
        start()
    while waiting or any(hand.part for hand in hands):
        while waiting and idle:
            hand = idle.pop()
            hand.part, hand.silent = waiting.popleft(), 0.0
            calls[hand.actor.run.remote(run.parts[hand.part[0]])] = hand
        began = time.monotonic()
        answers, _ = ray.wait(list(calls), num_returns=1, timeout=_WAIT_SECONDS)
        waited = min(time.monotonic() - began, _WAIT_SECONDS)
        if run.stopped():
            waiting.clear()
        for hand in hands:
            hand.silent += waited if hand.part else 0.0
            if hand.silent >= deadline:
                hand.reason = f"no progress for {deadline:g} s"
                ray.kill(hand.actor)
        for answer in answers:
            hand = calls.pop(answer)
            hand.silent = 0.0
            try:
                outcome = ray.get(answer)
            except ray.exceptions.RayActorError as error:
                calls = {call: other for call, other in calls.items() if other is not hand}
                hands.remove(hand)
                if hand in idle:
                    idle.remove(hand)
                elif not hand.known and waiting:  # it must not be started forever
                    hand.part = waiting.popleft()
                if hand.part is not None:
                    index, deaths = hand.part
                    reason = hand.reason or str(error).strip().splitlines()[0]
                    run.listener.notice(f"part {index}: its actor ended ({reason})")
                    run.died(index, reason)
                    if deaths + 1 < _ATTEMPTS:
                        waiting.append((index, deaths + 1))
                    else:
                        yield Outcome(index, None, f"its actor ended twice ({reason})")
                if waiting:
                    start()
                continue
            if outcome is None:
                calls[hand.actor.progressed.remote(_WAIT_SECONDS)] = hand
                if not hand.known:  # only now has Ray found a place for it
                    hand.known = True
                    idle.append(hand)
                continue
            hand.part = None
            idle.append(hand)
            if outcome.record is not None:
                run.listener.advanced(outcome.record.rows)
            yield outcome


class _Actor:
    """Opens the job's inputs once; does one part a call."""

    def __init__(self, task: WorkerTask, device: str) -> None:
        self._worker: Worker | None = None
        self._reason = ""
        self._progress = threading.Event()
        self._progress.set()
        try:
            self._worker = task.open(
                device, lambda rows: self._progress.set(), lambda text: self._progress.set()
            )
        except BlissError as error:
            self._reason = f"{type(error).__name__}: {error}"

    def run(self, part: Part) -> Outcome:
        if self._worker is None:
            return Outcome(part.index, None, self._reason)
        (outcome,) = self._worker.run([part])
        return outcome

    def progressed(self, pause: float) -> None:
        """Return after `pause` seconds, as soon as there was progress since the last call."""
        time.sleep(pause)
        self._progress.wait()
        self._progress.clear()


def _start(ray: Any, place: str) -> None:
    import logging

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        quiet |= {
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": place,
        }
    ours = signal.getsignal(signal.SIGTERM)
    ray.init(**quiet)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)  # Ray takes it for itself


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
