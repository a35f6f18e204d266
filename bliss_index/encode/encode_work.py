"""What encoding texts and encoding images have in common as works."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bliss_index.devices import thread_count
from bliss_index.encode.model import Encoder, load_encoder
from bliss_index.errors import BlissError
from bliss_index.jobs import JobOptions, JobSummary
from bliss_index.jobs.description import JobDescription
from bliss_index.jobs.memory import MemoryPlan, fit_memory
from bliss_index.storage import open_directory
from bliss_index.store.manifest import StoreManifest
from bliss_index.store.store_work import StoreWork

_PARTS = 64  # of a job that is smaller than so many full parts
_LEAST_ROWS = 128
_BATCH_ROWS = 256
_TORCH_BYTES = 192 << 20  # with open_clip and torchvision, beyond what other commands load


DEFAULT_MODEL = "ViT-B-16"
DEFAULT_WEIGHTS = "openai"
OPENAI_MODELS = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64",
    "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336",
)  # fmt: skip
"""Models that OpenAI released; of these `DEFAULT_WEIGHTS` are taken unless others are named."""


@dataclass(frozen=True)
class EncoderSpec:
    """A model by name, to be loaded in the process that works; see :func:`load_encoder`.

    Attributes
    ----------
    name, pretrained, precision, preprocess, batch_size
        As for :func:`load_encoder`.
    """

    name: str
    pretrained: str | None = None
    precision: str = "float32"
    preprocess: str = "model"
    batch_size: int | None = None

    @classmethod
    def of(cls, name: str, pretrained: str | None = None, **more: Any) -> EncoderSpec:
        """Name a model; one of OpenAI's comes with OpenAI's weights, unless others are named.

        Parameters
        ----------
        name, pretrained, more
            The attributes.
        """
        if name in OPENAI_MODELS and pretrained is None:
            pretrained = DEFAULT_WEIGHTS
        return cls(name, pretrained, **more)

    def load(self, device: str) -> Encoder:
        """Load it. On a processor, torch computes with one thread.

        Several batches at once are faster than several threads on one, and no sum depends on the
        number of processors.
        """
        import torch

        encoder = load_encoder(
            self.name,
            self.pretrained,
            device=device,
            precision=self.precision,
            preprocess=self.preprocess,
            batch_size=self.batch_size,
        )
        if encoder.device == "cpu":
            torch.set_num_threads(1)
        return encoder


@dataclass(frozen=True)
class SharedSpec(EncoderSpec):
    """Loads the model once for several works of this process; others load their own."""

    loaded: dict[str, Encoder] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return EncoderSpec, tuple(getattr(self, f.name) for f in fields(EncoderSpec))

    def load(self, device: str) -> Encoder:
        if device not in self.loaded:
            self.loaded[device] = EncoderSpec.load(self, device)
        return self.loaded[device]


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that is there already; cannot travel to another process."""

    encoder: Encoder

    def load(self, device: str) -> Encoder:
        """The encoder."""
        return self.encoder


