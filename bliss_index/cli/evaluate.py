"""``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bliss_index.cli.console import print_json, print_table, progress_line, say, write
from bliss_index.cli.options import (
    PREPROCESSES,
    DeviceOption,
    JsonOption,
    PretrainedOption,
    ThreadsOption,
    one_of,
    path,
    path_or_uri,
)
from bliss_index.evaluation.registry import DETECTORS

if TYPE_CHECKING:
    from bliss_index.evaluation.metrics import Metrics
    from bliss_index.evaluation.paper.protocol_run import ProtocolReport


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="Scores directory; with --protocol, the image store to test on; with --encoded, "
            "the folder of torchvision's data sets.",
            parser=path_or_uri,
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help="1 = anomaly, 0 = normal; with --protocol, classes. A file .npy, .txt, .csv or "
            ".parquet, in row order or with a column 'key'. Or 'folders': those named as a normal "
            "class hold normal images, all others anomalies.",
            parser=path_or_uri,
        ),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            "--judgements",
            help="In place of --labels: folder of the logs of 'bliss-index review', of which the "
            "random samples count.",
            parser=path,
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=0, help="Bootstrap resamples for intervals.")
    ] = 1000,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="'one-class' or 'all-but-one' of any classes, or one of the paper's: "
            "cifar10-one-class, cifar10-6-vs-4, cifar10-9-vs-1, cifar100-20-vs-80, "
            "tinyimagenet-20-vs-180.",
        ),
    ] = None,
    normal: Annotated[
        str | None,
        typer.Option(
            "--normal",
            help="Image store to calibrate with (--protocol), or that calibrated (--judgements).",
            parser=path_or_uri,
        ),
    ] = None,
    normal_labels: Annotated[
        str | None,
        typer.Option("--normal-labels", help="Its classes (--protocol).", parser=path_or_uri),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="File or text store of all classes (--protocol).",
            parser=path_or_uri,
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            help="Text store of the vocabulary (--protocol).",
            show_default="with --encoded, the paper's dictionary",
            parser=path_or_uri,
        ),
    ] = None,
    encoded: Annotated[
        str | None,
        typer.Option(
            "--encoded",
            help="TARGET holds cifar-10-batches-py, cifar-100-python or tiny-imagenet-200: encode "
            "it into this directory, once, with the model of --corpus (--protocol).",
            parser=path_or_uri,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Model to encode with (--encoded, no --corpus).",
            show_default="ViT-B-16",
        ),
    ] = None,
    pretrained: PretrainedOption = None,
    preprocess: Annotated[
        str,
        typer.Option(
            "--preprocess",
            help="'model', or 'authors' as in the paper (--encoded).",
            callback=one_of(PREPROCESSES),
        ),
    ] = "model",
    device: DeviceOption = "auto",
    detectors: Annotated[
        str, typer.Option("--detectors", help=f"Of {', '.join(DETECTORS)}.")
    ] = "bliss,label,raw",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Vocabulary entries per image.")] = 10,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how well scores tell anomalies from normal images, or evaluate a whole protocol."""
    own = {"--labels": labels, "--normal": normal, "--normal-labels": normal_labels,
           "--classes": classes}  # fmt: skip
    if protocol is None:
        judged = judgements is not None
        unused = {
            name: value for name, value in own.items()
            if name != "--labels" and not (judged and name == "--normal")
        }  # fmt: skip
        unused |= {"--corpus": corpus, "--encoded": encoded, "--model": model,
                   "--pretrained": pretrained}  # fmt: skip
        _forbid("requires --protocol", unused)
        if judged:
            _forbid("cannot be given with --judgements", {"--labels": labels})
            _evaluate_judged(target, judgements, normal, resamples, as_json)
            return
        (file,) = _required("TARGET", {"--labels": labels})
        _evaluate_scores(target, file, resamples, as_json)
        return
    _forbid("cannot be given with --protocol", {"--judgements": judgements})
    common: dict[str, Any] = {"detectors": detectors, "k": k, "threads": threads}
    if encoded is not None:
        _forbid("cannot be given with --encoded, which takes it from the data set", own)
        encoder = {"--model": model, "--pretrained": pretrained}
        if corpus is not None:
            _forbid("cannot be given with --corpus, which names its model", encoder)
        folder = _local("TARGET with --encoded", target)
        from bliss_index.encode.encode_work import DEFAULT_MODEL
        from bliss_index.evaluation.paper.from_dataset import evaluate_dataset

        with progress_line("encoding") as progress:
            report = evaluate_dataset(
                folder, protocol, corpus, encoded, model=model or DEFAULT_MODEL,
                pretrained=pretrained, preprocess=preprocess, device=device,
                notify=say, progress=progress, **common,
            )  # fmt: skip
    else:
        _forbid("requires --encoded", {"--model": model, "--pretrained": pretrained})
        paths = _required("--protocol", {**own, "--corpus": corpus})
        report = _evaluate_stores(target, protocol, *paths, **common)
    say(f"{report.runs} runs of {report.images} images in {report.seconds:.1f} s")
    if as_json:
        print_json(report.to_json())
    else:
        write(report.to_markdown())


