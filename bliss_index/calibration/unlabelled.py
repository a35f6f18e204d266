"""Normal images without classes, or with outliers among them.

Calibration wants the classes of normal images. Where nobody gave them, the nearest label stands in;
where a few images of a class do not belong to it, the images farthest from its centre are left out.
Both change what is calibrated with, never how scores are computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.search.isolation import isolated

_BLOCK_ROWS = 8192
_MOST_STEPS = 100


@isolated
def assign_labels(
    images: npt.NDArray[Any], class_embeddings: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    """Give every image the class whose text is most similar to it: zero-shot classification.

    Parameters
    ----------
    images
        (n, d) normal images, unit norm.
    class_embeddings
        (C, d) text embeddings of the normal classes, unit norm.

    Returns
    -------
    (n,) int64 class numbers; of equally similar classes the first.

    Raises
    ------
    InvalidInputError
        Dimensions differ, or an image holds NaN or infinity.
    """
    texts = np.asarray(class_embeddings, dtype=np.float64)
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise InvalidInputError(
            f"images have shape {images.shape}, class embeddings {texts.shape}; dimensions must "
            "agree"
        )
    labels = np.empty(images.shape[0], dtype=np.int64)
    for start in range(0, images.shape[0], _BLOCK_ROWS):
        block = images[start : start + _BLOCK_ROWS].astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if bad.size:
            raise InvalidInputError(
                f"image {start + bad[0]} holds NaN or infinity; leave such rows out"
            )
        labels[start : start + _BLOCK_ROWS] = (block @ texts.T).argmax(axis=1)
    return labels


def require_trim(share: float) -> None:
    """Refuse a share to trim that is out of range, with an InvalidInputError."""
    if not 0 <= share < 0.5:
        raise InvalidInputError(f"the share to trim must be at least 0 and below 0.5, got {share}")


@isolated
def trim_mask(
    images: npt.NDArray[Any], labels: npt.NDArray[Any], share: float
) -> npt.NDArray[np.bool_]:
    """Say which images to calibrate with when some may not belong to their class.

    Of every class the `share` of images farthest from its centre is left out, where the centre is
    the mean of those that stay: least trimmed squares for a mean, by the concentration steps of
    Rousseeuw and Van Driessen (Technometrics, 1999), started from the coordinate-wise median.

    Parameters
    ----------
    images
        (n, d) unit norm.
    labels
        (n,) class numbers; images of negative number are never kept.
    share
        Share to leave out, at least 0 and below 0.5: as many outliers as can be expected. Leaving
        out images that do belong makes deviations too small, which raises all scores.

    Returns
    -------
    (n,) True for images to keep. A class of n keeps n - floor(share n) of them.

    Raises
    ------
    InvalidInputError
        The share is out of range, or there is not one label per image.
    """
    require_trim(share)
    if labels.shape != (images.shape[0],) or labels.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{images.shape[0]} images need as many class numbers, got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    keep = np.zeros(images.shape[0], dtype=bool)
    for c in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == c)
        keep[rows[_central(images[rows].astype(np.float64), share)]] = True
    return keep


def _central(images: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.intp]:
    # The product's rounding must not cost an image: 0.29 * 100 is a little below 29.
    size = images.shape[0] - int(np.floor(share * images.shape[0] + 1e-9))
    centre = np.median(images, axis=0)
    kept = np.empty(0, dtype=np.intp)
    for _ in range(_MOST_STEPS):
        distance = ((images - centre) ** 2).sum(axis=1)
        nearest = np.sort(np.argsort(distance, kind="stable")[:size])
        if np.array_equal(nearest, kept):
            break
        kept = nearest
        centre = images[kept].mean(axis=0)
    return kept
