"""Everything about a GPU in one run: exactness first, then speed; JSON after every step.

    bash scripts/gpu_suite.sh gpu.json             # at most nine minutes
    python benchmarks/gpu_suite.py --device cpu --small --json try.json   # the same steps, tiny

Ways are timed in turn on the same queries, device-resident, with CUDA events; medians. Steps that
do not fit the time left are named under "skipped", with the reason. Data: clip_like, float16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import describe_machine

from bliss_index.calibration import Calibration, calibrate
from bliss_index.calibration.moments import ClassMoments
from bliss_index.device_scoring import DeviceScorer, DeviceTables
from bliss_index.search import reference_search
from bliss_index.search.device.backend import DeviceBackend
from bliss_index.search.device.engine import choose_engine, torch_engine
from bliss_index.synthetic import clip_like

Step = Callable[["Suite"], Any]
MOST_SECONDS = 520.0


class Suite:
    """The device, sizes, the time left, and what was found."""

    def __init__(self, device: str, small: bool, path: Path | None, seconds: float) -> None:
        self.device = torch.device(device)
        self.small = small
        self.path = path
        self.end = time.monotonic() + seconds
        self.results: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.engine = choose_engine(self.device)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.end - time.monotonic()

    def size(self, large: int, small: int) -> int:
        """A size, for a real run or a try."""
        return small if self.small else large

    def run(self, name: str, step: Step, needed: float) -> None:
        """Run a step if its time is there; a failure is a result too."""
        if self.left < needed:
            self.skipped[name] = f"{self.left:.0f} s left, {needed:.0f} s wanted"
        else:
            began = time.monotonic()
            try:
                self.results[name] = step(self)
            except Exception:  # the other steps are still worth running
                self.skipped[name] = traceback.format_exc(limit=4)
            print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
        self.save()

    def save(self) -> None:
        """Write what there is."""
        if self.path is not None:
            facts = {"machine": describe_device(self.device), "small": self.small}
            text = json.dumps({**facts, **self.results, "skipped": self.skipped}, indent=1)
            self.path.write_text(text + "\n")

    def tensor(self, rows: np.ndarray) -> torch.Tensor:
        """Copy rows to the device."""
        return torch.from_numpy(rows).to(self.device)

    def seconds(self, call: Callable[[], Any], rounds: int = 5) -> float:
        """Median seconds of a call on the device."""
        call()
        self.wait()
        times = []
        for _ in range(rounds):
            if self.device.type == "cuda":
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                call()
                last.record()
                self.wait()
                times.append(first.elapsed_time(last) / 1e3)
            else:
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
        return median(times)

    def in_turn(self, ways: dict[str, Callable[[], Any]], rounds: int = 5) -> dict[str, float]:
        """Median seconds of several calls, timed one after the other in every round."""
        times: dict[str, list[float]] = {name: [] for name in ways}
        for call in ways.values():
            call()
        for _ in range(rounds):
            for name, call in ways.items():
                times[name].append(self.seconds(call, 1))
        return {name: median(found) for name, found in times.items()}

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the steps")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    suite = Suite(given.device, given.small, given.json, given.seconds)
    for name, step, needed in STEPS:
        suite.run(name, step, 0 if given.small else needed)
    print(json.dumps({**suite.results, "skipped": suite.skipped}, indent=1))


def describe_device(device: torch.device) -> dict[str, Any]:
    """The host, and the card with its driver."""
    facts = describe_machine(torch.get_num_threads())
    facts["versions"].pop("faiss-cpu", None)
    if device.type == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        with contextlib.suppress(OSError):
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            facts["card"] = done.stdout.strip().splitlines()
        facts["cuda"] = torch.version.cuda
        with contextlib.suppress(ImportError):
            import triton

            facts["versions"]["triton"] = triton.__version__
    return facts


def exactness(suite: Suite) -> list[dict[str, Any]]:
    """Ids and similarities against float64 brute force."""
    cases: list[tuple[str, int, int, int]] = [
        ("clip", size, dim, k)
        for size in ((1_000, 20_000, 100_000) if not suite.small else (300, 1_500))
        for dim in ((512, 768) if not suite.small else (64,))
        for k in (1, 10, 100)
    ]
    cases += [(kind, suite.size(20_000, 900), 512 if not suite.small else 64, 10)
              for kind in ("duplicates", "near ties", "sorted", "any norm")]  # fmt: skip
    if not suite.small:
        cases.append(("clip", 1_000_000, 512, 10))
    found = []
    for kind, size, dim, k in cases:
        entries, queries = exactness_data(kind, size, dim, 32 if size > 200_000 else 128)
        expected = reference_search(entries, queries, k)
        for engine in (suite.engine, torch_engine("compared")):
            backend = DeviceBackend(entries, k, device=str(suite.device), engine=engine)
            values, ids, counted = backend.search(queries, 0)
            found.append({
                "data": kind, "entries": size, "dim": dim, "k": k, "queries": len(queries),
                "engine": engine.proposals.name,
                "same_ids": bool((ids == expected[1]).all()),
                "same_similarities": bool((values.astype(np.float32) == expected[0]).all()),
                "candidates_per_query": round(counted.candidates_per_query, 1),
                "full_rows": counted.full_rows, "resolved": counted.resolved,
            })  # fmt: skip
    return found


def exactness_data(kind: str, size: int, dim: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Entries and queries of some kind."""
    entries = clip_like(size, dim, "text", 1, np.float16)
    queries = clip_like(count, dim, "image", 2, np.float16)
    rng = np.random.default_rng(3)
    if kind == "duplicates":
        entries[size // 2 :] = entries[rng.integers(0, 50, size - size // 2)]
    elif kind == "near ties":
        entries = (entries[:1] + 1e-7 * rng.standard_normal((size, dim))).astype(np.float32)
        queries = queries.astype(np.float32)
    elif kind == "sorted":
        entries = entries[np.argsort(entries.astype(np.float32) @ queries[0].astype(np.float32))]
    elif kind == "any norm":
        entries = entries.astype(np.float64) * 10 ** rng.uniform(-6, 6, (size, 1))
        queries = queries.astype(np.float64) * 10 ** rng.uniform(-6, 6, (count, 1))
    return entries, queries


def tile_shapes(suite: Suite) -> dict[str, Any]:
    """Giga-operations per second of the integer kernel alone, by how it is cut up."""
    if suite.engine.proposals.name != "triton int8" or suite.device.type != "cuda":
        return {"why": f"the engine here is {suite.engine.describe(suite.device)}"}
    from bliss_index.search.device.codes import EntryCodes
    from bliss_index.search.device.proposals import block_size
    from bliss_index.search.device.triton_engine import TileShape, TritonProposals

    size, count, dim = 100_352, 32_768, 512
    entries = suite.tensor(clip_like(size, dim, "text", 1, np.float16))
    queries = suite.tensor(clip_like(count, dim, "image", 2, np.float16))
    found = {}
    for shape in (
        TileShape(), TileShape(128, 128, 128, 8, 4), TileShape(128, 128, 64, 8, 4),
        TileShape(64, 128, 128, 4, 4), TileShape(128, 256, 128, 8, 3),
        TileShape(256, 128, 128, 8, 3), TileShape(128, 128, 128, 4, 3),
        TileShape(128, 128, 128, 8, 3, group=16), TileShape(128, 128, 128, 8, 3, group=4),
    ):  # fmt: skip
        try:
            codes = EntryCodes(entries, shape.entries, block_size(size, shape.entries, 10))
            codes.set_centre(queries.float().mean(0))
            prepared = codes.prepare(queries)
            proposals = TritonProposals(shape)
            seconds = suite.seconds(lambda p=proposals, q=prepared, c=codes: p.block_best(q, c))
            found[str(shape)] = round(2e-9 * size * count * dim / seconds)
        except Exception as error:  # a shape that does not fit the card
            found[str(shape)] = f"{type(error).__name__}: {str(error)[:120]}"
    return found


def matrix_rates(suite: Suite) -> dict[str, float]:
    """Tera-operations per second of plain products of the same shape."""
    rows, columns, dim = suite.size(16_384, 256), suite.size(32_768, 512), 512
    kind = torch.bfloat16
    a, b = (torch.randn((n, dim), device=suite.device).to(kind) for n in (rows, columns))
    out = torch.empty((rows, columns), dtype=kind, device=suite.device)
    found = {"bfloat16": suite.seconds(lambda: torch.mm(a, b.T, out=out))}
    p, q = ((x.float() * 20).to(torch.int8) for x in (a, b))
    found["int8 (torch._int_mm)"] = suite.seconds(lambda: torch._int_mm(p, q.T))
    return {name: round(2e-12 * rows * columns * dim / s, 2) for name, s in found.items()}


def searches(suite: Suite) -> list[dict[str, Any]]:
    """Queries per second, device-resident, of all ways in turn."""
    found = []
    sizes = (100_000, 20_000, 1_000_000, 1_000) if not suite.small else (1_000,)
    for size in sizes:
        for dim in (512, 768) if not suite.small else (64,):
            entries = clip_like(size, dim, "text", 1, np.float16)
            count = suite.size(int(min(262_144, 2e10 // size)), 64)
            queries = suite.tensor(clip_like(count, dim, "image", 2, np.float16))
            for k in (10, 1, 100):
                if suite.left < 120 and (k != 10 or dim != 512):
                    continue
                found.append(compare(suite, entries, queries, k))
    return found


def compare(suite: Suite, entries: np.ndarray, queries: torch.Tensor, k: int) -> dict[str, Any]:
    """Time all ways on one vocabulary."""
    size, dim = entries.shape
    count = queries.shape[0]
    backend = DeviceBackend(entries, k, device=str(suite.device), engine=suite.engine)
    backend.search_tensors(queries[:4096])
    ways: dict[str, Callable[[], Any]] = {"exact": lambda: backend.search_tensors(queries)}
    calls = {"exact": count}
    bf16 = suite.tensor(entries).to(torch.bfloat16)
    rows = max(64, int(2e9 // (2 * size)))
    part = min(count, 16 * rows)
    ways["torch bfloat16 + topk"] = lambda: _matmul_topk(queries[:part], bf16, k, rows)
    calls["torch bfloat16 + topk"] = part
    for name, call in _faiss_ways(suite, entries, queries[:part], k):
        ways[name], calls[name] = call, part
    seconds = suite.in_turn(ways, 3)
    rates = {name: calls[name] / s for name, s in seconds.items()}
    return {
        "entries": size, "dim": dim, "k": k,
        "queries_per_second": {name: round(rate) for name, rate in rates.items()},
        "times_slower": {name: round(rates["exact"] / rate, 2) for name, rate in rates.items()},
        "tera_operations_per_second": round(2e-12 * rates["exact"] * size * dim, 1),
    }  # fmt: skip


def _matmul_topk(queries: torch.Tensor, entries: torch.Tensor, k: int, rows: int) -> None:
    for part in torch.split(queries.to(torch.bfloat16), rows):
        (part @ entries.T).topk(k, dim=1)


def _faiss_ways(
    suite: Suite, entries: np.ndarray, queries: torch.Tensor, k: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """faiss's flat GPU index, as it is (not rescored), in float32 and float16 storage."""
    try:
        import faiss
    except (ImportError, RuntimeError):
        return
    from bliss_index.search.device.faiss_tensors import FaissTensorSearch
    from bliss_index.search.faiss_build import build_index
    from bliss_index.search.faiss_gpu import gpu_count, place_index
    from bliss_index.search.faiss_search import FaissSearch

    on_gpu = suite.device.type == "cuda" and gpu_count(faiss) > 0
    if not on_gpu and not suite.small:
        return
    flat = build_index(entries, "flat", k=k)
    scaled = queries.float().contiguous()
    for storage in ("float32", "float16") if on_gpu else ("float32",):
        search = flat
        if on_gpu:
            index, placement = place_index(flat.index, "flat", "cuda:0", storage=storage)
            search = FaissSearch(index, entries, k, kind="flat", placement=placement)
        tensors = FaissTensorSearch(search, suite.engine)
        yield f"faiss flat {storage}", lambda t=tensors: t.propose(scaled, k)
        yield f"faiss flat {storage}, certified", lambda t=tensors: t.search_tensors(queries)


def stages(suite: Suite) -> dict[str, float]:
    """Where the time of a search goes: seconds of its steps, one after the other."""
    from bliss_index.search.device.codes import EntryCodes
    from bliss_index.search.device.ordering import row_errors
    from bliss_index.search.device.proposals import block_size

    size, count, dim, k = suite.size(100_000, 1_000), suite.size(32_768, 64), 512, 10
    entries = suite.tensor(clip_like(size, dim, "text", 1, np.float16))
    queries = suite.tensor(clip_like(count, dim, "image", 2, np.float16))
    engine = suite.engine
    codes = EntryCodes(entries, engine.proposals.tile, block_size(size, engine.proposals.tile, k))
    codes.set_centre(queries.float().mean(0))
    prepared = engine.prepare(codes, queries)
    hits = engine.proposals.find(prepared, codes, k, 256)
    everyone = hits.count <= 256
    error = row_errors(queries, entries, codes.longest)
    timed = {
        "prepare queries": lambda: engine.prepare(codes, queries),
        "find candidates": lambda: engine.proposals.find(prepared, codes, k, 256),
        "rescore and order": lambda: engine.rank(queries, entries, codes, hits, everyone, error, k),
    }
    block_best = getattr(engine.proposals, "block_best", None)
    if block_best is not None:
        timed["of that the products"] = lambda: block_best(prepared, codes)
    return {name: round(suite.seconds(call), 6) for name, call in timed.items()}


def scoring(suite: Suite) -> list[dict[str, Any]]:
    """Whole scoring against its search alone."""
    size, count, dim = (
        suite.size(100_000, 500),
        suite.size(65_536, 64),
        512 if not suite.small else 64,
    )
    entries = clip_like(size, dim, "text", 1, np.float16)
    queries = suite.tensor(clip_like(count, dim, "image", 2, np.float16))
    found = []
    for classes in (10, 100, 1000) if not suite.small else (3,):
        scorer = DeviceScorer(
            _TensorBackend(suite, entries, 10), entries, random_calibration(classes, dim),
            engine=suite.engine,
        )  # fmt: skip
        began = time.perf_counter()
        scorer.score_tensors(queries)
        suite.wait()
        first = time.perf_counter() - began
        seconds = suite.in_turn({
            "search": lambda s=scorer: s.find(queries),
            "scoring": lambda s=scorer: s.score_tensors(queries),
        }, 3)  # fmt: skip
        found.append({
            "classes": classes,
            "first_pass_seconds": round(first, 3),
            "search_images_per_second": round(count / seconds["search"]),
            "scoring_images_per_second": round(count / seconds["scoring"]),
            "added_to_search": round(seconds["scoring"] / seconds["search"] - 1, 3),
        })  # fmt: skip
    return found


class _TensorBackend:
    """A backend as a search, without the check for duplicates."""

    name = "exact"

    def __init__(self, suite: Suite, entries: np.ndarray, k: int) -> None:
        self.size, self.dim = entries.shape
        self.k = k
        self.device = suite.device
        self._backend = DeviceBackend(entries, k, device=str(suite.device), engine=suite.engine)

    def search(self, queries: np.ndarray, /) -> Any:
        values, ids, _ = self._backend.search(queries, 0)
        return values.astype(np.float32), ids

    def search_tensors(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids, _ = self._backend.search_tensors(queries)
        return values.float(), ids


def random_calibration(classes: int, dim: int, images: int = 32) -> Calibration:
    """Classes of few images each."""
    texts = clip_like(classes, dim, "text", 5, np.float64)
    rows = clip_like(classes * images, dim, "image", 6, np.float16)
    return calibrate([(rows, np.repeat(np.arange(classes), images))], texts)


def end_to_end(suite: Suite) -> dict[str, Any]:
    """A job from memory-mapped float16 shards to Parquet, against disk, copies and search alone."""
    from bliss_index.bulk import JobOptions, ScoreSettings, run_job
    from bliss_index.store import ModelIdentity, StoreWriter

    size, dim = suite.size(100_000, 500), 512 if not suite.small else 64
    rows, classes = suite.size(2_000_000, 300), 10
    model = ModelIdentity("ViT-B-32", "openai")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        entries = clip_like(size, dim, "text", 1, np.float16)
        with StoreWriter(place / "corpus", kind="text", model=model, dim=dim) as writer:
            names = [f"word {i}" for i in range(size)]
            writer.append(names, entries, texts=names)
        part = clip_like(suite.size(262_144, 100), dim, "image", 2, np.float16)
        with StoreWriter(place / "images", kind="image", model=model, dim=dim,
                         rows_per_shard=suite.size(262_144, 100)) as writer:  # fmt: skip
            for start in range(0, rows, len(part)):
                keys = [f"image {i}" for i in range(start, min(rows, start + len(part)))]
                writer.append(keys, part[: len(keys)])
        made = random_calibration(classes, dim)
        Calibration(made.classes, made.class_embeddings, made.moments, model).save(place / "normal")
        settings = ScoreSettings(
            str(place / "corpus"), str(place / "normal"), device=str(suite.device),
            search="cuda" if suite.device.type == "cuda" else "native",
        )  # fmt: skip
        summary = run_job(place / "images", place / "scores", settings, JobOptions())
        began = time.perf_counter()
        read = sum(int(np.fromfile(p, np.uint8).size) for p in (place / "images").glob("*.arrow"))
        disk = time.perf_counter() - began
    pinned = torch.from_numpy(part)
    if suite.device.type == "cuda":
        pinned = pinned.pin_memory()
    copying = suite.seconds(lambda: pinned.to(suite.device, non_blocking=True))
    backend = DeviceBackend(entries, 10, device=str(suite.device), engine=suite.engine)
    there = suite.tensor(part)
    backend.search_tensors(there[:4096])
    search = suite.seconds(lambda: backend.search_tensors(there), 3)
    limits = {
        "disk (cached)": read / disk / (dim * 2),
        "copies": len(part) / copying,
        "search": len(part) / search,
    }
    slowest = min(limits, key=lambda name: limits[name])
    return {
        "images": rows, "entries": size, "classes": classes,
        "images_per_second": summary.rows_per_second,
        "limits_images_per_second": {name: round(rate) for name, rate in limits.items()},
        "slowest": slowest,
        "share_of_slowest": round(summary.rows_per_second / limits[slowest], 3),
    }  # fmt: skip


def calibration(suite: Suite) -> dict[str, Any]:
    """Tables of 1000 classes x 1000 images for 100,000 entries."""
    classes, images = suite.size(1000, 3), suite.size(1000, 80)
    size, dim = suite.size(100_000, 300), 512 if not suite.small else 64
    entries = clip_like(size, dim, "text", 1, np.float16)
    rows = clip_like(images, dim, "image", 2, np.float16)
    began = time.perf_counter()
    moments = ClassMoments.of(rows)
    one = time.perf_counter() - began
    texts = clip_like(classes, dim, "text", 3, np.float64)
    names = tuple(map(str, range(classes)))
    normal = Calibration(names, texts, (moments,) * classes)
    tables = DeviceTables(entries, normal, suite.device)
    began = time.perf_counter()
    tables.require(torch.arange(size, device=suite.device))
    suite.wait()
    seconds = time.perf_counter() - began
    _, sigma = normal.statistics(entries[:100])
    difference = np.abs(tables.scale[:100].cpu().numpy() * sigma - 1).max()
    return {
        "classes": classes, "images_per_class": images, "entries": size,
        "moments_of_all_classes_seconds_on_host": round(one * classes, 2),
        "tables_seconds": round(seconds, 3),
        "largest_relative_difference": float(difference),
        "tera_flops": round(2e-12 * size * classes * dim * dim / seconds, 2),
    }  # fmt: skip


def growth(suite: Suite) -> dict[str, list[dict[str, float]]]:
    """Seconds as the vocabulary and the number of images grow."""
    dim = 512 if not suite.small else 64
    by_entries, by_images = [], []
    queries = suite.tensor(clip_like(suite.size(65_536, 64), dim, "image", 2, np.float16))
    base = clip_like(suite.size(1_000_000, 1_000), dim, "text", 1, np.float16)
    for size in (1_000, 10_000, 100_000, 1_000_000, 4_000_000) if not suite.small else (100, 1_000):
        if suite.left < 45 and not suite.small:
            break
        entries = base[:size]
        if size > len(base):
            entries = np.concatenate(
                [np.roll(base, shift, axis=1) for shift in range(size // len(base))]
            )
        count = int(min(len(queries), 6e10 // size))
        backend = DeviceBackend(entries, 10, device=str(suite.device), engine=suite.engine)
        backend.search_tensors(queries[:256])
        seconds = suite.seconds(lambda b=backend, n=count: b.search_tensors(queries[:n]), 3)
        by_entries.append({"entries": size, "images": count, "seconds": seconds})
        del backend
    backend = DeviceBackend(
        base[: suite.size(100_000, 1_000)], 10, device=str(suite.device), engine=suite.engine
    )
    backend.search_tensors(queries[:256])
    for count in (1_000, 10_000, 100_000, 1_000_000, 10_000_000) if not suite.small else (10, 100):
        if suite.left < 20 and not suite.small:
            break
        began = time.perf_counter()
        for start in range(0, count, len(queries)):
            backend.search_tensors(queries[: min(len(queries), count - start)])
        suite.wait()
        by_images.append({"images": count, "seconds": time.perf_counter() - began})
    return {"by_entries": by_entries, "by_images": by_images}


STEPS: tuple[tuple[str, Step, float], ...] = (
    ("exactness", exactness, 60),
    ("matrix_rates", matrix_rates, 10),
    ("tile_shapes", tile_shapes, 40),
    ("stages", stages, 10),
    ("searches", searches, 60),
    ("scoring", scoring, 30),
    ("end_to_end", end_to_end, 60),
    ("calibration", calibration, 20),
    ("growth", growth, 30),
)


if __name__ == "__main__":
    main()
