"""Whether bytes are values of the type that was declared for them.

Bytes that are read as another type are numbers, too: of float32, float16 makes twice as many, some
of them NaN and most of absurd size. So the declared type is compared with others on a few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError

SAMPLE_ROWS = 64
DECLARABLE = ("float32", "float16", "float64")
# Types by how numpy calls them, the usual ones first; numpy has no bfloat16.
_BFLOAT16 = "bfloat16"
_TYPES = {np.dtype(name).newbyteorder("<").str: name for name in DECLARABLE}
_TYPES |= {np.dtype(name).newbyteorder(">").str: f"big-endian {name}" for name in DECLARABLE}
_TYPES |= {_BFLOAT16: _BFLOAT16}
# Values of one embedding are of similar size: the deviation of their logarithms (base 2) is 1.6 for
# normal values and less than 3 for heavy tails. Of bytes that are misread it is 4 to 80.
_LEAST_DEVIATION, _USUAL_DEVIATION, _MOST_DEVIATION = 0.1, 1.6, 3.5
_SMALLEST, _LARGEST = -20.0, 14.0
_LEAST_VALUES = 32


@dataclass(frozen=True)
class _Reading:
    """Rows of bytes as values of one type.

    Attributes
    ----------
    sizes
        Their logarithms, of the rows that are finite, NaN where a value is zero.
    deviation
        That of the sizes; infinite where no row is finite.
    """

    kind: str
    values: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.float64]
    deviation: float

    @classmethod
    def of(cls, rows: npt.NDArray[np.uint8], kind: str) -> _Reading:
        if kind == _BFLOAT16:
            values = (rows.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
        else:
            values = rows.view(kind).astype(np.float64)
        finite = np.abs(values[np.isfinite(values).all(1)])
        sizes = np.log2(finite, out=np.full(finite.shape, np.nan), where=finite > 0)
        return cls(kind, values, sizes, float(np.nanstd(sizes)) if np.any(finite) else np.inf)

    @property
    def width(self) -> int:
        return _width(self.kind)

    def is_likely(self) -> bool:
        """Whether the values may be embeddings."""
        return bool(
            self.deviation < _MOST_DEVIATION
            and _SMALLEST <= np.nanmedian(self.sizes) <= _LARGEST
            and all(_alike(self.sizes, step) for step in (2, 4) if self.width * step <= 8)
        )

    @property
    def as_list(self) -> str:
        """Python that makes numbers of the bytes `b` of a row."""
        if self.kind == _BFLOAT16:
            return "(numpy.frombuffer(b, '<u2').astype('<u4') << 16).view('<f4')"
        return f"numpy.frombuffer(b, '{self.kind}').astype('float32')"

    def __str__(self) -> str:
        finite = np.isfinite(self.values)
        some = np.abs(self.values[finite & (self.values != 0)])
        size = f" of size {some.min():.1g} to {some.max():.1g}" if some.size else ""
        lost = f", {(~finite).sum()} of {finite.size} not finite" if not finite.all() else ""
        return f"as {_TYPES[self.kind]} they are {self.values.shape[1]} values a row{size}{lost}"


def _width(kind: str) -> int:
    return 2 if kind == _BFLOAT16 else np.dtype(kind).itemsize


def _alike(sizes: npt.NDArray[np.float64], step: int) -> bool:
    """Whether every second (or fourth) column is like the others; parts of wider values are not."""
    if sizes.shape[1] % step:
        return True
    parts = [sizes[:, first::step] for first in range(step)]
    filled = [float(np.mean(~np.isnan(part))) for part in parts]
    if min(filled) <= max(filled) / 2:
        return False
    means = [float(np.nanmean(part)) for part in parts]
    deviations = [float(np.nanstd(part)) for part in parts]
    apart = max(means) - min(means) > _MOST_DEVIATION
    return not apart and max(deviations) <= 3 * min(deviations) + 0.3


def require_declared(file: str, column: str, values: Sequence[bytes], declared: str) -> None:
    """Refuse a declared type as which values are unlikely, while they are likely as another.

    Where both are, or neither, and of fewer than 32 values, the declaration is believed.

    Parameters
    ----------
    file, column
        For the message.
    values
        Rows of equally many bytes, of which the first 64 are looked at.
    declared
        "float16", "float32" or "float64".

    Raises
    ------
    InvalidInputError
        It names both types, how many values of which size they make, and what to do.
    """
    some = values[:SAMPLE_ROWS]
    rows = np.frombuffer(b"".join(some), np.uint8).reshape(len(some), -1)
    with np.errstate(all="ignore"):  # misread values overflow, and are NaN that signal
        own = _Reading.of(rows, np.dtype(declared).newbyteorder("<").str)
        if np.count_nonzero(own.values) < _LEAST_VALUES:
            return
        likely = own.is_likely()
        # Parts of wider values are not alike, but of one value, and its negative, they may be.
        clear = own.deviation > _LEAST_DEVIATION
        readings = [
            _Reading.of(rows, kind)
            for kind in _TYPES
            if (clear and _width(kind) < own.width if likely else kind != own.kind)
            and rows.shape[1] % _width(kind) == 0
        ]
        others = [reading for reading in readings if reading.is_likely()]
    if not others:
        return
    best = min(others, key=lambda found: (found.width, abs(found.deviation - _USUAL_DEVIATION)))
    remedy, written = "", best
    if (name := _TYPES[best.kind]) in DECLARABLE:
        remedy, written = f"declare --embedding-dtype {name}, or, if {declared} is right, ", own
    raise InvalidInputError(
        f"{file}: column {column!r} holds {rows.shape[1]} bytes a row: {own}, which was declared; "
        f"{best}. Therefore {remedy}write lists of numbers: import numpy, pandas; "
        f"t = pandas.read_parquet(old); t[{column!r}] = t[{column!r}].map(lambda b: "
        f"{written.as_list}); t.to_parquet(new)"
    )
