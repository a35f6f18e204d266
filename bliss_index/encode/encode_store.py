"""Encodes vocabularies and images into embedding stores, resumable by shard."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from bliss_index.encode.image_rows import ImageSource
from bliss_index.encode.model import Encoder
from bliss_index.encode.pipeline import iter_encoded
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.spooled_vocabulary import SpooledVocabulary
from bliss_index.store import StoreWriter
from bliss_index.store.complete import find_complete
from bliss_index.store.schema import carried_names
from bliss_index.vocabulary import render_prompts, require_template

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bliss_index.encode.pipeline import PipelineOptions

Progress = Callable[[int], None]
TEXT_ROWS_PER_SHARD = 16384
IMAGE_ROWS_PER_SHARD = 4096


@dataclass(frozen=True)
class EncodeSummary:
    """What was encoded.

    Attributes
    ----------
    path
        The store.
    rows, bad_rows
        Rows in it, and those among them without an embedding.
    rows_now
        Rows that this run encoded; fewer than `rows` after a continuation.
    truncated
        Entries with a prompt longer than the model's context, of which the end was cut off.
    """

    path: str
    rows: int
    bad_rows: int
    rows_now: int
    truncated: int = 0


def encode_text_store(
    encoder: Encoder,
    entries: Sequence[str] | SpooledVocabulary,
    output: str | Path,
    *,
    templates: Sequence[str],
    dtype: str = "float16",
    rows_per_shard: int = TEXT_ROWS_PER_SHARD,
    progress: Progress | None = None,
) -> EncodeSummary:
    """Encode entries into a text store, or go on where an earlier run stopped.

    A complete store of the same entries, model and settings is left as it is.

    Parameters
    ----------
    encoder
        The model.
    entries
        W different texts; they become the keys too. Of a
        :class:`~bliss_index.spooled_vocabulary.SpooledVocabulary` one shard's are held in memory.
    output
        Directory of the store.
    templates
        One prompt template with a ``{}``; of several, embeddings are averaged.
    dtype
        Storage type.
    rows_per_shard
        Rows of every shard but the last; that many texts are encoded at a time.
    progress
        Called with the number of rows just finished.

    Raises
    ------
    StoreError, ModelMismatchError, OutputError
        The output cannot be begun or continued, or it is complete and holds something else.
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
    wanted: dict[str, Any] = {
        "kind": "text",
        "model": encoder.identity,
        "dim": encoder.dim,
        "dtype": dtype,
        "prompt": " | ".join(templates),
        "attributes": {
            **encoder.settings,
            "templates": list(templates),
            "entries_sha256": _entries_sha256(entries),
        },
    }
    if (done := find_complete(output, **wanted)) is not None:
        cut = sum(
            _count_truncated(encoder, p, templates) for _, p in _parts(entries, rows_per_shard)
        )
        return EncodeSummary(str(output), done.rows, 0, 0, cut)
    truncated = 0
    distinct = isinstance(entries, SpooledVocabulary)
    with StoreWriter(
        output, rows_per_shard=rows_per_shard, distinct_keys=distinct, **wanted
    ) as writer:
        first = writer.rows
        # Whole shards at a time: a continued run forms the same batches, and so the same bytes.
        for start, part in _parts(entries, rows_per_shard):
            truncated += _count_truncated(encoder, part, templates)
            if start < first:  # committed by an earlier run
                if progress is not None:
                    progress(len(part))
                continue
            if len(templates) == 1:
                rows = encoder.encode_text(render_prompts(part, templates[0]), progress=progress)
            else:
                rows = encoder.encode_ensemble(part, templates, progress=progress)
            writer.append(part, rows, texts=part)
        manifest = writer.close()
    return EncodeSummary(str(output), manifest.rows, 0, manifest.rows - first, truncated)


def _entries_sha256(entries: Sequence[str] | SpooledVocabulary) -> str:
    if isinstance(entries, SpooledVocabulary):
        return entries.sha256
    return hashlib.sha256("\n".join(entries).encode("utf-8", "surrogatepass")).hexdigest()


