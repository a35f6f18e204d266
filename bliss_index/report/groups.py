"""Flagged images by what they show: groups that the vocabulary names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_index.errors import CorruptStoreError, InvalidInputError, StoreError
from bliss_index.report.grouping import Grouping, ImageGrouper
from bliss_index.scoring.score_work import MANIFEST_NAME
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage.cache import local_file
from bliss_index.storage.directory import content_sha256, write_file
from bliss_index.storage.files import is_address
from bliss_index.store import EmbeddingStore

EXAMPLES = 6
_METADATA = b"bliss_index.report.groups"
_FORMAT_VERSION = 1
_BATCH_ROWS = 16384
_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("anomaly_score", pa.float32(), nullable=False),
        pa.field("group", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)


@dataclass(frozen=True)
class Group:
    """Flagged images that show one kind of thing.

    Attributes
    ----------
    name : str
        The vocabulary entry that says best what they show.
    also : tuple of str
        Next best entries: synonyms, or what else is in the images.
    images : int
        How many.
    share : float
        Of all flagged images.
    typical_score : float
        Median of their anomaly scores.
    examples : tuple of int
        Rows of the scores with the highest scores among them, highest first.
    """

    name: str
    also: tuple[str, ...]
    images: int
    share: float
    typical_score: float
    examples: tuple[int, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Group:
        """Read what ``asdict`` and JSON made of one."""
        tuples = {name: tuple(values[name]) for name in ("also", "examples")}
        return cls(**{**values, **tuples})


@dataclass(frozen=True)
class Groups:
    """All groups of a scores directory, the largest first.

    Attributes
    ----------
    threshold : float
        Images are flagged from this anomaly score on.
    flagged : int
        Flagged images; each is in one group.
    groups : tuple of Group
    output : str or None
        Parquet file with a row for every flagged image, if one was asked for: ``row`` of the
        scores, ``key``, ``anomaly_score`` and ``group``.
    scores_sha256 : str
        Of the manifest of the scores; empty for groups of arrays.
    """

    threshold: float
    flagged: int
    groups: tuple[Group, ...]
    output: str | None
    scores_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def groups(
    scores: str | Path,
    corpus: str | Path | None = None,
    *,
    threshold: float | None = None,
    out: str | Path | None = None,
) -> Groups:
    """Gather flagged images into groups that the vocabulary names; their number is found.

    The scores are read three times; memory is 16 bytes for each flagged image, the vocabulary,
    and the file while it is written. The same scores give the same groups. How images are compared
    is said in :mod:`bliss_index.report.grouping`.

    Parameters
    ----------
    scores : str or Path
        Directory of a complete job that was run with ``--explain``.
    corpus : str or Path, default=None
        The vocabulary; by default where the job read it, if that is no address.
    threshold : float, default=None
        Anomaly score from which on an image is flagged; by default the flags of the scores.
    out : str or Path, default=None
        Parquet file to write: the column ``group``, beside the scores, which never change.

    Returns
    -------
    Groups

    Raises
    ------
    InvalidInputError
        The scores have no entries, or no flags and no threshold is given.
    StoreError
        The vocabulary is missing, or is not the job's.
    OutputError
        The file cannot be written.
    """
    flagged = Flagged.open(ScoresDirectory.open(scores), corpus, threshold)
    found = find_groups(flagged)
    if out is None:
        return found.groups
    result = replace(found.groups, output=str(out))
    _write(out, result, flagged, found.numbers)
    return result


@dataclass(frozen=True, eq=False)
class GroupedRows:
    """Groups, and which rows are in which.

    Attributes
    ----------
    groups : Groups
    rows : (n,) int64 array
        Flagged rows of the scores, in order.
    numbers : (n,) int32 array
        Positions of their groups.
    """

    groups: Groups
    rows: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int32]

    def name_of(self, row: int) -> str:
        """Name of the group that a row is in; empty where it is in none."""
        place = int(np.searchsorted(self.rows, row))
        if place == self.rows.size or self.rows[place] != row:
            return ""
        return self.groups.groups[int(self.numbers[place])].name


def find_groups(flagged: Flagged) -> GroupedRows:
    """As :func:`groups`, for flagged images that were opened, without a file."""
    grouper = ImageGrouper(flagged.store.embeddings())
    for batch in flagged.batches():
        grouper.count(batch.ids)
    for batch in flagged.batches():
        grouper.add(batch.ids, batch.similarities)
    found = grouper.finish()
    sha256 = content_sha256(flagged.directory.directory, MANIFEST_NAME)
    rows, values, numbers = _assign(flagged, grouper, found)
    listed = _describe(found, flagged.store.texts(), rows, values, numbers)
    place = np.full(len(found.names), -1, dtype=np.int32)
    place[[old for old, _ in listed]] = np.arange(len(listed))
    result = Groups(flagged.threshold, rows.size, tuple(group for _, group in listed), None, sha256)
    return GroupedRows(result, rows, place[numbers])


def groups_of_arrays(
    entries: npt.NDArray[Any],
    texts: Sequence[str],
    rows: npt.NDArray[np.int64],
    scores: npt.NDArray[np.floating],
    ids: npt.NDArray[np.int64],
    similarities: npt.NDArray[np.float32],
    threshold: float,
) -> Groups:
    """As :func:`groups`, of arrays.

    Parameters
    ----------
    entries, texts
        (W, d) embeddings of the vocabulary, and its W entries.
    rows, scores, ids, similarities
        Of the n flagged images: row numbers, (n,) anomaly scores, and (n, k) entries.
    threshold
        From which they are flagged.
    """
    grouper = ImageGrouper(entries)
    grouper.count(ids)
    grouper.add(ids, similarities)
    found = grouper.finish()
    numbers = grouper.assign(found, ids, similarities).astype(np.int32)
    listed = _describe(found, list(texts), rows, scores.astype(np.float32), numbers)
    return Groups(threshold, rows.size, tuple(group for _, group in listed), None, "")


@dataclass(frozen=True, eq=False)
class FlaggedBatch:
    """Flagged images of one part: their rows, keys and scores, and (n, k) entries."""

    rows: npt.NDArray[np.int64]
    keys: pa.Array
    scores: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int64]
    similarities: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Flagged:
    """The flagged images of a scores directory, read as often as is needed."""

    directory: ScoresDirectory
    store: EmbeddingStore
    threshold: float
    given: bool

    @classmethod
    def open(
        cls, directory: ScoresDirectory, corpus: str | Path | None, threshold: float | None
    ) -> Flagged:
        settings = directory.job.settings
        if not settings.get("explain"):
            raise InvalidInputError(
                f"{directory.path} has no column 'entries', by which images are grouped; score "
                "again with --explain"
            )
        kept = settings.get("threshold")
        value = kept if threshold is None else threshold
        if value is None:
            raise InvalidInputError(
                f"{directory.path} has no flags; say from which anomaly score on images are "
                "flagged: --threshold NUMBER"
            )
        store = open_corpus(directory, corpus)
        return cls(directory, store, float(value), threshold is not None)

    def batches(self) -> Iterator[FlaggedBatch]:
        """Yield the flagged images, in the order of the rows.

        Raises
        ------
        CorruptStoreError
            The scores name an entry that the vocabulary does not have.
        """
        names = pa.array(self.store.texts(), pa.string())
        first = pa.array(np.arange(len(names)))
        start = 0
        columns = ["key", "anomaly_score", "entries", "similarities"]
        columns += [] if self.given else ["flag"]
        for table in self.directory.iter_tables(columns):
            for offset in range(0, table.num_rows, _BATCH_ROWS):
                some = table.slice(offset, _BATCH_ROWS)
                if self.given:  # as float32, as scores are kept
                    limit = pa.scalar(self.threshold, pa.float32())
                    mask = pc.greater_equal(some.column("anomaly_score"), limit)
                else:
                    mask = some.column("flag")
                mask = pc.fill_null(mask, False)
                rows = np.flatnonzero(mask.to_numpy())
                if rows.size:
                    yield self._batch(some.filter(mask), rows + start + offset, names, first)
            start += table.num_rows

    def _batch(
        self, some: pa.Table, rows: npt.NDArray[np.int64], names: pa.Array, first: pa.Array
    ) -> FlaggedBatch:
        some = some.combine_chunks()
        entries = pc.list_flatten(some.column("entries"))
        ids = pc.index_in(entries, value_set=names)
        if ids.null_count:
            unknown = entries.filter(pc.is_null(ids))[0].as_py()
            raise CorruptStoreError(
                f"{self.directory.path} names an entry {unknown!r} that {self.store.path} does "
                "not have"
            )
        likeness = pc.list_flatten(some.column("similarities"))
        shape = (rows.size, int(self.directory.job.settings["k"]))
        numbers = ids.to_numpy().astype(np.int64)
        if numbers.size != shape[0] * shape[1] or len(likeness) != numbers.size:
            raise CorruptStoreError(
                f"{self.directory.path}: {rows.size} rows have {numbers.size} entries and "
                f"{len(likeness)} similarities, not {shape[1]} each"
            )
        return FlaggedBatch(
            rows,
            some.column("key").combine_chunks(),
            some.column("anomaly_score").to_numpy().astype(np.float32),
            numbers.reshape(shape),
            likeness.to_numpy().astype(np.float32).reshape(shape),
        )


def open_corpus(directory: ScoresDirectory, corpus: str | Path | None) -> EmbeddingStore:
    recorded = str(directory.job.facts.get("corpus"))
    if corpus is None and is_address(recorded):
        raise InvalidInputError(
            f"the corpus of {directory.path} is at {recorded}, it says; what a file names is not "
            f"contacted: name it yourself with --corpus {recorded}"
        )
    store = EmbeddingStore.open(corpus or directory.job.find(recorded), kind="text")
    expected = directory.job.settings["corpus content hash"]
    if store.content_hash != expected:
        raise StoreError(
            f"{directory.path} was made with corpus content hash {expected}, {store.path} has "
            f"{store.content_hash}; name the corpus of the job with --corpus"
        )
    return store


def _assign(
    flagged: Flagged, grouper: ImageGrouper, found: Grouping
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return the rows of all flagged images, their scores, and the numbers of their groups."""
    rows, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    numbers = [np.empty(0, np.int32)]
    for batch in flagged.batches():
        rows.append(batch.rows)
        values.append(batch.scores)
        numbers.append(grouper.assign(found, batch.ids, batch.similarities).astype(np.int32))
    return np.concatenate(rows), np.concatenate(values), np.concatenate(numbers)


