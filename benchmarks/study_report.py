"""Size of the report, the time it takes and its memory, by the number of rows.

    python benchmarks/study_report.py FOLDER --json benchmarks/results/report_size.json

Scores synthetic images (d = 64, 3,000 entries, 40 classes, entries, a threshold) into FOLDER,
which takes about 0.6 GB, and makes a report of them, each in a process of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from machine import describe_machine, run_command, write_result
from make_embeddings import make_corpus, make_images

DIM, ENTRIES, CLASSES = 64, 3000, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "calibration").exists():
        make_corpus(folder, ENTRIES, CLASSES, DIM)
    reports: dict[str, Any] = {}
    for rows in given.rows:
        images, scores = folder / f"images-{rows}", folder / f"scores-{rows}"
        if not images.exists():
            make_images(images, rows, DIM)
        run_command(
            "score", images, "--corpus", folder / "corpus", "--out", scores,
            "--calibration", folder / "calibration", "--explain", "--threshold", 3,
        )  # fmt: skip
        report, peak = run_command("report", scores, "--out", folder / f"report-{rows}.html")
        reports[str(rows)] = {
            "bytes": report["bytes"], "seconds": report["seconds"], "peak_mib": peak,
        }  # fmt: skip
    write_result(given.json, {"machine": describe_machine(2), "reports": reports})


if __name__ == "__main__":
    main()
