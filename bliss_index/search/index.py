"""Indexes of a corpus: built, saved beside it, and opened again only where they belong.

``<corpus>/index/`` holds ``<kind>.<hash>.faiss``, as faiss writes it, or ``near.<hash>.lists``, and
``<kind>.json``, which says how it was built, of which corpus content, the file's SHA-256 and the
recall measured. Each kind has a record of its own, so builds of several kinds do not meet, and who
opens an index that is built again finds the old one or the new one, whole.

The file of a near index holds what the kernel packed, in the order of the lists (``Packed`` in
``native/engine.h``), and behind it, in the smallest byte first: the entries list by list and where
the lists start, uint32; their centres, float32; and where entries are identical, the sets of these
as in :mod:`bliss_index.search.prepared`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    StaleIndexError,
    StoreError,
)
from bliss_index.search.faiss.build import IndexParameters, build_index
from bliss_index.search.faiss.kinds import INDEX_KINDS
from bliss_index.search.faiss.runtime import import_faiss
from bliss_index.search.faiss.search import FaissSearch
from bliss_index.search.near_index import NearSearch, near_arrays, near_bytes, open_near
from bliss_index.search.prepared import entries_of
from bliss_index.search.protocol import Corpus, ShardedCorpus
from bliss_index.search.registry import NEAR
from bliss_index.storage import open_directory
from bliss_index.storage.directory import content_sha256, read_named
from bliss_index.storage.kept import KeptFiles, write_arrays

__all__ = [
    "Corpus",
    "FaissSearch",
    "IndexParameters",
    "IndexRecord",
    "build_index",
    "index_records",
    "open_index",
    "save_index",
]

INDEX_FOLDER = "index"
INDEXES = KeptFiles(INDEX_FOLDER, "faiss", format_version=2, what="the index")
LISTS = KeptFiles(INDEX_FOLDER, "lists", format_version=2, what="the index")


@dataclass(frozen=True)
class IndexRecord:
    """What ``<kind>.json`` says of one index file.

    Attributes
    ----------
    kind, file, sha256
        Kind, file name, and SHA-256 of the file.
    rows, dim, content_hash
        Shape and content hash of the corpus that was indexed.
    parameters, effort
        How it was built; nprobe, efSearch or itopk_size to search with (None: the default).
    faiss_version
        Version that wrote the file; None for a near index.
    recall
        What was measured, and how (:meth:`TuningReport.to_json`); None where nothing was.
    number
        The higher, the later it was written.
    """

    kind: str
    file: str
    sha256: str
    rows: int
    dim: int
    content_hash: str
    parameters: dict[str, Any]
    effort: int | None
    faiss_version: str | None
    recall: dict[str, Any] | None
    number: int = 1


def save_index(
    search: FaissSearch | NearSearch,
    corpus: Corpus,
    parameters: IndexParameters | None = None,
    recall: Mapping[str, Any] | None = None,
) -> IndexRecord:
    """Write an index beside its corpus, atomically; an index of the same kind is replaced.

    Parameters
    ----------
    search, corpus
        The index, and the text store that it was built of.
    parameters
        What a FAISS index was built with, for the record.
    recall
        The measured recall and how it was measured, ``TuningReport.to_json()``.

    Raises
    ------
    InvalidInputError
        The index is not of this corpus's shape.
    OutputError
        The folder cannot be written.
    """
    if (search.size, search.dim) != (corpus.rows, corpus.dim):
        raise InvalidInputError(
            f"the index holds {search.size} x {search.dim} vectors, the corpus {corpus.path} "
            f"{corpus.rows} x {corpus.dim}"
        )
    built_with, fill, version = (
        _near_content(search)
        if isinstance(search, NearSearch)
        else _faiss_content(search, parameters)
    )

    def facts() -> dict[str, Any]:
        return {
            "kind": search.kind,
            "rows": search.size,
            "dim": search.dim,
            "content_hash": corpus.content_hash,
            "parameters": built_with,
            "effort": search.effort,
            "faiss_version": version,
            "recall": None if recall is None else dict(recall),
            "number": 1 + max((one.number for one in index_records(corpus)), default=0),
        }

    return IndexRecord(**_files(search.kind).write(corpus.path, search.kind, fill, facts))


def _files(kind: str) -> KeptFiles:
    return LISTS if kind == NEAR else INDEXES


def _near_content(
    search: NearSearch,
) -> tuple[dict[str, Any], Callable[[Any], None], str | None]:
    parameters, arrays = near_arrays(search)
    return parameters, lambda sink: write_arrays(sink, arrays), None


def _faiss_content(
    search: FaissSearch, parameters: IndexParameters | None
) -> tuple[dict[str, Any], Callable[[Any], None], str | None]:
    faiss = import_faiss()
    index = (
        search.index if search.placement.device == "cpu" else faiss.index_gpu_to_cpu(search.index)
    )

    def fill(sink: Any) -> None:
        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(sink.write, 1 << 20))
        except RuntimeError as error:
            raise OSError(str(error)) from error

    return asdict(parameters or IndexParameters()), fill, str(faiss.__version__)


def index_records(corpus: Corpus) -> list[IndexRecord]:
    """Read the records of the indexes beside a corpus, the one written last first.

    Raises
    ------
    CorruptStoreError
        A record cannot be read, or is of another format version.
    """
    records = []
    try:
        found = INDEXES.records(corpus.path)
    except CorruptStoreError as error:
        raise CorruptStoreError(
            f"a record of an index cannot be read ({error}); build the index again"
        ) from error
    for name, values in found.items():
        path = INDEXES.path(corpus.path, f"{name}.json")
        version = values.get("format_version")
        if not INDEXES.is_readable(values):
            raise CorruptStoreError(
                f"{path} has format version {version}, this version of bliss_index reads "
                f"{INDEXES.format_version}; upgrade bliss_index, or build the index again"
            )
        try:
            record = IndexRecord(**values)
            if record.kind not in (*INDEX_KINDS, NEAR) or name != record.kind:
                raise ValueError("unknown kind or file name")
            if record.kind == NEAR:
                near_bytes(record.parameters, record.rows, record.dim)
            if not _files(name).is_file_of(name, record.file):
                raise ValueError(f"unknown file name {record.file!r}")
            records.append((-int(record.number), record.kind, record))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptStoreError(
                f"{path} cannot be read ({error}); build the index again"
            ) from error
    return [record for *_, record in sorted(records, key=lambda item: item[:2])]


def open_index(
    corpus: ShardedCorpus,
    k: int = 10,
    kind: str | None = None,
    device: str = "cpu",
    *,
    storage: str = "float32",
    shards: bool = False,
    threads: int | None = None,
) -> FaissSearch | NearSearch:
    """Open the index beside a corpus.

    Parameters
    ----------
    corpus
        The text store.
    k
        Results per query.
    kind
        Which one; None for the one written last.
    device
        "cpu", "cuda", "cuda:N", or "cuda:all".
    storage
        "float32", or "float16" on a GPU; a flat index stays exact by its certificate.
    shards
        With "cuda:all": every GPU holds a part of the entries, rather than a copy of all.
    threads
        By default BLISS_INDEX_THREADS, else all usable processors.

    Raises
    ------
    StoreError
        The corpus has no such index.
    StaleIndexError
        The index is of other content than the corpus has now; both hashes are named.
    CorruptStoreError
        The file is missing, truncated, altered, or not an index of this kind.
    MissingDependencyError
        faiss, or its GPU build, is not installed.
    """
    record, index = read_named(lambda: _chosen(corpus, kind), lambda one: _read(corpus, one))
    if record.kind == NEAR:
        if device != "cpu":
            raise InvalidInputError(
                f"a near index is searched on the processor, device is {device!r}; give 'cpu', or "
                f"a FAISS index such as 'ivf'"
            )
        entries = entries_of(corpus)
        with _told(corpus, record):
            return open_near(
                index, record.parameters, entries, k, effort=record.effort, threads=threads
            )
    placement = None
    if device != "cpu":
        from bliss_index.search.faiss.gpu import place_index

        index, placement = place_index(index, record.kind, device, storage=storage, shards=shards)
    elif storage != "float32":
        raise InvalidInputError(f"storage {storage!r} needs a GPU, device is 'cpu'")
    return FaissSearch(
        index,
        corpus.embeddings(),
        k,
        kind=record.kind,
        effort=record.effort,
        threads=threads,
        placement=placement,
    )


def _chosen(corpus: Corpus, kind: str | None) -> IndexRecord:
    records = index_records(corpus)
    for record in records:
        if kind is None or record.kind == kind:
            return record
    raise StoreError(
        f"{corpus.path} has no {kind or 'FAISS'} index (it has: "
        f"{', '.join(record.kind for record in records) or 'none'}); "
        f"build it: bliss-index build {corpus.path} --index {kind or 'flat'}"
    )


def _read(corpus: Corpus, record: IndexRecord) -> tuple[IndexRecord, Any]:
    _require_current(corpus, record)
    if record.kind == NEAR:
        size = near_bytes(record.parameters, record.rows, record.dim)
        with _told(corpus, record):
            return record, LISTS.mapped(corpus.path, record.file, record.sha256, size)
    faiss = import_faiss()
    with _told(corpus, record):
        path = INDEXES.checked(corpus.path, record.file, record.sha256)
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:  # it was removed just now
        raise CorruptStoreError(f"{path} cannot be read; {_again(corpus, record)}") from error
    metric = index.metric_type
    known = type(index).__name__ in INDEX_KINDS[record.kind].classes
    if not known or metric != faiss.METRIC_INNER_PRODUCT:
        raise CorruptStoreError(
            f"{path} holds a {type(index).__name__} of metric {metric}, not an inner product index "
            f"of kind {record.kind}; {_again(corpus, record)}"
        )
    return record, index


def verify_index(corpus: Corpus, record: IndexRecord) -> None:
    """Check that an index file is the one on record, and of the corpus as it is now.

    Raises
    ------
    StaleIndexError
        The index is of other content; both hashes are named.
    CorruptStoreError
        The file is missing, truncated or altered.
    """
    _require_current(corpus, record)
    directory = open_directory(corpus.path)
    name = f"{INDEX_FOLDER}/{record.file}"
    try:
        found = content_sha256(directory, name)
    except FileNotFoundError:
        raise _missing(corpus, record) from None
    if found != record.sha256:
        raise CorruptStoreError(
            f"{directory.uri}/{name} has SHA-256 {found}, its record says {record.sha256}: "
            f"truncated or altered; {_again(corpus, record)}"
        )


@contextmanager
def _told(corpus: Corpus, record: IndexRecord) -> Iterator[None]:
    """Say of a file that is missing or damaged how it is made again."""
    try:
        yield
    except FileNotFoundError:
        raise _missing(corpus, record) from None
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{error}; {_again(corpus, record)}") from error


def _require_current(corpus: Corpus, record: IndexRecord) -> None:
    if record.content_hash != corpus.content_hash:
        raise StaleIndexError(
            f"the {record.kind} index of {corpus.path} was built of content {record.content_hash}, "
            f"the corpus has content {corpus.content_hash} now; {_again(corpus, record)}"
        )


def _missing(corpus: Corpus, record: IndexRecord) -> CorruptStoreError:
    path = f"{corpus.path}/{INDEX_FOLDER}/{record.file}"
    return CorruptStoreError(f"{path} is missing; {_again(corpus, record)}")


def _again(corpus: Corpus, record: IndexRecord) -> str:
    return f"build it again: bliss-index build {corpus.path} --index {record.kind}"