def _describe(
    found: Grouping,
    texts: list[str],
    rows: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    numbers: npt.NDArray[np.int32],
) -> list[tuple[int, Group]]:
    """Return every group's number and what is said of it, the largest group first."""
    order = np.lexsort((rows, -values, numbers))
    starts = np.searchsorted(numbers[order], np.arange(len(found.names) + 1))
    listed = []
    for number, names in enumerate(found.names):
        own = order[starts[number] : starts[number + 1]]
        if own.size:
            group = Group(
                texts[names[0]], tuple(texts[name] for name in names[1:]), own.size,
                own.size / rows.size, float(np.median(values[own])),
                tuple(rows[own[:EXAMPLES]].tolist()),
            )  # fmt: skip
            listed.append((number, group))
    return sorted(listed, key=lambda one: (-one[1].images, one[0]))


def _write(
    out: str | Path, result: Groups, flagged: Flagged, numbers: npt.NDArray[np.int32]
) -> None:
    """Write the file, whole or not at all, with all groups in its metadata."""
    facts = {"format_version": _FORMAT_VERSION, **replace(result, output=None).to_json()}
    schema = _SCHEMA.with_metadata({_METADATA: json.dumps(facts).encode()})
    names = pa.array([group.name for group in result.groups], pa.string())
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        done = 0
        for batch in flagged.batches():
            codes = numbers[done : done + batch.rows.size]
            done += batch.rows.size
            group = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), names)
            columns = [pa.array(batch.rows), batch.keys, pa.array(batch.scores), group]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    write_file(out, buffer.getvalue().to_pybytes())


