"""The scores of one part on their way to disk: a file without a name until all is known."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from concurrent.futures import Executor, Future
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_index.errors import CorruptStoreError, OutputError
from bliss_index.jobs.part import Part
from bliss_index.jobs.record import Record, commit
from bliss_index.scoring.score_inputs import InputPart
from bliss_index.storage import Directory
from bliss_index.storage.directory import NewContent
from bliss_index.storage.files import output_error
from bliss_index.storage.hashing import CheckCancelled

ROW_GROUP_ROWS = 16384
# Columns of few different values; a dictionary of keys or scores only costs time and space.
_REPEATING = ["nearest_class", "status", "error", "entries.list.element"]


class PartOutput:
    """Writes the scores of one part, and commits them: the file, then its record.

    The first error of the part is kept, whoever meets it; what is added afterwards is
    not written, and :meth:`commit` raises it. :meth:`add`, :meth:`commit` and :meth:`discard` are
    called by one thread, which alone touches the file.

    Parameters
    ----------
    directory
        The job's output.
    part, source
        The part, and its input.
    schema
        Columns of the output.
    """

    def __init__(
        self, directory: Directory, part: Part, source: InputPart, schema: pa.Schema
    ) -> None:
        self.index = part.index
        self._part = part
        self._source = source
        self._directory = directory
        self._schema = schema
        self._began = time.perf_counter()
        self._stamp: list[Any] = []
        self._check: Future[str] | None = None
        self._error: Exception | None = None
        self._file: NewContent | None = None
        self._writer: pq.ParquetWriter | None = None
        self._status: Counter[str] = Counter()
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def begin(self, checks: Executor, check_cancelled: CheckCancelled) -> None:
        """Note what the part looks like, and let its hash be compared beside everything else.

        Parameters
        ----------
        checks
            Who compares.
        check_cancelled
            May end that early.
        """

        def check() -> str:
            return self._source.check(lambda: self._go_on(check_cancelled))

        self._stamp = self._source.stamp()
        if not self._source.hashed_as_read:
            self._check = checks.submit(check)

    def _go_on(self, check_cancelled: CheckCancelled) -> None:
        check_cancelled()
        if isinstance(self._error, OutputError):
            raise self._error  # nobody will ask for the hash

    @property
    def failed(self) -> bool:
        """Whether nothing will come of it."""
        return self._error is not None

    def fail(self, error: Exception) -> None:
        """Note what went wrong; the first error counts."""
        self._error = self._error or error

    def add(self, table: pa.Table) -> None:
        """Take rows, and write all row groups that are full.

        Raises
        ------
        OutputError
            The output cannot be written.
        """
        for count in pc.value_counts(table.column("status")).to_pylist():
            self._status[count["values"]] += count["counts"]
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows < ROW_GROUP_ROWS:
            return
        # Groups are of one size, so that no file depends on the batches' size.
        whole = pa.concat_tables(self._waiting)
        full = whole.num_rows - whole.num_rows % ROW_GROUP_ROWS
        for start in range(0, full, ROW_GROUP_ROWS):
            self._write(whole.slice(start, ROW_GROUP_ROWS))
        self._waiting = [whole.slice(full)]
        self._rows -= full

    def commit(self, since: float) -> Record:
        """Give the file its name once the part is known to be right, then write the record.

        Parameters
        ----------
        since
            When the part before it was done, by ``time.perf_counter``: from then on, or from its
            own beginning, its time counts.

        Raises
        ------
        CorruptStoreError
            The part is damaged, which its hash may tell last, or was replaced meanwhile.
        OutputError
            The output cannot be written.
        Exception
            What went wrong before. Nothing is left behind in any case.
        """
        try:
            return self._commit(since)
        finally:
            self.discard()

    def _commit(self, since: float) -> Record:
        if self._error is not None:
            if self._check is not None and not isinstance(self._error, OutputError):
                self._check.result()  # where the part is damaged, that is the reason
            raise self._error
        file, writer = self._opened()
        try:
            if self._rows:
                self._write(pa.concat_tables(self._waiting))
            writer.close()
        except OSError as error:
            raise self._failure(error) from error
        # Before the file gets its name.
        digest = self._source.check() if self._check is None else self._check.result()
        if self._source.stamp() != self._stamp:
            raise CorruptStoreError(f"{self._part.name} was replaced while it was scored")
        return commit(
            self._directory,
            self._part,
            file,
            "parquet",
            status=self._status,
            given=digest,
            seconds=time.perf_counter() - max(self._began, since),
        )

    def discard(self) -> None:
        """Leave nothing behind that has no name yet."""
        self._waiting = []
        if self._writer is not None:
            with contextlib.suppress(OSError, ValueError):
                self._writer.close()
        if self._file is not None:
            self._file.discard()

    def _opened(self) -> tuple[NewContent, pq.ParquetWriter]:
        if self._file is None:
            self._file = self._directory.new_file()
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._file.sink, self._schema, compression="zstd", use_dictionary=_REPEATING
            )
        return self._file, self._writer

    def _write(self, group: pa.Table) -> None:
        _, writer = self._opened()
        try:
            writer.write_table(group.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return output_error(f"{self._directory.uri}/part-{self.index:08d}.parquet", error)
