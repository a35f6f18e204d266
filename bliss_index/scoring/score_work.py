"""Scoring as a work: a part is a shard or file of images, its output a Parquet file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.devices import thread_count
from bliss_index.errors import CorruptStoreError, ModelMismatchError
from bliss_index.jobs import JobListener, JobOptions, JobSummary, Outcome, Part, Record, run
from bliss_index.jobs.blas import one_blas_thread
from bliss_index.jobs.devices import require_devices
from bliss_index.jobs.manifest import PartFile
from bliss_index.jobs.memory import MemoryPlan
from bliss_index.jobs.part import Growth, Plan, grown
from bliss_index.jobs.work import Notify, Progress
from bliss_index.scoring.score_inputs import InputPart, JobInput, open_input, part_of
from bliss_index.scoring.score_memory import plan_memory
from bliss_index.scoring.score_part import PartScorer
from bliss_index.scoring.score_settings import ScoreSettings, ScoringInputs, named_device
from bliss_index.storage import Directory
from bliss_index.store import require_same_model
from bliss_index.store.source_part import ColumnNames

SCORES_FORMAT = "bliss_index.scores"
MANIFEST_NAME = "_manifest.json"  # readers of Parquet folders skip names that begin with _
_SAMPLE_ROWS = 512


def run_job(
    location: str | Path,
    output: str | Path,
    settings: ScoreSettings,
    options: JobOptions | None = None,
    listener: JobListener | None = None,
    columns: ColumnNames | None = None,
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
    columns
        Of Parquet input.

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
    if options.engine == "local":  # Ray's nodes have devices of their own
        require_devices((settings.device, *options.devices))
    # Decided here, once: a process of the job may see other devices than this one.
    device = named_device(settings.device)
    threads = max(1, thread_count(settings.threads) // options.processes)
    settings = replace(settings, threads=threads, device=device)
    work = ScoreWork(str(location), settings, columns or ColumnNames())
    devices = tuple(named_device(name) for name in options.devices) or (device,)
    options = replace(options, devices=devices)
    return run(work, output, options, listener)


@dataclass(frozen=True)
class ScoreWork:
    """What to score; see :class:`bliss_index.jobs.Work`.

    Attributes
    ----------
    location : str
        Of the images.
    scoring : ScoreSettings
    columns : ColumnNames
        Of Parquet input.
    batch_rows : int
        Images at once; no score depends on it.
    """

    location: str
    scoring: ScoreSettings
    columns: ColumnNames = field(default_factory=ColumnNames)
    batch_rows: int = 8192

    kind = "scores"
    command = "'bliss-index score'"
    manifest_name = MANIFEST_NAME
    statistics_name = "_statistics.json"
    incidental = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    @cached_property
    def inputs(self) -> ScoringInputs:
        """The corpus and calibration, opened once a process."""
        return ScoringInputs.open(self.scoring)

    @cached_property
    def images(self) -> JobInput:
        """The input, opened once a process."""
        images = open_input(self.location, self.columns)
        _require_compatible(images, self.inputs)
        return images

    @property
    def threads(self) -> int:
        """Threads of one process."""
        return self.scoring.threads or 1

    def settings(self) -> dict[str, Any]:
        return {**self.inputs.result_settings(), "images": self.images.identity}

    def facts(self) -> dict[str, Any]:
        return {
            "images": self.location,
            "corpus": self.scoring.corpus,
            "calibration": self.scoring.calibration,
            "classes": list(self.inputs.calibration.classes),
        }

    def parts(self) -> Iterator[Part]:
        for index, source in enumerate(self.images.parts):
            yield part_of(index, source)

    def grown(self, kept: Plan, now: Plan) -> Growth:
        growth, row = grown(kept, now), kept.rows
        parts = []
        for part in growth.parts:
            detail = {**json.loads(part.detail), "start": row}
            parts.append(replace(part, detail=json.dumps(detail)))
            row += max(part.rows, 0)
        return replace(growth, parts=parts)

    def is_same(self, part: Part, record: Record) -> str:
        source = self.images.find(part)
        if json.dumps(source.stamp()) == part.fingerprint and source.sha256() == record.input:
            return ""
        return (
            f"{part.name} was scored with SHA-256 {record.input}, now it has {source.sha256()}: "
            "it was replaced since"
        )

    def memory(self, workers: int, budget: int | None) -> MemoryPlan:
        inputs = self.inputs
        return plan_memory(
            entries=inputs.corpus.rows,
            dim=inputs.corpus.dim,
            item_bytes=2 if inputs.corpus.dtype == "float16" else 4,
            classes=len(inputs.calibration.classes),
            k=self.scoring.k,
            threads=self.threads,
            workers=workers,
            calibration=2 * inputs.calibration.nbytes,
            budget=budget,
            on_gpu=self.scoring.on_gpu,
        )

    def prepared(
        self, pending: Sequence[Part], rows: int, batch_rows: int, notify: Notify
    ) -> ScoreWork:
        queries = _sample(self.images.find(pending[0]))
        settings, reason = self.inputs.chosen(queries, rows)
        if reason:
            notify(reason)
        return replace(self, scoring=settings, batch_rows=batch_rows)

    def open(
        self, directory: Directory, device: str, progress: Progress, notify: Notify
    ) -> ScoreWorker:
        inputs = replace(self.inputs, settings=replace(self.scoring, device=device))
        scorer = PartScorer(
            inputs.job_scorer(),
            directory,
            batch_rows=self.batch_rows,
            entries=inputs.corpus.texts() if self.scoring.explain else None,
            threshold=inputs.threshold,
            normal_scores=None if inputs.normal is None else inputs.normal.scores,
            progress=progress,
            notify=notify,
        )
        return ScoreWorker(scorer, self.images)

    def manifest(self, directory: Directory, files: Iterable[PartFile]) -> Mapping[str, Any]:
        return {
            "format": SCORES_FORMAT,
            "kind": self.kind,
            "settings": self.settings(),
            "classes": list(self.inputs.calibration.classes),
        }


class ScoreWorker:
    """Scores parts; see :class:`bliss_index.jobs.Worker`."""

    def __init__(self, scorer: PartScorer, images: JobInput) -> None:
        self._scorer = scorer
        self._images = images

    def run(self, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Score parts, the end of each beside the beginning of the next."""
        pairs = ((part, self._images.find(part)) for part in parts)
        with one_blas_thread(), contextlib.closing(self._scorer.score_parts(pairs)) as outcomes:
            for outcome in outcomes:
                if outcome.error is None:
                    yield Outcome(outcome.index, outcome.record)
                else:
                    yield Outcome.failed(outcome.index, outcome.error)


def _sample(part: InputPart) -> npt.NDArray[Any]:
    """Return a few hundred good images of a part; none where it is damaged."""
    try:
        for rows in part.read(_SAMPLE_ROWS):
            return np.asarray(rows.good_embeddings)
    except CorruptStoreError:
        pass  # scoring the part will say so
    return np.empty((0, 0))


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
