"""Validation of the arrays that enter a search."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError, listed
from bliss_index.search.certificate.ordering import to_float32
from bliss_index.search.sharded import Matrix, ShardedRows

if TYPE_CHECKING:
    import torch

FLOAT64_LARGEST = 2.0**480
FLOAT64_SMALLEST = 2.0**-480
MAX_K = 2048
MAX_TILE = 2**30
_SCAN_ELEMENTS = 1 << 22
_SCAN_BYTES = 1 << 19


def search_in_chunks(
    queries: npt.ArrayLike,
    dim: int,
    k: int,
    at_once: int,
    find: Callable[[npt.NDArray[Any], int], tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Search queries a chunk after another: similarities (n, k) float32 and ids (n, k).

    Parameters
    ----------
    queries
        (n, dim) float16, float32 or float64.
    dim, k
        Of the search.
    at_once
        Rows of a chunk.
    find
        Given a chunk and its first row's number, returns float64 values and ids.

    Raises
    ------
    InvalidInputError
        The queries are no such matrix; or what `find` raises.
    """
    rows = as_matrix(queries, "queries")
    require_dim(rows, dim, "queries")
    similarities = np.empty((rows.shape[0], k), dtype=np.float32)
    ids = np.empty((rows.shape[0], k), dtype=np.int64)
    for start in range(0, rows.shape[0], at_once):
        chunk = slice(start, start + at_once)
        values, ids[chunk] = find(rows[chunk], start)
        similarities[chunk] = to_float32(values)
    return similarities, ids


def as_matrix(array: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """Return ``array`` as a C-contiguous float16, float32 or float64 matrix of native byte order.

    Tensors of torch are read where they are on the CPU, whether or not they have a gradient;
    bfloat16 numbers become float32, which holds all of them.

    Raises
    ------
    InvalidInputError
        The array is not two-dimensional or not of one of the three types; the message names both.
        Or it is a tensor or masked array whose values cannot be read as they are.
    """
    matrix = as_array(array, what)
    if matrix.dtype.kind in "OU" and matrix.ndim == 0:
        raise InvalidInputError(
            f"{what} must be a matrix (rows, dim), got {type(array).__name__}; of a store, give "
            "EmbeddingStore.open(path).embeddings()"
        )
    if matrix.ndim != 2:
        raise InvalidInputError(
            f"{what} must be a matrix (rows, dim), got an array of shape {matrix.shape}"
        )
    if matrix.dtype.kind == "O" and len(matrix):
        for name, cell in zip(column_names(array) or (), matrix[0], strict=False):
            if isinstance(cell, list | np.ndarray):
                raise InvalidInputError(
                    f"{what} is a table whose column {name!r} holds lists, which are read as a "
                    f"matrix alone: give numpy.stack({what}[{name!r}].to_numpy())"
                )
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize not in (2, 4, 8):
        raise InvalidInputError(
            f"{what} must be float16, float32 or float64, got {matrix.dtype}; convert it first"
        )
    return np.ascontiguousarray(matrix, dtype=matrix.dtype.newbyteorder("="))


def as_array(values: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """Return ``values`` as an array, sharing its memory where possible.

    Raises
    ------
    InvalidInputError
        It is a masked array with masked values, a sparse tensor, a tensor on another device than
        the CPU, or cannot be read as an array at all.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, getattr(torch, "Tensor", ())):
        return _array_of_tensor(values, what)
    if isinstance(values, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(values).sum())
        if masked:
            raise InvalidInputError(
                f"{what} hold {masked} masked values; fill them, or leave these rows out"
            )
        return np.asarray(values.data)
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"{what} of type {type(values).__name__} cannot be read as an array: {error}"
        ) from error


def _array_of_tensor(tensor: Any, what: str) -> npt.NDArray[Any]:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else f"sparse ({tensor.layout})"
        raise InvalidInputError(
            f"{what} are a {kind} tensor; give dense numbers, such as tensor.to_dense()"
        )
    if tensor.device.type != "cpu":
        raise InvalidInputError(
            f"{what} are a tensor on {tensor.device}; give tensor.cpu(), or search tensors on a "
            "GPU with search_tensors"
        )
    plain = tensor.detach()
    try:
        return np.asarray((plain.float() if plain.dtype == torch.bfloat16 else plain).numpy())
    except (TypeError, RuntimeError) as error:
        raise InvalidInputError(
            f"{what} are a tensor of {tensor.dtype} that cannot be read as an array: {error}"
        ) from error


def as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a CPU tensor on the memory of an array, also of one that must not be written.

    ``torch.from_numpy`` warns of arrays that are read-only, as mapped files are. Nobody here writes
    to what came from a caller, and filters of warnings belong to the whole process.
    """
    import torch

    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))


class _Writable:
    """The memory of an array, said to be writable."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array  # kept alive by whoever uses the memory
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def column_names(values: object) -> tuple[Any, ...] | None:
    """Names of a table's columns (pandas, polars, Arrow); None for anything without names."""
    names = getattr(values, "column_names", None)  # Arrow: its `columns` are the data
    if names is None:
        names = getattr(values, "columns", None)
    if names is None or isinstance(values, np.ndarray):
        return None
    try:
        return tuple(names)
    except TypeError:
        return None


