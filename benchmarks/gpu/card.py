"""Facts about the card and what drives it."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import torch
from machine import ask_nvidia_smi, graphics_cards

from gpu.bench import Bench

_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu,pstate"
_LOAD = 8192
_PRODUCTS = 20  # before it is looked whether there is an answer


def facts(bench: Bench) -> dict[str, Any]:
    """Card, driver and versions, and the clocks at rest and under products of bfloat16."""
    found: dict[str, Any] = {
        "card": graphics_cards(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "torch_sees_cuda": torch.cuda.is_available(),
        "device": str(bench.device),
        "clock_names": _CLOCKS.split(","),
        "clocks_at_rest": ask_nvidia_smi(_CLOCKS),
    }
    if bench.has_cuda or bench.rehearsal:
        found["engine"] = bench.engine(dim=512).describe(bench.device)
    for package in ("triton", "numpy", "faiss-gpu", "faiss-gpu-cu12", "faiss-cpu", "pyarrow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if bench.has_cuda and bench.device.type == "cuda":
        given = torch.cuda.get_device_properties(bench.device)
        found["name"] = given.name
        found["capability"] = list(torch.cuda.get_device_capability(bench.device))
        found["multiprocessors"] = given.multi_processor_count
        found["memory_gib"] = round(given.total_memory / 2**30, 1)
        found["clocks_under_load"] = _clocks_under_load(bench)
    return found


def _clocks_under_load(bench: Bench) -> list[str]:
    """Ask for the clocks while the card multiplies."""
    rows = torch.randn((_LOAD, _LOAD), device=bench.device).bfloat16()
    out = torch.empty_like(rows)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_nvidia_smi, _CLOCKS)
        while not asked.done():
            for _ in range(_PRODUCTS):
                torch.mm(rows, rows.T, out=out)
            bench.wait()
    return asked.result()
