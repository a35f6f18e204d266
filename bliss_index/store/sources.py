"""Embeddings that people already have: .npy, .npz, Parquet, clip-retrieval folders.

A source is a list of parts, each a file that is read in batches. Paths may be local, or URIs that
pyarrow or fsspec know (``s3://``, ``gs://``, ``hf://``, ``memory://``, ...).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as pafs

from bliss_index.errors import InvalidInputError, MissingDependencyError

BATCH_ROWS = 8192
CLIP_RETRIEVAL_FOLDERS = {"image": "img_emb", "text": "text_emb"}


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """Consecutive rows of a part, as they stand there.

    Attributes
    ----------
    embeddings
        (n, d) of any floating-point type, not normalised; zero where `errors` names a row.
    keys
        n identifiers; None where the part has none. A missing one is None.
    texts
        n entries, where the part has a text column.
    errors
        Row to (status, reason), for rows without a usable embedding or key.
    metadata
        The other columns.
    """

    embeddings: npt.NDArray[Any]
    keys: list[str | None] | None = None
    texts: list[str | None] | None = None
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    metadata: pa.Table | None = None


class SourcePart(Protocol):
    """One file of embeddings."""

    @property
    def name(self) -> str:
        """Its name within the source."""
        ...

    @property
    def rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def dtype(self) -> str:
        """Type to store its unit rows in without loss: "float16" or "float32"."""
        ...

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[EmbeddingBatch]:
        """Read all rows in order."""
        ...

    def sha256(self) -> str:
        """Hash of all the files that the part is made of."""
        ...

    def stamp(self) -> list[Any]:
        """Sizes and modification times: what tells, mostly, that nothing changed."""
        ...


@dataclass(frozen=True)
class ColumnNames:
    """Which columns of a table to use; None to recognise them by name."""

    embedding: str | None = None
    key: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class EmbeddingSource:
    """A list of parts of equal dimension.

    Attributes
    ----------
    location
        As given.
    parts
        Its files, in order of their names.
    """

    location: str
    parts: tuple[SourcePart, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InvalidInputError(f"{self.location} holds no embedding files")
        for part in self.parts[1:]:
            if part.dim != self.dim:
                raise InvalidInputError(
                    f"{self.parts[0].name} holds embeddings of dimension {self.dim}, "
                    f"{part.name} of dimension {part.dim}; they cannot be of one model"
                )

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.parts[0].dim

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)


def open_source(
    location: str | Path, *, kind: str = "image", columns: ColumnNames | None = None
) -> EmbeddingSource:
    """Recognise a file or folder of embeddings.

    Parameters
    ----------
    location
        ``.npy`` (n, d); ``.npz`` with an array ``embeddings``; ``.parquet`` with a list column; a
        folder of ``.npy`` or of ``.parquet`` files; a clip-retrieval folder (``img_emb/*.npy`` or
        ``text_emb/*.npy``, with ``metadata/*.parquet``).
    kind
        "image" or "text": which half of a clip-retrieval folder.
    columns
        Of Parquet files.

    Raises
    ------
    InvalidInputError
        Nothing is there, it is of no known layout, or its parts do not fit each other.
    """
    from bliss_index.store.source_npy import NpyPart, read_npz
    from bliss_index.store.source_parquet import ParquetPart

    columns = columns or ColumnNames()
    texts = kind == "text"  # what describes an image is one of its other columns
    filesystem, path = resolve(location)
    try:
        info = filesystem.get_file_info(path)
    except Exception as error:  # the network's, the credentials': as many as there are file systems
        raise InvalidInputError(f"{location} cannot be reached: {error}") from error
    if info.type == pafs.FileType.NotFound:
        raise InvalidInputError(f"{location} does not exist")
    if info.type == pafs.FileType.File:
        file = SourceFile(filesystem, path, Path(path).name)
        if path.endswith(".npy"):
            return EmbeddingSource(str(location), (NpyPart.open(file),))
        if path.endswith(".npz"):
            return EmbeddingSource(str(location), (read_npz(file),))
        if path.endswith(".parquet"):
            return EmbeddingSource(str(location), (ParquetPart.open(file, columns, texts=texts),))
        raise InvalidInputError(
            f"{location} is of no known type; known are .npy, .npz, .parquet and folders of them"
        )
    files = _list(filesystem, path)
    folder = CLIP_RETRIEVAL_FOLDERS[kind]
    arrays = [f for f in files if f.name.startswith(f"{folder}/") and f.name.endswith(".npy")]
    if arrays:
        tables = [f for f in files if f.name.startswith("metadata/") and _is_parquet(f)]
        return EmbeddingSource(str(location), _with_metadata(arrays, tables, columns, texts))
    arrays = [f for f in files if f.name.endswith(".npy")]
    tables = [f for f in files if _is_parquet(f)]
    if arrays and tables:
        raise InvalidInputError(
            f"{location} holds both .npy ({arrays[0].name}) and .parquet ({tables[0].name}) files "
            f"and no folder {folder}/; name one of its sub-folders"
        )
    if arrays:
        return EmbeddingSource(str(location), tuple(NpyPart.open(f) for f in arrays))
    parts = tuple(ParquetPart.open(f, columns, texts=texts) for f in tables)
    return EmbeddingSource(str(location), parts)


@dataclass(frozen=True)
class SourceFile:
    """A file on some file system; `name` is its path within the source."""

    filesystem: pafs.FileSystem
    path: str
    name: str

    def open(self) -> Any:
        """Open for random reading, as a pyarrow file."""
        try:
            return self.filesystem.open_input_file(self.path)
        except OSError as error:
            raise InvalidInputError(f"{self.name} cannot be read: {error}") from error

    def sha256(self) -> str:
        """Hash of its bytes."""
        import hashlib

        digest = hashlib.sha256()
        with self.open() as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def stamp(self) -> list[Any]:
        """Its size and modification time in nanoseconds."""
        info = self.filesystem.get_file_info(self.path)
        return [info.size, info.mtime_ns]


def resolve(location: str | Path) -> tuple[pafs.FileSystem, str]:
    """Return the file system and the path on it that a path or URI means."""
    text = str(location)
    if "://" not in text:
        return pafs.LocalFileSystem(), str(Path(text).absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
        return filesystem, path
    except pa.ArrowInvalid:
        pass
    except (pa.ArrowException, OSError) as error:
        raise InvalidInputError(f"{text} cannot be opened: {error}") from error
    try:
        import fsspec
    except ImportError as error:
        raise MissingDependencyError(
            f"{text} needs fsspec to be read ({error}); pip install fsspec"
        ) from error
    try:
        target, path = fsspec.core.url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise InvalidInputError(f"{text} cannot be opened: {error}") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(target)), path


def _list(filesystem: pafs.FileSystem, path: str) -> list[SourceFile]:
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    root = path.rstrip("/") + "/"
    files = []
    for info in found:
        name = info.path.removeprefix(root).removeprefix(root.lstrip("/"))
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        if info.type == pafs.FileType.File and not hidden:
            files.append(SourceFile(filesystem, info.path, name))
    return sorted(files, key=lambda file: file.name)


def _is_parquet(file: SourceFile) -> bool:
    return file.name.endswith(".parquet")


def _with_metadata(
    arrays: list[SourceFile], tables: list[SourceFile], columns: ColumnNames, texts: bool
) -> tuple[SourcePart, ...]:
    from bliss_index.store.source_npy import NpyPart
    from bliss_index.store.source_parquet import MetadataTable

    if tables and len(tables) != len(arrays):
        raise InvalidInputError(
            f"{len(arrays)} embedding files ({arrays[0].name}, ...) and {len(tables)} metadata "
            f"files ({tables[0].name}, ...); clip-retrieval writes one for each"
        )
    parts: list[SourcePart] = []
    for position, array in enumerate(arrays):
        part = NpyPart.open(array)
        if tables:
            table = MetadataTable.open(tables[position], columns, texts=texts)
            if table.rows != part.rows:
                raise InvalidInputError(
                    f"{array.name} has {part.rows} rows, {table.name} has {table.rows}"
                )
            part = part.with_metadata(table)
        parts.append(part)
    return tuple(parts)


def as_float(matrix: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Return the matrix if it holds floats of a size that can be used; refuse it otherwise."""
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize not in (2, 4, 8):
        raise InvalidInputError(
            f"{name} holds values of type {matrix.dtype}, expected float16, float32 or float64"
        )
    return np.asarray(matrix, dtype=matrix.dtype.newbyteorder("="))
