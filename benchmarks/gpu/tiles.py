"""How fast a search is with Triton's product cut in one way or another."""

from __future__ import annotations

from typing import Any

from bliss_index.search.device.backend import DeviceBackend
from bliss_index.search.device.codes import FORMATS
from bliss_index.search.device.engine import triton_engine
from gpu.bench import Bench, to_host

_ROUNDS = 3


def tile_shape(
    bench: Bench, entries: int, dim: int, k: int, queries: int, codes: str, shape: list[int]
) -> dict[str, Any]:
    """Time a whole search; the shape is queries, entries, warps and stages."""
    from bliss_index.search.triton.proposals import TileShape, TritonProposals

    texts = to_host(bench.draw(entries, dim, "text", 1))
    images = bench.draw(queries, dim, "image", 2)
    engine = triton_engine(TritonProposals(TileShape(*shape), FORMATS[codes]))
    backend = DeviceBackend(texts, k, device=str(bench.device), engine=engine)
    bench.warm(backend, images)
    seconds = bench.seconds(lambda: backend.search_tensors(images), _ROUNDS)
    return {
        "engine": backend.description,
        "images_per_second": round(queries / seconds, 1),
        "equivalent_tera_operations_per_second": round(
            2e-12 * queries * entries * dim / seconds, 2
        ),
    }
