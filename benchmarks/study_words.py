"""A large word list through the whole chain: encode, index, top k of images; the embedded model.

    python benchmarks/study_words.py WORDS.txt FOLDER --json benchmarks/results/words_tiny.json

The images are drawn scenes. FOLDER takes about 100 MB while it runs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine, peak_memory_mib, use_fast_blas, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    use_fast_blas(given.threads)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        result = {
            "machine": describe_machine(given.threads),
            **measure(given, Path(folder) / "corpus"),
        }
    write_result(given.json, result)


def measure(given: argparse.Namespace, corpus: Path) -> dict[str, Any]:
    import torch

    from bliss_index.demo.scenes import draw_scene
    from bliss_index.encode import load_encoder
    from bliss_index.encode.spooled_vocabulary import spool_vocabulary
    from bliss_index.encode.text_work import encode_text_store
    from bliss_index.search import exact_search
    from bliss_index.search.faiss.build import build_index
    from bliss_index.search.index import open_index, save_index
    from bliss_index.store import EmbeddingStore
    from bliss_index.vocabulary import DEFAULT_TEMPLATE

    torch.set_num_threads(given.threads)
    result: dict[str, Any] = {}
    encoder = load_encoder("bliss-tiny", device="cpu")
    encoder.encode_text(["a word"])
    with (
        Timer(result, "encode_seconds"),  # with reading and deduplicating the list
        spool_vocabulary(given.words, corpus) as vocabulary,
    ):
        encode_text_store(encoder, vocabulary, corpus, templates=[DEFAULT_TEMPLATE])
        result["words"] = len(vocabulary)
    result["words_per_second"] = round(result["words"] / result["encode_seconds"])
    result["peak_mib_after_encoding"] = round(peak_memory_mib())
    store = EmbeddingStore.open(corpus)
    with Timer(result, "build_flat_index_seconds"):
        save_index(build_index(store.embeddings(), "flat", threads=given.threads), store)
    scenes = [draw_scene(np.random.default_rng([5, i])).image for i in range(given.images)]
    with Timer(result, "encode_images_seconds"):
        images = encoder.encode_images(scenes)
    with Timer(result, "prepare_exact_search_seconds"):
        exact = exact_search(store.embeddings(), 10, threads=given.threads)
    with Timer(result, "open_flat_index_seconds"):
        flat = open_index(store, 10, "flat", threads=given.threads)
    for _ in range(2):  # the second time counts
        with Timer(result, "exact_top10_seconds"):
            ours = exact.search(images)
        with Timer(result, "flat_top10_seconds"):
            theirs = flat.search(images)
    result["images"] = len(images)
    result["same_ids"] = bool(np.array_equal(ours[1], theirs[1]))
    result["candidates_per_query"] = round(exact.statistics.candidates_per_query, 1)
    result["full_rows"] = exact.statistics.full_rows
    result["peak_mib"] = round(peak_memory_mib())
    return result


class Timer:
    """Writes the seconds of its block into a dictionary."""

    def __init__(self, into: dict[str, Any], name: str) -> None:
        self._into, self._name = into, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._into[self._name] = round(time.perf_counter() - self._began, 2)


if __name__ == "__main__":
    main()
