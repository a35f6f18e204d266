"""Metrics of a scores directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bliss_index.bulk.scores import ScoresDirectory
from bliss_index.calibration.labels import Labels
from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.metrics import Metrics, evaluate_scores

_KINDS = {0: False, 1: True, "0": False, "1": True}  # False and True are 0 and 1


def evaluate_directory(path: str | Path, labels: str | Path, *, resamples: int = 0) -> Metrics:
    """Compare the scores of a complete job with what is known of its images.

    Parameters
    ----------
    path
        The scores directory. Images without a score are left out, and counted in the result.
    labels
        1 or true for anomalies, 0 or false for normal images; a file that
        :meth:`bliss_index.calibration.labels.Labels.read` takes.
    resamples
        Bootstrap resamples for intervals.

    Raises
    ------
    InvalidInputError
        There is not one label for every row, or one of them is neither 0 nor 1.
    """
    directory = ScoresDirectory.open(path)
    anomaly = read_anomalies(directory, labels)
    parts = list(_scores(directory))
    scores = np.concatenate(parts) if parts else np.empty(0)
    return evaluate_scores(scores, anomaly, resamples=resamples, allow_missing=True)


def read_anomalies(directory: ScoresDirectory, labels: str | Path) -> npt.NDArray[np.bool_]:
    """Read which rows of a scores directory are anomalies: (rows,).

    Raises
    ------
    InvalidInputError
        There is not one label for every row, or one of them is neither 0 nor 1.
    """
    given = Labels.read(labels)
    keys = (table.column("key").to_pylist() for table in directory.iter_tables(["key"]))
    listed = given.of_rows(keys, directory.rows)
    anomaly = np.zeros(len(listed), dtype=bool)
    for row, label in enumerate(listed):
        if isinstance(label, float) or label not in _KINDS:
            raise InvalidInputError(
                f"{labels}: label {label!r} of row {row} is neither 0 (normal) nor 1 (anomaly)"
            )
        anomaly[row] = _KINDS[label]
    return anomaly


def _scores(directory: ScoresDirectory) -> Iterator[npt.NDArray[np.float64]]:
    for table in directory.iter_tables(["anomaly_score"]):
        column = table.column("anomaly_score").to_numpy()
        yield column.astype(np.float64)
