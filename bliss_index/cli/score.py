"""``score``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bliss_index.cli.console import (
    EXIT_ERROR,
    EXIT_QUARANTINED,
    ProgressLine,
    counts,
    print_facts,
    print_json,
    progress_line,
    say,
)
from bliss_index.cli.options import (
    ENGINES,
    SEARCHES,
    EmbeddingColumnOption,
    JsonOption,
    KeyColumnOption,
    LamOption,
    ThreadsOption,
    one_of,
)

if TYPE_CHECKING:
    from bliss_index.bulk import JobSummary


def score(
    images: Annotated[
        str,
        typer.Argument(
            help="Image store; or .npy, .parquet, a folder of them, or a clip-retrieval folder, "
            "local or a URI."
        ),
    ],
    corpus: Annotated[Path, typer.Option("--corpus", help="Text store of the vocabulary.")],
    calibration: Annotated[Path, typer.Option("--calibration", help="Calibration directory.")],
    out: Annotated[str, typer.Option("--out", help="Directory for the scores.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Vocabulary entries per image.")] = 10,
    lam: LamOption = 0.5,
    search: Annotated[
        str,
        typer.Option(
            "--search",
            help="'auto' (fastest exact), 'native', 'torch', 'cuda', 'faiss', or the corpus's "
            "index: 'flat', 'ivf', 'ivfpq', 'hnsw', 'cagra'.",
            callback=one_of(SEARCHES),
        ),
    ] = "auto",
    devices: Annotated[
        str, typer.Option("--devices", help="'auto', 'cpu', or GPUs such as '0,1'.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes.", show_default="one a device"),
    ] = None,
    threads: ThreadsOption = None,
    engine: Annotated[
        str, typer.Option("--engine", help="'local' or 'ray'.", callback=one_of(ENGINES))
    ] = "local",
    task: Annotated[
        str | None,
        typer.Option("--task", help="i/n: only this task's share, for job arrays; i from 0."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also write the entries that made each score.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Add a column 'flag': score >= threshold.")
    ] = None,
    normal_scores: Annotated[
        Path | None,
        typer.Option(
            "--normal-scores",
            help="Scores of held-out normal images, from 'bliss-index threshold': adds a column "
            "'p_value'.",
        ),
    ] = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            help="Largest share of normal images to flag, such as 0.01; needs --normal-scores.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", help="Budget, such as 8GiB.", show_default="80 % of free"),
    ] = None,
    max_bad_fraction: Annotated[
        float,
        typer.Option(
            "--max-bad-fraction", min=0.0, max=1.0, help="Stop when more rows than this are bad."
        ),
    ] = 1.0,
    embedding_column: EmbeddingColumnOption = None,
    key_column: KeyColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score every image. Run again after an interruption, it continues where it stopped."""
    from bliss_index.bulk import JobOptions, ScoreSettings, run_job
    from bliss_index.jobs.memory import parse_bytes
    from bliss_index.store.source_part import ColumnNames

    listed = _devices(devices)
    settings = ScoreSettings(
        corpus=str(corpus),
        calibration=str(calibration),
        k=k,
        lam=lam,
        search=search,
        device=listed[0],
        threads=threads,
        explain=explain,
        threshold=threshold,
        normal_scores=None if normal_scores is None else str(normal_scores),
        false_alarm_rate=false_alarm_rate,
    )
    options = JobOptions(
        workers=workers or len(listed),
        devices=listed,
        engine=engine,
        task=task,
        memory=None if memory is None else parse_bytes(memory),
        max_bad_fraction=max_bad_fraction,
    )
    columns = ColumnNames(embedding_column, key_column)
    with progress_line("scoring") as progress:
        summary = run_job(images, out, settings, options, make_listener(progress), columns)
    if as_json:
        print_json(summary.to_json())
    else:
        _print_summary(summary)
    if summary.failed:
        say(
            f"{len(summary.failed)} of {summary.parts} parts failed; run the same command again to "
            "try them once more"
        )
        raise typer.Exit(EXIT_ERROR)
    if summary.bad_rows:
        say(f"{summary.bad_rows} of {summary.rows} rows have no score; see 'status' and 'error'")
        raise typer.Exit(EXIT_QUARANTINED)


def make_listener(progress: ProgressLine) -> Any:
    """Show a job's progress on a progress line."""
    from bliss_index.jobs import JobListener, Record
    from bliss_index.jobs.memory import MemoryPlan

    class Listener(JobListener):
        bad = 0

        def planned(self, plan: MemoryPlan, rows: int, rows_done: int) -> None:
            say(plan.describe())
            if rows_done:
                say(f"continuing: {rows_done} of {rows} rows are scored already")
            progress.start(rows, rows_done)

        def advanced(self, rows: int) -> None:
            progress(rows)

        def finished_part(self, record: Record) -> None:
            self.bad += record.bad_rows
            progress.note(f" ({self.bad} bad)" if self.bad else "")

        def notice(self, text: str) -> None:
            say(text)

    return Listener()


def _devices(text: str) -> tuple[str, ...]:
    """Read '0,1' as two GPUs; anything else is taken as it is."""
    return tuple(
        f"cuda:{name.strip()}" if name.strip().isdigit() else name.strip()
        for name in text.split(",")
    )


def _print_summary(summary: JobSummary) -> None:
    status = f" ({counts(summary.status)})" if summary.status else ""
    print_facts(
        summary.output,
        {
            "rows": f"{summary.rows}{status}",
            "parts": f"{summary.parts_done} of {summary.parts}"
            + (f", {summary.parts_earlier} by earlier runs" if summary.parts_earlier else ""),
            "this run": f"{summary.rows_now} rows in {summary.seconds:.1f} s, "
            f"{summary.rows_per_second:,.0f} rows/s",
            "files": f"{summary.output}/part-*.parquet",
        },
    )
