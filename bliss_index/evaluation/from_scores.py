"""Metrics of a scores directory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bliss_index.calibration.labels import (
    ANOMALY_COLUMNS,
    FOLDERS,
    ClassNames,
    Labels,
    folder_names,
)
from bliss_index.errors import InvalidInputError, listed
from bliss_index.evaluation.metrics import Metrics, evaluate_scores
from bliss_index.scoring.scores_directory import ScoresDirectory

DEFAULT_RESAMPLES = 1000
"""Bootstrap resamples of the intervals that ``evaluate`` and ``report`` show."""

_KINDS = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True, eq=False)
class KnownAnomalies:
    """What is known of the rows of a scores directory.

    Attributes
    ----------
    anomaly
        (rows,) True for anomalies.
    known
        (rows,) True where there is a label.
    """

    anomaly: npt.NDArray[np.bool_]
    known: npt.NDArray[np.bool_]


def evaluate_directory(path: str | Path, labels: str | Path, *, resamples: int = 0) -> Metrics:
    """Compare the scores of a complete job with what is known of its images.

    Parameters
    ----------
    path
        The scores directory. Images without a score are left out, and counted in the result.
    labels
        1 or true for anomalies, 0 or false for normal images, in a table in its column 'anomaly'
        if it has one; a file that
        :meth:`bliss_index.calibration.labels.Labels.read` takes. Or "folders": an image is normal
        if the first folder of its key is named as one of the normal classes, and an anomaly in any
        other folder. Images without a label are left out, and counted in the result.
    resamples
        Bootstrap resamples for intervals.

    Raises
    ------
    InvalidInputError
        There is not one label for every row in row order, a key is not among the rows, a label
        is neither 0 nor 1, or no folder is a normal class.
    """
    directory = ScoresDirectory.open(path)
    return evaluate_known(directory, read_anomalies(directory, labels), resamples=resamples)


def evaluate_known(
    directory: ScoresDirectory, given: KnownAnomalies, *, resamples: int = 0
) -> Metrics:
    """As :func:`evaluate_directory`, for labels that were read already."""
    parts = list(_scores(directory))
    scores = np.concatenate(parts) if parts else np.empty(0)
    metrics = evaluate_scores(
        scores[given.known], given.anomaly[given.known], resamples=resamples, allow_missing=True
    )
    return replace(metrics, unlabelled=int((~given.known).sum()))


def read_anomalies(directory: ScoresDirectory, labels: str | Path) -> KnownAnomalies:
    """Read which rows of a scores directory are anomalies.

    Raises
    ------
    InvalidInputError
        As for :func:`evaluate_directory`.
    """
    if labels == FOLDERS:
        return _anomalies_of_folders(directory)
    given = Labels.read(labels, ANOMALY_COLUMNS)
    listed = given.of_rows(
        lambda: (table.column("key").to_pylist() for table in directory.iter_tables(["key"])),
        directory.rows,
    )
    anomaly, known = np.zeros((2, len(listed)), dtype=bool)
    for row, label in enumerate(listed):
        if label is None:
            continue
        kind = label.strip().lower() if isinstance(label, str) else label
        if isinstance(label, float) or kind not in _KINDS:
            raise InvalidInputError(
                f"{labels}: label {label!r} of row {row} is neither 0 (normal) nor 1 (anomaly)"
            )
        anomaly[row], known[row] = _KINDS[kind], True
    return KnownAnomalies(anomaly, known)


def _anomalies_of_folders(directory: ScoresDirectory) -> KnownAnomalies:
    """Folders named as a normal class hold normal images, all others anomalies."""
    classes = ClassNames(directory.classes)
    anomaly, known = np.zeros((2, directory.rows), dtype=bool)
    start, normal, folders = 0, 0, set[str]()
    for table in directory.iter_tables(["key"]):
        for row, folder in enumerate(folder_names(table.column("key").to_pylist()), start):
            if folder is not None:
                folders.add(folder)
                known[row], anomaly[row] = True, classes.position(folder) is None
                normal += not anomaly[row]
        start += table.num_rows
    if not normal:
        found = f"its folders are {listed(sorted(folders))}" if folders else "no key has a folder"
        raise InvalidInputError(
            f"no key of {directory.path} is in a folder named as one of the normal classes "
            f"({listed(list(directory.classes))}): {found}; give a file of labels"
        )
    return KnownAnomalies(anomaly, known)


def _scores(directory: ScoresDirectory) -> Iterator[npt.NDArray[np.float64]]:
    for table in directory.iter_tables(["anomaly_score"]):
        column = table.column("anomaly_score").to_numpy()
        yield column.astype(np.float64)
