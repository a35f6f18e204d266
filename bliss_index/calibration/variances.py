"""How the similarities to texts vary over the images of classes: compiled, or by numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.devices import thread_count
from bliss_index.search.native.backend import load_native

if TYPE_CHECKING:
    from bliss_index.calibration.moments import ClassMoments

_ENTRY_BLOCK = 256
_TEXTS_AT_ONCE = 4096

Sums = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def similarity_sums(
    classes: Sequence[ClassMoments],
    texts: npt.NDArray[Any],
    *,
    threads: int | None = None,
    native: bool | None = None,
    kernel: str = "",
) -> Sums:
    """Mean of the similarities to every text, and their squared distances from it, summed.

    Parameters
    ----------
    classes
        Moments of the images of C classes.
    texts : (m, d) array
        Text embeddings t.
    threads : int, optional
        Threads of the compiled code; by default BLISS_INDEX_THREADS, else all usable processors.
    native : bool, optional
        Whether the compiled code does it; by default wherever it is installed. It adds up in
        another order than numpy does, so these agree to 1e-12 or better.
    kernel : str, default=""
        Which compiled kernel; by default the best that this processor can run. All give the same
        bits.

    Returns
    -------
    <t, mean> and the sum over the images x of <x - mean, t>^2, (m, C) float64 each. Those of a text
    and a class do not depend on the other texts and classes, nor on the number of threads.
    """
    compiled = load_native()[0] if native is None or native else None
    if compiled is None:
        return _by_numpy(classes, texts)
    plain = np.asarray(texts)
    kind = plain.dtype if plain.dtype in (np.float16, np.float32) else np.dtype(np.float64)
    rows = np.ascontiguousarray(plain, dtype=kind)
    means = np.stack([moments.mean for moments in classes])
    images = [np.ascontiguousarray(_kept(moments), dtype=np.float64) for moments in classes]
    counts = [moments.count if moments.images is not None else 0 for moments in classes]
    mu, squares = (np.empty((rows.shape[0], len(classes))) for _ in range(2))
    for start in range(0, rows.shape[0], _TEXTS_AT_ONCE):
        part = rows[start : start + _TEXTS_AT_ONCE]
        compiled.class_variances(
            part.ctypes.data, part.itemsize, *part.shape, [array.ctypes.data for array in images],
            counts, means.ctypes.data, kernel, thread_count(threads), mu[start:].ctypes.data,
            squares[start:].ctypes.data,
        )  # fmt: skip
    return mu, squares


def _kept(moments: ClassMoments) -> npt.NDArray[np.float64]:
    return moments.spread() if moments.images is None else moments.images


def _by_numpy(classes: Sequence[ClassMoments], texts: npt.NDArray[Any]) -> Sums:
    mu, squares = (np.empty((len(texts), len(classes))) for _ in range(2))
    for start in range(0, len(texts), _ENTRY_BLOCK):
        # Blocks of one size: a matrix product's last bits may depend on its shape.
        part = np.asarray(texts[start : start + _ENTRY_BLOCK], dtype=np.float64)
        block = np.zeros((_ENTRY_BLOCK, part.shape[1]))
        block[: part.shape[0]] = part
        at = slice(start, start + part.shape[0])
        for c, moments in enumerate(classes):
            mean = block @ moments.mean
            if moments.images is None:
                square = np.einsum("ij,ij->i", block @ moments.spread(), block)
            else:
                centred = block @ moments.images.T - mean[:, None]
                square = np.einsum("ij,ij->i", centred, centred)
            mu[at, c], squares[at, c] = mean[: part.shape[0]], square[: part.shape[0]]
    return mu, squares
