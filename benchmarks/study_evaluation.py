"""Seconds that every protocol takes on synthetic embeddings of the data sets' true size.

Embeddings have the shape of CLIP's (a common direction, a decaying spectrum), and classes of their
own; they say how long a protocol takes, not how good a detector is.

    python benchmarks/study_evaluation.py --threads 2 --out benchmarks/results/evaluation_protocols.json
"""  # noqa: E501

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, peak_memory_mib, use_fast_blas, write_result

from bliss_index.bench.synthetic import clip_like

# Training and test images of the data set that a protocol's number of classes belongs to.
SIZES = {10: (50_000, 10_000), 100: (50_000, 10_000), 200: (100_000, 10_000)}
DETECTORS = "bliss,label,raw,mcm,neglabel,knn"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--detectors", default=DETECTORS)
    parser.add_argument("--share", type=float, default=1.0, help="of the images, to try it out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_fast_blas(arguments.threads)
    from bliss_index.evaluation.paper.protocols import PROTOCOLS

    result: dict[str, Any] = {
        "benchmark": "evaluation_protocols",
        "machine": describe_machine(arguments.threads),
        "dim": arguments.dim,
        "vocabulary": arguments.vocabulary,
        "k": 10,
        "detectors": arguments.detectors,
        "protocols": {},
    }
    for name in PROTOCOLS:
        result["protocols"][name] = measure(name, arguments)
        print(name, result["protocols"][name], flush=True)
    result["peak_memory_mib"] = round(peak_memory_mib())
    write_result(arguments.out, result)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one protocol: each detector alone, then all of them together."""
    from bliss_index.evaluation.detector import Reference
    from bliss_index.evaluation.paper.protocol_run import evaluate_protocol
    from bliss_index.evaluation.paper.protocols import find_protocol
    from bliss_index.evaluation.registry import make_detectors
    from bliss_index.search import exact_search

    protocol = find_protocol(name)
    train, test = (round(n * arguments.share) for n in SIZES[protocol.classes])
    images, labels = images_of_classes(train + test, protocol.classes, arguments.dim)
    texts = clip_like(protocol.classes, arguments.dim, "text", seed=3)
    entries = clip_like(arguments.vocabulary, arguments.dim, "text", seed=4, dtype=np.float16)

    def seconds(detectors: str) -> float:
        began = time.perf_counter()
        search = exact_search(entries, 10, threads=arguments.threads)
        reference = Reference(texts, images[:train], labels[:train], entries, search)
        chosen = make_detectors(detectors)
        evaluate_protocol(reference, images[train:], labels[train:], protocol, chosen)
        return round(time.perf_counter() - began, 2)

    alone = {detector: seconds(detector) for detector in arguments.detectors.split(",")}
    return {
        "runs": len(protocol.runs),
        "calibration_images": train,
        "test_images": test,
        "seconds": seconds(arguments.detectors),
        "seconds_of_one_detector": alone,
    }


def images_of_classes(count: int, classes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, dim) float16 around a centre per class, and their classes."""
    labels = np.random.default_rng(1).permutation(np.arange(count) % classes)
    rows = clip_like(count, dim, "image", seed=2)
    rows += 0.5 * clip_like(classes, dim, "image", seed=5)[labels]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16), labels


if __name__ == "__main__":
    main()
