"""``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bliss_index.cli.console import print_facts, print_json, say
from bliss_index.cli.options import JsonOption, path, path_or_uri


def report(
    scores: Annotated[
        str, typer.Argument(help="Scores directory; local or a URI.", parser=path_or_uri)
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="HTML file; local or a URI.",
            show_default="SCORES/_report.html",
            parser=path_or_uri,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Folder of the images, to show those that stand out.", parser=path
        ),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Refer to the image files instead of embedding them.")
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help="What is known: 1 = anomaly, 0 = normal; as for evaluate.",
            parser=path_or_uri,
        ),
    ] = None,
    gallery: Annotated[
        int, typer.Option("--gallery", min=0, help="Number of the most anomalous images to show.")
    ] = 24,
    plots: Annotated[
        str | None,
        typer.Option("--plots", help="Directory for the plots as PNG.", parser=path_or_uri),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            help="Where the vocabulary is now, to group the flagged images.",
            show_default="where it was",
            parser=path_or_uri,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a page to read: scores, classes, the images that stand out and why."""
    from bliss_index.report import ReportOptions, make_report

    options = ReportOptions(
        images=images, link=link, labels=labels, gallery=gallery, plots=plots, corpus=corpus
    )
    summary = make_report(scores, out, options)
    if images is not None and summary.missing_pictures:
        say(f"{summary.missing_pictures} of the images to show are missing or cannot be decoded")
    if as_json:
        print_json(summary.to_json())
        return
    print_facts(
        summary.path,
        {
            "rows": summary.rows,
            "size": f"{summary.bytes / 2**20:.1f} MiB",
            "pictures": summary.pictures,
            **({"plots": ", ".join(summary.plots)} if summary.plots else {}),
        },
    )
