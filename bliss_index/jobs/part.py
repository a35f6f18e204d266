"""The parts of a job, and the plan that lists them once and for all."""

from __future__ import annotations

import bisect
import hashlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import pyarrow as pa

from bliss_index.errors import CorruptStoreError, JobError
from bliss_index.storage import Directory
from bliss_index.storage.files import HashingFile, output_error

PLAN_FOLDER = "_plan"
_BATCH_PARTS = 4096
_BATCH_BYTES = 16 << 20
_COPY_BYTES = 16 << 20
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

    Attributes
    ----------
    rows : int
        Of all parts.
    name : str
        File name, which says the content.
    data : pyarrow.Buffer
        The file's content.
    """

    def __init__(self, data: pa.Buffer, name: str) -> None:
        self.data = data
        self.name = name
        try:
            reader = pa.ipc.open_file(pa.BufferReader(data))
            if not reader.schema.equals(_SCHEMA):
                raise ValueError(f"its columns are {reader.schema.names}")
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in self._batches:
                batch.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptStoreError(f"the plan {name} is damaged: {error}") from error
        self._starts = [0]
        self.rows = 0
        for batch in self._batches:
            self._starts.append(self._starts[-1] + batch.num_rows)
            self.rows += sum(batch.column("rows").to_pylist())

    @classmethod
    def of(cls, parts: Iterable[Part], folder: Path | None = None) -> Plan:
        """Make a plan of parts, which are numbered from 0 on.

        It is written to a temporary file without a name, as near to `folder` as there is a
        directory, and read from there.
        """
        place = None
        if folder is not None:
            place = next(d for d in (folder, *folder.absolute().parents) if d.is_dir())
        try:
            with tempfile.TemporaryFile(dir=place, prefix=".bliss-plan-") as file:
                sink = HashingFile(file)
                with pa.ipc.new_file(sink, _SCHEMA) as writer:
                    for batch in _batches(parts):
                        columns = [
                            pa.array([getattr(part, field.name) for part in batch], field.type)
                            for field in _SCHEMA
                        ]
                        writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
                file.flush()
                data = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise output_error(str(place or tempfile.gettempdir()), error) from error
        return cls(data, f"{PLAN_FOLDER}/{sink.sha256[:16]}.arrow")

    @classmethod
    def read(cls, directory: Directory, name: str) -> Plan:
        """Read a stored plan.

        Raises
        ------
        CorruptStoreError
            It is missing, or not what its name says.
        """
        try:
            data = directory.mapped(name)
        except FileNotFoundError as error:
            raise CorruptStoreError(f"{directory.uri}/{name} is missing") from error
        digest = hashlib.sha256(data).hexdigest()[:16]
        if name != f"{PLAN_FOLDER}/{digest}.arrow":
            raise CorruptStoreError(
                f"{directory.uri}/{name} has SHA-256 {digest}..., not that of its name: altered"
            )
        return cls(data, name)

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


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for number, part in enumerate(parts):
        if part.index != number:
            raise JobError(f"part {part.name} has number {part.index}, it is the {number}th")
        batch.append(part)
        size += len(part.detail)
        if len(batch) == _BATCH_PARTS or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def first_difference(before: Iterable[Part], now: Iterable[Part], done: str) -> str:
    """Name the first part in which two plans differ in name or rows; '' where they do not.

    `done` says what was done with the first plan's, such as "scored".
    """
    first, second = iter(before), iter(now)
    while True:
        old, new = next(first, None), next(second, None)
        if old is None and new is None:
            return ""
        if old is None or new is None or (old.name, old.rows) != (new.name, new.rows):
            return f"{_described(old)} was {done}, {_described(new)} is there"


def _described(part: Part | None) -> str:
    return "no further part" if part is None else f"{part.name} with {part.rows} rows"
