"""Let writing, syncing, linking, renaming and opening of the output fail or kill, in all works.

    python scripts/fault_test.py --times 3 --json benchmarks/results/fault_test.json

For every work, call and fault: the command runs with the n-th such call failing (n at random, up to
the number of calls in a whole run). It must end with exit code 0, or with 1 and one message, or be
killed; the same command again must end well, and its files be those of a run without faults. With
--json, works are added to those that the file holds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from job_fixtures import result
from machine import describe_machine, write_result

FAULTS = {
    "write": ("ENOSPC", "EIO", "EINTR", "short", "kill"),
    "fsync": ("EIO", "kill"),
    "link": ("ENOSPC", "EIO", "kill"),
    "rename": ("EIO", "kill"),
    "open": ("ENOSPC", "EIO", "kill"),
}


def prepared(
    folder: Path, *, shards: int = 4, files: int = 1, rows: int = 140_000, words: int = 300,
    pictures: int = 300,
) -> dict[str, list[str]]:  # fmt: skip
    """Inputs of all works, of so many parts or rows, and their commands without the output."""
    from bulk_fixtures import make_job
    from PIL import Image

    job = make_job(folder / "job", shards=shards)
    rng = np.random.default_rng(0)
    (folder / "rows").mkdir()
    for number in range(files):
        values = rng.normal(size=(rows, 4)).astype(np.float32)
        np.save(folder / "rows" / f"{number:04}.npy", values)
    (folder / "words.txt").write_text("".join(f"word {i}\n" for i in range(words)))
    (folder / "pictures").mkdir()
    for number in range(pictures):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:05}.png")
    tiny = ["--model", "bliss-tiny", "--device", "cpu"]
    return {
        "import": ["import", str(folder / "rows"), "--kind", "image", "--model", "m"],
        "score": ["score", str(job.images), "--corpus", str(job.corpus), "--calibration",
                  str(job.calibration), "-k", "5", "--search", "native", "--devices", "cpu",
                  "--threads", "1"],
        "encode-text": ["encode-text", str(folder / "words.txt"), *tiny],
        "encode-images": ["encode-images", str(folder / "pictures"), *tiny, "--decoders", "0"],
    }  # fmt: skip


def run(command: list[str], out: Path, **faults: str) -> subprocess.CompletedProcess[str]:
    """Run a command, perhaps with a fault."""
    return subprocess.run(
        [sys.executable, "-m", "bliss_index", *command, "--workers", "1", "--out", str(out)],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **faults},
    )  # fmt: skip


def main() -> int:
    """Run all, count what happened, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1, help="of each work, call and fault")
    parser.add_argument("--works", nargs="+", help="by default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    counts: dict[str, Counter[str]] = {}
    bad = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shim = folder / "faults.so"
        source = Path(__file__).with_name("faults.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        for work, command in prepared(folder).items():
            if given.works and work not in given.works:
                continue
            done = run(command, folder / f"{work}-whole")
            assert done.returncode == 0, done.stderr
            whole = result(folder / f"{work}-whole")
            counts[work] = Counter()
            cases = [(c, k) for c, kinds in FAULTS.items() for k in kinds] * given.times
            for number, (call, kind) in enumerate(cases):
                out, told = folder / f"{work}-{number}", folder / f"told-{work}-{number}"
                done = run(
                    command, out, LD_PRELOAD=str(shim), FAULT_FOLDER=str(out), FAULT_CALL=call,
                    FAULT_KIND=kind, FAULT_AT=str(rng.integers(1, 14)), FAULT_TOLD=str(told),
                )  # fmt: skip
                case = f"{work}, {call} {kind}"
                last = done.stderr.strip().splitlines()[-1:] or [""]
                ends = done.returncode in (0, -9) or (done.returncode == 1 and "error: " in last[0])
                if not ends or "Traceback" in done.stderr:
                    bad.append(f"{case}: exit code {done.returncode}: {done.stderr[-400:]}")
                counts[work]["struck" if told.exists() else "not reached"] += 1
                counts[work][f"exit code {done.returncode}"] += 1
                again = run(command, out)
                if again.returncode or result(out) != whole:
                    bad.append(f"{case}: then {again.returncode}: {again.stderr[-400:]}")
            print(work, dict(counts[work]), flush=True)
    for line in bad:
        print(line)
    if given.json:
        before = json.loads(given.json.read_text()) if given.json.exists() else {"works": {}}
        found = {work: dict(sorted(count.items())) for work, count in counts.items()}
        works = {**before["works"], **found}
        bad = before.get("bad", []) + bad
        write_result(given.json, {"machine": describe_machine(1), "works": works, "bad": bad})
    print(json.dumps({"bad": len(bad)}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
