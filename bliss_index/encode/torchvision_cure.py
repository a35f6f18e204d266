"""Import open_clip beside a torchvision whose compiled operators do not fit the installed torch.

A CPU build of torch next to torchvision's default wheel makes ``import torchvision`` raise
"operator torchvision::nms does not exist": the wheel's compiled library was built for another
torch and registers nothing. Only resizing and tensor conversion are needed here, and those are
plain Python, so the two missing operator *schemas* are declared and the import is repeated.
Compiled operators and ``torchvision.io`` stay unusable; images are decoded with Pillow.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from bliss_index.errors import MissingDependencyError, install_line

_SYMPTOM = "operator torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_kept_alive: list[Any] = []  # a torch.library.Library unregisters its schemas when collected


def import_open_clip() -> ModuleType:
    """Import open_clip, curing the one known torchvision mismatch.

    Returns
    -------
    module
        The ``open_clip`` package.

    Raises
    ------
    MissingDependencyError
        open_clip or torchvision is not installed; the message holds the pip line.
    """
    loaded = sys.modules.get("open_clip")
    if loaded is not None:
        return loaded
    try:
        import_torchvision()
        return importlib.import_module("open_clip")
    except ModuleNotFoundError as error:
        if error.name not in ("open_clip", "torchvision"):
            raise
        raise MissingDependencyError(
            f"encoding needs open_clip, and the module '{error.name}' is not installed; "
            f"run: {install_line('clip')}"
        ) from error


@contextlib.contextmanager
def root_logger_kept() -> Iterator[None]:
    """Around calls of open_clip's factories, whose ``logging.info`` configures the root logger.

    A root logger with a handler is left alone by it, so an idle one stands in for the while.
    """
    root, idle = logging.getLogger(), logging.NullHandler()
    root.addHandler(idle)
    try:
        yield
    finally:
        root.removeHandler(idle)


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring its two missing operators if exactly they stop the import."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]
    _declare_operators()
    return importlib.import_module("torchvision")


def _declare_operators() -> None:
    import torch

    make_library: Any = torch.library.Library  # torch leaves it untyped
    library = make_library("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    _kept_alive.append(library)
