"""The parts of a job, and the plan that lists them once and for all."""

from __future__ import annotations

import bisect
import hashlib
import mmap
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import pyarrow as pa

from bliss_index.errors import CorruptStoreError, JobError
from bliss_index.storage import Directory
from bliss_index.storage.files import HashingFile, json_bytes, output_error, parse_json

PLAN_FOLDER = "_plan"
_BATCH_PARTS = 4096
_BATCH_BYTES = 16 << 20
_COPY_BYTES = 16 << 20
_RANGE = re.compile(r"\[\d+:\d+\]$")
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Part:
    """A piece of a job's input, of which one file of output is made.

    Attributes
    ----------
    index : int
        Its number in the job.
    name : str
        For people.
    rows : int
        Negative where they are not known before it is read.
    fingerprint : str
        What tells that its input did not change: a hash, or sizes and modification times.
    detail : str, default=''
        What the work needs to find it again, as JSON.
    """

    index: int
    name: str
    rows: int
    fingerprint: str
    detail: str = ""


class Plan(Sequence[Part]):
    """All parts of a job, in order. Made once and stored; parts are read when they are asked for.

    A source that grows adds a second file behind the first, and so on.

    Attributes
    ----------
    rows : int
        Of all parts whose number is known.
    files : list of PlanFile
    """

    def __init__(self, files: Sequence[PlanFile]) -> None:
        self.files = list(files)
        self._batches: list[pa.RecordBatch] = []
        self._starts = [0]
        self.rows = 0
        for file in self.files:
            for batch in file.batches():
                self._batches.append(batch)
                self._starts.append(self._starts[-1] + batch.num_rows)
                self.rows += sum(rows for rows in batch.column("rows").to_pylist() if rows > 0)

    @classmethod
    def of(cls, parts: Iterable[Part], folder: Path | None = None, first: int = 0) -> Plan:
        """Make a plan of parts, which are numbered from `first` on.

        It is written to a temporary file without a name, as near to `folder` as there is a
        directory, and read from there.
        """
        place = None
        if folder is not None:
            place = next(d for d in (folder, *folder.absolute().parents) if d.is_dir())
            place = place if os.access(place, os.W_OK) else None
        try:
            with tempfile.TemporaryFile(dir=place, prefix=".bliss-plan-") as file:
                sink = HashingFile(file)
                with pa.ipc.new_file(sink, _SCHEMA) as writer:
                    for batch in _batches(parts, first):
                        columns = [
                            pa.array([getattr(part, field.name) for part in batch], field.type)
                            for field in _SCHEMA
                        ]
                        writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
                file.flush()
                data = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise output_error(str(place or tempfile.gettempdir()), error) from error
        return cls([PlanFile(f"{PLAN_FOLDER}/{sink.sha256[:16]}.arrow", data)])

    @classmethod
    def read(cls, directory: Directory, name: str) -> Plan:
        """Read the stored plan of a job whose first file is named, with all that was added.

        Raises
        ------
        CorruptStoreError
            A file is missing, or not what its name says.
        """
        names = [name]
        added = directory.names(PLAN_FOLDER)
        while (more := _added_name(len(names))).rpartition("/")[2] in added:
            values = parse_json(directory.read(more), f"{directory.uri}/{more}")
            names.append(str(values.get("plan")))
        return cls([PlanFile.read(directory, name) for name in names])

    def add(self, directory: Directory, more: Plan) -> bool:
        """Store a plan behind this one; False where another runner has added one meanwhile."""
        (file,) = more.files
        file.write(directory)
        name = _added_name(len(self.files))
        return directory.create(name, json_bytes({"plan": file.name}))

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Part: ...

    @overload
    def __getitem__(self, index: slice) -> list[Part]: ...

    def __getitem__(self, index: int | slice) -> Part | list[Part]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = bisect.bisect_right(self._starts, index) - 1
        row = index - self._starts[at]
        return Part(index, *(column[row].as_py() for column in self._batches[at].columns))

    def __iter__(self) -> Iterator[Part]:
        for start, batch in zip(self._starts, self._batches, strict=False):
            columns = (column.to_pylist() for column in batch.columns)
            for row, values in enumerate(zip(*columns, strict=True)):
                yield Part(start + row, *values)


