"""Webdataset tars: files of the same name but another extension are one sample."""

from __future__ import annotations

import contextlib
import itertools
import os
import tarfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bliss_index.encode.decode import EXTENSIONS, MAX_BYTES
from bliss_index.encode.image_rows import ImageRow, Piece, SourceBase
from bliss_index.encode.places import Place, file_stamp, place_of
from bliss_index.errors import InvalidInputError

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_PARTS = ("txt", "json", "cls")
MAX_TEXT_BYTES = 1 << 20  # a longer text beside an image is left out
_BLOCK = 512


class TarSource(SourceBase):
    """The samples of one tar, in its order.

    The key is a member's path up to the first dot of its name. Texts beside the image
    (``.txt``, ``.json``, ``.cls``) become string columns of the metadata. Samples without an
    image, other members and hidden files are passed over and counted.
    """

    def __init__(self, path: str | Place) -> None:
        super().__init__(str(path))
        self._path = place_of(path)
        self._number = 0

    @property
    def metadata_schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(name, pa.string()) for name in TEXT_PARTS])

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        with self._opened() as archive:
            for number, (key, image, texts) in enumerate(self._found(archive)):
                if number >= start:
                    yield self._row(archive, key, image, texts)
        self._check_end()

    def rows(self) -> int:
        with self._opened() as archive:
            number = sum(1 for _ in self._found(archive))
        self._check_end()
        return number

    def pieces(self, rows: int) -> Iterator[Piece]:
        stamp = file_stamp(self._path)
        starts: list[int | None] = []
        total = 0
        with self._opened() as archive:
            for total, (_, image, texts) in enumerate(self._found(archive), 1):  # noqa: B007
                if (total - 1) % rows == 0:
                    first = min(member.offset for member in (image, *(m for _, m in texts)))
                    # Within a compressed archive, or behind global headers, no place is found by
                    # its offset: it is read from its beginning.
                    direct = not self._packed() and not archive.pax_headers
                    starts.append(first if direct else None)
        self._check_end()
        for number, offset in enumerate(starts):
            start = number * rows
            count = min(rows, total - start)
            name = f"{self.path.name}[{start}:{start + count}]"
            detail = {"start": start, "rows": count, "offset": offset}
            yield Piece(name, count, stamp, detail)

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        if detail["offset"] is None:
            yield from itertools.islice(self.iter(detail["start"]), detail["rows"])
            return
        with self._opened(detail["offset"]) as archive:
            found = itertools.islice(self._found(archive), detail["rows"])
            for key, image, texts in found:
                yield self._row(archive, key, image, texts)

    @contextlib.contextmanager
    def _opened(self, offset: int = 0) -> Iterator[tarfile.TarFile]:
        """Open the archive at a member; whatever is wrong with it becomes our error."""
        self._number = 0
        try:
            with self._path.open("rb") as stream:
                stream.seek(offset)
                with tarfile.open(fileobj=stream, mode="r:*") as archive:
                    yield archive
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise InvalidInputError(
                f"{self._path} is damaged or truncated after {self._number} images: {error}; fetch "
                "it again, or leave it out"
            ) from error

    def _found(
        self, archive: tarfile.TarFile
    ) -> Iterator[tuple[str, tarfile.TarInfo, list[tuple[str, tarfile.TarInfo]]]]:
        """Key, image and texts of every sample that has an image."""
        self.skipped = {}
        for key, members in self._samples(archive):
            images = [m for extension, m in members if "." + extension in EXTENSIONS]
            texts = [(e, m) for e, m in members if e in TEXT_PARTS]
            for _ in range(len(members) - len(images[:1]) - len(texts)):
                self._skip("other member")
            if images:
                yield key, images[0], texts
                self._number += 1
            else:
                self._skip("sample without an image")

    def _samples(
        self, archive: tarfile.TarFile
    ) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
        current: str | None = None
        members: list[tuple[str, tarfile.TarInfo]] = []
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # or it grows with the archive
            if not member.isfile():
                continue
            folder, name = os.path.split(member.name)
            if name.startswith("."):
                self._skip("hidden")
                continue
            stem, _, extension = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if key != current and members and current is not None:
                yield current, members
                members = []
            current = key
            members.append((extension.rpartition(".")[2].lower(), member))
        if members and current is not None:
            yield current, members

    def _row(
        self,
        archive: tarfile.TarFile,
        key: str,
        image: tarfile.TarInfo,
        texts: list[tuple[str, tarfile.TarInfo]],
    ) -> ImageRow:
        metadata: dict[str, Any] = {
            part: _content(archive, member).decode("utf-8", "replace").strip()
            for part, member in texts
            if member.size <= MAX_TEXT_BYTES
        }
        reason = None
        if image.size > MAX_BYTES:  # a sparse member takes no room in the archive
            reason = f"too_large: {image.size} bytes, more than the {MAX_BYTES} allowed"
        clean = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        content = b"" if reason else _content(archive, image)
        return ImageRow(clean, content, metadata, reason)

    def _check_end(self) -> None:
        """tarfile takes a cut header for the end of the archive; whole ones fill their blocks."""
        with self._path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
        if not self._packed() and size % _BLOCK:
            raise InvalidInputError(
                f"{self._path} is damaged or truncated after {self._number} images: {size} bytes "
                f"are not a multiple of {_BLOCK}; fetch it again, or leave it out"
            )

    def _packed(self) -> bool:
        with self._path.open("rb") as stream:
            return bytes(stream.read(2)) == b"\x1f\x8b"


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    content = b"" if stream is None else stream.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} has {len(content)} of {member.size} bytes")
    return content
