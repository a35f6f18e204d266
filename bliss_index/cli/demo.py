"""``demo``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bliss_index.cli.console import print_json, print_table, say
from bliss_index.cli.options import JsonOption, path


def demo(
    out: Annotated[
        Path,
        typer.Option("--out", help="Directory for everything that the demo makes.", parser=path),
    ] = Path("demo-output"),
    images: Annotated[
        int, typer.Option("--images", min=4, help="Images drawn of every class.")
    ] = 40,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the drawing.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run the whole chain on drawn scenes with the embedded model, and say where to look."""
    from bliss_index.demo.chain import run_demo

    result = run_demo(out, images_per_class=images, seed=seed, say=say)
    if as_json:
        print_json(asdict(result))
        return
    print_table(
        f"AUROC, {result.anomalies} anomalies among {result.images} images",
        ["detector", "AUROC"],
        [[name, f"{value:.4f}"] for name, value in result.auroc.items()],
    )
    say(f"{result.seconds:.0f} s. Look at:")
    for name, file in result.files.items():
        say(f"  {file}  {name}")
    say("Why one image got its score (KEY as in the column 'key'):")
    say(f"  bliss-index explain {result.scores} KEY")
