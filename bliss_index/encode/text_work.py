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
import numpy.typing as npt

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
from bliss_index.encode.spooled_vocabulary import SpooledVocabulary, entry_hashes
from bliss_index.encode.streams import in_threads
from bliss_index.errors import InvalidInputError, JobError, listed
from bliss_index.jobs import JobListener, JobOptions, Outcome, Part, Plan, Record, run
from bliss_index.jobs.job import find_job
from bliss_index.jobs.part import Growth
from bliss_index.jobs.work import Notify, Progress
from bliss_index.storage import Directory, open_directory
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

    A complete store of the same entries, model and settings is left as it is. Entries that are new
    are encoded behind the others.

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
        The output cannot be begun or continued, or it holds something else; or entries that it
        was begun with are gone, which are named.
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
        spec, device, dtype, rows, streams_of(encoder, options), tuple(templates), entries
    )
    if options.task is not None:
        work.require_planned(output)
    return summed_up(run(work, output, options, listener), output, options.task)


@dataclass(frozen=True)
class TextWork(EncodeWork):
    """What to encode; see :func:`encode_text_store`. Entries travel in the parts alone."""

    templates: tuple[str, ...]
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
            "rows_per_shard": self.rows_per_shard,
        }

    def parts(self) -> Iterator[Part]:
        return self._parts_of(self.entries, 0, 0)

    def _parts_of(self, entries: Iterable[str], index: int, row: int) -> Iterator[Part]:
        source = iter(entries)
        while some := list(itertools.islice(source, self.rows_per_shard)):
            detail = json.dumps(some)
            digest = hashlib.sha256(detail.encode()).hexdigest()
            yield Part(index, f"entries {row} to {row + len(some) - 1}", len(some), digest, detail)
            index, row = index + 1, row + len(some)

    def grown(self, kept: Plan, now: Plan) -> Growth:
        """Find the entries that came in, wherever in the list.

        Raises
        ------
        JobError
            Entries are gone: they would go on being searched.
        """
        planned, listed_now = _hashes(kept), _hashes(now)
        new, gone = _differences(planned, listed_now)
        if gone.any():
            names = [repr(entry) for entry in itertools.compress(_entries(kept), gone.tolist())]
            raise JobError(
                f"{len(names)} of the entries that it was begun with are gone: {listed(names)}; "
                "put them back, or choose another output"
            )
        more = itertools.compress(_entries(now), new.tolist())
        parts = self._parts_of(more, len(kept), len(planned))
        return Growth(parts, [], [], [])

    def is_same(self, part: Part, record: Record) -> str:
        return ""  # other entries have been found one by one

    def require_planned(self, output: str | Path) -> None:
        """Raise JobError unless a job that stands in a directory has just these entries."""
        directory = open_directory(output)
        found = find_job(directory, self.kind, self.command)
        if found is None or found.plan is None:
            return
        growth = self.grown(Plan.read(directory, found.plan), Plan.of(self.parts()))
        if rows := sum(part.rows for part in growth.parts):
            raise JobError(
                f"{directory.uri} was begun without {rows} of these entries; run the command once "
                "without --task, which adds them"
            )

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


def _entries(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        yield from json.loads(part.detail)


def _hashes(parts: Iterable[Part]) -> npt.NDArray[np.uint64]:
    """As of :func:`entry_hashes`, of the entries of all parts: (n, 2)."""
    found = [np.empty((0, 2), dtype=np.uint64)]
    for part in parts:
        lines = (entry.encode("utf-8", "surrogatepass") for entry in _entries([part]))
        found.append(entry_hashes(lines))
    return np.concatenate(found)


def _differences(
    before: npt.NDArray[np.uint64], now: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which of the rows of `now` are not in `before`, and the other way; each has a row once."""
    both = np.concatenate([before, now])
    order = np.lexsort((both[:, 0], both[:, 1]))
    twice = (both[order[1:]] == both[order[:-1]]).all(axis=1)
    alone = np.ones(len(both), dtype=bool)
    alone[order[1:][twice]] = alone[order[:-1][twice]] = False
    return alone[len(before) :], alone[: len(before)]
