"""What all commands have in common that run a job: options, progress, the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bliss_index.cli.console import EXIT_ERROR, EXIT_QUARANTINED, ProgressLine, say
from bliss_index.cli.options import ENGINES, one_of

if TYPE_CHECKING:
    from bliss_index.jobs import JobOptions

WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes.", show_default="one a device"),
]
DevicesOption = Annotated[
    str, typer.Option("--devices", help="'auto', 'cpu', or GPUs such as '0,1'.")
]
EngineOption = Annotated[
    str, typer.Option("--engine", help="'local' or 'ray'.", callback=one_of(ENGINES))
]
TaskOption = Annotated[
    str | None,
    typer.Option("--task", help="i/n: only this task's share, for job arrays; i from 0."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", help="Budget, such as 8GiB.", show_default="80 % of free"),
]


def job_options(
    workers: int | None,
    devices: Sequence[str],
    engine: str,
    task: str | None,
    memory: str | None,
    max_bad_fraction: float = 1.0,
) -> JobOptions:
    """Put the options of a job together."""
    from bliss_index.jobs import JobOptions
    from bliss_index.jobs.memory import parse_bytes

    return JobOptions(
        workers=workers or max(1, len(devices)),
        devices=tuple(devices),
        engine=engine,
        task=task,
        memory=None if memory is None else parse_bytes(memory),
        max_bad_fraction=max_bad_fraction,
    )


def make_listener(progress: ProgressLine, done: str) -> Any:
    """Show a job's progress on a progress line; `done` is its verb, such as "scored"."""
    from bliss_index.jobs import JobListener, Record
    from bliss_index.jobs.memory import MemoryPlan

    class Listener(JobListener):
        bad = 0

        def planned(self, plan: MemoryPlan, rows: int, rows_done: int) -> None:
            say(plan.describe())
            if rows_done:
                say(f"continuing: {rows_done} of {rows} rows are {done} already")
            progress.start(rows, rows_done)

        def advanced(self, rows: int) -> None:
            progress(rows)

        def finished_part(self, record: Record) -> None:
            self.bad += record.bad_rows
            progress.note(f" ({self.bad} bad)" if self.bad else "")

        def notice(self, text: str) -> None:
            say(text)

    return Listener()


def end(failed: Sequence[object], complete: bool, bad_rows: int, message: str) -> None:
    """Exit as a job's outcome asks for; what is complete and good, just returns."""
    if failed:
        parts = "1 part" if len(failed) == 1 else f"{len(failed)} parts"
        say(f"{parts} failed; run the same command again to try them once more")
        raise typer.Exit(EXIT_ERROR)
    if not complete:
        say("this task's parts are done; run the command without --task once all tasks are")
    if bad_rows:
        say(message)
        raise typer.Exit(EXIT_QUARANTINED)
