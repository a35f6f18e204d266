"""Scoring as a work: a part is a shard or file of images, its output a Parquet file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bliss_index.devices import resolve_device, thread_count
from bliss_index.errors import CorruptStoreError, ModelMismatchError
from bliss_index.jobs import JobListener, JobOptions, JobSummary, Outcome, Part, Record, run
from bliss_index.jobs.blas import one_blas_thread
from bliss_index.jobs.manifest import PartFile
from bliss_index.jobs.memory import MemoryPlan
from bliss_index.jobs.part import Growth, Plan, grown
from bliss_index.jobs.work import Notify, Progress
from bliss_index.scoring.score_inputs import InputPart, JobInput, open_input
from bliss_index.scoring.score_memory import plan_memory
from bliss_index.scoring.score_part import PartScorer
from bliss_index.scoring.score_settings import ScoreSettings, ScoringInputs
from bliss_index.search.registry import NEAR
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.files import parse_json
from bliss_index.store import require_same_model
from bliss_index.store.keys import MOST_NAMED, repeated_keys
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.sources import grown_source

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
    The summary. Parts that failed are in it, and are tried again by the next run; of other
    people's files also, in its facts, how many keys occur in several parts.

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
    # Decided here, once: a process of the job may see other devices than this one.
    here = options.engine == "local"  # Ray's nodes have devices of their own
    device = resolve_device(settings.device, here=here)
    threads = max(1, thread_count(settings.threads) // options.processes)
    settings = replace(settings, threads=threads, device=device)
    work = ScoreWork(str(location), settings, columns or ColumnNames())
    devices = tuple(resolve_device(name, here=here) for name in options.devices) or (device,)
    options = replace(options, devices=devices)
    listener = listener or JobListener()
    for text in work.images.notices():
        listener.notice(text)
    summary = run(work, output, options, listener)
    if summary.complete and options.task is None:
        stands = parse_json(open_directory(output).read(MANIFEST_NAME), MANIFEST_NAME)
        repeated = stands.get("repeated_keys", {}).get("count", 0)
        summary = replace(summary, facts={**summary.facts, "repeated_keys": repeated})
    return summary


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
            yield source.planned(index)

    def grown(self, kept: Plan, now: Plan) -> Growth:
        return grown(kept, now) if self.images.model else grown_source(kept, now)

    def is_same(self, part: Part, record: Record) -> str:
        source = self.images.find(part)
        found = source.sha256()
        if found == record.input:
            return ""
        return (
            f"{part.name} was scored with SHA-256 {record.input}, now it has {found}: it was "
            "replaced since"
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
            images=self.images.held,
            image_bytes=self.images.row_bytes,
            budget=budget,
            on_gpu=self.scoring.on_gpu,
            near=self.scoring.search == NEAR,
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
        return ScoreWorker(scorer, self.images, inputs)

    def manifest(self, directory: Directory, files: Iterable[PartFile]) -> Mapping[str, Any]:
        values: dict[str, Any] = {
            "format": SCORES_FORMAT,
            "kind": self.kind,
            "settings": self.settings(),
            "classes": list(self.inputs.calibration.classes),
        }
        if self.images.model is None:  # a store has said it of itself

            def keys() -> Iterator[list[str]]:
                for part in files if self.images.has_keys else ():
                    file = pa.BufferReader(directory.mapped(part.file))
                    yield pq.read_table(file, columns=["key"]).column("key").to_pylist()

            count, first = repeated_keys(keys, MOST_NAMED)
            values["repeated_keys"] = {"count": count, "first": first}
        return values


class ScoreWorker:
    """Scores parts; see :class:`bliss_index.jobs.Worker`."""

    def __init__(self, scorer: PartScorer, images: JobInput, inputs: ScoringInputs) -> None:
        self._scorer = scorer
        self._images = images
        self._inputs = inputs

    def run(self, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Score parts, the end of each beside the beginning of the next; then keep the tables."""
        pairs = ((part, self._images.find(part)) for part in parts)
        with one_blas_thread(), contextlib.closing(self._scorer.score_parts(pairs)) as outcomes:
            for outcome in outcomes:
                if outcome.error is None:
                    yield Outcome(outcome.index, outcome.record)
                else:
                    yield Outcome.failed(outcome.index, outcome.error)
        self._inputs.keep_tables(self._scorer.scorer)


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
