"""Folders that clip-retrieval writes: arrays, and tables of the same numbers that describe them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from bliss_index.errors import InvalidInputError, listed
from bliss_index.store.formats.npy import open_npy
from bliss_index.store.formats.parquet import ParquetReader
from bliss_index.store.source_file import SourceFile
from bliss_index.store.source_reader import ColumnNames, SourceReader

FOLDERS = {"image": "img_emb", "text": "text_emb"}


def with_metadata(
    arrays: list[SourceFile], tables: list[SourceFile], columns: ColumnNames, texts: bool
) -> tuple[SourceReader, ...]:
    """Put arrays and the tables that describe them together.

    Raises
    ------
    InvalidInputError
        A file has no counterpart of its number, or they have different numbers of rows.
    """
    readers: list[SourceReader] = []
    for array, of_it in _pairs(arrays, tables) if tables else ((array, None) for array in arrays):
        reader = open_npy(array, columns, texts)
        if of_it is not None:
            table = ParquetReader.open(of_it, columns, texts=texts, embedded=False)
            if table.rows != reader.rows:
                raise InvalidInputError(
                    f"{array.name} has {reader.rows} rows, {table.name} has {table.rows}"
                )
            reader = replace(reader, metadata=table)
        readers.append(reader)
    return tuple(readers)


def _pairs(
    arrays: list[SourceFile], tables: list[SourceFile]
) -> list[tuple[SourceFile, SourceFile]]:
    """Find the metadata of each array: the file with the same numbers in its name."""
    numbered: list[dict[tuple[int, ...], SourceFile]] = []
    for files in (arrays, tables):
        named: dict[tuple[int, ...], SourceFile] = {}
        for file in files:
            within = file.name.partition("/")[2]
            stem = str(PurePosixPath(within).with_suffix(""))
            other = named.setdefault(tuple(map(int, re.findall("[0-9]+", stem))), file)
            if other is not file:
                raise InvalidInputError(
                    f"{other.name} and {file.name} have the same number; leave one out"
                )
        numbered.append(named)
    of_arrays, of_tables = numbered
    alone = [f[n].name for f, o in ((of_arrays, of_tables), (of_tables, of_arrays))
             for n in f if n not in o]  # fmt: skip
    if alone:
        raise InvalidInputError(
            f"{len(arrays)} embedding files ({arrays[0].name}, ...) and {len(tables)} metadata "
            f"files ({tables[0].name}, ...); clip-retrieval writes one for each, with the same "
            f"number, which {listed(alone)} {'has' if len(alone) == 1 else 'have'} not"
        )
    return [(array, of_tables[number]) for number, array in of_arrays.items()]
