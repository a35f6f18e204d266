"""Embeddings in Lance data sets, the tables of LanceDB among them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.store.formats.tables import RowGroups, TableColumns, TablePart, readable
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_part import ColumnNames

LANCE = ".lance"
_VERSIONS = "_versions"
_GROUP_ROWS = 8192


@dataclass(frozen=True)
class LancePart(TablePart):
    """The rows of one version of a data set."""

    version: int
    layout = "Lance"

    @contextlib.contextmanager
    def reading(
        self, group: int, names: list[str] | None, rows: int
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        start = self.groups.starts[group]
        with _readable(self.name):
            opened = _opened(self.file, self.version)
            scan = opened.scanner(
                columns=names, offset=start or None, batch_size=rows, scan_in_order=True,
                batch_readahead=2, fragment_readahead=1,
            )  # fmt: skip
            yield iter(scan.to_batches())

    def stamp(self) -> list[Any]:
        with _readable(self.name):
            return [_opened(self.file, None).version, self.rows]


def is_lance(folder: SourceFile) -> bool:
    """Whether a folder is a data set."""
    path = f"{folder.path.rstrip('/')}/{_VERSIONS}"
    return bool(folder.filesystem.get_file_info(path).type == pafs.FileType.Directory)


def open_lance(file: SourceFile, columns: ColumnNames, texts: bool) -> LancePart:
    """Open the latest version of a data set.

    Raises
    ------
    MissingDependencyError
        pylance is not installed.
    InvalidInputError
        It is none, or as of :meth:`TableColumns.find`.
    """
    with _readable(file.name):
        opened = _opened(file, None)
        chosen = TableColumns.find(file.name, opened.schema, columns, texts=texts, embedded=True)
        rows = opened.count_rows()
        count = [min(_GROUP_ROWS, rows - start) for start in range(0, rows, _GROUP_ROWS)]
        first = opened.scanner(columns=chosen.names[:1], limit=1024).to_batches()
        dim = chosen.dimension(file.name, first)
        others = 0
        if chosen.carried.names:
            sample = opened.head(min(rows, 64), columns=chosen.carried.names)
            others = sample.nbytes // max(1, sample.num_rows)
        groups = RowGroups(
            tuple(count), tuple(4 * dim * n for n in count), tuple(others * n for n in count)
        )
        return LancePart(file, rows, dim, chosen.dtype, chosen, groups, opened.version)


def _opened(file: SourceFile, version: int | None) -> Any:
    try:
        import lance
    except ImportError as error:
        raise MissingDependencyError(
            f"{file.name} is a Lance data set, which pylance reads; run: pip install "
            "'bliss-index[lance]'"
        ) from error
    if not isinstance(file.filesystem, pafs.LocalFileSystem):
        raise InvalidInputError(
            f"{file.name} is a Lance data set, which is read from a local folder; copy it: "
            "import lance; lance.write_dataset(lance.dataset(uri), 'local.lance')"
        )
    return lance.dataset(file.path, version=version)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever Lance says of a damaged data set into our error."""
    try:
        with readable(name, LancePart.layout):
            yield
    except InvalidInputError:
        raise
    except BaseException as error:
        # Rust's panics are no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, MissingDependencyError | MemoryError):
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(f"{name} cannot be read as Lance: {line[:300]}") from error
