"""The rows of scores in a database: what a page asks for of ten million takes milliseconds.

It is made once of the Parquet files, kept in the cache under a name that says what it was made of,
and read only. Images are numbered by score, the highest first, so that a page of them is one read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.devices import usable_processors
from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    MissingDependencyError,
    install_line,
)
from bliss_index.report.groups import GroupedRows
from bliss_index.review.identical import IdenticalImages
from bliss_index.scoring.score_work import MANIFEST_NAME
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage.cache import cache_folder, checked_file
from bliss_index.storage.directory import content_sha256
from bliss_index.storage.files import make_directory, output_error
from bliss_index.store.schema import OK

_VERSION = 2
_MEMORY = "1GB"
_KEPT_WORDS = 8
_WORDS = 100

FLAGGED, UNFLAGGED, UNSCORED = "flagged", "unflagged", "unscored"
STATUSES = (FLAGGED, UNFLAGGED, UNSCORED)
SCORE, LOWEST, INPUT = "score", "lowest", "input"
ORDERS = (SCORE, LOWEST, INPUT)

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Filters:
    """Which images a view has, and in which order; None is for all.

    Attributes
    ----------
    group, nearest_class : str or None
        Name of a group, "" for images in none; name of the nearest class.
    status : str or None
        One of :data:`STATUSES`.
    least, most : float or None
        Anomaly scores from `least` on, and below `most`.
    text : str or None
        What keys contain, in any case.
    word : str or None
        An entry among the k of the image.
    pull : float or None
        What that entry adds to the score, at least.
    order : str
        One of :data:`ORDERS`.
    """

    group: str | None = None
    nearest_class: str | None = None
    status: str | None = None
    least: float | None = None
    most: float | None = None
    text: str | None = None
    word: str | None = None
    pull: float | None = None
    order: str = SCORE

    def __post_init__(self) -> None:
        for name, value, known in (
            ("status", self.status, STATUSES), ("order", self.order, ORDERS)
        ):  # fmt: skip
            if value is not None and value not in known:
                raise InvalidInputError(f"{name} {value!r} is not one of {', '.join(known)}")
        if self.pull is not None and self.word is None:
            raise InvalidInputError(f"a pull ({self.pull}) needs the word that pulls")


class Copies:
    """Images with copies: which is shown for each, and for how many it is.

    Parameters
    ----------
    rows : int
        Images in all.
    ids, leaders, sizes : (n,) int32 arrays
        Images with copies in order, the one that is shown for each, and how many these are.
    """

    def __init__(self, rows: int, ids: Ids, leaders: Ids, sizes: Ids) -> None:
        self._ids, self._leaders, self._sizes = ids, leaders, sizes
        self._shared = np.zeros(rows if ids.size else 0, dtype=bool)  # 1 byte a row
        self._shared[ids] = True

    def one_of_each(self, ids: Ids) -> Ids:
        """Return the images that are shown for some, each once, where it first comes."""
        if not self._ids.size:
            return ids
        places = np.flatnonzero(self._shared[ids])
        leaders = self._leaders[np.searchsorted(self._ids, ids[places])]
        _, first = np.unique(leaders, return_index=True)
        shown, kept = ids.copy(), np.ones(ids.size, dtype=bool)
        shown[places] = leaders
        kept[places] = False
        kept[places[first]] = True
        return shown[kept]

    def members_of(self, ids: Ids) -> Ids:
        """Return images with all their copies, in order."""
        if not self._ids.size:
            return np.unique(ids)
        shared = ids[self._shared[ids]]
        leaders = self._leaders[np.searchsorted(self._ids, shared)]
        mine = self._ids[np.isin(self._leaders, leaders)]
        return np.union1d(ids, mine).astype(np.int32)

    def size_of(self, ids: Ids) -> Ids:
        """Return for how many images each is shown."""
        sizes = np.ones(ids.size, np.int32)
        if self._ids.size:
            shared = self._shared[ids]
            sizes[shared] = self._sizes[np.searchsorted(self._ids, ids[shared])]
        return sizes


class Catalogue:
    """The images of a scores directory, numbered by score: 0 has the highest.

    Parameters
    ----------
    directory : ScoresDirectory
        Scores of a complete job.
    groups : GroupedRows or None
        Groups of the flagged images.
    identical : IdenticalImages or None
        Images that are shown as one, and those that calibrated.
    what : str, default=""
        What `identical` was made of, by which a kept database is found again.

    Raises
    ------
    MissingDependencyError
        DuckDB is not installed.
    CorruptStoreError
        The scores are damaged.
    OutputError
        The cache cannot be written.
    """

    def __init__(
        self,
        directory: ScoresDirectory,
        groups: GroupedRows | None = None,
        identical: IdenticalImages | None = None,
    ) -> None:
        self.directory = directory
        self.rows = directory.rows
        self.flags = directory.job.settings.get("threshold") is not None
        self.explained = bool(directory.job.settings.get("explain"))
        self.group_names = [] if groups is None else [one.name for one in groups.groups.groups]
        self._starts = np.cumsum([0, *(file.rows for file in directory.files)])
        self._checked: dict[int, Path] = {}
        self._words: OrderedDict[str, tuple[Ids, npt.NDArray[np.float32]]] = OrderedDict()
        path = self._path(groups, identical)
        if not path.is_file():
            self._make(path, groups, identical)
        self._database = _connect(path, read_only=True)
        found = self._columns("SELECT id, leader, size FROM copies ORDER BY id")
        self.copies = Copies(
            self.rows, *(found[name].astype(np.int32) for name in ("id", "leader", "size"))
        )

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _path(self, groups: GroupedRows | None, identical: IdenticalImages | None) -> Path:
        decides = {
            "version": _VERSION,
            "duckdb": _duckdb().__version__,
            "scores": content_sha256(self.directory.directory, MANIFEST_NAME),
            "groups": [] if groups is None else _digest(groups.rows, groups.numbers),
            "group names": self.group_names,
            "identical": None
            if identical is None
            else _digest(identical.rows, identical.first, identical.calibrated),
        }
        name = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
        self.name = name
        return cache_folder() / "review" / f"{name}.duckdb"

    def _make(
        self, path: Path, groups: GroupedRows | None, identical: IdenticalImages | None
    ) -> None:
        make_directory(path.parent)
        temporary = path.parent / f".bliss-{secrets.token_hex(8)}.tmp"
        try:
            with contextlib.closing(_connect(temporary)) as database:
                self._fill(database, groups, identical)
            os.replace(temporary, path)
        except OSError as error:
            raise output_error(path, error) from error
        finally:
            for left in (temporary, Path(f"{temporary}.wal")):
                left.unlink(missing_ok=True)

    def _fill(
        self, database: Any, groups: GroupedRows | None, identical: IdenticalImages | None
    ) -> None:
        none = np.empty(0, np.int64)
        known = None if identical is None else identical.calibrated
        tables = {
            "grouped": {"row": none, "number": none}
            if groups is None
            else {"row": groups.rows, "number": groups.numbers},
            "same": {"row": none, "first": none}
            if identical is None
            else {"row": identical.rows, "first": identical.first},
            "calibrated": {"row": none if known is None else known},
        }
        for name, columns in tables.items():
            database.register(name, pa.table(columns))
        flag = "flag" if self.flags else "CAST(NULL AS BOOLEAN)"
        database.execute(
            "CREATE TEMP TABLE staged (row BIGINT, key VARCHAR, score FLOAT, nearest VARCHAR, "
            "status VARCHAR, error VARCHAR, flag BOOLEAN)"
        )
        for start, file in self._files():
            try:
                database.execute(
                    "INSERT INTO staged SELECT file_row_number + ?, key, anomaly_score, "
                    f"nearest_class, status, error, {flag} "
                    "FROM read_parquet(?, file_row_number = true)",
                    [start, str(file)],
                )
            except _duckdb().Error as error:
                raise CorruptStoreError(f"{file} cannot be read: {error}") from error
        (found,) = database.execute("SELECT count(*) FROM staged").fetchone()
        if found != self.rows:
            raise CorruptStoreError(
                f"{self.directory.path} holds {found} rows, its manifest says {self.rows}"
            )
        database.execute(
            """CREATE TABLE images AS
            SELECT row, key, score, nearest, status, error, coalesce(flag, false) AS flag,
                coalesce(g.number, -1)::INTEGER AS number, s.first AS first,
                c.row IS NOT NULL AS calibrated
            FROM staged LEFT JOIN grouped g USING (row) LEFT JOIN same s USING (row)
                LEFT JOIN calibrated c USING (row)
            ORDER BY score DESC NULLS LAST, row"""
        )
        database.execute(
            """CREATE TABLE copies AS
            SELECT rowid AS id, min(rowid) OVER (PARTITION BY first) AS leader,
                count(*) OVER (PARTITION BY first) AS size
            FROM images WHERE first IS NOT NULL"""
        )
        database.execute("CREATE TABLE words (entry VARCHAR, images BIGINT, pull DOUBLE)")
        if self.explained and self.flags:
            database.execute(
                "INSERT INTO words SELECT entry, count(*), sum(pull) AS pull FROM "
                "(SELECT unnest(entries) AS entry, unnest(contributions) AS pull "
                "FROM read_parquet(?) WHERE flag) "
                f"GROUP BY entry ORDER BY 3 DESC, 1 LIMIT {_WORDS}",
                [[str(file) for _, file in self._files()]],
            )

    def _files(self) -> Iterator[tuple[int, Path]]:
        """First row and path of every file."""
        for part, start in enumerate(self._starts[:-1].tolist()):
            yield start, self._file(part)

    def _file(self, part: int) -> Path:
        """Path of a file; its content is compared with the manifest, once."""
        if part not in self._checked:
            file = self.directory.files[part]
            found = checked_file(self.directory.directory, file.file, file.sha256)
            self._checked[part] = found
        return self._checked[part]

    def _columns(self, query: str, values: Sequence[Any] = ()) -> dict[str, Any]:
        found: dict[str, Any] = self._database.cursor().execute(query, list(values)).fetchnumpy()
        return found

    def rows_of(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query; return its rows."""
        found: list[tuple[Any, ...]] = (
            self._database.cursor().execute(query, list(values)).fetchall()
        )
        return found

    def select(self, filters: Filters) -> Ids:
        """Return the numbers of all images of a view, in its order."""
        where, values = ["true"], list[Any]()

        def add(condition: str, *given: Any) -> None:
            where.append(condition)
            values.extend(given)

        if filters.group is not None:
            if filters.group and filters.group not in self.group_names:
                raise InvalidInputError(f"there is no group {filters.group!r}")
            add("number = ?", self.group_names.index(filters.group) if filters.group else -1)
        if filters.nearest_class is not None:
            add("nearest = ?", filters.nearest_class)
        if filters.status == UNSCORED:
            add("status <> ?", OK)
        elif filters.status is not None:
            add("status = ? AND flag = ?", OK, filters.status == FLAGGED)
        if filters.least is not None:
            add("score >= ?::FLOAT", filters.least)
        if filters.most is not None:
            add("score < ?::FLOAT", filters.most)
        if filters.text:
            add("contains(lower(key), lower(?))", filters.text)
        query = f"SELECT rowid FROM images WHERE {' AND '.join(where)}"
        ids: Ids = self._columns(query, values)["rowid"].astype(np.int32)
        if (ids[1:] < ids[:-1]).any():
            ids = np.sort(ids)
        if filters.word is not None:
            pulled, pulls = self.pulled_by(filters.word)
            if filters.pull is not None:
                pulled = pulled[pulls >= np.float32(filters.pull)]
            mask = np.zeros(self.rows, dtype=bool)
            mask[pulled] = True
            ids = ids[mask[ids]]
        if filters.order == INPUT:
            mask = np.zeros(self.rows, dtype=bool)
            mask[ids] = True
            return self._by_input[mask[self._by_input]]
        return ids[::-1] if filters.order == LOWEST else ids

    @cached_property
    def _by_input(self) -> Ids:
        """Numbers of all images, in the order of the input; 4 bytes a row."""
        found = self._columns("SELECT rowid AS id, row FROM images")
        ids = np.empty(self.rows, np.int32)
        ids[found["row"]] = found["id"]
        return ids

    def pulled_by(self, word: str) -> tuple[Ids, npt.NDArray[np.float32]]:
        """Return the images that have an entry among their k, and what it adds to each score.

        Raises
        ------
        InvalidInputError
            The scores have no entries.
        """
        if word in self._words:
            self._words.move_to_end(word)
            return self._words[word]
        if not self.explained:
            raise InvalidInputError(
                f"{self.directory.path} has no column 'entries'; score again with --explain"
            )
        rows, pulls = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for start, file in self._files():
            found = self._columns(
                "SELECT file_row_number AS row, contributions[list_position(entries, ?)] AS pull "
                "FROM read_parquet(?, file_row_number = true) WHERE list_contains(entries, ?)",
                [word, str(file), word],
            )
            rows.append(found["row"] + start)
            pulls.append(found["pull"].astype(np.float32))
        ids = self.ids_of("row", np.concatenate(rows))
        self._words[word] = ids, np.concatenate(pulls)
        while len(self._words) > _KEPT_WORDS:
            self._words.popitem(last=False)
        return self._words[word]

    def ids_of(self, column: str, values: Any) -> Ids:
        """Return the numbers of images by row or key, in the order given; -1 for none such.

        Of several rows with one key, that of the first.
        """
        with contextlib.closing(self._database.cursor()) as cursor:
            cursor.register("wanted", pa.table({"value": values, "place": np.arange(len(values))}))
            found = cursor.execute(
                f"SELECT place, min_by(i.rowid, i.row) AS id FROM wanted JOIN images i "
                f"ON i.{column} = value GROUP BY place"
            ).fetchnumpy()
        ids = np.full(len(values), -1, np.int32)
        ids[found["place"]] = found["id"]
        return ids

    def look_up(self, ids: Ids) -> list[dict[str, Any]]:
        """Return what is known of images, in the order given."""
        names = ("id", "row", "key", "score", "nearest", "status", "error", "flag", "number")
        with contextlib.closing(self._database.cursor()) as cursor:
            cursor.register("wanted", pa.table({"id": np.unique(ids)}))
            found = cursor.execute(
                f"SELECT rowid, {', '.join(names[1:])}, calibrated FROM images "
                "WHERE rowid IN (SELECT id FROM wanted)"
            ).fetchall()
        by_id = {row[0]: dict(zip((*names, "calibrated"), row, strict=True)) for row in found}
        return [by_id[image] for image in ids.tolist()]

    def scores_of(self, row: int) -> dict[str, Any]:
        """Return all columns of one row of the scores."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        file = self._file(part)
        with contextlib.closing(self._database.cursor()) as cursor:
            found = cursor.execute(
                "SELECT * EXCLUDE (file_row_number) FROM read_parquet(?, file_row_number = true) "
                "WHERE file_row_number = ?",
                [str(file), row - int(self._starts[part])],
            )
            names = [column[0] for column in found.description]
            return dict(zip(names, found.fetchone(), strict=True))

    def scores(self) -> npt.NDArray[np.float32]:
        """Return all anomaly scores, highest first."""
        query = "SELECT score FROM images WHERE score IS NOT NULL"
        found: npt.NDArray[np.float32] = self._columns(query)["score"]
        return -np.sort(-found)

    def flags_and_groups(self) -> tuple[npt.NDArray[np.bool_], Ids]:
        """Return whether each image is flagged, and the number of its group; -1 for none."""
        found = self._columns("SELECT rowid AS id, flag, number FROM images")
        flags, groups = np.zeros(self.rows, np.bool_), np.full(self.rows, -1, np.int32)
        flags[found["id"]], groups[found["id"]] = found["flag"], found["number"]
        return flags, groups

    def strongest_words(self) -> list[tuple[Any, ...]]:
        """Return the hundred entries that add most to the scores of flagged images.

        Returns
        -------
        list of (str, int, float)
            Entry, flagged images that have it among their k, and the sum of what it adds.
        """
        return self.rows_of("SELECT entry, images, pull FROM words ORDER BY pull DESC, entry")

    def keys_of(self, ids: Ids) -> list[str]:
        """Return the keys of images, in the order given."""
        with contextlib.closing(self._database.cursor()) as cursor:
            cursor.register("wanted", pa.table({"id": ids, "place": np.arange(len(ids))}))
            found = cursor.execute(
                "SELECT key FROM wanted JOIN images i ON i.rowid = id ORDER BY place"
            ).fetchall()
        return [key for (key,) in found]


def _connect(path: Path, *, read_only: bool = False) -> Any:
    config = {
        "memory_limit": _MEMORY,
        "temp_directory": str(path.parent / f".{path.name}.tmp"),
        "threads": usable_processors(),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    try:
        return _duckdb().connect(str(path), read_only=read_only, config=config)
    except _duckdb().Error as error:
        raise CorruptStoreError(
            f"{path} cannot be opened: {error}. It is a cache: remove it, and run the same command "
            "again"
        ) from error


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise MissingDependencyError(
            f"review needs DuckDB ({error}); {install_line('review')}"
        ) from error
    return duckdb


def _digest(*arrays: npt.NDArray[Any] | None) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{None if array is None else array.size}".encode())
        digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
