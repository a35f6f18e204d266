"""Metrics against counting by hand and scikit-learn; protocols against the published lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.metrics import METRICS, auroc, evaluate_scores
from bliss_index.evaluation.protocols import (
    PROTOCOLS,
    EvaluationProtocol,
    find_protocol,
    random_classes,
)


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
    if all(anomaly) or not any(anomaly):
        return
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


def test_protocols_are_the_published_ones() -> None:
    shapes = {
        name: (p.classes, len(p.runs), {len(r) for r in p.runs}) for name, p in PROTOCOLS.items()
    }
    assert shapes == {
        "cifar10-one-class": (10, 10, {1}),
        "cifar10-6-vs-4": (10, 5, {6}),
        "cifar10-9-vs-1": (10, 10, {9}),
        "cifar100-20-vs-80": (100, 5, {20}),
        "tinyimagenet-20-vs-180": (200, 5, {20}),
    }
    six = "[0,1,9,7,3,2] [0,2,4,3,7,5] [5,1,9,8,7,0] [5,7,1,8,4,6] [8,1,5,3,4,6]"
    tiny = (
        "[192,112,145,107,91,180,144,193,10,125,186,28,72,124,54,77,157,169,104,166] "
        "[156,157,167,175,153,11,147,0,199,171,132,60,87,190,101,111,193,71,131,192] "
        "[28,15,103,33,90,167,61,13,124,159,49,12,54,78,82,107,80,25,140,46] "
        "[128,132,123,72,154,35,86,10,188,28,85,89,91,82,116,65,96,41,134,25] "
        "[102,79,47,106,59,93,145,10,62,175,76,183,48,130,38,186,44,8,29,26]"
    )
    for name, text in (("cifar10-6-vs-4", six), ("tinyimagenet-20-vs-180", tiny)):
        lists = [tuple(int(c) for c in run.strip("[]").split(",")) for run in text.split()]
        assert list(find_protocol(name).runs) == lists
    assert find_protocol("cifar10-one-class").runs[3] == (3,)
    assert find_protocol("cifar10-9-vs-1").runs[3] == (0, 1, 2, 4, 5, 6, 7, 8, 9)
    assert find_protocol("cifar100-20-vs-80").runs[1] == tuple(range(20, 40))


def test_other_protocols_are_reproducible_and_checked() -> None:
    drawn = random_classes(69, 6, 20, seed=1)
    assert drawn == random_classes(69, 6, 20, seed=1) and drawn.name == "6-vs-63"
    assert len(drawn.runs) == 20 and all(len(set(run)) == 6 for run in drawn.runs)
    with pytest.raises(InvalidInputError, match="between 1 and 4 .*got 5"):
        random_classes(5, 5, 1)
    with pytest.raises(InvalidInputError, match="unknown protocol 'mnist'; known are cifar10-one"):
        find_protocol("mnist")
    with pytest.raises(InvalidInputError, match="classes are 0 to 4"):
        EvaluationProtocol("x", 5, ((1, 7),))
    with pytest.raises(InvalidInputError, match=r"different normal classes, got \(1, 1\)"):
        EvaluationProtocol("x", 5, ((1, 1),))
