"""What a calibration's images say about how far its scores can be trusted."""

from __future__ import annotations

from bliss_index.calibration.calibration import Calibration
from bliss_index.errors import listed

FEW_IMAGES = 10
"""Below this many images a class, scores without shrinkage are measurably worse."""

SHRINKAGE = 10
"""The shrinkage that a warning names."""

# AUROC in percent by images a class, six normal classes, shrinkage 0 and SHRINKAGE; measured by
# benchmarks/study_few_images.py on Caltech101 and ImageNet.
MEASURED = {
    ("Caltech101", 2): (87.7, 98.4),
    ("Caltech101", 5): (98.6, 99.2),
    ("ImageNet", 2): (87.2, 94.7),
}


def few_images_warning(calibration: Calibration) -> str | None:
    """Warn of classes whose deviations come from few images and are not shrunken.

    Returns
    -------
    The warning, with what was measured and the option that helps; None where there is no need.
    """
    few = [
        f"{name!r} ({moments.count})"
        for name, moments in zip(calibration.classes, calibration.moments, strict=True)
        if moments.count < FEW_IMAGES
    ]
    if calibration.shrinkage or not few:
        return None
    measured = "; ".join(
        f"{title}, {count} images a class: {without:.1f} without, {shrunken:.1f} with {SHRINKAGE}"
        for (title, count), (without, shrunken) in MEASURED.items()
    )
    return (
        f"{len(few)} of {len(calibration.classes)} classes have fewer than {FEW_IMAGES} "
        f"calibration images: {listed(few)}. Deviations from so few are mostly chance; a shrinkage "
        f"steadies them (calibrate --shrinkage {SHRINKAGE}, in Python shrinkage={SHRINKAGE}). "
        f"Measured, AUROC in percent with six normal classes: {measured}."
    )
