"""Places of image files: local paths, and objects that are used like them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bliss_index.errors import InvalidInputError
from bliss_index.storage.objects import is_object_store, obstore, reader

_AT_ONCE = 16


@dataclass(frozen=True)
class ObjectPath:
    """An object of a store, or a prefix, with what is needed of :class:`pathlib.Path`.

    Attributes
    ----------
    uri : str
        Without a slash at the end.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.uri.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The name's extension."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        """What comes before the last slash."""
        return ObjectPath(self.uri.rpartition("/")[0])

    def open(self, mode: str = "rb") -> Any:
        """Open for random reading."""
        try:
            return reader(*self._place())
        except Exception as error:
            raise InvalidInputError(f"{self.uri} cannot be read: {_line(error)}") from error

    def read_bytes(self) -> bytes:
        """The whole content; OSError where it cannot be read."""
        import obstore as package

        store, name = self._place()
        try:
            return bytes(package.get(store, name).bytes())
        except OSError:
            raise
        except Exception as error:
            raise OSError(_line(error)) from error

    def stamp(self) -> str:
        """Size and tag; FileNotFoundError where there is no such object."""
        import obstore as package

        store, name = self._place()
        found = package.head(store, name)
        return f"{found['size']}:{found['e_tag']}"

    def walk(self) -> Iterator[tuple[str, str]]:
        """Names below a prefix, in the order of their bytes, and stamps."""
        store = obstore().store.from_url(self.uri)
        try:
            for chunk in obstore().list(store, chunk_size=1000):
                for entry in chunk:
                    yield entry["path"], f"{entry['size']}:{entry['e_tag']}"
        except Exception as error:
            raise InvalidInputError(f"{self.uri} cannot be listed: {_line(error)}") from error

    def _place(self) -> tuple[Any, str]:
        """The store of its parent, and its name there."""
        return obstore().store.from_url(self.uri.rpartition("/")[0]), self.name


Place = Path | ObjectPath


def place_of(location: str | Place) -> Place:
    """Return the place that a path or URI means.

    Raises
    ------
    InvalidInputError
        It is a URI of another kind.
    """
    if isinstance(location, ObjectPath):
        return location
    text = str(location)
    if is_object_store(text):
        return ObjectPath(text.rstrip("/"))
    if "://" in text:
        raise InvalidInputError(
            f"image source '{text}' is neither a path nor in an object store (s3://, gs://, az://)"
        )
    return Path(location)


def content_of(place: Place) -> bytes | str:
    """Content of an object, or the path of a file, which the decoding process reads."""
    return place.read_bytes() if isinstance(place, ObjectPath) else str(place)


def contents_of(places: Sequence[Place]) -> Iterator[bytes | str | OSError]:
    """Contents in order, several objects at a time; an error takes the place of its content."""

    def content(place: Place) -> bytes | str | OSError:
        try:
            return content_of(place)
        except OSError as error:
            return error

    if not any(isinstance(place, ObjectPath) for place in places):
        yield from map(content, places)
        return
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool:
        for start in range(0, len(places), 4 * _AT_ONCE):
            yield from pool.map(content, places[start : start + 4 * _AT_ONCE])


def file_stamp(place: Place) -> str:
    """Size and modification time of a file, or an object's tag; '' where there is none."""
    try:
        if isinstance(place, ObjectPath):
            return place.stamp()
        found = place.stat()
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}"


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
