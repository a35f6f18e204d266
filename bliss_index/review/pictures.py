"""Thumbnails of images below one folder; those seen last are kept, in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import threading
from pathlib import Path

from bliss_index.errors import OutputError
from bliss_index.report.gallery import PictureFolder
from bliss_index.storage.cache import cache_folder
from bliss_index.storage.files import atomic_file, make_directory

SIDES = {"small": 240, "large": 1280}
CACHE_BYTES = 1 << 30
_COUNTED_EVERY = 1 / 16  # of the limit: others may write into the same folder
_KEPT = 3 / 4  # of the limit, so that not every picture removes one
_OWN_NAME = re.compile(r"[0-9a-f]{32}\.jpg")
_QUALITY = 82
_MAX_PIXELS = 64_000_000


class Thumbnails:
    """Makes small JPEG files of images, and remembers them.

    They are named by the path, time and size of the image's file, so that a changed image has
    another. What is served is always a JPEG of this class, never a file of the folder.

    Parameters
    ----------
    folder : Path or None
        The folder that was encoded; None for no pictures.
    cache_bytes : int, default=CACHE_BYTES
        Thumbnails of all folders together take so many bytes at most; those not seen for longest
        are removed. Of more than two servers on one cache each may write a sixteenth more.
    """

    def __init__(self, folder: Path | None, cache_bytes: int = CACHE_BYTES) -> None:
        self._folder = PictureFolder(folder)
        self._cache = _BoundedCache(cache_folder() / "thumbnails", cache_bytes)

    def find(self, key: str, side: int) -> tuple[bytes | None, str]:
        """Return a JPEG of an image, at most `side` pixels wide and high; or None and a reason."""
        from bliss_index.encode.decode import DecodeError, decode_image

        path, missing = self._folder.path(key)
        if path is None:
            return None, missing
        try:
            state = path.stat()
        except OSError as error:
            return None, f"cannot be read: {error.strerror}"
        named = f"{path}\0{state.st_mtime_ns}\0{state.st_size}\0{side}"
        digest = hashlib.sha256(named.encode(errors="surrogateescape")).hexdigest()
        name = f"{digest[:2]}/{digest[2:34]}.jpg"
        kept = self._cache.read(name)
        if kept is not None:
            return kept, ""
        try:
            image = decode_image(path, max_pixels=_MAX_PIXELS)
        except DecodeError as error:
            return None, f"cannot be decoded: {error.reason}"
        image.thumbnail((side, side))
        content = io.BytesIO()
        image.save(content, format="JPEG", quality=_QUALITY)
        try:
            self._cache.write(name, content.getvalue())
        except OutputError as error:
            return None, f"{error}. BLISS_INDEX_CACHE names another folder"
        return content.getvalue(), ""


class _BoundedCache:
    """Files in folders of a folder, of which the least recently used give way to new ones.

    When a file was used last is its time of modification. Nothing but files of our names is
    counted or removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._unseen = limit  # bytes since the files were counted: at first they never were

    def read(self, name: str) -> bytes | None:
        """Return a file's content and note that it was used; None where it is not there."""
        path = self._folder / name
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Keep a file, and remove others where it is one too many.

        Raises
        ------
        OutputError
            It cannot be written.
        """
        if len(content) > self._limit * _COUNTED_EVERY:
            return
        with self._lock:
            self._unseen += len(content)
            if self._unseen >= self._limit * _COUNTED_EVERY:
                self._make_room()
                self._unseen = len(content)
        path = self._folder / name
        make_directory(path.parent)
        with atomic_file(path) as sink:
            sink.write(content)

    def _make_room(self) -> None:
        """Remove the least recently used, if the next may be one too many."""
        files = [
            (found.st_mtime_ns, str(path), found.st_size)
            for path in self._folder.glob("[0-9a-f][0-9a-f]/*.jpg")
            if _OWN_NAME.fullmatch(path.name) and (found := _state(path)) is not None
        ]
        size = sum(size for _, _, size in files)
        if size <= self._limit * (1 - 2 * _COUNTED_EVERY):
            return
        for _, path, of_file in sorted(files):
            if size <= self._limit * _KEPT:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
                size -= of_file


def _state(path: Path) -> os.stat_result | None:
    """What is known of a file, None where another server has just removed it."""
    try:
        return path.stat()
    except OSError:
        return None
