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
from bliss_index.encode.image_rows import ImagePiece, ImageRow, ImageSource, SourceBase
from bliss_index.encode.image_tables import table_source
from bliss_index.encode.places import (
    ObjectPath,
    Place,
    contents_of,
    file_stamp,
    place_of,
)
from bliss_index.errors import InvalidInputError, listed
from bliss_index.storage import open_directory

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
        self._forget_skipped()
        for number, (key, path) in enumerate(self._walk(self._directory, "")):
            if number >= start:
                yield ImageRow(key, path)

    def rows(self) -> int:
        return sum(1 for _ in self._walk(self._directory, ""))

    def pieces(self, rows: int) -> Iterator[ImagePiece]:
        self._forget_skipped()
        listed = self._walk(self._directory, "")
        number = 0
        while files := list(itertools.islice(listed, rows)):
            stamped = [(key, self._name(path), file_stamp(Path(path))) for key, path in files]
            yield piece_of(stamped, self.path.name, number)
            number += len(files)

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
                self._skip("hidden", prefix + entry.name)
            elif is_directory and is_link:
                self._skip("link to a directory", prefix + entry.name)
            elif is_directory:
                yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif Path(entry.name).suffix.lower() not in EXTENSIONS:
                self._skip("no image extension", prefix + entry.name)
            else:
                name = (prefix + entry.name).encode("utf-8", "surrogateescape")
                yield name.decode("utf-8", "backslashreplace"), entry.path


class ObjectFolder(SourceBase):
    """All image files below a prefix of an object store, in the order of their names."""

    def __init__(self, place: ObjectPath) -> None:
        super().__init__(str(place))
        self._place = place

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        names = itertools.islice((name for name, _ in self._listed()), start, None)
        while some := list(itertools.islice(names, 256)):
            yield from self._rows(some)

    def rows(self) -> int:
        return sum(1 for _ in self._listed())

    def pieces(self, rows: int) -> Iterator[ImagePiece]:
        listed = self._listed()
        number = 0
        while files := list(itertools.islice(listed, rows)):
            yield piece_of([(name, name, stamp) for name, stamp in files], self.path.name, number)
            number += len(files)

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        return self._rows([name for _, name, _ in detail["files"]])

    def _rows(self, names: list[str]) -> Iterator[ImageRow]:
        contents = contents_of([self._place / name for name in names])
        for name, content in zip(names, contents, strict=True):
            if isinstance(content, OSError):
                yield ImageRow(name, b"", {}, f"unreadable_file: {name}: {content}")
            else:
                yield ImageRow(name, content)

    def _listed(self) -> Iterator[tuple[str, str]]:
        self._forget_skipped()
        for name, stamp in self._place.walk():
            if any(part.startswith(".") for part in name.split("/")):
                self._skip("hidden", name)
            elif Path(name).suffix.lower() not in EXTENSIONS:
                self._skip("no image extension", name)
            else:
                yield name, stamp


class ChainSource(SourceBase):
    """Several sources, one after the other; a column that one lacks is null in its rows."""

    def __init__(
        self,
        sources: Sequence[SourceBase],
        *,
        key_prefix: bool = False,
        beside: Sequence[str] = (),
    ) -> None:
        super().__init__(", ".join(source.name for source in sources))
        self._beside = beside
        self._sources = list(sources)
        self.prefixes = _prefixes([source.name for source in sources]) if key_prefix else None
        known = [(source.name, source.metadata_schema) for source in self._sources]
        self._schema = None
        if any(schema is not None for _, schema in known):
            from bliss_index.store.carried import unified

            self._schema = unified((name, schema) for name, schema in known if schema is not None)

    @property
    def metadata_schema(self) -> pa.Schema | None:
        return self._schema

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        self._forget_skipped()
        remaining = start
        for source in self._sources:
            if remaining:
                rows = source.rows()
                if remaining >= rows:
                    remaining -= rows
                    continue
            yield from self._named(source, source.iter(remaining))
            remaining = 0
            self._add_skipped(source)

    def rows(self) -> int:
        return sum(source.rows() for source in self._sources)

    def pieces(self, rows: int) -> Iterator[ImagePiece]:
        self._forget_skipped()
        for number, source in enumerate(self._sources):
            for piece in source.pieces(rows):
                yield replace(piece, detail={**piece.detail, "source": number})
            self._add_skipped(source)

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        source = self._sources[detail["source"]]
        yield from self._named(source, source.read(detail))

    def _forget_skipped(self) -> None:
        super()._forget_skipped()
        for name in self._beside:
            self._skip("beside the tars", name)

    def _add_skipped(self, source: SourceBase) -> None:
        for reason, count in source.skipped.items():
            first, *others = source.skipped_names[reason]
            self._skip(reason, first, count - len(others))
            for name in others:
                self._skip(reason, name)

    def _named(self, source: SourceBase, rows: Iterator[ImageRow]) -> Iterator[ImageRow]:
        if self.prefixes is None:
            yield from rows
            return
        prefix = self.prefixes[self._sources.index(source)]
        for row in rows:
            yield replace(row, key=f"{prefix}/{row.key}")


