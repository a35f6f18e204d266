"""Scores one input part and commits the result: the unit of work of every engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bliss_index.bulk.inputs import InputPart, InputRows
from bliss_index.bulk.memory import is_out_of_memory
from bliss_index.bulk.prefetch import prefetched
from bliss_index.bulk.records import PartRecord, output_name, record_path
from bliss_index.scoring import BlissScorer, Scores
from bliss_index.store.files import atomic_file
from bliss_index.store.schema import OK

ROW_GROUP_ROWS = 65536
_LEAST_BATCH_ROWS = 16


def scores_schema(*, explain: bool, flag: bool) -> pa.Schema:
    """Columns of the output."""
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("anomaly_score", pa.float32()),
        pa.field("nearest_class", pa.string()),
        pa.field("internal_score", pa.float32()),
        pa.field("external_score", pa.float32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
    if flag:
        fields.append(pa.field("flag", pa.bool_()))
    if explain:
        fields.append(pa.field("entries", pa.list_(pa.string())))
        fields.append(pa.field("similarities", pa.list_(pa.float32())))
        fields.append(pa.field("contributions", pa.list_(pa.float32())))
    return pa.schema(fields)


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
    progress
        Called with the number of rows just scored.
    notify
        Called with a sentence when something should be known.
    """

    def __init__(
        self,
        scorer: BlissScorer,
        directory: Path,
        *,
        batch_rows: int,
        entries: list[str] | None = None,
        threshold: float | None = None,
        progress: Callable[[int], None] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._scorer = scorer
        self._directory = directory
        self._batch_rows = batch_rows
        self._entries = None if entries is None else np.asarray(entries, dtype=object)
        self._threshold = threshold
        self._progress = progress or (lambda rows: None)
        self._notify = notify or (lambda text: None)
        self._classes = np.asarray(scorer.calibration.classes, dtype=object)
        self._schema = scores_schema(explain=entries is not None, flag=threshold is not None)

    def score_part(self, part: InputPart, index: int) -> PartRecord:
        """Score a part and commit its Parquet file, then its record.

        Doing it again gives the same file.

        Raises
        ------
        CorruptStoreError
            The part is damaged; nothing was written.
        OutputError
            The output cannot be written; nothing was left behind.
        """
        began = time.perf_counter()
        stamp = part.stamp()
        digest = part.sha256()
        status: Counter[str] = Counter()
        with atomic_file(self._directory / output_name(index)) as sink:
            with pq.ParquetWriter(sink, self._schema, compression="zstd") as writer:
                waiting: list[pa.Table] = []
                for rows in prefetched(part.read(self._batch_rows)):
                    status.update(rows.status.tolist())
                    waiting.append(self._score_rows(rows))
                    self._progress(len(rows.keys))
                    waiting = _write_full_groups(writer, waiting)
                if sum(table.num_rows for table in waiting):
                    writer.write_table(pa.concat_tables(waiting), row_group_size=ROW_GROUP_ROWS)
            written, output_digest = sink.size, sink.sha256
        total = sum(status.values())
        record = PartRecord(
            part=part.name,
            rows=total,
            bad_rows=total - status[OK],
            input_sha256=digest,
            input_stamp=stamp,
            bytes=written,
            sha256=output_digest,
            seconds=round(time.perf_counter() - began, 6),
            status=dict(sorted(status.items())),
        )
        record.write(record_path(self._directory, index))
        return record

    def _score_rows(self, rows: InputRows) -> pa.Table:
        good = rows.status == OK
        scores = self._score(rows.embeddings if good.all() else rows.embeddings[good])
        n = len(rows.keys)

        def column(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
            if good.all():
                return pa.array(values, kind)
            spread = np.zeros(n, dtype=values.dtype)
            spread[good] = values
            return pa.array(spread, kind, mask=~good)

        def lists(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
            lengths = np.where(good, values.shape[1], 0)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            flat = pa.array(values.reshape(-1), kind)
            mask = None if good.all() else pa.array(~good)
            return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=mask)

        single = np.float32
        columns = [
            pa.array(rows.keys, pa.string()),
            column(scores.anomaly.astype(single), pa.float32()),
            column(self._classes[scores.nearest_class], pa.string()),
            column(scores.internal.astype(single), pa.float32()),
            column(scores.external.astype(single), pa.float32()),
            pa.array(rows.status, pa.string()),
            pa.array(rows.error, pa.string()),
        ]
        if self._threshold is not None:
            columns.append(column(scores.anomaly >= self._threshold, pa.bool_()))
        if self._entries is not None:
            contributions = self._scorer.contributions(scores).astype(single)
            columns.append(lists(self._entries[scores.ids], pa.string()))
            columns.append(lists(scores.similarities, pa.float32()))
            columns.append(lists(contributions, pa.float32()))
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _score(self, images: npt.NDArray[Any]) -> Scores:
        """Score rows, in halves when memory runs out."""
        pieces: list[Scores] = []
        start = 0
        while start < images.shape[0] or not pieces:
            piece = images[start : start + self._batch_rows]
            try:
                pieces.append(self._scorer.score(piece))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self._batch_rows <= _LEAST_BATCH_ROWS:
                    raise
                self._batch_rows = max(_LEAST_BATCH_ROWS, self._batch_rows // 2)
                self._notify(f"out of memory: going on with batches of {self._batch_rows} images")
                continue
            start += max(1, piece.shape[0])
        if len(pieces) == 1:
            return pieces[0]
        names = ("anomaly", "nearest_class", "internal", "external", "similarities", "ids")
        return Scores(*(np.concatenate([getattr(p, name) for p in pieces]) for name in names))


def _write_full_groups(writer: pq.ParquetWriter, waiting: list[pa.Table]) -> list[pa.Table]:
    """Write row groups of one size, so that the file does not depend on the batches' size."""
    if sum(table.num_rows for table in waiting) < ROW_GROUP_ROWS:
        return waiting
    whole = pa.concat_tables(waiting)
    full = whole.num_rows - whole.num_rows % ROW_GROUP_ROWS
    for start in range(0, full, ROW_GROUP_ROWS):
        group = whole.slice(start, ROW_GROUP_ROWS).combine_chunks()
        writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
    return [whole.slice(full)]
