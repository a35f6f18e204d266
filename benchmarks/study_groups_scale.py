"""Time and memory of ``groups`` over millions of rows, and whether it finds what was drawn.

    python benchmarks/study_groups_scale.py FOLDER --json benchmarks/results/groups_scale.json

Scores are written as a job leaves them, 100 bytes a row. Of the rows 5 % are anomalous: images of
400 kinds, the largest of which has 18 % of them and the smallest some hundred images. A kind is
drawn around an entry of 20,000, each of which has a near-synonym; the ten entries of these images
are found by an exact search. The other rows have any entries. ``groups`` is then run, in a process
of its own, with thresholds that flag 1 %, 5 % and 20 % of the rows, and ``report`` once with 5 %,
which groups them as ``screen`` does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe_machine, run_command, write_result
from sklearn.metrics import normalized_mutual_info_score

from bliss_index.bench.synthetic import clip_like
from bliss_index.jobs import Part, Plan
from bliss_index.jobs.description import JobDescription
from bliss_index.jobs.manifest import PartFile, write_manifest
from bliss_index.jobs.record import commit
from bliss_index.scoring.score_output import ROW_GROUP_ROWS
from bliss_index.scoring.score_table import scores_schema
from bliss_index.scoring.score_work import MANIFEST_NAME
from bliss_index.search import exact_search
from bliss_index.storage import open_directory
from bliss_index.store import EmbeddingStore, ModelIdentity, StoreWriter

DIM, ENTRIES, KINDS, K = 512, 20_000, 400, 10
ANOMALOUS = 0.05
THRESHOLD = 3.2  # flags nearly all of them, and few others
FLAGGED = (0.01, 0.05, 0.2)
PART_ROWS = 250_000
SYNONYM = 0.15
NOISE = 1.2
MODEL = ModelIdentity("ViT-B-16", "synthetic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "groups_scale", "rows": given.rows,
        "machine": describe_machine(os.cpu_count() or 1),
        "entries": ENTRIES, "dim": DIM, "kinds": KINDS, "anomalous": ANOMALOUS,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="bench-groups-") as folder:
        place = Path(folder)
        Drawn(place, given.rows).write()
        scores = place / "scores"
        result["scores_bytes"] = sum(f.stat().st_size for f in scores.glob("part-*"))
        kinds = np.load(place / "kinds.npy")
        values = np.load(place / "values.npy")
        result["groups"] = {}
        for share in FLAGGED:
            threshold = float(np.quantile(values, 1 - share))
            file = place / "groups.parquet"
            found, peak, seconds = measured(
                "groups", scores, "--corpus", place / "corpus", "--threshold", threshold,
                "--out", file,
            )  # fmt: skip
            table = pq.read_table(file)
            of_row = kinds[table.column("row").to_numpy()]
            groups = table.column("group").combine_chunks().dictionary_decode()
            own = of_row >= 0
            result["groups"][f"{share:g}"] = {
                "flagged": found["flagged"], "groups": len(found["groups"]),
                "groups_of_100": sum(group["images"] >= 100 for group in found["groups"]),
                "seconds": seconds, "peak_mib": peak, "bytes": file.stat().st_size,
                "kinds": int(np.unique(of_row[own]).size),
                "nmi_of_anomalous": round(normalized_mutual_info_score(
                    of_row[own], groups.dictionary_encode().indices.to_numpy()[own]), 3),
            }  # fmt: skip
            print(share, result["groups"][f"{share:g}"], flush=True)
        _, peak, seconds = measured(
            "report", scores, "--corpus", place / "corpus", "--out", place / "report.html"
        )  # fmt: skip
        result["report"] = {"seconds": seconds, "peak_mib": peak}
        write_result(given.json, result)


def measured(*command: object) -> tuple[dict[str, Any], float, float]:
    """Run a command; return its JSON, its peak memory in MiB, and the seconds it took."""
    began = time.perf_counter()
    found, peak = run_command(*command)
    return found, peak, round(time.perf_counter() - began, 1)


class Drawn:
    """A corpus and scores, as jobs leave them."""

    def __init__(self, place: Path, rows: int) -> None:
        self._place = place
        self._rows = rows
        self._rng = np.random.default_rng(0)
        half = clip_like(ENTRIES // 2, DIM, "text", 1)
        near = half + SYNONYM * clip_like(ENTRIES // 2, DIM, "text", 2)
        entries = np.concatenate([half, near]).astype(np.float32)
        entries /= np.linalg.norm(entries, axis=1, keepdims=True)
        self._texts = pa.array([f"entry {n}" for n in range(ENTRIES)])
        with StoreWriter(place / "corpus", kind="text", model=MODEL, dim=DIM) as writer:
            writer.append(self._texts.to_pylist(), entries, texts=self._texts.to_pylist())
        self._entries = EmbeddingStore.open(place / "corpus").embeddings().astype(np.float32)
        self._centred = self._entries - self._entries.mean(axis=0)
        self._search = exact_search(self._entries, K, threads=1)

    def write(self) -> None:
        """Write the scores, and for every row its kind and score."""
        kinds, values = np.full(self._rows, -1, np.int16), np.empty(self._rows, np.float32)
        directory = open_directory(self._place / "scores")
        directory.make()
        starts = range(0, self._rows, PART_ROWS)
        plan = Plan.of(
            Part(n, f"part {n}", min(PART_ROWS, self._rows - at), "drawn")
            for n, at in enumerate(starts)
        )
        plan.files[0].write(directory)
        settings = {
            "k": K, "lam": 0.5, "search": "exact", "threshold": THRESHOLD, "explain": True,
            "corpus content hash": EmbeddingStore.open(self._place / "corpus").content_hash,
        }  # fmt: skip
        facts = {
            "images": "images", "corpus": "corpus", "calibration": "calibration",
            "classes": [f"class {n}" for n in range(10)],
        }  # fmt: skip
        job = JobDescription("scores", settings, plan.files[0].name, facts, {"python": "3"})
        job.create(directory)
        records = []
        for number, start in enumerate(starts):
            rows = slice(start, min(start + PART_ROWS, self._rows))
            table, kinds[rows], values[rows] = self._part(rows.start, rows.stop - rows.start)
            content = directory.new_file()
            pq.write_table(
                table, content.sink, compression="zstd", row_group_size=ROW_GROUP_ROWS,
                use_dictionary=["nearest_class", "status", "error", "entries.list.element"],
            )  # fmt: skip
            records.append(commit(
                directory, plan[number], content, "parquet", status={"ok": table.num_rows},
                given="drawn", seconds=1.0,
            ))  # fmt: skip
        files = [PartFile.of(record) for record in records]
        write_manifest(directory, MANIFEST_NAME, files, {"format": "bliss_index.scores"})
        np.save(self._place / "kinds.npy", kinds)
        np.save(self._place / "values.npy", values)

    def _part(self, start: int, count: int) -> tuple[pa.Table, np.ndarray, np.ndarray]:
        rng = self._rng
        weights = 1 / np.arange(1, KINDS + 1)
        anomalous = rng.random(count) < ANOMALOUS
        kinds = np.full(count, -1, np.int16)
        kinds[anomalous] = rng.choice(KINDS, anomalous.sum(), p=weights / weights.sum())
        values = rng.normal(size=count).astype(np.float32)
        values[anomalous] += 6
        ids = rng.integers(0, ENTRIES, (count, K))
        similarities = -np.sort(-rng.uniform(0.2, 0.25, (count, K)).astype(np.float32), axis=1)
        towards = self._centred[kinds[anomalous].astype(int) * 20]
        noise = rng.normal(size=towards.shape).astype(np.float32)
        noise *= NOISE * np.linalg.norm(towards, axis=1, keepdims=True) / np.sqrt(DIM)
        queries = towards + noise
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        similarities[anomalous], ids[anomalous] = self._search.search(queries)
        flat = pa.array(np.arange(0, count * K + 1, K, dtype=np.int32))
        numbers = range(start, start + count)
        columns = {
            "key": pa.array([f"{n // 1000:05}/image {n:08}.jpg" for n in numbers]),
            "anomaly_score": pa.array(values),
            "nearest_class": pa.array([f"class {n}" for n in rng.integers(0, 10, count)]),
            "internal_score": pa.array(values * 0.75),
            "external_score": pa.array(values * 0.5),
            "status": pa.array(["ok"] * count),
            "error": pa.nulls(count, pa.string()),
            "entries": pa.ListArray.from_arrays(flat, self._texts.take(pa.array(ids.ravel()))),
            "similarities": pa.ListArray.from_arrays(flat, pa.array(similarities.ravel())),
            "flag": pa.array(values >= THRESHOLD),
            "contributions": pa.ListArray.from_arrays(flat, pa.array(similarities.ravel())),
        }
        schema = scores_schema(explain=True, flag=True)
        arrays = [columns[name].cast(schema.field(name).type) for name in schema.names]
        return pa.Table.from_arrays(arrays, schema=schema), kinds, values


if __name__ == "__main__":
    main()
