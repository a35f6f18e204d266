"""Speed of the kernels alone: plain products, tile shapes, the stages of one search."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bliss_index.synthetic import clip_like
from gpu.suite import Suite


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
