"""Calibrations and indexes that are made again by several processes while others read them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from bulk_fixtures import MODEL, write_text

from bliss_index.calibration import Calibration, calibrate
from bliss_index.search.index import index_records, open_index, save_index
from bliss_index.store import EmbeddingStore

WRITERS = 2
TIMES = 25


def started(script, *arguments):
    """Run a script in two processes, numbered 0 and 1."""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(number), *map(str, arguments)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for number in range(WRITERS)
    ]  # fmt: skip


def read_until_they_end(processes, read):
    """Call `read` as long as they run; return how often."""
    count = 0
    while any(process.poll() is None for process in processes):
        read()
        count += 1
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return count


CALIBRATE = """
import sys
from test_races import TIMES, calibrations
number, path = int(sys.argv[1]), sys.argv[2]
made = calibrations()
for time in range(TIMES):
    made[(number + time) % 2].save(path)
"""


def calibrations():
    """Two calibrations that differ."""
    found = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(60, 8))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        labels = np.arange(60) % 2
        found.append(calibrate([(rows, labels)], rows[:2], ["cat", "dog"], model=MODEL))
    return found


def test_a_calibration_is_whole_at_every_moment(tmp_path):
    path = tmp_path / "calibration"
    expected = calibrations()
    expected[0].save(path)
    processes = started(CALIBRATE, path)

    def read():
        found = Calibration.load(path)
        assert any(np.array_equal(found.class_embeddings, e.class_embeddings) for e in expected)

    assert read_until_they_end(processes, read) > 5
    read()


BUILD = """
import sys
from bliss_index.search.index import save_index
from test_races import TIMES, searches
number, path, kinds = int(sys.argv[1]), sys.argv[2], sys.argv[3].split()
corpus, made = searches(path, [kinds[number]] * 2)
for time in range(TIMES):
    save_index(made[(number + time) % 2], corpus)
"""


def searches(path, kinds):
    """Indexes of a corpus, each with lists of its own."""
    from bliss_index.search.faiss.build import IndexParameters, build_index

    corpus = EmbeddingStore.open(path)
    return corpus, [
        build_index(
            corpus.embeddings(),
            kind,
            IndexParameters(cells=None if kind == "flat" else 4 + number),
            k=3,
            threads=1,
        )
        for number, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("kinds", ["flat ivf", "ivf ivf"])
def test_an_index_is_whole_at_every_moment(tmp_path, kinds):
    """And two builds at once keep both records."""
    pytest.importorskip("faiss")
    path = tmp_path / "corpus"
    rows = np.random.default_rng(0).normal(size=(400, 8))
    write_text(path, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    corpus, made = searches(path, kinds.split())
    for search in made:
        save_index(search, corpus)
    processes = started(BUILD, path, kinds)

    def read():
        for kind in kinds.split():
            assert open_index(corpus, 3, kind, threads=1).size == 400

    assert read_until_they_end(processes, read) > 5
    read()
    assert {record.kind for record in index_records(corpus)} == set(kinds.split())
