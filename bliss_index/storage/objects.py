"""Directories in object stores, through obstore: S3, GCS, Azure and what speaks like them."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    MissingDependencyError,
    OutputError,
    StoreError,
    install_line,
)
from bliss_index.storage.files import HashingFile

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_READ_AHEAD = 4 << 20


def is_object_store(location: str) -> bool:
    """Whether a location is a URI of an object store that can be read and written."""
    scheme, separator, _ = location.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def obstore() -> Any:
    """Import obstore; MissingDependencyError holds the line that installs it."""
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise MissingDependencyError(
            f"object stores need obstore ({error}); {install_line('object-stores')}"
        ) from error
    return obstore


class ObjectDirectory:
    """A prefix of an object store; see :class:`bliss_index.storage.Directory`.

    Credentials, endpoint and region come from the usual environment variables (AWS_ENDPOINT_URL,
    AWS_ALLOW_HTTP, AWS_REGION, GOOGLE_APPLICATION_CREDENTIALS, ...), never from a file of ours. An
    object is put in one request when it is whole, on the condition that it is new where that
    matters. A lost answer is settled by reading back.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._obstore = obstore()
        try:
            self._store = self._obstore.store.from_url(self.uri)
        except Exception as error:
            raise InvalidInputError(f"{uri} cannot be opened: {_line(error)}") from error

    def make(self) -> None:
        """Nothing has to be made; a bucket that is not there is told of at once."""
        try:
            self._obstore.list_with_delimiter(self._store)
        except Exception as error:
            raise self._output_error("", error) from error

    def names(self, folder: str = "") -> dict[str, int]:
        try:
            found = self._obstore.list_with_delimiter(self._store, folder or None)
        except Exception as error:
            raise StoreError(f"{self.uri}/{folder} cannot be listed: {_line(error)}") from error
        return {entry["path"].rpartition("/")[2]: entry["size"] for entry in found["objects"]}

    def listed(self, folder: str = "") -> Iterator[tuple[str, int]]:
        return iter(self.names(folder).items())

    def everything(self) -> list[str]:
        try:
            found = self._obstore.list_with_delimiter(self._store)
        except Exception as error:
            raise StoreError(f"{self.uri} cannot be listed: {_line(error)}") from error
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def read(self, name: str) -> bytes:
        return bytes(self.mapped(name))

    def mapped(self, name: str) -> pa.Buffer:
        try:
            return pa.py_buffer(self._obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            raise
        except Exception as error:
            raise CorruptStoreError(f"{self.uri}/{name} cannot be read: {_line(error)}") from error

    def open(self, name: str) -> Any:
        try:
            return reader(self._store, name)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise CorruptStoreError(f"{self.uri}/{name} cannot be read: {_line(error)}") from error

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._obstore.put(self._store, name, data, mode="create")
        except self._obstore.exceptions.AlreadyExistsError:
            return self.read(name) == data  # perhaps our own, whose answer was lost
        except Exception as error:
            with contextlib.suppress(Exception):
                if self.read(name) == data:
                    return True
            raise self._output_error(name, error) from error
        return True

    def replace(self, name: str, data: bytes) -> None:
        try:
            self._obstore.put(self._store, name, data)
        except Exception as error:
            raise self._output_error(name, error) from error

    def new_file(self, folder: str = "") -> ObjectContent:
        return ObjectContent(self, folder)

    def put_file(self, name: str, file: Any) -> None:
        """Put the content of an open file."""
        try:
            self._obstore.put(self._store, name, file)
        except Exception as error:
            raise self._output_error(name, error) from error

    def remove(self, name: str) -> None:
        try:
            self._obstore.delete(self._store, name)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._output_error(name, error) from error

    def tidy(self) -> None:
        """Object stores have no temporary files."""

    def _output_error(self, name: str, error: Exception) -> OutputError:
        return OutputError(
            f"cannot write {self.uri}/{name}: {_line(error)}; run the same command again, or "
            "choose another output"
        )


class ObjectContent:
    """A file that is gathered on the local disk, and put when it is whole."""

    def __init__(self, directory: ObjectDirectory, folder: str) -> None:
        self._directory = directory
        self._prefix = f"{folder}/" if folder else ""
        self._file = tempfile.TemporaryFile(prefix="bliss-part-")  # noqa: SIM115
        self.sink = HashingFile(self._file)

    def commit(self, name: str) -> None:
        """Put it; OutputError where that fails."""
        self._file.flush()
        self._file.seek(0)
        self._directory.put_file(self._prefix + name, self._file)
        self.discard()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()


def reader(store: Any, name: str) -> io.BufferedReader:
    """Open an object for random reading; errors are obstore's."""
    return io.BufferedReader(_Raw(obstore().open_reader(store, name), name), _READ_AHEAD)


class _Raw(io.RawIOBase):
    """obstore's reader as Python's streams are; CorruptStoreError where it cannot be read on."""

    def __init__(self, reader: Any, name: str) -> None:
        super().__init__()
        self._reader = reader
        self._name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = memoryview(self._reader.read(len(buffer)))
        except Exception as error:
            raise CorruptStoreError(f"{self._name} cannot be read: {_line(error)}") from error
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


def _line(error: Exception) -> str:
    """The first line of an error of obstore's, which goes on with the debug output of its cause."""
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
