"""How precise torch's float32 products are, as it is set now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

UNIT_TF32 = 2.0**-10
UNIT_BFLOAT16 = 2.0**-8


def factor_unit(device: torch.device) -> float:
    """Unit roundoff of a factor inside a float32 product on a device; 0.0 for float32's own."""
    import torch

    precision = torch.get_float32_matmul_precision()
    high = UNIT_BFLOAT16 if device.type == "cpu" else UNIT_TF32
    unit = {"highest": 0.0, "high": high, "medium": UNIT_BFLOAT16}[precision]
    if device.type == "cuda" and os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        return max(unit, high)
    return unit
