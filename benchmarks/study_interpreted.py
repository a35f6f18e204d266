"""Exactness of the GPU kernels on a processor, and how many candidates their bounds leave.

    python benchmarks/study_interpreted.py --json benchmarks/results/gpu_kernels_interpreted.json

Triton's interpreter runs the kernels on CPU tensors, with the blocks, samples and lists that they
have on a GPU; ids and similarities are compared with float64 brute force. No times are taken.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
from gpu.cases import make_case
from machine import describe_machine

from bliss_index.bench.synthetic import clip_like
from bliss_index.search import reference_search
from bliss_index.search.device.backend import DeviceBackend
from bliss_index.search.device.codes import FORMATS
from bliss_index.search.device.engine import triton_engine
from bliss_index.search.triton.proposals import TileShape, TritonProposals

_QUERIES = 32  # the fewest for which queries are centred
_SHAPE = TileShape(queries=32, entries=128, warps=4, stages=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 20_000, 100_000, 1_000_000])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cases = [
        ("clip", size, dim, k, form)
        for size in given.sizes
        for dim in (512, 768)
        for k in (1, 10, 100)
        for form in (FORMATS if size <= 100_000 else ("int8",))
    ]
    cases += [
        (kind, 20_000, 512, 10, form)
        for kind in ("duplicates", "near ties", "sorted", "any norm")
        for form in FORMATS
    ]
    found = []
    for case in cases:
        found.append(compare(*case))
        print(json.dumps(found[-1]), flush=True)
        if given.json is not None:
            facts = {"machine": describe_machine(1), "queries": _QUERIES, "cases": found}
            given.json.write_text(json.dumps(facts, indent=1) + "\n")


def compare(kind: str, size: int, dim: int, k: int, form: str) -> dict[str, Any]:
    """Search once with the kernels and once by brute force."""
    entries, queries = make_case(
        kind,
        clip_like(size, dim, "text", 1, np.float16),
        clip_like(_QUERIES, dim, "image", 2, np.float16),
    )
    engine = triton_engine(TritonProposals(_SHAPE, FORMATS[form]))
    backend = DeviceBackend(entries, k, device="cpu", engine=engine)
    values, ids, counted = backend.search(queries, 0)
    similarities, expected = reference_search(entries, queries, k)
    return {
        "data": kind, "entries": size, "dim": dim, "k": k, "codes": form,
        "same_ids": bool((ids == expected).all()),
        "same_similarities": bool((values.astype(np.float32) == similarities).all()),
        "candidates_per_query": round(counted.candidates / _QUERIES, 1),
        "rescored_per_query": round(counted.rescored / _QUERIES, 1),
        "full_rows": counted.full_rows,
    }  # fmt: skip


if __name__ == "__main__":
    main()
