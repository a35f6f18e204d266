"""``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bliss_index.cli.console import print_json, print_table, say
from bliss_index.cli.options import JsonOption, PretrainedOption, ThreadsOption, path

_MANY = 1e8


def bench(
    entries: Annotated[int, typer.Option("--entries", min=1, help="Vocabulary entries.")] = 20_000,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Normal classes.")] = 10,
    dim: Annotated[int, typer.Option("--dim", min=1, help="Length of an embedding.")] = 512,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Vocabulary entries per image.")] = 10,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="Images of the whole job.", show_default="for 12 s"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Also measure this encoder; without --pretrained on random weights."
        ),
    ] = None,
    pretrained: PretrainedOption = None,
    threads: ThreadsOption = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help="Disk for the job's files.",
            show_default="the temporary folder",
            parser=path,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: images per second for a vocabulary like yours."""
    from bliss_index.bench.measure import BenchSettings, run_bench

    settings = BenchSettings(
        entries=entries,
        classes=classes,
        dim=dim,
        k=k,
        images=images,
        threads=threads,
        model=model,
        pretrained=pretrained,
        folder=None if folder is None else str(folder),
    )
    report = run_bench(settings, say)
    if as_json:
        print_json(report.to_json())
        return
    slowest = min(report.search.values())
    rows = [
        [f"exact search, {name}", f"{rate:,.0f}", f"{rate / slowest:.1f} x"]
        for name, rate in sorted(report.search.items(), key=lambda pair: -pair[1])
    ]
    rows.append([f"scoring in memory, {report.fastest} search", f"{report.scoring:,.0f}", ""])
    rows.append([f"whole job, {report.job_images:,} images", f"{report.job:,.0f}", ""])
    if report.encoding:
        rows.append([f"encoding images, {model}", f"{report.encoding['images']:,.1f}", ""])
        rows.append([f"encoding texts, {model}", f"{report.encoding['texts']:,.1f}", ""])
    other = report.approximate
    if other is not None:
        name = f"approximate index '{other.kind}', recall {other.recall:.2f}"
        rows.append([name, f"{other.rate:,.0f}", f"{other.gain:.2f} x exact"])
    print_table(
        f"{entries:,} entries, {classes} classes, d = {dim}, k = {k}", ["", "per second", ""], rows
    )
    for name, reason in report.search_unavailable.items():
        say(f"{name}: {reason}")
    if other is not None:
        pays = "would pay" if other.gain > 1 else "would not pay"
        say(f"at this size an approximate index {pays} ({other.gain:.2f} times the exact search)")
    say(
        f"that job's first rows came after {report.first_rows_seconds:.1f} s; all but its parts "
        f"took {report.job_start_seconds:.1f} s"
    )
    say(f"100 million images: scoring takes {_span(report.job_seconds(_MANY))}")
    if report.encoding:
        say(f"100 million images: encoding takes {_span(_MANY / report.encoding['images'])}")


def _span(seconds: float) -> str:
    """Write a time for people."""
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
