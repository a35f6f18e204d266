"""What every benchmark records: the machine, the versions, and fair settings for BLAS."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "torch", "faiss-cpu", "faiss-gpu", "usearch", "pyarrow", "open_clip_torch")


def use_fast_blas(threads: int) -> None:
    """Start this script again with OpenBLAS's best kernels for AVX-512, if they are not set.

    OpenBLAS reads these variables when it is loaded. A preset OPENBLAS_CORETYPE or L2 size can cost
    faiss and numpy a third of their speed, which would not be a fair comparison.
    """
    before = dict(os.environ)
    set_fast_blas(threads)
    if os.environ != before:
        os.execv(sys.executable, [sys.executable, *sys.argv])


def set_fast_blas(threads: int) -> None:
    """Set what OpenBLAS reads when it is loaded."""
    os.environ.update(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
    os.environ.pop("OPENBLAS_L2_SIZE", None)
    if has_avx512():
        os.environ["OPENBLAS_CORETYPE"] = "SKYLAKEX"


def has_avx512() -> bool:
    """Whether the processor has AVX-512."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def describe_machine(threads: int) -> dict[str, Any]:
    """Facts about the machine and the software, JSON-ready."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    except (OSError, StopIteration):
        pass
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "processor": name,
        "processors": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        # Files outside this directory by their name: where they lie is no part of the figure.
        "command": " ".join(["python", *(Path(a).name if a[0:1] == "/" else a for a in sys.argv)]),
    }


def graphics_cards() -> list[str]:
    """Name, driver and memory of every NVIDIA card; none where there is no driver."""
    return ask_nvidia_smi("name,driver_version,memory.total")


def ask_nvidia_smi(query: str) -> list[str]:
    """Ask the driver something about every card; nothing where it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Print a result, and write it where asked."""
    text = json.dumps(result, indent=1) + "\n"
    if path is None:
        print(text)
    else:
        path.write_text(text)


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_command(*arguments: object) -> tuple[dict[str, Any], float]:
    """Run a command of bliss-index; return its JSON, and its peak memory in MiB.

    A small process starts it: what the system counts for a process begins with what its parent
    held when it was started.
    """
    command = [sys.executable, "-m", "bliss_index", *map(str, arguments), "--json"]
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURED, *command],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{arguments[0]} failed")
    output, _, peak = done.stdout.rpartition("\n")
    return json.loads(output), round(int(peak) / 1024, 1)


def score(folder: Path, images: str, out: str, threads: int, *more: str) -> dict[str, Any]:
    """Run ``bliss-index score``; return its summary, its peak memory and its rate while scoring."""
    shutil.rmtree(folder / out, ignore_errors=True)
    summary, peak = run_command(
        "score", folder / images, "--corpus", folder / "corpus",
        "--calibration", folder / "calibration", "--out", folder / out, "--threads", threads, *more,
    )  # fmt: skip
    summary["peak_mib"] = peak
    records = [json.loads(p.read_text()) for p in (folder / out / "_records").iterdir()]
    summary["scoring_rows_per_second"] = summary["rows"] / sum(r["seconds"] for r in records)
    return summary


_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("\\n", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, sep="", end="", flush=True)
sys.exit(code)
"""


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None
