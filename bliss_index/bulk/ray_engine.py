"""The same job on Ray Data: parts go through a pool of stateful scorers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bliss_index.bulk.part_worker import PartResult, PartWorker, WorkerTask
from bliss_index.bulk.records import PartRecord
from bliss_index.errors import BlissError, JobError, MissingDependencyError

_OBJECT_STORE_BYTES = 256 << 20  # only numbers and records travel


def score_with_ray(
    task: WorkerTask,
    pending: Sequence[int],
    *,
    workers: int,
    listener: Callable[[int], None],
) -> Iterator[PartResult]:
    """Score parts with a pool of actors, one per GPU where the device is one.

    Connects to the cluster that ``RAY_ADDRESS`` names, else starts Ray on this machine. Output and
    inputs must be on storage that all its nodes share.

    Parameters
    ----------
    task
        The job.
    pending
        Numbers of the parts to score.
    workers
        Actors.
    listener
        Called with the rows of every finished part.

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
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            f"--engine ray needs Ray ({error}); pip install 'bliss-index[ray]'"
        ) from error
    started = not ray.is_initialized()
    if started:
        _start(ray)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        on_gpu = task.settings.device.startswith("cuda")
        results = ray.data.from_items([{"index": index} for index in pending]).map_batches(
            _Actor,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(pending))),
            num_cpus=task.settings.threads or 1,
            num_gpus=1 if on_gpu else 0,
        )
        for row in results.iter_rows():
            result = _from_row(row)
            if result.record is not None:
                listener(result.record.rows)
            yield result
    except ray.exceptions.RayError as error:
        raise JobError(
            f"Ray failed: {error}. What is done is kept; run the same command again."
        ) from error
    finally:
        if started:
            ray.shutdown()


class _Actor:
    """One scorer; opens the job's inputs once."""

    def __init__(self, task: WorkerTask) -> None:
        self._worker: PartWorker | None = None
        self._reason = ""
        try:
            self._worker = PartWorker(task)
        except BlissError as error:
            self._reason = f"{type(error).__name__}: {error}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import json

        results = []
        for index in batch["index"]:
            if self._worker is None:
                result = PartResult(int(index), None, self._reason)
            else:
                result = self._worker.score(int(index))
            record = None if result.record is None else asdict(result.record)
            results.append(json.dumps([result.index, record, result.reason, result.stops]))
        return {"result": results}


def _from_row(row: dict[str, Any]) -> PartResult:
    import json

    index, record, reason, stops = json.loads(row["result"])
    return PartResult(index, None if record is None else PartRecord(**record), reason, stops)


def _start(ray: Any) -> None:
    import logging

    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
