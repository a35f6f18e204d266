"""FAISS indexes against float64 brute force; files that say what they belong to."""

from __future__ import annotations

import importlib
import json
import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    MissingDependencyError,
    OutputError,
    StaleIndexError,
    StoreError,
)
from bliss_index.search.faiss import runtime as faiss_runtime

faiss = pytest.importorskip("faiss")

from bliss_index.search.faiss.candidates import Candidates  # noqa: E402
from bliss_index.search.faiss.search import Placement  # noqa: E402
from bliss_index.search.index import (  # noqa: E402
    IndexParameters,
    build_index,
    index_records,
    open_index,
    save_index,
)

APPROXIMATE = ("ivf", "ivfpq", "hnsw")


@dataclass(frozen=True)
class Corpus:
    path: Path
    matrix: np.ndarray
    content_hash: str = "0" * 64

    @property
    def rows(self) -> int:
        return self.matrix.shape[0]

    @property
    def dim(self) -> int:
        return self.matrix.shape[1]

    def embeddings(self) -> np.ndarray:
        return self.matrix


def clip_like(seed: int, rows: int, dim: int, dtype: Any = np.float16) -> np.ndarray:
    """Unit vectors about a common direction, as CLIP's are."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(rows, dim)) / np.sqrt(dim) + 1.2 * np.eye(dim)[0]
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(dtype)


def brute_force(entries: np.ndarray, queries: np.ndarray, k: int) -> tuple[Any, Any]:
    scores = queries.astype(np.float64) @ entries.astype(np.float64).T
    ids = np.empty((len(queries), k), dtype=np.int64)
    for row, values in enumerate(scores):
        ids[row] = np.lexsort((np.arange(values.size), -values))[:k]
    return np.take_along_axis(scores, ids, axis=1), ids


def assert_exact(search: Any, entries: np.ndarray, queries: np.ndarray) -> None:
    similarities, ids = search.search(queries)
    values, expected = brute_force(entries, queries, search.k)
    assert similarities.dtype == np.float32 and ids.dtype == np.int64
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(similarities, values, rtol=2.0**-23, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (7, 7), (10, 3), (1000, 10), (5003, 100)])
def test_flat_equals_brute_force(dtype: Any, rows: int, k: int) -> None:
    entries, queries = clip_like(0, rows, 48, dtype), clip_like(1, 40, 48, dtype)
    assert_exact(build_index(entries, "flat", k=k, threads=1), entries, queries)


def test_flat_with_hundreds_of_equal_entries_gives_the_smaller_ids() -> None:
    base = clip_like(2, 20, 32)
    entries = base[np.random.default_rng(3).integers(0, 20, 4000)]
    queries = clip_like(4, 30, 32)
    search = build_index(entries, "flat", k=10, threads=1)
    similarities, ids = search.search(queries)
    # Equal entries have equal sums only where the reference adds in one order: row by row.
    scores = np.array(
        [[np.dot(q, t) for t in base.astype(np.float64)] for q in queries.astype(float)]
    )
    of_entry = np.array([np.flatnonzero((base == entry).all(axis=1))[0] for entry in entries])
    for row in range(30):
        values = scores[row][of_entry]
        expected = np.lexsort((np.arange(4000), -values))[:10]
        np.testing.assert_array_equal(ids[row], expected)
    assert (similarities[:, 0] == similarities[:, 9]).all()


def test_flat_fetches_more_and_at_last_everything_where_float32_cannot_tell() -> None:
    rng = np.random.default_rng(5)
    centre = rng.normal(size=64)
    entries = centre + 1e-9 * rng.normal(size=(3000, 64))
    queries = centre + 1e-9 * rng.normal(size=(5, 64))
    search = build_index(entries, "flat", k=10, threads=1)
    _, ids = search.search(queries)
    exact = entries.astype(np.longdouble) @ queries.astype(np.longdouble).T
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=0, kind="stable")[:10].T)
    assert search.statistics.full_rows == 5


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e35])
def test_flat_with_tiny_and_huge_norms(scale: float) -> None:
    entries = clip_like(6, 500, 24, np.float64) * scale
    queries = clip_like(7, 10, 24, np.float64) / scale
    _, ids = build_index(entries, "flat", k=5, threads=1).search(queries)
    np.testing.assert_array_equal(ids, brute_force(entries, queries, 5)[1])


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_approximate_kinds_return_true_similarities_in_order(kind: str) -> None:
    entries, queries = clip_like(8, 2000, 32), clip_like(9, 50, 32)
    search = build_index(entries, kind, k=10, threads=1)
    similarities, ids = search.search(queries)
    scores = queries.astype(np.float64) @ entries.astype(np.float64).T
    np.testing.assert_allclose(similarities, np.take_along_axis(scores, ids, axis=1), rtol=2.0**-23)
    assert (np.diff(similarities, axis=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in ids.tolist())
    _, expected = brute_force(entries, queries, 10)
    recall = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(ids.tolist(), expected.tolist(), strict=True)]
    )
    assert recall > 0.4  # points without clusters; a wrong metric gives 0.005


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate_kinds_at_full_effort_are_brute_force(kind: str) -> None:
    entries, queries = clip_like(10, 1500, 32), clip_like(11, 40, 32)
    search = build_index(entries, kind, k=10, threads=1)
    assert_exact(search.replace(effort=search.most_effort), entries, queries)


def test_missing_neighbours_are_found_by_searching_wider() -> None:
    entries, queries = clip_like(12, 600, 16), clip_like(13, 30, 16)
    search = build_index(entries, "ivf", IndexParameters(cells=60), k=50, threads=1)
    narrow = search.replace(effort=1)
    assert (narrow.propose(queries.astype(np.float32), 50, 1)[1] == -1).any()
    similarities, ids = narrow.search(queries)
    assert (ids >= 0).all() and np.isfinite(similarities).all()
    assert all(len(set(row)) == 50 for row in ids.tolist())


def test_k_of_the_whole_vocabulary() -> None:
    entries, queries = clip_like(14, 90, 16), clip_like(15, 8, 16)
    for kind in ("flat", "ivf", "hnsw"):
        assert_exact(build_index(entries, kind, k=90, threads=1), entries, queries)


def test_result_does_not_depend_on_the_batch_and_settings_come_back() -> None:
    entries, queries = clip_like(16, 3000, 32), clip_like(17, 100, 32)
    search = build_index(entries, "flat", k=10, threads=1)
    before = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    together = search.search(queries)
    apart = [search.search(queries[row : row + 1]) for row in range(100)]
    np.testing.assert_array_equal(together[0], np.concatenate([s for s, _ in apart]))
    np.testing.assert_array_equal(together[1], np.concatenate([i for _, i in apart]))
    assert (faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()) == before
    assert search.search(queries[:0])[0].shape == (0, 10)


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
def test_a_saved_index_finds_what_it_found_before(kind: str, tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, clip_like(18, 1000, 32))
    queries = clip_like(19, 20, 32)
    search = build_index(corpus, kind, k=5, threads=1)
    if kind != "flat":
        search = search.replace(effort=7)
    record = save_index(search, corpus, recall={"value": 0.5})
    again = open_index(corpus, 5, threads=1)
    assert again.effort == search.effort and again.kind == kind
    np.testing.assert_array_equal(again.search(queries)[1], search.search(queries)[1])
    assert record.recall == {"value": 0.5} and index_records(corpus) == [record]
    names = {p.name for p in (tmp_path / "index").iterdir()}
    assert names == {record.file, f"{kind}.json"}


def test_several_kinds_side_by_side_the_last_is_the_default(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, clip_like(20, 200, 16))
    for kind in ("ivf", "flat"):
        save_index(build_index(corpus, kind, threads=1), corpus)
    assert open_index(corpus).kind == "flat"
    assert open_index(corpus, kind="ivf").kind == "ivf"
    with pytest.raises(StoreError, match="no hnsw index .it has: flat, ivf.*--index hnsw"):
        open_index(corpus, kind="hnsw")


def test_an_index_of_another_content_is_stale(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, clip_like(21, 100, 16), "a" * 64)
    save_index(build_index(corpus, "flat", threads=1), corpus)
    with pytest.raises(StaleIndexError, match=f"{'a' * 64}.*{'b' * 64}.*build .* --index flat"):
        open_index(Corpus(tmp_path, corpus.matrix, "b" * 64))


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing"])
def test_a_harmed_file_is_never_read(harm: str, tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, clip_like(22, 100, 16))
    record = save_index(build_index(corpus, "flat", threads=1), corpus)
    path = tmp_path / "index" / record.file
    data = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data[:-10] if harm == "truncated" else data)
    with pytest.raises(CorruptStoreError, match="missing" if harm == "missing" else record.sha256):
        open_index(corpus)


def test_a_file_of_another_kind_or_metric_is_refused(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, clip_like(23, 100, 16))
    record = save_index(build_index(corpus, "flat", threads=1), corpus)
    path = tmp_path / "index" / record.file
    other = faiss.IndexFlatL2(16)
    other.add(corpus.matrix.astype(np.float32))
    faiss.write_index(other, str(path))
    manifest = tmp_path / "index" / "flat.json"
    data = json.loads(manifest.read_text())
    import hashlib

    data["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(data))
    with pytest.raises(CorruptStoreError, match="holds a IndexFlat.* of metric 1"):
        open_index(corpus)
    manifest.write_text(json.dumps({**data, "format_version": 99}))
    with pytest.raises(CorruptStoreError, match="format version 99.*reads 2"):
        open_index(corpus)
    manifest.write_text("{")
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        open_index(corpus)


def test_an_unwritable_corpus_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(tmp_path, clip_like(24, 50, 8))
    search = build_index(corpus, "flat", threads=1)
    (tmp_path / "index").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="cannot write .*index: File exists"):
        save_index(search, corpus)
    (tmp_path / "index").unlink()
    (tmp_path / "index").mkdir()
    monkeypatch.setattr("bliss_index.storage.files.os.access", lambda *_: False)
    with pytest.raises(OutputError, match="cannot write into .*index: it is read-only for this"):
        save_index(search, corpus)
    assert list((tmp_path / "index").iterdir()) == []


def test_an_index_of_another_shape_is_not_saved(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, clip_like(24, 50, 8))
    for rows, dim in ((49, 8), (50, 16)):
        search = build_index(clip_like(24, rows, dim), "flat", threads=1)
        with pytest.raises(
            InvalidInputError, match=rf"holds {rows} x {dim} .* the corpus .* 50 x 8"
        ):
            save_index(search, corpus)
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_cannot_be_written_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space")

    corpus = Corpus(tmp_path, clip_like(24, 50, 8))
    search = build_index(corpus, "flat", threads=1)
    monkeypatch.setattr(faiss, "write_index", fail)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OutputError, match="cannot write the index .*flat: no space") as caught:
        save_index(search, corpus)
    assert set(os.listdir("/proc/self/fd")) == before  # while the error still holds its frames
    del caught
    assert {path.name for path in (tmp_path / "index").iterdir()} <= {".lock"}


def test_wrong_input_is_named() -> None:
    entries = clip_like(25, 50, 8)
    with pytest.raises(InvalidInputError, match="k = 51.*50 entries"):
        build_index(entries, "flat", k=51)
    with pytest.raises(InvalidInputError, match="one of flat, ivf.*'annoy'"):
        build_index(entries, "annoy")
    with pytest.raises(InvalidInputError, match="cells = 51 .*50 entries"):
        build_index(entries, "ivf", IndexParameters(cells=51))
    with pytest.raises(InvalidInputError, match="links must be at least 1, got 0"):
        IndexParameters(links=0)
    with pytest.raises(InvalidInputError, match="cells = 5 has no meaning for kind 'hnsw'"):
        build_index(entries, "hnsw", IndexParameters(cells=5))
    with pytest.raises(InvalidInputError, match="needs 256 entries to train on, got 50"):
        build_index(entries, "ivfpq")
    search = build_index(entries, "flat", threads=1)
    with pytest.raises(InvalidInputError, match="dimension 9.*dimension 8"):
        search.search(np.zeros((1, 9), dtype=np.float32))
    with pytest.raises(InvalidInputError, match=r"row\(s\) 2"):
        search.search(np.where(np.arange(4)[:, None] == 2, np.nan, np.ones((4, 8))))
    with pytest.raises(InvalidInputError, match="nprobe must be an integer between 1 and 1, got 9"):
        build_index(entries, "ivf", threads=1).replace(effort=9)


@pytest.mark.parametrize("error", [ImportError("no module"), RuntimeError("libcublas.so.12")])
def test_missing_faiss_gives_both_pip_lines(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingDependencyError) as caught:
        build_index(clip_like(26, 50, 8), "flat")
    message = str(caught.value)
    assert "pip install 'bliss-index[faiss]'" in message
    assert "pip install 'bliss-index[faiss-gpu]'" in message
    assert str(error) in message


def test_two_distributions_of_faiss_are_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"faiss-cpu": "1.15.1", "faiss-gpu": None, "faiss-gpu-cuvs": None}
    monkeypatch.setattr(faiss_runtime, "_version", lambda name: versions[name])
    assert faiss_runtime.faiss_conflict() is None
    versions["faiss-gpu"] = "1.14.0"
    text = faiss_runtime.faiss_conflict()
    assert text is not None
    assert "faiss-cpu 1.15.1 and faiss-gpu 1.14.0" in text
    assert "pip uninstall -y faiss-cpu faiss-gpu" in text


def test_builds_of_several_kinds_at_once_lose_no_record(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, clip_like(26, 200, 16))
    found = {kind: build_index(corpus, kind, threads=1) for kind in ("flat", "ivf", "hnsw")}
    for _ in range(5):
        threads = [
            threading.Thread(target=save_index, args=(search, corpus)) for search in found.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {record.kind for record in index_records(corpus)} == set(found)
        for kind in found:
            assert open_index(corpus, kind=kind).size == 200
    assert len(list((tmp_path / "index").iterdir())) == 6


def test_building_a_kind_again_leaves_one_file_of_it(tmp_path: Path) -> None:
    first = Corpus(tmp_path, clip_like(40, 300, 24))
    other = replace(first, matrix=clip_like(41, 300, 24), content_hash="1" * 64)
    for corpus, kind in ((first, "flat"), (first, "hnsw"), (other, "flat")):
        save_index(build_index(corpus, kind, threads=1), corpus)
    folder = tmp_path / "index"
    kept = {record.file for record in index_records(other)}
    assert kept == {path.name for path in folder.glob("*.faiss")}
    assert len(kept) == 2


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_the_bound_holds_for_what_is_stored_rounded(storage: str) -> None:
    """Products of vectors as they are stored, with every coordinate rounded the same way, far."""
    dim, type_ = 16, np.dtype(storage)
    unit = 2.0**-11 if storage == "float16" else 2.0**-24
    up = (1 + 1.02 * unit) * np.exp2(np.arange(dim) % 3)  # a little above the middle of two numbers
    entries, queries = np.stack([up, np.ones(dim)]), np.stack([up, up[::-1]]) / 8
    search = build_index(entries, "flat", k=1, threads=1)
    search._placement = Placement("cpu", storage)
    stored = queries.astype(type_).astype(float) @ entries.astype(type_).astype(float).T
    bounds = search.error_bound(np.linalg.norm(queries, axis=1))
    errors = np.abs(stored - queries @ entries.T)
    assert (errors <= bounds[:, None]).all()
    # What rounding costs is the most of it where it is coarse, so nothing smaller would do.
    if storage == "float16":
        assert errors.max() > 0.5 * bounds.min()


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_the_bound_holds_where_small_coordinates_become_zero(storage: str) -> None:
    """On both sides: a coordinate below the smallest number loses itself times the other's."""
    dim = 64
    smallest = 2.0**-126 if storage == "float32" else 2.0**-24
    lost = np.full(dim, 0.49 * smallest)
    entries = np.stack([np.ones(dim), lost])
    search = build_index(entries, "flat", k=1, threads=1)
    search._placement = Placement("cpu", storage)
    for query in (np.ones(dim), lost):  # stored as it is, and as nothing
        errors = np.abs(entries @ query) if query is lost else np.abs(entries[1:] @ query)
        bound = search.error_bound(np.array([np.linalg.norm(query)]))
        assert (errors <= bound).all()


def test_a_long_entry_near_the_best_does_not_hide_it() -> None:
    """Its product is known less exactly, so what it may be is more than what the best is."""
    vocabulary = np.array([[1.0, 0.0], [1.0 - 1e-10, 1e6], [0.5, 0.0]])
    queries = np.array([[1.0, 0.0]])
    found = Candidates(queries, vocabulary, np.linalg.norm(vocabulary, axis=1), 1)
    found.scan(np.array([0]))
    values, ids, counted = found.ordered()
    assert (ids.tolist(), values.tolist()) == ([[0]], [[1.0]])
    assert counted.candidates == 2  # the long one had to be looked at
