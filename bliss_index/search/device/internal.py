"""Internal scores of images, before they are added to what the entries say."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Internal:
    """What the internal scores (mu - products) / sigma are made of.

    Attributes
    ----------
    products
        (n, C) float64, inner products of images and class texts.
    mu, sigma
        (C,) float64 of every class's images.
    """

    products: torch.Tensor
    mu: torch.Tensor
    sigma: torch.Tensor

    def scores(self, part: slice) -> torch.Tensor:
        """Internal scores of some images."""
        return (self.mu - self.products[part]) / self.sigma
