"""Scores one input part and commits the result: the unit of work of every engine."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_index.bulk.inputs import InputPart, InputRows
from bliss_index.bulk.memory import is_out_of_memory
from bliss_index.bulk.prefetch import prefetched
from bliss_index.bulk.records import PartRecord, output_name, record_path
from bliss_index.errors import CorruptStoreError
from bliss_index.scoring import Scorer, Scores
from bliss_index.store.files import atomic_file
from bliss_index.store.schema import OK
from bliss_index.thresholds import conformal_p_values

ROW_GROUP_ROWS = 16384
# Columns of few different values; a dictionary of keys or scores only costs time and space.
_REPEATING = ["nearest_class", "status", "error", "entries.list.element"]
_BATCHES_BEHIND = 2
_LEAST_BATCH_ROWS = 16

Found = tuple[Any, Any]  # similarities and ids (n, k), arrays or tensors


def scores_schema(*, explain: bool, flag: bool, p_values: bool = False) -> pa.Schema:
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
    if p_values:
        fields.append(pa.field("p_value", pa.float32()))
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
        directory: Path,
        *,
        batch_rows: int,
        entries: list[str] | None = None,
        threshold: float | None = None,
        normal_scores: npt.NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._scorer = scorer
        self._directory = directory
        self._batch_rows = batch_rows
        self._entries = None if entries is None else np.asarray(entries, dtype=object)
        self._threshold = threshold
        self._normal_scores = normal_scores
        self._progress = progress or (lambda rows: None)
        self._notify = notify or (lambda text: None)
        self._classes = pa.array(scorer.calibration.classes, pa.string())
        self._schema = scores_schema(
            explain=entries is not None,
            flag=threshold is not None,
            p_values=normal_scores is not None,
        )

    def score_part(self, part: InputPart, index: int) -> PartRecord:
        """Score a part and commit its Parquet file, then its record.

        Doing it again gives the same file.

        Raises
        ------
        CorruptStoreError
            The part is damaged, which its hash may tell last, or was replaced meanwhile; nothing
            was written.
        OutputError
            The output cannot be written; nothing was left behind.
        """
        began = time.perf_counter()
        stamp = part.stamp()
        status: Counter[str] = Counter()
        with (
            ThreadPoolExecutor(1, thread_name_prefix="check") as pool,
            atomic_file(self._directory / output_name(index)) as sink,
        ):
            check = pool.submit(part.check)
            try:
                with pq.ParquetWriter(
                    sink, self._schema, compression="zstd", use_dictionary=_REPEATING
                ) as writer:
                    output = _Output(writer)
                    for rows in self._scored(part, output):
                        for count in pc.value_counts(rows.status).to_pylist():
                            status[count["values"]] += count["counts"]
                        self._progress(len(rows.keys))
                    output.flush()
            except Exception:
                check.result()  # where the part is damaged, that is the reason
                raise
            digest = check.result()  # before the file gets its name
            if part.stamp() != stamp:
                raise CorruptStoreError(f"{part.name} was replaced while it was scored")
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

    def _scored(self, part: InputPart, output: _Output) -> Iterator[InputRows]:
        """Yield rows once they are scored and handed to the output.

        While one batch is searched, the next is read, and what follows the search of the last ones
        (tables, class scores, columns, compression) runs in a thread of its own.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
            pending: deque[Future[InputRows]] = deque()
            for rows, images in prefetched(self._staged(part)):
                found = self._search(images)
                pending.append(pool.submit(self._finish, rows, images, found, output))
                while len(pending) > _BATCHES_BEHIND:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _staged(self, part: InputPart) -> Iterator[tuple[InputRows, Any]]:
        """Read batches and bring their good rows to where they are scored."""
        for rows in part.read(self._batch_rows, checked=False):
            yield rows, self._scorer.stage(rows.good_embeddings)

    def _finish(self, rows: InputRows, images: Any, found: Found, output: _Output) -> InputRows:
        """Score rows whose search is done, and write them."""
        scores = self._scorer.combine(images, *found)
        output.add(self._table(rows, scores))
        return rows

    def _table(self, rows: InputRows, scores: Scores) -> pa.Table:
        good = rows.good
        n = good.size

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
            rows.keys,
            column(scores.anomaly.astype(single), pa.float32()),
            self._classes.take(column(scores.nearest_class, pa.int64())),
            column(scores.internal.astype(single), pa.float32()),
            column(scores.external.astype(single), pa.float32()),
            rows.status,
            rows.error,
        ]
        if self._threshold is not None:
            columns.append(column(scores.anomaly >= self._threshold, pa.bool_()))
        if self._normal_scores is not None:
            p_values = conformal_p_values(self._normal_scores, scores.anomaly)
            columns.append(column(p_values.astype(single), pa.float32()))
        if self._entries is not None:
            contributions = self._scorer.contributions(scores).astype(single)
            columns.append(lists(self._entries[scores.ids], pa.string()))
            columns.append(lists(scores.similarities, pa.float32()))
            columns.append(lists(contributions, pa.float32()))
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _search(self, images: Any) -> Found:
        """Find the nearest entries of rows, in halves when memory runs out."""
        pieces: list[Found] = []
        start = 0
        while start < images.shape[0] or not pieces:
            piece = images[start : start + self._batch_rows]
            try:
                pieces.append(self._scorer.find(piece))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self._batch_rows <= _LEAST_BATCH_ROWS:
                    raise
                self._batch_rows = max(_LEAST_BATCH_ROWS, self._batch_rows // 2)
                self._notify(f"out of memory: going on with batches of {self._batch_rows} images")
                continue
            start += max(1, piece.shape[0])
        return pieces[0] if len(pieces) == 1 else self._scorer.join(pieces)


class _Output:
    """Gathers tables into row groups of one size, so that no file depends on the batches' size."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        """Take rows, and write all groups that are full."""
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows < ROW_GROUP_ROWS:
            return
        whole = pa.concat_tables(self._waiting)
        full = whole.num_rows - whole.num_rows % ROW_GROUP_ROWS
        for start in range(0, full, ROW_GROUP_ROWS):
            self._write(whole.slice(start, ROW_GROUP_ROWS))
        self._waiting = [whole.slice(full)]
        self._rows -= full

    def flush(self) -> None:
        """Write what is left."""
        if self._rows:
            self._write(pa.concat_tables(self._waiting))

    def _write(self, group: pa.Table) -> None:
        self._writer.write_table(group.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
