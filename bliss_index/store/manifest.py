"""The manifest of an embedding store: written once, when all of it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bliss_index.errors import CorruptStoreError, StoreError
from bliss_index.jobs.description import (
    JOB_NAME,
    MANIFEST_NAME,
    JobDescription,
    read_description,
)
from bliss_index.jobs.manifest import PartFile, read_files
from bliss_index.jobs.record import RECORD_FOLDER, Record
from bliss_index.storage import Directory, open_directory
from bliss_index.store.identity import ModelIdentity

STORE_KIND = "store"
STORE_FORMAT = "bliss_index.store"
KINDS = ("text", "image")
DTYPES = ("float16", "float32")
MAX_DIM = 65536
_HOW = "'bliss-index encode-text', 'encode-images' or 'import'"


@dataclass(frozen=True)
class StoreManifest:
    """The description of an embedding store, as in its ``manifest.json``.

    Attributes
    ----------
    kind : str
        "text" (a vocabulary, or class prompts) or "image".
    model : ModelIdentity
        The model that made the embeddings.
    dim, dtype
        Length of a vector, and its storage type "float16" or "float32".
    prompt : str or None
        Template that entries were put into before encoding; None where none was used.
    attributes : dict
        Whatever else decides the content: source, preprocessing, precision.
    shards : tuple of PartFile
        One per shard, in row order.
    versions : dict
        Of the libraries that wrote it.
    repeated_keys : dict
        How many keys of an image store occur in several shards, and the first of them.
    """

    kind: str
    model: ModelIdentity
    dim: int
    dtype: str
    prompt: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    shards: tuple[PartFile, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    repeated_keys: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bad_rows(self) -> int:
        """Rows whose status is not "ok"."""
        return sum(shard.bad_rows for shard in self.shards)

    @property
    def content_hash(self) -> str:
        """SHA-256 over the model, the settings and the hashes of all shards."""
        content = {
            "kind": self.kind,
            "model": self.model.to_json(),
            "dim": self.dim,
            "dtype": self.dtype,
            "prompt": self.prompt,
            "shards": [shard.sha256 for shard in self.shards],
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Everything that must not change between the runs that write one store."""
        return {
            "kind": self.kind,
            "model": self.model.to_json(),
            "dim": self.dim,
            "dtype": self.dtype,
            "prompt": self.prompt,
            "attributes": self.attributes,
        }

    def facts(self) -> dict[str, Any]:
        """What ``manifest.json`` says besides the shards."""
        return {
            "format": STORE_FORMAT,
            **self.settings(),
            "normalised": True,
            "metric": "inner_product",
            "versions": self.versions,
            "repeated_keys": self.repeated_keys,
        }

    @classmethod
    def read(cls, directory: str | Path) -> StoreManifest:
        """Read and check a directory's manifest.

        Raises
        ------
        StoreError
            There is no store here, or it is not complete.
        CorruptStoreError
            The manifest is damaged, of another format version, or contradicts itself.
        """
        place = open_directory(directory)
        path = f"{directory}/{MANIFEST_NAME}"
        names = place.names()
        if MANIFEST_NAME not in names and JOB_NAME in names:
            rows = read_unfinished(place).rows
            raise StoreError(
                f"{directory} is not complete: {rows} rows are written so far. Run the command "
                "that makes it again; it continues where it stopped."
            )
        values = read_description(place, STORE_FORMAT, what="an embedding store", how=_HOW)
        try:
            return cls._from_json(values, str(path))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(f"{path} is damaged: {error!r}") from error
        except CorruptStoreError as error:
            if str(path) in str(error):
                raise
            raise CorruptStoreError(f"{path} is damaged: {error}") from error

    @classmethod
    def _from_json(cls, values: dict[str, Any], name: str) -> StoreManifest:
        manifest = cls(
            shards=read_files(values, name),
            versions=_typed(values, "versions", dict),
            repeated_keys=_typed(values, "repeated_keys", dict),
            **_settings(values),
        )
        if not 1 <= manifest.dim <= MAX_DIM:
            raise ValueError(f"dim {manifest.dim} is not between 1 and {MAX_DIM}")
        return manifest


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": _one_of(values, "kind", KINDS),
        "model": ModelIdentity.from_json(values["model"]),
        "dim": _count(values, "dim"),
        "dtype": _one_of(values, "dtype", DTYPES),
        "prompt": None if values.get("prompt") is None else _typed(values, "prompt", str),
        "attributes": _typed(values, "attributes", dict),
    }


def read_unfinished(directory: Directory) -> StoreManifest:
    """Describe a store whose job has not come to its end, by the records of its shards.

    Raises
    ------
    StoreError
        What the job makes is no store.
    """
    job = JobDescription.read(directory)
    if job.kind != STORE_KIND:
        raise StoreError(f"{directory.uri} is not an embedding store, it holds {job.kind}")
    files = []
    for name in sorted(directory.names(RECORD_FOLDER)):
        try:
            record = Record.parse(directory.read(f"{RECORD_FOLDER}/{name}"), name)
        except (CorruptStoreError, FileNotFoundError):
            continue
        files.append(PartFile.of(record))
    try:
        settings = _settings(job.settings)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStoreError(f"{directory.uri}/{JOB_NAME} is damaged: {error!r}") from error
    return StoreManifest(shards=tuple(files), versions=job.versions, **settings)


def _typed(values: Mapping[str, Any], name: str, kind: type) -> Any:
    value = values[name]
    if not isinstance(value, kind):
        raise TypeError(f"{name!r} is {value!r}, expected {kind.__name__}")
    return value


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{name!r} is {value!r}, expected a whole number of at least 0")
    return value


def _one_of(values: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = values[name]
    if value not in choices:
        raise ValueError(f"{name!r} is {value!r}, expected one of {', '.join(choices)}")
    return str(value)
