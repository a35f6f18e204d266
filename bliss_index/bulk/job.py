"""The job: what is to be done, who does it, and what it came to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.bulk.devices import require_devices
from bliss_index.bulk.directory import begin, locked
from bliss_index.bulk.inputs import InputPart, JobInput, open_input
from bliss_index.bulk.listener import JobListener
from bliss_index.bulk.memory import plan_memory
from bliss_index.bulk.options import JobOptions
from bliss_index.bulk.part_worker import PartResult, PartWorker, WorkerTask
from bliss_index.bulk.records import RECORD_FOLDER, STATISTICS_NAME
from bliss_index.bulk.settings import ScoreSettings, ScoringInputs, named_device
from bliss_index.bulk.state import JobState, JobSummary
from bliss_index.bulk.workers import score_in_processes
from bliss_index.errors import CorruptStoreError, ModelMismatchError
from bliss_index.store import require_same_model
from bliss_index.store.files import make_directory, write_json

_SAMPLE_ROWS = 512


def run_job(
    location: str | Path,
    output: str | Path,
    settings: ScoreSettings,
    options: JobOptions | None = None,
    listener: JobListener | None = None,
) -> JobSummary:
    """Score every image of an input; run again, continue where it stopped.

    Parameters
    ----------
    location
        An image store, or embeddings in any layout that ``import`` reads.
    output
        Directory for the scores: one Parquet file per input part.
    settings
        What to compute.
    options
        How to run.
    listener
        Hears of progress.

    Returns
    -------
    The summary. Parts that failed are in it, and are tried again by the next run.

    Raises
    ------
    JobError
        The output was begun with other settings, an input part changed after it was scored, too
        many rows are bad, or memory does not suffice.
    StoreError, ModelMismatchError, InvalidInputError, OutputError
        A device is not there; inputs do not belong together or cannot be read; the output cannot
        be written, or another job is writing it.
    """
    options = options or JobOptions()
    listener = listener or JobListener()
    began = time.perf_counter()
    if options.engine == "local":  # Ray's nodes have devices of their own
        require_devices(options.devices or (settings.device,))
    # Decided here, once: a process of the job may see other devices than this one.
    settings = replace(
        settings,
        threads=_threads_of_one(settings, options),
        device=named_device(settings.device),
    )
    inputs = ScoringInputs.open(settings)
    images = open_input(location, options.columns)
    _require_compatible(images, inputs)
    directory = Path(output)
    make_directory(directory)
    with locked(directory, options):
        manifest = begin(directory, images, inputs)
        make_directory(directory / RECORD_FOLDER)
        state = JobState(directory, images, options, listener)
        state.find_done()
        plan = plan_memory(
            entries=inputs.corpus.rows,
            dim=inputs.corpus.dim,
            item_bytes=2 if inputs.corpus.dtype == "float16" else 4,
            classes=len(inputs.calibration.classes),
            k=settings.k,
            threads=settings.threads or 1,
            workers=options.workers,
            budget=options.memory,
            on_gpu=settings.on_gpu,
        )
        listener.planned(plan, manifest.rows, state.rows)
        state.require_few_bad()
        pending = state.pending()
        if pending:
            queries = _sample(images.parts[pending[0]])
            settings, reason = inputs.chosen(queries, manifest.rows - state.rows)
            if reason:
                listener.notice(reason)
        task = WorkerTask(
            str(location), options.columns, str(directory), settings, plan.batch_rows,
            manifest.settings,
        )  # fmt: skip
        with contextlib.closing(_results(task, pending, options, listener)) as results:
            for result in results:
                state.take(result)
                state.require_few_bad()
        summary = state.summary(time.perf_counter() - began)
        if options.task is None:
            write_json(directory / STATISTICS_NAME, summary.to_json())
        return summary


def _results(
    task: WorkerTask, pending: Sequence[int], options: JobOptions, listener: JobListener
) -> Generator[PartResult, None, None]:
    if not pending:
        return
    devices = options.devices or (task.settings.device,)
    if options.engine == "ray":
        from bliss_index.bulk.ray_engine import score_with_ray

        yield from score_with_ray(
            task, pending, workers=options.workers, listener=listener.advanced
        )
    elif options.workers > 1 or len(devices) > 1:
        yield from score_in_processes(
            task,
            pending,
            workers=max(options.workers, len(devices)),
            devices=devices,
            progress=listener.advanced,
            notify=listener.notice,
        )
    else:
        settings = replace(task.settings, device=devices[0])
        worker = PartWorker(
            replace(task, settings=settings), progress=listener.advanced, notify=listener.notice
        )
        yield from worker.score_all(pending)


def _sample(part: InputPart) -> npt.NDArray[Any]:
    """Return a few hundred good images of a part; none where it is damaged."""
    try:
        for rows in part.read(_SAMPLE_ROWS):
            return np.asarray(rows.good_embeddings)
    except CorruptStoreError:
        pass  # scoring the part will say so
    return np.empty((0, 0))


def _threads_of_one(settings: ScoreSettings, options: JobOptions) -> int:
    from bliss_index.search.exact import thread_count

    return max(1, thread_count(settings.threads) // options.workers)


def _require_compatible(images: JobInput, inputs: ScoringInputs) -> None:
    if images.model is not None:
        require_same_model(
            images.model,
            inputs.corpus.model,
            f"images {images.location}",
            f"corpus {inputs.corpus.path}",
        )
    if images.dim != inputs.corpus.dim:
        raise ModelMismatchError(
            f"images {images.location} have dimension {images.dim}, corpus {inputs.corpus.path} "
            f"has {inputs.corpus.dim}; were they encoded by the same model?"
        )
