"""The whole chain in one directory: encode, calibrate, find the threshold, score, report.

Nothing is computed here: the steps are those of the other commands, in their order.
"""

from bliss_index.screening.run import Anomaly, ScreenResult, screen
from bliss_index.screening.settings import ScreenSettings

__all__ = ["Anomaly", "ScreenResult", "ScreenSettings", "screen"]
