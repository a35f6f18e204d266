"""How precise float32 products are, as torch and the environment are set now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

UNIT_TF32 = 2.0**-10
UNIT_BFLOAT16 = 2.0**-8


def tf32_is_forced() -> bool:
    """Whether the environment makes GPUs multiply float32 numbers as TF32, whatever is set."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE") == "1"


def factor_unit(device: torch.device) -> float:
    """Unit roundoff of a factor inside a float32 product on a device; 0.0 for float32's own."""
    import torch

    precision = torch.get_float32_matmul_precision()
    high = UNIT_BFLOAT16 if device.type == "cpu" else UNIT_TF32
    unit = {"highest": 0.0, "high": high, "medium": UNIT_BFLOAT16}[precision]
    if device.type == "cuda" and tf32_is_forced():
        return max(unit, high)
    return unit
