"""Files that can be made again, kept beside what they were made of.

``<folder>/<name>.<hash>.<suffix>`` holds the content, and ``<folder>/<name>.json`` names it and
says of what it was made. The content is whole before the record names it, and its hash is
compared when it is opened. Who uses one decides whether a record still fits, and makes the file
again where it does not, is damaged, or is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bliss_index.errors import CorruptStoreError, OutputError
from bliss_index.storage.cache import checked_file
from bliss_index.storage.directory import open_directory, write_json
from bliss_index.storage.files import parse_json
from bliss_index.storage.locks import locked

R = TypeVar("R")

_WAIT_SECONDS = 600.0
_WRITTEN_AT_ONCE = 1 << 26


def write_arrays(sink: Any, arrays: Iterable[npt.NDArray[Any]]) -> None:
    """Write the bytes of arrays, one after the other."""
    for array in arrays:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, content.size, _WRITTEN_AT_ONCE):
            sink.write(content[start : start + _WRITTEN_AT_ONCE])


@dataclass(frozen=True)
class KeptFiles:
    """What one room keeps in a folder.

    Attributes
    ----------
    folder
        Its name in the directory of what the files were made of.
    suffix
        Of their names.
    format_version
        Of the files and records.
    what
        Names a file in messages, such as "the index".
    """

    folder: str
    suffix: str
    format_version: int
    what: str

    @property
    def names(self) -> re.Pattern[str]:
        """What files are called; the first group is a file's name without hash and suffix."""
        return re.compile(rf"([a-z0-9-]+)\.[0-9a-f]{{16}}\.{self.suffix}")

    def write(
        self,
        location: str | Path,
        name: str,
        fill: Callable[[Any], None],
        facts: Callable[[], Mapping[str, Any]],
        *,
        wait: float = _WAIT_SECONDS,
    ) -> dict[str, Any]:
        """Write a file and its record, atomically; the file that was named before goes.

        Parameters
        ----------
        location
            The directory of what it is made of.
        name
            Of the file: small letters, digits and hyphens.
        fill
            Called with the open file while others are kept out; what it raises as OSError ends in
            an OutputError.
        facts
            Called then: of what it is made, for the record.
        wait
            Seconds to wait for another process that is writing there.

        Returns
        -------
        The record: the facts, ``file`` and ``sha256``.

        Raises
        ------
        OutputError
            The folder cannot be written, or another process is writing there.
        """
        folder = open_directory(f"{open_directory(location).uri}/{self.folder}")
        folder.make()
        with locked(folder, wait=wait):
            earlier = [
                file for file in folder.names()
                if (named := self.names.fullmatch(file)) is not None and named[1] == name
            ]  # fmt: skip
            new = folder.new_file()
            try:
                fill(new.sink)
                digest = new.sink.sha256
                file = f"{name}.{digest[:16]}.{self.suffix}"
                new.commit(file)
            except OSError as error:
                raise OutputError(
                    f"cannot write {self.what} {folder.uri}/{name}: {error.strerror or error}; "
                    "free some space there, or make it writable, and run the same command again"
                ) from error
            finally:
                new.discard()
            record = {**facts(), "file": file, "sha256": digest}
            write_json(folder, f"{name}.json", {"format_version": self.format_version, **record})
            for one in earlier:  # which readers may just have opened
                if one != file:
                    with suppress(OutputError):
                        folder.remove(one)
        return record

    def records(self, location: str | Path) -> dict[str, dict[str, Any]]:
        """Read the records of a directory by their names, of whatever format version.

        Raises
        ------
        CorruptStoreError
            A record is damaged.
        """
        directory = open_directory(location)
        found = {}
        for name in sorted(directory.names(self.folder)):
            if not name.endswith(".json"):
                continue
            try:
                data = directory.read(f"{self.folder}/{name}")
            except FileNotFoundError:
                continue  # replaced just now
            found[name.removesuffix(".json")] = parse_json(data, self.path(location, name))
        return found

    def is_readable(self, values: dict[str, Any]) -> bool:
        """Take the format version from a record's values; say whether it is this one."""
        return bool(values.pop("format_version", None) == self.format_version)

    def path(self, location: str | Path, name: str) -> str:
        """Where a file or record is, for messages."""
        return f"{open_directory(location).uri}/{self.folder}/{name}"

    def described(self, location: str | Path, of: Callable[..., R]) -> list[R]:
        """Read all records as objects; those of another format version are left out.

        Parameters
        ----------
        location
            The directory of what the files were made of.
        of
            Given ``name`` and a record's values by their names; what cannot be is a ValueError.

        Raises
        ------
        CorruptStoreError
            A record is damaged.
        """
        found = []
        for name, values in self.records(location).items():
            if not self.is_readable(values):
                continue
            try:
                if not self.is_file_of(name, values.get("file")):
                    raise ValueError(f"its file is {values.get('file')!r}")
                found.append(of(name, **values))
            except (TypeError, ValueError) as error:
                path = self.path(location, f"{name}.json")
                raise CorruptStoreError(f"{path} is damaged ({error})") from error
        return found

    def is_file_of(self, name: str, file: object) -> bool:
        """Whether a record of this name may name this file."""
        named = self.names.fullmatch(file) if isinstance(file, str) else None
        return named is not None and named[1] == name

    def checked(self, location: str | Path, file: str, sha256: str) -> Path:
        """Compare a file, or its local copy, with its hash; return where it is.

        Raises
        ------
        FileNotFoundError
            It is missing.
        CorruptStoreError
            It has another hash.
        """
        return checked_file(open_directory(location), f"{self.folder}/{file}", sha256)

    def mapped(
        self, location: str | Path, file: str, sha256: str, size: int
    ) -> npt.NDArray[np.uint8]:
        """Compare a file, or its local copy, with its hash and size, and map it.

        Raises
        ------
        FileNotFoundError
            It is missing.
        CorruptStoreError
            It has another hash or size.
        """
        path = self.checked(location, file, sha256)
        content = np.memmap(path, dtype=np.uint8, mode="r")
        if content.size != size:
            raise CorruptStoreError(
                f"{self.path(location, file)} has {content.size} bytes, its record speaks of {size}"
            )
        return content

    def verify(self, location: str | Path, file: str, sha256: str, again: str) -> None:
        """Compare a file with its hash.

        Raises
        ------
        CorruptStoreError
            It is missing or altered; `again` says how it is made.
        """
        try:
            self.checked(location, file, sha256)
        except FileNotFoundError as error:
            raise CorruptStoreError(f"{self.path(location, file)} is missing; {again}") from error
        except CorruptStoreError as error:
            raise CorruptStoreError(f"{error}; {again}") from error
