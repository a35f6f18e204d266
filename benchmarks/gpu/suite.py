"""The frame of the suite: the device, the time left, timing, and the result file."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bliss_index.search.device.engine import choose_engine
from gpu.device import describe_device

Step = Callable[["Suite"], Any]


class Suite:
    """The device, sizes, the time left, and what was found."""

    def __init__(self, device: str, small: bool, path: Path | None, seconds: float) -> None:
        self.device = torch.device(device)
        self.small = small
        self.path = path
        self.end = time.monotonic() + seconds
        self.results: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.engine = choose_engine(self.device)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()

    def size(self, large: int, small: int) -> int:
        """A size, for a real run or a try."""
        return small if self.small else large

    def run(self, name: str, step: Step, needed: float) -> None:
        """Run a step if its time is there; a failure is a result too."""
        if self.left < needed:
            self.skipped[name] = f"{self.left:.0f} s left, {needed:.0f} s wanted"
        else:
            began = time.monotonic()
            try:
                self.results[name] = step(self)
            except Exception:  # the other steps are still worth running
                self.skipped[name] = traceback.format_exc(limit=4)
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
        self.save()

    def save(self) -> None:
        """Write what there is."""
        if self.path is not None:
            facts = {"machine": describe_device(self.device), "small": self.small}
            text = json.dumps({**facts, **self.results, "skipped": self.skipped}, indent=1)
            self.path.write_text(text + "\n")

    def tensor(self, rows: np.ndarray) -> torch.Tensor:
        """Copy rows to the device."""
        return torch.from_numpy(rows).to(self.device)

    def seconds(self, call: Callable[[], Any], rounds: int = 5) -> float:
        """Median seconds of a call on the device."""
        call()
        self.wait()
        times = []
        for _ in range(rounds):
            if self.device.type == "cuda":
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                call()
                last.record()
                self.wait()
                times.append(first.elapsed_time(last) / 1e3)
            else:
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
        return median(times)

    def in_turn(self, ways: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
        """Median seconds of several calls, timed one after the other in every round."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        for call in ways.values():
            call()
        for _ in range(rounds):
            for name, call in ways.items():
                times[name].append(self.seconds(call, 1))
        return {name: median(found) for name, found in times.items()}

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
