"""Nothing that a process does to torch, numpy or its processor changes a result.

A list of what can disturb, times the engines that run here: each result equals float64 brute force,
or the error is typed, and the caller's settings are as before.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from test_device_scoring import OnTensors
from test_device_search import triton_engine

from bliss_index import BlissDetector, exact_search
from bliss_index.calibration import calibrate
from bliss_index.devices import find_gpu
from bliss_index.errors import BlissError, InvalidInputError, MissingDependencyError
from bliss_index.scoring.device_scorer import DeviceScorer
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.thresholds import conformal_p_values, threshold_at
from bliss_index.search import isolation, reference_search
from bliss_index.search.certificate.precision import UNIT_BFLOAT16, UNIT_TF32, factor_unit
from bliss_index.search.device.backend import DeviceBackend, DeviceOptions
from bliss_index.search.device.engine import torch_engine
from bliss_index.search.exact import ExactSearch
from bliss_index.search.inputs import as_tensor
from bliss_index.search.native.backend import NativeBackend, load_native
from bliss_index.search.torch.backend import TorchBackend

K, DIM = 5, 40
TINY = 1e-39  # of float32, denormal
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
Search = Callable[[Any], tuple[Any, Any]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread_of_torch() -> Iterator[None]:
    """Many small searches: threads would only wait for each other. Forks and pools run apart."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def brute_force(entries: Any, queries: Any, k: int) -> tuple[Any, Any]:
    """Similarities and ids by exact sums, ties by smaller id; independent of the package."""
    wide, rows = entries.astype(np.float64).tolist(), queries.astype(np.float64).tolist()
    similarities, ids = [], []
    for x in rows:
        values = [math.fsum(a * b for a, b in zip(x, t, strict=True)) for t in wide]
        best = sorted(range(len(wide)), key=lambda w: (-values[w], w))[:k]
        similarities.append([values[w] for w in best])
        ids.append(best)
    return np.array(similarities).astype(np.float32), np.array(ids)


@cache
def sample(kind: str = "near") -> tuple[Any, Any, tuple[Any, Any]]:
    """Entries that differ little, queries, both read-only, and the results.

    A bfloat16 or float16 number cannot tell the best of "near" entries apart. Those of "tiny" are
    float32 denormals, and "mixed" are float64, with coordinates that float32 cannot hold.
    """
    rng = np.random.default_rng(7)
    entries = rng.standard_normal((700, DIM)) * 0.02 + rng.standard_normal(DIM)
    queries = rng.standard_normal((40, DIM)) * 0.1 + rng.standard_normal(DIM)
    if kind == "mixed":
        entries[:, ::2] *= 1e-60
        queries[:, 1::4] *= 1e-60
    else:
        entries *= TINY if kind == "tiny" else 1
        entries, queries = entries.astype(np.float32), queries.astype(np.float32)
    for array in (entries, queries):
        array.flags.writeable = False
    return entries, queries, brute_force(entries, queries, K)


def through(backend: Any, entries: Any) -> ExactSearch:
    """The public search over a backend that it would not choose."""
    search = exact_search(entries[:K], K, backend="torch")
    search._backend, (search._size, search._dim) = backend, entries.shape
    return search


def directly(backend: Any) -> Search:
    """A backend as it is, without the public search."""

    def search(queries: Any) -> tuple[Any, Any]:
        values, ids, _ = backend.search(np.asarray(queries), 0)
        return values, ids

    return search


def flat(entries: Any) -> Search:
    pytest.importorskip("faiss")
    from bliss_index.search.faiss.build import build_index

    found: Search = build_index(entries, "flat", k=K, threads=2).search
    return found


def native(entries: Any, kernel: str) -> Search:
    extension = load_native()[0]
    if extension is None or kernel not in extension.kernel_names():
        pytest.skip(f"no kernel {kernel!r} here")
    return directly(NativeBackend(entries, K, threads=2, kernel=kernel))


def on_device(entries: Any, engine: Any, codes: str = "int8") -> Search:
    options = DeviceOptions(codes=codes)
    return directly(DeviceBackend(entries, K, device="cpu", options=options, engine=engine))


