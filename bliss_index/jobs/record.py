"""What is remembered of a finished part, and how it is committed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bliss_index.errors import CorruptStoreError
from bliss_index.jobs.numerics import numeric_fingerprint
from bliss_index.jobs.part import Part
from bliss_index.storage import Directory
from bliss_index.storage.directory import NewContent
from bliss_index.storage.files import json_bytes, parse_json

RECORD_FOLDER = "_records"  # readers of Parquet folders skip names that begin with _
OUTPUT_NAME = re.compile(r"part-(\d{8})\.([0-9a-f]{16})\.(?:arrow|parquet)")
MOST = 1 << 40
"""More rows or bytes of a part than there can be."""
Buffer = bytes  # within the class, `bytes` is a field
_KINDS: dict[str, Any] = {
    "part": str, "rows": int, "bad_rows": int, "input": str, "file": str, "bytes": int,
    "sha256": str, "seconds": (int, float), "status": dict, "facts": dict, "made_by": str,
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A part that is done: what went in, what came out.

    Attributes
    ----------
    part : str
        Name of the part.
    rows, bad_rows : int
        Rows of the output, and those among them whose status is not "ok".
    input : str
        Hash of what went in, or the part's fingerprint.
    file, bytes, sha256
        The output: name, size, hash.
    seconds : float
        Time until it was done, from its beginning, or from the end of the part before it where
        that was later: those of one process add up to its time.
    status : dict of str to int
        Rows by status.
    facts : dict
        What else the work tells of the part.
    made_by : str, default=''
        What computed it: processor, GPU, libraries. Nothing is compared by it.
    """

    part: str
    rows: int
    bad_rows: int
    input: str
    file: str
    bytes: int
    sha256: str
    seconds: float
    status: dict[str, int]
    facts: dict[str, Any] = field(default_factory=dict)
    made_by: str = ""

    @classmethod
    def parse(cls, data: Buffer, name: str) -> Record:
        """Read a record; raise CorruptStoreError naming the file where it is damaged."""
        values = parse_json(data, name)
        try:
            record = cls(**values)
        except TypeError as error:
            raise CorruptStoreError(f"{name} is damaged: {error}; remove it") from error
        for key, kind in _KINDS.items():
            value = getattr(record, key)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise CorruptStoreError(f"{name} is damaged: {key!r} is {value!r}; remove it")
        for key in ("rows", "bad_rows", "bytes"):
            if not 0 <= getattr(record, key) < MOST:
                raise CorruptStoreError(
                    f"{name} is damaged: {key!r} is {getattr(record, key)}; remove it"
                )
        stem, extension = name[-18:].removesuffix(".json"), record.file.rpartition(".")[2]
        if (
            not re.fullmatch("[0-9a-f]{64}", record.sha256)
            or not OUTPUT_NAME.fullmatch(record.file)
            or record.file != f"{stem}.{record.sha256[:16]}.{extension}"
        ):
            raise CorruptStoreError(f"{name} is damaged: it names {record.file!r}; remove it")
        return record

    @classmethod
    def read(cls, directory: Directory, index: int) -> Record:
        """Read the record of a part; FileNotFoundError where there is none."""
        name = record_name(index)
        return cls.parse(directory.read(name), f"{directory.uri}/{name}")


def record_name(index: int) -> str:
    """Where the record of a part is."""
    return f"{RECORD_FOLDER}/part-{index:08d}.json"


def output_name(index: int, sha256: str, extension: str) -> str:
    """What the output of a part is called."""
    return f"part-{index:08d}.{sha256[:16]}.{extension}"


def commit(
    directory: Directory,
    part: Part,
    content: NewContent,
    extension: str,
    *,
    status: Mapping[str, int],
    given: str,
    seconds: float,
    facts: Mapping[str, Any] | None = None,
) -> Record:
    """Commit the output of a part: its file, then the record that names it.

    Whoever's record is first wins. A runner that comes second removes its own file, unless it is
    the one on record.

    Parameters
    ----------
    directory, part
        Where, and what of.
    content
        The file, whole.
    extension
        Of its name.
    status
        Rows by status.
    given
        Hash of what went in.
    seconds
        Time that it took.
    facts
        What else to remember.

    Returns
    -------
    The record that counts.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    digest, size = content.sink.sha256, content.sink.size
    name = output_name(part.index, digest, extension)
    content.commit(name)
    rows = sum(status.values())
    record = Record(
        part=part.name,
        rows=rows,
        bad_rows=rows - status.get("ok", 0),
        input=given,
        file=name,
        bytes=size,
        sha256=digest,
        seconds=round(seconds, 6),
        status=dict(sorted(status.items())),
        facts=dict(facts or {}),
        made_by=numeric_fingerprint(),
    )
    if directory.create(record_name(part.index), json_bytes(asdict(record))):
        return record
    first = Record.read(directory, part.index)
    if first.file != name:
        directory.remove(name)
    return first
