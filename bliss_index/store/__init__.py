"""Embeddings on disk: Arrow shards and a manifest; written resumably, read memory-mapped."""

from __future__ import annotations

from bliss_index.store.identity import ModelIdentity, require_same_model
from bliss_index.store.reader import EmbeddingStore, Shard
from bliss_index.store.verify import VerificationReport, verify_store
from bliss_index.store.writer import StoreWriter

__all__ = [
    "EmbeddingStore",
    "ModelIdentity",
    "Shard",
    "StoreWriter",
    "VerificationReport",
    "require_same_model",
    "verify_store",
]
