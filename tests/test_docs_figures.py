"""Figures in the pages are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = {
    "BLISS": "bliss", "label term alone": "label", "raw similarity to the nearest label": "raw",
    "MCM, temperature 1": "mcm", "NegLabel": "neglabel", "nearest calibration images, 5": "knn",
}  # fmt: skip


@pytest.fixture(scope="module")
def caltech():
    path = ROOT / "benchmarks" / "results" / "sensitivity_caltech101.json"
    return json.loads(path.read_text())


def table_after(heading: str) -> dict[str, list[str]]:
    """First cells and the others of the first table below a heading of docs/choosing.md."""
    text = (ROOT / "docs" / "choosing.md").read_text().split(f"## {heading}\n", 1)[1]
    lines = text[text.index("| ") :].split("\n\n")[0].splitlines()[2:]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_the_table_of_detectors(caltech):
    table = table_after("Against other detectors")
    assert set(table) == set(ROWS)
    for title, name in ROWS.items():
        for cell, protocol in zip(
            table[title], ("one-class", "6 normal", "all-but-one"), strict=True
        ):
            found = caltech["detectors"][protocol][name]["auroc"]
            mean, _, deviation = cell.partition(" ± ")
            assert mean == f"{100 * found['mean']:.2f}", (title, protocol)
            assert float(deviation or 0) == pytest.approx(100 * found["std"], abs=0.0051)


def test_the_tables_of_lists_and_of_calibration_images(caltech):
    lists = caltech["vocabulary_list"]
    table = table_after("Vocabulary")
    assert [int(row[0].replace(",", "")) for row in table.values()] == lists["entries"]
    for number, row in enumerate(table.values()):
        for cell, protocol in zip(row[1:], lists["auroc"], strict=True):
            assert cell == f"{100 * lists['auroc'][protocol][number]['mean']:.2f}"
    images = caltech["calibration_images"]
    for row, name in zip(
        table_after("Calibration images").values(), ("bliss", "label", "knn:neighbours=1"),
        strict=True,
    ):  # fmt: skip
        values = dict(zip(images[name]["values"], images[name]["auroc"]["6 normal"], strict=True))
        for cell, count in zip(row, (2, 3, 5, 10, 20, 160), strict=True):
            assert cell == f"{100 * values[count]['mean']:.1f}"


def test_the_table_of_false_alarms(caltech):
    table = table_after("Thresholds")
    for rate, row in zip((0.01, 0.05, 0.1), table.values(), strict=True):
        for cell, way in zip(row, ("held out", "own"), strict=True):
            flagged = caltech["false_alarms"][f"{way} {rate}"]["normal_flagged"]["mean"]
            assert cell == f"{100 * flagged:.1f} %"
