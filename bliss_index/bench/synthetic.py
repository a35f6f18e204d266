"""Synthetic embeddings with the shape of CLIP's, for measuring speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

TEXT_NORM = 0.82
IMAGE_NORM = 0.68
_BLOCK_ROWS = 65536
_OUTLIERS = 2
_OUTLIER_SCALE = 12.0


def clip_like(
    count: int, dim: int, kind: str, seed: int, dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[Any]:
    """Draw unit vectors that are spread as CLIP's embeddings are.

    A direction common to all of a kind (the modality gap: its norm is 0.82 for texts and 0.68 for
    images, as measured on ViT-B/32), a decaying spectrum around it that both kinds share, and two
    coordinates much larger than the others.

    Parameters
    ----------
    count, dim
        Shape of the result.
    kind
        "text" or "image".
    seed
        Of the rows; the common directions are always the same.
    dtype
        Of the result.

    Returns
    -------
    (count, dim), unit norm up to rounding.
    """
    centre, transform = clip_shape(dim, kind)
    rng = np.random.default_rng(seed)
    rows: npt.NDArray[Any] = np.empty((count, dim), dtype=dtype)
    for start in range(0, count, _BLOCK_ROWS):
        size = min(_BLOCK_ROWS, count - start)
        part = rng.standard_normal((size, dim), dtype=np.float32) @ transform
        part += centre
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        rows[start : start + size] = part
    return rows


def clustered(
    count: int,
    dim: int,
    seed: int,
    *,
    near: int = 340,
    distance: float = 0.05,
    dtype: npt.DTypeLike = np.float32,
) -> npt.NDArray[Any]:
    """Draw a vocabulary as real ones are: many entries near each other.

    Of a list of a million entries, most are other words for what others say. Around each text of
    :func:`clip_like` lie `near` entries; their order is mixed. Where a search expects few entries
    to reach an image's k-th best, whole clusters do.

    Parameters
    ----------
    count, dim
        Shape of the result.
    seed
        Of the rows.
    near
        Entries around a text.
    distance
        Mean distance of an entry from its text, between unit vectors.
    dtype
        Of the result.

    Returns
    -------
    (count, dim), unit norm up to rounding.
    """
    texts = clip_like(-(-count // near), dim, "text", seed)
    rng = np.random.default_rng(seed + 1)
    order = rng.permutation(count)
    rows: npt.NDArray[Any] = np.empty((count, dim), dtype=dtype)
    for start in range(0, count, _BLOCK_ROWS):
        places = order[start : start + _BLOCK_ROWS]
        part = rng.standard_normal((len(places), dim), dtype=np.float32)
        part *= distance / np.sqrt(dim)
        part += texts[places // near]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        rows[start : start + len(places)] = part
    return rows


def clip_shape(dim: int, kind: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the common direction and the spread of :func:`clip_like`'s vectors.

    Standard normal rows times the spread, plus the direction, are such vectors before they are
    scaled to unit norm.

    Parameters
    ----------
    dim
        Length of a vector.
    kind
        "text" or "image".

    Returns
    -------
    centre (dim,) and transform (dim, dim).
    """
    shared = np.random.default_rng(12345)
    basis = np.linalg.qr(shared.normal(size=(dim, dim)))[0]
    scales = (np.arange(dim) + 2.0) ** -0.4
    centres = shared.normal(size=(2, dim))
    centres[:, :_OUTLIERS] *= _OUTLIER_SCALE
    centre = centres[0 if kind == "text" else 1]
    norm = TEXT_NORM if kind == "text" else IMAGE_NORM
    centre *= norm / np.linalg.norm(centre)
    spread = np.sqrt((1 - norm**2) / np.sum(scales**2))
    transform = scales[:, None] * spread * basis
    return centre.astype(np.float32), transform.astype(np.float32)
