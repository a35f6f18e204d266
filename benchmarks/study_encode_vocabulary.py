"""Peak memory of reading, deduplicating and encoding word lists, on disk and in memory.

    python benchmarks/study_encode_vocabulary.py FOLDER \
        --json benchmarks/results/encode_vocabulary_memory.json

Lists of made-up lines, a fifth of them repeated, are read by ``spool_vocabulary`` (as
``encode-text`` does) and by ``load_vocabulary``; then lists of two sizes are encoded by bliss-tiny
to see what grows. Every measurement is a process of its own; peak memory is its largest
resident set. FOLDER takes a few hundred MB and is left as it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, peak_memory_mib, write_result

_REPEATED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lines", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--encoded", type=int, nargs="+", default=[50_000, 250_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(*measure(given.only, given.folder))
        return
    result: dict[str, Any] = {
        "benchmark": "encode_vocabulary",
        "machine": describe_machine(given.threads),
        "repeated": f"every {_REPEATED}th line",
        "read": {},
        "encoded": {},
    }
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for count in given.lines:
            words = write_lines(Path(folder) / f"{count}.txt", count)
            result["read"][str(count)] = {
                "file_mib": round(words.stat().st_size / 2**20),
                **{way: in_process(way, words) for way in ("nothing", "disk", "memory")},
            }
        for count in given.encoded:
            words = write_lines(Path(folder) / f"{count}.txt", count)
            result["encoded"][str(count)] = in_process("encode", words)
    write_result(given.json, result)


def write_lines(path: Path, count: int) -> Path:
    """Lines of two or three made-up words; every fifth repeats an earlier line."""
    random = np.random.default_rng(count)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    syllables = ["".join(random.choice(letters, 3)) for _ in range(2000)]
    with path.open("w") as file:
        for row in range(count):
            number = int(random.integers(row + 1)) if row % _REPEATED == 0 else row
            parts = [syllables[(number * factor + 7) % 2000] for factor in (1, 31, 977)]
            file.write(f"{parts[0]}{parts[1]} {parts[2]} {number}\n")
    return path


def in_process(way: str, words: Path) -> dict[str, Any]:
    """Run one measurement in its own process."""
    command = [sys.executable, __file__, str(words), "--only", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    entries, seconds, peak = done.stdout.split()
    return {"entries": int(entries), "seconds": float(seconds), "peak_mib": float(peak)}


def measure(way: str, words: Path) -> tuple[int, float, float]:
    """Entries, seconds and peak MiB of one way."""
    from bliss_index.encode.spooled_vocabulary import spool_vocabulary
    from bliss_index.encode.text_work import encode_text_store
    from bliss_index.vocabulary import DEFAULT_TEMPLATE, load_vocabulary

    began = time.perf_counter()
    entries = 0
    if way == "memory":
        entries = len(load_vocabulary(words))
    elif way == "disk":
        with spool_vocabulary(words, words.parent) as vocabulary:
            entries = sum(1 for _ in vocabulary)
    elif way == "encode":
        from bliss_index.encode import load_encoder

        encoder = load_encoder("bliss-tiny", device="cpu")
        began = time.perf_counter()
        with spool_vocabulary(words, words.parent) as vocabulary:
            out = words.with_suffix("")
            encode_text_store(encoder, vocabulary, out, templates=[DEFAULT_TEMPLATE])
            entries = len(vocabulary)
    return entries, round(time.perf_counter() - began, 1), round(peak_memory_mib(), 1)


if __name__ == "__main__":
    main()
