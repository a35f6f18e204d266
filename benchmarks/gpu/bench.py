"""What every row is given: the device, its searches, drawn embeddings, and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bliss_index.bench.synthetic import clip_shape
from bliss_index.search.device.backend import DeviceBackend, DeviceOptions
from bliss_index.search.device.codes import FORMATS
from bliss_index.search.device.engine import (
    DeviceEngine,
    choose_engine,
    torch_engine,
    triton_engine,
)

_DRAWN_ROWS = 262_144
_ROUNDS = 5


class Bench:
    """A device to measure.

    Parameters
    ----------
    device
        A torch device.
    rehearsal
        Triton's kernels then run interpreted on the processor, and everything is called once.
    """

    def __init__(self, device: str, rehearsal: bool) -> None:
        self.device = torch.device(device)
        self.rehearsal = rehearsal
        self.has_cuda = torch.cuda.is_available()

    def engine(self, codes: str = "int8", dim: int | None = None) -> DeviceEngine:
        """Return the engine that the package takes on this device, or its stand-in."""
        if not self.rehearsal:
            return choose_engine(self.device, dim, FORMATS[codes])
        from bliss_index.search.triton.proposals import TileShape, TritonProposals

        shape = TileShape(queries=16, entries=128, warps=4, stages=2)
        return triton_engine(TritonProposals(shape, FORMATS[codes]))

    def backend(
        self, entries: torch.Tensor | npt.NDArray[Any], k: int, codes: str = "int8"
    ) -> DeviceBackend:
        """Make a search over entries, which are copied to the host first.

        ``codes`` are "int8", "bfloat16", "triton" for int8 by Triton's kernels where others are
        usual, or "torch" for torch's products of int8 numbers.
        """
        rows = to_host(entries) if isinstance(entries, torch.Tensor) else entries
        form = "int8" if codes in ("torch", "triton") else codes
        engine: DeviceEngine | None = None
        if codes == "torch":
            engine = torch_engine("compared")
        elif self.rehearsal:
            engine = self.engine(form)
        elif codes == "triton":
            from bliss_index.search.triton.proposals import TritonProposals

            engine = triton_engine(TritonProposals())
        options = DeviceOptions(codes=form)
        return DeviceBackend(rows, k, device=str(self.device), options=options, engine=engine)

    def draw(
        self, count: int, dim: int, kind: str, seed: int, dtype: torch.dtype = torch.float16
    ) -> torch.Tensor:
        """Draw embeddings distributed as those of ``clip_like``, on the device."""
        centre, transform = (
            torch.from_numpy(part).to(self.device) for part in clip_shape(dim, kind)
        )
        generator = torch.Generator(self.device).manual_seed(seed)
        rows = torch.empty((count, dim), dtype=dtype, device=self.device)
        for part in torch.split(rows, _DRAWN_ROWS):
            drawn = torch.randn(part.shape, generator=generator, device=self.device) @ transform
            drawn += centre
            part.copy_(drawn / drawn.norm(dim=1, keepdim=True))
        return rows

    def warm(self, backend: DeviceBackend, queries: torch.Tensor) -> None:
        """Let a search compile what it needs, and see where queries lie."""
        if not self.rehearsal:
            backend.search_tensors(queries)
            self.wait()

    def in_turn(
        self, ways: dict[str, Callable[[], Any]], rounds: int = _ROUNDS
    ) -> dict[str, float]:
        """Median seconds of several calls, timed one after the other in every round."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        if self.rehearsal:
            rounds = 1
        else:
            for call in ways.values():
                call()
        for _ in range(rounds):
            for name, call in ways.items():
                times[name].append(self._seconds(call))
        return {name: median(found) for name, found in times.items()}

    def seconds(self, call: Callable[[], Any], rounds: int = _ROUNDS) -> float:
        """Median seconds of a call."""
        return self.in_turn({"": call}, rounds)[""]

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _seconds(self, call: Callable[[], Any]) -> float:
        self.wait()
        if self.device.type != "cuda":
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        self.wait()
        return float(first.elapsed_time(last)) / 1e3


def to_host(rows: torch.Tensor) -> npt.NDArray[Any]:
    """Copy rows to an array."""
    return np.ascontiguousarray(rows.cpu().numpy())