@dataclass(frozen=True)
class EncodeSummary:
    """What was encoded.

    Attributes
    ----------
    path : str
        The store.
    rows, bad_rows : int
        Rows in it, and those among them without an embedding.
    rows_now : int
        Rows that this run encoded; fewer than `rows` after a continuation.
    truncated : int
        Entries with a prompt longer than the model's context, of which the end was cut off.
    repeated_keys : int
        Keys of images that occur in several parts.
    complete : bool
        Whether the store is whole; a task of an array makes a share of it.
    failed : tuple of (str, str)
        Name and reason of the parts that could not be encoded.
    """

    path: str
    rows: int
    bad_rows: int
    rows_now: int
    truncated: int = 0
    repeated_keys: int = 0
    complete: bool = True
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class EncodeWork(StoreWork):
    """What to encode, by which model.

    Attributes
    ----------
    spec : EncoderSpec or LoadedEncoder
    device : str
        Of this process, where the model is loaded to know its identity.
    dtype : str
        Storage type.
    rows_per_shard : int
        Rows of a part at most.
    streams : int
        Batches that a process computes at once on a processor, in threads that share the model.
    """

    spec: EncoderSpec | LoadedEncoder
    device: str
    dtype: str
    rows_per_shard: int
    streams: int

    incidental = ("device", "text_positions")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    @cached_property
    def encoder(self) -> Encoder:
        """The model, loaded once a process."""
        return self.spec.load(self.device)

    def on(self, device: str) -> Encoder:
        """The model on a device; the one that is loaded already where it is there."""
        if device in (self.device, "auto") or isinstance(self.spec, LoadedEncoder):
            return self.encoder
        return self.spec.load(device)

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """What decides the content besides the model."""

    @property
    @abstractmethod
    def of_kind(self) -> str:
        """Kind of the store."""

    @property
    def threads(self) -> int:
        return self.streams

    def at_once(self, encoder: Encoder) -> int:
        """Batches that a process computes at once: one on a GPU, which one keeps busy."""
        return self.streams if encoder.device == "cpu" else 1

    @property
    def prompt(self) -> str | None:
        """Template of texts."""
        return None

    def described(self) -> StoreManifest:
        encoder = self.encoder
        return StoreManifest(
            kind=self.of_kind,
            model=encoder.identity,
            dim=encoder.dim,
            dtype=self.dtype,
            prompt=self.prompt,
            attributes={**encoder.settings, **self.attributes()},
        )

    def memory(self, workers: int, budget: int | None) -> MemoryPlan:
        dim = self.encoder.dim
        image = int(np.prod(self.encoder.preprocess.size)) * 3
        batch = self.encoder.image_batch_size
        return fit_memory(
            {
                "torch": _TORCH_BYTES,
                "model": 2 * self.encoder.nbytes,
                "shard": self.rows_per_shard * (8 * dim + 1000),
                **self.held(),
            },
            "batches of {} rows",
            image * 64 * self.streams,
            workers=workers,
            budget=budget,
            least=min(batch, 16),
            most=batch,
            what=f"the model {self.encoder.identity.describe()}",
            remedy="",
        )

    def held(self) -> dict[str, int]:
        """What a worker holds besides the model and a shard."""
        return {}


def rows_of_a_part(total: int, most: int) -> int:
    """Rows of a part: the fewer, the smaller the whole, so that all workers have some.

    Whole batches of a GPU where there are as many: the last batch of a part is what is left over.
    """
    rows = max(_LEAST_ROWS, -(-total // _PARTS))
    return min(most, rows if rows <= _LEAST_ROWS else -(-rows // _BATCH_ROWS) * _BATCH_ROWS)


def rows_begun_with(output: str | Path) -> int | None:
    """Rows of a part in the job that stands in a directory; None where there is none."""
    try:
        job = JobDescription.read(open_directory(output))
    except (FileNotFoundError, BlissError):  # which the job itself will tell of
        return None
    attributes = job.settings.get("attributes")
    rows = attributes.get("rows_per_shard") if isinstance(attributes, dict) else None
    return rows if isinstance(rows, int) and rows > 0 else None


def streams_of(encoder: Encoder | EncoderSpec, options: JobOptions) -> int:
    """Batches that each process of a job computes at once on a processor: all have equal shares.

    One of a model that was loaded before: its threads are the caller's.
    """
    if isinstance(encoder, Encoder) or options.engine == "ray":
        return 1
    return max(1, thread_count(None) // options.processes)


def summed_up(summary: JobSummary, output: str | Path, task: str | None) -> EncodeSummary:
    """Tell of encoding what the job's summary says."""
    repeated = 0
    if summary.complete and task is None:
        repeated = StoreManifest.read(output).repeated_keys["count"]
    return EncodeSummary(
        summary.output, summary.rows, summary.bad_rows, summary.rows_now,
        summary.facts.get("truncated", 0), repeated, summary.complete, summary.failed,
    )  # fmt: skip
