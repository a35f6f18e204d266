"""Metrics against counting by hand and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.metrics import METRICS, auroc, evaluate_scores


def by_counting(scores: list[float], anomaly: list[bool]) -> dict[str, float]:
    """Every metric straight from its definition, pair by pair and threshold by threshold."""
    high = [s for s, a in zip(scores, anomaly, strict=True) if a]
    low = [s for s, a in zip(scores, anomaly, strict=True) if not a]
    area = sum((h > n) + 0.5 * (h == n) for h in high for n in low) / (len(high) * len(low))

    def precision_area(positive: list[float], negative: list[float]) -> float:
        total, before = 0.0, 0.0
        for t in sorted({*positive, *negative}, reverse=True):
            true = sum(p >= t for p in positive)
            false = sum(n >= t for n in negative)
            total += (true / len(positive) - before) * true / (true + false)
            before = true / len(positive)
        return total

    def fpr(positive: list[float], negative: list[float]) -> float:
        for t in sorted({*positive, *negative}, reverse=True):
            if sum(p >= t for p in positive) / len(positive) >= 0.95:
                return sum(n >= t for n in negative) / len(negative)
        raise AssertionError

    minus = [-s for s in low], [-s for s in high]
    return {
        "auroc": area,
        "aupr_anomaly": precision_area(high, low),
        "aupr_normal": precision_area(*minus),
        "fpr95_anomaly": fpr(high, low),
        "fpr95_normal": fpr(*minus),
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_metrics_are_what_counting_gives(pairs: list[tuple[int, bool]]) -> None:
    scores, anomaly = [float(s) for s, _ in pairs], [a for _, a in pairs]
    assume(any(anomaly) and not all(anomaly))
    found = evaluate_scores(scores, anomaly)
    expected = by_counting(scores, anomaly)
    for name in METRICS:
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("decimals", [1, 16], ids=["ties", "no ties"])
def test_metrics_are_scikit_learns(decimals: int) -> None:
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    anomaly = rng.random(5000) < 0.1
    scores = (rng.normal(size=5000) + anomaly).round(decimals)
    found = evaluate_scores(scores, anomaly)
    expected = {
        "auroc": sk.roc_auc_score(anomaly, scores),
        "aupr_anomaly": sk.average_precision_score(anomaly, scores),
        "aupr_normal": sk.average_precision_score(~anomaly, -scores),
    }
    for name, sign in (("anomaly", 1), ("normal", -1)):
        positive = anomaly if sign == 1 else ~anomaly
        fpr, tpr, _ = sk.roc_curve(positive, sign * scores, drop_intermediate=False)
        expected[f"fpr95_{name}"] = fpr[np.argmax(tpr >= 0.95)]
    for name in METRICS:
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-12), name
    assert (found.normal, found.anomalies) == (int((~anomaly).sum()), int(anomaly.sum()))


def test_bootstrap_resamples_images_of_either_kind() -> None:
    """The interval's ends are quantiles of the metrics of resampled sets, written out here."""
    rng = np.random.default_rng(2)
    anomaly = np.arange(80) % 4 == 0
    scores = (rng.normal(size=80) + anomaly).round(1)
    found = evaluate_scores(scores, anomaly, resamples=2000, confidence=0.9, seed=1)
    high, low = scores[anomaly], scores[~anomaly]
    drawn = [
        evaluate_scores(np.append(rng.choice(high, 20), rng.choice(low, 60)), np.arange(80) < 20)
        for _ in range(2000)
    ]
    for name in METRICS:
        values = [getattr(m, name) for m in drawn]
        spread = np.std(values)
        for end, quantile in (
            (found.intervals[name].low, 0.05),
            (found.intervals[name].high, 0.95),
        ):
            assert end == pytest.approx(np.quantile(values, quantile), abs=0.2 * spread), name


def test_missing_scores_are_counted_or_refused() -> None:
    scores, anomaly = [0.1, np.nan, 0.4, 0.35, np.nan, 0.8, np.nan], [0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(InvalidInputError, match="3 of 7 scores are not finite, the first at row 1"):
        evaluate_scores(scores, anomaly)
    found = evaluate_scores(scores, anomaly, allow_missing=True)
    assert found.auroc == 0.75
    assert (found.normal, found.anomalies) == (2, 2)
    assert (found.missing_normal, found.missing_anomalies) == (1, 2)
    assert found.to_json()["missing_anomalies"] == 2
    with pytest.raises(InvalidInputError, match="1 of 4 scores are not finite, the first at row 3"):
        evaluate_scores([0.1, 0.2, 0.3, np.inf], [0, 1, 0, 1], allow_missing=True)
    with pytest.raises(InvalidInputError, match="got 0 anomalies and 2 normal"):
        evaluate_scores([0.1, 0.2, np.nan], [0, 0, 1], allow_missing=True)


def test_bootstrap_intervals_hold_the_value_and_come_from_the_seed() -> None:
    rng = np.random.default_rng(1)
    anomaly = np.arange(600) % 3 == 0
    scores = rng.normal(size=600) + anomaly
    found = evaluate_scores(scores, anomaly, resamples=300, seed=4)
    assert found == evaluate_scores(scores, anomaly, resamples=300, seed=4)
    assert found.intervals != evaluate_scores(scores, anomaly, resamples=300, seed=5).intervals
    for name in METRICS:
        assert found.intervals[name].low < getattr(found, name) < found.intervals[name].high
    # Hanley and McNeil's (1982) standard error of an AUROC, from Gaussian theory.
    a, high, low = found.auroc, 200, 400
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt(
        (a * (1 - a) + (high - 1) * (q1 - a * a) + (low - 1) * (q2 - a * a)) / (high * low)
    )
    width = found.intervals["auroc"].high - found.intervals["auroc"].low
    assert width == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert found.to_json()["intervals"]["auroc"] == [
        found.intervals["auroc"].low,
        found.intervals["auroc"].high,
    ]


def test_bad_scores_and_labels_are_named() -> None:
    with pytest.raises(InvalidInputError, match=r"shape \(3,\) and labels of shape \(2,\)"):
        auroc([1, 2, 3], [0, 1])
    with pytest.raises(InvalidInputError, match="1 of 3 scores are not finite, the first at row 2"):
        auroc([1, 2, np.nan], [0, 1, 1])
    with pytest.raises(InvalidInputError, match="got 7"):
        auroc([1, 2, 3], [0, 1, 7])
    with pytest.raises(InvalidInputError, match="got 0 anomalies and 3 normal"):
        auroc([1, 2, 3], [0, 0, 0])
    with pytest.raises(InvalidInputError, match="got 1 and 0.95"):
        evaluate_scores([1, 2], [0, 1], resamples=1)
