"""FAISS on GPUs: the probe's plain words anywhere, results against brute force where one is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.search.faiss.probe import explain, probe_gpu

faiss = pytest.importorskip("faiss")

from bliss_index.bench.synthetic import clip_like  # noqa: E402
from bliss_index.search.faiss.gpu import gpu_count, place_index, require_gpus  # noqa: E402
from bliss_index.search.faiss.search import FaissSearch  # noqa: E402
from bliss_index.search.index import build_index  # noqa: E402

needs_gpu = pytest.mark.skipif(gpu_count(faiss) == 0, reason="no GPU, or faiss for the CPU alone")


@pytest.mark.parametrize(
    ("facts", "reason", "remedy"),
    [
        ({"stage": "import", "error": "No module named 'faiss'"}, "No module", "[faiss-gpu]"),
        (
            {"stage": "import", "error": "libcublas.so.12: cannot open shared object file"},
            "CUDA libraries: libcublas.so.12",
            "[faiss-gpu]",
        ),
        ({"stage": "build", "version": "1.15.1"}, "1.15.1 is a build for the CPU", "uninstall"),
        ({"stage": "devices", "driver": False}, "no NVIDIA driver", "Install the NVIDIA driver"),
        ({"stage": "devices", "driver": True}, "sees no GPU", "CUDA_VISIBLE_DEVICES"),
        (
            {"stage": "search", "error": "no kernel image is available", "version": "1.14"},
            "1.14 was not compiled for this GPU's architecture",
            "sm_70 to sm_90",
        ),
        (
            {"stage": "search", "error": "CUDA driver version is insufficient"},
            "driver is older",
            "newer NVIDIA driver",
        ),
        ({"stage": "search", "error": "out of memory"}, "no memory left", "Free memory"),
        ({"stage": "crash", "error": "exit status -11: x"}, "exit status -11", "driver and GPU"),
        ({"stage": "timeout", "error": "no answer within 3 s"}, "within 3 s", "nvidia-smi"),
    ],
)
def test_the_probe_says_why_and_what_to_do(facts: dict[str, Any], reason: str, remedy: str) -> None:
    probe = explain(facts)
    assert not probe.usable
    assert reason in probe.reason
    assert remedy in probe.remedy


def test_the_probe_runs_here() -> None:
    probe = probe_gpu()
    assert probe.usable == (probe.gpus > 0)
    assert probe.reason and probe.faiss_version == faiss.__version__
    assert probe.usable or probe.remedy


def test_devices_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'cuda:N' or 'cuda:all', got 'gpu0'"):
        require_gpus(faiss, "gpu0")
    index = build_index(np.eye(8, dtype=np.float32), "hnsw", k=1, threads=1).index
    with pytest.raises(InvalidInputError, match="'hnsw' runs on the CPU only"):
        place_index(index, "hnsw", "cuda")
    with pytest.raises(InvalidInputError, match="got 'int8'"):
        place_index(index, "flat", "cuda", storage="int8")
    if gpu_count(faiss) == 0:
        with pytest.raises(MissingDependencyError, match="'cuda:0' cannot be used: .*"):
            require_gpus(faiss, "cuda:0")
    else:
        with pytest.raises(InvalidInputError, match="'cuda:99' does not exist"):
            require_gpus(faiss, "cuda:99")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq"])
@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("device", ["cuda", "cuda:all"])
def test_gpu_indexes_against_brute_force(kind: str, storage: str, device: str) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20_300, 128)) + 8 * np.eye(128)[0]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    entries, queries = points[:20_000].astype(np.float16), points[20_000:].astype(np.float16)
    on_cpu = build_index(entries, kind, k=10)
    index, placement = place_index(on_cpu.index, kind, device, storage=storage)
    search = FaissSearch(index, entries, 10, kind=kind, effort=on_cpu.effort, placement=placement)
    similarities, ids = search.search(queries)
    scores = queries.astype(np.float64) @ entries.astype(np.float64).T
    np.testing.assert_allclose(similarities, np.take_along_axis(scores, ids, axis=1), rtol=2.0**-23)
    if kind == "flat":
        np.testing.assert_array_equal(ids, np.argsort(-scores, axis=1, kind="stable")[:, :10])


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_tensors_in_and_out(kind: str) -> None:
    """On the CPU, where tensors are searched by the same calls."""
    torch = pytest.importorskip("torch")
    from bliss_index.search import TensorSearch, reference_search
    from bliss_index.search.faiss.tensors import FaissTensorSearch

    entries = clip_like(3000, 48, "text", 1, np.float16)
    queries = clip_like(70, 48, "image", 2, np.float16)
    entries[40:200] = entries[3]  # more equal entries than proposals
    search = FaissTensorSearch(build_index(entries, kind, k=10, threads=1))
    assert isinstance(search, TensorSearch)
    similarities, ids = search.search_tensors(torch.from_numpy(queries))
    scores = queries.astype(np.float64) @ entries.astype(np.float64).T
    np.testing.assert_allclose(
        similarities.numpy(), np.take_along_axis(scores, ids.numpy(), axis=1), rtol=2.0**-23
    )
    assert (np.diff(similarities.numpy(), axis=1) <= 0).all()
    expected = reference_search(entries, queries, 10)
    if kind == "flat":
        np.testing.assert_array_equal(ids.numpy(), expected[1])
        np.testing.assert_array_equal(similarities.numpy(), expected[0])
        assert search.statistics.queries == 70
    else:
        found = [
            len(set(a) & set(b)) for a, b in zip(ids.tolist(), expected[1].tolist(), strict=True)
        ]
        assert np.mean(found) > 5
    with pytest.raises(InvalidInputError, match=r"row\(s\) 2"):
        search.search_tensors(torch.tensor([[0.0] * 48, [1.0] * 48, [float("nan")] * 48]))
    with pytest.raises(InvalidInputError, match="shape .2, 47. on cpu do not fit .* dimension 48"):
        search.search_tensors(torch.zeros((2, 47)))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_tensors_on_a_gpu(storage: str) -> None:
    torch = pytest.importorskip("torch")
    from bliss_index.search import reference_search
    from bliss_index.search.faiss.tensors import FaissTensorSearch

    entries = clip_like(20_000, 128, "text", 1, np.float16)
    queries = clip_like(300, 128, "image", 2, np.float16)
    index, placement = place_index(
        build_index(entries, "flat", k=10).index, "flat", "cuda:0", storage=storage
    )
    search = FaissTensorSearch(FaissSearch(index, entries, 10, kind="flat", placement=placement))
    similarities, ids = search.search_tensors(torch.from_numpy(queries).cuda())
    expected = reference_search(entries, queries, 10)
    np.testing.assert_array_equal(ids.cpu().numpy(), expected[1])
    np.testing.assert_array_equal(similarities.cpu().numpy(), expected[0])
