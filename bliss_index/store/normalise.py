"""Unit-norm rows out of whatever embeddings come in, and a reason for each row that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.store.schema import NONFINITE_EMBEDDING, OK, ZERO_EMBEDDING

# How far the norm of a rounded unit vector may lie from 1, with room to spare.
NORM_TOLERANCE = {"float16": 1e-3, "float32": 1e-5, "float64": 1e-5}
_BLOCK_VALUES = 1 << 20
CHECK_BYTES = 5 * 8 * _BLOCK_VALUES
"""Bytes that checking and normalising takes besides the rows."""
_REASONS = {
    ZERO_EMBEDDING: "the embedding is zero",
    NONFINITE_EMBEDDING: "the embedding holds NaN or infinity",
}


def unit_rows(
    matrix: npt.NDArray[Any], dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.object_]]:
    """Normalise rows and convert them to the storage type.

    Rows whose norm already is 1, within the rounding of both types, are kept as they are; others
    are divided by their norm in float64. Rows without a direction become zero.

    Parameters
    ----------
    matrix
        (n, d) of any floating-point type.
    dtype
        "float16" or "float32".

    Returns
    -------
    (n, d) rows of type `dtype`, and (n,) statuses: "ok", "zero_embedding" or
    "nonfinite_embedding".
    """
    n, dim = matrix.shape
    rows = np.zeros((n, dim), dtype=dtype)
    status = np.full(n, OK, dtype=object)
    given, wanted = matrix.dtype.name, NORM_TOLERANCE[dtype]
    tolerance = min(NORM_TOLERANCE.get(given, NORM_TOLERANCE["float32"]), wanted)
    if given != dtype:  # room for the rounding that follows
        tolerance *= 0.9
    step = max(1, _BLOCK_VALUES // max(1, dim))
    for start in range(0, n, step):
        block = matrix[start : start + step].astype(np.float64)
        finite = np.isfinite(block).all(axis=1)
        block[~finite] = 0.0
        # Scaled by its largest coordinate first, no finite row's norm over- or underflows.
        largest = np.abs(block).max(axis=1, initial=0.0)
        usable = largest > 0
        scaled = block / np.where(usable, largest, 1.0)[:, None]
        norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
        unit = scaled / np.where(usable, norms, 1.0)[:, None]
        with np.errstate(over="ignore"):
            kept = usable & (np.abs(norms * largest - 1) <= tolerance)
        unit[kept] = block[kept]
        rows[start : start + step] = unit
        part = status[start : start + step]
        part[~usable] = ZERO_EMBEDDING
        part[~finite] = NONFINITE_EMBEDDING
    return rows, status


def reasons_of(status: npt.NDArray[np.object_]) -> list[str | None]:
    """Say in words, for each of the statuses of :func:`unit_rows`, what is wrong; None if "ok"."""
    return [_REASONS.get(code) for code in status]


def norm_defects(matrix: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the rows whose norm is not 1 within the rounding of their type, or not finite."""
    tolerance = NORM_TOLERANCE[matrix.dtype.name]
    step = max(1, _BLOCK_VALUES // max(1, matrix.shape[1]))
    found = []
    for start in range(0, matrix.shape[0], step):
        block = matrix[start : start + step].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("ij,ij->i", block, block))
            found.append(start + np.flatnonzero(~(np.abs(norms - 1) <= tolerance)))
    return np.concatenate(found) if found else np.empty(0, dtype=np.intp)
