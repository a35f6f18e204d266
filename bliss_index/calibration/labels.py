"""Labels of images: which class each belongs to, by row or by key."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError, listed
from bliss_index.store import EmbeddingStore
from bliss_index.store.columns import Column, read_column, without_blank_end
from bliss_index.store.keys import key_meaning
from bliss_index.store.source_file import natural
from bliss_index.vocabulary import clean_entry

LABEL_COLUMNS = ("label", "class", "anomaly", "y", "target")
ANOMALY_COLUMNS = ("anomaly", "label", "class", "y", "target")
NO_CLASS = -1
FOLDERS = "folders"
"""Stands for a file of labels: they are the first folders of the keys."""


@dataclass(frozen=True)
class Labels:
    """A label for every row of a store, or for every key.

    Attributes
    ----------
    path
        Where they were read.
    values
        Numbers, or names; None where a label is missing.
    keys
        Keys of the rows they belong to; None for row order.
    """

    path: str
    values: tuple[Any, ...]
    keys: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: str | Path, columns: Sequence[str] = LABEL_COLUMNS) -> Labels:
        """Read ``.npy``, ``.txt``, ``.csv``, ``.tsv`` or ``.parquet``.

        In a table the labels are in the first of `columns` that it has, or in the only one besides
        'key'. Text that consists of whole numbers only is read as numbers, and
        so are the whole numbers that a table keeps as 1.0; empty text and NaN are missing labels.

        Raises
        ------
        InvalidInputError
            The file cannot be read, has no such column, or has a key twice.
        """
        column = read_column(path, columns)
        keys = None if column.keys is None else tuple(column.keys)
        if keys is not None and len(set(keys)) != len(keys):
            twice = Counter(keys).most_common(1)[0][0]
            raise InvalidInputError(f"{path} has key {twice!r} more than once")
        values = (_whole_or_missing(label) for label in _numbers_if_all(column))
        return cls(str(path), tuple(values), keys)

    @classmethod
    def open(cls, source: str | Path | None, store: EmbeddingStore) -> Labels | None:
        """Read a file, or take the folders of a store's keys.

        Parameters
        ----------
        source : path, "folders" or None
            "folders" stands for :meth:`of_folders`; None for no labels.
        store : EmbeddingStore
            Of the images.
        """
        if source is None:
            return None
        return cls.of_folders(store) if source == FOLDERS else cls.read(source)

    @classmethod
    def of_folders(cls, store: EmbeddingStore) -> Labels:
        """Label every row with the first folder of its key; a key without folder has no label.

        Raises
        ------
        InvalidInputError
            No key has a folder.
        """
        folders = folder_names(key for shard in store.iter_shards() for key in shard.keys)
        if not any(folders):
            raise InvalidInputError(
                f"none of the {store.rows} keys of {store.path} has a folder, such as 'cat' in "
                "'cat/0001.jpg'; give a file of labels"
            )
        return cls(FOLDERS, tuple(folders))

    @property
    def names(self) -> tuple[Any, ...]:
        """The different labels, in order."""
        return tuple(sorted(set(self.values) - {None}))

    def of_rows(self, keys_of: Callable[[], Iterable[Sequence[str]]], rows: int) -> list[Any]:
        """Return a label for every row; None where there is none for its key.

        Parameters
        ----------
        keys_of
            Gives the keys of all rows, shard by shard. It is called again where keys are written
            otherwise than in the labels, so that never all keys are in memory.
        rows
            Their number.

        Raises
        ------
        InvalidInputError
            There is not one label a row, or a label's key is not among the rows, or among those
            of several shards.
        """
        if self.keys is None:
            values = list(self.values)
            without_blank_end(values, rows, (None, ""))
            if len(values) != rows:
                header = ""
                if len(values) == rows - 1 and self.path.endswith((".csv", ".tsv")):
                    header = " (the first line was taken for the columns' names)"
                raise InvalidInputError(
                    f"{self.path} holds {len(values)} labels{header}, there are {rows} rows; "
                    "give one label per row, or a column 'key' that says which row each belongs to"
                )
            self._require_one_order(keys_of, values)
            return values
        by_key = dict(zip(self.keys, self.values, strict=True))
        found: list[Any] = []
        place: dict[str, int] = {}  # of the labels that have a row: the shard
        for shard, keys in enumerate(keys_of()):
            for key in keys:
                if place.get(key, shard) != shard:
                    raise self._in_two_shards(key, place[key], shard)
                found.append(None if key in place else by_key.get(key))
                if key in by_key:
                    place[key] = shard
        missing = by_key.keys() - place.keys()
        for row, key in self._written_otherwise(missing, by_key, keys_of) if missing else ():
            found[row] = by_key[key]
            missing.discard(key)
        if missing:
            unknown = [key for key in by_key if key in missing]
            raise InvalidInputError(
                f"{self.path} has {len(unknown)} keys that no row has, the first is {unknown[0]!r}"
                f"{_nearest(unknown[0], keys_of)}"
            )
        return found

    def _in_two_shards(self, key: str, one: int, other: int) -> InvalidInputError:
        return InvalidInputError(
            f"{self.path} has a label for {key!r}, of which shards {one} and {other} both have a "
            "row; give one label per row instead, without 'key'"
        )

    def _require_one_order(
        self, keys_of: Callable[[], Iterable[Sequence[str]]], values: list[Any]
    ) -> None:
        """Refuse rows in the order of letters whose labels would be others in that of numbers."""
        ordered = same = True
        for key, following in pairwise(chain.from_iterable(keys_of())):
            if key > following:
                ordered = False
                break
            same = same and natural(key) <= natural(following)
        if same or not ordered:
            return
        keys = list(chain.from_iterable(keys_of()))
        by_number = sorted(range(len(keys)), key=lambda row: natural(keys[row]))
        for row, number in enumerate(by_number):
            if values[row] != values[number]:
                raise InvalidInputError(
                    f"{self.path} gives labels in row order, and the rows are in the order of "
                    f"letters, where {keys[row]!r} is row {row}; in the order of numbers that is "
                    f"{keys[number]!r}, with another label. Give a column 'key' that says which "
                    "row each belongs to"
                )

    def _written_otherwise(
        self,
        missing: Set[str],
        known: Container[str],
        keys_of: Callable[[], Iterable[Sequence[str]]],
    ) -> Iterator[tuple[int, str]]:
        """Rows of which one alone has the key of a label in another way of writing, and which."""
        means: dict[str, list[str]] = {}
        for key in missing:
            means.setdefault(key_meaning(key), []).append(key)
        place: dict[str, tuple[int, int, str] | None] = {}
        row = -1
        for shard, keys in enumerate(keys_of()):
            for row_key in keys:
                row += 1
                labels = () if row_key in known else means.get(key_meaning(row_key), ())
                if len(labels) != 1:
                    continue
                (label,) = labels
                before = place.setdefault(label, (row, shard, row_key))
                if before is not None and before[2] != row_key:
                    place[label] = None
                elif before is not None and before[1] != shard:
                    raise self._in_two_shards(row_key, before[1], shard)
        return ((at[0], label) for label, at in place.items() if at is not None)


def _nearest(key: str, keys_of: Callable[[], Iterable[Sequence[str]]]) -> str:
    """The key of a row that ends as one of a label does, for a message."""
    name = key_meaning(key).rpartition("/")[2]
    for row_key in chain.from_iterable(keys_of()):
        if key_meaning(row_key).rpartition("/")[2] in (name, name.partition(".")[0]):
            return f"; a row's key is {row_key!r}"
    first = next(chain.from_iterable(keys_of()), None)
    return "" if first is None else f"; the first row's key is {first!r}"


def folder_names(keys: Iterable[str]) -> list[str | None]:
    """Return the first folder of every key, cleaned as names of classes are; None without one."""
    return [clean_entry(key.partition("/")[0]) or None if "/" in key else None for key in keys]


class ClassNames:
    """Finds classes by name.

    Names are taken as they are, else as :func:`bliss_index.vocabulary.clean_entry` writes them: a
    vocabulary's names are cleaned when they are read, and the same name may be written with
    combined letters elsewhere, as macOS does in file names.

    Parameters
    ----------
    names
        C names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._number = {name: number for number, name in enumerate(names)}
        for number, name in enumerate(names):
            self._number.setdefault(clean_entry(name), number)

    def position(self, name: str) -> int | None:
        """Return a class's number; None if there is no such class."""
        number = self._number.get(name)
        return self._number.get(clean_entry(name)) if number is None else number


