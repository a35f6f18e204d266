"""Pixels as a model was trained to see them.

The geometry (resize, crop) is done by Pillow on 8-bit images, so decoding processes need no
torch and hand over 8-bit arrays, a quarter of the float ones; scaling and normalisation follow
on the encoder's device. The result is bit for bit that of open_clip's inference transform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import EncoderError, InvalidInputError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# What the authors of BLISS normalise with, whatever the model: the statistics of CIFAR-10.
AUTHORS_MEAN = (0.4913, 0.4821, 0.4465)
AUTHORS_STD = (0.2470, 0.2434, 0.2615)

_INTERPOLATIONS = {"bilinear": 2, "bicubic": 3}  # Pillow's Resampling codes
_RESIZE_MODES = ("shortest", "longest", "squash")
_MAX_ASPECT = 256  # a longer strip, resized by its shorter side, would need gigabytes


@dataclass(frozen=True)
class Preprocess:
    """Inference preprocessing of one model.

    Attributes
    ----------
    size : (int, int)
        Height and width that the image tower takes.
    mean, std : (float, float, float)
        Subtracted from, and divided into, RGB values in [0, 1].
    interpolation : {'bicubic', 'bilinear'}
    resize_mode : {'shortest', 'longest', 'squash'}
        Resize the shorter side and crop the centre; the longer side and pad; or both sides.
    fill_color : int
        Padding of 'longest'.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            raise EncoderError(
                f"unknown interpolation '{self.interpolation}', known: {list(_INTERPOLATIONS)}"
            )
        if self.resize_mode not in _RESIZE_MODES:
            raise EncoderError(
                f"unknown resize mode '{self.resize_mode}', known: {list(_RESIZE_MODES)}"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise EncoderError(f"mean {self.mean} and std {self.std} must hold 3 values, std > 0")

    @classmethod
    def from_open_clip(cls, settings: Mapping[str, Any]) -> Preprocess:
        """Read open_clip's ``preprocess_cfg``."""

        def triple(value: Any) -> tuple[float, ...]:
            return tuple(map(float, value if hasattr(value, "__len__") else (value,) * 3))

        size = settings["size"]
        height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
        interpolation = str(settings.get("interpolation") or "bicubic")
        return cls(
            (int(height), int(width)),
            triple(settings["mean"]),
            triple(settings["std"]),
            "bicubic" if interpolation == "random" else interpolation,
            str(settings.get("resize_mode") or "shortest"),
            int(settings.get("fill_color") or 0),
        )

    def with_authors_statistics(self) -> Preprocess:
        """The same geometry, normalised with CIFAR-10's statistics as the authors do."""
        return replace(self, mean=AUTHORS_MEAN, std=AUTHORS_STD)

    def to_json(self) -> dict[str, Any]:
        """Settings for the model identity, plain JSON types."""
        return {
            "size": list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill_color": self.fill_color,
        }

    def pixels(self, image: Image) -> npt.NDArray[np.uint8]:
        """Resize and crop an RGB image to (height, width, 3) uint8."""
        if image.mode != "RGB":
            raise InvalidInputError(f"expected an RGB image, got mode '{image.mode}'")
        if max(image.size) > _MAX_ASPECT * min(image.size):
            raise InvalidInputError(
                f"image of {image.width} x {image.height} pixels has an aspect ratio above "
                f"{_MAX_ASPECT}"
            )
        height, width = self.size
        resample = _INTERPOLATIONS[self.interpolation]
        if self.resize_mode == "squash":
            image = _resize(image, (height, width), resample)
        elif self.resize_mode == "longest":
            image = _resize(image, self._ratio_size(image, max), resample)
            image = _centre(image, (height, width), self.fill_color)
        elif height == width:
            image = _resize(image, _shortest_size(image, height), resample)
            image = _centre(image, (height, width), 0)
        else:  # open_clip keeps to bicubic here
            image = _resize(image, self._ratio_size(image, min), _INTERPOLATIONS["bicubic"])
            image = _centre(image, (height, width), 0)
        return np.array(image, dtype=np.uint8)

    def _ratio_size(self, image: Image, side: Any) -> tuple[int, int]:
        ratio = side(image.height / self.size[0], image.width / self.size[1])
        return max(1, round(image.height / ratio)), max(1, round(image.width / ratio))

    def normalise(
        self, pixels: npt.NDArray[np.uint8], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """(n, height, width, 3) uint8 to a normalised (n, 3, height, width) tensor."""
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        batch = batch.to(torch.float32).div_(255)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        return batch.sub_(mean).div_(std).to(dtype)


def _shortest_size(image: Image, target: int) -> tuple[int, int]:
    """Height and width with the shorter side `target`, rounded as torchvision does."""
    short, long = sorted(image.size)
    other = int(target * long / short)
    return (other, target) if image.width <= image.height else (target, other)


def _resize(image: Image, size: tuple[int, int], resample: int) -> Image:
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _centre(image: Image, size: tuple[int, int], fill: int) -> Image:
    """Pad to at least `size`, then crop the centre, rounded as torchvision does."""
    from PIL import ImageOps

    height, width = size
    if image.width < width or image.height < height:
        across, down = max(0, width - image.width), max(0, height - image.height)
        border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
        image = ImageOps.expand(image, border, fill=(fill, fill, fill))
    top = round((image.height - height) / 2.0)
    left = round((image.width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))
