"""Vocabularies and images into embedding stores, resumable by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bliss_index.encode.images import ImageSource
from bliss_index.encode.model import Encoder
from bliss_index.encode.pipeline import iter_encoded
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.store import EmbeddingStore, StoreWriter
from bliss_index.store.manifest import MANIFEST_NAME, StoreManifest
from bliss_index.vocabulary import render_prompts

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
        Texts longer than the model's context, of which the end was cut off.
    """

    path: str
    rows: int
    bad_rows: int
    rows_now: int
    truncated: int = 0


def encode_text_store(
    encoder: Encoder,
    entries: Sequence[str],
    output: str | Path,
    *,
    templates: Sequence[str],
    dtype: str = "float16",
    rows_per_shard: int = TEXT_ROWS_PER_SHARD,
    progress: Progress | None = None,
) -> EncodeSummary:
    """Encode entries into a text store, or go on where an earlier run stopped.

    Parameters
    ----------
    encoder
        The model.
    entries
        W different texts; they become the keys too.
    output
        Directory of the store.
    templates
        One prompt template with a ``{}``; of several, embeddings are averaged.
    dtype
        Storage type.
    progress
        Called with the number of rows just finished.

    Raises
    ------
    StoreError, OutputError
        The output cannot be begun or continued.
    """
    if not entries:
        raise InvalidInputError("there are no entries to encode")
    if not templates:
        raise InvalidInputError(
            "at least one template is needed, such as 'This is a photo of a {}'"
        )
    digest = hashlib.sha256("\n".join(entries).encode("utf-8", "surrogatepass")).hexdigest()
    attributes = {**encoder.settings, "templates": list(templates), "entries_sha256": digest}
    single = templates[0] if len(templates) == 1 else None
    truncated = encoder.count_truncated(render_prompts(entries, templates[0]))
    with StoreWriter(
        output,
        kind="text",
        model=encoder.identity,
        dim=encoder.dim,
        dtype=dtype,
        prompt=single if single is not None else " | ".join(templates),
        rows_per_shard=rows_per_shard,
        attributes=attributes,
    ) as writer:
        first = writer.rows
        if progress is not None and first:
            progress(first)
        # Whole shards at a time: a continued run forms the same batches, and so the same bytes.
        for start in range(first, len(entries), rows_per_shard):
            part = list(entries[start : start + rows_per_shard])
            if single is not None:
                rows = encoder.encode_text(render_prompts(part, single), progress=progress)
            else:
                rows = encoder.encode_ensemble(part, templates, progress=progress)
            writer.append(part, rows, texts=part)
        manifest = writer.close()
    return EncodeSummary(str(output), manifest.rows, 0, manifest.rows - first, truncated)


def encode_image_store(
    encoder: Encoder,
    source: ImageSource,
    output: str | Path,
    *,
    dtype: str = "float16",
    rows_per_shard: int = IMAGE_ROWS_PER_SHARD,
    progress: Progress | None = None,
    **pipeline: Any,
) -> EncodeSummary:
    """Encode images into an image store, or go on where an earlier run stopped.

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
    progress
        Called with the number of rows just finished.
    pipeline
        Options of :func:`bliss_index.encode.pipeline.iter_encoded`: workers, batch_size, timeout,
        max_pixels, times.
    """
    attributes = {**encoder.settings, "source": source.name}
    with StoreWriter(
        output,
        kind="image",
        model=encoder.identity,
        dim=encoder.dim,
        dtype=dtype,
        metadata=source.metadata_schema,
        rows_per_shard=rows_per_shard,
        attributes=attributes,
    ) as writer:
        first = writer.rows
        if progress is not None and first:
            progress(first)
        for batch in iter_encoded(encoder, source, start=first, align=rows_per_shard, **pipeline):
            writer.append(
                batch.keys,
                batch.embeddings,
                status=batch.status,
                error=batch.error,
                metadata=batch.metadata,
            )
            if progress is not None:
                progress(len(batch))
        manifest = writer.close()
    return EncodeSummary(str(output), manifest.rows, manifest.bad_rows, manifest.rows - first)


def finished_store(output: str | Path, kind: str) -> EmbeddingStore | None:
    """Return the store if an earlier run completed it, so that running again is harmless.

    Raises
    ------
    StoreError
        A complete store of the other kind stands there.
    """
    if not (Path(output) / MANIFEST_NAME).is_file():
        return None
    manifest = StoreManifest.read(Path(output))
    if not manifest.complete:
        return None
    if manifest.kind != kind:
        raise StoreError(
            f"{output} already holds a complete store of {manifest.kind} embeddings; choose "
            "another output"
        )
    return EmbeddingStore(Path(output), manifest)
