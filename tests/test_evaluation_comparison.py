"""Detectors in pairs: differences, intervals, and rank tests against their definitions."""

from __future__ import annotations

import math
import sys
from itertools import product

import numpy as np
import pytest

from bliss_index.evaluation.comparison import compare_detectors
from bliss_index.evaluation.paper.protocol_run import ProtocolReport, Summary


def table(values):
    return {name: {"auroc": row} for name, row in zip("abcd", values.tolist(), strict=False)}


def signed_rank_p_value(differences):
    """Share of all sign patterns whose smaller rank sum is at most the observed one."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1

    def smaller(signs):
        positive = ranks[np.asarray(signs) > 0].sum()
        return min(positive, ranks.sum() - positive)

    patterns = [smaller(signs) for signs in product((1, -1), repeat=len(ranks))]
    return np.mean(np.array(patterns) <= smaller(np.sign(differences)))


def test_differences_wins_and_wilcoxon(rng):
    pytest.importorskip("scipy")
    values = rng.uniform(size=(3, 8))
    found = compare_detectors(table(values))
    assert [(p.first, p.second) for p in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair, (i, j) in zip(found.pairs, ((0, 1), (0, 2), (1, 2)), strict=True):
        difference = values[i] - values[j]
        assert pair.difference == pytest.approx(difference.mean())
        assert (pair.wins, pair.losses) == ((difference > 0).sum(), (difference < 0).sum())
        assert pair.low < pair.difference < pair.high
        assert pair.p_value == pytest.approx(signed_rank_p_value(difference))


def test_the_interval_covers_the_mean_about_as_often_as_it_says(rng):
    covered = 0
    for _ in range(200):
        values = np.stack([0.1 + 0.05 * rng.normal(size=40), np.zeros(40)])
        pair = compare_detectors(table(values)).pairs[0]
        covered += pair.low <= 0.1 <= pair.high
    assert 178 <= covered <= 199


def test_ranks_and_friedman():
    pytest.importorskip("scipy")
    values = np.array([[9, 8, 9, 7, 9.0], [5, 8, 6, 6, 4], [1, 2, 7, 3, 2]])
    found = compare_detectors(table(values))
    assert found.mean_ranks == pytest.approx({"a": 1.1, "b": 2.1, "c": 2.8})
    distinct = np.array([[9, 8, 9, 7, 9.0], [5, 7, 6, 6, 4], [1, 2, 7, 3, 2]])
    ranks = np.argsort(np.argsort(-distinct, axis=0), axis=0) + 1
    k, runs = distinct.shape
    statistic = 12 * (ranks.sum(1) ** 2).sum() / (runs * k * (k + 1)) - 3 * runs * (k + 1)
    # The chi-squared distribution of two degrees of freedom has the tail exp(-x / 2).
    assert compare_detectors(table(distinct)).friedman_p_value == pytest.approx(
        math.exp(-statistic / 2)
    )


def test_what_cannot_be_compared(rng, monkeypatch):
    assert compare_detectors(table(rng.uniform(size=(1, 9)))) is None
    assert compare_detectors(table(rng.uniform(size=(3, 1)))) is None
    equal = compare_detectors(table(np.ones((3, 5))))
    assert equal.friedman_p_value is None
    assert [pair.p_value for pair in equal.pairs] == [None] * 3
    assert compare_detectors(table(rng.uniform(size=(2, 9)))).friedman_p_value is None
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    without = compare_detectors(table(rng.uniform(size=(3, 9))))
    assert without.friedman_p_value is None
    assert without.pairs[0].p_value is None
    assert "| a - b |" in without.to_markdown()


def test_a_report_compares_its_detectors(rng):
    values = {name: {"auroc": rng.uniform(size=6).tolist()} for name in ("bliss", "raw")}
    shown = {m: Summary(0.5, 0.1) for m in ("auroc", "aupr_anomaly", "aupr_normal", "fpr95_normal")}
    report = ProtocolReport("p", 6, 10, 3, 20, 5, 2, dict.fromkeys(values, shown), values, 1.0)
    pair = report.to_json()["comparison"]["pairs"][0]
    assert (pair["first"], pair["second"]) == ("bliss", "raw")
    assert f"| bliss - raw | {100 * pair['difference']:+.2f} |" in report.to_markdown()
    assert "Mean ranks: bliss" in report.to_markdown()
