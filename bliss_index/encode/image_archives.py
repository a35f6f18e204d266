"""Webdataset tars: files of the same name but another extension are one sample."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True)
class _Sample:
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
            self._check_end(archive)

    def rows(self) -> int:
        with self._opened() as archive:
            number = sum(1 for _ in self._found(archive))
            self._check_end(archive)
        return number

    def pieces(self, rows: int) -> Iterator[Piece]:
        stamp = file_stamp(self._path)
        starts: list[tuple[int | None, int]] = []
        total = 0
        with self._opened() as archive:
            for total, sample in enumerate(self._found(archive), 1):  # noqa: B007
                if (total - 1) % rows == 0:
                    # Within a compressed archive, or behind global headers, no place is found by
                    # its offset: it is read from its beginning.
                    direct = not self._packed() and not archive.pax_headers
                    starts.append((sample.offset if direct else None, sample.number))
            self._check_end(archive)
        for number, (offset, skip) in enumerate(starts):
            start = number * rows
            count = min(rows, total - start)
            name = f"{self.path.name}[{start}:{start + count}]"
            detail = {"start": start, "rows": count, "offset": offset}
            yield Piece(name, count, stamp, {**detail, "skip": skip} if skip else detail)

    def read(self, detail: dict[str, Any]) -> Iterator[ImageRow]:
        counted = self.skipped  # of the whole archive; what is passed over here is among it
        try:
            if detail["offset"] is None:
                yield from itertools.islice(self.iter(detail["start"]), detail["rows"])
                return
            skip = detail.get("skip", 0)
            with self._opened(detail["offset"]) as archive:
                for sample in itertools.islice(self._found(archive), skip, skip + detail["rows"]):
                    yield self._row(archive, sample)
        finally:
            self.skipped = counted

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

    def _found(self, archive: tarfile.TarFile) -> Iterator[_Sample]:
        """All samples that have an image."""
        self.skipped = {}
        for key, members in self._samples(archive):
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
                yield _Sample(own, image, list(texts.items()), first, number)
                self._number += 1
            for _ in range(len(members) - len(used)):
                self._skip("other member")
            if not images:
                self._skip("sample without an image")

    def _samples(self, archive: tarfile.TarFile) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
        """Consecutive files of one path up to the first dot of their names."""
        current: str | None = None
        members: list[tarfile.TarInfo] = []
        for found in archive:
            archive.members = []  # type: ignore[attr-defined]  # or it grows with the archive
            folder, name = os.path.split(found.name)
            member = found
            if found.isdir():
                continue
            if name.startswith("."):
                self._skip("hidden")
                continue
            if found.islnk():
                target = self._linked.get(found.linkname)
                if target is None:
                    self._skip("hard link to nowhere")
                    continue
                member = copy.copy(target)
                member.name, member.offset = found.name, found.offset
            elif not found.isfile():
                self._skip("symbolic link" if found.issym() else "device or pipe")
                continue
            stem = name.partition(".")[0]
            key = f"{folder}/{stem}" if folder else stem
            if key != current and members and current is not None:
                yield current, members
                members = []
            current = key
            members.append(member)
        if members and current is not None:
            yield current, members

    @cached_property
    def _linked(self) -> dict[str, tarfile.TarInfo]:
        """Files that hard links of the archive lead to."""
        targets: dict[str, tarfile.TarInfo] = {}
        with self._path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:*") as archive:
            wanted = {member.linkname for member in _members(archive) if member.islnk()}
        with self._path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:*") as archive:
            for member in _members(archive):
                if member.name in wanted and member.isfile():
                    targets[member.name] = member
        return targets

    def _row(self, archive: tarfile.TarFile, sample: _Sample) -> ImageRow:
        metadata: dict[str, Any] = {
            part: _content(archive, member).decode("utf-8", "backslashreplace").strip()
            for part, member in sample.texts
            if member.size <= MAX_TEXT_BYTES
        }
        reason, image = None, sample.image
        if image.size > MAX_BYTES:  # a sparse member takes no room in the archive
            reason = f"too_large: {image.size} bytes, more than the {MAX_BYTES} allowed"
        clean = sample.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        content = b"" if reason else _content(archive, image)
        return ImageRow(clean, content, metadata, reason)

    def _check_end(self, archive: tarfile.TarFile) -> None:
        """Refuse an archive without its end, or with more behind it.

        tarfile takes a cut or damaged header for the end; a whole archive ends with blocks of
        zeros, and nothing but zeros follows.
        """
        stream: Any = archive.fileobj
        stream.seek(archive.offset)
        block = stream.read(_BLOCK)
        problem = ""
        if len(block) % _BLOCK:
            problem = f"{archive.offset + len(block)} bytes are not a multiple of {_BLOCK}"
        elif not block:
            problem = (
                "the blocks of zeros at its end are missing, as if it was cut between two members"
            )
        while not problem and block:
            if block.strip(b"\0"):
                problem = (
                    f"what follows from byte {archive.offset} on is no header; if these are "
                    "several archives in one file, split them"
                )
            block = stream.read(1 << 20)
        if problem:
            raise InvalidInputError(
                f"{self._path} is damaged or truncated after {self._number} images: {problem}; "
                "fetch it again, or leave it out"
            )

    def _packed(self) -> bool:
        with self._path.open("rb") as stream:
            return bytes(stream.read(2)) == b"\x1f\x8b"


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    content = b"" if stream is None else stream.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} has {len(content)} of {member.size} bytes")
    return content
