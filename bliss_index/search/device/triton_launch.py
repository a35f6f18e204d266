"""Where a Triton kernel is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def processors_of(device: torch.device) -> int:
    """Multiprocessors of a GPU; two elsewhere, so that work is cut there too."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