def _local(name: str, value: str) -> Path:
    """Return a value as a local path; refuse an address, naming what it was given for."""
    try:
        return path(value)
    except typer.BadParameter as error:
        error.param_hint = name
        raise


def _required(what: str, options: dict[str, str | None]) -> list[str]:
    """Return the values of options that must all be given, in their order."""
    missing = [name for name, value in options.items() if value is None]
    if missing:
        raise typer.BadParameter(f"{what} needs {', '.join(missing)}")
    return [value for value in options.values() if value is not None]


def _forbid(why: str, options: Mapping[str, str | Path | None]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise typer.BadParameter(f"{given[0]} {why}")


def _evaluate_stores(
    test: str,
    protocol: str,
    labels: str,
    normal: str,
    normal_labels: str,
    classes: str,
    corpus: str,
    **common: Any,
) -> ProtocolReport:
    from bliss_index.calibration.class_texts import ClassTexts
    from bliss_index.calibration.labels import Labels
    from bliss_index.evaluation.from_stores import evaluate_stores
    from bliss_index.store import EmbeddingStore

    store = EmbeddingStore.open(test, kind="image")
    texts = ClassTexts.open(classes, store.model)
    with progress_line("scoring", store.rows) as progress:
        return evaluate_stores(
            test, Labels.read(labels), normal, Labels.read(normal_labels), texts, corpus, protocol,
            progress=progress, **common,
        )  # fmt: skip


def _evaluate_scores(scores: str, labels: str, resamples: int, as_json: bool) -> None:
    from bliss_index.evaluation.from_scores import evaluate_directory

    _print_metrics(evaluate_directory(scores, labels, resamples=resamples), as_json)


def _evaluate_judged(
    scores: str, judgements: Path | None, normal: str | None, resamples: int, as_json: bool
) -> None:
    from bliss_index.evaluation.from_scores import evaluate_known
    from bliss_index.review.sample import judged_sample

    found = judged_sample(scores, judgements or Path(), normal)
    say(found.left_out)
    metrics = evaluate_known(found.inputs.scores, found.known(), resamples=resamples)
    _print_metrics(metrics, as_json)


def _print_metrics(metrics: Metrics, as_json: bool) -> None:
    missing = metrics.missing_normal + metrics.missing_anomalies
    if missing:
        say(f"{missing} images without a score are left out")
    if metrics.unlabelled:
        say(f"{metrics.unlabelled} images without a label are left out")
    if as_json:
        print_json(asdict(metrics))
        return
    print_table(
        f"{metrics.anomalies} anomalies, {metrics.normal} normal images",
        ["", "value", "95 % interval"],
        [[title, f"{value:.4f}", interval] for title, value, interval in metrics.rows()],
    )
