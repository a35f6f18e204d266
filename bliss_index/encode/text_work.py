"""Encoding a vocabulary as a work: a part is a run of entries, kept in the plan."""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

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
from bliss_index.encode.model import Encoder
from bliss_index.encode.spooled_vocabulary import SpooledVocabulary
from bliss_index.encode.streams import in_threads
from bliss_index.errors import InvalidInputError
from bliss_index.jobs import JobListener, JobOptions, Outcome, Part, Record, run
from bliss_index.jobs.work import Notify, Progress
from bliss_index.storage import Directory
from bliss_index.store.shards import ShardColumns
from bliss_index.vocabulary import render_prompts, require_template

ROWS_PER_SHARD = 16384


def encode_text_store(
    encoder: Encoder | EncoderSpec,
    entries: Sequence[str] | SpooledVocabulary,
    output: str | Path,
    *,
    templates: Sequence[str],
    dtype: str = "float16",
    rows_per_shard: int | None = None,
    options: JobOptions | None = None,
    listener: JobListener | None = None,
) -> EncodeSummary:
    """Encode entries into a text store, or go on where an earlier run stopped.

    A complete store of the same entries, model and settings is left as it is.

    Parameters
    ----------
    encoder
        The model, or what to load in every process.
    entries
        W different texts; they become the keys too. Of a ``SpooledVocabulary`` one shard's are held
        in memory.
    output
        Directory of the store.
    templates
        One prompt template with a ``{}``; of several, embeddings are averaged.
    dtype
        Storage type.
    rows_per_shard
        Rows of every shard but the last; by default at most 16384.
    options, listener
        How to run, and who hears of it.

    Raises
    ------
    JobError, StoreError, OutputError
        The output cannot be begun or continued, or it holds something else.
    InvalidInputError
        There are no entries or templates, or a template is malformed.
    """
    if not len(entries):
        raise InvalidInputError("there are no entries to encode")
    if not templates:
        raise InvalidInputError(
            "at least one template is needed, such as 'This is a photo of a {}'"
        )
    for template in templates:
        require_template(template)
    options = options or JobOptions()
    device = options.devices[0] if options.devices else "auto"
    rows = rows_per_shard or rows_begun_with(output) or rows_of_a_part(len(entries), ROWS_PER_SHARD)
    spec = LoadedEncoder(encoder) if isinstance(encoder, Encoder) else encoder
    work = TextWork(
        spec, device, dtype, rows, streams_of(encoder, options), tuple(templates),
        _entries_sha256(entries), entries,
    )  # fmt: skip
    return summed_up(run(work, output, options, listener), output, options.task)


@dataclass(frozen=True)
class TextWork(EncodeWork):
    """What to encode; see :func:`encode_text_store`. Entries travel in the parts alone."""

    templates: tuple[str, ...]
    entries_sha256: str
    entries: Iterable[str]

    command = "'bliss-index encode-text'"
    of_kind = "text"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*(getattr(self, f.name) for f in fields(self)[:-1]), ())

    @property
    def prompt(self) -> str:
        return " | ".join(self.templates)

    def attributes(self) -> dict[str, Any]:
        return {
            "templates": list(self.templates),
            "entries_sha256": self.entries_sha256,
            "rows_per_shard": self.rows_per_shard,
        }

    def parts(self) -> Iterator[Part]:
        source = iter(self.entries)
        for index in itertools.count():
            entries = list(itertools.islice(source, self.rows_per_shard))
            if not entries:
                return
            first = index * self.rows_per_shard
            detail = json.dumps(entries)
            digest = hashlib.sha256(detail.encode()).hexdigest()
            name = f"entries {first} to {first + len(entries) - 1}"
            yield Part(index, name, len(entries), digest, detail)

    def open(
        self, directory: Directory, device: str, progress: Progress, notify: Notify
    ) -> TextWorker:
        return TextWorker(self, directory, self.on(device), progress)


class TextWorker:
    """Encodes parts; see :class:`bliss_index.jobs.Worker`."""

    def __init__(
        self, work: TextWork, directory: Directory, encoder: Encoder, progress: Progress
    ) -> None:
        self._work = work
        self._directory = directory
        self._encoder = encoder
        self._progress = progress
        self._lock = threading.Lock()
        self._columns = ShardColumns("text", encoder.dim, work.dtype, None)

    def run(self, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Encode parts, on a processor as many at once as there are streams.

        Each forms batches of its own, so the bytes are the same.
        """
        yield from in_threads(self._done, parts, self._work.at_once(self._encoder))

    def _done(self, part: Part) -> Outcome:
        return Outcome(part.index, self._encode(part))

    def _advanced(self, rows: int) -> None:
        with self._lock:  # it may write to a pipe
            self._progress(rows)

    def _encode(self, part: Part) -> Record:
        began = time.perf_counter()
        entries: list[str] = json.loads(part.detail)
        templates = self._work.templates
        if len(templates) == 1:
            prompts = render_prompts(entries, templates[0])
            rows = self._encoder.encode_text(prompts, progress=self._advanced)
        else:
            rows = self._encoder.encode_ensemble(entries, templates, progress=self._advanced)
        cut = np.zeros(len(entries), dtype=bool)
        for template in templates:
            cut |= self._encoder.find_truncated(render_prompts(entries, template))
        return self._columns.commit(
            self._directory,
            part,
            self._columns.table(entries, rows, texts=entries),
            given=part.fingerprint,
            began=began,
            facts={"truncated": int(cut.sum())},
        )


def _entries_sha256(entries: Sequence[str] | SpooledVocabulary) -> str:
    if isinstance(entries, SpooledVocabulary):
        return entries.sha256
    return hashlib.sha256("\n".join(entries).encode("utf-8", "surrogatepass")).hexdigest()
