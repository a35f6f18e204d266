"""What the result file says about the host and its card."""

from __future__ import annotations

import contextlib
import subprocess
from typing import Any

import torch
from machine import describe_machine


def describe_device(device: torch.device) -> dict[str, Any]:
    """The host, and the card with its driver."""
    facts = describe_machine(torch.get_num_threads())
    facts["versions"].pop("faiss-cpu", None)
    if device.type == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        with contextlib.suppress(OSError):
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            facts["card"] = done.stdout.strip().splitlines()
        facts["cuda"] = torch.version.cuda
        with contextlib.suppress(ImportError):
            import triton

            facts["versions"]["triton"] = triton.__version__
    return facts
