"""The exact search of a corpus, prepared once: packed codes beside it, which all processes map.

``<corpus>/search/`` holds ``<kernel>.<hash>.codes`` and ``<kernel>.json``, which says of which
corpus content the codes are, and the file's SHA-256. A kernel has files of its own, so machines of
several kinds may share a corpus. A file holds what the kernel packed, in the layout of ``Packed``
in ``native/engine.h``, and behind it, where entries are identical, three arrays of int64: the first
row of every set, where the sets start, and the rows of all sets
(:class:`bliss_index.search.duplicates.Duplicates`).

Whatever is here can be made again from the corpus. So what is stale, damaged or of another version
is never used and never an error: the search is prepared anew, and takes its place.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bliss_index.errors import BlissError, InvalidInputError, OutputError
from bliss_index.search.duplicates import Duplicates
from bliss_index.search.exact import ExactSearch
from bliss_index.search.native.backend import NativeBackend, load_native
from bliss_index.search.protocol import Corpus, Prepared, ShardedCorpus
from bliss_index.search.sharded import Matrix, ShardedRows
from bliss_index.storage import open_directory
from bliss_index.storage.directory import LocalDirectory, read_named
from bliss_index.storage.kept import KeptFiles, write_arrays

SEARCH_FOLDER = "search"
CODES = KeptFiles(SEARCH_FOLDER, "codes", format_version=1, what="the prepared search")
KEPT_FROM = 50_000
"""Entries from which preparing takes so long that it is kept unasked."""

_WAIT_SECONDS = 600.0
_LOGGER = logging.getLogger("bliss_index")


@dataclass(frozen=True)
class PreparedRecord:
    """What ``<kernel>.json`` says of a file of codes.

    Attributes
    ----------
    kernel, file, sha256
        The kernel that packed it, the file's name and its SHA-256.
    rows, sets, dim
        Entries of the corpus, different ones among them, and their dimension.
    content_hash
        Of the corpus.
    packed_version
        Of what the kernels pack; another one is not used.
    """

    kernel: str
    file: str
    sha256: str
    rows: int
    sets: int
    dim: int
    content_hash: str
    packed_version: int


def corpus_search(
    corpus: ShardedCorpus,
    k: int = 10,
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: str | None = None,
    keep: bool = False,
) -> ExactSearch:
    """Open the exact search of a corpus: the prepared one, if it is there and fits.

    Parameters
    ----------
    corpus
        The text store.
    k, backend, threads, device
        As for :class:`bliss_index.search.ExactSearch`.
    keep : bool, default=False
        Whether a search that had to be prepared is kept beside the corpus, where that pays. A
        folder that cannot be written to is no error.

    Raises
    ------
    InvalidInputError, MissingDependencyError, CorruptStoreError
        As for :class:`bliss_index.search.ExactSearch`; or the corpus is damaged.
    """
    native, kernel = load_native()
    if device is not None or backend not in ("auto", "native") or native is None:
        entries = entries_of(corpus)
        return ExactSearch(entries, k, backend=backend, threads=threads, device=device)
    prepared = None
    with ThreadPoolExecutor(1) as pool:  # both files are read to the end, and compared
        found = pool.submit(read_prepared, corpus, kernel)
        entries = entries_of(corpus)
        try:
            prepared = found.result()
        except (BlissError, FileNotFoundError) as error:
            _LOGGER.warning("%s; the search is prepared anew", error)
    search = ExactSearch(entries, k, backend=backend, threads=threads, prepared=prepared)
    if keep and prepared is None and corpus.rows >= KEPT_FROM:
        try:
            if isinstance(open_directory(corpus.path), LocalDirectory):
                save_prepared(search, corpus, wait=0.0)
        except OutputError as error:
            _LOGGER.info("the prepared search is not kept: %s", error)
    return search


def entries_of(corpus: ShardedCorpus) -> Matrix:
    """Return the embeddings of a corpus where they are mapped: (W, d).

    Raises
    ------
    CorruptStoreError
        The corpus is damaged.
    """
    shards = corpus.shard_embeddings()
    return shards[0] if len(shards) == 1 else ShardedRows(shards)


def read_prepared(corpus: Corpus, kernel: str) -> Prepared | None:
    """Map what a kernel packed of a corpus; None where there is nothing of its present content.

    Raises
    ------
    CorruptStoreError
        The record or the file is damaged.
    FileNotFoundError
        The file is missing.
    """

    def current() -> PreparedRecord | None:
        records = prepared_records(corpus)
        return next((r for r in records if r.kernel == kernel and is_current(corpus, r)), None)

    def mapped(record: PreparedRecord | None) -> Prepared | None:
        if record is None:
            return None
        size = _packed_bytes(kernel, record)
        some = record.sets < record.rows
        behind = Duplicates.arrays_bytes(record.rows, record.sets) if some else 0
        content = CODES.mapped(corpus.path, record.file, record.sha256, size + behind)
        if not behind:
            return Prepared(kernel, content)
        return Prepared(kernel, content[:size], Duplicates.of_arrays(content[size:], record.sets))

    return read_named(current, mapped)


def save_prepared(
    search: ExactSearch, corpus: Corpus, *, wait: float = _WAIT_SECONDS
) -> PreparedRecord:
    """Keep what a search has packed beside its corpus, atomically.

    Parameters
    ----------
    search
        Over the corpus, with the native engine.
    corpus
        The text store.
    wait : float
        Seconds to wait for another process that is writing there.

    Raises
    ------
    InvalidInputError
        The search is of another engine.
    OutputError
        The folder cannot be written, or another process is writing there.
    """
    prepared = search.prepared
    if prepared is None:
        raise InvalidInputError(
            f"{search.describe()}: nothing is packed that could be kept; use backend='native'"
        )
    same = prepared.duplicates
    facts = {
        "kernel": prepared.kernel,
        "rows": corpus.rows,
        "sets": corpus.rows if same is None else int(same.first.size),
        "dim": corpus.dim,
        "content_hash": corpus.content_hash,
        "packed_version": _packed_version(),
    }

    def fill(sink: Any) -> None:
        write_arrays(sink, [prepared.packed, *([] if same is None else same.arrays())])

    return PreparedRecord(
        **CODES.write(corpus.path, prepared.kernel, fill, lambda: facts, wait=wait)
    )


def prepared_records(corpus: Corpus) -> list[PreparedRecord]:
    """Read the records of all kernels; those of another format version are left out.

    Raises
    ------
    CorruptStoreError
        A record is damaged.
    """

    def record(name: str, **values: Any) -> PreparedRecord:
        found = PreparedRecord(**values)
        numbers = (found.rows, found.sets, found.dim, found.packed_version)
        if (
            found.kernel != name
            or not all(type(number) is int and number > 0 for number in numbers)
            or found.sets > found.rows
        ):
            raise ValueError("its fields do not fit each other")
        return found

    return CODES.described(corpus.path, record)


def is_current(corpus: Corpus, record: PreparedRecord) -> bool:
    """Whether a record is of what the corpus holds now, and of this version's kernels."""
    return (record.content_hash, record.rows, record.dim, record.packed_version) == (
        corpus.content_hash, corpus.rows, corpus.dim, _packed_version(),
    )  # fmt: skip


