"""Pictures of a report: thumbnails of images below one folder, with the reasons of their scores."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

_SIDE = 160
_QUALITY = 80
_MAX_PIXELS = 64_000_000
_MOST_BYTES = 12 << 20  # of all thumbnails together
_ENTRIES = 5


@dataclass(frozen=True)
class Picture:
    """An image to show.

    Attributes
    ----------
    key, score, nearest, internal, external, p_value
        From the scores.
    source
        Data or file URI of the picture; empty where there is none.
    missing
        Why there is none; empty where there is.
    entries
        Text and contribution of the entries that pulled most, where the scores have them.
    status
        "flagged" or "not flagged"; "scored" where the scores have no flags.
    group
        Group of a flagged image; empty where it is in none.
    href
        Where its file is, from the page; empty where that is not known.
    """

    key: str
    score: float
    nearest: str
    internal: float
    external: float
    p_value: float | None
    source: str
    missing: str
    entries: tuple[tuple[str, float], ...]
    status: str = "scored"
    group: str = ""
    href: str = ""


class PictureFolder:
    """Finds images by key below a folder, never outside it.

    Parameters
    ----------
    folder
        The folder that was encoded; keys are paths relative to it. None for no pictures.
    link
        Refer to the files instead of embedding thumbnails: small, but the files must stay.
    page
        Folder of the page, from which files are named; None to name them from the root.
    """

    def __init__(
        self, folder: Path | None, *, link: bool = False, page: Path | None = None
    ) -> None:
        self._page = None if page is None else page.resolve()
        self._folder = None if folder is None else folder.resolve()
        self._link = link
        self._bytes = 0

    def find(self, key: str) -> tuple[str, str]:
        """Return a URI and an empty reason, or no URI and the reason."""
        path, missing = self.path(key)
        if path is None:
            return "", missing
        if self._link:
            return self._address(path), ""
        if self._bytes > _MOST_BYTES:
            return "", "left out: the report is large enough"
        return self._thumbnail(path)

    def href(self, key: str) -> str:
        """Return where the file of a key is; empty where there is none."""
        path, _ = self.path(key)
        return "" if path is None else self._address(path)

    def path(self, key: str) -> tuple[Path | None, str]:
        """Return the file of a key and an empty reason, or no file and the reason."""
        if self._folder is None:
            return None, "no folder of images was given"
        try:
            path = (self._folder / key).resolve()
            inside = path.is_relative_to(self._folder) and path != self._folder
            if not inside:
                return None, "its key leads out of the folder of images"
            if not path.is_file():
                return None, "no such file in the folder of images"
        except (OSError, ValueError):
            return None, "its key is not a path"
        return path, ""

    def _address(self, path: Path) -> str:
        if self._page is None:
            return "file://" + quote(str(path))
        return quote(os.path.relpath(path, self._page))

    def _thumbnail(self, path: Path) -> tuple[str, str]:
        from bliss_index.encode.decode import DecodeError, decode_image

        try:
            image = decode_image(path, max_pixels=_MAX_PIXELS)
        except DecodeError as error:
            return "", f"cannot be decoded: {error.reason}"
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=_QUALITY)
        content = buffer.getvalue()
        self._bytes += len(content)
        return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii"), ""


def make_pictures(
    rows: Sequence[dict[str, Any]],
    folder: PictureFolder,
    groups: Sequence[str] = (),
) -> tuple[Picture, ...]:
    """Make pictures of rows of scores.

    Parameters
    ----------
    rows
        Their columns.
    folder
        Where their files are.
    groups
        Names of their groups; empty for a row that is in none.
    """
    pictures = []
    for place, row in enumerate(rows):
        source, missing = folder.find(row["key"])
        pairs = zip(row.get("entries") or (), row.get("contributions") or (), strict=True)
        pulled = sorted(pairs, key=lambda pair: -abs(pair[1]))[:_ENTRIES]
        flag = row.get("flag")
        pictures.append(
            Picture(
                row["key"],
                row["anomaly_score"],
                row["nearest_class"],
                row["internal_score"],
                row["external_score"],
                row.get("p_value"),
                source,
                missing,
                tuple(pulled),
                "scored" if flag is None else "flagged" if flag else "not flagged",
                groups[place] if groups else "",
                folder.href(row["key"]),
            )
        )
    return tuple(pictures)
