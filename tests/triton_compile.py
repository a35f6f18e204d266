"""Compiles the Triton kernels to machine code without a GPU and prints what is in it, as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bliss_index.search.triton import block_kernels, kernels
from bliss_index.search.triton.proposals import TILE, TileShape

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
SHAPE = TileShape()
BEST = {
    "query_codes": "*i8", "query_alpha": "*fp32", "entry_codes": "*i8", "entry_lift": "*fp32",
    "best": "*i64", "n": "i32", "size": "i32", "blocks": "i32", "row_tiles": "i32", "share": "i32",
}  # fmt: skip
BOUNDS = {
    "per_norm": "*fp32", "per_residual": "*fp32", "slack": "*fp32", "tile_step": "*fp32",
    "tile_norm": "*fp32", "tile_residual": "*fp32", "threshold": "*fp32", "blocks": "i32",
    "k": "i32", "segments": "i32", "room": "i32",
}  # fmt: skip
LISTS = {"count": "*i32", "found": "*i32", "found_pair": "*i64"}
HITS = {**BEST, **BOUNDS, **LISTS, "first_block": "i32"}
SIEVE = {**BOUNDS, **LISTS, "best": "*i64"}
SELECT = {**BOUNDS, **LISTS, "found_count": "*i32", "places": "*i32", "uppers": "*fp32",
          "capacity": "i32"}  # fmt: skip
PREPARE = {
    "queries": "*fp16", "centre": "*fp32", "signs": "*fp32", "facts": "*fp32",
    "limits": "*fp64", "errors": "*fp64", "codes": "*i8",
    "alphas": "*fp32", "per_norm": "*fp32", "per_residual": "*fp32", "slacks": "*fp32",
    "units": "*fp64",
    "zeros": "*i1", "extremes": "*i1", "n": "i32", "dim": "i32",
}  # fmt: skip
RANK = {
    "queries": "*fp16", "entries": "*fp16", "count": "*i32", "places": "*i32", "uppers": "*fp32",
    "units": "*fp64", "mean": "*fp64", "order": "*i32", "ids": "*i64",
    "error": "*fp64", "scratch": "*fp64", "values": "*fp64", "best": "*i64", "doubtful": "*i1",
    "rescored": "*i32",     "dim": "i32", "k": "i32", "capacity": "i32", "size": "i32",
}  # fmt: skip
PAIRS = {
    "queries": "*fp16", "entries": "*fp16", "row": "*i64", "entry": "*i64", "values": "*fp64",
    "pairs": "i32", "dim": "i32",
}  # fmt: skip
SCORE_KERNEL = {
    "similarities": "*fp32", "ids": "*i64", "scale": "*fp32", "shift": "*fp32",
    "products": "*fp64", "mu": "*fp64", "sigma": "*fp64", "weight": "*fp64",
    "anomaly": "*fp64", "nearest": "*i64",
    "nearest_internal": "*fp64", "nearest_external": "*fp64", "n": "i32", "k": "i32",
    "classes": "i32",
}  # fmt: skip


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, int], capability: int,
             **options: Any) -> tuple[str, int]:  # fmt: skip
    """Return the PTX of a kernel, and its bytes of shared memory."""
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    done = triton.compile(source, target=target, options=options)
    return done.asm["ptx"], done.metadata.shared


def spilled_bytes(ptx: str, capability: int) -> int:
    """Registers that did not fit, as ptxas reports them."""
    name = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        done = subprocess.run(
            [PTXAS, "-v", f"--gpu-name={name}", path, "-o", "/dev/null"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    return sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", done.stderr))


def main() -> None:
    facts = {}
    for capability in (80, 90):
        products: list[tuple[str, int]] = []
        spare = []
        for codes, shape in (("*i8", SHAPE), ("*bf16", TileShape(64, 32, 4, 2))):
            constants = {
                "DIM": 512, "BM": shape.queries, "BN": shape.entries, "BK": 512, "SIZE": 32,
                "FOLDS": 2, "WIDEN": False, "STAGES": shape.stages,
            }  # fmt: skip
            kinds = {"query_codes": codes, "entry_codes": codes}
            products += [
                compiled(block_kernels.block_best_kernel, {**BEST, **kinds}, constants,
                         capability, num_warps=shape.warps),
                compiled(block_kernels.block_hits_kernel, {**HITS, **kinds},
                         {**constants, "TILE": TILE}, capability, num_warps=shape.warps),
            ]  # fmt: skip
            needed = shape.shared_bytes(512 * (1 if codes == "*i8" else 2))
            spare += [needed - shared for _, shared in products[-2:]]
        chosen = {"SIZE": 32, "IN_TILE": 4, "GROUPS": 256, "HALVINGS": 30}
        others = [
            compiled(block_kernels.sieve_kernel, SIEVE, chosen, capability, num_warps=1),
            compiled(block_kernels.select_kernel, SELECT, chosen, capability, num_warps=1),
            compiled(kernels.prepare_kernel, PREPARE,
                     {"CODE_DIM": 512, "DIM": 512, "STAGES": 9, "BM": 8}, capability),
            compiled(kernels.rank_kernel, RANK,
                     {"WIDTH": 256, "PAIRS": 8, "CHUNK": 128, "HALVINGS": 16}, capability,
                     num_warps=1),
            compiled(kernels.pairs_kernel, PAIRS, {"PAIRS": 16, "CHUNK": 128}, capability),
            compiled(kernels.score_kernel, SCORE_KERNEL, {"BM": 1, "CLASSES": 1024}, capability,
                     enable_fp_fusion=False),
        ]  # fmt: skip
        facts[str(capability)] = {
            "products": sorted(
                {
                    name
                    for ptx, _ in products
                    for name in re.findall(r"(?:wgmma\.mma_async|mma\.sync)[\w.]*", ptx)
                }
            ),
            "spilled": sum(spilled_bytes(ptx, capability) for ptx, _ in (*products, *others)),
            "spare_shared": min(spare),
            "fused_in_score_kernel": len(re.findall(r"fma\.rn\.f64", others[-1][0])),
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
