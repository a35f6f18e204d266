"""Embeddings in Parquet files, read page by page."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bliss_index.store.formats.parquet_footer import column_sizes
from bliss_index.store.formats.table_columns import TableColumns
from bliss_index.store.formats.tables import RowGroups, TableReader, readable
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames

_BUFFER_BYTES = 1 << 20
_FIRST_ROWS = 1024


class ParquetReader(TableReader):
    """The rows of one Parquet file."""

    layout = "Parquet"

    @classmethod
    def open(
        cls, file: SourceFile, wanted: ColumnNames, *, texts: bool = True, embedded: bool = True
    ) -> ParquetReader:
        """Read the schema and find the columns, as :meth:`TableColumns.find` does.

        Raises
        ------
        InvalidInputError
            It is not a Parquet file, or the columns are missing or unclear.
        """
        with _opened(file) as table, file.open() as stream:
            schema = table.schema_arrow
            columns = TableColumns.find(file.name, schema, wanted, texts=texts, embedded=embedded)
            groups = _row_groups(file.name, table, stream, columns.carried.names)
            first = table.iter_batches(_FIRST_ROWS, columns=columns.names[:1])
            dim = columns.dimension(file.name, first)
            return cls(file, table.metadata.num_rows, dim, columns.dtype, columns, groups)

    @contextlib.contextmanager
    def reading(
        self, group: int, names: list[str] | None, rows: int
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        with _opened(self.file) as table:
            yield (
                batch
                for number in range(group, len(self.groups.rows))
                for batch in table.iter_batches(rows, [number], columns=names)
            )


def open_parquet(file: SourceFile, columns: ColumnNames, texts: bool) -> ParquetReader:
    """Open a table with embeddings; errors as of :meth:`ParquetReader.open`."""
    return ParquetReader.open(file, columns, texts=texts)


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[pq.ParquetFile]:
    with (
        readable(file.name, ParquetReader.layout),
        pq.ParquetFile(file.open(), buffer_size=_BUFFER_BYTES) as table,
    ):
        yield table


def _row_groups(
    file: str, table: pq.ParquetFile, stream: Any, carried: Collection[str]
) -> RowGroups:
    """Read the sizes from the footer."""
    footer = table.metadata
    sizes = column_sizes(file, stream, footer.serialized_size, carried)
    if not sizes:
        return RowGroups((), (), ())
    rows = (footer.row_group(number).num_rows for number in range(footer.num_row_groups))
    return RowGroups(tuple(rows), *zip(*sizes, strict=True))
