"""``encode-text`` and ``encode-images``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bliss_index.cli.console import (
    counts,
    print_facts,
    print_json,
    progress_line,
    say,
    timed,
)
from bliss_index.cli.jobs import (
    EngineOption,
    MemoryOption,
    TaskOption,
    end,
    job_options,
    make_listener,
)
from bliss_index.cli.options import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    PreprocessOption,
    PretrainedOption,
    PromptEnsembleOption,
    StoreOutput,
    path_or_uri,
    refuse_both,
)
from bliss_index.devices import device_names, resolve_device

if TYPE_CHECKING:
    from bliss_index.jobs import JobOptions

_MOST_COMPARED = 100_000  # entries, of which to look for those that say nearly the same

EncodeDevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices", help="GPUs such as '0,1', one process each.", show_default="--device"
    ),
]
EncodeWorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that encode.",
        show_default="one a GPU; on the processor, one a thread",
    ),
]


def encode_text(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Files of entries (.txt, .csv, .tsv, .parquet, .gz), or 'imagenet', the 1000 "
            "class names that come with open_clip; 'imagenet-synonyms', the same classes with all "
            "synonyms (the paper's dictionary); 'imagenet-21k', the names of 21,843 synsets.",
            parser=path_or_uri,
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
    prompt_ensemble: PromptEnsembleOption = False,
    exclude: Annotated[
        str | None,
        typer.Option("--exclude", help="File of entries to leave out.", parser=path_or_uri),
    ] = None,
    dtype: DtypeOption = "float16",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    batch_size: BatchSizeOption = None,
    devices: EncodeDevicesOption = None,
    workers: EncodeWorkersOption = None,
    engine: EngineOption = "local",
    task: TaskOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode a vocabulary into a corpus. Run again after an interruption, it continues."""
    from bliss_index.encode.encode_work import EncoderSpec
    from bliss_index.encode.spooled_vocabulary import spool_vocabulary
    from bliss_index.encode.text_work import encode_text_store
    from bliss_index.search.near import near_entries
    from bliss_index.store import EmbeddingStore
    from bliss_index.vocabulary import (
        DEFAULT_TEMPLATE,
        PROMPT_ENSEMBLE,
        load_vocabulary,
        prompt_templates,
    )

    refuse_both(prompt_ensemble, template)
    listed = [PROMPT_ENSEMBLE] if prompt_ensemble else template or [DEFAULT_TEMPLATE]
    templates = [one for word in listed for one in prompt_templates(word)]
    unwanted = load_vocabulary([exclude]).entries if exclude is not None else ()
    with progress_line("reading the vocabulary") as progress:
        spooled = spool_vocabulary(words, out, exclude=unwanted, progress=progress)
    with spooled as vocabulary:
        say(f"vocabulary: {vocabulary.describe()}")
        spec = EncoderSpec.of(model, pretrained, precision=precision, batch_size=batch_size)
        options = encoding_options(device, devices, workers, engine, task, memory)
        with timed() as seconds, progress_line("encoding text") as progress:
            summary = encode_text_store(
                spec,
                vocabulary,
                out,
                templates=templates,
                dtype=dtype,
                options=options,
                listener=make_listener(progress, "encoded"),
            )
            facts = {**asdict(summary), **_rate(summary.rows_now, seconds())}
    near = None
    if not summary.rows_now:
        say(f"{out} was complete already: {summary.rows} entries")
    elif task is None and summary.complete and 1 < summary.rows <= _MOST_COMPARED:
        # The last task of an array leaves the store's end to a run without --task.
        near = near_entries(EmbeddingStore.open(out, kind="text"))
        if near.near:
            say(str(near))
    if as_json:
        facts["near_entries"] = None if near is None else near.to_json()
    if summary.truncated:
        say(f"{summary.truncated} entries are longer than the model's context; their ends were cut")
    facts["vocabulary"] = vocabulary.describe()
    _report(out, facts, as_json)
    end(summary.failed, summary.complete, 0, "")


def encode_images(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Folder of images (recursive), webdataset tars, Parquet with image bytes, or a "
            "CSV of paths; local or a URI.",
            parser=path_or_uri,
        ),
    ],
    out: StoreOutput,
    key_prefix: Annotated[
        bool,
        typer.Option("--key-prefix", help="Begin keys with the name of their tar, table, folder."),
    ] = False,
    model: ModelOption = "ViT-B-16",
    pretrained: PretrainedOption = None,
    preprocess: PreprocessOption = "model",
    dtype: DtypeOption = "float16",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    batch_size: BatchSizeOption = None,
    devices: EncodeDevicesOption = None,
    workers: EncodeWorkersOption = None,
    decoders: Annotated[
        int | None,
        typer.Option("--decoders", min=0, help="Decoding processes of each worker."),
    ] = None,
    engine: EngineOption = "local",
    task: TaskOption = None,
    memory: MemoryOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds after which an image is given up.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Encode images into a store. Images that cannot be decoded keep their row, with a reason."""
    from bliss_index.encode.encode_work import EncoderSpec
    from bliss_index.encode.image_rows import passed_over
    from bliss_index.encode.image_work import encode_image_store
    from bliss_index.encode.images import open_images
    from bliss_index.encode.pipeline import PipelineTimes

    source = open_images(images, key_prefix=key_prefix)
    spec = EncoderSpec.of(
        model, pretrained, precision=precision, preprocess=preprocess, batch_size=batch_size
    )
    options = encoding_options(device, devices, workers, engine, task, memory)
    times = PipelineTimes()
    with timed() as seconds, progress_line("encoding images") as progress:
        summary = encode_image_store(
            spec,
            source,
            out,
            dtype=dtype,
            options=options,
            listener=make_listener(progress, "encoded"),
            decoders=decoders,
            timeout=timeout,
            times=times,
        )
        facts = {**asdict(summary), **_rate(summary.rows_now, seconds())}
    if not summary.rows_now:
        say(f"{out} was complete already: {summary.rows} images")
    if times.rows:  # where this process encoded
        facts["encoder_busy"] = round(times.busy, 3)
    if source.skipped:
        say(f"{source.name}: files passed over: {passed_over(source)}")
        facts["skipped_files"] = dict(source.skipped) if as_json else counts(source.skipped)
    if summary.repeated_keys:
        say(
            f"{summary.repeated_keys} keys occur in several parts; the manifest names the first. "
            "All have their rows; --key-prefix, into a new store, tells them apart by their file"
        )
    _report(out, facts, as_json)
    bad, rows = summary.bad_rows, summary.rows
    message = f"{bad} of {rows} images have no embedding; see 'status', 'error'"
    end(summary.failed, summary.complete, bad, message)


def encoding_options(
    device: str,
    devices: str | None,
    workers: int | None,
    engine: str,
    task: str | None,
    memory: str | None,
) -> JobOptions:
    """Options of an encoding job."""
    from bliss_index.encode.model import ENCODER_DEVICES

    here = engine == "local"  # Ray's nodes have devices of their own
    named = tuple(
        resolve_device(name, among=ENCODER_DEVICES, here=here)
        for name in device_names(devices or device)
    )
    return job_options(workers, named, engine, task, memory)


def _rate(rows: int, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds, 1) if seconds > 0 else 0.0,
    }


def _report(out: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print_facts(str(out), {name.replace("_", " "): value for name, value in facts.items()})
