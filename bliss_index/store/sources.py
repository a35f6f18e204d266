"""Embeddings that people already have: .npy, .npz, Parquet, clip-retrieval folders.

A source is a list of parts, each a file that is read in batches. Paths may be local, or URIs that
pyarrow or fsspec know (``s3://``, ``gs://``, ``hf://``, ``memory://``, ...).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name

import pyarrow as pa
import pyarrow.fs as pafs

from bliss_index.errors import CorruptStoreError, InvalidInputError, listed
from bliss_index.jobs.part import Growth, Part, Plan, grown
from bliss_index.store.source_file import SourceFile, list_files, resolve
from bliss_index.store.source_npy import NpyPart
from bliss_index.store.source_parquet import ParquetPart
from bliss_index.store.source_part import BrokenPart, ColumnNames, Piece, SourcePart

LAYOUTS = {
    ".npy": "bliss_index.store.source_npy:open_npy",
    ".npz": "bliss_index.store.source_npy:open_npz",
    ".parquet": "bliss_index.store.source_parquet:open_parquet",
}
"""What opens a file, by the suffix of its name: "module:function" of (file, columns, texts)."""

_TABLE = ".parquet"  # has columns beside the embeddings
CLIP_RETRIEVAL_FOLDERS = {"image": "img_emb", "text": "text_emb"}


@dataclass(frozen=True)
class EmbeddingSource:
    """A list of parts of equal dimension.

    Attributes
    ----------
    location
        As given.
    parts
        Its files, in order of their names and of the numbers in these.
    skipped
        Names of files of a folder that were passed over, by reason.
    """

    location: str
    parts: tuple[SourcePart, ...]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts:
            raise InvalidInputError(f"{self.location} holds no embedding files")
        whole = [part for part in self.parts if not isinstance(part, BrokenPart)]
        if not whole:
            raise InvalidInputError(next(p.reason for p in self.parts if isinstance(p, BrokenPart)))
        first = next((part for part in whole if part.dim), None)
        if first is None:
            raise InvalidInputError(f"{whole[0].name} holds no embedding, of whatever dimension")
        for part in whole:
            if part.dim not in (0, first.dim):
                raise InvalidInputError(
                    f"{first.name} holds embeddings of dimension {first.dim}, "
                    f"{part.name} of dimension {part.dim}; they cannot be of one model"
                )
        known = (p if p.dim or isinstance(p, BrokenPart) else replace(p, dim=first.dim)
                 for p in self.parts)  # fmt: skip
        object.__setattr__(self, "parts", tuple(known))

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return next(part.dim for part in self.parts if not isinstance(part, BrokenPart))

    def notices(self) -> list[str]:
        """What a person should hear of how the files were read."""
        said = [
            f"{self.location}: passed over {len(names)} ({reason}): {listed(names)}"
            for reason, names in self.skipped.items()
        ]
        if different := self.unclear_order():
            said.append(f"{self.location}: {different}")
        return said

    def unclear_order(self) -> str:
        """Name a pair of files that sorts otherwise by letter than by number; '' if none does."""
        names = [part.name for part in self.parts]
        for name, by_letter in zip(names, sorted(names), strict=True):
            if name != by_letter:
                return f"{name} is read before {by_letter}, by number; by letter it comes after it"
        return ""

    def pieces(self, rows: int, size: int, *, carried: bool) -> Iterator[Piece]:
        """Cut the files into pieces of about `rows` rows and `size` bytes."""
        first_row = 0
        for part in self.parts:
            for start, end in itertools.pairwise(part.cuts(rows, size, carried=carried)):
                yield Piece(part, start, end - start, None if end < start else first_row)
                first_row += max(0, end - start)

    def piece_of(self, planned: Part) -> Piece:
        """Find the rows of a part of a job; CorruptStoreError where their file is gone."""
        detail = json.loads(planned.detail)
        part = self._by_name.get(detail["file"])
        if part is None:
            raise CorruptStoreError(f"{self.location} has no {detail['file']} any more")
        return Piece(part, detail["start"], planned.rows, detail["first_row"])

    @cached_property
    def carried(self) -> pa.Schema | None:
        """Columns that are carried, of all files; None where these hold no tables.

        A column that one file lacks is null in its rows. Types that differ become one that holds
        all values, such as floats of integers; what does not fit it is refused as it is read.

        Raises
        ------
        InvalidInputError
            Types of a column differ and no type holds both.
        """
        schema: pa.Schema | None = None
        seen: dict[str, str] = {}
        for part in self.parts:
            own = part.carried
            if own is None or (schema is not None and own.equals(schema)):
                continue
            schema = own if schema is None else _unified(schema, own, seen, part.name)
            for name in own.names:
                seen.setdefault(name, part.name)
        return schema and pa.schema(column.with_nullable(True) for column in schema)

    @cached_property
    def _by_name(self) -> dict[str, SourcePart]:
        return {part.name: part for part in self.parts}

    @property
    def rows(self) -> int:
        """Rows of all parts that can be opened."""
        return sum(max(part.rows, 0) for part in self.parts)


def open_source(
    location: str | Path,
    *,
    kind: str = "image",
    columns: ColumnNames | None = None,
    lenient: bool = False,
) -> EmbeddingSource:
    """Recognise a file or folder of embeddings.

    Parameters
    ----------
    location
        ``.npy`` (n, d); ``.npz`` with an array ``embeddings``; ``.parquet`` with a list column; a
        folder of ``.npy`` and ``.npz``, or of ``.parquet`` files; a clip-retrieval folder
        (``img_emb/*.npy`` or ``text_emb/*.npy``, with the ``metadata/*.parquet`` of the same
        numbers).
    kind
        "image" or "text": which half of a clip-retrieval folder.
    columns
        Of Parquet files.
    lenient : bool, default=False
        Whether a file of a folder that cannot be opened is a part that fails when it is read.

    Raises
    ------
    InvalidInputError
        Nothing is there, its layout is not known, or its parts do not fit each other.
    """
    columns = columns or ColumnNames()
    texts = kind == "text"  # what describes an image is one of its other columns
    filesystem, path = resolve(location)
    try:
        info = filesystem.get_file_info(path)
    except Exception as error:  # the network's, the credentials': as many as there are file systems
        raise InvalidInputError(f"{location} cannot be reached: {error}") from error
    if info.type == pafs.FileType.NotFound:
        raise InvalidInputError(f"{location} does not exist")

    def opened(file: SourceFile) -> SourcePart:
        part: SourcePart = resolve_name(LAYOUTS[_suffix(file)])(file, columns, texts)
        return part

    if info.type == pafs.FileType.File:
        file = SourceFile(filesystem, path, Path(path).name)
        if _suffix(file) in LAYOUTS:
            return EmbeddingSource(str(location), (opened(file),))
        raise InvalidInputError(
            f"{location} is of an unknown type; known are {', '.join(LAYOUTS)} and folders of them"
        )
    files, skipped = list_files(filesystem, path)
    folder = CLIP_RETRIEVAL_FOLDERS[kind]
    used = [f for f in files if f.name.startswith(f"{folder}/") and _suffix(f) == ".npy"]
    if used:
        tables = [f for f in files if f.name.startswith("metadata/") and _suffix(f) == _TABLE]
        parts = _with_metadata(used, tables, columns, texts)
        used += tables
    else:
        known = [f for f in files if _suffix(f) in LAYOUTS]
        arrays = [f for f in known if _suffix(f) != _TABLE]
        tables = [f for f in known if _suffix(f) == _TABLE]
        if arrays and tables:
            raise InvalidInputError(
                f"{location} holds both arrays ({arrays[0].name}) and .parquet files "
                f"({tables[0].name}) and no folder {folder}/; name one of its sub-folders"
            )
        used = arrays or tables
        parts = _opened(used, opened, lenient)
    names = {file.name for file in used}
    if others := [file.name for file in files if file.name not in names]:
        skipped["no embeddings by its name"] = others
    return EmbeddingSource(str(location), parts, skipped)


def _unified(schema: pa.Schema, own: pa.Schema, seen: dict[str, str], name: str) -> pa.Schema:
    """Put the columns of another file to those of earlier ones."""
    for column in own:
        if column.name not in schema.names:
            schema = schema.append(column.with_nullable(True))
            continue
        number = schema.names.index(column.name)
        before = schema.field(number)
        if before.type == column.type:
            continue
        kinds = [pa.schema([("x", _plain(kind))]) for kind in (before.type, column.type)]
        try:
            both = pa.unify_schemas(kinds, promote_options="permissive").field(0).type
        except pa.ArrowException as error:
            raise InvalidInputError(
                f"column {column.name!r} is of type {before.type} in {seen[column.name]} and of "
                f"type {column.type} in {name}, and no type holds both; write it alike in all "
                "files, or leave it out"
            ) from error
        schema = schema.set(number, before.with_type(both).with_nullable(True))
    return schema


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, where others than Arrow's plain ones cannot be put together."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return pa.string() if pa.types.is_string_view(kind) else kind


def _opened(
    files: list[SourceFile], how: Callable[[SourceFile], SourcePart], lenient: bool
) -> tuple[SourcePart, ...]:
    parts: list[SourcePart] = []
    for file in files:
        try:
            parts.append(how(file))
        except InvalidInputError as error:
            if not lenient:
                raise
            parts.append(BrokenPart(file, -1, 0, "float32", str(error)))
    return tuple(parts)


def _suffix(file: SourceFile) -> str:
    return PurePosixPath(file.name).suffix.lower()


def _with_metadata(
    arrays: list[SourceFile], tables: list[SourceFile], columns: ColumnNames, texts: bool
) -> tuple[SourcePart, ...]:
    parts: list[SourcePart] = []
    for array, of_it in _pairs(arrays, tables) if tables else ((array, None) for array in arrays):
        part = NpyPart.open(array)
        if of_it is not None:
            table = ParquetPart.open(of_it, columns, texts=texts, embedded=False)
            if table.rows != part.rows:
                raise InvalidInputError(
                    f"{array.name} has {part.rows} rows, {table.name} has {table.rows}"
                )
            part = replace(part, metadata=table)
        parts.append(part)
    return tuple(parts)


def _pairs(
    arrays: list[SourceFile], tables: list[SourceFile]
) -> list[tuple[SourceFile, SourceFile]]:
    """Find the metadata of each array: the file with the same numbers in its name."""
    numbered: list[dict[tuple[int, ...], SourceFile]] = []
    for files in (arrays, tables):
        named: dict[tuple[int, ...], SourceFile] = {}
        for file in files:
            within = file.name.partition("/")[2]
            stem = str(PurePosixPath(within).with_suffix(""))
            other = named.setdefault(tuple(map(int, re.findall("[0-9]+", stem))), file)
            if other is not file:
                raise InvalidInputError(
                    f"{other.name} and {file.name} have the same number; leave one out"
                )
        numbered.append(named)
    of_arrays, of_tables = numbered
    alone = [f[n].name for f, o in ((of_arrays, of_tables), (of_tables, of_arrays))
             for n in f if n not in o]  # fmt: skip
    if alone:
        raise InvalidInputError(
            f"{len(arrays)} embedding files ({arrays[0].name}, ...) and {len(tables)} metadata "
            f"files ({tables[0].name}, ...); clip-retrieval writes one for each, with the same "
            f"number, which {listed(alone)} {'has' if len(alone) == 1 else 'have'} not"
        )
    return [(array, of_tables[number]) for number, array in of_arrays.items()]


def grown_source(kept: Plan, now: Plan) -> Growth:
    """Find the pieces of files that came in; their rows are numbered behind the others."""
    growth, row = grown(kept, now), kept.rows
    parts = []
    for part in growth.parts:
        first_row = None if part.rows < 0 else row
        detail = json.dumps({**json.loads(part.detail), "first_row": first_row})
        parts.append(replace(part, detail=detail))
        row += max(part.rows, 0)
    return replace(growth, parts=parts)
