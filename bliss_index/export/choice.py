"""Which images are dropped: flagged, from a threshold on, the highest, of groups, or as judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bliss_index.errors import InvalidInputError, listed
from bliss_index.report.aggregate import first_of
from bliss_index.report.groups import read_grouped_rows
from bliss_index.review.judgement_log import BELONGS, DOES_NOT_BELONG
from bliss_index.review.judgements import Judgements
from bliss_index.scoring.scores_directory import SCORE_COLUMNS, ScoresDirectory
from bliss_index.store.schema import DUPLICATE_KEY

KEEP, DROP, UNSCORED = "keep", "drop", "unscored"
DECISIONS = (KEEP, DROP, UNSCORED)
_BATCH_ROWS = 16384
_REASONS = 3


@dataclass(frozen=True)
class Choice:
    """Which images are dropped; every other image with a score is kept.

    Attributes
    ----------
    threshold : float, default=None
        Those from this anomaly score on.
    top : int, default=None
        So many with the highest scores; of equal ones the first rows.
    groups : tuple of str, default=()
        Only those in groups of these names, as ``bliss-index groups`` found them; not with `top`.
    groups_file : str, default=None
        The file that it wrote; it adds the column ``group`` to the lists.

    judgements : str, default=None
        Folder of the logs of ``bliss-index review``. An image that was judged is kept or dropped as
        it was judged, whatever else is chosen; it adds the column ``judgement`` to the lists. Those
        that were skipped or are disputed are decided like the others.

    Without a threshold and a number those are dropped that the scores flag; with groups those that
    the file has.
    """

    threshold: float | None = None
    top: int | None = None
    groups: tuple[str, ...] = ()
    groups_file: str | None = None
    judgements: str | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and self.top is not None:
            raise InvalidInputError(
                f"give either a threshold ({self.threshold}) or a number ({self.top}), not both"
            )
        if self.top is not None and self.top < 0:
            raise InvalidInputError(f"top must be at least 0, got {self.top}")
        if self.threshold is not None and self.threshold != self.threshold:
            raise InvalidInputError("threshold must be a number, got NaN")
        if self.groups and self.groups_file is None:
            raise InvalidInputError(
                f"groups {listed(self.groups)} need the file that says which images they have: "
                "--groups FILE, made by 'bliss-index groups --out FILE'"
            )
        if self.groups and self.top is not None:
            raise InvalidInputError("give either groups or a number, not both")


@dataclass(frozen=True, eq=False)
class DecidedRows:
    """Some rows of the scores, in their order, with what was decided.

    Attributes
    ----------
    table : Table
        ``key, decision, anomaly_score, nearest_class, status, error, group, judgement, reasons``.
    decision : (n,) array of str
        The column ``decision``.
    judgement : (n,) array of str
        What people said of each image; "" where nobody did.
    """

    table: pa.Table
    decision: npt.NDArray[Any]
    judgement: npt.NDArray[Any]


def decide(directory: ScoresDirectory, choice: Choice) -> Iterator[DecidedRows]:
    """Decide on every row, part by part.

    Memory is that of a part, 12 bytes for each image in a group, and 5 bytes a row for a number.

    Raises
    ------
    InvalidInputError
        The scores have no flags and nothing else was given, or a group is not among the groups.
    StoreError
        The groups are those of other scores.
    """
    settings = directory.job.settings
    flagless = settings.get("threshold") is None
    given = (choice.threshold, choice.top, choice.groups or None, choice.judgements)
    if all(one is None for one in given) and flagless:
        raise InvalidInputError(
            f"{directory.path} has no flags; say what to drop: --threshold NUMBER, --top N, or "
            "--group NAME with --groups FILE, or --judgements FOLDER"
        )
    file = choice.groups_file
    grouped = None if file is None else _GroupedRows.read(file, choice.groups, directory)
    said = None if choice.judgements is None else Judgements.read(choice.judgements).verdicts
    highest = None if choice.top is None else _highest(directory, choice.top)
    columns = [*SCORE_COLUMNS, *([] if flagless else ["flag"])]
    if settings.get("explain"):
        columns += ["entries", "contributions"]
    start = 0
    for part in directory.iter_tables(columns):
        for offset in range(0, part.num_rows, _BATCH_ROWS):
            table = part.slice(offset, _BATCH_ROWS)
            first = start + offset
            scored = table.column("anomaly_score").is_valid().to_numpy()
            if highest is not None:
                dropped = highest[first : first + table.num_rows]
            elif choice.threshold is not None:
                # As float32, as scores are kept: one that is read off a list includes its row.
                limit = pa.scalar(choice.threshold, pa.float32())
                above = pc.greater_equal(table.column("anomaly_score"), limit)
                dropped = pc.fill_null(above, False).to_numpy()
            elif choice.groups:
                dropped = scored
            elif flagless:
                dropped = np.zeros(table.num_rows, dtype=bool)
            else:
                dropped = pc.fill_null(table.column("flag"), False).to_numpy()
            group = None if grouped is None else grouped.of(first, table.num_rows)
            if grouped is not None and choice.groups:
                dropped = dropped & grouped.chosen[first : first + table.num_rows]
            decision = np.where(~scored, UNSCORED, np.where(dropped, DROP, KEEP))
            judgement = _judgement(table, said)
            decision[judgement == BELONGS] = KEEP
            decision[judgement == DOES_NOT_BELONG] = DROP
            listed_rows = _listed(table, decision, group, judgement)
            yield DecidedRows(listed_rows, decision, judgement)
        start += part.num_rows


def _judgement(table: pa.Table, said: Mapping[str, str] | None) -> npt.NDArray[Any]:
    """What people said of every row; of several with one key, of the first."""
    if not said:
        return np.full(table.num_rows, "", dtype=object)
    columns = (table.column(name).to_pylist() for name in ("key", "status"))
    rows = zip(*columns, strict=True)
    found = ["" if status == DUPLICATE_KEY else said.get(key, "") for key, status in rows]
    return np.array(found, dtype=object)


def _listed(
    table: pa.Table,
    decision: npt.NDArray[Any],
    group: pa.Array | None,
    judgement: npt.NDArray[Any],
) -> pa.Table:
    """The columns of the lists; reasons are those of dropped images only."""
    rows = table.num_rows
    reasons: list[str | None] = [None] * rows
    some = np.flatnonzero(decision == DROP)
    for row, found in zip(some.tolist(), _reasons(table.take(some)), strict=True):
        judged = judgement[row] == DOES_NOT_BELONG
        reasons[row] = f"judged not to belong; {found}" if judged else found
    return pa.table(
        {
            "key": table.column("key"),
            "decision": pa.array(decision.tolist(), pa.string()),
            "anomaly_score": table.column("anomaly_score"),
            "nearest_class": table.column("nearest_class"),
            "status": table.column("status"),
            "error": table.column("error"),
            "group": pa.nulls(rows, pa.string()) if group is None else group,
            "judgement": pa.array([one or None for one in judgement.tolist()], pa.string()),
            "reasons": pa.array(reasons, pa.string()),
        }
    )


def _reasons(table: pa.Table) -> Iterator[str]:
    """Say what made scores: the entries that pulled most, or the two parts of the score."""
    if "entries" not in table.column_names:
        columns = (table.column(name).to_pylist() for name in ("internal_score", "external_score"))
        for internal, external in zip(*columns, strict=True):
            if internal is None:
                yield "no score"
                continue
            yield f"internal {internal:+.3f}, external {external:+.3f}"
        return
    columns = (table.column(name).to_pylist() for name in ("entries", "contributions"))
    for entries, pulls in zip(*columns, strict=True):
        if entries is None:
            yield "no score"
            continue
        pairs = sorted(zip(entries, pulls, strict=True), key=lambda pair: -abs(pair[1]))
        yield ", ".join(f"{text} {pull:+.3f}" for text, pull in pairs[:_REASONS])


def _highest(directory: ScoresDirectory, count: int) -> npt.NDArray[np.bool_]:
    """Which rows have the highest scores."""
    scores = np.full(directory.rows, np.nan, dtype=np.float32)
    start = 0
    for table in directory.iter_tables(["anomaly_score"]):
        column = table.column("anomaly_score").to_numpy(zero_copy_only=False)
        scores[start : start + table.num_rows] = column
        start += table.num_rows
    scored = int((~np.isnan(scores)).sum())
    chosen = np.zeros(directory.rows, dtype=bool)
    chosen[first_of(np.where(np.isnan(scores), np.inf, -scores), count, scored)] = True
    return chosen


@dataclass(frozen=True, eq=False)
class _GroupedRows:
    """Rows that are in groups, in order, with the numbers of their groups."""

    rows: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int32]
    names: pa.Array
    chosen: npt.NDArray[np.bool_]

    @classmethod
    def read(cls, file: str, chosen: tuple[str, ...], directory: ScoresDirectory) -> _GroupedRows:
        found = read_grouped_rows(file, directory)
        names = [group.name for group in found.groups.groups]
        unknown = sorted(set(chosen) - set(names))
        if unknown:
            raise InvalidInputError(
                f"{file} has no group {listed(list(map(repr, unknown)))}; it has {listed(names)}"
            )
        mask = np.zeros(directory.rows, dtype=bool)
        wanted = [number for number, name in enumerate(names) if name in chosen]
        mask[found.rows[np.isin(found.numbers, wanted)]] = True
        return cls(found.rows, found.numbers, pa.array(names, pa.string()), mask)

    def of(self, first: int, count: int) -> pa.Array:
        """Names of the groups of some rows; null where a row is in none."""
        begin, end = np.searchsorted(self.rows, [first, first + count])
        codes = np.full(count, -1, dtype=np.int64)
        codes[self.rows[begin:end] - first] = self.numbers[begin:end]
        return self.names.take(pa.array(codes, pa.int64(), mask=codes < 0))
