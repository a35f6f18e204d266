"""The faiss library: finding it, saying what is wrong with it, and its process-wide settings."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bliss_index.errors import MissingDependencyError, install_line
from bliss_index.search.isolation import threads_after_fork, without_warnings

DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")
PIP_CPU = install_line("faiss")
PIP_GPU = install_line("faiss-gpu")


def import_faiss() -> Any:
    """Import faiss.

    Raises
    ------
    MissingDependencyError
        It is not installed, or (faiss-gpu without its CUDA libraries) cannot be loaded.
    """
    try:
        if "faiss" not in sys.modules:
            with without_warnings():  # of its wrapper's classes
                return importlib.import_module("faiss")
        return importlib.import_module("faiss")
    except (ImportError, RuntimeError) as error:
        found = [name for name in DISTRIBUTIONS if _version(name) is not None]
        state = f"{' and '.join(found)} installed, but broken" if found else "not installed"
        raise MissingDependencyError(
            f"faiss cannot be imported ({state}): {error}. Install one of the two, never both: "
            f"{PIP_CPU} or, on a Linux machine with an NVIDIA GPU, {PIP_GPU}"
        ) from error


def faiss_conflict() -> str | None:
    """Describe the conflict of several faiss distributions in one environment, if there is one.

    faiss-cpu and faiss-gpu write the same files and pip does not notice: the one installed last is
    in effect, and removing either breaks the other.
    """
    found = [f"{name} {_version(name)}" for name in DISTRIBUTIONS if _version(name) is not None]
    if len(found) < 2:
        return None
    names = " ".join(entry.split()[0] for entry in found)
    return (
        f"{' and '.join(found)} are installed together and overwrite each other's files; keep one: "
        f"pip uninstall -y {names}, then {PIP_CPU} or {PIP_GPU}"
    )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class _BlasThreshold:
    """Keeps faiss's BLAS threshold at 1 while any search runs, then puts the old value back.

    faiss 1.15 leaves BLAS off for small batches (fewer than 128,000 query coordinates), which is 6
    to 10 times slower. The variable belongs to the process, hence the count of its users.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._saved = 0

    def enter(self, faiss: Any) -> None:
        with self._lock:
            if self._users == 0:
                self._saved = faiss.cvar.distance_compute_blas_threshold
                faiss.cvar.distance_compute_blas_threshold = 1
            self._users += 1

    def leave(self, faiss: Any) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                faiss.cvar.distance_compute_blas_threshold = self._saved


_THRESHOLD = _BlasThreshold()


@contextmanager
def faiss_settings(faiss: Any, threads: int) -> Iterator[None]:
    """Run faiss with ``threads`` OpenMP threads and BLAS for any batch; restores both after."""
    before = faiss.omp_get_max_threads()
    _THRESHOLD.enter(faiss)
    faiss.omp_set_num_threads(threads_after_fork("faiss", threads))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
        _THRESHOLD.leave(faiss)
