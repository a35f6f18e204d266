"""The manifest of an embedding store: the only truth about what is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bliss_index.errors import CorruptStoreError
from bliss_index.jobs.description import FORMAT_VERSION, MANIFEST_NAME, read_description
from bliss_index.storage.files import write_json
from bliss_index.store.identity import ModelIdentity

STORE_FORMAT = "bliss_index.embedding_store"
KINDS = ("text", "image")
DTYPES = ("float16", "float32")
MAX_DIM = 65536


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of one shard: its file name, rows, bytes, hash and bad rows."""

    file: str
    rows: int
    bytes: int
    sha256: str
    bad_rows: int = 0


@dataclass(frozen=True)
class StoreManifest:
    """The description of an embedding store, as in its ``manifest.json``.

    Attributes
    ----------
    kind
        "text" (a vocabulary, or class prompts) or "image".
    model
        The model that made the embeddings.
    dim, dtype
        Length of a vector, and its storage type "float16" or "float32".
    prompt
        Template that entries were put into before encoding; None where none was used.
    attributes
        Whatever else decides the content: source, preprocessing, precision.
    complete
        False while the store is being written.
    shards
        One record per shard, in row order.
    """

    kind: str
    model: ModelIdentity
    dim: int
    dtype: str
    prompt: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    shards: tuple[ShardRecord, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

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

    def write(self, directory: Path) -> None:
        """Replace the directory's manifest, atomically."""
        values = {
            "format": STORE_FORMAT,
            "format_version": FORMAT_VERSION,
            **self.settings(),
            "normalised": True,
            "metric": "inner_product",
            "complete": self.complete,
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "shards": [asdict(shard) for shard in self.shards],
            "versions": self.versions,
        }
        write_json(directory / MANIFEST_NAME, values)

    @classmethod
    def read(cls, directory: Path) -> StoreManifest:
        """Read and check a directory's manifest.

        Raises
        ------
        StoreError
            There is no store here.
        CorruptStoreError
            The manifest is damaged, of a newer format, or contradicts itself.
        """
        path = directory / MANIFEST_NAME
        values = read_description(
            path, STORE_FORMAT, what="an embedding store",
            how="'bliss-index encode-text', 'encode-images' or 'import'",
        )  # fmt: skip
        try:
            return cls._from_json(values)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(f"{path} is damaged: {error!r}") from error
        except CorruptStoreError as error:
            raise CorruptStoreError(f"{path} is damaged: {error}") from error

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> StoreManifest:
        shards = tuple(_shard_record(item) for item in _typed(values, "shards", list))
        manifest = cls(
            kind=_one_of(values, "kind", KINDS),
            model=ModelIdentity.from_json(values["model"]),
            dim=_count(values, "dim"),
            dtype=_one_of(values, "dtype", DTYPES),
            prompt=None if values.get("prompt") is None else _typed(values, "prompt", str),
            attributes=_typed(values, "attributes", dict),
            complete=_typed(values, "complete", bool),
            shards=shards,
            versions=_typed(values, "versions", dict),
        )
        if not 1 <= manifest.dim <= MAX_DIM:
            raise ValueError(f"dim {manifest.dim} is not between 1 and {MAX_DIM}")
        if values.get("rows") != manifest.rows:
            raise ValueError(f"{values.get('rows')!r} rows, but {manifest.rows} in its shards")
        for number, shard in enumerate(shards):
            if shard.file != shard_name(number):
                raise ValueError(f"shard {number} is named {shard.file!r}")
        return manifest


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.arrow"


def _shard_record(item: Any) -> ShardRecord:
    if not isinstance(item, dict):
        raise TypeError(f"a shard is {item!r}")
    return ShardRecord(
        file=_typed(item, "file", str),
        rows=_count(item, "rows"),
        bytes=_count(item, "bytes"),
        sha256=_typed(item, "sha256", str),
        bad_rows=_count(item, "bad_rows"),
    )


def _typed(values: dict[str, Any], name: str, kind: type) -> Any:
    value = values[name]
    if not isinstance(value, kind):
        raise TypeError(f"{name!r} is {value!r}, expected {kind.__name__}")
    return value


def _count(values: dict[str, Any], name: str) -> int:
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{name!r} is {value!r}, expected a whole number of at least 0")
    return value


def _one_of(values: dict[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = values[name]
    if value not in choices:
        raise ValueError(f"{name!r} is {value!r}, expected one of {', '.join(choices)}")
    return str(value)
