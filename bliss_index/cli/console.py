"""What a person sees: progress and notices on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from bliss_index.errors import OutputError

EXIT_ERROR = 1
EXIT_QUARANTINED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
LOG_SECONDS = 60.0
_ANY_WIDTH = 100_000

stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def plain(text: str) -> str:
    """Replace control characters: terminal escapes are stripped from keys and names."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str) -> None:
    """Write a line for people."""
    stderr.print(plain(text), markup=False)


def write(text: str) -> None:
    """Write a result on stdout."""
    with _arriving():
        if sys.stdout is not None:  # else closed by the caller, who wants no result
            sys.stdout.write(text)


@contextlib.contextmanager
def _arriving() -> Iterator[None]:
    """Find out whether what is written on stdout arrived.

    Raises
    ------
    OutputError
        It cannot be written, as on a full disk.
    BrokenPipeError
        Nobody reads it.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise OutputError(f"cannot write the result on stdout: {error.strerror}") from error


def drop_output() -> None:
    """Let what is still in stdout's buffer go nowhere: it would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(values: Any) -> None:
    """Write a result for programs."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    # Escapes of Python's are none of JSON's, so JSON's are used where letters are missing.
    ascii_only = encoding.lower().replace("_", "-") not in ("utf-8", "utf8")
    write(json.dumps(_without_nan(values), indent=2, ensure_ascii=ascii_only) + "\n")


def _without_nan(values: Any) -> Any:
    """Replace NaN and infinity, which JSON has not, by null."""
    if isinstance(values, dict):
        return {name: _without_nan(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Write a result for people: names and values. Lines are as long as they are, for copying."""
    width = max(map(len, facts), default=0) + 2
    lines = [Text(plain(title))]
    for name, value in facts.items():
        first, *others = plain(shown(value)).split("\n")
        lines.append(Text.assemble((plain(name).ljust(width), "dim"), first))
        lines.extend(Text(" " * width + line) for line in others)
    _print(*lines)


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Write a result for people: a table, numbers to the right."""
    table = Table()
    for position, name in enumerate(header):
        left = position == 0
        justify: Literal["left", "right"] = "left" if left else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not left)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    _print(Text(plain(title)))
    _print(table, wrap=True)


def _print(*lines: Text | Table, wrap: bool = False) -> None:
    """Write lines; tables are folded to a terminal's width, and to no width elsewhere."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _ANY_WIDTH
    with _arriving():
        for line in lines:
            console.print(line, soft_wrap=not wrap)


def shown(value: Any) -> str:
    """Write a value for people; a dictionary over several lines."""
    if isinstance(value, dict):
        lines = []
        for name, inner in value.items():
            if isinstance(inner, dict):
                inside = shown(inner).replace("\n", "\n  ")
                lines.append(f"{name}:\n  {inside}")
            elif inner is not None:
                lines.append(f"{name}: {shown(inner)}")
        return "\n".join(lines) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(inner) for inner in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def counts(numbers: Mapping[str, int]) -> str:
    """Write how many there are of each, in one line."""
    return ", ".join(f"{name} {count}" for name, count in numbers.items())


class _RateColumn(ProgressColumn):
    """Rows per second since the start."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} rows/s", style="progress.data.speed")


class ProgressLine:
    """A progress bar whose total may be set later.

    In a log, where no bar can be shown, it writes a line a minute instead.
    """

    def __init__(self, progress: Progress, task: Any, label: str, total: int | None) -> None:
        self._progress = progress
        self._task = task
        self._label = label
        self._total = total
        self._rows = 0
        self._said_rows, self._said_at = 0, time.monotonic()

    def __call__(self, rows: int) -> None:
        self._rows += rows
        self._progress.update(self._task, advance=rows)
        if self._progress.disable and time.monotonic() - self._said_at >= LOG_SECONDS:
            self._say_rate()

    def start(self, total: int, done: int) -> None:
        """Set the total, and how much was done before."""
        self._progress.reset(self._task, total=total, completed=done)
        self._total, self._rows = total, done
        self._said_rows, self._said_at = done, time.monotonic()

    def _say_rate(self) -> None:
        now = time.monotonic()
        rate = (self._rows - self._said_rows) / (now - self._said_at)
        text = f"{self._label}: {self._rows:,} rows"
        if self._total:
            text += f" of {self._total:,}"
        text += f", {rate:,.0f} rows/s"
        if self._total and rate > 0:
            left = timedelta(seconds=round(max(self._total - self._rows, 0) / rate))
            text += f", {left} left"
        say(text)
        self._said_rows, self._said_at = self._rows, now

    def note(self, text: str) -> None:
        """Show something after the label."""
        self._progress.update(self._task, description=f"{self._label}{text}")


@contextlib.contextmanager
def progress_line(label: str, total: int | None = None) -> Iterator[ProgressLine]:
    """Show a progress bar on stderr; where that is not a terminal, write a line a minute."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=stderr, disable=not stderr.is_terminal, transient=True
    ) as progress:
        yield ProgressLine(progress, progress.add_task(label, total=total), label, total)


@contextlib.contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Measure seconds since entry."""
    began = time.perf_counter()
    yield lambda: time.perf_counter() - began
