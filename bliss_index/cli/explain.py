"""``explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bliss_index.cli.console import EXIT_QUARANTINED, print_facts, print_json, print_table, say
from bliss_index.cli.options import (
    EmbeddingColumnOption,
    EmbeddingDtypeOption,
    ImagesOption,
    JsonOption,
    KeyColumnOption,
    MovedCorpusOption,
    as_key,
    path_or_uri,
)

if TYPE_CHECKING:
    from bliss_index.report.explanation import ClassTotal


def explain(
    scores: Annotated[
        str, typer.Argument(help="Scores directory; local or a URI.", parser=path_or_uri)
    ],
    key: Annotated[
        str,
        typer.Argument(
            help="Key of the image, as in the column 'key', or its last names where these are "
            "enough.",
        ),
    ],
    images: ImagesOption = None,
    corpus: MovedCorpusOption = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help="Where the calibration is now.",
            show_default="where it was",
            parser=path_or_uri,
        ),
    ] = None,
    classes: Annotated[
        int, typer.Option("--classes", min=1, help="Number of normal classes to list.")
    ] = 5,
    embedding_column: EmbeddingColumnOption = None,
    embedding_dtype: EmbeddingDtypeOption = None,
    key_column: KeyColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why an image scored as it did: its nearest classes, and the entries that pulled it."""
    from bliss_index.report.explanation import explain_image
    from bliss_index.store.source_reader import ColumnNames

    found = explain_image(
        scores,
        as_key(key),
        images=images,
        corpus=corpus,
        calibration=calibration,
        columns=ColumnNames(embedding_column, key_column, dtype=embedding_dtype),
        classes=classes,
    )
    if as_json:
        print_json(found.to_json())
    elif found.anomaly_score is not None:
        facts = {
            "anomaly score": f"{found.anomaly_score:.4f} = internal {found.internal_score:.4f} + "
            f"{found.lam:g} x external {found.external_score:.4f}",
            "nearest class": found.classes[0].name,
            **_parts(found.classes[0]),
            "more anomalous than": f"{found.less_anomalous:.2%} of the scored images",
        }
        if found.flag is not None:
            facts["flagged"] = "yes" if found.flag else "no"
        if found.p_value is not None:
            facts["p-value"] = f"{found.p_value:.4g}"
        print_facts(key, facts)
        print_table(
            "What the nearest vocabulary entries add",
            ["entry", "similarity", "deviations", "adds"],
            [
                [e.text, f"{e.similarity:.4f}", f"{e.deviations:+.2f}", f"{e.contribution:+.4f}"]
                for e in found.entries
            ],
        )
        print_table(
            "If only this class were normal",
            ["class", "anomaly", "internal", "external"],
            [
                [c.name, *(f"{v:.4f}" for v in (c.anomaly_score, c.internal_score))]
                + [f"{c.external_score:.4f}"]
                for c in found.classes
            ],
        )
    if found.anomaly_score is None:
        say(f"{key} has no score: {found.status}, {found.error}")
        raise typer.Exit(EXIT_QUARANTINED)


def _parts(winner: ClassTotal) -> dict[str, str]:
    """What the internal score is made of, where there is an image term."""
    if not winner.image_score:
        return {}
    label = winner.internal_score - winner.image_score
    return {"internal": f"label term {label:.4f} + image term {winner.image_score:.4f}"}
