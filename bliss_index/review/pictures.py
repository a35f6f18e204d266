"""Thumbnails of images below one folder, kept in the cache."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from bliss_index.errors import OutputError
from bliss_index.report.gallery import PictureFolder
from bliss_index.storage.cache import cache_folder
from bliss_index.storage.files import atomic_file, make_directory

SIDES = {"small": 240, "large": 1280}
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
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = PictureFolder(folder)
        self._cache = cache_folder() / "thumbnails"

    def find(self, key: str, side: int) -> tuple[Path | None, str]:
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
        place = self._cache / digest[:2] / f"{digest[2:34]}.jpg"
        if place.is_file():
            return place, ""
        try:
            image = decode_image(path, max_pixels=_MAX_PIXELS)
        except DecodeError as error:
            return None, f"cannot be decoded: {error.reason}"
        image.thumbnail((side, side))
        content = io.BytesIO()
        image.save(content, format="JPEG", quality=_QUALITY)
        try:
            make_directory(place.parent)
            with atomic_file(place) as sink:
                sink.write(content.getvalue())
        except OutputError as error:
            return None, f"{error}. BLISS_INDEX_CACHE names another folder"
        return place, ""
