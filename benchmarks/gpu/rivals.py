"""What else a GPU can do with the same queries, and how fast it multiplies at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpu.bench import Bench, to_host
from gpu.protocol import UnavailableError

_CHUNKS = (2_048, 8_192)
_SCORE_BYTES = 4e9
_PRODUCTS = 8  # in one timed call


@dataclass(frozen=True, eq=False)
class Way:
    """A call, and how many queries it answers or how many operations or bytes it takes."""

    call: Callable[[], Any]
    amount: float


def torch_ways(entries: torch.Tensor, queries: torch.Tensor, k: int) -> dict[str, Way]:
    """torch's bfloat16 product and topk, which is not exact, in two sizes of chunks."""
    texts = entries.to(torch.bfloat16)
    images = queries.to(torch.bfloat16)
    most = max(64, int(_SCORE_BYTES // (2 * entries.shape[0])))
    found = {}
    for rows in dict.fromkeys(min(most, size) for size in _CHUNKS):
        some = images[: 4 * rows]
        found[f"torch bfloat16 + topk, {rows} at once"] = Way(
            lambda some=some, rows=rows: _product_top_k(some, texts, k, rows), some.shape[0]
        )
    return found


def _product_top_k(queries: torch.Tensor, entries: torch.Tensor, k: int, rows: int) -> None:
    for part in torch.split(queries, rows):
        (part @ entries.T).topk(k, dim=1)


def faiss_ways(
    bench: Bench, entries: torch.Tensor, queries: torch.Tensor, k: int
) -> dict[str, Way]:
    """faiss's flat index on the GPU, as it is and certified, in float32 and float16.

    Raises
    ------
    UnavailableError
        faiss cannot be imported, or sees no GPU.
    """
    try:
        import faiss
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(f"faiss cannot be imported: {error}") from error
    from bliss_index.search.faiss.build import build_index
    from bliss_index.search.faiss.gpu import gpu_count, place_index
    from bliss_index.search.faiss.search import FaissSearch
    from bliss_index.search.faiss.tensors import FaissTensorSearch

    on_gpu = bench.device.type == "cuda"
    if on_gpu and gpu_count(faiss) == 0:
        raise UnavailableError(f"faiss {faiss.__version__} sees no GPU")
    rows = to_host(entries)
    flat = build_index(rows, "flat", k=k)
    scaled = queries.float().contiguous()
    found = {}
    for storage in ("float32", "float16") if on_gpu else ("float32",):
        search = flat
        if on_gpu:
            index, placement = place_index(flat.index, "flat", "cuda:0", storage=storage)
            search = FaissSearch(index, rows, k, kind="flat", placement=placement)
        tensors = FaissTensorSearch(search, bench.engine())
        found[f"faiss flat {storage}"] = Way(
            lambda t=tensors: t.propose(scaled, k), queries.shape[0]
        )
        found[f"faiss flat {storage}, certified"] = Way(
            lambda t=tensors: t.search_tensors(queries), queries.shape[0]
        )
    return found


def matrix_ways(bench: Bench, shapes: dict[str, tuple[int, int, int]]) -> dict[str, Way]:
    """Plain products of (rows, columns, dim) in bfloat16 and int8; amounts are operations."""
    found = {}
    for name, (rows, columns, dim) in shapes.items():
        a, b = (
            torch.randn((size, dim), device=bench.device).bfloat16() for size in (rows, columns)
        )
        p, q = ((part * 20).to(torch.int8) for part in (a, b))
        out = torch.empty((rows, columns), dtype=torch.bfloat16, device=bench.device)
        amount = 2.0 * rows * columns * dim * _PRODUCTS
        found[f"bfloat16, {name}"] = Way(
            lambda a=a, b=b, out=out: _repeat(lambda: torch.mm(a, b.T, out=out)), amount
        )
        found[f"int8, {name}"] = Way(
            lambda p=p, q=q: _repeat(lambda: torch._int_mm(p, q.T)), amount
        )
    return found


def _repeat(call: Callable[[], Any]) -> None:
    for _ in range(_PRODUCTS):
        call()


def copy_way(bench: Bench, count: int) -> Way:
    """A copy of bytes on the device; the amount counts those read and those written."""
    source = torch.zeros(count, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return Way(lambda: target.copy_(source), 2.0 * count)
