"""``encode-text`` and ``encode-images``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bliss_index.cli.console import (
    EXIT_QUARANTINED,
    counts,
    print_facts,
    print_json,
    progress_line,
    say,
    timed,
)
from bliss_index.cli.options import (
    PREPROCESSES,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    PretrainedOption,
    StoreOutput,
    one_of,
)


def encode_text(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Files of entries (.txt, .csv, .tsv, .parquet, .gz), or 'imagenet', the 1000 "
            "class names that come with open_clip; 'imagenet-synonyms', the same classes with all "
            "synonyms (the paper's dictionary); 'imagenet-21k', the names of 21,843 synsets."
        ),
    ],
    out: StoreOutput,
    model: ModelOption = "ViT-B-16",
    pretrained: PretrainedOption = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            help="Prompt with a {} for the entry; repeat to average several.",
            show_default="This is a photo of a {}",
        ),
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option("--exclude", help="File of entries to leave out.")
    ] = None,
    dtype: DtypeOption = "float16",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode a vocabulary into a corpus. Run again after an interruption, it continues."""
    from bliss_index.encode import load_encoder
    from bliss_index.encode.encode_store import encode_text_store
    from bliss_index.spooled_vocabulary import spool_vocabulary
    from bliss_index.vocabulary import DEFAULT_TEMPLATE, load_vocabulary, require_template

    templates = template or [DEFAULT_TEMPLATE]
    for one in templates:
        require_template(one)
    unwanted = load_vocabulary([exclude]).entries if exclude is not None else ()
    with progress_line("reading the vocabulary") as progress:
        spooled = spool_vocabulary(words, out, exclude=unwanted, progress=progress)
    with spooled as vocabulary:
        say(f"vocabulary: {vocabulary.describe()}")
        encoder = load_encoder(
            model,
            _tag(model, pretrained),
            device=device,
            precision=precision,
            batch_size=batch_size,
        )
        with timed() as seconds, progress_line("encoding text", len(vocabulary)) as progress:
            summary = encode_text_store(
                encoder,
                vocabulary,
                out,
                templates=templates,
                dtype=dtype,
                progress=progress,
            )
            facts = {**asdict(summary), **_rate(summary.rows_now, seconds())}
    if not summary.rows_now:
        say(f"{out} was complete already: {summary.rows} entries")
    if summary.truncated:
        say(
            f"{summary.truncated} entries are longer than the model's {encoder.context_length} "
            "tokens; their ends were cut off"
        )
    facts["model"] = encoder.identity.describe()
    facts["vocabulary"] = vocabulary.describe()
    _report(out, facts, as_json)


def encode_images(
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of images (recursive), webdataset tars, Parquet with image bytes, or a "
            "CSV of paths."
        ),
    ],
    out: StoreOutput,
    model: ModelOption = "ViT-B-16",
    pretrained: PretrainedOption = None,
    preprocess: Annotated[
        str,
        typer.Option(
            "--preprocess",
            help="'model', or 'authors' as in the paper's code.",
            callback=one_of(PREPROCESSES),
        ),
    ] = "model",
    dtype: DtypeOption = "float16",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1)] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Decoding processes.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds after which an image is given up.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Encode images into a store. Images that cannot be decoded keep their row, with a reason."""
    from bliss_index.encode import load_encoder
    from bliss_index.encode.encode_store import encode_image_store
    from bliss_index.encode.images import open_images
    from bliss_index.encode.pipeline import PipelineTimes

    source = open_images(images)
    encoder = load_encoder(
        model,
        _tag(model, pretrained),
        device=device,
        precision=precision,
        preprocess=preprocess,
        batch_size=batch_size,
    )
    times = PipelineTimes()
    with timed() as seconds, progress_line("encoding images", source.rows()) as progress:
        summary = encode_image_store(
            encoder,
            source,
            out,
            dtype=dtype,
            progress=progress,
            workers=workers,
            timeout=timeout,
            times=times,
        )
        facts = {**asdict(summary), **_rate(summary.rows_now, seconds())}
    if not summary.rows_now:
        say(f"{out} was complete already: {summary.rows} images")
    facts["encoder_busy"] = round(times.busy, 3)
    facts["model"] = encoder.identity.describe()
    if source.skipped:
        facts["skipped_files"] = dict(source.skipped) if as_json else counts(source.skipped)
    _report(out, facts, as_json)
    if summary.bad_rows:
        say(f"{summary.bad_rows} of {summary.rows} images have no embedding; see 'status', 'error'")
        raise typer.Exit(EXIT_QUARANTINED)


def _tag(model: str, pretrained: str | None) -> str | None:
    """The paper's model comes with the paper's weights, unless others are named."""
    return "openai" if model == "ViT-B-16" and pretrained is None else pretrained


def _rate(rows: int, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds, 1) if seconds > 0 else 0.0,
    }


def _report(out: Path, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print_facts(str(out), {name.replace("_", " "): value for name, value in facts.items()})
