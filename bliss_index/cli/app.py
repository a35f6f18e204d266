"""All commands, and what happens to their errors."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from bliss_index.cli import (
    bench,
    build,
    calibrate,
    demo,
    encode,
    evaluate,
    explain,
    importing,
    inspect,
    report,
    score,
    threshold,
)
from bliss_index.cli.console import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    drop_output,
    say,
)
from bliss_index.cli.interrupt import INTERRUPTED, end_when_interrupted

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of "s3://bucket", a path keeps one slash

app = typer.Typer(
    name="bliss-index",
    help="Bias-corrected language-image anomaly scores (BLISS) at dataset scale.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Command(TyperCommand):
    """A command that takes no address for a path: the two would be the same after parsing."""

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            values = ctx.params.get(str(parameter.name))
            for value in values if isinstance(values, (list, tuple)) else [values]:
                if isinstance(value, Path) and _ADDRESS.match(str(value)):
                    raise typer.BadParameter(
                        f"{value} looks like an address; a local path is needed here",
                        ctx=ctx,
                        param_hint=f"'{parameter.name}'",
                    )
        return super().invoke(ctx)


app.command("demo", cls=Command)(demo.demo)
app.command("encode-text", cls=Command)(encode.encode_text)
app.command("encode-images", cls=Command)(encode.encode_images)
app.command("import", cls=Command)(importing.import_)
app.command("build", cls=Command)(build.build)
app.command("calibrate", cls=Command)(calibrate.calibrate)
app.command("threshold", cls=Command)(threshold.threshold)
app.command("score", cls=Command)(score.score)
app.command("evaluate", cls=Command)(evaluate.evaluate)
app.command("explain", cls=Command)(explain.explain)
app.command("report", cls=Command)(report.report)
app.command("verify", cls=Command)(inspect.verify)
app.command("info", cls=Command)(inspect.info)
app.command("bench", cls=Command)(bench.bench)


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
