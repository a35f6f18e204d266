"""A vocabulary that lies in several arrays: searched where it is, with the same results."""

import pickle
from ctypes import string_at

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bliss_index.bench.measure import MODEL, make_calibration
from bliss_index.bench.synthetic import clip_like
from bliss_index.errors import CorruptStoreError, InvalidInputError
from bliss_index.scoring.score_settings import ScoreSettings, ScoringInputs
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search import ExactSearch, reference_search
from bliss_index.search.native.backend import NativeBackend, load_native
from bliss_index.search.prepared import corpus_search, entries_of, save_prepared
from bliss_index.search.sharded import ShardedRows
from bliss_index.store import EmbeddingStore, StoreWriter

native = load_native()[0]
needs_native = pytest.mark.skipif(native is None, reason="no compiled search here")
DIM = 24


def cut(matrix, *places):
    return ShardedRows([np.ascontiguousarray(part) for part in np.split(matrix, places)])


@st.composite
def matrices_and_rows(draw):
    count = draw(st.integers(1, 40))
    places = sorted(draw(st.lists(st.integers(0, count), max_size=4)))
    bound = st.none() | st.integers(-50, 50)
    rows = draw(
        st.builds(slice, bound, bound, st.none() | st.integers(1, 3))
        | st.lists(st.integers(-count, count - 1), max_size=20).map(lambda x: np.array(x, int))
        | st.lists(st.booleans(), min_size=count, max_size=count).map(np.array)
        | st.integers(-count, count - 1)
    )
    return np.arange(3.0 * count).reshape(count, 3), places, rows


@given(matrices_and_rows(), st.booleans())
def test_it_is_read_as_a_matrix(given, reorder):
    matrix, places, rows = given
    sharded = cut(matrix, *places)
    if reorder:
        order = np.arange(len(matrix))[::-1].copy()
        sharded, matrix = sharded.selected(order).selected(order[::-1]), matrix[::-1][order[::-1]]
    assert (sharded.shape, len(sharded), sharded.dtype) == (matrix.shape, len(matrix), matrix.dtype)
    np.testing.assert_array_equal(sharded[rows], matrix[rows])
    np.testing.assert_array_equal(np.asarray(sharded, dtype=np.float32), matrix.astype(np.float32))


def test_every_slice_is_that_of_the_matrix():
    matrix = np.arange(21.0).reshape(7, 3)
    rows = cut(matrix, 2, 2, 5)
    for start in range(8):
        for stop in range(8):
            np.testing.assert_array_equal(rows[start:stop], matrix[start:stop])


def test_rows_that_are_not_there():
    rows = cut(np.ones((5, 2)), 3)
    for wrong in (np.array([5]), np.array([-6, 0])):
        with pytest.raises(IndexError):
            rows[wrong]
    with pytest.raises(ValueError):
        np.asarray(rows, copy=False)


def test_every_row_is_at_its_address():
    rows = cut(np.arange(21.0).reshape(7, 3), 2, 2, 5)
    for some in (rows, rows.selected(np.array([4, 0, 6, 4]))):
        found = [string_at(int(at), 24) for at in some.addresses()]
        assert found == [row.tobytes() for row in some[:]]


def entries(dtype, count=700, repeated=0):
    rows = clip_like(count, DIM, "text", 1, dtype=dtype)
    rows[:repeated] = rows[count - repeated :]
    return rows


@needs_native
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("repeated", [0, 60])
@pytest.mark.parametrize("places", [(1, 350, 350, 699), (64, 128), ()])
def test_a_search_over_shards_is_that_of_one_array(dtype, repeated, places):
    matrix = entries(dtype, repeated=repeated)
    queries = clip_like(50, DIM, "image", 2)
    whole = ExactSearch(matrix, 12, backend="native")
    search = ExactSearch(cut(matrix, *places), 12, backend="native")
    for found, expected, same in zip(
        search.search(queries),
        reference_search(matrix, queries, 12),
        whole.search(queries),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found, same)
    assert search.prepared.packed.tobytes() == whole.prepared.packed.tobytes()
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.search(queries)[1], same)


