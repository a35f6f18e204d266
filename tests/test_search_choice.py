"""The choice of a search: what is measured, and that it changes nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from bliss_reference import clip_like

from bliss_index.search.choice import choose_search, make_exact


@pytest.fixture
def data(rng):
    images, vocabulary, _, _ = clip_like(rng, 200, 500, 1, 24)
    return images, vocabulary


def test_all_ways_are_measured_and_the_fastest_is_named(data):
    images, vocabulary = data
    pytest.importorskip("faiss")
    choice = choose_search(vocabulary, 10, queries=images, threads=1)
    assert {"torch", "faiss"} <= set(choice.rates)
    assert choice.name == max(choice.rates, key=choice.rates.get)
    assert choice.reason.startswith(f"{choice.name} search is the fastest")
    assert all(f"{name} {rate:,.0f}" in choice.reason for name, rate in choice.rates.items())


def test_few_images_are_not_worth_a_measurement(data):
    _, vocabulary = data
    choice = choose_search(vocabulary, 10, rows=1000, threads=1)
    assert choice.rates == {}
    assert "too few images" in choice.reason


def test_the_others_are_measured_where_the_first_would_take_long(data, monkeypatch):
    """The first way's own rate says how long: one minute of it is worth a look at the others."""
    images, vocabulary = data
    pytest.importorskip("faiss")
    monkeypatch.setattr("bliss_index.search.choice._LEAST_PRODUCTS", 0)
    monkeypatch.setattr("bliss_index.search.choice._seconds", lambda search, queries: 0.5)
    rate = images.shape[0] / 0.5
    few = choose_search(vocabulary, 10, queries=images, rows=int(59 * rate), threads=1)
    assert few.rates == {few.name: rate}
    assert few.reason == f"{few.name} search (about 59 s: too few images to measure others)"
    many = choose_search(vocabulary, 10, queries=images, rows=int(61 * rate), threads=1)
    assert {"torch", "faiss"} <= set(many.rates)


def test_a_choice_changes_no_result(data):
    images, vocabulary = data
    names = choose_search(vocabulary, 10, threads=1).rates
    first = None
    for name in names:
        found = make_exact(name, vocabulary, 10, threads=1).search(images)
        first = first or found
        np.testing.assert_array_equal(found[0], first[0])
        np.testing.assert_array_equal(found[1], first[1])


def test_a_choice_for_few_images_loads_no_library():
    """Importing torch takes longer than such a job."""
    script = """
import sys
import subprocess
import sys

import numpy as np
from bliss_index.search.choice import choose_search
from bliss_index.search.native.backend import load_native
choose_search(np.eye(20, dtype=np.float32), 3, rows=10)
print(load_native()[0] is None or not {"torch", "faiss"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
