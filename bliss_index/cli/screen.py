"""``screen``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bliss_index.cli.console import (
    counts,
    print_facts,
    print_json,
    print_table,
    progress_line,
    say,
)
from bliss_index.cli.groups import print_groups
from bliss_index.cli.jobs import (
    DevicesOption,
    EngineOption,
    MemoryOption,
    end,
    job_options,
    make_listener,
)
from bliss_index.cli.options import (
    BatchSizeOption,
    DtypeOption,
    ImageWeightOption,
    JsonOption,
    LamOption,
    PrecisionOption,
    PreprocessOption,
    PretrainedOption,
    PromptEnsembleOption,
    ThreadsOption,
    between_0_and_1,
    path,
    path_or_uri,
    refuse_both,
)
from bliss_index.devices import device_names

if TYPE_CHECKING:
    from bliss_index.screening import ScreenResult

_REASONS = 3
_GROUPS = 10


def screen(
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Folder of photos (recursive), webdataset tars, Parquet with image bytes, a CSV "
            "of paths, or an image store; local or a URI.",
            parser=path_or_uri,
        ),
    ],
    out: Annotated[
        str,
        typer.Option("--out", help="Directory or URI for all that is made.", parser=path_or_uri),
    ],
    normal: Annotated[
        str | None,
        typer.Option(
            "--normal",
            help="Known normal images, like PHOTOS; their sub-folders are the classes.",
            show_default="the photos themselves calibrate",
            parser=path_or_uri,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Names of the normal classes, such as cat,dog; or a file (.txt, .csv, ...) or a "
            "text store of them.",
            show_default="the sub-folders of --normal",
            parser=path_or_uri,
        ),
    ] = None,
    vocabulary: Annotated[
        list[str] | None,
        typer.Option(
            "--vocabulary",
            help="File of entries or built-in list, as for encode-text; repeat for several; or a "
            "text store. It is encoded once, and kept in the cache for other runs.",
            show_default="imagenet",
            parser=path_or_uri,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Name of an open_clip model, 'local-dir:PATH', or the built-in 'bliss-tiny'.",
            show_default="ViT-B-16; of an image store, its model",
        ),
    ] = None,
    pretrained: PretrainedOption = None,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings",
            help="PHOTOS, and --normal, are embeddings that --model made, as import takes them.",
        ),
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help="Prompt with a {} for entries and classes.",
            show_default="This is a photo of a {}",
        ),
    ] = None,
    prompt_ensemble: PromptEnsembleOption = False,
    trim: Annotated[
        float | None,
        typer.Option(
            "--trim",
            help="Leave out this share of every class: the images farthest from its centre.",
            show_default="0.1 where the photos themselves calibrate, else 0",
        ),
    ] = None,
    shrinkage: Annotated[
        float,
        typer.Option(
            "--shrinkage", min=0.0, metavar="N", help="For classes of few images; see calibrate."
        ),
    ] = 0.0,
    image_weight: ImageWeightOption = "0",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Vocabulary entries per image.")] = 10,
    lam: LamOption = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            help="Largest share of normal images to flag.",
            show_default="0.01, or the smallest that so few normal images allow",
            callback=between_0_and_1,
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            help="Keep the rate with this probability, such as 0.95; without it, on average.",
            callback=between_0_and_1,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder of the photos, for the report.",
            show_default="PHOTOS, if it is one folder",
            parser=path,
        ),
    ] = None,
    preprocess: PreprocessOption = "model",
    dtype: DtypeOption = "float16",
    precision: PrecisionOption = "float32",
    batch_size: BatchSizeOption = None,
    devices: DevicesOption = "auto",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes.", show_default="one a device"),
    ] = None,
    threads: ThreadsOption = None,
    engine: EngineOption = "local",
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the photos that do not belong: encode, calibrate, score and report in one command.

    Run again after an interruption, it continues where it stopped. Photos that came in since are
    encoded and scored, with the calibration and the threshold that the run has.
    """
    from bliss_index.evaluation.weights import parse_image_weight
    from bliss_index.screening import ScreenSettings
    from bliss_index.screening import screen as run_screen
    from bliss_index.vocabulary import PROMPT_ENSEMBLE

    refuse_both(prompt_ensemble, template)
    template = PROMPT_ENSEMBLE if prompt_ensemble else template
    more: dict[str, Any] = {} if template is None else {"template": template}
    if vocabulary:
        more["vocabulary"] = tuple(vocabulary)
    settings = ScreenSettings(
        photos=tuple(photos), normal=normal, classes=classes, model=model, pretrained=pretrained,
        precision=precision, preprocess=preprocess, batch_size=batch_size, embeddings=embeddings,
        dtype=dtype, trim=trim, shrinkage=shrinkage,
        image_weight=parse_image_weight(image_weight), k=k, lam=lam,
        false_alarm_rate=false_alarm_rate, confidence=confidence, images=images, **more,
    )  # fmt: skip
    named = device_names(devices)
    result = run_screen(
        settings,
        out,
        devices=named,
        threads=threads,
        options=job_options(workers, named, engine, None, memory),
        watch=_watch,
        say=say,
    )
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)
    if not result.scored_now:
        say(f"{out} was complete already")
    bad = result.rows - result.scored
    end((), True, bad, f"{bad} of {result.rows} photos have no score; see 'status' and 'error'")


@contextlib.contextmanager
def _watch(step: str, done: str) -> Iterator[Any]:
    with progress_line(step) as progress:
        yield make_listener(progress, done)


def _print(result: ScreenResult) -> None:
    print_groups(result.groups, _GROUPS)
    if result.most_anomalous:
        print_table(
            "The most anomalous photos",
            ["photo", "score", "nearest class", "what pulled it"],
            [
                [
                    one.key,
                    f"{one.anomaly_score:.4f}",
                    one.nearest_class,
                    ", ".join(f"{text} {pull:+.2f}" for text, pull in one.entries[:_REASONS]),
                ]
                for one in result.most_anomalous
            ],
        )
    share = f" ({result.flagged / result.scored:.1%})" if result.scored else ""
    print_facts(
        result.output,
        {
            "photos": f"{result.rows} ({counts(result.status)})",
            "calibrated with": counts(result.classes),
            **({"note": "\n".join(result.notices)} if result.notices else {}),
            "threshold": f"{result.threshold:.4f} (false alarms {result.false_alarm_rate:.1%}; "
            f"at most {result.rate_kept:.1%}, with 95%)",
            "flagged": f"{result.flagged} of {result.scored}{share}",
            "scores": f"{result.scores}/part-*.parquet",
            "groups": f"{len(result.groups)} in {result.groups_file}",
            "look at": result.report,
            "judge on a page": f"bliss-index review {result.output}",
        },
    )
    if result.most_anomalous:
        say("Why one photo got its score (as in the column 'key'):")
        say(f"  bliss-index explain {result.scores} KEY")
