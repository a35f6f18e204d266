"""Scores input parts one after another: the unit of work of every engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.jobs.memory import is_out_of_memory
from bliss_index.jobs.part import Part
from bliss_index.jobs.prefetch import prefetched
from bliss_index.scoring.score_finish import Finishing, PartOutcome
from bliss_index.scoring.score_inputs import InputPart, InputRows
from bliss_index.scoring.score_output import PartOutput
from bliss_index.scoring.score_table import ScoreTable
from bliss_index.scoring.scorer import Scorer
from bliss_index.storage import Directory

_LEAST_BATCH_ROWS = 16

Found = tuple[Any, Any]  # similarities and ids (n, k), arrays or tensors


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows of a part, and the good ones among them where they are scored."""

    output: PartOutput
    rows: InputRows
    images: Any


class PartScorer:
    """Scores parts of one job; keeps the prepared search between them.

    Parameters
    ----------
    scorer
        Prepared for the job's corpus and calibration.
    directory
        The job's output.
    batch_rows
        Images at once. Halved when memory runs out; no score depends on it.
    entries
        Vocabulary entries, to name them in the output; None for none of that.
    threshold
        Anomaly score from which on an image is flagged; None for no flags.
    normal_scores
        (n,) scores of held-out normal images, for p-values; None for none.
    progress
        Called with the number of rows just scored.
    notify
        Called with a sentence when something should be known.
    """

    def __init__(
        self,
        scorer: Scorer,
        directory: Directory,
        *,
        batch_rows: int,
        entries: list[str] | None = None,
        threshold: float | None = None,
        normal_scores: npt.NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.scorer = scorer
        self._directory = directory
        self._batch_rows = batch_rows
        self._table = ScoreTable(
            scorer, entries=entries, threshold=threshold, normal_scores=normal_scores
        )
        self._progress = progress or (lambda rows: None)
        self._notify = notify or (lambda text: None)

    def score_parts(
        self, parts: Iterable[tuple[Part, InputPart]]
    ) -> Generator[PartOutcome, None, None]:
        """Score parts and commit, one after another, the Parquet file and the record of each.

        Doing it again gives the same files. Batches are searched by the caller's thread, one after
        another across the parts. Meanwhile one thread reads the next, another does what follows
        the search of the last ones (tables, class scores, columns, compression, and at the end of a
        part its commit), and another compares the part's hash.

        Parameters
        ----------
        parts
            They and their inputs. Asked for the next one by the reading thread, when all
            of the last one is read.

        Yields
        ------
        What became of every part, in order and as soon as it is known. The caller may stop asking
        at any time: what is not committed then never will be, and no file of it is left.
        """
        with (
            Finishing(self._progress) as finishing,
            contextlib.closing(prefetched(self._batches(parts, finishing))) as batches,
        ):
            for batch in batches:
                if isinstance(batch, PartOutput):
                    finishing.end(batch)
                elif not batch.output.failed:
                    self._search_batch(batch, finishing)
                yield from finishing.outcomes()
            yield from finishing.outcomes(all_of_them=True)

    def _batches(
        self, parts: Iterable[tuple[Part, InputPart]], finishing: Finishing
    ) -> Iterator[_Batch | PartOutput]:
        """Read the batches of one part after another, and after its last one its output."""
        for part, source in parts:
            output = PartOutput(self._directory, part, source, self._table.schema)
            finishing.begin(output)
            try:
                for rows in source.read(self._batch_rows, checked=False):
                    if output.failed:
                        break
                    yield _Batch(output, rows, self.scorer.stage(rows.good_embeddings))
            except Exception as error:
                output.fail(error)
            yield output

    def _search_batch(self, batch: _Batch, finishing: Finishing) -> None:
        """Search a batch, and pass it on; an error is its part's, and ends that alone."""
        try:
            found = self._search(batch.images)
        except Exception as error:
            batch.output.fail(error)
            return
        finishing.add(batch.output, len(batch.rows.keys), partial(self._finish, batch, found))

    def _finish(self, batch: _Batch, found: Found) -> None:
        """Score rows whose search is done, and write them."""
        scores = self.scorer.combine(batch.images, *found)
        batch.output.add(self._table.of(batch.rows, scores))

    def _search(self, images: Any) -> Found:
        """Find the nearest entries of rows, in halves when memory runs out."""
        pieces: list[Found] = []
        start = 0
        while start < images.shape[0] or not pieces:
            piece = images[start : start + self._batch_rows]
            try:
                pieces.append(self.scorer.find(piece))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self._batch_rows <= _LEAST_BATCH_ROWS:
                    raise
                self._batch_rows = max(_LEAST_BATCH_ROWS, self._batch_rows // 2)
                self._notify(f"out of memory: going on with batches of {self._batch_rows} images")
                continue
            start += max(1, piece.shape[0])
        return pieces[0] if len(pieces) == 1 else self.scorer.join(pieces)
