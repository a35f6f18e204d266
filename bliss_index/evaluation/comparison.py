"""Detectors compared in pairs over the runs of a protocol, and the field's rank tests.

The runs share images and classes, so they are no independent samples: intervals and p-values say
how consistently one detector leads over choices of normal classes, not over other data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

_RESAMPLES = 2000
_LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class PairComparison:
    """Two detectors on the same runs.

    Attributes
    ----------
    first, second
        Their names.
    difference
        Mean of the first's metric minus the second's.
    low, high
        95 % interval of that mean, by percentiles of a bootstrap of the runs.
    wins, losses
        Runs in which the first is better, and worse.
    p_value
        Wilcoxon's signed-rank test (Biometrics Bulletin, 1945), two-sided; None where all
        differences are 0, or where SciPy is not installed.
    """

    first: str
    second: str
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p_value: float | None


@dataclass(frozen=True)
class Comparison:
    """All detectors on the same runs.

    Attributes
    ----------
    metric
        What is compared; higher is better.
    runs
        How many there are.
    mean_ranks
        By detector, its rank averaged over the runs; 1 is the best, equal ones share theirs.
    friedman_p_value
        Friedman's test that all are alike (JASA, 1937; Demsar, JMLR 2006), of three detectors or
        more; None for fewer, or where SciPy is not installed.
    pairs
        Every pair once.
    """

    metric: str
    runs: int
    mean_ranks: dict[str, float]
    friedman_p_value: float | None
    pairs: tuple[PairComparison, ...]

    def to_markdown(self) -> str:
        """Return a table of the pairs, in percentage points, and a line of ranks."""
        lines = [
            f"| {self.metric.upper()}, {self.runs} runs | difference | 95 % interval | wins, "
            "losses | Wilcoxon p |",
            "| --- | --- | --- | --- | --- |",
        ]
        for pair in self.pairs:
            lines.append(
                f"| {pair.first} - {pair.second} | {100 * pair.difference:+.2f} | "
                f"{100 * pair.low:+.2f} to {100 * pair.high:+.2f} | {pair.wins}, {pair.losses} | "
                f"{_shown(pair.p_value)} |"
            )
        ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in self.mean_ranks.items())
        tested = (
            "" if self.friedman_p_value is None else f"; Friedman p {self.friedman_p_value:.2g}"
        )
        return "\n".join([*lines, "", f"Mean ranks: {ranks}{tested}."]) + "\n"


def compare_detectors(
    per_run: Mapping[str, Mapping[str, Sequence[float]]], metric: str = "auroc", *, seed: int = 0
) -> Comparison | None:
    """Compare detectors run by run.

    Parameters
    ----------
    per_run : mapping
        By detector and metric: the value of every run, as in
        :attr:`bliss_index.evaluation.paper.protocol_run.ProtocolReport.per_run`.
    metric : str, default="auroc"
        One of which higher is better.
    seed : int, default=0
        Of the bootstrap.

    Returns
    -------
    The comparison; None where there are fewer than two detectors or two runs.
    """
    names = list(per_run)
    values = np.array([per_run[name][metric] for name in names], dtype=np.float64)
    if len(names) < 2 or values.shape[1] < 2:
        return None
    runs = values.shape[1]
    drawn = np.random.default_rng(seed).integers(0, runs, (_RESAMPLES, runs))
    pairs = []
    for i, j in combinations(range(len(names)), 2):
        differences = values[i] - values[j]
        low, high = np.quantile(differences[drawn].mean(axis=1), _LEVELS)
        pairs.append(
            PairComparison(
                names[i], names[j], float(differences.mean()), float(low), float(high),
                int((differences > 0).sum()), int((differences < 0).sum()), _wilcoxon(differences),
            )
        )  # fmt: skip
    ranks = np.mean([_ranks(-column) for column in values.T], axis=0)
    return Comparison(
        metric, runs, dict(zip(names, ranks.tolist(), strict=True)), _friedman(values), tuple(pairs)
    )


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1 for the smallest; equal values share the mean of theirs."""
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    return np.asarray(below + (equal + 1) / 2)


def _wilcoxon(differences: npt.NDArray[np.float64]) -> float | None:
    try:
        from scipy.stats import wilcoxon
    except ImportError:
        return None
    return float(wilcoxon(differences).pvalue) if differences.any() else None


def _friedman(values: npt.NDArray[np.float64]) -> float | None:
    try:
        from scipy.stats import friedmanchisquare
    except ImportError:
        return None
    if values.shape[0] < 3 or np.ptp(values, axis=0).max() == 0:
        return None
    return float(friedmanchisquare(*values).pvalue)


def _shown(p_value: float | None) -> str:
    return "" if p_value is None else f"{p_value:.2g}"
