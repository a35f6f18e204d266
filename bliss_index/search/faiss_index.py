"""FAISS indexes of a corpus: built, saved beside it, and opened again only where they belong.

``<corpus>/index/`` holds ``<kind>.faiss``, as faiss writes it, and ``index.json``, which says for
every kind how it was built, of which corpus content, the file's SHA-256 and the recall measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    OutputError,
    StaleIndexError,
    StoreError,
)
from bliss_index.search.exact import thread_count
from bliss_index.search.faiss_runtime import faiss_settings, import_faiss
from bliss_index.search.faiss_search import KINDS, FaissSearch
from bliss_index.search.inputs import as_matrix, checked_rows, require_k

FORMAT_VERSION = 1
INDEX_FOLDER = "index"
INDEX_FILE = "index.json"
_ROWS_AT_ONCE = 16384
_CLASSES = {
    "flat": ("IndexFlatIP", "IndexFlat"),
    "ivf": ("IndexIVFFlat",),
    "ivfpq": ("IndexIVFPQ",),
    "hnsw": ("IndexHNSWFlat",),
    "cagra": ("IndexHNSWCagra",),
}


@runtime_checkable
class Corpus(Protocol):
    """What an index needs to know of a text store."""

    @property
    def path(self) -> Path: ...

    @property
    def content_hash(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def embeddings(self) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class IndexParameters:
    """How an index is built; what a kind does not use is ignored by no one: it is refused.

    Attributes
    ----------
    cells
        ivf, ivfpq: cells of the inverted file; None for 4 sqrt(W), at least 39 entries a cell.
    links
        hnsw, cagra: links of a node.
    construction
        hnsw: width of the search while building (efConstruction).
    subspaces, bits
        ivfpq: sub-quantisers (None: one per 8 coordinates where that divides d) and bits of each.
    centered
        ivf, ivfpq, hnsw: index entries minus their mean. It takes the same constant from all
        scores of a query, so the order stays, and cells and links follow what tells entries apart.
    seed
        Seed of the k-means that finds cells.
    """

    cells: int | None = None
    links: int = 32
    construction: int = 200
    subspaces: int | None = None
    bits: int = 8
    centered: bool = True
    seed: int = 1234

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("centered", "seed") or value is None:
                continue
            if not isinstance(value, int) or value < 1:
                raise InvalidInputError(f"{field.name} must be at least 1, got {value!r}")
        if self.bits > 12:
            raise InvalidInputError(f"bits must be at most 12, got {self.bits}")


def build_index(
    source: npt.ArrayLike | Corpus,
    kind: str = "flat",
    parameters: IndexParameters | None = None,
    *,
    k: int = 10,
    threads: int | None = None,
) -> FaissSearch:
    """Build a FAISS index of inner products on the CPU.

    Parameters
    ----------
    source
        A text store, or its (W, d) embeddings, float16, float32 or float64.
    kind
        "flat" (exact), "ivf", "ivfpq" or "hnsw" (approximate). "cagra" is built on a GPU, by
        :func:`bliss_index.search.faiss_gpu.build_cagra`.

    Raises
    ------
    InvalidInputError
        An unknown kind, NaN or infinity among the entries, k > W, or parameters that do not fit.
    MissingDependencyError
        faiss is not installed.
    """
    if kind not in KINDS:
        raise InvalidInputError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "cagra":
        raise InvalidInputError("kind 'cagra' is built on a GPU: faiss_gpu.build_cagra")
    parameters = parameters or IndexParameters()
    array = source.embeddings() if isinstance(source, Corpus) else source
    matrix = as_matrix(array, "vocabulary entries")
    require_k(k, matrix.shape[0])
    matrix = checked_rows(matrix, "vocabulary entries")
    faiss = import_faiss()
    threads = thread_count(threads)
    rows = prepared_rows(matrix, kind, parameters)
    with faiss_settings(faiss, threads):
        index = _empty_index(faiss, kind, rows.shape, parameters)
        if not index.is_trained:
            index.train(rows)
        for start in range(0, rows.shape[0], _ROWS_AT_ONCE):
            index.add(rows[start : start + _ROWS_AT_ONCE])
    return FaissSearch(index, matrix, k, kind=kind, threads=threads)


def prepared_rows(
    matrix: npt.NDArray[Any], kind: str, parameters: IndexParameters
) -> npt.NDArray[np.float32]:
    """Return the rows that faiss keeps: float32, centred for approximate kinds if so asked."""
    if kind == "flat" or not parameters.centered:
        return np.ascontiguousarray(matrix, dtype=np.float32)
    mean = matrix.mean(axis=0, dtype=np.float64)
    rows = np.empty(matrix.shape, dtype=np.float32)
    for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
        rows[start : start + _ROWS_AT_ONCE] = matrix[start : start + _ROWS_AT_ONCE] - mean
    return rows


def _empty_index(faiss: Any, kind: str, shape: tuple[int, ...], parameters: IndexParameters) -> Any:
    size, dim = shape
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, parameters.links, metric)
        index.hnsw.efConstruction = parameters.construction
        return index
    cells = parameters.cells or max(1, min(round(4 * math.sqrt(size)), size // 39))
    if cells > size:
        raise InvalidInputError(f"cells = {cells} is larger than the vocabulary of {size} entries")
    quantizer = faiss.IndexFlatIP(dim)
    if kind == "ivf":
        index = faiss.IndexIVFFlat(quantizer, dim, cells, metric)
    else:
        subspaces = parameters.subspaces or (dim // 8 if dim % 8 == 0 else 1)
        if dim % subspaces:
            raise InvalidInputError(f"subspaces = {subspaces} does not divide the dimension {dim}")
        if size < 2**parameters.bits:
            raise InvalidInputError(
                f"ivfpq with bits = {parameters.bits} needs {2**parameters.bits} entries to train "
                f"on, got {size}; lower bits or take kind 'ivf'"
            )
        index = faiss.IndexIVFPQ(quantizer, dim, cells, subspaces, parameters.bits, metric)
        index.pq.cp.seed = parameters.seed
        index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = parameters.seed
    index.cp.min_points_per_centroid = 1
    return index


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
    index = search.index if search.placement.device == "cpu" else _to_cpu(faiss, search.index)
    name = f"{search.kind}.faiss"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        faiss.write_index(index, str(temporary))
        _sync(temporary)
        record = IndexRecord(
            kind=search.kind,
            file=name,
            sha256=_sha256(temporary),
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
    """Read what is said of the indexes beside a corpus, the one written last first.

    Raises
    ------
    CorruptStoreError
        ``index.json`` cannot be read, or was written by a newer version.
    """
    path = Path(corpus.path) / INDEX_FOLDER / INDEX_FILE
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format_version"]
        if version != FORMAT_VERSION:
            raise CorruptStoreError(
                f"{path} has format version {version}, this version of bliss_index reads "
                f"{FORMAT_VERSION}; upgrade bliss_index, or build the index again"
            )
        records = [IndexRecord(**record) for record in data["indexes"]]
        if any(r.kind not in KINDS or r.file != f"{r.kind}.faiss" for r in records):
            raise ValueError("unknown kind or file name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptStoreError(
            f"{path} cannot be read ({error}); build the index again"
        ) from error
    return records


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
    kind
        Which one; None for the one written last.
    device
        "cpu", "cuda", "cuda:N", or "cuda:all" (copies, or with ``shards`` parts, on every GPU).
    storage
        "float32", or "float16" on a GPU; a flat index stays exact by its certificate.

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
    folder = Path(corpus.path) / INDEX_FOLDER
    records = index_records(corpus)
    chosen = [r for r in records if kind is None or r.kind == kind]
    if not chosen:
        have = ", ".join(r.kind for r in records) or "none"
        raise StoreError(
            f"{corpus.path} has no {kind or 'FAISS'} index (it has: {have}); "
            f"build it: bliss-index build {corpus.path} --index {kind or 'flat'}"
        )
    record = chosen[0]
    again = f"build it again: bliss-index build {corpus.path} --index {record.kind}"
    if record.content_hash != corpus.content_hash:
        raise StaleIndexError(
            f"the {record.kind} index of {corpus.path} was built of content {record.content_hash}, "
            f"the corpus has content {corpus.content_hash} now; {again}"
        )
    path = folder / record.file
    if not path.is_file():
        raise CorruptStoreError(f"{path} is missing; {again}")
    found = _sha256(path)
    if found != record.sha256:
        raise CorruptStoreError(
            f"{path} has SHA-256 {found}, {INDEX_FILE} says {record.sha256}: "
            f"truncated or altered; {again}"
        )
    index = faiss.read_index(str(path))
    metric = index.metric_type
    if type(index).__name__ not in _CLASSES[record.kind] or metric != faiss.METRIC_INNER_PRODUCT:
        raise CorruptStoreError(
            f"{path} holds a {type(index).__name__} of metric {metric}, not an inner product index "
            f"of kind {record.kind}; {again}"
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


def _write_records(folder: Path, records: Mapping[str, IndexRecord], last: str) -> None:
    ordered = sorted(records.values(), key=lambda r: (r.kind != last, r.kind))
    data = {"format_version": FORMAT_VERSION, "indexes": [asdict(r) for r in ordered]}
    temporary = folder / f".{INDEX_FILE}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, folder / INDEX_FILE)
    _sync(folder)


def _to_cpu(faiss: Any, index: Any) -> Any:
    return faiss.index_gpu_to_cpu(index)


def _sync(path: Path) -> None:
    """Force a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
