"""Encoding images as a work: a part is a run of a source's rows, listed once in the plan."""

from __future__ import annotations

import heapq
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bliss_index.encode.encode_work import (
    EncoderSpec,
    EncodeSummary,
    EncodeWork,
    LoadedEncoder,
    rows_begun_with,
    rows_of_a_part,
    streams_of,
    summed_up,
)
from bliss_index.encode.image_rows import ImageSource, no_images
from bliss_index.encode.images import ChainSource, FolderSource, ObjectFolder, piece_of
from bliss_index.encode.model import Encoder
from bliss_index.encode.pipeline import (
    Batch,
    EncodedBatch,
    batch_rows,
    default_decoders,
    encode_batches,
)
from bliss_index.errors import InvalidInputError
from bliss_index.jobs import JobListener, JobOptions, Outcome, Part, Plan, Record, run
from bliss_index.jobs.part import Growth, grown
from bliss_index.jobs.work import Notify, Progress
from bliss_index.storage import Directory
from bliss_index.store.keys import KeyRegistry
from bliss_index.store.schema import carried_names
from bliss_index.store.shards import ShardColumns

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bliss_index.encode.pipeline import PipelineOptions

ROWS_PER_SHARD = 4096
DECODER_BYTES = 128 << 20
"""Bytes of a process that decodes photos of up to 10 megapixels."""
File = tuple[str, str, str]
"""Key, name in the folder and stamp of an image."""


def encode_image_store(
    encoder: Encoder | EncoderSpec,
    source: ImageSource,
    output: str | Path,
    *,
    dtype: str = "float16",
    rows_per_shard: int | None = None,
    options: JobOptions | None = None,
    listener: JobListener | None = None,
    **pipeline: Unpack[PipelineOptions],
) -> EncodeSummary:
    """Encode images into an image store, or go on where an earlier run stopped.

    A complete store of the same source, model and settings is left as it is.

    Rows out = rows in: an image that cannot be decoded keeps its row, with a status and a reason.

    Parameters
    ----------
    encoder
        The model, or what to load in every process.
    source
        Of images, from :func:`bliss_index.encode.images.open_images`.
    output
        Directory of the store.
    dtype
        Storage type.
    rows_per_shard
        Rows of a shard at most; by default 4096.
    options, listener
        How to run, and who hears of it.
    pipeline
        Options of :func:`bliss_index.encode.pipeline.encode_batches`.

    Raises
    ------
    JobError, StoreError, OutputError
        The output cannot be begun or continued, or it holds something else; or the source's
        images are no longer those that an earlier run began with.
    InvalidInputError
        The source holds no images.
    """
    options = options or JobOptions()
    spec = LoadedEncoder(encoder) if isinstance(encoder, Encoder) else encoder
    device = options.devices[0] if options.devices else "auto"
    total = source.rows()
    if not total:
        raise no_images(source)
    rows = rows_per_shard or rows_begun_with(output) or rows_of_a_part(total, ROWS_PER_SHARD)
    streams = streams_of(encoder, options)
    work = ImageWork(spec, device, dtype, rows, streams, source, dict(pipeline))
    return summed_up(run(work, output, options, listener), output, options.task)


@dataclass(frozen=True)
class ImageWork(EncodeWork):
    """What to encode; see :func:`encode_image_store`."""

    source: ImageSource
    pipeline: dict[str, Any]

    command = "'bliss-index encode-images'"
    of_kind = "image"

    def __reduce__(self) -> tuple[Any, ...]:
        pipeline = {name: value for name, value in self.pipeline.items() if name != "times"}
        values = [getattr(self, f.name) for f in fields(self)[:-1]]
        return type(self), (*values, pipeline)

    def attributes(self) -> dict[str, Any]:
        values = {"source": self.source.name, "rows_per_shard": self.rows_per_shard}
        prefixes = self.source.prefixes if isinstance(self.source, ChainSource) else None
        return {**values, "key_prefix": True} if prefixes else values

    def parts(self) -> Iterator[Part]:
        for index, piece in enumerate(self.source.pieces(self.rows_per_shard)):
            detail = json.dumps(piece.detail)
            yield Part(index, piece.name, piece.rows, piece.fingerprint, detail)

    def grown(self, kept: Plan, now: Plan) -> Growth:
        """Of a folder, find the files that came in; else the archives and tables."""
        if not isinstance(self.source, FolderSource | ObjectFolder):
            return grown(kept, now)
        removed: list[str] = []
        stale: list[str] = []
        changed: list[str] = []
        new = _new_files(kept, now, removed, stale)
        return Growth(self._pieces(new, kept, removed, changed), removed, stale, changed)

    def is_same(self, part: Part, record: Record) -> str:
        if isinstance(self.source, FolderSource | ObjectFolder):
            return ""  # files that have changed are named one by one
        return super().is_same(part, record)

    def _pieces(
        self, files: Iterator[File], kept: Plan, removed: list[str], changed: list[str]
    ) -> Iterator[Part]:
        index, number = len(kept), kept.rows
        while some := list(itertools.islice(files, self.rows_per_shard)):
            piece = piece_of(some, self.source.name.rstrip("/").rpartition("/")[2], number)
            detail = json.dumps(piece.detail)
            yield Part(index, piece.name, piece.rows, piece.fingerprint, detail)
            index, number = index + 1, number + len(some)
        if len(removed) == kept.rows:  # they are other images altogether
            changed.extend(removed)

    def held(self) -> dict[str, int]:
        given = self.pipeline.get("decoders")
        count = default_decoders(self.encoder.device) if given is None else given
        return {"decoders": max(1, count) * DECODER_BYTES}

    def open(
        self, directory: Directory, device: str, progress: Progress, notify: Notify
    ) -> ImageWorker:
        return ImageWorker(self, directory, self.on(device), progress)


