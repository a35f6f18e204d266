"""What a person sees: progress and notices on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

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

EXIT_ERROR = 1
EXIT_QUARANTINED = 3
EXIT_INTERRUPTED = 130
LOG_SECONDS = 60.0

stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def plain(text: str) -> str:
    """Replace control characters: keys and names are other people's, and a terminal obeys them."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str) -> None:
    """Write a line for people."""
    stderr.print(plain(text), markup=False)


def print_json(values: Any) -> None:
    """Write a result for programs."""
    sys.stdout.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Write a result for people: names and values."""
    table = Table(
        title=Text(plain(title)), title_justify="left", show_header=False, box=None, pad_edge=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(plain(name)), Text(plain(str(value))))
    Console().print(table)


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Write a result for people: a table, numbers to the right."""
    table = Table(title=Text(plain(title)), title_justify="left")
    for position, name in enumerate(header):
        table.add_column(name, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console().print(table)


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
