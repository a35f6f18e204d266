"""Encoders on the device: towers alone, whole jobs, and how near both are to the processor."""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bliss_index.encode.encode_work import EncoderSpec
from bliss_index.encode.image_work import encode_image_store
from bliss_index.encode.images import open_images
from bliss_index.encode.model import load_encoder
from bliss_index.encode.random_weights import save_random_model
from bliss_index.encode.text_work import encode_text_store
from bliss_index.jobs import JobOptions
from bliss_index.store import EmbeddingStore
from gpu.bench import Bench

_TINY = "bliss-tiny"
_LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.995}


def encoding(
    bench: Bench,
    model: str,
    precision: str,
    images: int,
    side: int,
    texts: int,
    compared: int,
    decoders: int,
    several: list[int],
) -> dict[str, Any]:
    """Rates of a model with random weights, and how near it is to float32 on the processor."""
    device = str(bench.device)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        name = model
        if model != _TINY:
            save_random_model(model, place)
            name = f"local-dir:{place}"
        words = [f"a thing with the number {i}" for i in range(texts)]
        _draw(place / "images.tar", images, side)
        spec = EncoderSpec(name, precision=precision)
        options = JobOptions(devices=(device,))
        jobs = {}
        for workers in several:
            began = time.perf_counter()
            encode_image_store(
                spec,
                open_images(place / "images.tar"),
                place / f"images {workers}",
                options=JobOptions(workers=workers, devices=(device,)),
                decoders=max(1, decoders // workers),
            )
            jobs[f"images, {workers} workers"] = images / (time.perf_counter() - began)
        began = time.perf_counter()
        encoded = encode_image_store(
            spec,
            open_images(place / "images.tar"),
            place / "images",
            options=options,
            decoders=decoders,
        )
        middle = time.perf_counter()
        encode_text_store(
            spec, words, place / "words", templates=["This is a photo of a {}"], options=options
        )
        done = time.perf_counter()
        encoder = load_encoder(name, device=device, precision=precision)
        pixels = np.random.default_rng(0).integers(
            0, 256, (encoder.image_batch_size, *encoder.preprocess.size, 3), dtype=np.uint8
        )
        prompts = [f"This is a photo of a {word}" for word in words]
        towers = bench.in_turn({
            "images": lambda: encoder.image_features(pixels),
            "texts": lambda: encoder.encode_text(prompts),
        }, 3)  # fmt: skip
        processor = load_encoder(name, device="cpu")
        with tarfile.open(place / "images.tar") as archive:
            shown = [
                Image.open(io.BytesIO(_content(archive, member)))
                for member in archive.getmembers()[:compared]
            ]
        cosines = {
            "images": _cosine(place / "images", processor.encode_images(shown)),
            "texts": _cosine(place / "words", processor.encode_text(prompts[:compared])),
        }
    return {
        "exact": min(cosines.values()) >= _LEAST_COSINE[precision] and encoded.bad_rows == 0,
        "least_cosine_with_processor": cosines,
        "tower_rows_per_second": {
            "images": round(len(pixels) / towers["images"], 1),
            "texts": round(texts / towers["texts"], 1),
        },
        "job_rows_per_second_with_start": {
            "images": round(images / (middle - began), 1),
            "texts": round(texts / (done - middle), 1),
            **{name: round(rate, 1) for name, rate in jobs.items()},
        },
    }


def _draw(path: Path, count: int, side: int) -> None:
    """A tar of JPEGs: 64 random pictures again and again, each under a name of its own."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(min(count, 64)):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        drawn.append(file.getvalue())
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(drawn[number % len(drawn)])
            archive.addfile(member, io.BytesIO(drawn[number % len(drawn)]))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _cosine(store: Path, expected: npt.NDArray[np.float32]) -> float:
    found = EmbeddingStore.open(store).embeddings()[: len(expected)].astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return round(float(np.min((found * expected).sum(1) / norms)), 6)
