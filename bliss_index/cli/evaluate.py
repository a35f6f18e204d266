"""``evaluate``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bliss_index.cli.console import print_json, print_table, say
from bliss_index.cli.options import JsonOption

_TITLES = {
    "auroc": "AUROC",
    "aupr_anomaly": "AUPR, anomalies positive",
    "aupr_normal": "AUPR, normal images positive",
    "fpr95_anomaly": "false alarms where 95 % of anomalies are found",
    "fpr95_normal": "anomalies missed where 95 % of normal images pass",
}


def evaluate(
    scores: Annotated[Path, typer.Argument(help="Scores directory.")],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            help="1 = anomaly, 0 = normal: .npy, .txt, .csv or .parquet, in row order or with a "
            "column 'key'.",
        ),
    ],
    resamples: Annotated[
        int, typer.Option("--resamples", min=0, help="Bootstrap resamples for intervals.")
    ] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Say how well scores tell anomalies from normal images."""
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
