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
    """Tera-operations per second of finding candidates, by numbers and how the product is cut."""
    if not suite.engine.proposals.name.startswith("triton") or suite.device.type != "cuda":
        return {"why": f"the engine here is {suite.engine.describe(suite.device)}"}
    from bliss_index.search.device.codes import FORMATS, EntryCodes
    from bliss_index.search.device.proposals import block_size
    from bliss_index.search.device.triton_proposals import TILE, TileShape, TritonProposals

    size, count = 100_352, 65_536
    found: dict[str, Any] = {}
    # A shape takes seconds to compile, so only those are tried that may win.
    wide = (TileShape(128, 32, 8, 3), TileShape(64, 32, 4, 3), TileShape(64, 64, 4, 2))
    tried = {
        ("int8", 512): (*wide, TileShape(128, 32, 8, 2), TileShape(128, 64, 8, 2),
                        TileShape(128, 128, 8, 2), TileShape(256, 32, 16, 2)),
        ("int8", 768): (*wide, TileShape(128, 64, 8, 2)),
        ("bfloat16", 512): wide,
    }  # fmt: skip
    for (form, dim), shapes in tried.items():
        entries = suite.tensor(clip_like(size, dim, "text", 1, np.float16))
        queries = suite.tensor(clip_like(count, dim, "image", 2, np.float16))
        codes = EntryCodes(entries, TILE, block_size(size, TILE, 10), FORMATS[form])
        codes.set_centre(queries.float().mean(0))
        prepared = codes.prepare(queries)
        for shape in shapes:
            name = f"{form}, d = {dim}, {shape}"
            try:
                proposals = TritonProposals(shape, FORMATS[form])
                seconds = suite.seconds(
                    lambda p=proposals, q=prepared, c=codes: p.find(q, c, 10, 256)
                )
                found[name] = round(2e-12 * size * count * dim / seconds, 1)
            except Exception as error:  # a shape that does not fit the card
                found[name] = f"{type(error).__name__}: {str(error)[:120]}"
    return found


def stages(suite: Suite) -> dict[str, float]:
    """Where the time of a search goes: seconds of its steps, one after the other.

    "products alone" writes the maxima of all blocks; a search writes only those of a sample.
    """
    from bliss_index.search.device.codes import EntryCodes
    from bliss_index.search.device.ordering import row_errors
    from bliss_index.search.device.proposals import block_size

    size, count, dim, k = suite.size(100_000, 1_000), suite.size(65_536, 64), 512, 10
    entries = suite.tensor(clip_like(size, dim, "text", 1, np.float16))
    queries = suite.tensor(clip_like(count, dim, "image", 2, np.float16))
    engine = suite.engine
    tile = engine.proposals.tile
    codes = EntryCodes(entries, tile, block_size(size, tile, k), engine.proposals.form)
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
        timed["products alone"] = lambda: block_best(prepared, codes)
    return {name: round(suite.seconds(call), 6) for name, call in timed.items()}