def piece_of(files: list[tuple[str, str, str]], folder: str, number: int) -> ImagePiece:
    """Put files, each a key, a name and a stamp, together; `number` rows came before."""
    stamps = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return ImagePiece(
        f"{folder}[{number}:{number + len(files)}]", len(files), stamps, {"files": files}
    )


def _prefixes(names: Sequence[str]) -> list[str]:
    """The ends of paths, as short as they are different."""
    parts = [name.rstrip("/").split("/") for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    raise InvalidInputError(
        f"{listed(names)}: one of them is given twice, their keys cannot be told apart"
    )


def open_images(
    sources: str | Path | Sequence[str | Path], *, key_prefix: bool = False
) -> ImageSource:
    """Open a folder, tars, Parquet or CSV files as one source.

    Parameters
    ----------
    sources : path or sequence of paths
        A folder of images; a folder of nothing but ``.tar`` or nothing but ``.parquet`` files,
        hidden ones aside, stands for these in the order of their names, and so does the output of
        img2dataset for its tars. Files: webdataset
        ``.tar`` (also gzipped); ``.parquet`` with a column of image bytes or of paths; ``.csv`` and
        ``.tsv`` with a column of paths.
    key_prefix
        Whether keys begin with the name of their folder, tar or table.

    Raises
    ------
    InvalidInputError
        Missing or of unknown kind, or columns that do not fit together.
    """
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not listed:
        raise InvalidInputError("no image source given; name a folder, tar, Parquet or CSV file")
    opened: list[Any] = []
    beside: list[str] = []
    for place in _expand_folders(listed, beside):
        name = place.name.lower()
        if name.endswith(TAR_SUFFIXES) and not _is_folder(place):
            opened.append(TarSource(place))
        elif place.suffix.lower() in TABLE_SUFFIXES and not _is_folder(place):
            opened.append(table_source(place))
        elif isinstance(place, ObjectPath):
            opened.append(ObjectFolder(place))
        elif place.is_dir():
            opened.append(FolderSource(place))
        elif not place.exists():
            raise InvalidInputError(f"image source '{place}' does not exist")
        else:
            raise InvalidInputError(
                f"image source '{place}' is neither a folder nor one of "
                f"{', '.join((*TAR_SUFFIXES, *TABLE_SUFFIXES))}"
            )
    if len(opened) == 1 and not (key_prefix or beside):
        return opened[0]  # type: ignore[no-any-return]
    return ChainSource(opened, key_prefix=key_prefix, beside=beside)


def _is_folder(place: Place) -> bool:
    if isinstance(place, Path):
        if not place.exists():
            raise InvalidInputError(f"image source '{place}' does not exist")
        return place.is_dir()
    return False


def _expand_folders(sources: Sequence[str | Path], others: list[str]) -> Iterator[Place]:
    """Folders that hold archives only, replaced by their archives.

    Beside tars there may be what img2dataset writes, tables and statistics, which are counted.
    """
    for place in map(place_of, sources):
        names = sorted(name for name in _names(place) if not name.startswith("."))
        tars = [name for name in names if name.lower().endswith(TAR_SUFFIXES)]
        beside = [name for name in names if name.lower().endswith((".parquet", ".json"))]
        if tars and len(tars) + len(beside) == len(names):
            yield from (place / name for name in tars)
            others += beside
        elif names and all(name.lower().endswith(".parquet") for name in names):
            yield from (place / name for name in names)
        else:
            yield place


def _names(place: Place) -> list[str]:
    """What a folder holds; nothing where it is none."""
    if isinstance(place, Path):
        return os.listdir(place) if place.is_dir() else []
    if place.name.lower().endswith((*TAR_SUFFIXES, *TABLE_SUFFIXES)):
        return []
    return open_directory(str(place)).everything()