def _parts(
    entries: Sequence[str] | SpooledVocabulary, size: int
) -> Iterator[tuple[int, list[str]]]:
    source = iter(entries)
    for start in range(0, len(entries), size):
        yield start, list(itertools.islice(source, size))


def _count_truncated(encoder: Encoder, part: Sequence[str], templates: Sequence[str]) -> int:
    cut = np.zeros(len(part), dtype=bool)
    for template in templates:
        cut |= encoder.find_truncated(render_prompts(part, template))
    return int(cut.sum())


def encode_image_store(
    encoder: Encoder,
    source: ImageSource,
    output: str | Path,
    *,
    dtype: str = "float16",
    rows_per_shard: int = IMAGE_ROWS_PER_SHARD,
    progress: Progress | None = None,
    **pipeline: Unpack[PipelineOptions],
) -> EncodeSummary:
    """Encode images into an image store, or go on where an earlier run stopped.

    A complete store of the same source, model and settings is left as it is.

    Rows out = rows in: an image that cannot be decoded keeps its row, with a status and a reason.

    Parameters
    ----------
    encoder
        The model.
    source
        Of images, from :func:`bliss_index.encode.images.open_images`.
    output
        Directory of the store.
    dtype
        Storage type.
    rows_per_shard
        Rows of every shard but the last.
    progress
        Called with the number of rows just finished.
    pipeline
        Options of :func:`bliss_index.encode.pipeline.iter_encoded`.

    Raises
    ------
    StoreError, ModelMismatchError, OutputError
        The output cannot be begun or continued, or it is complete and holds something else; or the
        source's images are no longer those that an earlier run began with.
    InvalidInputError
        The source holds no images.
    """
    wanted: dict[str, Any] = {
        "kind": "image",
        "model": encoder.identity,
        "dim": encoder.dim,
        "dtype": dtype,
        "prompt": None,
        "attributes": {**encoder.settings, "source": source.name},
    }
    if (done := find_complete(output, **wanted)) is not None:
        if (found := source.rows()) != done.rows:
            raise StoreError(
                f"{output} is complete with {done.rows} images, {source.name} now has {found}; "
                "choose another output for the images as they are now, or remove it first"
            )
        return EncodeSummary(str(output), done.rows, done.bad_rows, 0)
    schema = source.metadata_schema
    carried = [] if schema is None else carried_names(schema.names)
    if next(source.iter(), None) is None:
        passed_over = ", ".join(f"{count} ({reason})" for reason, count in source.skipped.items())
        raise InvalidInputError(
            f"{source.name} holds no images; passed over: {passed_over or 'nothing'}"
        )
    with StoreWriter(
        output, metadata=_renamed(schema, carried), rows_per_shard=rows_per_shard, **wanted
    ) as writer:
        first = writer.rows
        if first:
            _require_unchanged(source, first - 1, writer.last_key)
            if progress is not None:
                progress(first)
        for batch in iter_encoded(encoder, source, start=first, align=rows_per_shard, **pipeline):
            writer.append(
                batch.keys,
                batch.embeddings,
                status=batch.status,
                error=batch.error,
                metadata=_with_names(batch.metadata, carried),
            )
            if progress is not None:
                progress(len(batch))
        manifest = writer.close()
    return EncodeSummary(str(output), manifest.rows, manifest.bad_rows, manifest.rows - first)


def _renamed(schema: pa.Schema | None, names: Sequence[str]) -> pa.Schema | None:
    if schema is None:
        return None
    return pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)])


def _with_names(table: pa.Table | None, names: list[str]) -> pa.Table | None:
    return None if table is None else table.rename_columns(names)


def _require_unchanged(source: ImageSource, row: int, key: str) -> None:
    """Refuse to go on in a source of which earlier rows have moved."""
    found = next((item.key for item in source.iter(row)), None)
    if found != key:
        raise StoreError(
            f"{source.name} has changed since the store was begun: row {row} was {key!r}, now it "
            f"is {found!r}; restore the images, or choose another output"
        )