ENGINES: dict[str, Callable[[Any], Search]] = {
    "public": lambda e: exact_search(e, K, threads=2).search,
    "public torch": lambda e: exact_search(e, K, backend="torch").search,
    "native avx2": lambda e: native(e, "avx2"),
    "native avx512": lambda e: native(e, "avx512-vnni"),
    "native amx": lambda e: native(e, "amx-int8"),
    "native i8mm": lambda e: native(e, "neon-i8mm"),
    "native dotprod": lambda e: native(e, "neon-dotprod"),
    "torch float32": lambda e: directly(TorchBackend(e, K, precision="float32")),
    "torch bfloat16": lambda e: directly(TorchBackend(e, K, precision="bfloat16")),
    "torch tiles": lambda e: directly(TorchBackend(e, K, precision="float32", tile=(20, 350))),
    "device int8": lambda e: on_device(e, torch_engine()),
    "device bfloat16": lambda e: on_device(e, None, "bfloat16"),
    "faiss flat": flat,
    "reference": lambda e: lambda queries: reference_search(e, queries, K),
}


@contextmanager
def switched(get: Callable[[], Any], set_: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    set_(value)
    try:
        yield
    finally:
        set_(before)


@contextmanager
def fp32_precision(value: str) -> Iterator[None]:
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch's new switches came with 2.9")
    backends = torch.backends
    switches = (backends.cuda.matmul, backends.mkldnn.matmul, backends)
    for switch in switches:  # the narrower ones have been set by the old switch
        switch.fp32_precision = "none"
    backends.fp32_precision = value
    try:
        yield
    finally:
        for switch in switches:
            switch.fp32_precision = "none"


@contextmanager
def flush_denormal() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        switched(torch.is_warn_always_enabled, torch.set_warn_always, True),
    ):
        warnings.simplefilter("error")
        yield


