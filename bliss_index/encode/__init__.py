"""Image and text embeddings by open_clip models: towers, identity, decoding, preprocessing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bliss_index.encode.model import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]

_HOMES = {"Encoder": "model", "load_encoder": "model"}


def __getattr__(name: str) -> Any:
    # Lazy: importing this package must not import torch or Pillow.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
