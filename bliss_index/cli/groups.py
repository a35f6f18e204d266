"""``groups``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bliss_index.cli.console import print_facts, print_json, print_table
from bliss_index.cli.options import JsonOption, MovedCorpusOption, path_or_uri

if TYPE_CHECKING:
    from bliss_index.report.groups import Group


def groups(
    scores: Annotated[
        str, typer.Argument(help="Scores directory; local or a URI.", parser=path_or_uri)
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="Parquet file for the groups of all flagged images: row, key, anomaly_score and "
            "group; local or a URI.",
            parser=path_or_uri,
        ),
    ] = None,
    corpus: MovedCorpusOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="Group the images from this anomaly score on.",
            show_default="those that the scores flag",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Gather flagged images into groups that the vocabulary names, the largest first.

    The scores must have entries: 'score --explain', or a screen.
    """
    from bliss_index.report.groups import groups as find_groups

    found = find_groups(scores, corpus, threshold=threshold, out=out)
    if as_json:
        print_json(found.to_json())
        return
    print_groups(found.groups)
    facts = {"flagged": f"{found.flagged} from {found.threshold:.4f} on",
             "groups": len(found.groups)}  # fmt: skip
    print_facts(scores, {**facts, **({} if out is None else {"file": out})})


def print_groups(found: Sequence[Group], most: int | None = None) -> None:
    """Print a table of groups, or of the first of them."""
    shown = found if most is None else found[:most]
    if not shown:
        return
    title = "What the flagged images show"
    if len(shown) < len(found):
        title += f": the {len(shown)} largest of {len(found)} groups"
    print_table(
        title,
        ["group", "images", "share", "typical score", "also"],
        [
            [one.name, str(one.images), f"{one.share:.1%}", f"{one.typical_score:.4f}",
             ", ".join(one.also)]
            for one in shown
        ],
    )  # fmt: skip
