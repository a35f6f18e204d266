"""``score``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bliss_index.cli.console import counts, print_facts, print_json, progress_line, say
from bliss_index.cli.jobs import (
    DevicesOption,
    EngineOption,
    MemoryOption,
    TaskOption,
    WorkersOption,
    end,
    job_options,
    make_listener,
)
from bliss_index.cli.options import (
    CalibrationOption,
    CorpusOption,
    EmbeddingColumnOption,
    EmbeddingDtypeOption,
    JsonOption,
    KeyColumnOption,
    LamOption,
    ThreadsOption,
    one_of,
    path_or_any_uri,
    path_or_uri,
)
from bliss_index.devices import device_names
from bliss_index.search.registry import exact_names, index_names, search_names

if TYPE_CHECKING:
    from bliss_index.scoring import JobSummary


def score(
    images: Annotated[
        str,
        typer.Argument(
            help="Image store; or .npy, .parquet, a folder of them, or a clip-retrieval folder, "
            "local or a URI.",
            parser=path_or_any_uri,
        ),
    ],
    corpus: CorpusOption,
    calibration: CalibrationOption,
    out: Annotated[
        str,
        typer.Option("--out", help="Directory or URI for the scores.", parser=path_or_uri),
    ],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Vocabulary entries per image.")] = 10,
    lam: LamOption = None,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            help=f"{', '.join(exact_names())} ('auto': the fastest exact one here), or the "
            f"corpus's index: {', '.join(index_names())}.",
            callback=one_of(search_names()),
        ),
    ] = "auto",
    devices: DevicesOption = "auto",
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    engine: EngineOption = "local",
    task: TaskOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also write the entries that made each score.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Add a column 'flag': score >= threshold.")
    ] = None,
    normal_scores: Annotated[
        str | None,
        typer.Option(
            "--normal-scores",
            help="Scores of held-out normal images, from 'bliss-index threshold': adds a column "
            "'p_value'.",
            parser=path_or_uri,
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            help="Largest share of normal images to flag, such as 0.01; needs --normal-scores.",
        ),
    ] = None,
    keep_search: Annotated[
        bool,
        typer.Option(
            "--keep-search/--no-keep-search",
            help="Keep the prepared search of a large vocabulary in CORPUS/search, and its tables "
            "in CALIBRATION/tables, for other jobs.",
        ),
    ] = True,
    memory: MemoryOption = None,
    max_bad_fraction: Annotated[
        float,
        typer.Option(
            "--max-bad-fraction", min=0.0, max=1.0, help="Stop when more rows than this are bad."
        ),
    ] = 1.0,
    embedding_column: EmbeddingColumnOption = None,
    embedding_dtype: EmbeddingDtypeOption = None,
    key_column: KeyColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score every image. Run again after an interruption, it continues where it stopped."""
    from bliss_index.scoring import ScoresDirectory, ScoreSettings, run_job
    from bliss_index.store.source_reader import ColumnNames

    listed = device_names(devices)
    settings = ScoreSettings(
        corpus=corpus,
        calibration=calibration,
        k=k,
        lam=lam,
        search=search,
        device=listed[0],
        threads=threads,
        explain=explain,
        threshold=threshold,
        normal_scores=normal_scores,
        false_alarm_rate=false_alarm_rate,
        keep_search=keep_search,
    )
    options = job_options(workers, listed, engine, task, memory, max_bad_fraction)
    columns = ColumnNames(embedding_column, key_column, dtype=embedding_dtype)
    with progress_line("scoring") as progress:
        summary = run_job(
            images, out, settings, options, make_listener(progress, "scored"), columns
        )
    # The last task of an array leaves the end to a run without --task.
    ended = summary.complete and task is None
    flagged = ScoresDirectory.open(out).flagged if ended else None
    if as_json:
        print_json({**summary.to_json(), "flagged": flagged})
    else:
        _print_summary(summary, flagged)
    if repeated := summary.facts.get("repeated_keys"):
        say(f"{repeated} keys occur in several parts; the manifest names the first")
    bad, rows = summary.bad_rows, summary.rows
    message = f"{bad} of {rows} rows have no score; see 'status' and 'error'"
    end(summary.failed, summary.complete, bad, message)


def _print_summary(summary: JobSummary, flagged: int | None) -> None:
    scored = summary.rows - summary.bad_rows
    share = f" ({flagged / scored:.2%})" if flagged and scored else ""
    status = f" ({counts(summary.status)})" if summary.status else ""
    print_facts(
        summary.output,
        {
            "rows": f"{summary.rows}{status}",
            "parts": f"{summary.parts_done} of {summary.parts}"
            + (f", {summary.parts_earlier} by earlier runs" if summary.parts_earlier else ""),
            "this run": f"{summary.rows_now} rows in {summary.seconds:.1f} s, "
            f"{summary.rows_per_second:,.0f} rows/s",
            **({} if flagged is None else {"flagged": f"{flagged} of {scored}{share}"}),
            "files": f"{summary.output}/part-*.parquet",
        },
    )
