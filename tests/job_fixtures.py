"""A trivial work, to test the engine of jobs without any kind of work."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from bliss_index.jobs import JobOptions, Outcome, Part, run
from bliss_index.jobs.memory import MemoryPlan
from bliss_index.jobs.part import grown
from bliss_index.jobs.record import commit


@dataclass(frozen=True)
class TrivialWork:
    """Writes a line a part.

    While the file `armed` exists, the `deadly` part kills its process, and the `hanging` one hangs.
    `seconds` a part are spent asleep, after `noted` was written.
    """

    count: int
    line: str = "x"
    deadly: int = -1
    armed: str = ""
    failing: int = -1
    hanging: int = -1
    seconds: float = 0.0
    noted: str = ""

    kind = "trivia"
    command = "'a test'"
    manifest_name = "manifest.json"
    statistics_name = "_statistics.json"
    incidental = ()
    threads = 1

    def settings(self):
        return {"line": self.line}

    def facts(self):
        return {}

    def parts(self):
        for index in range(self.count):
            yield Part(index, f"piece {index}", 1, "same")

    def grown(self, kept, now):
        return grown(kept, now)

    def is_same(self, part, record):
        return ""

    def memory(self, workers, budget):
        return MemoryPlan({}, workers, 1, budget or 1 << 40)

    def prepared(self, pending, rows, batch_rows, notify):
        return self

    def open(self, directory, device, progress, notify):
        return TrivialWorker(self, directory, progress)

    def manifest(self, directory, records):
        return {"format": "bliss_index.trivia", "line": self.line}


class TrivialWorker:
    def __init__(self, work, directory, progress):
        self._work, self._directory, self._progress = work, directory, progress

    def run(self, parts):
        for part in parts:
            if part.index == self._work.deadly and Path(self._work.armed).exists():
                os.kill(os.getpid(), signal.SIGKILL)
            while part.index == self._work.hanging and Path(self._work.armed).exists():
                time.sleep(0.1)
            if self._work.noted:
                Path(self._work.noted).touch()
            time.sleep(self._work.seconds)
            if part.index == self._work.failing:
                yield Outcome.failed(part.index, OSError("it cannot be read"))
                continue
            content = self._directory.new_file()
            content.sink.write(f"{part.index} {self._work.line}\n".encode())
            record = commit(
                self._directory, part, content, "arrow", status={"ok": 1}, given="same", seconds=0.0
            )
            self._progress(1)
            yield Outcome(part.index, record)


def result(folder: Path) -> dict[str, bytes]:
    """The files that must be the same whatever made them."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.parent.name not in ("_records", "_deaths") and not (
            p.name.startswith("_") or p.name == ".lock"
        )
    }  # fmt: skip


def run_trivial(folder: Path, count: int = 20, **more) -> None:
    """Run it in this process to its end."""
    run(TrivialWork(count, **more), folder, JobOptions())
