"""Where the time of one batch goes, kernel by kernel, as torch's profiler sees it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu.bench import Bench

_MOST_KERNELS = 40


def stages(
    bench: Bench, entries: int, dim: int, k: int, queries: int, codes: str
) -> dict[str, Any]:
    """Profile one batch: kernels with their calls and microseconds, copies and synchronisations."""
    texts, images = bench.draw(entries, dim, "text", 1), bench.draw(queries, dim, "image", 2)
    backend = bench.backend(texts, k, codes)
    bench.warm(backend, images)
    seconds = None if bench.rehearsal else bench.seconds(lambda: backend.search_tensors(images))
    on_gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as trace:
        backend.search_tensors(images)
        bench.wait()
    where = DeviceType.CUDA if on_gpu else DeviceType.CPU
    calls: dict[str, int] = defaultdict(int)
    micros: dict[str, float] = defaultdict(float)
    runtime: dict[str, int] = defaultdict(int)
    for event in trace.events() or ():
        if event.device_type == where:
            calls[event.name] += 1
            micros[event.name] += event.time_range.elapsed_us()
        if event.device_type == DeviceType.CPU and event.name.startswith("cu"):
            runtime[event.name] += 1
    copies = {name: count for name, count in calls.items() if name.startswith(("Memcpy", "Memset"))}
    longest = sorted(calls, key=lambda name: -micros[name])[:_MOST_KERNELS]
    return {
        "engine": backend.description,
        "seconds": seconds,
        "kernels_of": "device" if on_gpu else "processor, operations with what they call",
        "kernels": [
            {"name": name[:160], "calls": calls[name], "microseconds": round(micros[name], 1)}
            for name in longest
        ],
        "kernel_microseconds": round(sum(micros.values()), 1),
        "launches": sum(calls.values()) - sum(copies.values()),
        "copies_and_fills": copies,
        "copies_to_the_host": sum(count for name, count in copies.items() if "DtoH" in name),
        "synchronisations": sum(n for name, n in runtime.items() if "Synchronize" in name),
        "runtime_calls": dict(runtime),
    }
