"""Embeddings in Lance data sets, the tables of LanceDB among them.

Lance ends the process that reads a damaged data set, so it reads in one of its own, which hands the
rows on as an Arrow stream (:mod:`bliss_index.store.formats.lance_process`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from bliss_index.errors import InvalidInputError, MissingDependencyError, install_line
from bliss_index.store.formats import lance_process
from bliss_index.store.formats.table_columns import TableColumns
from bliss_index.store.formats.tables import RowGroups, TableReader, readable
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames

LANCE = ".lance"
_VERSIONS = "_versions"
_GROUP_ROWS = 8192
_FIRST_ROWS = 64


@dataclass(frozen=True)
class LanceReader(TableReader):
    """The rows of one version of a data set."""

    version: int
    layout = "Lance"

    @contextlib.contextmanager
    def reading(
        self, group: int, names: list[str] | None, rows: int
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        start = self.groups.starts[group]
        with _read(self.file, version=self.version, columns=names, start=start, rows=rows) as read:
            yield read.batches

    def stamp(self) -> list[Any]:
        selector = pafs.FileSelector(f"{self.file.path}/{_VERSIONS}")
        found = self.file.filesystem.get_file_info(selector)
        return sorted([info.base_name, info.size, info.mtime_ns] for info in found)


def is_lance(folder: SourceFile) -> bool:
    """Whether a folder is a data set."""
    path = f"{folder.path.rstrip('/')}/{_VERSIONS}"
    return bool(folder.filesystem.get_file_info(path).type == pafs.FileType.Directory)


def open_lance(file: SourceFile, columns: ColumnNames, texts: bool) -> LanceReader:
    """Open the latest version of a data set.

    Raises
    ------
    MissingDependencyError
        pylance is not installed.
    InvalidInputError
        It is none, or as of :meth:`TableColumns.find`.
    """
    with _read(file, rows=_FIRST_ROWS, limit=_FIRST_ROWS) as first:
        schema, version, rows = first.schema, first.version, first.count
        chosen = TableColumns.find(file.name, schema, columns, texts=texts, embedded=True)
        sample = pa.Table.from_batches(first.batches, schema)
        dim = chosen.dimension(file.name, sample.combine_chunks().to_batches())
    if rows and not dim:
        with _read(file, version=version, columns=chosen.names[:1], rows=1024) as found:
            dim = chosen.dimension(file.name, found.batches)
    count = [min(_GROUP_ROWS, rows - start) for start in range(0, rows, _GROUP_ROWS)]
    others = sample.drop_columns(chosen.names).nbytes // max(1, sample.num_rows)
    groups = RowGroups(
        tuple(count), tuple(4 * dim * n for n in count), tuple(others * n for n in count)
    )
    return LanceReader(file, rows, dim, chosen.dtype, chosen, groups, version)


@dataclass(frozen=True)
class _Stream:
    schema: pa.Schema
    version: int
    count: int
    batches: Iterator[pa.RecordBatch]


@contextlib.contextmanager
def _read(file: SourceFile, **asked: Any) -> Iterator[_Stream]:
    """Read rows in a process; whatever becomes of it is an error of ours."""
    if importlib.util.find_spec("lance") is None:
        raise MissingDependencyError(
            f"{file.name} is a Lance data set, which pylance reads; run: {install_line('lance')}"
        )
    if not isinstance(file.filesystem, pafs.LocalFileSystem):
        raise InvalidInputError(
            f"{file.name} is a Lance data set, which is read from a local folder; copy it: "
            "import lance; lance.write_dataset(lance.dataset(uri), 'local.lance')"
        )
    command = [sys.executable, lance_process.__file__, json.dumps({"path": file.path, **asked})]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        )

        def checked() -> Iterator[pa.RecordBatch]:
            """Its batches; a stream that ends early looks whole."""
            for batch in stream:
                batch.validate(full=True)
                yield batch
            if process.wait():
                raise _failed(file.name, process, said)

        try:
            with readable(file.name, LanceReader.layout):
                try:
                    stream = pa.ipc.open_stream(pa.PythonFile(process.stdout, "r"))
                except (pa.ArrowException, OSError) as error:
                    raise _failed(file.name, process, said) from error
                facts = stream.schema.metadata
                version, count = (int(facts[name]) for name in lance_process.FACTS)
                yield _Stream(stream.schema.remove_metadata(), version, count, checked())
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _failed(name: str, process: subprocess.Popen[bytes], said: Any) -> InvalidInputError:
    code = process.wait()
    said.seek(0)
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    why = lines[-1][:300] if lines else "no message"
    if code < 0:
        why = f"Lance ended by signal {-code}, which is how it takes damaged files ({why})"
    return InvalidInputError(f"{name} cannot be read as Lance: {why}")
