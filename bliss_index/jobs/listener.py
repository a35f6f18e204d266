"""Hears how a job goes."""

from __future__ import annotations

from collections.abc import Callable

from bliss_index.jobs.memory import MemoryPlan
from bliss_index.jobs.record import Record


class JobListener:
    """Hears how a job goes; every method may be overridden."""

    def planned(self, plan: MemoryPlan, rows: int, rows_done: int) -> None:
        """Called once, before the work starts."""

    def advanced(self, rows: int) -> None:
        """Called when rows were finished."""

    def finished_part(self, record: Record) -> None:
        """Called when a part is committed."""

    def notice(self, text: str) -> None:
        """Called with what should be known."""


class RowsListener(JobListener):
    """Passes the number of rows that were finished to a function."""

    def __init__(self, advanced: Callable[[int], None]) -> None:
        self._advanced = advanced

    def advanced(self, rows: int) -> None:
        self._advanced(rows)