def require_same_order(
    names: Sequence[Any] | None, others: Sequence[Any] | None, what: str, other: str
) -> None:
    """Raise InvalidInputError if two tables have the same columns in another order.

    A coordinate is told by its place, so one of the two would be read wrongly.
    """
    if names is None or others is None or tuple(names) == tuple(others):
        return
    if len(names) == len(others) and set(names) == set(others):
        at = next(i for i, pair in enumerate(zip(names, others, strict=True)) if len(set(pair)) > 1)
        raise InvalidInputError(
            f"{what} has the columns of {other} in another order: column {at} is {names[at]!r}, "
            f"there it is {others[at]!r}; select the columns in that order"
        )


def require_real(
    value: object, name: str, rule: str, within: Callable[[float], bool] = lambda _: True
) -> float:
    """Return a number as a float; raise InvalidInputError, with the rule, for anything else.

    NaN and booleans are no numbers here, and ``within`` says of others whether they obey the rule.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if not math.isnan(number) and within(number):
            return number
    raise InvalidInputError(f"{name} must {rule}, got {value!r}")


def require_tile(tile: object, least: int) -> tuple[int, int] | None:
    """Return a tile of two whole numbers, at least ``least``; raise InvalidInputError otherwise."""
    if tile is None:
        return None
    if isinstance(tile, (tuple, list)) and len(tile) == 2:
        whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in tile)
        if whole and all(least <= n <= MAX_TILE for n in tile):
            return int(tile[0]), int(tile[1])
    raise InvalidInputError(
        f"tile must be two whole numbers from {least} to {MAX_TILE}, got {tile!r}"
    )


def require_dim(matrix: npt.NDArray[Any], dim: int, what: str) -> None:
    """Raise InvalidInputError, naming both, unless rows of ``matrix`` have ``dim`` coordinates."""
    if matrix.shape[1] != dim:
        raise InvalidInputError(
            f"{what} have dimension {matrix.shape[1]}, the vocabulary has dimension {dim}; "
            "were they encoded by the same model?"
        )


def require_tensor(queries: torch.Tensor, dim: int, device: torch.device) -> None:
    """Raise InvalidInputError unless a tensor is (n, ``dim``), of floats, and on ``device``."""
    torch = sys.modules["torch"]  # whoever has a tensor has imported it
    if not isinstance(queries, torch.Tensor) or queries.layout != torch.strided:
        given = getattr(queries, "layout", type(queries).__name__)
        raise InvalidInputError(f"queries must be a dense torch tensor, got {given}")
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


def require_effort(effort: Any, most: int, name: str | None) -> int:
    """Return the effort of an approximate search; raise InvalidInputError out of 1 to `most`."""
    if not isinstance(effort, (int, np.integer)) or not 1 <= effort <= most:
        raise InvalidInputError(f"{name} must be an integer between 1 and {most}, got {effort!r}")
    return int(effort)


def largest_magnitude(matrix: npt.NDArray[Any]) -> float:
    """Largest magnitude in a matrix of floats; 0.0 if it is empty. Makes no copy of it.

    Where it holds infinity or NaN, the result is one of these.
    """
    # Without their sign, bit patterns of floats order as magnitudes do, NaN above infinity. Whole
    # numbers are compared many times faster than float16.
    words = matrix.view(f"u{matrix.itemsize}")
    magnitude = words.dtype.type(np.iinfo(words.dtype).max >> 1)
    rows_at_once = max(1, _SCAN_BYTES // max(1, matrix.itemsize * matrix.shape[1]))
    largest = words.dtype.type(0)
    for start in range(0, matrix.shape[0], rows_at_once):  # in pieces, so that Ctrl-C is heard
        block = words[start : start + rows_at_once] & magnitude
        largest = max(largest, block.max(initial=0))
    return float(np.asarray([largest]).view(matrix.dtype)[0])


def bad_rows_error(rows: npt.ArrayLike, what: str) -> InvalidInputError:
    """Build the error for rows that hold NaN or infinity."""
    return InvalidInputError(
        f"{what} hold NaN or infinity in row(s) {listed(np.asarray(rows).tolist())}; remove or "
        "quarantine these rows"
    )


def checked_entries(matrix: Matrix) -> Matrix:
    """Return a vocabulary whose rows :func:`checked_rows` has seen, those of shards, too."""
    what = "vocabulary entries"
    if not isinstance(matrix, ShardedRows):
        return checked_rows(matrix, what)
    return matrix.changed(lambda shard, start: checked_rows(shard, what, start))


def checked_rows(matrix: npt.NDArray[Any], what: str, first_row: int = 0) -> npt.NDArray[Any]:
    """Return ``matrix`` after checking that all values are finite and safe in float64.

    Inner products of float16 and float32 vectors can neither overflow nor underflow in float64.
    For float64 vectors this is made true: magnitudes beyond 2**480 are refused, and coordinates
    below 2**-480 count as zero (in a copy; the caller's array is never changed).
    """
    if matrix.dtype != np.float64 and math.isfinite(largest_magnitude(matrix)):
        return matrix
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
