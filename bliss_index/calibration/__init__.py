"""Calibration: the moments of the normal classes' images, and how they are read and kept."""

from __future__ import annotations

from bliss_index.calibration.calibration import Calibration, calibrate
from bliss_index.calibration.moments import ClassMoments

__all__ = ["Calibration", "ClassMoments", "calibrate"]
