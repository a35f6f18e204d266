"""Embeddings in webdataset's tars: a ``.npy`` in each sample, with texts beside it."""

from __future__ import annotations

import contextlib
import io
import itertools
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bliss_index.errors import InvalidInputError, listed
from bliss_index.store.columns import NPY_ERRORS
from bliss_index.store.formats.table_columns import TableColumns
from bliss_index.store.formats.tables import RowGroups, TableReader, readable
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames
from bliss_index.store.tar_members import TarMembers, content

KEY = "__key__"
TEXTS = ("txt", "json", "cls")
_GROUP_SAMPLES = 1024
_MOST_BYTES = 1 << 20
"""Bytes of an embedding, or of a text, at most."""


@dataclass(frozen=True)
class TarReader(TableReader):
    """The samples of one tar; of those without a ``.npy`` the embedding is null.

    Attributes
    ----------
    kind
        Type of the values.
    starts
        Where each group begins in the file; None where it is read from its beginning.
    """

    kind: str
    starts: tuple[int, ...] | None
    layout = "tar"

    @contextlib.contextmanager
    def reading(
        self, group: int, names: list[str] | None, rows: int
    ) -> Iterator[Iterator[pa.RecordBatch]]:
        wanted = [*self.columns.names, *self.carried.names] if names is None else names
        offset, skip = 0, self.groups.starts[group]
        if self.starts is not None:
            offset, skip = self.starts[group], 0
        members = _members(self.file)
        with members.opened(offset) as archive:
            samples = itertools.islice(members.samples(archive, _ignored), skip, None)
            yield _batches(self.name, archive, samples, wanted, rows, self.kind)


def open_tar(file: SourceFile, columns: ColumnNames, texts: bool) -> TarReader:
    """Find the arrays of a tar's samples, by what follows the first dot of their names.

    Its headers are read once, to the end.

    Raises
    ------
    InvalidInputError
        It is damaged or cut, no sample has a ``.npy``, or several, of which none is named.
    """
    members = _members(file)
    endings: Counter[str] = Counter()
    sizes: list[list[int]] = []
    starts: list[int] = []
    with members.opened() as archive:
        for number, (_, files) in enumerate(members.samples(archive, _ignored)):
            if number % _GROUP_SAMPLES == 0:
                sizes.append([0, 0, 0])
                starts.append(min(member.offset for member in files))
            sizes[-1][0] += 1
            found = _by_ending(files)
            endings.update(found.keys())
            for ending, member in found.items():
                sizes[-1][1 if ending.endswith("npy") else 2] += member.size * (
                    ending.endswith("npy") or ending in TEXTS
                )
        members.check_end(archive, f"{sum(size[0] for size in sizes)} samples")
        direct = members.direct(archive)
    embedding = _ending(file.name, endings, columns.embedding)
    groups = RowGroups(*(tuple(column) for column in zip(*sizes, strict=True)))
    rows = min(_GROUP_SAMPLES, groups.rows[0])
    with members.opened() as archive:
        samples = members.samples(archive, _ignored)
        (first,) = _batches(file.name, archive, itertools.islice(samples, rows), [embedding], rows)
    kind = first.schema.field(embedding).type
    has = [name for name in TEXTS if endings[name]]
    schema = pa.schema([(KEY, pa.string()), (embedding, kind), *((n, pa.string()) for n in has)])
    text = columns.text or ("txt" if texts and "txt" in has else None)
    given = ColumnNames(embedding, columns.key or KEY, text, columns.dtype)
    chosen = TableColumns.find(file.name, schema, given, texts=texts, embedded=True)
    unread = tuple(f".{name}" for name in endings if name not in (embedding, *has))
    return TarReader(
        file, sum(groups.rows), chosen.dimension(file.name, [first]), chosen.dtype, chosen, groups,
        str(kind.value_type.to_pandas_dtype().__name__), tuple(starts) if direct else None,
        unread=unread,
    )  # fmt: skip


def _members(file: SourceFile) -> TarMembers:
    return TarMembers(file.name, file.open)


def _ignored(_reason: str, _name: str) -> None:
    """What is no file has no embedding either."""


