"""Whether there is a GPU for torch, asked without importing torch where there cannot be one."""

from __future__ import annotations

import sys
from pathlib import Path

_DRIVER_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def find_gpu() -> tuple[str | None, str]:
    """Return the torch device of the first GPU and what it is, or None and why there is none.

    Importing torch takes a second and 200 MB; that is done only where the system has a GPU's driver
    at all.
    """
    if sys.platform == "linux" and not any(Path(node).exists() for node in _DRIVER_NODES):
        return None, "no GPU driver is here"
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "torch sees no GPU" if built else f"torch {torch.__version__} is a build for the CPU"
        return None, why
    return "cuda", torch.cuda.get_device_name(0)
