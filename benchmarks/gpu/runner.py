"""Runs a plan through workers: no row can take another one's result with it."""

from __future__ import annotations

import time
from typing import Any

from gpu.result_file import ResultFile
from gpu.row import Row
from gpu.worker_process import WorkerLostError, WorkerProcess, WorkerSetup

_MOST_FAILED_STARTS = 2


class Runner:
    """Runs rows in order, and records every one of them as soon as it is known.

    Parameters
    ----------
    setup
        How to start a worker. One that died, or whose device became unusable, is replaced.
    result
        Where rows are recorded.
    seconds
        For all rows. One whose deadline lies behind that is skipped.
    """

    def __init__(self, setup: WorkerSetup, result: ResultFile, seconds: float) -> None:
        self._setup = setup
        self._result = result
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._worker: WorkerProcess | None = None
        self._failed_starts = 0

    def run(self, rows: list[Row]) -> None:
        """Run all rows that fit."""
        try:
            for row in rows:
                self._run(row)
        finally:
            self._drop()

    def _run(self, row: Row) -> None:
        left = self._end - time.monotonic()
        if left < row.seconds:
            reason = f"{max(0.0, left):.0f} s left of {self._seconds:.0f} s, "
            self._skip(row, reason + f"the row may take {row.seconds:.0f} s")
            return
        if self._failed_starts >= _MOST_FAILED_STARTS:
            self._skip(row, f"{self._failed_starts} workers in a row did not start")
            return
        began = time.monotonic()
        try:
            worker = self._started()
        except WorkerLostError as error:
            self._failed_starts += 1
            self._add(row, began, {"error": f"while a worker started: {error}"})
            return
        if row.cuda and not worker.has_cuda:
            self._skip(row, "needs CUDA, and torch sees no GPU")
            return
        began = time.monotonic()
        request = {"function": row.function, "parameters": row.parameters}
        try:
            answer = worker.ask(request, row.seconds)
        except WorkerLostError as error:
            answer = {"error": f"{error}\n{worker.log_tail()}".strip()}
            self._drop()
        if "skipped" in answer:
            self._skip(row, answer["skipped"])
        elif "result" not in answer or answer.get("poisoned"):
            if answer.get("poisoned"):
                answer["error"] = f"{answer['error']}\n{worker.log_tail()}".strip()
                self._drop()
            self._add(row, began, {"error": answer["error"]})
        else:
            self._add(row, began, {"result": answer["result"]})

    def _started(self) -> WorkerProcess:
        if self._worker is None:
            self._worker = WorkerProcess(self._setup)
            self._failed_starts = 0
        return self._worker

    def _drop(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _skip(self, row: Row, reason: str) -> None:
        self._result.skip(row.group, row.name, reason)
        print(f"{row.group}: {row.name}: skipped: {reason}", flush=True)

    def _add(self, row: Row, began: float, outcome: dict[str, Any]) -> None:
        seconds = round(time.monotonic() - began, 2)
        self._result.add({
            "group": row.group, "name": row.name, "parameters": row.parameters,
            "seconds": seconds, **outcome,
        })  # fmt: skip
        word = "right" if is_right(self._result.rows[-1]) else "WRONG"
        if "error" in outcome:
            word = f"FAILED: {outcome['error'].splitlines()[-1][:200]}"
        print(f"{row.group}: {row.name}: {seconds:.1f} s: {word}", flush=True)


def is_right(row: dict[str, Any]) -> bool:
    """Whether a recorded row has a result, and not one that was found to be wrong."""
    result = row.get("result")
    if result is None:
        return False
    return not (isinstance(result, dict) and result.get("exact") is False)