def _by_ending(files: list[tarfile.TarInfo]) -> dict[str, tarfile.TarInfo]:
    """The members of a sample by what follows the first dot of their names."""
    return {member.name.rpartition("/")[2].partition(".")[2].lower(): member for member in files}


def _ending(file: str, endings: Counter[str], wanted: str | None) -> str:
    arrays = [name for name in endings if name == "npy" or name.endswith(".npy")]
    has = listed([f".{name} ({count})" for name, count in endings.items()]) or "no member"
    if wanted is not None:
        name = wanted.removeprefix(".").lower()
        for fits in (name, f"{name}.npy"):
            if fits in arrays:
                return fits
        raise InvalidInputError(f"{file} has no members that end in .{name}.npy; it has {has}")
    if len(arrays) == 1:
        return arrays[0]
    if arrays:
        raise InvalidInputError(
            f"{file} has several arrays in a sample: {listed(arrays)}; name one with "
            f"--embedding-column, such as --embedding-column {arrays[0]}"
        )
    raise InvalidInputError(
        f"{file} has no .npy in its samples; it has {has}. Images are encoded by "
        "'bliss-index encode-images'"
    )


def _batches(
    file: str,
    archive: tarfile.TarFile,
    samples: Iterator[tuple[str, list[tarfile.TarInfo]]],
    names: list[str],
    rows: int,
    kind: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Samples as tables; without `kind`, of the type that the first ones have."""
    while some := list(itertools.islice(samples, rows)):
        found = [(key, _by_ending(files)) for key, files in some]
        columns: list[Any] = []
        for name in names:
            if name == KEY:
                keys = [key.encode("utf-8", "surrogateescape") for key, _ in found]
                columns.append(pa.array([k.decode("utf-8", "backslashreplace") for k in keys]))
                continue
            cells = [
                None if name not in by_ending else _content(file, archive, by_ending[name])
                for _, by_ending in found
            ]
            if name.endswith("npy"):
                of = [by_ending[name].name if name in by_ending else "" for _, by_ending in found]
                columns.append(_vectors(file, cells, of, kind))
            else:
                texts = [c and c.decode("utf-8", "backslashreplace").strip() for c in cells]
                columns.append(pa.array(texts, pa.string()))
        yield pa.record_batch(columns, names=names)


def _content(file: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MOST_BYTES:
        raise InvalidInputError(
            f"{file}: {member.name} has {member.size} bytes, at most {_MOST_BYTES} are read of a "
            "member; leave it out"
        )
    with readable(file, TarReader.layout):
        try:
            return content(archive, member)
        except tarfile.TarError as error:
            raise ValueError(str(error)) from error


def _vectors(file: str, cells: list[bytes | None], of: list[str], kind: str | None) -> pa.Array:
    """Arrays of the samples as a column of lists."""
    vectors = []
    for cell, name in zip(cells, of, strict=True):
        vectors.append(None if cell is None else _vector(file, name, cell))
    kinds = {vector.dtype for vector in vectors if vector is not None}
    wanted = np.dtype(kind) if kind else np.result_type(*kinds) if kinds else np.dtype("float32")
    for vector, name in zip(vectors, of, strict=True):
        if vector is not None and not np.can_cast(vector.dtype, wanted):
            raise InvalidInputError(
                f"{file}: {name} is of type {vector.dtype}, those before it of type {wanted}; "
                "write all of one type"
            )
    ends = np.cumsum([0, *(0 if vector is None else vector.size for vector in vectors)])
    values = [vector.astype(wanted, copy=False) for vector in vectors if vector is not None]
    flat = np.concatenate(values) if values else np.empty(0, wanted)
    missing = pa.array([vector is None for vector in vectors])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat), mask=missing)


def _vector(file: str, name: str, cell: bytes) -> np.ndarray[Any, Any]:
    try:
        array = np.load(io.BytesIO(cell), allow_pickle=False)
    except (*NPY_ERRORS, MemoryError) as error:
        raise InvalidInputError(f"{file}: {name} cannot be read as .npy: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.name not in (
        "float16", "float32", "float64",
    ):  # fmt: skip
        what = getattr(array, "dtype", type(array).__name__)
        raise InvalidInputError(
            f"{file}: {name} holds values of type {what}, expected float16, float32 or float64"
        )
    return array.reshape(-1)