@dataclass(frozen=True)
class PlanFile:
    """A file of a plan.

    Attributes
    ----------
    name : str
        Says the content.
    data : pyarrow.Buffer
        The content.
    """

    name: str
    data: pa.Buffer

    def batches(self) -> list[pa.RecordBatch]:
        """Its parts as they are stored; CorruptStoreError where it is damaged."""
        try:
            reader = pa.ipc.open_file(pa.BufferReader(self.data))
            if not reader.schema.equals(_SCHEMA):
                raise ValueError(f"its columns are {reader.schema.names}")
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptStoreError(f"the plan {self.name} is damaged: {error}") from error
        return batches

    @classmethod
    def read(cls, directory: Directory, name: str) -> PlanFile:
        """Read a stored file; CorruptStoreError where it is missing or not what its name says."""
        try:
            data = directory.mapped(name)
        except FileNotFoundError as error:
            raise CorruptStoreError(f"{directory.uri}/{name} is missing") from error
        digest = hashlib.sha256(data).hexdigest()[:16]
        if name != f"{PLAN_FOLDER}/{digest}.arrow":
            raise CorruptStoreError(
                f"{directory.uri}/{name} has SHA-256 {digest}..., not that of its name: altered"
            )
        return cls(name, data)

    def write(self, directory: Directory) -> None:
        """Store it; does nothing where it is stored already."""
        content = directory.new_file(PLAN_FOLDER)
        try:
            for start in range(0, self.data.size, _COPY_BYTES):
                size = min(_COPY_BYTES, self.data.size - start)
                content.sink.write(self.data.slice(start, size))
            content.commit(self.name.removeprefix(f"{PLAN_FOLDER}/"))
        except OSError as error:
            raise output_error(f"{directory.uri}/{self.name}", error) from error
        finally:
            content.discard()


def _added_name(number: int) -> str:
    return f"{PLAN_FOLDER}/added-{number:08d}.json"


def _batches(parts: Iterable[Part], first: int) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for number, part in enumerate(parts, first):
        if part.index != number:
            raise JobError(f"part {part.name} has number {part.index}, it is the {number}th")
        batch.append(part)
        size += len(part.detail)
        if len(batch) == _BATCH_PARTS or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True)
class Growth:
    """How a source differs from the plan that was made of it.

    Attributes
    ----------
    parts : iterable of Part
        What came in, numbered behind the plan's.
    removed, stale : list of str
        Names of what is gone, and of what has changed; their rows stay as they were. Filled by
        the time the parts are listed.
    changed : list of str
        Names of what has changed so that its rows cannot stay.
    """

    parts: Iterable[Part]
    removed: list[str]
    stale: list[str]
    changed: list[str]


def grown(kept: Plan, now: Iterable[Part]) -> Growth:
    """Find the parts that came in, by their names: those of one file are named by it.

    A part of rows ``a`` to ``b`` of a file is named ``file[a:b]``. A file of which other rows are
    there than were planned has changed; one that could not be opened then is one part, whatever it
    is now.
    """
    before = {part.name: part for part in kept}
    files = {_file_of(name) for name in before}
    unknown = {part.name for part in kept if part.rows < 0}
    new: list[Part] = []
    changed: dict[str, None] = {}
    for part in now:
        file = _file_of(part.name)
        planned = before.pop(part.name, None)
        if planned is None and file in unknown:
            before.pop(file, None)
            continue
        if planned is None and file in files:
            changed[file] = None
        elif planned is None:
            new.append(replace(part, index=len(kept) + len(new)))
        elif part.rows != planned.rows and min(part.rows, planned.rows) >= 0:
            changed[part.name] = None
    removed = [name for name in before if _file_of(name) not in changed]
    if len(removed) == len(kept):  # it is another input altogether
        return Growth(new, [], [], removed)
    return Growth(new, removed, [], list(changed))


def _file_of(name: str) -> str:
    return _RANGE.sub("", name)
