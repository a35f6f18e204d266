"""What random samples say: how many anomalies there are, and how many images a rate flags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.errors import InvalidInputError
from bliss_index.review.judgement_log import BELONGS, DOES_NOT_BELONG, Draw
from bliss_index.review.judgements import Judgements
from bliss_index.scoring.normal_scores import NormalScores
from bliss_index.scoring.thresholds import share_interval

CONFIDENCE = 0.95
_RATES = 200
_LARGEST_RATE = 0.5


@dataclass(frozen=True)
class Estimate:
    """How many images that do not belong are among those that a draw is from.

    Attributes
    ----------
    of, threshold, population, time
        As of the draw.
    drawn, judged : int
        Images drawn, and those judged up to the first that is not.
    belong, do_not_belong, undecided : int
        Verdicts among these; undecided are skipped and disputed ones.
    low, high : int or None
        Interval of the number that do not belong in the population, at the confidence: that of
        Clopper and Pearson, in which every undecided image may be either. None before a verdict.
        Exact when the whole draw is judged; before that, of who stops when it looks good, it is
        not.
    confidence : float
    """

    of: str
    threshold: float | None
    population: int
    time: str
    drawn: int
    judged: int
    belong: int
    do_not_belong: int
    undecided: int
    low: int | None
    high: int | None
    confidence: float


def estimate(judgements: Judgements, draw: Draw) -> Estimate:
    """Bound the anomalies among the images that a draw is from."""
    verdicts = judgements.judged(draw)
    bad, good = verdicts.count(DOES_NOT_BELONG), verdicts.count(BELONGS)
    undecided = len(verdicts) - bad - good
    low = high = None
    if verdicts:
        least, _ = share_interval(bad, len(verdicts), CONFIDENCE)
        _, most = share_interval(bad + undecided, len(verdicts), CONFIDENCE)
        # Those that were seen are known.
        low = max(bad, math.ceil(least * draw.population - 1e-9))
        high = min(draw.population - good, math.floor(most * draw.population + 1e-9))
    return Estimate(
        draw.of, draw.threshold, draw.population, draw.time, len(draw.keys), len(verdicts), good,
        bad, undecided, low, high, CONFIDENCE,
    )  # fmt: skip


def budget(
    normal: NormalScores | None, scores: npt.NDArray[np.float32]
) -> list[dict[str, Any]] | None:
    """Say for rates of false alarms how many images there are to look at.

    Parameters
    ----------
    normal : NormalScores or None
        Scores of held-out normal images.
    scores : (n,) float32 array
        Anomaly scores of the images, highest first.

    Returns
    -------
    list of dict or None
        ``rate``, ``threshold`` and ``images``, by rate; None without normal scores.
    """
    if normal is None:
        return None
    found: list[dict[str, Any]] = []
    for rate in np.geomspace(1 / (normal.scores.size + 1), _LARGEST_RATE, _RATES).tolist():
        try:
            threshold = normal.threshold(min(rate, _LARGEST_RATE)).value
        except InvalidInputError:  # too few normal images for so small a rate
            continue
        images = int(np.searchsorted(-scores, -np.float32(threshold), side="right"))
        if not found or found[-1]["images"] != images:
            found.append({"rate": rate, "threshold": threshold, "images": images})
    return found
