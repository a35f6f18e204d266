"""Webdataset tars: files of the same name but another extension are one sample."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bliss_index.encode.decode import EXTENSIONS
from bliss_index.encode.image_rows import ImageRow, SourceBase
from bliss_index.errors import InvalidInputError

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_PARTS = ("txt", "json", "cls")
_BLOCK = 512


class TarSource(SourceBase):
    """The samples of one tar, in its order.

    The key is a member's path up to the first dot of its name. Texts beside the image
    (``.txt``, ``.json``, ``.cls``) become string columns of the metadata. Samples without an
    image, other members and hidden files are passed over and counted.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(str(path))
        self._path = Path(path)

    @property
    def metadata_schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([(name, pa.string()) for name in TEXT_PARTS])

    def iter(self, start: int = 0) -> Iterator[ImageRow]:
        for row in self._rows_from(start):
            if row is not None:
                yield row

    def rows(self) -> int:
        return sum(1 for _ in self._rows_from(None))

    def _rows_from(self, start: int | None) -> Iterator[ImageRow | None]:
        """One item per row; None, and nothing read, before `start`."""
        self.skipped = {}
        number = 0
        try:
            with tarfile.open(self._path, "r:*") as archive:
                for key, members in self._samples(archive):
                    images = [m for extension, m in members if "." + extension in EXTENSIONS]
                    texts = [(e, m) for e, m in members if e in TEXT_PARTS]
                    for _ in range(len(members) - len(images[:1]) - len(texts)):
                        self._skip("other member")
                    if images:
                        wanted = start is not None and number >= start
                        yield self._row(archive, key, images[0], texts) if wanted else None
                        number += 1
                    else:
                        self._skip("sample without an image")
            self._check_end()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise InvalidInputError(
                f"{self._path} is damaged or truncated after {number} images: {error}; fetch it "
                "again, or leave it out"
            ) from error

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
        }
        clean = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return ImageRow(clean, _content(archive, image), metadata)

    def _check_end(self) -> None:
        """tarfile takes a cut header for the end of the archive; whole ones fill their blocks."""
        size = self._path.stat().st_size
        with self._path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        if not packed and size % _BLOCK:
            raise tarfile.ReadError(f"{size} bytes are not a multiple of {_BLOCK}")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    content = b"" if stream is None else stream.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} has {len(content)} of {member.size} bytes")
    return content
