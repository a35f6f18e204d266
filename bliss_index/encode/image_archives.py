"""Webdataset tars: files of the same name but another extension are one sample."""

from __future__ import annotations

import contextlib
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bliss_index.encode.decode import EXTENSIONS, MAX_BYTES
from bliss_index.encode.image_rows import ImagePiece, ImageRow, SourceBase
from bliss_index.encode.places import Place, file_stamp, place_of
from bliss_index.store.tar_members import TarMembers, content

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_PARTS = ("txt", "json", "cls")
MAX_TEXT_BYTES = 1 << 20  # a longer text beside an image is left out


@dataclass(frozen=True)
class _TarSample:
    """An image and what is beside it.

    Attributes
    ----------
    key, image, texts
        Its own.
    offset, number
        Where the samples of the same first name begin, and which of them it is.
    """

    key: str
    image: tarfile.TarInfo
    texts: list[tuple[str, tarfile.TarInfo]]
    offset: int
    number: int


class TarSource(SourceBase):
    """The samples of one tar, in its order.

    The key is a member's path up to the first dot of its name. Where several images share it, each
    is a sample of its own, and its key goes up to the last dot. Texts beside the image
    (``.txt``, ``.json``, ``.cls``) become string columns of the metadata. A hard link has the
    content of its target. Samples without an image, other members, symbolic links and hidden files
    are passed over and counted.
    """

    def __init__(self, path: str | Place) -> None:
        super().__init__(str(path))
        self._path = place_of(path)
        self._members = TarMembers(str(self._path), partial(self._path.open, "rb"))
        self._number = 0

    @property
    def metadata_schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(name, pa.string()) for name in TEXT_PARTS])

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        with self._opened() as archive:
            for number, sample in enumerate(self._found(archive)):
                if number >= start:
                    yield self._row(archive, sample)
            self._members.check_end(archive, self._images())

    def rows(self) -> int:
        with self._opened() as archive:
            number = sum(1 for _ in self._found(archive))
            self._members.check_end(archive, self._images())
        return number

    def pieces(self, rows: int) -> Iterator[ImagePiece]:
        stamp = file_stamp(self._path)
        starts: list[tuple[int | None, int]] = []
        total = 0
        with self._opened() as archive:
            for total, sample in enumerate(self._found(archive), 1):  # noqa: B007
                if (total - 1) % rows == 0:
                    direct = self._members.direct(archive)
                    starts.append((sample.offset if direct else None, sample.number))
            self._members.check_end(archive, self._images())
        for number, (offset, skip) in enumerate(starts):
            start = number * rows
            count = min(rows, total - start)
            name = f"{self.path.name}[{start}:{start + count}]"
            detail = {"start": start, "rows": count, "offset": offset}
            yield ImagePiece(name, count, stamp, {**detail, "skip": skip} if skip else detail)

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        counted = (
            self.skipped,
            self.skipped_names,
        )  # of the whole archive; what is passed over here is among it
        try:
            if detail["offset"] is None:
                yield from itertools.islice(self.iter(detail["start"]), detail["rows"])
                return
            skip = detail.get("skip", 0)
            with self._opened(detail["offset"]) as archive:
                for sample in itertools.islice(self._found(archive), skip, skip + detail["rows"]):
                    yield self._row(archive, sample)
        finally:
            self.skipped, self.skipped_names = counted

    @contextlib.contextmanager
    def _opened(self, offset: int = 0) -> Iterator[tarfile.TarFile]:
        """Open the archive at a member; whatever is wrong with it becomes our error."""
        self._number = 0
        with self._members.opened(offset, self._images) as archive:
            yield archive

    def _images(self) -> str:
        return f"{self._number} images"

    def _found(self, archive: tarfile.TarFile) -> Iterator[_TarSample]:
        """All samples that have an image."""
        self._forget_skipped()
        for key, members in self._members.samples(archive, self._skip):
            named = [(*os.path.splitext(member.name), member) for member in members]
            images: dict[str, tarfile.TarInfo] = {}
            for stem, extension, member in named:
                if extension.lower() in EXTENSIONS:
                    images.setdefault(stem, member)
            used = set(images.values())
            first = min(member.offset for member in members)
            for number, (stem, image) in enumerate(images.items()):
                texts: dict[str, tarfile.TarInfo] = {}
                # Its own ones first, then those of all; of an only image every text is.
                for wanted in (stem, key, None) if len(images) == 1 else (stem, key):
                    for of_stem, extension, member in named:
                        part = extension[1:].lower()
                        if part in TEXT_PARTS and wanted in (of_stem, None):
                            texts.setdefault(part, member)
                used.update(texts.values())
                own = key if len(images) == 1 else stem
                yield _TarSample(own, image, list(texts.items()), first, number)
                self._number += 1
            for member in members:
                if member not in used:
                    self._skip("other member", member.name)
            if not images:
                self._skip("sample without an image", key)

    def _row(self, archive: tarfile.TarFile, sample: _TarSample) -> ImageRow:
        metadata: dict[str, Any] = {
            part: content(archive, member).decode("utf-8", "backslashreplace").strip()
            for part, member in sample.texts
            if member.size <= MAX_TEXT_BYTES
        }
        reason, image = None, sample.image
        if image.size > MAX_BYTES:  # a sparse member takes no room in the archive
            reason = f"too_large: {image.size} bytes, more than the {MAX_BYTES} allowed"
        clean = sample.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        data = b"" if reason else content(archive, image)
        return ImageRow(clean, data, metadata, reason)
