"""Search, its start and tables by two checkouts of this project in turn: what a change did to them.

    python benchmarks/study_engine_commits.py --before ../older --json result.json

Both sides get the same entries, with the clusters that real vocabularies have, and the same images.
Each checkout holds its compiled extension in ``bliss_index/search``. Times are of the processor,
over all threads, beside those of the clock: a shared machine disturbs the first less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe_machine, set_fast_blas, write_result

from bliss_index.bench.synthetic import clip_like, clustered

ROOT = Path(__file__).parents[1]
THREADS = 2

# What a process of its own measures. An editable installation would come before the checkout.
MEASURE = """
import json, sys, time
sys.meta_path = [f for f in sys.meta_path if "Redirect" not in type(f).__name__]
sys.path.insert(0, sys.argv[1])
import numpy as np
from bliss_index.search import exact_search
folder, what = sys.argv[2], json.loads(sys.argv[3])
def timed(run):
    wall, processor = time.perf_counter(), time.process_time()
    value = run()
    seconds = time.perf_counter() - wall, time.process_time() - processor
    return value, dict(zip(("seconds", "processor_seconds"), (round(s, 4) for s in seconds)))
images = np.load(folder + "/images.npy")
if "entries" in what:
    entries = np.load(folder + f"/entries-{what['entries']}.npy").astype(what["dtype"])
    search, start = timed(lambda: exact_search(entries, what["k"], threads=2))
    search.search(images[:64])
    found, run = timed(lambda: search.search(images[:what["images"]]))
    counted = search.statistics
    result = {"prepare": start, "search": run, "full_rows": counted.full_rows,
              "digest": int(np.bitwise_xor.reduce(found[1].view(np.uint64), axis=None))}
else:
    from bliss_index.calibration import calibrate
    from bliss_index.scoring.tables import ExternalTables
    classes, each = what["classes"], what["images_a_class"]
    normal = np.tile(images, (-(-classes * each // len(images)), 1))[:classes * each]
    rng = np.random.default_rng(1)
    normal = normal + 0.02 * rng.standard_normal(normal.shape, dtype=np.float32)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    texts = np.load(folder + "/entries-20000.npy")
    labels = np.repeat(np.arange(classes), each)
    calibration = calibrate([(normal, labels)], texts[:classes].astype(np.float64))
    tables = ExternalTables(texts[:what["rows"]], calibration)
    _, run = timed(lambda: tables.require(np.arange(what["rows"])))
    result = {"tables": run, "known": int(tables.known)}
print(json.dumps(result))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--after", type=Path, default=ROOT, help="by default this one")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 20_000, 100_000, 1_000_000])
    parser.add_argument("--dtypes", nargs="+", default=["float16", "float32"])
    parser.add_argument("--ks", type=int, nargs="+", default=[10])
    parser.add_argument("--no-tables", action="store_true", help="of checkouts without that module")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    set_fast_blas(THREADS)
    sides = {"before": given.before.resolve(), "after": given.after.resolve()}
    sizes = sorted({*given.sizes} if given.no_tables else {20_000, *given.sizes})
    cases: list[dict[str, Any]] = [
        {"entries": size, "dtype": dtype, "k": k, "images": min(8192, max(256, 2**29 // size))}
        for size in given.sizes for dtype in given.dtypes for k in given.ks
    ]  # fmt: skip
    cases += (
        []
        if given.no_tables
        else [
            {"classes": classes, "images_a_class": each, "rows": rows}
            for classes, each, rows in ((100, 20, 20_000), (100, 200, 5000), (20, 1000, 5000))
        ]
    )
    result: dict[str, Any] = {"machine": describe_machine(THREADS), "dim": given.dim, "cases": []}
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/images.npy", clip_like(8192, given.dim, "image", 1))
        for size in sizes:
            np.save(f"{folder}/entries-{size}.npy", clustered(size, given.dim, 2, dtype="float16"))
        for case in cases:
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for turn in range(given.rounds):
                for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                    command = [sys.executable, "-c", MEASURE, sides[side], folder, json.dumps(case)]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    runs[side].append(json.loads(done.stdout))
            result["cases"].append({**case, "runs": runs, "before_over_after": _ratios(runs)})
            print(json.dumps({**case, **result["cases"][-1]["before_over_after"]}), flush=True)
            write_result(given.json, result)


def _ratios(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """How many times as long the older side takes: medians of the pairs."""
    pairs = list(zip(runs["before"], runs["after"], strict=True))
    return {
        f"{step} {what}": round(median(a[step][what] / b[step][what] for a, b in pairs), 3)
        for step in ("prepare", "search", "tables") if step in runs["before"][0]
        for what in ("seconds", "processor_seconds")
    }  # fmt: skip


if __name__ == "__main__":
    main()