def _files(parts: Iterable[Part]) -> Iterator[File]:
    for part in parts:
        yield from map(tuple, json.loads(part.detail)["files"])


def _new_files(kept: Plan, now: Plan, removed: list[str], stale: list[str]) -> Iterator[File]:
    """Files that were not planned before; all listings are in order, so none is held in memory."""
    listings, first = [], 0
    for file in kept.files:
        parts = sum(batch.num_rows for batch in file.batches())
        listings.append(_files(kept[index] for index in range(first, first + parts)))
        first += parts
    before = heapq.merge(*listings)
    old = next(before, None)
    for found in _files(now):
        while old is not None and old[0] < found[0]:
            removed.append(old[0])
            old = next(before, None)
        if old is None or old[0] != found[0]:
            yield found
            continue
        if old[2] != found[2]:
            stale.append(found[0])
        old = next(before, None)
    while old is not None:
        removed.append(old[0])
        old = next(before, None)


class ImageWorker:
    """Encodes parts; see :class:`bliss_index.jobs.Worker`."""

    def __init__(
        self, work: ImageWork, directory: Directory, encoder: Encoder, progress: Progress
    ) -> None:
        self._work = work
        self._directory = directory
        self._encoder = encoder
        self._progress = progress
        schema = work.source.metadata_schema
        self._carried = [] if schema is None else carried_names(schema.names)
        named = None
        if schema is not None:
            pairs = zip(schema, self._carried, strict=True)
            named = pa.schema([field.with_name(name) for field, name in pairs])
        self._columns = ShardColumns("image", encoder.dim, work.dtype, named)

    def run(self, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Encode parts in order; the next one's images are decoded meanwhile.

        No batch reaches over two parts, so the bytes of each are the same whoever makes it.
        """
        begun: list[_Begun] = []
        batches = encode_batches(
            self._encoder,
            self._work.source,
            self._batches(parts, begun),
            streams=self._work.at_once(self._encoder),
            **self._work.pipeline,
        )
        for batch in batches:
            current = begun[0]
            if len(batch):
                current.tables.append(self._table(batch))
                self._progress(len(batch))
                continue
            begun.pop(0)  # the empty batch at the end of a part
            if current.error is not None:
                yield Outcome.failed(current.part.index, current.error)
            else:
                yield Outcome(current.part.index, self._commit(current))

    def _batches(self, parts: Iterable[Part], begun: list[_Begun]) -> Iterator[Batch]:
        """Rows of one part after another, each with an empty batch behind it."""
        size = self._encoder.image_batch_size
        for part in parts:
            current = _Begun(part, [], time.perf_counter())
            begun.append(current)
            rows = 0
            try:
                for start, batch in batch_rows(
                    self._work.source.read(json.loads(part.detail)), 0, size, None
                ):
                    rows += len(batch)
                    yield start, batch
                if rows != part.rows:
                    raise InvalidInputError(
                        f"{part.name} holds {rows} rows now, it had {part.rows} when it was listed"
                    )
            except (InvalidInputError, OSError, MemoryError) as error:
                current.error = error
            yield rows, []

    def _table(self, batch: EncodedBatch) -> pa.Table:
        metadata = batch.metadata
        return self._columns.table(
            batch.keys,
            batch.embeddings,
            status=batch.status,
            error=batch.error,
            metadata=None if metadata is None else metadata.rename_columns(self._carried),
        )

    def _commit(self, done: _Begun) -> Record:
        empty = pa.Table.from_batches([], self._columns.schema)
        table = pa.concat_tables([empty, *done.tables])
        table = self._columns.settled(table, KeyRegistry(), 0)
        return self._columns.commit(
            self._directory, done.part, table, given=done.part.fingerprint, began=done.began
        )


@dataclass
class _Begun:
    """A part whose rows are under way."""

    part: Part
    tables: list[pa.Table]
    began: float
    error: Exception | None = None
