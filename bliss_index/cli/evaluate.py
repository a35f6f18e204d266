"""``evaluate``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bliss_index.cli.console import print_json, print_table, progress_line, say
from bliss_index.cli.options import JsonOption, ThreadsOption

_TITLES = {
    "auroc": "AUROC",
    "aupr_anomaly": "AUPR, anomalies positive",
    "aupr_normal": "AUPR, normal images positive",
    "fpr95_anomaly": "false alarms where 95 % of anomalies are found",
    "fpr95_normal": "anomalies missed where 95 % of normal images pass",
}


def evaluate(
    target: Annotated[
        Path,
        typer.Argument(help="Scores directory; with --protocol, the image store to test on."),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            help="1 = anomaly, 0 = normal; with --protocol, classes. A file .npy, .txt, .csv or "
            ".parquet, in row order or with a column 'key'.",
        ),
    ],
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
        Path | None, typer.Option("--normal", help="Image store to calibrate with (--protocol).")
    ] = None,
    normal_labels: Annotated[
        Path | None, typer.Option("--normal-labels", help="Its classes (--protocol).")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", help="File or text store of all classes (--protocol)."),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Text store of the vocabulary (--protocol).")
    ] = None,
    detectors: Annotated[
        str, typer.Option("--detectors", help="Of bliss, label, raw, mcm, neglabel, knn.")
    ] = "bliss,label,raw",
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Vocabulary entries per image.")] = 10,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how well scores tell anomalies from normal images, or evaluate a whole protocol."""
    if protocol is None:
        _evaluate_scores(target, labels, resamples, as_json)
        return
    needed = {
        "--normal": normal, "--normal-labels": normal_labels, "--classes": classes,
        "--corpus": corpus,
    }  # fmt: skip
    if normal is None or normal_labels is None or classes is None or corpus is None:
        missing = ", ".join(name for name, value in needed.items() if value is None)
        raise typer.BadParameter(f"--protocol needs {missing}")
    from bliss_index.calibration.class_texts import ClassTexts
    from bliss_index.evaluation.from_stores import evaluate_stores
    from bliss_index.store import EmbeddingStore

    store = EmbeddingStore.open(target, kind="image")
    if classes.is_dir():
        texts = ClassTexts.of_store(classes)
    else:
        texts = ClassTexts.of_file(classes, store.model)
    with progress_line("scoring", store.rows) as progress:
        report = evaluate_stores(
            target,
            labels,
            normal,
            normal_labels,
            texts,
            corpus,
            protocol,
            detectors=detectors,
            k=k,
            threads=threads,
            progress=progress,
        )
    say(f"{report.runs} runs of {report.images} images in {report.seconds:.1f} s")
    if as_json:
        print_json(report.to_json())
    else:
        sys.stdout.write(report.to_markdown())


def _evaluate_scores(scores: Path, labels: Path, resamples: int, as_json: bool) -> None:
    from bliss_index.evaluation.from_scores import evaluate_directory

    metrics = evaluate_directory(scores, labels, resamples=resamples)
    missing = metrics.missing_normal + metrics.missing_anomalies
    if missing:
        say(f"{missing} images without a score are left out")
    if as_json:
        print_json(asdict(metrics))
        return
    rows = []
    for name, title in _TITLES.items():
        interval = metrics.intervals.get(name)
        shown = "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"
        rows.append([title, f"{getattr(metrics, name):.4f}", shown])
    print_table(
        f"{metrics.anomalies} anomalies, {metrics.normal} normal images",
        ["", "value", "95 % interval"],
        rows,
    )
