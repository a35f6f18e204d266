"""The result of a suite, whole on the disk after every row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class ResultFile:
    """Rows that were run, and rows that were skipped.

    Parameters
    ----------
    path
        File to replace after every change; None to keep the result in memory only.
    facts
        What is known before the first row: the machine and the command.
    """

    def __init__(self, path: Path | None, facts: dict[str, Any]) -> None:
        self._path = path
        self._facts = facts
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self._write()

    def add(self, row: dict[str, Any]) -> None:
        """Add a row that was run."""
        self.rows.append(row)
        self._write()

    def skip(self, group: str, name: str, reason: str) -> None:
        """Add a row that was not."""
        self.skipped.append({"group": group, "name": name, "reason": reason})
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        text = json.dumps({**self._facts, "rows": self.rows, "skipped": self.skipped}, indent=1)
        part = self._path.with_name(f".{self._path.name}.part")
        with part.open("w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)
