"""Judged images that are a random sample of what was scored: for thresholds and for metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.evaluation.from_scores import KnownAnomalies
from bliss_index.review.inputs import ReviewInputs, ReviewOptions
from bliss_index.review.judgement_log import BELONGS, DOES_NOT_BELONG
from bliss_index.review.judgements import Judgements
from bliss_index.scoring.normal_scores import NormalScores
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.store.schema import OK


@dataclass(frozen=True, eq=False)
class JudgedSample:
    """Images drawn at random and judged in their order, as rows of scores.

    Attributes
    ----------
    inputs : ReviewInputs
        The scores.
    normal, anomalies : (n,) int64 arrays
        Rows that belong, and that do not.
    undecided : int
        Images of the sample that were skipped or are disputed; they are left out.
    calibrated : int
        Those that calibrated the scores; they never count.
    gone : int
        Those that are not among the scores, or have no score.
    """

    inputs: ReviewInputs
    normal: npt.NDArray[np.int64]
    anomalies: npt.NDArray[np.int64]
    undecided: int
    calibrated: int
    gone: int

    @property
    def left_out(self) -> str:
        """What is left out, in a few words."""
        return (
            f"of the random sample {self.undecided} undecided images, {self.calibrated} that "
            f"calibrated and {self.gone} without a score are left out"
        )

    def known(self) -> KnownAnomalies:
        """Return the sample as labels."""
        anomaly, known = np.zeros((2, self.inputs.scores.rows), dtype=bool)
        anomaly[self.anomalies] = True
        known[np.concatenate([self.normal, self.anomalies])] = True
        return KnownAnomalies(anomaly, known)

    def normal_scores(self, confidence: float | None = None) -> NormalScores:
        """Return the scores of the images that belong: none of them calibrated.

        Raises
        ------
        InvalidInputError
            There are none.
        """
        if not self.normal.size:
            raise InvalidInputError(
                f"no image of a random sample of {self.inputs.scores.path} belongs and did not "
                f"calibrate ({self.left_out}); judge more of one in 'bliss-index review'"
            )
        column = self.inputs.scores.table(["anomaly_score"]).column("anomaly_score")
        scores = column.take(self.normal).to_numpy().astype(np.float64)
        return NormalScores(scores, self.inputs.identity, 0, confidence)


def judged_sample(
    scores: str | Path, judgements: str | Path, normal: str | Path | None = None
) -> JudgedSample:
    """Find the random sample that was judged in a review.

    Parameters
    ----------
    scores : str or Path
        A run, or local scores.
    judgements : str or Path
        Folder of the logs.
    normal : str or Path, default=None
        Image store that calibrated the scores; by default that of the run.

    Raises
    ------
    StoreError
        There are no judgements, or it is not known which images calibrated.
    InvalidInputError
        No random sample was judged.
    """
    folder = Path(judgements)
    options = ReviewOptions(normal=None if normal is None else str(normal), judgements=folder)
    inputs = ReviewInputs.open(scores, options)
    verdicts = Judgements.read(folder).random_sample()
    if not verdicts:
        raise InvalidInputError(
            f"{folder} has no random sample of all images: draw one in 'bliss-index review' "
            "(Random samples, Sample all) and judge its images in their order. Those judged "
            "because of their scores cannot stand for others"
        )
    identical = inputs.identical
    if identical is None or identical.calibrated is None:
        raise StoreError(
            f"which images calibrated {inputs.scores.path} is not known, and they must not count: "
            f"{'; '.join(inputs.notices)}"
        )
    rows = _rows_of(inputs.scores, list(verdicts))
    named = np.array(list(verdicts.values()))
    calibrated = np.isin(rows, identical.calibrated)
    counts = (rows >= 0) & ~calibrated
    decided = {name: rows[counts & (named == name)] for name in (BELONGS, DOES_NOT_BELONG)}
    return JudgedSample(
        inputs,
        np.sort(decided[BELONGS]),
        np.sort(decided[DOES_NOT_BELONG]),
        int(counts.sum()) - sum(found.size for found in decided.values()),
        int(calibrated.sum()),
        int((rows < 0).sum()),
    )


def _rows_of(directory: ScoresDirectory, keys: list[str]) -> npt.NDArray[np.int64]:
    """Rows of keys among those with a score; -1 where there is none."""
    rows = np.full(len(keys), -1, dtype=np.int64)
    wanted = pa.array(keys, pa.string())
    start = 0
    for table in directory.iter_tables(["key", "status"]):
        places = pc.index_in(table.column("key"), value_set=wanted)
        good = pc.and_(pc.is_valid(places), pc.equal(table.column("status"), OK))
        found = np.flatnonzero(good.to_numpy())
        rows[places.to_numpy()[found].astype(np.int64)] = found + start
        start += table.num_rows
    return rows
