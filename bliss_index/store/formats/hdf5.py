"""A data set of an HDF5 file, with the ones of as many values beside it as its columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.store.columns import texts_of
from bliss_index.store.formats.arrays import choose, require_block
from bliss_index.store.formats.tables import RowGroups, TableColumns, TablePart, readable
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_part import ColumnNames

_GROUP_ROWS = 8192
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Hdf5Part(TablePart):
    """The rows of a matrix and of the columns in its group."""

    place: str
    layout = "HDF5"

    @contextlib.contextmanager
    def reading(
        self, group: int, names: list[str] | None, rows: int
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        wanted = [*self.columns.names, *self.carried.names] if names is None else names
        with _opened(self.file) as opened:
            yield self._batches(opened, self.groups.starts[group], wanted, rows)

    def _batches(
        self, opened: Any, start: int, names: list[str], rows: int
    ) -> Iterator[pa.RecordBatch]:
        sets = [opened[f"{self.place}/{name}"] for name in names]
        while start < self.rows:
            end = min(self.rows, start + rows)
            with _decoded(self.name):
                columns = [_column(one, start, end, self.name) for one in sets]
            yield pa.record_batch(columns, names=names)
            start = end


def open_hdf5(file: SourceFile, columns: ColumnNames, texts: bool) -> Hdf5Part:
    """Find a matrix by its path ('group/name'), and the columns in the same group.

    Raises
    ------
    MissingDependencyError
        h5py is not installed.
    InvalidInputError
        It is no such file, or it is not clear which data set is meant.
    """
    with _opened(file) as opened:
        sets = _sets(opened)
        said = {name: f"{one.dtype} {list(one.shape)}" for name, one in sets.items()}
        fits = {n: one for n, one in sets.items() if one.ndim == 2 and one.dtype.kind == "f"}
        by_end = {name.rpartition("/")[2]: name for name in sets}
        wanted = columns.embedding
        wanted = wanted if wanted is None or wanted in sets else by_end.get(wanted, wanted)
        found = choose(file.name, wanted, said, fits)
        matrix = sets[found]
        rows, dim = require_block(f"{file.name}: {found}", matrix.shape, matrix.dtype.name)
        chunk = matrix.dtype.itemsize * int(np.prod(matrix.chunks or (1,)))
        if chunk > _CHUNK_BYTES:
            raise InvalidInputError(
                f"{file.name}: {found} is stored in chunks {matrix.chunks} of {chunk} bytes, each "
                "of which is decompressed whole; write it with chunks=(1024, d)"
            )
        place, _, own = found.rpartition("/")
        beside = {
            name.rpartition("/")[2]: one
            for name, one in sets.items()
            if name != found and name.rpartition("/")[0] == place and _is_column(one, rows)
        }
        kind = pa.list_(pa.from_numpy_dtype(matrix.dtype.newbyteorder("=")), dim)
        kinds = {name: _column(one, 0, 1, file.name).type for name, one in beside.items()}
        schema = pa.schema([(own, kind), *kinds.items()])
        given = ColumnNames(own, columns.key, columns.text, columns.dtype)
        chosen = TableColumns.find(file.name, schema, given, texts=texts, embedded=True)
        count = [min(_GROUP_ROWS, rows - start) for start in range(0, rows, _GROUP_ROWS)]
        own_bytes = [n * dim * matrix.dtype.itemsize for n in count]
        others = [n * 64 * len(chosen.carried) for n in count]
        groups = RowGroups(tuple(count), tuple(own_bytes), tuple(others))
        read = {found, *(f"{place}/{name}".lstrip("/") for name in beside)}
        unread = tuple(name for name in sets if name not in read)
        return Hdf5Part(file, rows, dim, chosen.dtype, chosen, groups, place, unread=unread)


def _sets(opened: Any) -> dict[str, Any]:
    """All data sets by their paths."""
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = item

    opened.visititems(visit)
    return found


def _is_column(one: Any, rows: int) -> bool:
    import h5py

    is_text = h5py.check_string_dtype(one.dtype) is not None
    return bool(one.shape == (rows,) and (is_text or one.dtype.kind in "iufb"))


def _column(one: Any, start: int, end: int, file: str) -> pa.Array:
    values = one[start:end]
    if values.ndim == 2:
        plain = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
        return pa.FixedSizeListArray.from_arrays(pa.array(plain.reshape(-1)), values.shape[1])
    if values.dtype.kind in "OS":
        found = pa.array([v if isinstance(v, bytes) else str(v).encode() for v in values])
        return pa.array(texts_of(found.cast(pa.binary()), f"{file}: {one.name}", start))
    return pa.array(values.astype(values.dtype.newbyteorder("="), copy=False))


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            f"{file.name} is HDF5, which h5py reads; run: pip install 'bliss-index[hdf5]'"
        ) from error
    with _decoded(file.name), file.open() as stream, h5py.File(stream, "r") as opened:
        yield opened


@contextlib.contextmanager
def _decoded(name: str) -> Iterator[None]:
    """Turn whatever h5py says of a damaged file into our error."""
    try:
        with readable(name, Hdf5Part.layout):
            yield
    except (RuntimeError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InvalidInputError(f"{name} cannot be read as HDF5: {error}") from error
