"""Building FAISS indexes of inner products on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.devices import thread_count
from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.search.faiss.gpu import require_gpus
from bliss_index.search.faiss.kinds import INDEX_KINDS, index_kind
from bliss_index.search.faiss.runtime import faiss_settings, import_faiss
from bliss_index.search.faiss.search import FaissSearch, Placement
from bliss_index.search.inputs import as_matrix, checked_rows, require_k
from bliss_index.search.isolation import isolated
from bliss_index.search.protocol import Corpus

_ROWS_AT_ONCE = 16384


@dataclass(frozen=True)
class IndexParameters:
    """How an index is built. A value that its kind cannot use is refused, not ignored.

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
        All but flat: whether entries are indexed minus their mean. That takes the same constant
        from all scores of a query, so their order stays, but neighbours in the index change. None
        takes what was best on real CLIP embeddings: graphs (hnsw, cagra) of centred entries, cells
        (ivf, ivfpq) of entries as they are.
    seed
        Seed of the k-means that finds cells.
    """

    cells: int | None = None
    links: int = 32
    construction: int = 200
    subspaces: int | None = None
    bits: int = 8
    centered: bool | None = None
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

    def require_used_by(self, kind: str) -> None:
        """Raise InvalidInputError if a value other than its default has no meaning for ``kind``."""
        used = index_kind(kind).parameters
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name not in used:
                raise InvalidInputError(
                    f"{field.name} = {value!r} has no meaning for kind {kind!r}, which takes "
                    f"{', '.join(used) or 'no parameters'}"
                )


@isolated
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
        "flat" (exact), "ivf", "ivfpq", "hnsw" or "cagra" (approximate; the last is built on a
        GPU, and can be searched on both).
    parameters
        How to build it; by default as :class:`IndexParameters` says.
    k, threads
        Results per query, and threads of building and searching; by default all.

    Raises
    ------
    InvalidInputError
        An unknown kind, NaN or infinity among the entries, k > W, or parameters that do not fit.
    MissingDependencyError
        faiss is not installed, or for "cagra" a GPU or faiss's cuVS is missing.
    """
    parameters = parameters or IndexParameters()
    parameters.require_used_by(kind)
    array = source.embeddings() if isinstance(source, Corpus) else source
    matrix = as_matrix(array, "vocabulary entries")
    require_k(k, matrix.shape[0])
    matrix = checked_rows(matrix, "vocabulary entries")
    faiss = import_faiss()
    threads = thread_count(threads)
    if index_kind(kind).built_on_gpu:
        return build_cagra(matrix, parameters, k=k)
    rows = prepared_rows(matrix, kind, parameters)
    with faiss_settings(faiss, threads):
        index = _empty_index(faiss, kind, rows.shape, parameters)
        if not index.is_trained:
            index.train(rows)
        for start in range(0, rows.shape[0], _ROWS_AT_ONCE):
            index.add(rows[start : start + _ROWS_AT_ONCE])
    return FaissSearch(index, matrix, k, kind=kind, threads=threads)


def build_cagra(
    vocabulary: npt.ArrayLike,
    parameters: IndexParameters | None = None,
    *,
    k: int = 10,
    device: str = "cuda",
) -> FaissSearch:
    """Build a CAGRA graph (Ootomo et al., ICDE 2024) on a GPU; needs a build of faiss with cuVS.

    It can be saved, and then also be searched on a CPU.

    Raises
    ------
    MissingDependencyError
        This build of faiss has no cuVS, or no GPU can be used.
    """
    faiss = import_faiss()
    number = require_gpus(faiss, device)[0]
    if not hasattr(faiss, "GpuIndexCagra"):
        raise MissingDependencyError(
            f"faiss {faiss.__version__} was built without cuVS, which CAGRA needs; install "
            "faiss-gpu-cuvs in place of the other faiss packages, or take kind 'ivf'"
        )
    matrix = as_matrix(vocabulary, "vocabulary entries")
    require_k(k, matrix.shape[0])
    matrix = checked_rows(matrix, "vocabulary entries")
    parameters = parameters or IndexParameters()
    resources = faiss.StandardGpuResources()
    config = faiss.GpuIndexCagraConfig()
    config.device = number
    config.graph_degree = parameters.links
    config.intermediate_graph_degree = 2 * parameters.links
    index = faiss.GpuIndexCagra(resources, matrix.shape[1], faiss.METRIC_INNER_PRODUCT, config)
    index.train(prepared_rows(matrix, "cagra", parameters))
    placement = Placement(f"cuda:{number}", "float32", (resources,))
    return FaissSearch(index, matrix, k, kind="cagra", placement=placement)


def prepared_rows(
    matrix: npt.NDArray[Any], kind: str, parameters: IndexParameters
) -> npt.NDArray[np.float32]:
    """Return the rows that faiss keeps: float32, centred for approximate kinds if so asked."""
    what = INDEX_KINDS[kind]
    centered = what.centred if parameters.centered is None else parameters.centered
    if what.exact or not centered:
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
