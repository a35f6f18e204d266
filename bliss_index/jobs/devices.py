"""The devices that a job may name."""

from __future__ import annotations

from collections.abc import Sequence

from bliss_index.errors import InvalidInputError


def require_devices(names: Sequence[str]) -> None:
    """Refuse devices that are not here, before anything is begun.

    Raises
    ------
    InvalidInputError
        A name is none of torch's, or this machine has no such device; those that it has are named.
    """
    for name in names:
        if name not in ("auto", "cpu"):
            _require_torch_device(name)


def _require_torch_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise InvalidInputError(
            f"{name!r} is not a device; write 'auto', 'cpu', or GPUs such as '0,1'"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InvalidInputError(
                f"there is no device {name}: torch sees {count} GPUs here; choose among "
                f"{', '.join(['cpu', *(f'cuda:{i}' for i in range(count))])}"
            )
