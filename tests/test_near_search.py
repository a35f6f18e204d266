"""The search by lists: exact within the lists that a query looks into, kept whole or not used."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bulk_fixtures import write_text
from command import run
from test_torch_proposals import KINDS, data

from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.errors import CorruptStoreError, InvalidInputError, StaleIndexError
from bliss_index.search import exact_search, reference_search
from bliss_index.search.index import index_records, open_index, save_index
from bliss_index.search.lists import EntryLists, make_lists
from bliss_index.search.native.backend import NativeBackend, load_native
from bliss_index.search.near_index import NearSearch
from bliss_index.search.sharded import ShardedRows
from bliss_index.search.tuning import tune_index
from bliss_index.store import EmbeddingStore

native, KERNEL = load_native()
pytestmark = pytest.mark.skipif(native is None, reason="no compiled search here")
KERNELS = [] if native is None else native.kernel_names()
DIM = 48


def near_ones(count: int, seed: int = 1) -> np.ndarray:
    return clustered(count, DIM, seed, near=60, dtype=np.float16)


def images(count: int, seed: int = 2) -> np.ndarray:
    return clip_like(count, DIM, "image", seed)


def best_of_lists(search: NearSearch, entries: np.ndarray, queries: np.ndarray, k: int):
    """Brute force over the entries of the lists that each query looks into."""
    lists = search.lists
    for query, probed in zip(queries, search._probed(queries)[0], strict=True):
        parts = [lists.order[lists.starts[p] : lists.starts[p + 1]] for p in probed]
        seen = np.sort(np.concatenate(parts).astype(np.int64))
        similarities, found = reference_search(entries[seen], query[None], k)
        yield similarities[0], seen[found[0]]


@pytest.mark.parametrize("k", [1, 10, 70])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_lists_together_are_the_exact_search(dtype, k):
    entries, queries = near_ones(3000).astype(dtype), images(300)
    search = NearSearch(entries, k, threads=2)
    whole = search.replace(effort=search.most_effort)
    expected = exact_search(entries, k).search(queries)
    for found, right in zip(whole.search(queries), expected, strict=True):
        np.testing.assert_array_equal(found, right)
    assert whole.statistics.queries == 300 and search.statistics.queries == 0


@pytest.mark.parametrize("size", [1e-140, 1e-30, 1e-10, 1e10, 1e30, 1e140])
def test_entries_and_queries_of_any_size(size):
    entries, queries = near_ones(2000).astype(np.float64), images(40).astype(np.float64)
    expected = exact_search(entries, 5).search(queries)[1]
    for scaled in [(entries * size, queries), (entries, queries * size)]:
        search = NearSearch(scaled[0], 5, threads=2)
        whole = search.replace(effort=search.most_effort)
        np.testing.assert_array_equal(whole.search(scaled[1])[1], expected)
        assert (search.search(scaled[1])[1] == expected).mean() > 0.5
        if 1e-38 < size < 1e38:
            narrow = NearSearch(scaled[0].astype(np.float32), 5, threads=2)
            found = narrow.search(scaled[1].astype(np.float32))[1]
            assert (found == expected).mean() > 0.5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_products_lie_in_their_intervals(kernel, dtype, kind):
    """Of entries that were packed less the centre of their list, whatever that is."""
    if kind == "any norm" and dtype is np.float16:
        pytest.skip("float16 has no such norms")
    entries, queries = data(kind, dtype)
    queries[0] = 0
    known, rng = queries.any(axis=1), np.random.default_rng(6)
    lists = made_up(entries, [1, 40, 49] if len(entries) < 400 else [1, 40, 47, 49, 200, 1], rng)
    lists.centres[-1, 3] = np.inf
    ordered = ShardedRows([entries]).selected(lists.order.astype(np.int64))
    backend = NativeBackend(
        ordered, 3, threads=1, kernel=kernel, capacity=len(entries), lists=lists
    )
    wide, rows = entries[lists.order].astype(np.longdouble), queries.astype(np.longdouble)
    true = rows @ wide.T
    norms = np.linalg.norm(rows.astype(float), axis=1)[:, None]
    roundings = 1e-14 * norms * np.linalg.norm(wide.astype(float), axis=1)
    every = np.tile(np.arange(lists.count, dtype=np.uint32), (len(queries), 1))
    for _ in range(2):
        lower, upper = backend.intervals(queries)
        assert np.isnan(lower[~known]).all()
        assert (lower[known] <= (true + roundings)[known]).all()
        assert (upper[known] >= (true - roundings)[known]).all()
        backend.search(queries, 0, every)  # which finds the centre of the queries


def test_intervals_are_narrow_where_entries_are_near_each_other():
    entries, queries = near_ones(3000).astype(np.float32), images(60)
    lists = make_lists(entries, threads=1)
    ordered = ShardedRows([entries]).selected(lists.order.astype(np.int64))
    width = [
        np.median(np.subtract(*NativeBackend(
            ordered, 3, threads=1, capacity=3000, lists=given
        ).intervals(queries)[::-1]))
        for given in (lists, None)
    ]  # fmt: skip
    assert 0 < width[0] < 0.6 * width[1]


def made_up(entries, sizes, rng) -> EntryLists:
    """Lists of any entries, the last of all that are left, with centres of their own."""
    order = rng.permutation(len(entries))
    starts = np.cumsum([0, *sizes, len(entries) - sum(sizes)])
    order = np.concatenate([np.sort(part) for part in np.split(order, starts[1:-1])])
    means = [entries[order[a:b]].astype(float).mean(0) for a, b in itertools.pairwise(starts)]
    centres = np.zeros((len(means), entries.shape[1] + 1), dtype=np.float32)
    centres[:, :-1] = means * (1 + 0.1 * rng.standard_normal((len(means), 1)))
    return EntryLists(order.astype(np.uint32), starts.astype(np.uint32), centres)


@pytest.mark.parametrize("effort", [1, 3, 11])
@pytest.mark.parametrize("k", [1, 10, 40])
def test_the_best_of_the_nearest_lists_are_found(effort, k):
    entries, queries = near_ones(4000), images(40)
    search = NearSearch(entries, k, effort=effort, threads=2)
    assert search.most_effort > 20
    found = zip(*search.search(queries), strict=True)
    for right, (similarities, ids) in zip(
        best_of_lists(search, entries, queries, k), found, strict=True
    ):
        np.testing.assert_array_equal(ids, right[1])
        np.testing.assert_array_equal(similarities, right[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_finds_them_also_where_there_is_little_room(kernel):
    """Queries whose candidates overflow get more room, and then all entries of their lists."""
    rng = np.random.default_rng(5)
    entries = np.repeat(clip_like(4, DIM, "text", 3, dtype=np.float32), 700, axis=0)
    entries += 2e-7 * rng.standard_normal(entries.shape, dtype=np.float32)  # too near for float32
    queries = images(70)
    lists = make_lists(entries, threads=2)
    order = lists.order.astype(np.int64)
    probed = np.sort(np.stack([rng.choice(lists.count, 4, replace=False) for _ in queries]), axis=1)
    counted = []
    for capacity in (1, 0):
        backend = NativeBackend(
            ShardedRows([entries]).selected(order), 5, threads=2, kernel=kernel,
            query_block=32, capacity=capacity, lists=lists,
        )  # fmt: skip
        values, ids, statistics = backend.search(queries, 0, probed.astype(np.uint32))
        counted.append(statistics)
        for query, own, value, found in zip(queries, probed, values, ids, strict=True):
            seen = np.sort(np.concatenate([
                order[lists.starts[p] : lists.starts[p + 1]] for p in own
            ]))  # fmt: skip
            similarities, right = reference_search(entries[seen], query[None], 5)
            np.testing.assert_array_equal(found, seen[right[0]])
            np.testing.assert_array_equal(value.astype(np.float32), similarities[0])
    assert counted[0].second_rows > 0 and counted[0].full_rows > 0
    assert counted[1].full_rows < counted[0].full_rows


def test_results_do_not_depend_on_batches_or_threads():
    entries, queries = near_ones(3000), images(120).astype(np.float32)
    queries[5], queries[60] = 0, 1e25 * queries[60]
    whole = NearSearch(entries, 7, effort=3, threads=2).search(queries)
    one = NearSearch(entries, 7, effort=3, threads=1)
    parts = [one.search(queries[i : i + 17]) for i in range(0, 120, 17)]
    for found, right in zip(map(np.concatenate, zip(*parts, strict=True)), whole, strict=True):
        np.testing.assert_array_equal(found, right)


def test_identical_entries_come_by_their_ids():
    entries = near_ones(2000)
    entries[1500:] = entries[:500]
    search = NearSearch(entries, 20, threads=2)
    found = search.replace(effort=search.most_effort).search(images(50))
    for left, right in zip(found, exact_search(entries, 20).search(images(50)), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_queries_of_any_length_look_into_the_same_lists(scale):
    entries, queries = near_ones(3000), images(50).astype(np.float64)
    search = NearSearch(entries, 5, effort=2, threads=2)
    queries[7] = 0
    np.testing.assert_array_equal(search.search(scale * queries)[1], search.search(queries)[1])
    assert search.search(queries)[1][7].tolist() == [0, 1, 2, 3, 4]


def test_bad_rows_are_named():
    search, queries = NearSearch(near_ones(500), 5, effort=1, threads=1), images(20)
    queries[[3, 11], 5] = np.nan
    with pytest.raises(InvalidInputError, match=r"3, 11"):
        search.search(queries)
    entries = near_ones(500)
    entries[9, 0] = np.inf
    with pytest.raises(InvalidInputError, match=r"vocabulary entries.* 9"):
        NearSearch(entries, 5)
    assert search.search(images(0))[1].shape == (0, 5)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 130, 1000])
def test_vocabularies_of_any_size(count):
    entries = near_ones(count)
    k = min(10, count)
    search = NearSearch(entries, k, threads=2)
    found = search.replace(effort=search.most_effort).search(images(30))
    for left, right in zip(found, exact_search(entries, k).search(images(30)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_lists_hold_every_entry_once_and_few_are_small():
    entries = near_ones(5000)
    lists = make_lists(entries, threads=2)
    sizes = np.diff(lists.starts.astype(np.int64))
    assert sorted(lists.order.tolist()) == list(range(5000)) and sizes.min() >= 16
    assert 20 < lists.count <= 5000 // 64
    again = make_lists(entries, threads=1)
    np.testing.assert_array_equal(again.order, lists.order)
    starts = lists.starts.tolist()
    for first, last in itertools.pairwise(starts):
        assert (np.diff(lists.order[first:last].astype(np.int64)) > 0).all()
    least = lists.fewest(40)
    assert np.sort(sizes)[:least].sum() >= 40 > np.sort(sizes)[: least - 1].sum()


def test_too_few_entries_for_k_are_refused_by_the_engine():
    entries, lists = near_ones(3000), make_lists(near_ones(3000), threads=1)
    backend = NativeBackend(
        ShardedRows([entries]).selected(lists.order.astype(np.int64)), 2000, threads=1,
        lists=lists,
    )  # fmt: skip
    with pytest.raises(ValueError, match="fewer than k = 2000"):
        backend.search(images(3), 0, np.zeros((3, 1), dtype=np.uint32))
    assert NearSearch(entries, 2000, effort=1).search(images(3))[1].shape == (3, 2000)


def test_recall_grows_with_the_lists_and_is_tuned_on_images():
    entries, queries = near_ones(6000), images(400)
    search = NearSearch(entries, 10, threads=2)
    exact = exact_search(entries, 10).search(queries)[1]
    recall = [
        np.mean([
            len(set(a) & set(b)) / 10
            for a, b in zip(search.replace(effort=e).search(queries)[1], exact, strict=True)
        ])
        for e in (1, 4, 16, search.most_effort)
    ]  # fmt: skip
    assert recall == sorted(recall) and recall[0] < 0.9 and recall[-1] == 1
    report = tune_index(search, queries, 0.9, threads=2)
    assert 0.85 < report.recall < 1 and 1 < report.parameter < search.most_effort
    assert "lists" in report.describe()
    assert tune_index(search, queries, 1.0, threads=2).recall > 0.97
    for effort in (0, search.most_effort + 1, 1.5, "3"):
        with pytest.raises(InvalidInputError, match=f"between 1 and {search.most_effort}"):
            search.replace(effort=effort)


@pytest.fixture(params=[0, 70], ids=["different", "repeated"])
def corpus(tmp_path, request) -> EmbeddingStore:
    rows = near_ones(2000)
    rows[: request.param] = rows[2000 - request.param :]
    write_text(tmp_path / "corpus", rows)
    return EmbeddingStore.open(tmp_path / "corpus")


def kept(corpus: EmbeddingStore) -> tuple[NearSearch, Path]:
    search = NearSearch(corpus.embeddings(), 5, effort=3, threads=2)
    record = save_index(search, corpus)
    return search, Path(corpus.path) / "index" / record.file


def test_a_kept_index_is_the_same_search(corpus):
    search, _ = kept(corpus)
    found = open_index(corpus, 9, "near", threads=1)
    assert found.effort == 3 and found.describe().startswith("near search")
    for left, right in zip(
        found.search(images(60)), search.replace(k=9).search(images(60)), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    assert [record.kind for record in index_records(corpus)] == ["near"]


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_what_another_kernel_packed_is_packed_anew(corpus, kernel, monkeypatch):
    search, path = kept(corpus)
    record = path.with_name("near.json")
    values = json.loads(record.read_text())
    for changes in ({"kernel": kernel}, {"packed_version": 99}):
        record.write_text(json.dumps({**values, "parameters": {**values["parameters"], **changes}}))
        np.testing.assert_array_equal(
            open_index(corpus, 5, "near").search(images(40))[1], search.search(images(40))[1]
        )


def test_nothing_damaged_is_used(corpus):
    _, path = kept(corpus)
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CorruptStoreError, match="build it again"):
            open_index(corpus, 5, "near")
    path.write_bytes(whole[:-8])
    with pytest.raises(CorruptStoreError, match="build it again"):
        open_index(corpus, 5, "near")
    path.unlink()
    with pytest.raises(CorruptStoreError, match="is missing"):
        open_index(corpus, 5, "near")


@pytest.mark.parametrize(
    "changes",
    [{"lists": 3}, {"lists": 0}, {"lists": "9"}, {"lists": 2.0}, {"sets": 5000}, {"sets": -1},
     {"packed_bytes": 63}, {"packed_bytes": -64}, {"packed_bytes": 0}, {"lists": None}],
)  # fmt: skip
def test_records_that_do_not_fit_their_files_are_named(corpus, changes):
    _, path = kept(corpus)
    record = path.with_name("near.json")
    values = json.loads(record.read_text())
    values["parameters"].update(changes)
    record.write_text(json.dumps(values))
    with pytest.raises(CorruptStoreError, match="near"):
        open_index(corpus, 5, "near")


def test_lists_that_miss_an_entry_are_not_used(corpus):
    """Whoever writes a file and its hash may be wrong about the content."""
    search, _ = kept(corpus)
    search.lists.order[0] = search.lists.order[1]
    save_index(search, corpus)
    with pytest.raises(CorruptStoreError, match="every entry once.*build it again"):
        open_index(corpus, 5, "near")


def test_an_index_of_other_entries_is_stale(corpus, tmp_path):
    kept(corpus)
    write_text(tmp_path / "other", near_ones(2000, 9))
    shutil.move(Path(corpus.path) / "index", tmp_path / "other" / "index")
    with pytest.raises(StaleIndexError, match="build it again"):
        open_index(EmbeddingStore.open(tmp_path / "other"), 5, "near")


def test_a_gpu_is_refused(corpus):
    kept(corpus)
    with pytest.raises(InvalidInputError, match="processor"):
        open_index(corpus, 5, "near", "cuda")


def test_the_commands(job, tmp_path):
    """Tuned, used, described and verified; with all lists, scores are those of the exact search."""
    corpus, scores = job.folder / "corpus", tmp_path / "scores"
    built = json.loads(run("build", corpus, "--index", "near", "--queries", job.images,
                           "--recall", "0.8", "-k", 5, "--json")[0])  # fmt: skip
    assert built["kind"] == "near" and built["recall"]["recall"] > 0.5
    assert json.loads(run("info", corpus, "--json")[0])["indexes"]["near"]["stale"] is False
    assert "all is well" in run("verify", corpus)[0]
    score = ["score", job.images, "--corpus", corpus, "--calibration", job.folder / "calibration",
             "-k", 5, "--json"]  # fmt: skip
    done = json.loads(run(*score, "--search", "near", "--out", scores)[0])
    assert done["complete"] and os.listdir(scores)
    assert "--cells" in run("build", corpus, "--index", "near", "--cells", 3, code=1)[1]
