"""Calibrations and indexes that are made again by several processes while others read them."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback

import numpy as np
import pytest
from bulk_fixtures import MODEL, write_text

from bliss_index.calibration import Calibration, calibrate
from bliss_index.search.index import index_records, open_index, save_index
from bliss_index.store import EmbeddingStore

WRITERS = 2
TIMES = 25


def started(script, *arguments):
    """Run a script, once it is about to fork."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
    )  # fmt: skip
    process.stdout.readline()
    return process


def forked(write):
    """Call `write` in a process for each number, again and again; end as the worst of them does."""
    print(flush=True)
    children = []
    for number in range(WRITERS):
        children.append(os.fork())
        if not children[-1]:
            code = 1
            try:
                for time in range(TIMES):
                    write(number, time)
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
    sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)


def read_until_it_ends(process, read):
    """Call `read` as long as it runs; return how often."""
    count = 0
    while process.poll() is None:
        read()
        count += 1
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return count


CALIBRATE = """
import sys
from test_races import calibrations, forked
made = calibrations()
forked(lambda number, time: made[(number + time) % 2].save(sys.argv[1]))
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
    process = started(CALIBRATE, path)

    def read():
        found = Calibration.load(path)
        assert any(np.array_equal(found.class_embeddings, e.class_embeddings) for e in expected)

    assert read_until_it_ends(process, read) > 5
    read()


BUILD = """
import sys
from bliss_index.search.index import save_index
from test_races import forked, searches
path, kinds = sys.argv[1], sys.argv[2].split()
corpus, _ = searches(path, [])
made = [searches(path, [kind] * 2)[1] for kind in kinds]
forked(lambda number, time: save_index(made[number][(number + time) % 2], corpus))
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
    process = started(BUILD, path, kinds)

    def read():
        for kind in kinds.split():
            assert open_index(corpus, 3, kind, threads=1).size == 400

    assert read_until_it_ends(process, read) > 5
    read()
    assert {record.kind for record in index_records(corpus)} == set(kinds.split())