def fake_tensors() -> AbstractContextManager[Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


def deterministic() -> AbstractContextManager[None]:
    return switched(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    )


DISTURBANCES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "autocast bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "fp32_precision bf16": lambda: fp32_precision("bf16"),
    "fp32_precision tf32": lambda: fp32_precision("tf32"),
    "matmul precision": lambda: switched(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "default device": lambda: torch.device("meta"),
    "set_default_device": lambda: switched(lambda: None, torch.set_default_device, "meta"),
    "default float64": lambda: switched(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "default float16": lambda: switched(
        torch.get_default_dtype, torch.set_default_dtype, torch.float16
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": warnings_are_errors,
    "flush to zero": flush_denormal,
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "anomaly detection": torch.autograd.detect_anomaly,
    "deterministic": deterministic,
    "fake tensors": fake_tensors,
}


SAMPLES = {"flush to zero": "tiny", "numpy raises": "mixed"}  # where these are seen


def settings() -> tuple[Any, ...]:
    """What a caller could find changed."""
    product = np.array([1e-40], np.float32) * np.array([0.5], np.float32)
    return (
        bool(product[0]),
        torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._is_torch_function_all_disabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        tuple(sorted(np.geterr().items())),
        tuple(warnings.filters),
    )


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_search_is_right_and_leaves_no_trace(engine: str, disturbance: str) -> None:
    entries, queries, expected = sample(SAMPLES.get(disturbance, "near"))
    before = ENGINES[engine](entries)
    bad = queries.copy()
    bad[3, 2] = np.nan
    with DISTURBANCES[disturbance]():
        state = settings()
        found = before(queries)
        inside = ENGINES[engine](entries)
        inside(queries[:3])  # too few to find a centre of the queries
        again = inside(queries)
        with pytest.raises(InvalidInputError, match=r"row\(s\) 3"):
            inside(bad)
        after = settings()
    assert after == state
    for similarities, ids in (found, again, inside(queries)):
        np.testing.assert_array_equal(ids, expected[1])
        np.testing.assert_array_equal(similarities.astype(np.float32), expected[0])


@pytest.mark.triton
@pytest.mark.parametrize("disturbance", ["autocast bfloat16", "default float64", "default device"])
def test_triton_kernels_are_right(disturbance: str) -> None:
    rng = np.random.default_rng(1)
    entries = rng.standard_normal((260, 16)).astype(np.float32)
    queries = rng.standard_normal((5, 16)).astype(np.float32)
    engine = triton_engine()
    with DISTURBANCES[disturbance]():
        backend = DeviceBackend(entries, 2, device=find_gpu()[0] or "cpu", engine=engine)
        values, ids, _ = backend.search(queries, 0)
    similarities, expected = brute_force(entries, queries, 2)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values.astype(np.float32), similarities)


@pytest.fixture(scope="module")
def chain() -> Any:
    """Vocabulary, images, and a calibration of a large and a small class."""
    rng = np.random.default_rng(3)

    def unit(rows: int, dtype: Any = np.float32) -> Any:
        x = rng.standard_normal((rows, DIM)) * 0.3 + 0.5
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)

    images = unit(160)
    labels = np.repeat([0, 1], [140, 20])
    return unit(500), images, labels, unit(2, np.float64)


def scorer_of(chain: Any, way: str) -> Callable[[Any], Any]:
    """Calibrate and prepare one of the ways to score."""
    vocabulary, images, labels, texts = chain
    if way == "detector":
        return BlissDetector(vocabulary, texts, k=K).fit(images, labels).explain
    calibration = calibrate([(images, labels)], texts)
    if way == "device":
        return DeviceScorer(OnTensors(vocabulary, K), vocabulary, calibration).score
    if way == "native" and load_native()[0] is None:
        pytest.skip("no compiled scores here")
    search = exact_search(vocabulary, K, threads=2)
    return BlissScorer(search, vocabulary, calibration, native=way == "native", threads=2).score


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("way", ["native", "numpy", "device", "detector"])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_scores_are_the_same_bits(chain: Any, way: str, disturbance: str) -> None:
    images = chain[1][::3]
    before = scorer_of(chain, way)
    expected = before(images)
    with DISTURBANCES[disturbance]():
        state = settings()
        made = scorer_of(chain, way)
        inside, again = made(images[:9]), before(images)
        after = settings()
    assert after == state
    outside = made(images)  # made inside: its tables grow
    for name in ("anomaly", "nearest_class", "internal", "external", "similarities", "ids"):
        wanted = getattr(expected, name)
        np.testing.assert_array_equal(getattr(inside, name), wanted[:9])
        np.testing.assert_array_equal(getattr(again, name), wanted)
        np.testing.assert_array_equal(getattr(outside, name), wanted)


def test_scores_follow_the_formula_under_autocast(chain: Any) -> None:
    vocabulary, images, labels, texts = (np.asarray(a, dtype=np.float64) for a in chain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer_of(chain, "device")(chain[1][::3])
    for row, x in enumerate(images[::3]):
        totals = []
        for c in (0, 1):
            own = images[labels == c]
            near = own @ vocabulary[found.ids[row]].T
            mean, deviation = near.mean(0), near.std(0) + 1e-8
            external = ((vocabulary[found.ids[row]] @ x - mean) / deviation).mean()
            label = own @ texts[c]
            internal = -(x @ texts[c] - label.mean()) / (label.std() + 1e-8)
            totals.append(internal + 0.5 * external)
        assert found.anomaly[row] == pytest.approx(min(totals), abs=1e-5)


def test_a_search_of_tensors_stands_autocast_and_gradients() -> None:
    entries, queries, expected = sample()
    search = through(DeviceBackend(entries, K, device="cpu", engine=torch_engine()), entries)
    tensor = torch.from_numpy(queries.copy()).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        similarities, ids = search.search_tensors(tensor)
    np.testing.assert_array_equal(ids.numpy(), expected[1])
    np.testing.assert_array_equal(similarities.numpy(), expected[0])
    with pytest.raises(InvalidInputError, match="dense torch tensor, got torch.sparse_coo"):
        search.search_tensors(tensor.detach().to_sparse())
    with pytest.raises(InvalidInputError, match="got ndarray"):
        search.search_tensors(queries)


@pytest.mark.parametrize(
    ("switch", "device", "unit"),
    [
        (lambda: fp32_precision("bf16"), CPU, UNIT_BFLOAT16),
        (lambda: fp32_precision("tf32"), CUDA, UNIT_TF32),
        (lambda: fp32_precision("ieee"), CUDA, 0.0),
        (DISTURBANCES["matmul precision"], CPU, UNIT_BFLOAT16),
        (nullcontext, CPU, 0.0),
        (nullcontext, CUDA, 0.0),
    ],
)
def test_bounds_know_how_precise_products_are(switch: Any, device: Any, unit: float) -> None:
    with switch():
        assert factor_unit(device) >= unit
        if not unit:
            assert factor_unit(device) == 0


def test_bounds_know_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert factor_unit(CPU) == UNIT_BFLOAT16
    assert factor_unit(CUDA) == 0


def test_threads_that_flush_denormals_for_ever_change_nothing() -> None:
    """OpenMP's threads keep what the thread that started them had."""
    run_python(
        """
        import numpy as np, torch
        torch.set_num_threads(2)
        torch.set_flush_denormal(True)
        big = torch.ones(1 << 20)
        (big * 2).sum()
        torch.set_flush_denormal(False)
        tiny = torch.from_numpy(np.full(1 << 20, 1e-40, np.float32))
        assert not bool((tiny.double() > 0).all()), "the threads do not flush: nothing is tested"
        from bliss_index.search import reference_search
        from bliss_index.search.torch.backend import TorchBackend
        rng = np.random.default_rng(0)
        X = (rng.standard_normal((20, 4096)) + 1).astype(np.float32)
        tiny = (rng.standard_normal((1100, 4096)) * 1e-39).astype(np.float32)
        few = -1 - rng.random((1100, 4096)).astype(np.float32)  # far from every query, and
        for i in range(12):  # a few that are not, whose order their denormal numbers decide
            few[100 + i] = 1e-39 * (12 - i) / 12
            few[100 + i, 0] = 1.5e-38 * (2 + i)
        for V in (tiny, few, few[:, :64].copy()):
            x = X[:, : V.shape[1]].copy()
            want = reference_search(V, x, 5)
            for precision in ("float32", "bfloat16"):
                got = TorchBackend(V, 5, precision=precision).search(x, 0)
                assert (got[1] == want[1]).all(), (V.shape, precision)
                assert (got[0].astype(np.float32) == want[0]).all()
                assert V is not tiny or got[2].resolved < 50  # kept in float64
        """
    )


def test_compiled_code_keeps_denormals_by_itself() -> None:
    """Without the Python side: the compiled code clears flush-to-zero, and puts it back."""
    extension = load_native()[0]
    if extension is None:
        pytest.skip("no compiled search here")
    entries, queries, _ = sample("tiny")
    wide = np.ascontiguousarray(entries.astype(np.float64))
    backend = NativeBackend(wide, K, threads=2)
    values, ids = np.empty((40, K)), np.empty((40, K), np.int64)
    tiny = (queries * np.float32(TINY)).astype(np.float32)  # denormal queries, read by the kernel
    expected = brute_force(wide, tiny, K)
    with flush_denormal():
        state = settings()
        backend._engine.search(
            tiny.ctypes.data, False, 4, *tiny.shape, 2, values.ctypes.data, ids.ctypes.data, 0, 0
        )
        assert settings() == state
    np.testing.assert_array_equal(ids, expected[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_a_fork_searches() -> None:
    run_python(
        """
        import os, warnings
        warnings.simplefilter("ignore")
        import numpy as np, torch
        from bliss_index import exact_search
        from bliss_index.search.torch.backend import TorchBackend
        from bliss_index.search.faiss.build import build_index
        torch.set_num_threads(2)
        rng = np.random.default_rng(0)
        V, X = (rng.standard_normal((n, 64)).astype(np.float32) for n in (3000, 600))
        searches = [exact_search(V, 5, threads=2).search]
        for precision in ("float32", "bfloat16"):
            backend = TorchBackend(V, 5, precision=precision)
            searches.append(lambda X, b=backend: b.search(X, 0))
        try:
            searches.append(build_index(V, "flat", k=5, threads=2).search)
        except ImportError:
            pass
        want = [search(X)[1] for search in searches]
        child = os.fork()
        if child == 0:
            right = all((s(X)[1] == ids).all() for s, ids in zip(searches, want))
            right &= (TorchBackend(V, 5).search(X, 0)[1] == want[0]).all()
            os._exit(0 if right and torch.get_num_threads() == 2 else 3)
        assert os.waitpid(child, 0)[1] == 0
        """,
        timeout=30,
    )


def run_python(code: str, timeout: float = 60) -> None:
    environment = {**os.environ, "BLISS_INDEX_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


def test_ctrl_c_ends_the_preparation_of_codes() -> None:
    """The compiled preparation asks for signals ten times a second."""
    if load_native()[0] is None:
        pytest.skip("no compiled search here")
    entries = np.random.default_rng(0).random((400_000, 256), dtype=np.float32)
    pressed = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    pressed.start()
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        NativeBackend(entries, K, threads=1)
    assert time.perf_counter() - began < 1.2


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_tensors_and_masked_arrays_are_read_or_refused(backend: str) -> None:
    entries, queries, expected = sample()
    search = exact_search(torch.nn.Parameter(torch.from_numpy(entries.copy())), K, backend=backend)
    tensor = torch.from_numpy(queries.copy())
    masked = np.ma.masked_array(queries, mask=np.zeros_like(queries, dtype=bool))
    for given in (tensor, tensor.clone().requires_grad_(), masked, queries.tolist()):
        if isinstance(given, list):
            given = np.array(given, dtype=np.float32)
        np.testing.assert_array_equal(search.search(given)[1], expected[1])
    narrow = tensor.bfloat16()
    np.testing.assert_array_equal(
        search.search(narrow)[1], brute_force(entries, narrow.float().numpy(), K)[1]
    )
    masked[2, 3] = np.ma.masked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    for given, message in (
        (tensor.to_sparse(), "sparse .* tensor.to_dense"),
        (tensor.to_sparse_csr(), "sparse .* tensor.to_dense"),
        (tensor.to("meta"), "tensor on meta; give tensor.cpu"),
        (tensor.to(torch.complex64), "must be float16, float32 or float64, got complex64"),
        (quantised, "quantised"),
        (masked, "1 masked values; fill them"),
        (queries.astype(np.longdouble), "convert it first"),
        ([[1.0], [1.0, 2.0]], "cannot be read as an array"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            search.search(given)


def test_a_view_of_read_only_memory_keeps_it_alive() -> None:
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    tensor = as_tensor(array)
    assert tensor.data_ptr() == array.ctypes.data
    del array
    assert tensor.sum() == 15


@pytest.mark.parametrize("threads", ["2", math.nan, 1.5, 0, -1, 10**9, 2**64, True, None])
def test_threads(threads: Any) -> None:
    entries, queries, expected = sample()
    if threads is None:
        assert (
            exact_search(entries, K, threads=np.int64(2)).search(queries)[1] == expected[1]
        ).all()
        return
    with pytest.raises(InvalidInputError, match=r"threads must be a whole number .*, got"):
        exact_search(entries, K, threads=threads)


@pytest.mark.parametrize("text", ["\u00b2", "9" * 20, "1.5", "-1", "two"])
def test_threads_of_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLISS_INDEX_THREADS", text)
    with pytest.raises(InvalidInputError, match=f"BLISS_INDEX_THREADS must .*got '{text}'"):
        exact_search(sample()[0], K)


@pytest.mark.parametrize("tile", [(-1, -1), (1.5, 2), 64, (1, 2, 3), ("1", "2"), (2**40, 1)])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_tiles(tile: Any, backend: str) -> None:
    with pytest.raises(InvalidInputError, match="tile must be two whole numbers"):
        exact_search(sample()[0], K, backend=backend, tile=tile)


@pytest.mark.parametrize(
    "device",
    ["banana", "gpu", "meta", "", "cuda:x", "cuda:-1", "cpu:1", "CUDA", 0, torch.device("meta")],
)
def test_unknown_devices(device: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"device .*give"):
        exact_search(sample()[0], K, device=device)


@pytest.mark.parametrize("device", ["cuda:99", "mps", "xpu"])
def test_absent_devices(device: str) -> None:
    with pytest.raises((MissingDependencyError, InvalidInputError), match=f"device '{device}'"):
        exact_search(sample()[0], K, device=device)


def test_the_highest_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bliss_index.devices.find_gpu", lambda: ("cuda", "a GPU"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InvalidInputError, match="torch sees 2 GPUs, the last is 'cuda:1'"):
        exact_search(sample()[0], K, device="cuda:99")


def test_numbers_of_the_detector(chain: Any) -> None:
    vocabulary, images, labels, texts = chain
    for options in (
        {"contamination": "auto"}, {"contamination": None}, {"contamination": math.nan},
        {"contamination": True}, {"threshold": "a"}, {"threshold": math.nan}, {"lam": math.nan},
        {"threads": "2"}, {"k": 1.5}, {"k": "3"}, {"device": "banana"},
    ):  # fmt: skip
        name = next(iter(options))
        with pytest.raises(InvalidInputError, match=f"{name} "):
            BlissDetector(vocabulary, texts, **options).fit(images, labels)
    with pytest.raises(InvalidInputError, match="X must be float16, float32 or float64, got"):
        BlissDetector(vocabulary, texts).fit(images, labels).predict(images.astype(np.longdouble))


def test_numbers_of_thresholds() -> None:
    for rate in ("auto", None, math.nan, True, 1.0):
        with pytest.raises(
            InvalidInputError, match="the false-alarm rate must lie between 0 and 1"
        ):
            threshold_at(range(99), rate)
    masked = np.ma.masked_array(np.arange(99.0), mask=np.arange(99) == 3)
    with pytest.raises(InvalidInputError, match="1 masked values"):
        threshold_at(masked, 0.05)
    with pytest.raises(InvalidInputError, match="must be numbers, got <U1"):
        conformal_p_values([1.0, 2.0], ["a"])
    with np.errstate(all="raise"):
        assert conformal_p_values([1.0, 2.0], [math.nan, 3.0])[1] == pytest.approx(1 / 3)


def test_rows_left_out_do_not_move_the_threshold(
    chain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary, images, labels, texts = chain
    odd = -images[:30]  # far from every class
    expected = BlissDetector(vocabulary, texts, k=K).fit(images, labels)
    assert (expected.left_out_, caplog.text) == (0, "")
    found = BlissDetector(vocabulary, texts, k=K).fit(
        np.concatenate([odd, images]), np.concatenate([np.full(30, -1), labels])
    )
    assert found.offset_ == expected.offset_
    assert found.left_out_ == 30
    assert "30 of 190 images are labelled -1" in caplog.text


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_with_columns_in_another_order_are_refused(chain: Any, library: str) -> None:
    frames = pytest.importorskip(library)
    vocabulary, images, labels, texts = chain
    names = [f"x{i}" for i in range(DIM)]

    def frame(rows: Any, order: list[str]) -> Any:
        table = frames.DataFrame(dict(zip(names, rows.T, strict=True)))
        return table[order] if library == "pandas" else table.select(order)

    swapped = [names[1], names[0], *names[2:]]
    detector = BlissDetector(vocabulary, texts, k=K).fit(frame(images, names), labels)
    plain = BlissDetector(vocabulary, texts, k=K).fit(images, labels)
    assert list(detector.feature_names_in_) == names
    np.testing.assert_array_equal(
        detector.anomaly_score(frame(images, names)), plain.anomaly_score(images)
    )
    detector.anomaly_score(images)  # an array has no names to compare
    message = "columns of the images of fit in another order: column 0 is 'x1', there it is 'x0'"
    with pytest.raises(InvalidInputError, match=message):
        detector.anomaly_score(frame(images, swapped))
    with pytest.raises(InvalidInputError, match="columns of vocabulary in another order"):
        BlissDetector(frame(vocabulary, swapped), texts, k=K).fit(frame(images, names), labels)
    # Other names, or fewer, say nothing of an order.
    named = frames.DataFrame({f"y{i}": column for i, column in enumerate(vocabulary.T)})
    other = BlissDetector(named, texts, k=K).fit(frame(images, names), labels)
    np.testing.assert_array_equal(other.anomaly_score(images), plain.anomaly_score(images))


def test_statistics_of_faiss_count_every_thread() -> None:
    """A switch of threads between reading and writing the counters must lose no search."""
    entries, queries, _ = sample()
    search = flat(entries).__self__  # type: ignore[attr-defined]

    class Slow(type(search._statistics)):  # type: ignore[misc]
        def __add__(self, other: Any) -> Any:
            total = super().__add__(other)
            time.sleep(0.002)
            return Slow(*(getattr(total, name) for name in total.__dataclass_fields__))

    search._statistics = Slow()
    workers = [threading.Thread(target=search.search, args=(queries[:2],)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert search.statistics.queries == 16


def test_errors_of_torch_about_settings_are_typed() -> None:
    for text, remedy in (
        ("x does not have a deterministic implementation, but you set "
         "'torch.use_deterministic_algorithms(True)'", "CUBLAS_WORKSPACE_CONFIG"),
        ("Cannot re-initialize CUDA in forked subprocess.", "'spawn'"),
    ):  # fmt: skip
        with pytest.raises(BlissError, match=remedy), isolation.isolation():
            raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="anything else"), isolation.isolation():
        raise RuntimeError("anything else")


def test_two_threads_do_not_share_what_is_set_aside() -> None:
    entries, queries, expected = sample()
    search = exact_search(entries, K, backend="torch")
    wrong = []

    def work(dtype: Any) -> None:
        with torch.autocast("cpu", dtype=dtype), np.errstate(all="raise"):
            for _ in range(20):
                wrong.append(int((search.search(queries)[1] != expected[1]).sum()))
                wrong.append(int(not torch.is_autocast_enabled("cpu")))

    workers = [threading.Thread(target=work, args=(d,)) for d in (torch.bfloat16, torch.float16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(wrong) == 80
    assert not any(wrong)
