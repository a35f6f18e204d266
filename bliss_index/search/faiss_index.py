"""FAISS indexes of a corpus: built, saved beside it, and opened again only where they belong.

``<corpus>/index/`` holds ``<kind>.faiss``, as faiss writes it, and ``index.json``, which says for
every kind how it was built, of which corpus content, the file's SHA-256 and the recall measured.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    OutputError,
    StaleIndexError,
    StoreError,
)
from bliss_index.search.faiss_build import Corpus, IndexParameters, build_index
from bliss_index.search.faiss_runtime import import_faiss
from bliss_index.search.faiss_search import KINDS, FaissSearch
from bliss_index.storage.files import make_directory, read_json, write_json
from bliss_index.storage.hashing import file_sha256

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

FORMAT_VERSION = 1
INDEX_FOLDER = "index"
INDEX_FILE = "index.json"
_CLASSES = {
    "flat": ("IndexFlatIP", "IndexFlat"),
    "ivf": ("IndexIVFFlat",),
    "ivfpq": ("IndexIVFPQ",),
    "hnsw": ("IndexHNSWFlat",),
    "cagra": ("IndexHNSWCagra",),
}


@dataclass(frozen=True)
class IndexRecord:
    """What ``index.json`` says of one index file.

    Attributes
    ----------
    kind, file, sha256
        Kind, file name, and SHA-256 of the file.
    rows, dim, content_hash
        Shape and content hash of the corpus that was indexed.
    parameters, effort
        How it was built; nprobe, efSearch or itopk_size to search with (None: the default).
    faiss_version
        Version that wrote the file.
    recall
        What was measured, and how (:meth:`TuningReport.to_json`); None where nothing was.
    """

    kind: str
    file: str
    sha256: str
    rows: int
    dim: int
    content_hash: str
    parameters: dict[str, Any]
    effort: int | None
    faiss_version: str
    recall: dict[str, Any] | None


def save_index(
    search: FaissSearch,
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
        What it was built with, for the record.
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
    faiss = import_faiss()
    folder = Path(corpus.path) / INDEX_FOLDER
    index = (
        search.index if search.placement.device == "cpu" else faiss.index_gpu_to_cpu(search.index)
    )
    name = f"{search.kind}.faiss"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    make_directory(folder)
    try:
        faiss.write_index(index, str(temporary))
        _sync(temporary)
        record = IndexRecord(
            kind=search.kind,
            file=name,
            sha256=file_sha256(temporary),
            rows=search.size,
            dim=search.dim,
            content_hash=corpus.content_hash,
            parameters=asdict(parameters or IndexParameters()),
            effort=search.effort,
            faiss_version=str(faiss.__version__),
            recall=None if recall is None else dict(recall),
        )
        records = {
            r.kind: r for r in index_records(corpus) if r.content_hash == corpus.content_hash
        }
        records[search.kind] = record
        os.replace(temporary, folder / name)
        _write_records(folder, records, search.kind)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise OutputError(f"cannot write the index {folder / name}: {error}") from error
    return record


def index_records(corpus: Corpus) -> list[IndexRecord]:
    """Read the records of the indexes beside a corpus, the one written last first.

    Raises
    ------
    CorruptStoreError
        ``index.json`` cannot be read, or was written by a newer version.
    """
    path = Path(corpus.path) / INDEX_FOLDER / INDEX_FILE
    if not path.exists():
        return []
    try:
        data = read_json(path)
    except CorruptStoreError as error:
        raise _unreadable(path, error) from error
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptStoreError(
            f"{path} has format version {version}, this version of bliss_index reads "
            f"{FORMAT_VERSION}; upgrade bliss_index, or build the index again"
        )
    try:
        records = [IndexRecord(**record) for record in data["indexes"]]
        if any(r.kind not in KINDS or r.file != f"{r.kind}.faiss" for r in records):
            raise ValueError("unknown kind or file name")
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    return records


def _unreadable(path: Path, error: Exception) -> CorruptStoreError:
    return CorruptStoreError(f"{path} cannot be read ({error}); build the index again")


def open_index(
    corpus: Corpus,
    k: int = 10,
    kind: str | None = None,
    device: str = "cpu",
    *,
    storage: str = "float32",
    shards: bool = False,
    threads: int | None = None,
) -> FaissSearch:
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
        As for :class:`bliss_index.search.faiss_search.FaissSearch`.

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
    faiss = import_faiss()
    records = index_records(corpus)
    chosen = [r for r in records if kind is None or r.kind == kind]
    if not chosen:
        have = ", ".join(r.kind for r in records) or "none"
        raise StoreError(
            f"{corpus.path} has no {kind or 'FAISS'} index (it has: {have}); "
            f"build it: bliss-index build {corpus.path} --index {kind or 'flat'}"
        )
    record = chosen[0]
    path = _checked_file(corpus, record)
    index = faiss.read_index(str(path))
    metric = index.metric_type
    if type(index).__name__ not in _CLASSES[record.kind] or metric != faiss.METRIC_INNER_PRODUCT:
        raise CorruptStoreError(
            f"{path} holds a {type(index).__name__} of metric {metric}, not an inner product index "
            f"of kind {record.kind}; {_again(corpus, record)}"
        )
    placement = None
    if device != "cpu":
        from bliss_index.search.faiss_gpu import place_index

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


def verify_index(corpus: Corpus, record: IndexRecord) -> None:
    """Check that an index file is the one on record, and of the corpus as it is now.

    Raises
    ------
    StaleIndexError
        The index is of other content; both hashes are named.
    CorruptStoreError
        The file is missing, truncated or altered.
    """
    _checked_file(corpus, record)


def _checked_file(corpus: Corpus, record: IndexRecord) -> Path:
    if record.content_hash != corpus.content_hash:
        raise StaleIndexError(
            f"the {record.kind} index of {corpus.path} was built of content {record.content_hash}, "
            f"the corpus has content {corpus.content_hash} now; {_again(corpus, record)}"
        )
    path = Path(corpus.path) / INDEX_FOLDER / record.file
    if not path.is_file():
        raise CorruptStoreError(f"{path} is missing; {_again(corpus, record)}")
    found = file_sha256(path)
    if found != record.sha256:
        raise CorruptStoreError(
            f"{path} has SHA-256 {found}, {INDEX_FILE} says {record.sha256}: "
            f"truncated or altered; {_again(corpus, record)}"
        )
    return path


def _again(corpus: Corpus, record: IndexRecord) -> str:
    return f"build it again: bliss-index build {corpus.path} --index {record.kind}"


def _write_records(folder: Path, records: Mapping[str, IndexRecord], last: str) -> None:
    ordered = sorted(records.values(), key=lambda r: (r.kind != last, r.kind))
    values = {"format_version": FORMAT_VERSION, "indexes": [asdict(r) for r in ordered]}
    write_json(folder / INDEX_FILE, values)


def _sync(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