def verify_prepared(corpus: Corpus) -> list[PreparedRecord]:
    """Compare all files with their records; return the records.

    Raises
    ------
    CorruptStoreError
        A record or a file is damaged, or a file is missing.
    """
    records = prepared_records(corpus)
    for record in records:
        again = f"make it again: bliss-index build {corpus.path}"
        CODES.verify(corpus.path, record.file, record.sha256, again)
    return records


def describe_prepared(corpus: Corpus, *, keep: bool) -> str:
    """Say in a few words whether a search of this corpus is prepared for this machine.

    Parameters
    ----------
    corpus
        The text store.
    keep
        As for :func:`corpus_search`.
    """
    kernel = NativeBackend.availability()[1]
    with suppress(BlissError):
        for record in prepared_records(corpus):
            if record.kernel == kernel and is_current(corpus, record):
                return "prepared before"
    kept = keep and corpus.rows >= KEPT_FROM
    return f"prepared now, to be kept in {corpus.path}/{SEARCH_FOLDER}" if kept else "prepared now"


def _packed_bytes(kernel: str, record: PreparedRecord) -> int:
    native = load_native()[0]
    return 0 if native is None else int(native.packed_bytes(kernel, record.sets, record.dim))


def _packed_version() -> int:
    native = load_native()[0]
    return 0 if native is None else int(native.packed_version)
