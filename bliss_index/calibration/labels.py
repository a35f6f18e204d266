"""Labels of images: which class each belongs to, by row or by key."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError, listed
from bliss_index.store import EmbeddingStore
from bliss_index.store.columns import Column, read_column

LABEL_COLUMNS = ("label", "class", "anomaly", "y", "target")
NO_CLASS = -1


@dataclass(frozen=True)
class Labels:
    """A label for every row of a store, or for every key.

    Attributes
    ----------
    path
        Where they were read.
    values
        Numbers, or names.
    keys
        Keys of the rows they belong to; None for row order.
    """

    path: str
    values: tuple[Any, ...]
    keys: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: str | Path) -> Labels:
        """Read ``.npy``, ``.txt``, ``.csv``, ``.tsv`` or ``.parquet``.

        In a table the labels are in a column 'label', 'class', 'anomaly', 'y' or 'target', or in
        the only one besides 'key'. Text that consists of whole numbers only is read as numbers.

        Raises
        ------
        InvalidInputError
            The file cannot be read, has no such column, or has a key twice.
        """
        column = read_column(path, LABEL_COLUMNS)
        keys = None if column.keys is None else tuple(column.keys)
        if keys is not None and len(set(keys)) != len(keys):
            twice = Counter(keys).most_common(1)[0][0]
            raise InvalidInputError(f"{path} has key {twice!r} more than once")
        return cls(str(path), tuple(_numbers_if_all(column)), keys)

    def of_rows(self, keys_of: Iterator[Sequence[str]], rows: int) -> list[Any]:
        """Return a label for every row; None where there is none for its key.

        Parameters
        ----------
        keys_of
            The keys of all rows, shard by shard; only used for labels by key.
        rows
            Their number.

        Raises
        ------
        InvalidInputError
            There is not one label a row, or a label's key is not among the rows.
        """
        if self.keys is None:
            if len(self.values) != rows:
                raise InvalidInputError(
                    f"{self.path} holds {len(self.values)} labels, there are {rows} rows; give "
                    "one label per row, or a column 'key' that says which row each belongs to"
                )
            return list(self.values)
        by_key = dict(zip(self.keys, self.values, strict=True))
        found = [by_key.pop(key, None) for keys in keys_of for key in keys]
        if by_key:
            unknown = list(by_key)
            raise InvalidInputError(
                f"{self.path} has {len(unknown)} keys that no row has, the first is {unknown[0]!r}"
            )
        return found


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
    are class numbers, and -1 leaves a row out. A table keeps numbers as 1.0 if some are missing;
    these count as numbers too.

    Raises
    ------
    InvalidInputError
        A number is out of range, or none of the names is one of the classes.
    """
    given = labels.of_rows((shard.keys for shard in store.iter_shards()), store.rows)
    given = [_whole_or_missing(label) for label in given]
    position = {name: number for number, name in enumerate(classes)}
    different = set(given) - {None}
    are_numbers = all(isinstance(v, int) and not isinstance(v, bool) for v in different)
    by_number = are_numbers and not set(map(str, different)) & set(position)
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
        elif str(label) in position:
            numbers[row] = position[str(label)]
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
    if column.path.suffix == ".txt" or column.path.suffix in (".csv", ".tsv"):
        try:
            # Written otherwise, as 007, it is a name.
            numbers = [None if v == "" else int(v) for v in column.values]
        except ValueError:
            return column.values
        if all(
            n is None or str(n) == v.strip() for n, v in zip(numbers, column.values, strict=True)
        ):
            return numbers
    return column.values
