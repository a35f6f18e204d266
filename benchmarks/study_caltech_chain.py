"""The whole chain by its commands on real CLIP embeddings of Caltech101: a table of AUROC.

    BLISS_INDEX_REALDATA=FOLDER python benchmarks/study_caltech_chain.py \
        --out benchmarks/results/caltech101_chain.json

Every run imports its classes' texts, calibrates, scores with lambda 0.5 (BLISS) and with lambda 0
(the label term alone) and evaluates, all by ``bliss-index`` commands; the vocabulary and the images
are imported and indexed once. Raw similarity, and the formulas of BLISS written straight from the
paper, are computed beside it in float64 from the stored embeddings.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, write_result
from realdata import IMAGENET_ROWS, RealData, protocols

from bliss_index.cli.app import app
from bliss_index.scoring import ScoresDirectory
from bliss_index.store import EmbeddingStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from bliss_reference import reference_scores, unit

K, LAM = 10, 0.5
MODEL = ("--model", "ViT-B-32", "--pretrained", "openai")
DETECTORS = {"BLISS": "bliss", "raw similarity": "raw", "label term": "label"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, help="of each protocol, the first; default: all")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Chain(Path(folder)), given.runs)
    write_result(given.out, {"machine": describe_machine(1), **result})


def measure(chain: Chain, most: int | None) -> dict[str, Any]:
    """Run every protocol."""
    table: dict[str, Any] = {}
    gap, images, same = 0.0, 0, 0
    for protocol in protocols(len(chain.data.names)):
        aurocs: dict[str, list[float]] = {name: [] for name in DETECTORS}
        for number, normal in enumerate(protocol.runs[:most]):
            run = chain.run(f"{protocol.name}-{number}", list(normal))
            for name in DETECTORS:
                aurocs[name].append(run[name])
            gap = max(gap, run["gap"])
            same += round(run["BLISS"], 4) == round(run["formulas"], 4)
            images += len(chain.data.test)
        table[protocol.name] = {
            name: {
                "mean": round(float(np.mean(values)), 5),
                "std": round(float(np.std(values)), 5),
                "runs": len(values),
            }
            for name, values in aurocs.items()
        }
    runs = sum(rows["BLISS"]["runs"] for rows in table.values())
    return {
        "benchmark": "caltech101_chain",
        "data": {
            "classes": len(chain.data.names),
            "calibration_images": len(chain.data.normal),
            "test_images": len(chain.data.test),
            "vocabulary": "ImageNet's 1000 class names",
            "embeddings": "ViT-B-32 openai, stored as float16",
            "k": K,
            "lambda": LAM,
        },
        "auroc": table,
        "against_the_formulas": {
            "runs": runs,
            "scores": images,
            "largest_difference_of_a_score": gap,
            "runs_with_the_same_auroc_to_4_decimals": same,
        },
    }


class Chain:
    """Stores of the vocabulary and the images, and the runs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, RealData.caltech101()
        self._import("corpus", self.data.entries[IMAGENET_ROWS], "text", numbered(1000))
        bliss_index("build", folder / "corpus")
        for split in ("normal", "test"):
            self._import(split, getattr(self.data, split), "image")
        names = [self.data.names[c] for c in self.data.normal_labels]
        (folder / "normal.txt").write_text(lines(names))
        self.stored = {
            part: EmbeddingStore.open(folder / part).embeddings("float64")
            for part in ("corpus", "normal", "test")
        }

    def run(self, name: str, normal: list[int]) -> dict[str, float]:
        """AUROC of every detector with these classes normal; the scores' distance to theory."""
        folder = self.folder / name
        folder.mkdir()
        classes = [self.data.names[c] for c in normal]
        self._import(f"{name}/classes", self.data.texts[normal], "text", classes)
        anomaly = ~np.isin(self.data.test_labels, normal)
        np.save(folder / "anomaly.npy", anomaly.astype(np.int64))
        bliss_index(
            "calibrate", self.folder / "normal", "--labels", self.folder / "normal.txt",
            "--classes", folder / "classes", "--out", folder / "calibration",
        )  # fmt: skip
        result = {
            "BLISS": self._score(folder, LAM, "scores"),
            "label term": self._score(folder, 0.0, "label-scores"),
        }
        texts = EmbeddingStore.open(folder / "classes").embeddings("float64")
        result["raw similarity"] = auroc(-(self.stored["test"] @ texts.T).max(1), anomaly)
        kept = np.isin(self.data.normal_labels, normal)
        place = {c: number for number, c in enumerate(normal)}
        expected = reference_scores(
            self.stored["test"],
            self.stored["corpus"],
            unit(texts),
            self.stored["normal"][kept],
            np.array([place[c] for c in self.data.normal_labels[kept]]),
            k=K,
            lam=LAM,
        ).anomaly
        found = ScoresDirectory.open(folder / "scores").table(["anomaly_score"])
        result["gap"] = float(np.abs(found.column(0).to_numpy() - expected).max())
        result["formulas"] = auroc(expected, anomaly)
        return result

    def _score(self, folder: Path, lam: float, out: str) -> float:
        bliss_index(
            "score", self.folder / "test", "--corpus", self.folder / "corpus",
            "--calibration", folder / "calibration", "--out", folder / out, "--k", K, "--lam", lam,
        )  # fmt: skip
        printed = bliss_index(
            "evaluate", folder / out, "--labels", folder / "anomaly.npy", "--resamples", 0, "--json"
        )
        return float(json.loads(printed)["auroc"])

    def _import(
        self, name: str, rows: np.ndarray, kind: str, texts: list[str] | None = None
    ) -> None:
        file = self.folder / f"{name}.npy"
        np.save(file, rows)
        options: list[Any] = []
        if texts is not None:
            file.with_suffix(".txt").write_text(lines(texts))
            options = ["--texts", file.with_suffix(".txt")]
        bliss_index("import", file, "--kind", kind, *MODEL, *options, "--out", self.folder / name)


def bliss_index(*arguments: Any) -> str:
    """Run a command; what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        app([str(argument) for argument in arguments], standalone_mode=False)
    return printed.getvalue()


def auroc(scores: np.ndarray, anomaly: np.ndarray) -> float:
    """Share of pairs in which the anomaly scores higher, ties counted half: the definition."""
    normal, other = np.sort(scores[~anomaly]), scores[anomaly]
    below = np.searchsorted(normal, other, "left") + np.searchsorted(normal, other, "right")
    return float(below.sum() / (2 * normal.size * other.size))


def lines(values: list[str]) -> str:
    """A value a line."""
    return "".join(f"{value}\n" for value in values)


def numbered(count: int) -> list[str]:
    """Stand-ins for the entries' texts, which scores do not need."""
    return [f"entry {number}" for number in range(count)]


if __name__ == "__main__":
    main()