@needs_native
@pytest.mark.parametrize("kernel", native.kernel_names() if native else [])
def test_every_kernel_packs_and_finds_the_same(kernel):
    matrix = entries(np.float16)
    queries = clip_like(50, DIM, "image", 2)
    sharded = NativeBackend(cut(matrix, 5, 333), 7, threads=2, kernel=kernel)
    whole = NativeBackend(matrix, 7, threads=1, kernel=kernel)
    assert sharded.packed[1].tobytes() == whole.packed[1].tobytes()
    for found, expected in zip(sharded.search(queries, 0), whole.search(queries, 0), strict=True):
        np.testing.assert_array_equal(found, expected) if isinstance(found, np.ndarray) else None
    for found, expected in zip(sharded.intervals(queries), whole.intervals(queries), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_other_engines_take_them_too(backend):
    matrix = entries(np.float32, 200)
    queries = clip_like(20, DIM, "image", 2)
    search = ExactSearch(cut(matrix, 50, 90), 5, backend=backend)
    found = search.search(queries)[1]
    np.testing.assert_array_equal(found, reference_search(matrix, queries, 5)[1])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_search_over_some_of_the_rows(backend):
    if backend == "native" and native is None:
        pytest.skip("no compiled search here")
    matrix = entries(np.float16, 300)
    queries = clip_like(20, DIM, "image", 2)
    rows = np.arange(290, 10, -7)
    search = ExactSearch(cut(matrix, 50, 90).selected(rows), 5, backend=backend)
    for found, expected in zip(
        search.search(queries), reference_search(matrix[rows], queries, 5), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("scale", [2.0**70, 2.0**-70])
def test_numbers_that_products_would_leave(scale):
    matrix = entries(np.float32, 100) * np.float32(scale)
    queries = clip_like(20, DIM, "image", 2)
    found = ExactSearch(cut(matrix, 30), 5).search(queries)
    np.testing.assert_array_equal(found[1], reference_search(matrix, queries, 5)[1])


def test_bad_rows_are_named_by_their_place_in_the_whole():
    matrix = entries(np.float32, 100)
    matrix[70, 3] = np.nan
    with pytest.raises(InvalidInputError, match=r"row\(s\) 70;"):
        ExactSearch(cut(matrix, 30, 60), 5)


@pytest.fixture
def corpus(tmp_path):
    rows = entries(np.float16, 1000, repeated=30)
    texts = [f"word {i}" for i in range(len(rows))]
    with StoreWriter(
        tmp_path / "corpus", kind="text", model=MODEL, dim=DIM, rows_per_shard=300
    ) as writer:
        writer.append(texts, rows, texts=texts)
    return EmbeddingStore.open(tmp_path / "corpus", kind="text")


@needs_native
def test_a_corpus_is_searched_and_scored_where_its_files_are_mapped(corpus, tmp_path):
    make_calibration(3, DIM).save(tmp_path / "calibration")
    settings = ScoreSettings(str(corpus.path), str(tmp_path / "calibration"), 5)
    images = clip_like(80, DIM, "image", 3)
    for keep in (True, False):
        if keep:
            save_prepared(corpus_search(corpus, 5), corpus)
        scorer = ScoringInputs.open(settings).make_scorer()
        rows = scorer.search.vocabulary
        assert isinstance(rows, ShardedRows) and len(rows.shards) == 4
        assert not any(shard.flags.writeable for shard in rows.shards)  # no copy
        matrix = corpus.embeddings()
        plain = BlissScorer(
            ExactSearch(matrix, 5), matrix, scorer.calibration, lam=scorer.lam
        ).score(images)
        found = scorer.score(images)
        np.testing.assert_array_equal(found.ids, plain.ids)
        np.testing.assert_array_equal(found.anomaly, plain.anomaly)


def test_what_is_damaged_is_not_mapped(corpus):
    name = sorted(corpus.path.glob("part-*.arrow"))[2]
    content = bytearray(name.read_bytes())
    content[len(content) // 2] ^= 1
    name.write_bytes(content)
    for read in (entries_of, corpus_search):
        with pytest.raises(CorruptStoreError, match="SHA-256"):
            read(EmbeddingStore.open(corpus.path, kind="text"))
