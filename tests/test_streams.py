"""Several batches at once: the order, the errors, and the same bytes."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from bliss_index.encode.encode_work import EncoderSpec, streams_of
from bliss_index.encode.streams import in_threads
from bliss_index.encode.text_work import encode_text_store
from bliss_index.jobs import JobOptions
from bliss_index.store import EmbeddingStore


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order(threads: int) -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def slow(number: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02 if number % 3 == 0 else 0.001)
        with lock:
            at_once -= 1
        return number * number

    assert list(in_threads(slow, range(30), threads)) == [n * n for n in range(30)]
    assert most <= threads
    assert threads == 1 or most > 1


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_in_its_place(threads: int) -> None:
    begun = []

    def fails(number: int) -> int:
        begun.append(number)
        if number == 4:
            raise ValueError("the fifth")
        return number

    found = []
    with pytest.raises(ValueError, match="the fifth"):
        found.extend(in_threads(fails, range(1000), threads))  # pragma: no branch
    assert len(begun) < 20


def test_items_are_asked_for_when_they_are_needed() -> None:
    asked = []
    source = (asked.append(n) or n for n in range(1000))
    results = in_threads(lambda n: n, source, 2, ahead=1)
    assert next(results) == 0
    assert len(asked) == 3
    results.close()


def test_streams_share_the_threads(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("BLISS_INDEX_THREADS", "6")
    spec = EncoderSpec("bliss-tiny")
    assert streams_of(spec, JobOptions()) == 6
    assert streams_of(spec, JobOptions(workers=4)) == 1
    assert streams_of(spec, JobOptions(workers=3)) == 2
    assert streams_of(spec, JobOptions(engine="ray")) == 1
    words = [f"word {number}" for number in range(700)]
    made = []
    for threads in ("1", "4"):
        monkeypatch.setenv("BLISS_INDEX_THREADS", threads)
        out = tmp_path / threads
        summary = encode_text_store(spec, words, out, templates=["a {}"], rows_per_shard=128)
        assert (summary.rows, summary.complete) == (700, True)
        store = EmbeddingStore.open(out)
        assert [key for index in range(6) for key in store.shard(index).keys] == words
        made.append((store.content_hash, np.array(store.embeddings())))
    assert made[0][0] == made[1][0]
    np.testing.assert_array_equal(made[0][1], made[1][1])
