"""Devices and threads: what a person may name, what is here, and what "auto" stands for."""

from __future__ import annotations

import math
import os
import sys
from numbers import Integral
from pathlib import Path

from bliss_index.errors import InvalidInputError, MissingDependencyError

DEVICES = ("cpu", "cuda", "mps", "xpu")

MAX_THREADS = 4096  # every thread has a workspace of some megabytes
_DRIVER_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_CGROUPS = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """Return the number of processors: of this process's affinity, and of its control group."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    quota = _quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _quota() -> float | None:
    """Processors that the control groups of this process allow; None where they allow all."""
    quotas = []
    for line in _read(_CGROUPS / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "cpu", "cpu,cpuacct"):
            folder = _GROUPS / (controllers and "cpu") / path.lstrip("/")
            # A limit of any group above holds as well; within a container, the root is the own.
            for group in (folder, *folder.parents):
                quotas.extend(_quota_of(group))
                if group == _GROUPS:
                    break
    return min(quotas, default=None)


def _quota_of(group: Path) -> list[float]:
    limits = _read(group / "cpu.max").split()  # version 2: "max 100000", or "150000 100000"
    if not limits:
        limits = [_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = float(limits[0]), float(limits[1])
    except (ValueError, IndexError):
        return []
    return [quota / period] if quota > 0 and period > 0 else []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def thread_count(threads: int | None) -> int:
    """Return `threads`, else BLISS_INDEX_THREADS, else the number of usable processors.

    Raises
    ------
    InvalidInputError
        The number, or the environment's, is not a whole number from 1 to ``MAX_THREADS``.
    """
    if threads is not None:
        return _checked(threads, "threads", repr(threads))
    text = os.environ.get("BLISS_INDEX_THREADS", "")
    if not text:
        return usable_processors()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    return _checked(number, "BLISS_INDEX_THREADS", repr(text))


def _checked(number: object, name: str, given: str) -> int:
    if isinstance(number, Integral) and not isinstance(number, bool):
        whole = int(number)
        if 1 <= whole <= MAX_THREADS:
            return whole
    raise InvalidInputError(
        f"{name} must be a whole number of at least 1 and at most {MAX_THREADS}, got {given}; "
        f"this process may use {usable_processors()} processors"
    )


def device_name(device: object) -> str:
    """Return a device's name as torch writes it, such as "cpu", "cuda" or "cuda:1".

    Parameters
    ----------
    device : str or torch.device
        "auto" is not taken here; see :func:`resolve_device`.

    Raises
    ------
    InvalidInputError
        It is neither, or names no kind of device that is computed on.
    """
    torch = sys.modules.get("torch")  # whoever has a torch.device has imported it
    if torch is not None and isinstance(device, torch.device):
        device = str(device)
    if not isinstance(device, str):
        raise InvalidInputError(
            f"device must be a string such as 'cpu' or 'cuda:1', got {device!r}; give str(device)"
        )
    kind, colon, number = device.partition(":")
    plain = number.isascii() and number.isdigit() and len(number) < 5 if colon else True
    if kind not in DEVICES or not plain or (kind == "cpu" and number.strip("0")):
        raise InvalidInputError(
            f"device {device!r} is not known; give 'auto' or one of {', '.join(DEVICES)}, with a "
            "number where there are several, such as 'cuda:1'; GPUs may be listed as '0,1'"
        )
    return device


def device_names(text: str) -> tuple[str, ...]:
    """Read a list of devices: "0,1" are two GPUs, "auto" stays; every other name is checked."""
    names = [name.strip() for name in text.split(",")]
    names = [f"cuda:{name}" if name.isascii() and name.isdigit() else name for name in names]
    return tuple(name if name == "auto" else device_name(name) for name in names)


def resolve_device(device: object, *, among: tuple[str, ...] = ("cuda",), here: bool = True) -> str:
    """Decide what "auto" means on this machine, and refuse a device that is not here.

    Parameters
    ----------
    device : str or torch.device
        "auto", or as for :func:`device_name`.
    among : tuple of str, default=("cuda",)
        Kinds that "auto" may stand for besides "cpu", the best first.
    here : bool, default=True
        Whether this machine will compute; where others will, only the name is checked.

    Returns
    -------
    str
        "cpu", "cuda", "cuda:1", ...

    Raises
    ------
    InvalidInputError
        It is no device's name, or there are fewer GPUs than its number says.
    MissingDependencyError
        No device of its kind can be used; the message says why.
    """
    if device == "auto":
        return next((kind for kind in among if not why_missing(kind)), "cpu")
    name = device_name(device)
    if not here:
        return name
    kind, _, number = name.partition(":")
    why = why_missing(kind)
    if why:
        raise MissingDependencyError(f"device {name!r} cannot be used: {why}; or take the CPU")
    if kind == "cuda":
        import torch

        count = torch.cuda.device_count()
        if int(number or 0) >= count:
            raise InvalidInputError(
                f"device {name!r} is not here: torch sees {count} GPU{'s' * (count > 1)}, the last "
                f"is 'cuda:{count - 1}'"
            )
    return name


def why_missing(kind: str) -> str:
    """Why there is no device of a kind here, and what to do; "" where there is one."""
    if kind == "cpu":
        return ""
    if kind == "cuda":
        gpu, why = find_gpu()
        remedy = "install the GPU's driver and a CUDA build of torch"
        return "" if gpu else f"{why}; {remedy}"
    import torch

    there = torch.backends.mps.is_available() if kind == "mps" else torch.xpu.is_available()
    return "" if there else f"torch {torch.__version__} finds none here"


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
