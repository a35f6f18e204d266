"""Where images come from: folders, webdataset tars, Parquet and CSV files.

A source yields its rows in one fixed order and can start at any row, so that a job resumes where
it stopped. Image contents are read late and never all at once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bliss_index.encode.decode import EXTENSIONS
from bliss_index.encode.image_archives import TarSource
from bliss_index.encode.image_rows import ImageRow, ImageSource, Piece, SourceBase, file_stamp
from bliss_index.encode.image_tables import table_source
from bliss_index.errors import InvalidInputError

if TYPE_CHECKING:
    import pyarrow as pa

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv")


class FolderSource(SourceBase):
    """All image files below a directory, in the order of their relative paths.

    The key is the relative path with forward slashes. Hidden files and directories, files
    without an image's extension and links to directories are passed over and counted.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__(str(directory))
        self._directory = Path(directory)
        if not self._directory.is_dir():
            raise InvalidInputError(f"image folder '{directory}' is not a directory")

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        self.skipped = {}
        for number, (key, path) in enumerate(self._walk(self._directory, "")):
            if number >= start:
                yield ImageRow(key, path)

    def rows(self) -> int:
        return sum(1 for _ in self._walk(self._directory, ""))

    def pieces(self, rows: int) -> Iterator[Piece]:
        self.skipped = {}
        listed = self._walk(self._directory, "")
        number = 0
        while files := list(itertools.islice(listed, rows)):
            yield self.piece(
                [(key, self._name(path), file_stamp(Path(path))) for key, path in files], number
            )
            number += len(files)

    def piece(self, files: list[tuple[str, str, str]], number: int) -> Piece:
        """Put files, each a key, a name and a stamp, together; `number` rows came before."""
        stamps = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        name = f"{self.path.name}[{number}:{number + len(files)}]"
        return Piece(name, len(files), stamps, {"files": files})

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        for key, name, _ in detail["files"]:
            yield ImageRow(key, os.path.join(self._directory, name))

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self._directory)

    def _walk(self, directory: Path, prefix: str) -> Iterator[tuple[str, str]]:
        try:
            with os.scandir(directory) as listing:
                entries = [(entry, entry.is_dir(), entry.is_symlink()) for entry in listing]
        except OSError as error:
            raise InvalidInputError(f"directory '{directory}' cannot be read: {error}") from error
        # With the slash, walking depth first is the order of the whole paths.
        entries.sort(key=lambda item: item[0].name + ("/" if item[1] else ""))
        for entry, is_directory, is_link in entries:
            if entry.name.startswith("."):
                self._skip("hidden")
            elif is_directory and is_link:
                self._skip("link to a directory")
            elif is_directory:
                yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif Path(entry.name).suffix.lower() not in EXTENSIONS:
                self._skip("no image extension")
            else:
                name = (prefix + entry.name).encode("utf-8", "surrogateescape")
                yield name.decode("utf-8", "backslashreplace"), entry.path


class ChainSource(SourceBase):
    """Several sources of the same columns, one after the other."""

    def __init__(self, sources: Sequence[SourceBase]) -> None:
        super().__init__(", ".join(source.name for source in sources))
        self._sources = list(sources)
        first = self._sources[0].metadata_schema
        for source in self._sources[1:]:
            if source.metadata_schema != first:
                raise InvalidInputError(
                    f"'{self._sources[0].name}' and '{source.name}' have different columns: "
                    f"{_columns(first)} and {_columns(source.metadata_schema)}; encode them apart"
                )

    @property
    def metadata_schema(self) -> pa.Schema | None:
        return self._sources[0].metadata_schema

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        self.skipped = {}
        remaining = start
        for source in self._sources:
            if remaining:
                rows = source.rows()
                if remaining >= rows:
                    remaining -= rows
                    continue
            yield from source.iter(remaining)
            remaining = 0
            for reason, count in source.skipped.items():
                self.skipped[reason] = self.skipped.get(reason, 0) + count

    def rows(self) -> int:
        return sum(source.rows() for source in self._sources)

    def pieces(self, rows: int) -> Iterator[Piece]:
        self.skipped = {}
        for number, source in enumerate(self._sources):
            for piece in source.pieces(rows):
                yield replace(piece, detail={**piece.detail, "source": number})
            for reason, count in source.skipped.items():
                self.skipped[reason] = self.skipped.get(reason, 0) + count

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        yield from self._sources[detail["source"]].read(detail)


def _columns(schema: pa.Schema | None) -> list[str]:
    return [] if schema is None else [f"{field.name} ({field.type})" for field in schema]


def open_images(sources: str | Path | Sequence[str | Path]) -> ImageSource:
    """Open a folder, tars, Parquet or CSV files as one source.

    Parameters
    ----------
    sources : path or sequence of paths
        A folder of images; a folder of nothing but ``.tar`` or nothing but ``.parquet`` files,
        hidden ones aside, stands for these in the order of their names. Files: webdataset
        ``.tar`` (also gzipped); ``.parquet`` with a column of image bytes or of paths; ``.csv`` and
        ``.tsv`` with a column of paths.

    Raises
    ------
    InvalidInputError
        Missing or of unknown kind, or columns that do not fit together.
    """
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not listed:
        raise InvalidInputError("no image source given; name a folder, tar, Parquet or CSV file")
    opened: list[Any] = []
    for path in _expand_folders(listed):
        if path.is_dir():
            opened.append(FolderSource(path))
        elif not path.exists():
            raise InvalidInputError(f"image source '{path}' does not exist")
        elif path.name.lower().endswith(TAR_SUFFIXES):
            opened.append(TarSource(path))
        elif path.suffix.lower() in TABLE_SUFFIXES:
            opened.append(table_source(path))
        else:
            raise InvalidInputError(
                f"image source '{path}' is neither a folder nor one of "
                f"{', '.join((*TAR_SUFFIXES, *TABLE_SUFFIXES))}"
            )
    return opened[0] if len(opened) == 1 else ChainSource(opened)


def _expand_folders(sources: Sequence[str | Path]) -> Iterator[Path]:
    """Folders that hold archives only, replaced by their archives."""
    for source in map(Path, sources):
        if source.is_dir():
            names = sorted(n for n in os.listdir(source) if not n.startswith("."))
            for suffixes in (TAR_SUFFIXES, (".parquet",)):
                if names and all(name.lower().endswith(suffixes) for name in names):
                    yield from (source / name for name in names)
                    break
            else:
                yield source
        else:
            yield source
