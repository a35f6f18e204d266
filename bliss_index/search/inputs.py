"""Validation of the arrays that enter a search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError, listed

if TYPE_CHECKING:
    import torch

FLOAT64_LARGEST = 2.0**480
FLOAT64_SMALLEST = 2.0**-480
MAX_K = 2048
_SCAN_ELEMENTS = 1 << 22


def as_matrix(array: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """Return ``array`` as a C-contiguous float16, float32 or float64 matrix of native byte order.

    Raises
    ------
    InvalidInputError
        The array is not two-dimensional or not of one of the three types; the message names both.
    """
    matrix = np.asarray(array)
    if matrix.dtype.kind in "OU" and matrix.ndim == 0:
        raise InvalidInputError(
            f"{what} must be a matrix (rows, dim), got {type(array).__name__}; of a store, give "
            "EmbeddingStore.open(path).embeddings()"
        )
    if matrix.ndim != 2:
        raise InvalidInputError(
            f"{what} must be a matrix (rows, dim), got an array of shape {matrix.shape}"
        )
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize not in (2, 4, 8):
        raise InvalidInputError(
            f"{what} must be float16, float32 or float64, got {matrix.dtype}; convert it first"
        )
    return np.ascontiguousarray(matrix, dtype=matrix.dtype.newbyteorder("="))


def require_dim(matrix: npt.NDArray[Any], dim: int, what: str) -> None:
    """Raise InvalidInputError, naming both, unless rows of ``matrix`` have ``dim`` coordinates."""
    if matrix.shape[1] != dim:
        raise InvalidInputError(
            f"{what} have dimension {matrix.shape[1]}, the vocabulary has dimension {dim}; "
            "were they encoded by the same model?"
        )


def require_tensor(queries: torch.Tensor, dim: int, device: torch.device) -> None:
    """Raise InvalidInputError unless a tensor is (n, ``dim``), of floats, and on ``device``."""
    if not queries.is_floating_point():
        raise InvalidInputError(f"queries must be floating-point numbers, got {queries.dtype}")
    there = queries.device
    numbers = {there.index, device.index} - {None}
    elsewhere = there.type != device.type or len(numbers) > 1
    if elsewhere or queries.shape[1:] != (dim,):
        raise InvalidInputError(
            f"queries of shape {tuple(queries.shape)} on {there} do not fit a search of dimension "
            f"{dim} on {device}"
        )


def require_k(k: int, size: int) -> None:
    """Raise InvalidInputError, naming both, unless ``1 <= k <= min(size, 2048)``."""
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool):
        raise InvalidInputError(f"k must be an integer, got {k!r}")
    if k < 1 or k > MAX_K:
        raise InvalidInputError(f"k must lie between 1 and {MAX_K}, got {k}")
    if k > size:
        raise InvalidInputError(
            f"k = {k} is larger than the vocabulary, which has {size} entries; lower k"
        )


def largest_magnitude(matrix: npt.NDArray[Any]) -> float:
    """Largest magnitude in a matrix of finite numbers; 0.0 if it is empty. Makes no copy of it."""
    return max(float(matrix.max(initial=0)), -float(matrix.min(initial=0)))


def bad_rows_error(rows: npt.ArrayLike, what: str) -> InvalidInputError:
    """Build the error for rows that hold NaN or infinity."""
    return InvalidInputError(
        f"{what} hold NaN or infinity in row(s) {listed(np.asarray(rows).tolist())}; remove or "
        "quarantine these rows"
    )


def checked_rows(matrix: npt.NDArray[Any], what: str, first_row: int = 0) -> npt.NDArray[Any]:
    """Return ``matrix`` after checking that all values are finite and safe in float64.

    Inner products of float16 and float32 vectors can neither overflow nor underflow in float64.
    For float64 vectors this is made true: magnitudes beyond 2**480 are refused, and coordinates
    below 2**-480 count as zero (in a copy; the caller's array is never changed).
    """
    rows_at_once = max(1, _SCAN_ELEMENTS // max(1, matrix.shape[1]))
    bad: list[npt.NDArray[np.intp]] = []
    tiny = False
    for start in range(0, matrix.shape[0], rows_at_once):
        block = matrix[start : start + rows_at_once]
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            bad.append(np.flatnonzero(~finite) + (start + first_row))
        elif matrix.dtype == np.float64:
            magnitude = np.abs(block)
            if (magnitude > FLOAT64_LARGEST).any():
                row = int(np.flatnonzero((magnitude > FLOAT64_LARGEST).any(axis=1))[0])
                raise InvalidInputError(
                    f"{what} row {row + start + first_row} holds the magnitude "
                    f"{magnitude[row].max():.3g}, above the limit {FLOAT64_LARGEST:.3g}; rescale it"
                )
            tiny = tiny or bool(((magnitude < FLOAT64_SMALLEST) & (block != 0)).any())
    if bad:
        raise bad_rows_error(np.concatenate(bad), what)
    if tiny:
        return np.where(np.abs(matrix) < FLOAT64_SMALLEST, 0.0, matrix)
    return matrix
