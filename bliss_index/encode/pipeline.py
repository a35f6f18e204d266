"""Image sources to embeddings: decoding processes feed one encoder."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from bliss_index.devices import usable_processors
from bliss_index.encode.decode import MAX_PIXELS
from bliss_index.encode.decode_pool import (
    TASK_IMAGES,
    DecodePool,
    DecodeSettings,
    Pixels,
    Task,
)
from bliss_index.encode.image_rows import ImageRow, ImageSource
from bliss_index.encode.streams import in_threads
from bliss_index.errors import InvalidInputError
from bliss_index.store.schema import OK

if TYPE_CHECKING:
    import pyarrow as pa
    from typing_extensions import Self, Unpack

    from bliss_index.encode.model import Encoder

UNDECODABLE = "undecodable_image"
BAD_EMBEDDING = "bad_embedding"

Batch = tuple[int, list[ImageRow]]
"""The number of the first row, and rows."""

_BATCHES_AHEAD = 3


@dataclass(frozen=True)
class EncodedBatch:
    """Consecutive rows of a source.

    Attributes
    ----------
    start : int
        Row number of the first.
    keys : list of str
    embeddings : ndarray, shape (n, dim), float32
        Unit norm; zero where the status is not 'ok'.
    status : list of str
        'ok', 'undecodable_image' or 'bad_embedding'.
    error : list of (str or None)
        The reason, starting with its code ('truncated: ...').
    metadata : pyarrow.Table or None
        The source's other columns.
    """

    start: int
    keys: list[str]
    embeddings: npt.NDArray[np.float32]
    status: list[str]
    error: list[str | None]
    metadata: pa.Table | None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class PipelineTimes:
    """Where the time went; filled while :func:`iter_encoded` runs.

    Attributes
    ----------
    rows, quarantined : int
    encode_seconds, wait_seconds : float
        The encoder's work, and its waiting for decoded images after the first batch.
    replaced : int
        Decoding processes that died or were ended for exceeding their time.
    """

    rows: int = 0
    quarantined: int = 0
    encode_seconds: float = 0.0
    wait_seconds: float = 0.0
    replaced: int = 0

    @property
    def busy(self) -> float:
        """Fraction of the time in which the encoder worked."""
        total = self.encode_seconds + self.wait_seconds
        return self.encode_seconds / total if total else 1.0


class PipelineOptions(TypedDict, total=False):
    """Options of :func:`encode_batches` that callers may pass on; each has its default there."""

    decoders: int | None
    timeout: float
    max_pixels: int
    times: PipelineTimes | None


def iter_encoded(
    encoder: Encoder,
    source: ImageSource,
    *,
    batch_size: int | None = None,
    start: int = 0,
    align: int | None = None,
    **options: Unpack[PipelineOptions],
) -> Iterator[EncodedBatch]:
    """Encode a source, batch after batch, in the source's order; every row comes out.

    Parameters
    ----------
    encoder : Encoder
        The model.
    source : ImageSource
        Where the images come from.
    batch_size : int, optional
        Images per forward pass, by default the encoder's.
    start : int
        Row to begin with.
    align : int, optional
        No batch crosses a multiple of this row number.
    options
        As for :func:`encode_batches`.

    Yields
    ------
    EncodedBatch

    Raises
    ------
    InvalidInputError
        The source itself cannot be read on; what was yielded before stays valid.
    JobError
        The decoding processes do not start.
    """
    size = batch_size or encoder.image_batch_size
    for name, value, least in (("batch_size", size, 1), ("start", start, 0), ("align", align, 1)):
        if value is not None and value < least:
            raise InvalidInputError(f"{name} is {value}, must be at least {least}")
    batches = batch_rows(source.iter(start), start, size, align)
    yield from encode_batches(encoder, source, batches, **options)


def encode_batches(
    encoder: Encoder,
    source: ImageSource,
    batches: Iterator[Batch],
    *,
    decoders: int | None = None,
    timeout: float = 60.0,
    max_pixels: int = MAX_PIXELS,
    times: PipelineTimes | None = None,
    streams: int = 1,
) -> Iterator[EncodedBatch]:
    """Decode and encode batches of rows while the next ones are read.

    Parameters
    ----------
    encoder : Encoder
        The model.
    source : ImageSource
        Of the rows.
    batches : iterator of (int, list of ImageRow)
        Rows, and the number of the first; asked for by a thread. Batches without rows come out too.
    decoders : int, optional
        Decoding processes; 0 decodes in this one. By default by the number of cores.
    timeout : float
        Seconds after which decoding one image is given up.
    max_pixels : int
        Larger images are refused by their header.
    times : PipelineTimes, optional
        Filled while the images are encoded.
    streams : int, default=1
        Batches that the encoder computes at once, in threads.

    Yields
    ------
    EncodedBatch
    """
    settings = DecodeSettings(encoder.preprocess, max_pixels, timeout)
    count = default_decoders(encoder.device) if decoders is None else decoders
    times = PipelineTimes() if times is None else times
    with _Feeder(batches, settings, count) as feeder:
        for batch, seconds in in_threads(
            partial(_timed, encoder, source, feeder), feeder.decoded(times), streams
        ):
            times.encode_seconds += seconds / streams
            times.rows += len(batch)
            times.quarantined += sum(status != OK for status in batch.status)
            times.replaced = feeder.replaced
            yield batch


def _timed(
    encoder: Encoder, source: ImageSource, feeder: _Feeder, item: _Decoded
) -> tuple[EncodedBatch, float]:
    began = time.perf_counter()
    batch = _encode(encoder, source, item)
    feeder.take_back(item.pixels)
    return batch, time.perf_counter() - began


def _encode(encoder: Encoder, source: ImageSource, decoded: _Decoded) -> EncodedBatch:
    from bliss_index.encode.model import unit_features

    rows, reasons = decoded.rows, decoded.reasons
    status = [UNDECODABLE if reason else OK for reason in reasons]
    error = [reason or None for reason in reasons]
    embeddings = np.zeros((len(rows), encoder.dim), dtype=np.float32)
    good = [at for at, reason in enumerate(reasons) if not reason]
    if good:
        pixels = decoded.pixels if len(good) == len(rows) else decoded.pixels[good]
        unit, bad = unit_features(encoder.image_features(pixels))
        embeddings[good] = unit
        for at in np.asarray(good)[bad]:
            status[at], error[at] = BAD_EMBEDDING, "the model returned a zero or non-finite row"
    keys = [row.key for row in rows]
    return EncodedBatch(decoded.start, keys, embeddings, status, error, source.metadata_table(rows))


def batch_rows(
    rows: Iterator[ImageRow], start: int, size: int, align: int | None
) -> Iterator[Batch]:
    """Cut rows into batches; none crosses a multiple of `align`."""
    while True:
        room = size if align is None else min(size, align - start % align)
        batch = list(itertools.islice(rows, room))
        if not batch:
            return
        yield start, batch
        start += len(batch)


def default_decoders(device: str) -> int:
    """Decoding processes beside an encoder on a device."""
    cores = usable_processors()
    # On a CPU the encoder itself needs the cores, and decoding is 10 times cheaper than encoding.
    return max(1, cores // 8) if device == "cpu" else min(16, max(1, cores - 1))


@dataclass
class _Decoded:
    """A batch of rows with their pixels; those with a reason have none."""

    start: int
    rows: list[ImageRow]
    pixels: Pixels
    reasons: list[str] = field(default_factory=list)


class _Feeder:
    """Reads and decodes in a thread of its own, a few batches ahead of the encoder."""

    def __init__(
        self,
        batches: Iterator[Batch],
        settings: DecodeSettings,
        workers: int,
    ) -> None:
        self._batches = batches
        self._size = settings.preprocess.size
        self._pool = DecodePool(settings, workers)
        self._queue: queue.Queue[Any] = queue.Queue(_BATCHES_AHEAD)
        self._unused: deque[Pixels] = deque()  # fresh memory costs as much as decoding into it
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bliss-index-feeder", daemon=True)

    @property
    def replaced(self) -> int:
        return self._pool.replaced

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.stop()
        while self._thread.is_alive():  # empty the queue, the thread may wait for room in it
            try:
                self._queue.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)

    def decoded(self, times: PipelineTimes) -> Iterator[_Decoded]:
        """All batches; the time in which there was none is counted, that for the first apart."""
        first = True
        while True:
            began = time.perf_counter()
            item = self.next()
            if item is None:
                return
            if not first:
                times.wait_seconds += time.perf_counter() - began
            first = False
            yield item

    def next(self) -> _Decoded | None:
        """The next decoded batch, None at the end; raises what the thread raised."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item  # type: ignore[no-any-return]

    def take_back(self, pixels: Pixels) -> None:
        """Use a batch's memory for a later one."""
        self._unused.append(pixels)

    def _memory(self, rows: int) -> Pixels:
        while self._unused:
            pixels = self._unused.popleft()
            if len(pixels) >= rows:
                return pixels[:rows]
        return np.empty((rows, *self._size, 3), dtype=np.uint8)

    def _run(self) -> None:
        try:
            with self._pool:
                self._decode()
            self._put(None)
        except BaseException as error:  # noqa: BLE001  handed to the consumer
            self._put(error)

    def _decode(self) -> None:
        pending: list[_Decoded] = []

        def tasks() -> Iterator[Task]:
            for start, rows in self._batches:
                if self._stopped.is_set():
                    return
                pixels = self._memory(len(rows))
                pending.append(_Decoded(start, rows, pixels))
                for at in range(0, len(rows), TASK_IMAGES):
                    part = rows[at : at + TASK_IMAGES]
                    contents = [b"" if row.error else row.content for row in part]
                    yield contents, pixels[at : at + TASK_IMAGES]

        for reasons in self._pool.map(tasks()):
            self._put_empty(pending)
            batch = pending[0]
            done = len(batch.reasons)
            for row, reason in zip(batch.rows[done : done + len(reasons)], reasons, strict=True):
                # What the source could not read was not there to be decoded.
                batch.reasons.append(row.error or reason)
            if len(batch.reasons) == len(batch.rows):
                self._put(pending.pop(0))
            self._put_empty(pending)
            if self._stopped.is_set():
                return
        self._put_empty(pending)

    def _put_empty(self, pending: list[_Decoded]) -> None:
        while pending and not pending[0].rows:
            self._put(pending.pop(0))

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue
