"""The search on Hopper without a card: its machine code, its plans, and a model of its kernels."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hopper_model import HopperModel, plain_codes
from test_device_search import assert_exact
from test_torch_proposals import KINDS, data

from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.search.device.backend import DeviceBackend, DeviceOptions
from bliss_index.search.device.base import DeviceEngine
from bliss_index.search.device.codes import BFLOAT16, INT8, EntryCodes
from bliss_index.search.device.engine import ProposalEngine, torch_engine
from bliss_index.search.hopper import launch as hopper_launch
from bliss_index.search.hopper.engine import (
    HopperEngine,
    ProductShape,
    arranged,
    depth_of,
    fitting_shape,
    plan_search,
    why_no_hopper,
)

SMALL = ProductShape(128, 2, 2)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[HopperModel]:
    """Models that stand for the kernels; those that were asked for, in order."""
    made: list[HopperModel] = []

    def module_of(macros: dict[str, int], device: torch.device) -> HopperModel:
        made.append(HopperModel(macros))
        return made[-1]

    monkeypatch.setattr(hopper_launch, "module_of", module_of)
    return made


def engine_of(shape: ProductShape | None = SMALL, **more: Any) -> DeviceEngine:
    """The engine for Hopper, with torch's own steps around the kernels."""
    steps = torch_engine()
    return HopperEngine(
        prepare=steps.prepare,
        pair_products=steps.pair_products,
        score_kernel=steps.score_kernel,
        shape=shape,
        **more,
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_the_top_k_is_that_of_float64(kind: str, dtype: Any, models: list[HopperModel]) -> None:
    entries, queries = data(kind, np.float64 if kind == "any norm" else dtype)
    queries[3] = 0
    for k in (1, 7):
        backend = DeviceBackend(entries, k, device="cpu", engine=engine_of())
        assert "hopper int8" in backend.description
        assert_exact(backend, entries, queries, k)
    assert models


@pytest.mark.parametrize(
    ("size", "dim", "k", "count", "shape"),
    [
        (6000, 96, 10, 40, SMALL),
        (3000, 200, 3, 130, ProductShape(64, 2, 2)),
        (2500, 64, 30, 20, ProductShape(128, 3, 3)),
        (900, 320, 5, 20, None),
    ],
)
def test_sizes_and_shapes(
    size: int, dim: int, k: int, count: int, shape: ProductShape | None, models: list[HopperModel]
) -> None:
    entries = clip_like(size, dim, "text", 1, np.float16)
    queries = clip_like(count, dim, "image", 2, np.float16)
    backend = DeviceBackend(entries, k, device="cpu", engine=engine_of(shape))
    counted = assert_exact(backend, entries, queries, k)
    assert counted.full_rows == 0
    assert models[0].macros["CODE_DIM"] == -(-dim // 64) * 64


def test_a_batch_is_five_launches(models: list[HopperModel]) -> None:
    """Preparing is Triton's; nothing else runs between, and nothing waits for the device."""
    entries = clip_like(4000, 64, "text", 1, np.float16)
    queries = torch.from_numpy(clip_like(128, 64, "image", 2, np.float16))
    backend = DeviceBackend(
        entries, 5, device="cpu", engine=engine_of(), options=DeviceOptions(rows=64)
    )
    backend.search_tensors(queries)
    names = ["best_kernel", "threshold_kernel", "hits_kernel", "rank_kernel"]
    assert [[name for name, *_ in model.launched] for model in models] == [names, names]
    for model in models:
        for _, programs, threads, shared in model.launched:
            assert programs > 0
            assert threads % 32 == 0
            assert shared <= 227 << 10


def test_what_has_no_room_is_searched_again_with_more(models: list[HopperModel]) -> None:
    entries = clip_like(4000, 64, "text", 1, np.float16)
    queries = clip_like(40, 64, "image", 2, np.float16)
    entries[1000:1400] = entries[7]  # of which a query has all or none as candidates
    queries[5] = entries[7]
    options = DeviceOptions(capacity=64)
    backend = DeviceBackend(entries, 5, device="cpu", engine=engine_of(), options=options)
    counted = assert_exact(backend, entries, queries, 5)
    assert counted.full_rows == 0
    assert len(models) == 2  # all of them, and then the few that need more
    assert 0 < counted.second_rows < 40


@pytest.mark.parametrize("k", [10, 40])
def test_near_entries_are_searched_with_more_room(k: int, models: list[HopperModel]) -> None:
    """All queries have more candidates than is usual, and none is compared with every entry."""
    entries = clustered(6000, 128, 1, dtype=np.float16)
    queries = clip_like(32, 128, "image", 2, np.float16)
    backend = DeviceBackend(entries, k, device="cpu", engine=engine_of())
    counted = assert_exact(backend, entries, queries, k)
    assert counted.second_rows > (16 if k == 10 else 0)
    assert counted.full_rows == 0
    assert counted.candidates < 1500 * len(queries)
    rooms = [next(shared for name, *_, shared in one.launched if name == "rank_kernel")
             for one in models]  # fmt: skip
    assert rooms[1] <= 16 * 2048  # many of them rank beside each other


def test_what_nothing_certifies_is_not_tried_again_and_again(models: list[HopperModel]) -> None:
    rng = np.random.default_rng(10)
    entries = rng.standard_normal((1, 48)) + 1e-14 * rng.standard_normal((2500, 48))
    queries = rng.standard_normal((4, 48))
    backend = DeviceBackend(entries, 5, device="cpu", engine=engine_of())
    assert assert_exact(backend, entries, queries, 5).full_rows == 4
    assert len(models) == 2


def test_rows_that_are_not_numbers_are_named(models: list[HopperModel]) -> None:
    entries = clip_like(2000, 64, "text", 1)
    queries = clip_like(50, 64, "image", 2)
    queries[13, 5] = np.nan
    queries[37, 0] = np.inf
    backend = DeviceBackend(entries, 3, device="cpu", engine=engine_of())
    with pytest.raises(InvalidInputError, match=r"NaN or infinity in row\(s\) 13, 37"):
        backend.search_tensors(torch.from_numpy(queries))


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("dim", [64, 128, 192, 512])
def test_codes_are_arranged_and_found_again(tile: int, dim: int) -> None:
    codes = torch.randint(-127, 128, (384, dim), dtype=torch.int8)
    turned = arranged(codes, tile)
    assert turned.is_contiguous()
    plain = plain_codes(turned)
    assert torch.equal(plain[:, :dim], codes)
    assert not plain[:, dim:].any()
    # Eight neighbouring rows have their sixteens of a column in eight different places.
    marked = torch.zeros((tile, 128), dtype=torch.int8)
    marked[:, 16:32] = 1
    places = arranged(marked, tile)[0, 0].view(tile, 8, 16)[:8, :, 0].argmax(1)
    assert sorted(places.tolist()) == list(range(8))


def test_shapes_fit_what_a_multiprocessor_has() -> None:
    assert fitting_shape(depth_of(512)) == ProductShape(128, 3, 3)
    for dim in (40, 512, 640, 768, 1024, 1152, 1280, 1536):
        shape = fitting_shape(depth_of(dim))
        assert shape is not None
        assert shape.shared_bytes(depth_of(dim)) <= 227 << 10
        assert shape.threads * shape.registers(depth_of(dim)) <= 65536
        assert why_no_hopper(dim, INT8) == hopper_launch.find_compiler()[1]
    assert fitting_shape(4096) is None
    assert "4096 coordinates are too many" in why_no_hopper(4096, INT8)
    assert "not bfloat16" in why_no_hopper(512, BFLOAT16)


@pytest.mark.parametrize("n", [1, 100, 4096, 65536])
@pytest.mark.parametrize("size", [300, 2000, 20_000, 100_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_plans(n: int, size: int, k: int) -> None:
    for shape in (ProductShape(128, 3, 3), ProductShape(64, 2, 3)):
        plan = plan_search(n, size, k, shape, 132)
        tiles = -(-size // 128) * (128 // shape.tile)
        assert plan.sample <= tiles
        assert plan.row_tiles * shape.queries >= n
        assert (plan.parts - 1) * plan.share < tiles <= plan.parts * plan.share
        assert plan.parts <= 32  # a lane of the ranking warp for each
        blocks = plan.sample * 4 * plan.split
        assert blocks >= min(k, tiles * 16)
        if plan.sample < tiles:
            assert blocks >= 16 * k


def test_lists_have_room_for_what_reaches_a_samples_threshold() -> None:
    """As measured by the bounds themselves on CLIP-like data."""
    size, k = 40_000, 10
    entries = torch.from_numpy(clip_like(size, 96, "text", 1, np.float16))
    queries = torch.from_numpy(clip_like(300, 96, "image", 2, np.float16))
    codes = EntryCodes(entries, 128, 32, INT8)
    codes.set_centre(queries.float().mean(0))
    prepared = codes.prepare(queries)
    plan = plan_search(65_536, size, k, ProductShape(128, 3, 3), 132)
    scores = prepared.codes.double() @ codes.codes.double().T + prepared.alpha[:, None] * codes.lift
    step = codes.tile_step.repeat_interleave(128)
    bound = prepared.per_norm[:, None] * codes.tile_norm
    bound = (bound + prepared.per_residual[:, None] * codes.tile_residual).repeat_interleave(128, 1)
    scores = scores * step
    scores[:, size:] = -torch.inf
    lower = (scores - bound)[:, : plan.sample * 128].view(300, plan.sample, 16, 4, 2)
    best = lower.transpose(2, 3).reshape(300, plan.sample * 4 * plan.split, -1).amax(2)
    listed = (scores + bound >= best.topk(k, dim=1).values[:, -1:]).sum(1)
    assert listed.max() < plan.expected
    assert listed.max() < 4 * max(256, 8 * k, plan.expected // 4)


def test_shared_memory_of_a_kernel_is_only_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch with less must not lower what one with more was allowed."""
    module = hopper_launch.Module.__new__(hopper_launch.Module)
    module._functions = {}
    module._module = ctypes.c_void_p(1)
    allowed: list[int] = []

    def check(call: str, *arguments: Any) -> None:
        if call == "cuFuncSetAttribute":
            allowed.append(arguments[2])

    monkeypatch.setattr(module, "_check", check)
    for shared in (4000, 40_000, 4000, 20_000, 50_000, 40_000):
        module._function("threshold_kernel", shared)
    assert allowed == [4000, 40_000, 50_000]


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "CUDA's run-time compiler is not installed: pip install nvidia-cuda-nvrtc"
    monkeypatch.setattr(hopper_launch, "find_compiler", lambda: (None, reason))
    assert why_no_hopper(512, INT8) == reason
    with pytest.raises(MissingDependencyError, match="pip install nvidia-cuda-nvrtc"):
        hopper_launch.compile_kernels.__wrapped__((("DIM", 512),))


def macros_of(dim: int, shape: ProductShape, split: int, kinds: tuple[int, int]) -> Any:
    macros = {
        "DIM": dim, "CODE_DIM": -(-dim // 64) * 64, "QUERY_KIND": kinds[0], "ENTRY_KIND": kinds[1],
        "TILE": shape.tile, "GROUPS": shape.groups, "STAGES": shape.stages,
        "SHARED_CHUNKS": shape.shared_chunks, "SPLIT": split,
    }  # fmt: skip
    return tuple(sorted(macros.items()))


@pytest.mark.skipif(bool(hopper_launch.find_compiler()[1]), reason="no run-time compiler of CUDA")
@pytest.mark.parametrize(
    ("dim", "split", "kinds"), [(512, 1, (0, 0)), (768, 2, (1, 1)), (100, 4, (0, 1))]
)
def test_machine_code(dim: int, split: int, kinds: tuple[int, int], tmp_path: Path) -> None:
    """int8 products of the tensor cores, and no more registers than there are."""
    shape = fitting_shape(depth_of(dim))
    assert shape is not None
    code = hopper_launch.compile_kernels(macros_of(dim, shape, split, kinds))
    assert code[:4] == b"\x7fELF"
    triton = pytest.importorskip("triton")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    path = tmp_path / "kernels.cubin"
    path.write_bytes(code)
    usage = _printed(tools / "cuobjdump", "-res-usage", path)
    used = dict(re.findall(r"Function (\w+):\s+REG:(\d+)", usage))
    stacks = dict(re.findall(r"Function (\w+):\s+REG:\d+ STACK:(\d+)", usage))
    for name in ("best_kernel", "hits_kernel"):
        assert int(used[name]) <= shape.registers(depth_of(dim)) + 4
        assert int(stacks[name]) == 0
        assert shape.threads * -(-int(used[name]) // 8) * 8 <= 65536
    assembly = _printed(tools / "nvdisasm", path)
    products = re.findall(r"IGMMA\.\d+x(\d+)x32\.S8\.S8", assembly)
    assert len(products) == 2 * depth_of(dim) // 32  # one tile in each of the two kernels
    assert set(products) == {str(shape.tile)}


def _printed(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_engines_say_what_they_are() -> None:
    assert isinstance(torch_engine(), ProposalEngine)
    assert engine_of().describe(torch.device("cpu")).startswith("hopper int8 on processor")


@pytest.mark.parametrize(
    ("capability", "missing", "name", "why"),
    [
        ((7, 5), "", "torch int8", "7.5 is below 8.0"),
        ((8, 0), "", "triton int8", "not yet run on compute capability 8.0"),
        ((9, 0), "", "hopper int8", ""),
        ((9, 0), "no compiler here", "triton int8", "no compiler here"),
        ((10, 0), "", "triton int8", "not yet run on compute capability 10.0"),
    ],
)
def test_every_card_has_its_kernels(
    capability: tuple[int, int], missing: str, name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from bliss_index.search.device import engine
    from bliss_index.search.triton import proposals as triton_proposals

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(triton_proposals, "shared_memory", lambda device: 227 << 10)
    monkeypatch.setattr(hopper_launch, "find_compiler", lambda: (None, missing))
    chosen = engine.choose_engine(torch.device("cuda"), 512)
    assert chosen.name == name
    assert why in chosen.reason
    assert bool(why) == bool(chosen.reason)