def read_groups(path: str | Path, scores: ScoresDirectory | None = None) -> Groups:
    """Read what a file of groups says of its groups.

    Parameters
    ----------
    path : str or Path
        A file that :func:`groups` wrote.
    scores : ScoresDirectory, default=None
        Refuse a file of other scores.

    Raises
    ------
    StoreError
        There is none, it is another kind of file, or of other scores.
    CorruptStoreError
        It is damaged, or was written by a newer version.
    """
    file = local_file(path)
    if not file.is_file():
        raise StoreError(f"{path} is not a file; make it with 'bliss-index groups'")
    try:
        facts = json.loads((pq.read_schema(file).metadata or {}).get(_METADATA, b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptStoreError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise StoreError(f"{path} holds no groups; make them with 'bliss-index groups'")
    if facts.pop("format_version", None) != _FORMAT_VERSION:
        raise CorruptStoreError(f"{path} was written by another version; make it again")
    try:
        listed = tuple(map(Group.from_json, facts.pop("groups")))
        result = Groups(groups=listed, **{**facts, "output": str(path)})
    except (KeyError, TypeError) as error:
        raise CorruptStoreError(f"{path} is damaged: {error!r}; make it again") from error
    if scores is not None:
        now = content_sha256(scores.directory, MANIFEST_NAME)
        if now != result.scores_sha256:
            raise StoreError(
                f"{path} has the groups of scores with the manifest {result.scores_sha256}, "
                f"{scores.path} has {now}; make it again with 'bliss-index groups'"
            )
    return result


def read_grouped_rows(path: str | Path, scores: ScoresDirectory) -> GroupedRows:
    """Read a file of groups with the rows of every group; errors as of :func:`read_groups`."""
    found = read_groups(path, scores)
    table = pq.read_table(local_file(path), columns=["row", "group"])
    names = pa.array([group.name for group in found.groups], pa.string())
    numbers = pc.index_in(table.column("group").cast(pa.string()), value_set=names)
    return GroupedRows(found, table.column("row").to_numpy(), numbers.to_numpy().astype(np.int32))
