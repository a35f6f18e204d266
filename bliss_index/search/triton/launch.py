"""Where a Triton kernel is launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_WELL_OCCUPIED = 0.9


def device_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def processors_of(device: torch.device) -> int:
    """Multiprocessors of a GPU; two elsewhere, so that work is cut there too."""
    if device.type != "cuda":
        return 2
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def fewest_parts(tiles: int, most: int, at_once: int) -> int:
    """Into how many parts to cut the work on every tile, so that programs occupy a device.

    The fewest that fill nine tenths of the rounds in which `at_once` programs run beside each
    other; where none does, those that fill most.
    """
    shares = [
        tiles * parts / (-(-tiles * parts // at_once) * at_once) for parts in range(1, most + 1)
    ]
    good = (parts for parts, share in enumerate(shares, 1) if share >= _WELL_OCCUPIED)
    return next(good, 1 + shares.index(max(shares)))
