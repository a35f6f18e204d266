"""``calibrate``."""

from __future__ import annotations

from typing import Annotated

import typer

from bliss_index.cli.console import print_facts, print_json, progress_line, say
from bliss_index.cli.options import (
    DeviceOption,
    ImageWeightOption,
    JsonOption,
    PromptEnsembleOption,
    ThreadsOption,
    path_or_uri,
    refuse_both,
)


def calibrate(
    images: Annotated[
        str, typer.Argument(help="Image store of normal images.", parser=path_or_uri)
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", help="Directory or URI of the calibration to make.", parser=path_or_uri
        ),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="Names of the normal classes: a text file (encoded with the store's model) or a "
            "text store.",
            show_default="with --labels folders, the folders",
            parser=path_or_uri,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help=".npy, .txt, .csv or .parquet of class names or numbers, in row order or with a "
            "column 'key'; or 'folders', the first folder of every key. Not needed for one class, "
            "or with --assign.",
            parser=path_or_uri,
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="Prompt for class names, with a {}.")
    ] = None,
    prompt_ensemble: PromptEnsembleOption = False,
    assign: Annotated[
        bool,
        typer.Option("--assign", help="Give images without a label the class nearest to them."),
    ] = False,
    trim: Annotated[
        float,
        typer.Option(
            "--trim",
            help="Leave out this share of every class: the images farthest from its centre. For "
            "images that may include some that do not belong.",
        ),
    ] = 0.0,
    shrinkage: Annotated[
        float,
        typer.Option(
            "--shrinkage",
            min=0.0,
            metavar="N",
            help="Mix every variance with the class's mean variance over the vocabulary, which "
            "weighs as much as N images. For classes of few images; 0 is the paper's.",
        ),
    ] = 0.0,
    image_weight: ImageWeightOption = "0",
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            help="Text store of the vocabulary, for --image-weight auto; not needed otherwise.",
            parser=path_or_uri,
        ),
    ] = None,
    k: Annotated[
        int,
        typer.Option("-k", "--k", min=1, help="Vocabulary entries per image (--image-weight auto)"),
    ] = 10,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Learn what images of the normal classes look like. Needs no vocabulary.

    Only --image-weight auto does, since it compares scores.
    """
    from bliss_index.api.steps import calibrate as run_calibration
    from bliss_index.evaluation.weights import parse_image_weight
    from bliss_index.jobs.listener import RowsListener
    from bliss_index.store import EmbeddingStore
    from bliss_index.vocabulary import PROMPT_ENSEMBLE

    refuse_both(prompt_ensemble, template)
    rows = EmbeddingStore.open(images, kind="image").rows
    with progress_line("calibrating", rows) as progress:
        summary = run_calibration(
            images, out, labels=labels, classes=classes,
            template=PROMPT_ENSEMBLE if prompt_ensemble else template, assign=assign,
            trim=trim, shrinkage=shrinkage, image_weight=parse_image_weight(image_weight),
            corpus=corpus, k=k, threads=threads, device=device,
            listener=RowsListener(progress),
        )  # fmt: skip
    for notice in summary.notices:
        say(notice)
    if as_json:
        print_json(summary.to_json())
        return
    counts = [moments.count for moments in summary.calibration.moments]
    made = summary.calibration
    weights = {}
    if made.image_weight or summary.weights:
        weights = {"image weight": f"{made.image_weight:g}", "lambda": f"{made.lam:g}"}
    names, model = summary.names, summary.calibration.model
    right = {} if names is None else {"zero-shot accuracy": f"{names.overall:.1%} (of the names)"}
    print_facts(
        str(out),
        {
            "classes": len(counts),
            "images": f"{sum(counts)} ({min(counts)} to {max(counts)} a class)",
            "shrinkage": f"{shrinkage:g}",
            **weights,
            **right,
            "model": "none" if model is None else model.describe(),
            "content hash": summary.calibration.content_hash,
        },
    )
