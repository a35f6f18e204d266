"""Members of tar archives in webdataset's order: files of one name but other extensions."""

from __future__ import annotations

import contextlib
import copy
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bliss_index.errors import InvalidInputError

_BLOCK = 512


@dataclass(frozen=True)
class TarMembers:
    """The members of one archive, read from whatever holds it.

    Attributes
    ----------
    name
        For messages.
    open_stream
        Opens it for random reading.
    """

    name: str
    open_stream: Callable[[], Any]

    @contextlib.contextmanager
    def opened(self, offset: int = 0, found: Callable[[], str] = str) -> Iterator[tarfile.TarFile]:
        """Open the archive at a member; whatever is wrong with it becomes our error.

        `found` says what was found of it until then.
        """
        try:
            with self.open_stream() as stream:
                stream.seek(offset)
                with tarfile.open(fileobj=stream, mode="r:*") as archive:
                    yield archive
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise InvalidInputError(self.damaged(str(error), found())) from error

    def damaged(self, problem: str, found: str) -> str:
        """The message of an archive that is not whole."""
        return (
            f"{self.name} is damaged or truncated after {found or 'its beginning'}: {problem}; "
            "fetch it again, or leave it out"
        )

    def samples(
        self, archive: tarfile.TarFile, skip: Callable[[str, str], None]
    ) -> Iterator[tuple[str, list[tarfile.TarInfo]]]:
        """Consecutive files of one path up to the first dot of their names.

        A hard link has the content of its target. What is passed over is told with its reason.
        """
        current: str | None = None
        members: list[tarfile.TarInfo] = []
        for found in archive:
            archive.members = []  # type: ignore[attr-defined]  # or it grows with the archive
            folder, name = os.path.split(found.name)
            member = found
            if found.isdir():
                continue
            if name.startswith("."):
                skip("hidden", found.name)
                continue
            if found.islnk():
                target = self._linked.get(found.linkname)
                if target is None:
                    skip("hard link to nowhere", found.name)
                    continue
                member = copy.copy(target)
                member.name, member.offset = found.name, found.offset
            elif not found.isfile():
                skip("symbolic link" if found.issym() else "device or pipe", found.name)
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
        with self.open_stream() as stream, tarfile.open(fileobj=stream, mode="r:*") as archive:
            wanted = {member.linkname for member in _members(archive) if member.islnk()}
        with self.open_stream() as stream, tarfile.open(fileobj=stream, mode="r:*") as archive:
            for member in _members(archive):
                if member.name in wanted and member.isfile():
                    targets[member.name] = member
        return targets

    def check_end(self, archive: tarfile.TarFile, found: str) -> None:
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
            raise InvalidInputError(self.damaged(problem, found))

    def direct(self, archive: tarfile.TarFile) -> bool:
        """Whether members can be read from their offset on.

        Within a compressed archive, or behind global headers, they are not.
        """
        if archive.pax_headers:
            return False
        with self.open_stream() as stream:
            return bytes(stream.read(2)) != b"\x1f\x8b"


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """All bytes of a member; tarfile.ReadError where some are missing."""
    stream = archive.extractfile(member)
    found = b"" if stream is None else stream.read()
    if len(found) != member.size:
        raise tarfile.ReadError(f"{member.name} has {len(found)} of {member.size} bytes")
    return found


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]
        yield member
