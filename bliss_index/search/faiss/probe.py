"""Whether faiss can use a GPU here, and if not, why and what to install.

The question is asked in a process of its own: a broken driver or a build for other GPUs can end a
process, and a CUDA context takes hundreds of megabytes that a caller may not want.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from bliss_index.search.faiss.runtime import PIP_CPU, PIP_GPU

_MARK = "bliss-index-probe:"


@dataclass(frozen=True)
class GpuProbe:
    """The answer of :func:`probe_gpu`.

    Attributes
    ----------
    usable
        A search ran on a GPU and found what it should.
    reason
        One sentence: what runs, or why nothing can.
    remedy
        What to install or change; empty where nothing needs to be.
    gpus
        GPUs that faiss sees.
    faiss_version
        None where faiss cannot be imported.
    """

    usable: bool
    reason: str
    remedy: str
    gpus: int
    faiss_version: str | None


def probe_gpu(timeout: float = 120.0) -> GpuProbe:
    """Try a small search on a GPU in a subprocess, for at most ``timeout`` seconds."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return explain({"stage": "timeout", "error": f"no answer within {timeout:g} s"})
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return explain(json.loads(line[len(_MARK) :]))
    tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return explain({"stage": "crash", "error": f"exit status {done.returncode}: {tail}"})


def explain(facts: dict[str, Any]) -> GpuProbe:
    """Turn what the subprocess found into a reason and a remedy.

    ``facts`` has ``stage`` (where it stopped: "import", "build", "devices", "search", "done",
    "crash", "timeout"), ``error``, and where known ``gpus``, ``version`` and ``driver``.
    """
    stage, error = str(facts["stage"]), str(facts.get("error", ""))
    gpus, version = int(facts.get("gpus", 0)), facts.get("version")
    driver = bool(facts.get("driver", False))
    text = error.lower()
    reason, remedy = f"faiss failed on the GPU: {error}", ""
    if stage == "done":
        reason = f"faiss {version} searches on {gpus} GPU(s)"
    elif stage == "import" and any(name in text for name in ("cublas", "cudart", "curand", ".so")):
        reason = f"faiss cannot load the CUDA libraries: {error}"
        remedy = f"Install them with faiss: {PIP_GPU}"
    elif stage == "import":
        reason = f"faiss cannot be imported: {error}"
        remedy = f"Install it: {PIP_GPU} (for the CPU alone {PIP_CPU})"
    elif stage == "build":
        reason = f"faiss {version} is a build for the CPU alone"
        remedy = f"First pip uninstall -y faiss-cpu, then {PIP_GPU}"
    elif "driver version is insufficient" in text:
        reason = f"the NVIDIA driver is older than faiss {version} needs: {error}"
        remedy = "Install a newer NVIDIA driver (525 or later for CUDA 12)"
    elif "no kernel image" in text or "invalid device function" in text:
        reason = f"faiss {version} was not compiled for this GPU's architecture: {error}"
        remedy = "The wheels cover sm_70 to sm_90; compile faiss for this GPU, or use the CPU"
    elif "out of memory" in text:
        reason = f"the GPU has no memory left: {error}"
        remedy = "Free memory on the GPU"
    elif stage == "devices" and not driver:
        reason = "no NVIDIA driver is here (libcuda.so.1 cannot be loaded)"
        remedy = "Install the NVIDIA driver; in a container, start it with the GPU passed through"
    elif stage == "devices":
        reason = f"the NVIDIA driver is here but faiss {version} sees no GPU {error}".strip()
        remedy = "Check nvidia-smi and CUDA_VISIBLE_DEVICES"
    elif stage == "timeout":
        reason = f"the GPU did not answer: {error}"
        remedy = "Check nvidia-smi for a hanging GPU"
    elif stage == "crash":
        reason = f"faiss crashed on the GPU: {error}"
        remedy = "Check that driver and GPU fit the installed faiss (sm_70 to sm_90, CUDA 12)"
    return GpuProbe(
        stage == "done", reason, remedy, gpus, None if version is None else str(version)
    )


def _look() -> dict[str, Any]:
    """Go as far towards a search on a GPU as this process can; say how far that was."""
    import ctypes
    import importlib

    facts: dict[str, Any] = {"stage": "import", "driver": True}
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        facts["driver"] = False
    try:
        import numpy as np

        faiss = importlib.import_module("faiss")
        facts.update(stage="build", version=faiss.__version__)
        if not hasattr(faiss, "GpuIndexFlatIP"):
            return facts
        facts.update(stage="devices", gpus=faiss.get_num_gpus())
        if facts["gpus"] == 0:
            return facts
        facts["stage"] = "search"
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), 8)
        index.add(np.eye(8, dtype=np.float32))
        _, ids = index.search(np.eye(8, dtype=np.float32), 1)
        if ids[:, 0].tolist() != list(range(8)):
            return {**facts, "error": f"a search for 0..7 returned {ids[:, 0].tolist()}"}
        facts["stage"] = "done"
    except (ImportError, RuntimeError) as error:
        facts["error"] = " ".join(str(error).split())
    return facts


if __name__ == "__main__":
    print(_MARK + json.dumps(_look()))
