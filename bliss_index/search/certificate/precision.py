"""How precise float32 products are, as torch and the environment are set now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

UNIT_TF32 = 2.0**-10
UNIT_BFLOAT16 = 2.0**-8
_OLD_NAMES = {"highest": "ieee", "high": "tf32", "medium": "bf16"}


def tf32_is_forced() -> bool:
    """Whether the environment makes GPUs multiply float32 numbers as TF32, whatever is set."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE") == "1"


def factor_unit(device: torch.device) -> float:
    """Unit roundoff of a factor inside a float32 product on a device; 0.0 for float32's own.

    torch has two ways to say how precise such products are, and each refuses to be read, or does
    not know the other, once both were used. The less precise of what they say counts.
    """
    import torch

    coarse = UNIT_BFLOAT16 if device.type == "cpu" else UNIT_TF32
    unit = {"ieee": 0.0, "tf32": coarse}
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    said = [
        # Before torch 2.9 there is only the old way.
        getattr(getattr(backend, "matmul", None), "fp32_precision", "ieee"),
        _OLD_NAMES.get(_old_precision(torch), "bf16"),
        "tf32" if device.type == "cuda" and tf32_is_forced() else "ieee",
        "bf16" if device.type == "cpu" and _onednn_is_coarse() else "ieee",
    ]
    return max(unit.get("ieee" if name == "none" else name, UNIT_BFLOAT16) for name in said)


def _old_precision(torch: Any) -> str:
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:  # the new way was used, and says it all
        return "highest"


def _onednn_is_coarse() -> bool:
    """Whether the environment lets oneDNN multiply float32 numbers in a narrower type."""
    names = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
    return any(os.environ.get(name, "STRICT").upper() != "STRICT" for name in names)
