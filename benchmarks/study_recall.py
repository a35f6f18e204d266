"""The near search beside faiss's IVF-SQ8 and the exact search: rates at a recall, and AUROC.

    python benchmarks/study_recall.py --sizes 1000000 4000000 --json result.json

Vocabularies are real texts and texts between, where BLISS_INDEX_REALDATA names a folder of real
embeddings, whose images are the queries; else those of ``clustered`` with ``clip_like`` images.
Every way is tuned to each recall on one half of the images, of which at most `--queries`; recall is
measured on as many of the other half. All ways then search both halves in turn.

The effect on AUROC is measured on Caltech101: half of the classes are normal, in turn, with
a vocabulary of `--entries` such texts.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
from machine import describe_machine, write_result
from realdata import RealData, near_texts, real_images

from bliss_index.bench.synthetic import clip_like, clustered
from bliss_index.calibration import calibrate
from bliss_index.evaluation.metrics import auroc
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search import exact_search
from bliss_index.search.near_index import NearSearch
from bliss_index.search.tuning import smallest_effort
from bliss_index.store import ModelIdentity

_MODEL = ModelIdentity("ViT-B-32", "openai")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000_000])
    parser.add_argument("--recalls", type=float, nargs="*", default=[0.9, 0.95, 0.99])
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=2048, help="images of each half")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=100_000, help="for the AUROC; 0: none")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    faiss.omp_set_num_threads(given.threads)
    real = "BLISS_INDEX_REALDATA" in os.environ
    result: dict[str, Any] = {
        **describe_machine(given.threads), "k": given.k,
        "entries_are": "real texts and texts between them" if real else "drawn by clustered",
        "searches": [],
    }  # fmt: skip
    for size in given.sizes:
        result["searches"].append(searches(size, real, given))
        if given.json:
            write_result(given.json, result)
    if given.entries and real:
        result["auroc"] = aurocs(given)
        if given.json:
            write_result(given.json, result)


def searches(size: int, real: bool, given: argparse.Namespace) -> dict[str, Any]:
    """Tune all ways to all recalls, and time them in turn."""
    entries = near_texts(size, 1) if real else clustered(size, 512, 1, dtype=np.float16)
    images = real_images() if real else clip_like(2 * given.queries, 512, "image", 2)
    images = images[np.random.default_rng(0).permutation(len(images))]
    choosing, measuring = images[::2][: given.queries], images[1::2][: given.queries]
    exact = exact_search(entries, given.k, threads=given.threads)
    kth = {id(half): exact.search(half)[0][:, -1] for half in (choosing, measuring)}
    found: dict[str, Any] = {"entries": size, "images_at_once": 2 * len(measuring), "ways": {}}
    timed = np.concatenate([choosing, measuring])  # about a batch of a job
    ways = {"exact": lambda: exact.search(timed)}

    began, used = time.perf_counter(), time.process_time()
    near = NearSearch(entries, given.k, threads=given.threads)
    found["near_lists"] = near.most_effort
    found["near_built_seconds"] = round(time.perf_counter() - began, 1)
    found["near_built_processor_seconds"] = round(time.process_time() - used, 1)
    began, used = time.perf_counter(), time.process_time()
    index = ivf_sq8(entries)
    found["faiss_lists"] = index.nlist
    found["faiss_built_seconds"] = round(time.perf_counter() - began, 1)
    found["faiss_built_processor_seconds"] = round(time.process_time() - used, 1)

    def near_search(effort: int, queries: np.ndarray) -> np.ndarray:
        return near.replace(effort=effort).search(queries)[0]

    def faiss_search(effort: int, queries: np.ndarray) -> np.ndarray:
        ids = index.search(queries, given.k, params=faiss.SearchParametersIVF(nprobe=effort))[1]
        return np.einsum("ikj,ij->ik", entries[ids].astype(np.float32), queries)

    searchers = {
        "near": (near_search, near.most_effort),
        "faiss IVF-SQ8": (faiss_search, index.nlist),
    }
    for recall in given.recalls:
        for name, (search, most) in searchers.items():

            def measured(effort: int, queries: np.ndarray, search: Any = search) -> float:
                least = kth[id(queries)][:, None] - 2e-7  # sums of float32 differ a little
                return float((search(effort, queries) >= least).mean())

            effort = smallest_effort(lambda e: measured(e, choosing), most, recall)  # noqa: B023
            title = f"{name}, recall {recall}"
            if effort is None:
                found["ways"][title] = {"reached": round(measured(most, choosing), 4)}
                continue
            found["ways"][title] = {
                "effort": effort,
                "recall": round(measured(effort, measuring), 4),
            }
            if name == "near":
                ways[title] = _call(near.replace(effort=effort).search, timed)
            else:
                parameters = faiss.SearchParametersIVF(nprobe=effort)
                ways[title] = _call(index.search, timed, given.k, params=parameters)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(given.rounds + 1):
        for name, call in ways.items():
            began, used = time.perf_counter(), time.process_time()
            call()
            if turn:
                times[name].append((time.perf_counter() - began, time.process_time() - used))
    for name, seconds in times.items():
        way = found["ways"].setdefault(name, {})
        way["images_per_second"] = round(len(timed) / median(s for s, _ in seconds))
        way["processor_microseconds_an_image"] = round(
            1e6 * median(s for _, s in seconds) / len(timed), 1
        )
        print(size, name, way, flush=True)
    for recall in given.recalls:
        near_way, faiss_way = (found["ways"][f"{n}, recall {recall}"] for n in searchers)
        if "images_per_second" in faiss_way:
            near_way["times_as_fast_as_faiss"] = round(
                near_way["images_per_second"] / faiss_way["images_per_second"], 2
            )
    return found


def _call(function: Any, *arguments: Any, **named: Any) -> Any:
    return lambda: function(*arguments, **named)


def ivf_sq8(entries: np.ndarray) -> faiss.IndexIVFScalarQuantizer:
    """faiss's, of as many lists as it advises for trained k-means: 4 sqrt(W)."""
    size, dim = entries.shape
    lists = max(1, min(round(4 * size**0.5), size // 39))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim),
        dim,
        lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    rng = np.random.default_rng(0)
    index.train(
        entries[np.sort(rng.choice(size, min(size, 40 * lists), replace=False))].astype("f4")
    )
    for start in range(0, size, 65_536):
        index.add(entries[start : start + 65_536].astype(np.float32))
    return index


def aurocs(given: argparse.Namespace) -> dict[str, Any]:
    """AUROC of the exact search, and how far that of near searches lies from it."""
    data = RealData.caltech101()
    entries = near_texts(given.entries, 2)
    exact = exact_search(entries, given.k, threads=given.threads)
    near = NearSearch(entries, given.k, threads=given.threads)
    images = np.concatenate([data.normal, data.test])[::2]
    kth = exact.search(images)[0][:, -1:]
    ways: dict[str, Any] = {"exact": exact}
    for recall in given.recalls:
        effort = smallest_effort(
            lambda e: float((near.replace(effort=e).search(images)[0] >= kth).mean()),
            near.most_effort, recall,
        )  # fmt: skip
        ways[f"near, recall {recall}"] = near.replace(effort=effort)
    classes = len(data.names)
    found: dict[str, list[float]] = {name: [] for name in ways}
    moved: dict[str, list[float]] = {name: [] for name in ways}
    for draw in range(given.draws):
        normal = np.sort(np.random.default_rng(draw).permutation(classes)[: classes // 2])
        places = {int(c): i for i, c in enumerate(normal)}
        own = np.isin(data.normal_labels, normal)
        labels = np.array([places[int(c)] for c in data.normal_labels[own]])
        names = [data.names[c] for c in normal]
        calibration = calibrate(
            [(data.normal[own], labels)], data.texts[normal], names, model=_MODEL
        )
        anomaly = ~np.isin(data.test_labels, normal)
        first = None
        for name, search in ways.items():
            scores = BlissScorer(search, entries, calibration).score(data.test).anomaly
            first = scores if first is None else first
            found[name].append(auroc(scores, anomaly))
            moved[name].append(float(np.abs(scores - first).max() / first.std()))
    return {
        "data": "Caltech101, half of the classes normal", "entries": given.entries,
        "draws": given.draws,
        "ways": {
            name: {
                "mean_auroc": round(float(np.mean(values)), 5),
                "largest_difference_to_exact": round(
                    float(np.abs(np.array(values) - found["exact"]).max()), 5
                ),
                "one_image_moves_by_deviations": round(max(moved[name]), 2),
            }
            for name, values in found.items()
        },
    }  # fmt: skip


if __name__ == "__main__":
    main()