@dataclass(frozen=True, eq=False)
class ClassNumbers:
    """Class numbers of all rows, and what was left out.

    Attributes
    ----------
    numbers
        (rows,) int64, 0..C-1, or -1 for rows of no class.
    other
        Labels that are no class, with the number of their rows.
    unlabelled
        Rows without a label.
    """

    numbers: npt.NDArray[np.int64]
    other: dict[str, int]
    unlabelled: int


def class_numbers(labels: Labels, store: EmbeddingStore, classes: Sequence[str]) -> ClassNumbers:
    """Turn labels into class numbers.

    Names are looked up among the classes; rows with other names are left out, and counted. Numbers
    are class numbers, and -1 leaves a row out.

    Raises
    ------
    InvalidInputError
        A number is out of range, or none of the names is one of the classes.
    """
    given = labels.of_rows(lambda: (shard.keys for shard in store.iter_shards()), store.rows)
    names = ClassNames(classes)
    different = set(given) - {None}
    position = {label: names.position(str(label)) for label in different}
    are_numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in different)
    by_number = are_numbers and all(found is None for found in position.values())
    numbers = np.full(store.rows, NO_CLASS, dtype=np.int64)
    other: dict[str, int] = {}
    unlabelled = 0
    for row, label in enumerate(given):
        if label is None:
            unlabelled += 1
        elif by_number:
            if not NO_CLASS <= label < len(classes):
                raise InvalidInputError(
                    f"{labels.path}: label {label} in row {row}, there are {len(classes)} classes "
                    f"(0 to {len(classes) - 1}; -1 leaves a row out)"
                )
            numbers[row] = label
        elif (found := position[label]) is not None:
            numbers[row] = found
        else:
            other[str(label)] = other.get(str(label), 0) + 1
    if (numbers == NO_CLASS).all() and store.rows:
        raise InvalidInputError(
            f"{labels.path} labels no row with one of the {len(classes)} classes "
            f"({listed([repr(name) for name in classes])}); its labels are "
            f"{listed([repr(name) for name in other]) or 'none'}"
        )
    return ClassNumbers(numbers, other, unlabelled)


def _whole_or_missing(label: Any) -> Any:
    """A whole number as such, None for what stands for a missing label; anything else as it is."""
    if isinstance(label, float):
        if math.isnan(label):
            return None
        return int(label) if label.is_integer() else label
    return None if label == "" else label


def _numbers_if_all(column: Column) -> list[Any]:
    if column.path.suffix not in (".txt", ".csv", ".tsv"):
        return column.values
    numbers = [None if v == "" else _whole_number(v) for v in column.values]
    if any(n is None and v != "" for n, v in zip(numbers, column.values, strict=True)):
        return column.values
    return numbers


def _whole_number(text: str) -> int | None:
    """Read 7, -1, and 7.0 as tables write it; written otherwise, as 007, it is a name."""
    digits = text.strip().removesuffix(".0")
    try:
        number = int(digits)
    except ValueError:
        return None
    return number if str(number) == digits else None
