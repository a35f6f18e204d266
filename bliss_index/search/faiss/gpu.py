"""FAISS indexes on NVIDIA GPUs: one, or copies or parts on several."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.search.faiss.kinds import INDEX_KINDS
from bliss_index.search.faiss.runtime import PIP_GPU, import_faiss
from bliss_index.search.faiss.search import Placement

if TYPE_CHECKING:
    pass

_STORAGES = ("float32", "float16")


def gpu_count(faiss: Any) -> int:
    """Count the GPUs that this build of faiss can see; 0 for a CPU build."""
    if not hasattr(faiss, "GpuIndexFlatIP"):
        return 0
    return int(faiss.get_num_gpus())


def require_gpus(faiss: Any, device: str) -> list[int]:
    """Return the numbers of the GPUs that ``device`` ("cuda", "cuda:N", "cuda:all") stands for.

    Raises
    ------
    InvalidInputError
        The name is malformed, or there is no GPU of that number.
    MissingDependencyError
        faiss has no GPU support, or sees no GPU; the message says why and what to install.
    """
    match = re.fullmatch(r"cuda(?::(\d+|all))?", device)
    if match is None:
        raise InvalidInputError(
            f"device must be 'cpu', 'cuda', 'cuda:N' or 'cuda:all', got {device!r}"
        )
    count = gpu_count(faiss)
    if count == 0:
        from bliss_index.search.faiss.probe import probe_gpu

        probe = probe_gpu()
        raise MissingDependencyError(
            f"device {device!r} cannot be used: {probe.reason}. {probe.remedy or PIP_GPU}"
        )
    if match.group(1) == "all":
        return list(range(count))
    number = int(match.group(1) or 0)
    if number >= count:
        raise InvalidInputError(
            f"device {device!r} does not exist: faiss sees {count} GPU(s), cuda:0 to "
            f"cuda:{count - 1}"
        )
    return [number]


def place_index(
    index: Any, kind: str, device: str, *, storage: str = "float32", shards: bool = False
) -> tuple[Any, Placement]:
    """Copy a CPU index to one GPU or several.

    Parameters
    ----------
    index
        A flat, ivf, ivfpq or (written by cuVS) cagra index.
    kind
        Which of these it is.
    device
        "cuda", "cuda:N" or "cuda:all".
    storage
        "float16" halves the memory of flat and ivf indexes.
    shards
        Over several GPUs: every GPU holds a part of the entries, rather than a copy of all.

    Raises
    ------
    InvalidInputError
        The kind has no GPU class, or an unknown storage.
    MissingDependencyError
        No GPU can be used; the message says why.
    """
    if storage not in _STORAGES:
        raise InvalidInputError(f"storage must be 'float32' or 'float16', got {storage!r}")
    if not INDEX_KINDS[kind].placed_on_gpu:
        others = ", ".join(repr(k.name) for k in INDEX_KINDS.values() if k.placed_on_gpu)
        raise InvalidInputError(
            f"kind {kind!r} runs on the CPU only; on a GPU take one of {others}"
        )
    faiss = import_faiss()
    numbers = require_gpus(faiss, device)
    half = storage == "float16"
    if len(numbers) == 1:
        resources = faiss.StandardGpuResources()
        options = faiss.GpuClonerOptions()
        options.useFloat16 = half
        if kind in ("ivf", "ivfpq"):
            options.useFloat16CoarseQuantizer = False
        placed = faiss.index_cpu_to_gpu(resources, numbers[0], index, options)
        return placed, Placement(f"cuda:{numbers[0]}", storage, (resources,))
    if kind == "cagra":
        raise InvalidInputError("kind 'cagra' runs on one GPU, got device 'cuda:all'")
    many = faiss.GpuMultipleClonerOptions()
    many.useFloat16 = half
    many.shard = shards
    resources_list = [faiss.StandardGpuResources() for _ in numbers]
    placed = faiss.index_cpu_to_gpu_multiple_py(resources_list, index, many, numbers)
    return placed, Placement("cuda:all", storage, tuple(resources_list))
