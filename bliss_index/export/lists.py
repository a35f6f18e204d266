"""Writes the lists: what is kept, what is dropped and why, and what has no score."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from bliss_index.errors import InvalidInputError
from bliss_index.export.choice import DECISIONS, DROP, KEEP, UNSCORED, Choice, DecidedRows, decide
from bliss_index.review.judgement_log import BELONGS, DOES_NOT_BELONG
from bliss_index.review.judgements import DISPUTED
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage.directory import Directory, open_directory, whole_file, write_json
from bliss_index.storage.files import HashingFile

FORMATS = ("txt", "csv", "parquet", "tars", "metadata")
_SUMMARY = "export.json"
_TAR = re.compile(r"(?P<tar>.+?\.(?:tar|tar\.gz|tgz))/(?P<key>.+)", re.DOTALL | re.IGNORECASE)

Sink = Callable[[pa.Table], None]


@dataclass(frozen=True)
class ExportSummary:
    """What was decided; the counts add up to the rows of the scores.

    Attributes
    ----------
    rows, kept, dropped, unscored : int
        ``rows = kept + dropped + unscored``.
    judged, disputed : int
        Images that are kept or dropped as they were judged, and those on which people disagree.
    files : tuple of str
        Lists that were written, or would be.
    """

    rows: int
    kept: int
    dropped: int
    unscored: int
    judged: int
    disputed: int
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def export(
    scores: str | Path,
    out: str | Path,
    choice: Choice | None = None,
    *,
    formats: tuple[str, ...] = ("csv",),
    dry_run: bool = False,
) -> ExportSummary:
    """Write lists of the images to keep, to drop, and without a score.

    Parameters
    ----------
    scores : str or Path
        Directory of a complete job.
    out : str or Path
        Directory for the lists; local or a URI of an object store. Lists of an earlier call are
        replaced, each when it is whole.
    choice : Choice, optional
        What is dropped; by default what the scores flag.
    formats : tuple of str, default=("csv",)
        Of "csv" and "parquet" (all columns), "txt" (a key a line), "tars" (a directory with a list
        of the samples of every webdataset tar), "metadata" (``metadata.csv`` of what is kept, as
        Hugging Face's imagefolder reads it).
    dry_run : bool, default=False
        Count only, and write nothing.

    Returns
    -------
    ExportSummary

    Raises
    ------
    InvalidInputError
        The choice does not fit the scores; a key cannot be written as asked.
    OutputError
        A list cannot be written.
    MissingDependencyError
        They are to be written into an object store, and obstore is not installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise InvalidInputError(f"format {name!r} is not one of {', '.join(FORMATS)}")
    directory, folder = ScoresDirectory.open(scores), open_directory(out)
    counts = Counter[str]()
    files = [f"{folder.uri.rstrip('/')}/{name}" for one in formats for name in _names(one)]
    if dry_run:
        for rows in decide(directory, choice or Choice()):
            _count(counts, rows)
        return _summary(directory, counts, files)
    decided = decide(directory, choice or Choice())
    first = next(decided, None)  # refused before anything is made
    folder.make()
    with ExitStack() as stack:
        writers = [_Lists(folder, one, stack) for one in formats]
        for rows in [] if first is None else _chain(first, decided):
            _count(counts, rows)
            for writer in writers:
                writer.write(rows)
    summary = _summary(directory, counts, files)
    write_json(
        folder,
        _SUMMARY,
        {**summary.to_json(), "scores": directory.path, "choice": asdict(choice or Choice())},
    )
    return summary


def _chain(first: DecidedRows, others: Iterator[DecidedRows]) -> Iterator[DecidedRows]:
    yield first
    yield from others


def _count(counts: Counter[str], rows: DecidedRows) -> None:
    counts.update(rows.decision.tolist())
    counts.update(rows.judgement.tolist())


def _summary(directory: ScoresDirectory, counts: Counter[str], files: list[str]) -> ExportSummary:
    return ExportSummary(
        directory.rows, counts[KEEP], counts[DROP], counts[UNSCORED],
        counts[BELONGS] + counts[DOES_NOT_BELONG], counts[DISPUTED], tuple(files),
    )  # fmt: skip


def _names(name: str) -> list[str]:
    if name == "metadata":
        return ["metadata.csv"]
    return [decision if name == "tars" else f"{decision}.{name}" for decision in DECISIONS]


class _Lists:
    """The lists of one format; they get their names when all of them are whole."""

    def __init__(self, folder: Directory, name: str, stack: ExitStack) -> None:
        self._format = name
        self._folder = folder
        self._stack = stack
        self._sinks: dict[str, Sink] = {}
        self._tar, self._tars_done = "", set[str]()
        self._of_tar: dict[str, HashingFile] = {}
        self._tar_files = stack.enter_context(ExitStack())
        if name == "metadata":
            self._sinks[KEEP] = self._metadata()
        elif name != "tars":
            make = {"txt": self._text, "csv": self._csv, "parquet": self._parquet}[name]
            self._sinks = {decision: make(decision) for decision in DECISIONS}

    def write(self, rows: DecidedRows) -> None:
        if self._format == "tars":
            self._write_tars(rows)
        for decision, sink in self._sinks.items():
            table = rows.table.filter(pa.array(rows.decision == decision))
            if table.num_rows:
                sink(table)

    def _file(self, name: str) -> HashingFile:
        return self._stack.enter_context(whole_file(self._folder, name))

    def _text(self, decision: str) -> Sink:
        file = self._file(f"{decision}.txt")

        def write(table: pa.Table) -> None:
            file.write("".join(map(_line, table.column("key").to_pylist())).encode())

        return write

    def _csv(self, decision: str) -> Sink:
        return self._arrow(f"{decision}.csv", pa_csv.CSVWriter)

    def _parquet(self, decision: str) -> Sink:
        return self._arrow(f"{decision}.parquet", pq.ParquetWriter)

    def _arrow(self, name: str, kind: Callable[[Any, pa.Schema], Any]) -> Sink:
        file, schema = self._file(name), list_schema()
        writer = self._stack.enter_context(contextlib.closing(kind(file, schema)))

        def write(table: pa.Table) -> None:
            writer.write_table(table.cast(schema))

        return write

    def _metadata(self) -> Sink:
        file = self._file("metadata.csv")
        columns = ("anomaly_score", "nearest_class", "group")
        file.write(("file_name," + ",".join(columns) + "\n").encode())

        def write(table: pa.Table) -> None:
            text = io.StringIO()
            rows = zip(*(table.column(name).to_pylist() for name in ("key", *columns)), strict=True)
            csv.writer(text, lineterminator="\n").writerows(rows)
            file.write(text.getvalue().encode())

        return write

    def _write_tars(self, rows: DecidedRows) -> None:
        keys = rows.table.column("key").to_pylist()
        for key, decision in zip(keys, rows.decision.tolist(), strict=True):
            found = _TAR.fullmatch(key)
            if found is None or not {"..", ""}.isdisjoint(found["tar"].split("/")):
                raise InvalidInputError(
                    f"key {key!r} does not name its tar, as '00000.tar/sample' does; encode with "
                    "--key-prefix, or take another format"
                )
            if found["tar"] != self._tar:
                self._next_tar(found["tar"])
            if decision not in self._of_tar:
                name = f"{decision}/{self._tar}.txt"
                file = self._tar_files.enter_context(whole_file(self._folder, name))
                self._of_tar[decision] = file
            self._of_tar[decision].write(_line(found["key"]).encode())

    def _next_tar(self, tar: str) -> None:
        """Finish the lists of one tar; the samples of a tar follow one another."""
        if tar in self._tars_done:
            raise InvalidInputError(
                f"the samples of {tar} do not follow one another in the scores, which a list a "
                "tar needs; take another format"
            )
        self._tars_done.add(tar)
        self._tar, self._of_tar = tar, {}
        self._tar_files.close()


def list_schema() -> pa.Schema:
    """Columns of the lists in csv and parquet."""
    texts = (
        "key", "decision", "nearest_class", "status", "error", "group", "judgement", "reasons",
    )  # fmt: skip
    fields = [pa.field(name, pa.string()) for name in texts]
    fields.insert(2, pa.field("anomaly_score", pa.float32()))
    return pa.schema(fields)


def _line(key: str) -> str:
    if "\n" in key or "\r" in key:
        raise InvalidInputError(
            f"key {key!r} has a line break, a list of lines cannot hold it; take csv or parquet"
        )
    return f"{key}\n"
