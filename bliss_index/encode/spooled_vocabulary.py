"""A vocabulary on disk: word lists larger than memory, cleaned and deduplicated as in memory.

Entries go to one temporary file, their 128-bit hashes to several, by the hash's first bits. Equal
entries meet in one of these, which are sorted one after the other to tell the repeated rows. What
stays in memory is a block of rows, one of the hash files, and one bit a row.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from bliss_index.storage.files import output_error
from bliss_index.vocabulary import (
    clean_entry,
    describe_counts,
    excluded_names,
    iter_rows,
    list_sources,
    require_entries,
)

_BLOCK_ROWS = 65536
_PARTITIONS = 64
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


def entry_hashes(lines: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """128 bits of every line, by which entries are told apart: (n, 2)."""
    digests = b"".join(hashlib.blake2b(line, digest_size=16).digest() for line in lines)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


class SpooledVocabulary:
    """Entries like those of :class:`~bliss_index.vocabulary.Vocabulary`, read from a file.

    Made by :func:`spool_vocabulary`. A context manager; leaving it frees the disk space. The file
    has no name, so nothing is left behind however the process ends.

    Attributes
    ----------
    read, empty, duplicate, excluded : int
        Rows found in the sources, and those left out, by reason.
    sources : tuple of str
        As they were given.
    sha256 : str
        SHA-256 of the entries, joined by newlines.
    """

    def __init__(
        self,
        file: BinaryIO,
        entries: int,
        counts: dict[str, int],
        sources: tuple[str, ...],
        sha256: str,
    ) -> None:
        self._file = file
        self._entries = entries
        self.read = counts["read"]
        self.empty = counts["empty"]
        self.duplicate = counts["duplicate"]
        self.excluded = counts["excluded"]
        self.sources = sources
        self.sha256 = sha256

    def __len__(self) -> int:
        return self._entries

    def __iter__(self) -> Iterator[str]:
        return self.iter_from(0)

    def iter_from(self, start: int) -> Iterator[str]:
        """Entries from number `start` on. Only one iteration at a time: they share the file."""
        self._file.seek(0)
        for number, line in enumerate(self._file):
            if number >= start:
                yield _decoded(line)

    def describe(self) -> str:
        """One line for a summary."""
        return describe_counts(len(self), self.read, self.empty, self.duplicate, self.excluded)

    def __enter__(self) -> SpooledVocabulary:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def spool_vocabulary(
    sources: Sequence[str | Path] | str | Path,
    directory: str | Path,
    *,
    exclude: Iterable[str] = (),
    block_rows: int = _BLOCK_ROWS,
    progress: Callable[[int], None] | None = None,
) -> SpooledVocabulary:
    """Read and clean a vocabulary of any length.

    Parameters
    ----------
    sources, exclude
        As :func:`~bliss_index.vocabulary.load_vocabulary` takes them; the entries, their order and
        the counts are the same. (Two entries of equal 128-bit hash would pass for one; among a
        billion this happens with a probability of 1e-21.)
    directory : str or Path
        Where the temporary files go; takes about twice the list's size and 24 bytes a row. If it
        does not exist, the nearest directory above it that does.
    block_rows : int
        Rows held at a time.
    progress : callable, optional
        Called with the number of rows just read.

    Raises
    ------
    InvalidInputError
        As for :func:`~bliss_index.vocabulary.load_vocabulary`.
    OutputError
        The temporary files cannot be written.
    """
    listed = list_sources(sources)
    unwanted = excluded_names(exclude)
    place = _existing(directory)
    counts = dict.fromkeys(("read", "empty", "duplicate", "excluded"), 0)
    try:
        with contextlib.ExitStack() as stack:
            spool = _Spool(lambda: stack.enter_context(_temporary(place)))
            for block in _blocks(listed, block_rows):
                cleaned = [clean_entry(raw) for raw in block]
                entries = [entry for entry in cleaned if entry]
                kept = [entry for entry in entries if entry.casefold() not in unwanted]
                counts["read"] += len(block)
                counts["empty"] += len(cleaned) - len(entries)
                counts["excluded"] += len(entries) - len(kept)
                spool.add(kept)
                if progress is not None:
                    progress(len(block))
            require_entries(listed, spool.rows, counts["read"], counts["empty"], counts["excluded"])
            file = stack.enter_context(_temporary(place))
            different, digest = spool.copy_without_repeats(file)
            counts["duplicate"] = spool.rows - different
            for used in spool.files:
                used.close()
            stack.pop_all()
    except OSError as error:
        raise output_error(place, error) from error
    return SpooledVocabulary(file, different, counts, tuple(map(str, listed)), digest)


class _Spool:
    """Rows in one temporary file, the hashes of rows in several."""

    def __init__(self, new_file: Callable[[], BinaryIO]) -> None:
        self._texts = new_file()
        self._hashes = [new_file() for _ in range(_PARTITIONS)]
        self.rows = 0

    @property
    def files(self) -> list[BinaryIO]:
        """All of them."""
        return [self._texts, *self._hashes]

    def add(self, entries: Sequence[str]) -> None:
        """Take cleaned entries, which hold no line break."""
        encoded = [entry.encode("utf-8", "surrogatepass") for entry in entries]
        self._texts.write(b"".join(line + b"\n" for line in encoded))
        records = np.empty(len(encoded), dtype=_RECORD)
        halves = entry_hashes(encoded)
        records["high"], records["low"] = halves[:, 0], halves[:, 1]
        records["row"] = np.arange(self.rows, self.rows + len(encoded))
        self.rows += len(encoded)
        part = records["high"] % np.uint64(_PARTITIONS)
        order = np.argsort(part, kind="stable")
        ends = np.searchsorted(part[order], np.arange(_PARTITIONS, dtype=np.uint64), "right")
        for number, rows in enumerate(np.split(order, ends[:-1])):
            self._hashes[number].write(records[rows].tobytes())

    def copy_without_repeats(self, file: BinaryIO) -> tuple[int, str]:
        """Write the rows that occur for the first time; return their number and SHA-256."""
        repeated = self._repeated().tobytes()
        digest = hashlib.sha256()
        different = 0
        self._texts.seek(0)
        for row, line in enumerate(self._texts):
            if not repeated[row >> 3] >> (row & 7) & 1:
                digest.update(b"\n" + line[:-1] if different else line[:-1])
                file.write(line)
                different += 1
        file.flush()
        return different, digest.hexdigest()

    def _repeated(self) -> npt.NDArray[np.uint8]:
        """One bit a row: whether an earlier one has the same entry."""
        bits = np.zeros(self.rows // 8 + 1, dtype=np.uint8)
        for file in self._hashes:
            file.seek(0)
            records = np.frombuffer(file.read(), dtype=_RECORD)
            order = np.lexsort((records["row"], records["low"], records["high"]))
            ranked = records[order]
            same = (ranked["high"][1:] == ranked["high"][:-1]) & (
                ranked["low"][1:] == ranked["low"][:-1]
            )
            rows = ranked["row"][1:][same]
            np.bitwise_or.at(bits, rows >> 3, (1 << (rows & 7)).astype(np.uint8))
        return bits


def _blocks(sources: Sequence[str | Path], size: int) -> Iterator[list[str]]:
    block: list[str] = []
    for source in sources:
        for raw in iter_rows(source):
            block.append(raw)
            if len(block) == size:
                yield block
                block = []
    if block:
        yield block


def _decoded(line: bytes) -> str:
    return line[:-1].decode("utf-8", "surrogatepass")


def _existing(directory: str | Path) -> Path:
    if "://" in str(directory):
        return Path(tempfile.gettempdir())
    directory = Path(directory)
    return next(d for d in (directory, *directory.absolute().parents) if d.is_dir())


def _temporary(directory: Path) -> BinaryIO:
    """A file without a name: it ends with the process."""
    return tempfile.TemporaryFile(dir=directory, prefix=".vocabulary-")
