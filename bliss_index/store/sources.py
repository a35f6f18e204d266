"""Embeddings that people already have, in whatever layout: files, folders of them, data sets.

A source is a list of readers, one a file, which read in batches. Paths may be local, or URIs that
pyarrow or fsspec know (``s3://``, ``gs://``, ``hf://``, ``memory://``, ...).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name

import pyarrow as pa
import pyarrow.fs as pafs

from bliss_index.errors import CorruptStoreError, InvalidInputError, listed
from bliss_index.jobs.part import Growth, Part, Plan, grown
from bliss_index.store.carried import unified
from bliss_index.store.folder_columns import with_folder_columns
from bliss_index.store.formats import clip_retrieval, saved_datasets
from bliss_index.store.formats.lance import LANCE, is_lance
from bliss_index.store.formats.others import is_otherwise, what_is
from bliss_index.store.source_file import SourceFile, list_files, natural, resolve
from bliss_index.store.source_reader import BrokenReader, ColumnNames, Piece, SourceReader

LAYOUTS = {
    ".npy": "npy:open_npy",
    ".npz": "npy:open_npz",
    ".parquet": "parquet:open_parquet",
    ".pq": "parquet:open_parquet",
    ".arrow": "arrow:open_arrow",
    ".arrows": "arrow:open_arrow",
    ".feather": "arrow:open_arrow",
    ".ipc": "arrow:open_arrow",
    ".lance": "lance:open_lance",
    ".tar": "tar:open_tar",
    ".tar.gz": "tar:open_tar",
    ".tgz": "tar:open_tar",
    ".safetensors": "safetensors:open_safetensors",
    ".pt": "pytorch:open_pytorch",
    ".pth": "pytorch:open_pytorch",
    ".fvecs": "vectors:open_vectors",
    ".bvecs": "vectors:open_vectors",
    ".ivecs": "vectors:open_vectors",
    ".fbin": "vectors:open_vectors",
    ".u8bin": "vectors:open_vectors",
    ".i8bin": "vectors:open_vectors",
    ".ibin": "vectors:open_vectors",
}
"""What opens a file, by the end of its name: "module:function" of (file, columns, texts), where the
module is one of `bliss_index.store.formats`."""

UNREAD = "beside the embeddings in a file"
_FORMATS = "bliss_index.store.formats"


@dataclass(frozen=True)
class EmbeddingSource:
    """A list of readers of equal dimension.

    Attributes
    ----------
    location
        As given.
    readers
        Its files, in order of their names and of the numbers in these.
    skipped
        Names of files of a folder, and of arrays of a file, that were passed over, by reason.
    """

    location: str
    readers: tuple[SourceReader, ...]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = [reader for reader in self.readers if not isinstance(reader, BrokenReader)]
        if not whole:
            raise InvalidInputError(
                next(p.reason for p in self.readers if isinstance(p, BrokenReader))
            )
        first = next((reader for reader in whole if reader.dim), None)
        if first is None:
            raise InvalidInputError(f"{whole[0].name} holds no embedding, of whatever dimension")
        for reader in whole:
            if reader.dim not in (0, first.dim):
                raise InvalidInputError(
                    f"{first.name} holds embeddings of dimension {first.dim}, "
                    f"{reader.name} of dimension {reader.dim}; they cannot be of one model"
                )
        known = (p if p.dim or isinstance(p, BrokenReader) else replace(p, dim=first.dim)
                 for p in self.readers)  # fmt: skip
        object.__setattr__(self, "readers", tuple(known))
        if unread := [
            f"{reader.name}: {name}" for reader in self.readers for name in reader.unread
        ]:
            object.__setattr__(self, "skipped", {**self.skipped, UNREAD: unread})

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return next(reader.dim for reader in self.readers if not isinstance(reader, BrokenReader))

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
        """Name a pair of files that are not in the order of letters; '' if there is none."""
        names = [reader.name for reader in self.readers]
        for name, by_letter in zip(names, sorted(names), strict=True):
            if name != by_letter:
                how = ", by number" if names == sorted(names, key=natural) else ""
                return f"{name} is read before {by_letter}{how}; by letter it comes after it"
        return ""

    def pieces(self, rows: int, size: int, *, carried: bool) -> Iterator[Piece]:
        """Cut the files into pieces of about `rows` rows and `size` bytes."""
        first_row = 0
        for reader in self.readers:
            for start, end in itertools.pairwise(reader.cuts(rows, size, carried=carried)):
                yield Piece(reader, start, end - start, None if end < start else first_row)
                first_row += max(0, end - start)

    def piece_of(self, planned: Part) -> Piece:
        """Find the rows of a part of a job; CorruptStoreError where their file is gone."""
        detail = json.loads(planned.detail)
        reader = self._by_name.get(detail["file"])
        if reader is None:
            raise CorruptStoreError(f"{self.location} has no {detail['file']} any more")
        return Piece(reader, detail["start"], planned.rows, detail["first_row"])

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
        known = [(reader.name, reader.described) for reader in self.readers]
        return unified((name, schema) for name, schema in known if schema is not None)

    @cached_property
    def _by_name(self) -> dict[str, SourceReader]:
        return {reader.name: reader for reader in self.readers}

    @property
    def rows(self) -> int:
        """Rows of all files that can be opened."""
        return sum(max(reader.rows, 0) for reader in self.readers)


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
        A file of one of the layouts of :data:`LAYOUTS`; a folder of files of one layout, whose
        folders ``year=2020/`` are a column; what ``Dataset.save_to_disk`` wrote; a Lance data set;
        a clip-retrieval folder (``img_emb/*.npy`` or ``text_emb/*.npy``, with the
        ``metadata/*.parquet`` of the same numbers).
    kind
        "image" or "text": which half of a clip-retrieval folder, and which of two columns or
        arrays that are named so.
    columns
        Which columns of tables, or array of a file, to use.
    lenient : bool, default=False
        Whether a file of a folder that cannot be opened has a reader that fails when it is used.

    Raises
    ------
    InvalidInputError
        Nothing is there, its layout is not known, or its files do not fit each other.
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

    def opened(file: SourceFile) -> SourceReader:
        return _opened(file, columns, texts)

    one = SourceFile(filesystem, path, PurePosixPath(path).name)
    if info.type == pafs.FileType.File or is_lance(one):
        return EmbeddingSource(str(location), (opened(one),))
    files, skipped = list_files(filesystem, path, (LANCE,))
    folder = clip_retrieval.FOLDERS[kind]
    used = [f for f in files if f.name.startswith(f"{folder}/") and _suffix(f) == ".npy"]
    if used:
        tables = [f for f in files if f.name.startswith("metadata/") and _suffix(f) == ".parquet"]
        readers = clip_retrieval.with_metadata(used, tables, columns, texts)
        used += tables
    else:
        files = saved_datasets.files_of(files, skipped)
        used = [f for f in files if _suffix(f) in LAYOUTS]
        _require_one_layout(str(location), used, folder)
        readers = _all_opened(used, opened, lenient)
    names = {file.name for file in used}
    if others := [file.name for file in files if file.name not in names]:
        skipped["no embeddings by its name"] = others
    if not readers:
        raise InvalidInputError(
            f"{location} holds no embedding files, whose names end in {', '.join(LAYOUTS)}"
            + (f"; it holds {listed(others)}. {what_is(files[0])}" if others else "")
        )
    return EmbeddingSource(str(location), with_folder_columns(readers), skipped)


def _opened(file: SourceFile, columns: ColumnNames, texts: bool) -> SourceReader:
    """Open a file as its name says; where that fails, say what it is by its content."""
    suffix = _suffix(file)
    if suffix not in LAYOUTS and is_lance(file):
        suffix = LANCE
    if suffix not in LAYOUTS:
        raise InvalidInputError(
            f"{file.path} is of an unknown type; known are {', '.join(LAYOUTS)} and folders of "
            f"them. {what_is(file)}"
        )
    module, _, function = LAYOUTS[suffix].partition(":")
    opening = resolve_name(f"{_FORMATS}.{module}:{function}")
    try:
        reader: SourceReader = opening(file, columns, texts)
    except InvalidInputError as error:
        if found := is_otherwise(file, suffix):
            raise InvalidInputError(f"{str(error).rstrip('.')}. {found}") from error
        raise
    return reader


def _require_one_layout(location: str, files: list[SourceFile], folder: str) -> None:
    """Refuse a folder of several layouts, which may be the same rows twice, or no embeddings."""
    first: dict[str, SourceFile] = {}
    for file in files:
        module = LAYOUTS[_suffix(file)].partition(":")[0]
        first.setdefault(module, file)
    if len(first) > 1:
        one, other = list(first.values())[:2]
        raise InvalidInputError(
            f"{location} holds both {_suffix(one)} files ({one.name}) and {_suffix(other)} files "
            f"({other.name}) and no folder {folder}/; name one of its sub-folders or files"
        )


def _all_opened(
    files: list[SourceFile], how: Callable[[SourceFile], SourceReader], lenient: bool
) -> tuple[SourceReader, ...]:
    readers: list[SourceReader] = []
    for file in files:
        try:
            readers.append(how(file))
        except InvalidInputError as error:
            if not lenient:
                raise
            readers.append(BrokenReader(file, -1, 0, "float32", str(error)))
    return tuple(readers)


def _suffix(file: SourceFile) -> str:
    """The end of a name that says the layout, else its extension."""
    name = PurePosixPath(file.name).name.lower()
    fits = [suffix for suffix in LAYOUTS if name.endswith(suffix)]
    return max(fits, key=len, default=PurePosixPath(name).suffix)


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
