"""What a part was computed by, as far as it can change the last digits of a result."""

from __future__ import annotations

import platform
import sys
from functools import cache
from importlib import metadata

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def numeric_fingerprint() -> str:
    """Name processor, instruction set, GPU, torch, Pillow and libjpeg, as far as in use here.

    For people who look for the cause of a difference; nothing is compared by it.
    """
    torch = sys.modules.get("torch")  # what is not imported has computed nothing
    on_gpu = torch is not None and torch.cuda.is_initialized()
    return _named(torch is not None, on_gpu, "PIL.JpegImagePlugin" in sys.modules)


@cache
def _named(torch: bool, gpu: bool, jpeg: bool) -> str:
    flags = _cpu_line("flags").split()
    found = [processor(), *(name for name in _INSTRUCTIONS if name in flags)]
    if torch:
        found.append(f"torch {metadata.version('torch')}")
    if gpu:
        found.append(str(sys.modules["torch"].cuda.get_device_name()))
    if jpeg:
        from PIL import features

        turbo = features.version_feature("libjpeg_turbo")
        library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
        found += [f"pillow {metadata.version('pillow')}", library]
    return ", ".join(found)


def processor() -> str:
    """Model of this machine's processor."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def _cpu_line(name: str) -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.partition(":")[2].strip() for line in file if line.startswith(name + "\t")
            )
    except (OSError, StopIteration):
        return ""
