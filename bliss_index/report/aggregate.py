"""What a report says of all rows: counts, quantiles by class, the rows to show."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bliss_index.errors import CorruptStoreError
from bliss_index.scoring.scores_directory import SCORE_COLUMNS, ScoresDirectory
from bliss_index.store.schema import OK

_QUANTILES = (0.05, 0.5, 0.95)
_BORDER_QUANTILE = 0.99


@dataclass(frozen=True)
class ClassSummary:
    """Images whose nearest class is this one.

    Attributes
    ----------
    name, images, flagged
        The class, its images, and those among them at or above the threshold.
    low, median, high
        5 %, 50 % and 95 % quantiles of their anomaly scores.
    internal, external
        Means of the two parts.
    """

    name: str
    images: int
    flagged: int
    low: float
    median: float
    high: float
    internal: float
    external: float


@dataclass(frozen=True)
class BadRow:
    """A row without a score."""

    key: str
    status: str
    error: str


@dataclass(frozen=True, eq=False)
class Aggregate:
    """All rows of a scores directory, in 9 bytes a row and what is worth listing.

    Attributes
    ----------
    rows, status
        Rows in all, and by status.
    scores
        (n,) float32 anomaly scores in row order; NaN where there is none.
    nearest
        (n,) int32 position of the nearest class; -1 where there is none.
    classes
        Classes that are nearest to an image, most images first.
    bad
        The first rows without a score.
    threshold
        From which on images are flagged; None where the job had none.
    border
        The threshold, or the 99 % quantile of the scores where there is none; None without scores.
    flagged
        Images at or above the threshold; None without one.
    """

    rows: int
    status: dict[str, int]
    scores: npt.NDArray[np.float32]
    nearest: npt.NDArray[np.int32]
    classes: tuple[ClassSummary, ...]
    bad: tuple[BadRow, ...]
    threshold: float | None
    border: float | None
    flagged: int | None

    @property
    def scored(self) -> int:
        """Rows with a score."""
        return self.status.get(OK, 0)

    @property
    def known(self) -> npt.NDArray[np.float32]:
        """Scores that there are."""
        return self.scores[~np.isnan(self.scores)]

    def most_anomalous(self, count: int) -> list[int]:
        """Rows with the highest scores, highest first; of equal ones the first rows."""
        return first_of(np.where(np.isnan(self.scores), np.inf, -self.scores), count, self.scored)

    def borderline(self, count: int) -> list[int]:
        """Rows whose scores are nearest to the border, nearest first."""
        if self.border is None:
            return []
        distance = np.abs(self.scores.astype(np.float64) - self.border)
        return first_of(np.where(np.isnan(distance), np.inf, distance), count, self.scored)


def aggregate(directory: ScoresDirectory, most_bad: int) -> Aggregate:
    """Read a scores directory once, part by part.

    Parameters
    ----------
    directory
        Scores of a complete job.
    most_bad
        How many rows without a score to list.
    """
    threshold = directory.job.settings.get("threshold")
    position = {name: c for c, name in enumerate(directory.classes)}
    scores = np.full(directory.rows, np.nan, dtype=np.float32)
    nearest = np.full(directory.rows, -1, dtype=np.int32)
    status: Counter[str] = Counter()
    parts = np.zeros((2, len(position)))
    bad: list[BadRow] = []
    flags = None if threshold is None else np.zeros(directory.rows, dtype=bool)
    start = 0
    for table in directory.iter_tables((*SCORE_COLUMNS, *([] if flags is None else ["flag"]))):
        rows = slice(start, start + table.num_rows)
        start += table.num_rows
        scores[rows] = _floats(table, "anomaly_score")
        nearest[rows] = _positions(table, position, directory)
        if flags is not None:
            flags[rows] = pc.fill_null(table.column("flag"), False).to_numpy()
        good = nearest[rows] >= 0
        for number, name in enumerate(("internal_score", "external_score")):
            values = _floats(table, name)[good]
            parts[number] += np.bincount(nearest[rows][good], values, len(position))
        listed = table.column("status").to_pylist()
        status.update(listed)
        if len(bad) < most_bad and any(s != OK for s in listed):
            for row in np.flatnonzero(~good)[: most_bad - len(bad)].tolist():
                one = table.slice(row, 1).select(["key", "status", "error"]).to_pylist()[0]
                bad.append(BadRow(one["key"], one["status"], one["error"] or ""))
    known = scores[~np.isnan(scores)]
    border = threshold
    if border is None and known.size:
        border = float(np.quantile(known, _BORDER_QUANTILE))
    return Aggregate(
        directory.rows, dict(sorted(status.items())), scores, nearest,
        _classes(directory.classes, scores, nearest, parts, flags), tuple(bad), threshold,
        border, None if flags is None else int(flags.sum()),
    )  # fmt: skip


def read_rows(directory: ScoresDirectory, rows: list[int]) -> list[dict[str, Any]]:
    """Read some rows with all their columns, in the order given."""
    starts = np.cumsum([0, *(file.rows for file in directory.files)])
    found: dict[int, dict[str, Any]] = {}
    for part in np.unique(np.searchsorted(starts, rows, side="right") - 1).tolist():
        mine = [row for row in rows if starts[part] <= row < starts[part + 1]]
        table = directory.read(directory.files[part])
        for row, values in zip(
            mine, table.take([row - int(starts[part]) for row in mine]).to_pylist(), strict=True
        ):
            found[row] = values
    return [found[row] for row in rows]


def first_of(keys: npt.NDArray[Any], count: int, most: int) -> list[int]:
    """Positions of the smallest keys, smallest first, equal ones in order."""
    count = min(count, most)
    if count < 1:
        return []
    limit = np.partition(keys, count - 1)[count - 1]
    rows = np.flatnonzero(keys <= limit)
    return [int(row) for row in rows[np.argsort(keys[rows], kind="stable")][:count]]


def _classes(
    names: tuple[str, ...],
    scores: npt.NDArray[np.float32],
    nearest: npt.NDArray[np.int32],
    parts: npt.NDArray[np.float64],
    flags: npt.NDArray[np.bool_] | None,
) -> tuple[ClassSummary, ...]:
    order = np.argsort(nearest, kind="stable")
    bounds = np.searchsorted(nearest[order], np.arange(len(names) + 1))
    found = []
    for c, name in enumerate(names):
        rows = order[bounds[c] : bounds[c + 1]]
        own = scores[rows]
        if not own.size:
            continue
        low, median, high = (float(q) for q in np.quantile(own, _QUANTILES))
        flagged = 0 if flags is None else int(flags[rows].sum())
        internal, external = (parts[:, c] / own.size).tolist()
        found.append(ClassSummary(name, own.size, flagged, low, median, high, internal, external))
    return tuple(sorted(found, key=lambda summary: -summary.images))


def _floats(table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    return np.asarray(table.column(name).to_numpy(zero_copy_only=False), dtype=np.float32)


def _positions(
    table: pa.Table, position: dict[str, int], directory: ScoresDirectory
) -> npt.NDArray[np.int32]:
    column = table.column("nearest_class").combine_chunks().dictionary_encode()
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    names = column.dictionary.to_pylist()
    unknown = [name for name in names if name not in position]
    if unknown:
        raise CorruptStoreError(
            f"{directory.path} names a class {unknown[0]!r} that its job does not have"
        )
    of_code = np.array([*(position[name] for name in names), -1], dtype=np.int32)
    codes = column.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    return np.asarray(of_code[codes])
