"""All commands, and what happens to their errors."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from bliss_index.cli import (
    bench,
    build,
    calibrate,
    demo,
    encode,
    evaluate,
    explain,
    export,
    groups,
    importing,
    inspect,
    report,
    review,
    score,
    screen,
    threshold,
)
from bliss_index.cli.console import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    drop_output,
    say,
    write,
)
from bliss_index.cli.interrupt import INTERRUPTED, end_when_interrupted

app = typer.Typer(
    name="bliss-index",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from bliss_index import __version__

        write(f"bliss-index {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Bias-corrected language-image anomaly scores (BLISS) at dataset scale."""


app.command("demo")(demo.demo)
app.command("screen")(screen.screen)
app.command("encode-text")(encode.encode_text)
app.command("encode-images")(encode.encode_images)
app.command("import")(importing.import_)
app.command("build")(build.build)
app.command("calibrate")(calibrate.calibrate)
app.command("threshold")(threshold.threshold)
app.command("score")(score.score)
app.command("evaluate")(evaluate.evaluate)
app.command("explain")(explain.explain)
app.command("groups")(groups.groups)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("review")(review.review)
app.command("verify")(inspect.verify)
app.command("info")(inspect.info)
app.command("bench")(bench.bench)


def run() -> None:
    """Run a command; print an error's message alone and exit with its code."""
    from bliss_index.errors import BlissError

    end_when_interrupted()

    # Names may hold letters that the terminal's encoding has not, and keys no letters at all.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except BlissError as error:
        say(f"error: {error}")
        sys.exit(EXIT_ERROR)
    except SystemExit as end:
        # Typer makes the first of Ctrl-C, a job the second of SIGTERM.
        if end.code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            say(INTERRUPTED)
        raise
    except BrokenPipeError:
        # Whoever read our output had enough of it. Nothing more can be written there.
        drop_output()
        sys.exit(EXIT_ERROR)
    except OSError as error:
        # A file that may not be read, a disk that fails: the system's own words say what.
        if error.filename is None:
            raise
        say(f"error: {error.filename}: {error.strerror}")
        sys.exit(EXIT_ERROR)
