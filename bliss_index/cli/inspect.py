"""``verify`` and ``info``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bliss_index.cli.console import (
    EXIT_ERROR,
    EXIT_QUARANTINED,
    print_facts,
    print_json,
    progress_line,
    say,
)
from bliss_index.cli.options import (
    EmbeddingColumnOption,
    EmbeddingDtypeOption,
    ImagesOption,
    JsonOption,
    KeyColumnOption,
    path_or_uri,
)


def verify(
    path: Annotated[
        str,
        typer.Argument(
            help="A store, a corpus, a calibration or scores; local or a URI.", parser=path_or_uri
        ),
    ],
    images: ImagesOption = None,
    embedding_column: EmbeddingColumnOption = None,
    embedding_dtype: EmbeddingDtypeOption = None,
    key_column: KeyColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read everything in a directory and say what does not agree."""
    from bliss_index.report.verification import verify_directory
    from bliss_index.store.source_reader import ColumnNames

    columns = ColumnNames(embedding_column, key_column, dtype=embedding_dtype)
    with progress_line("verifying") as progress:
        report = verify_directory(path, columns, progress, images)
    if as_json:
        print_json(report.to_json())
    else:
        found = len(report.problems)
        verdict = "all is well" if report.ok else f"{found} problem{'s' * (found > 1)}"
        if report.unchecked:
            verdict += ", as far as it could be checked"
        facts = {"rows": report.rows, "bad rows": report.bad_rows, "verdict": verdict}
        print_facts(path, facts)
    for problem in report.problems:
        say(f"problem: {problem}")
    for missing in report.unchecked:
        say(f"not checked: {missing}")
    if not report.ok:
        raise typer.Exit(EXIT_ERROR)
    if report.bad_rows:
        raise typer.Exit(EXIT_QUARANTINED)


def info(
    path: Annotated[
        str | None,
        typer.Argument(
            help="What to describe; local or a URI.",
            show_default="this installation",
            parser=path_or_uri,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a directory; without one, what is installed here and what will run."""
    from bliss_index.report.information import describe_directory, describe_installation

    facts: dict[str, Any]
    if path is None:
        facts, warnings = describe_installation()
        for warning in warnings:
            say(f"warning: {warning}")
        title = "bliss-index"
    else:
        facts, title = describe_directory(path), path
    if as_json:
        print_json(facts)
        return
    print_facts(title, {name.replace("_", " "): value for name, value in facts.items()})
