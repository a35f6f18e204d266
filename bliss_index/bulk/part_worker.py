"""Scores parts of a job by their numbers, in whatever process it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bliss_index.bulk.blas import one_blas_thread
from bliss_index.bulk.finishing import PartOutcome
from bliss_index.bulk.inputs import JobInput, open_input
from bliss_index.bulk.records import PartRecord, require_same
from bliss_index.bulk.score_part import PartScorer
from bliss_index.bulk.settings import ScoreSettings, ScoringInputs
from bliss_index.errors import BlissError, OutputError
from bliss_index.store.source_part import ColumnNames


@dataclass(frozen=True)
class WorkerTask:
    """All that a process needs to score parts of a job.

    `identity` is what must not change while it runs: a process opens everything anew.
    """

    location: str
    columns: ColumnNames
    directory: str
    settings: ScoreSettings
    batch_rows: int
    identity: dict[str, Any]


@dataclass(frozen=True)
class PartResult:
    """What became of a part: a record, or the reason why there is none.

    `stops` says that the reason is not the part's own, so that others would fare no better.
    """

    index: int
    record: PartRecord | None
    reason: str = ""
    stops: bool = False


def job_identity(inputs: ScoringInputs, images: JobInput) -> dict[str, Any]:
    """Everything that decides the scores of a job."""
    return {**inputs.result_settings(), "images": images.identity}


class PartWorker:
    """Opens a job's inputs once, then scores parts by number. Also the state of a Ray actor."""

    def __init__(
        self,
        task: WorkerTask,
        progress: Callable[[int], None] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        inputs = ScoringInputs.open(task.settings)
        entries = inputs.corpus.texts() if task.settings.explain else None
        self._input = open_input(task.location, task.columns)
        require_same(task.identity, job_identity(inputs, self._input), task.directory)
        self._scorer = PartScorer(
            inputs.job_scorer(),
            Path(task.directory),
            batch_rows=task.batch_rows,
            entries=entries,
            threshold=inputs.threshold,
            normal_scores=None if inputs.normal is None else inputs.normal.scores,
            progress=progress,
            notify=notify,
        )

    def score(self, index: int) -> PartResult:
        """Score one part; what is wrong with it becomes a reason, not an exception."""
        (result,) = self.score_all([index])
        return result

    def score_all(self, indices: Iterable[int]) -> Generator[PartResult, None, None]:
        """Score parts, the end of each beside the beginning of the next.

        Parameters
        ----------
        indices
            Their numbers, taken by another thread, each when all of the last part is read.

        Yields
        ------
        What became of each, in order. What is wrong with a part becomes a reason, not an exception.
        """
        parts = ((index, self._input.parts[index]) for index in indices)
        with one_blas_thread(), contextlib.closing(self._scorer.score_parts(parts)) as outcomes:
            for outcome in outcomes:
                yield _result(outcome)


def _result(outcome: PartOutcome) -> PartResult:
    error = outcome.error
    if error is None:
        return PartResult(outcome.index, outcome.record)
    if isinstance(error, OutputError):
        return PartResult(outcome.index, None, str(error), stops=True)
    if isinstance(error, BlissError | OSError | MemoryError):
        return PartResult(outcome.index, None, f"{type(error).__name__}: {error}")
    raise error
