"""What is installed, and what a directory holds."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from bliss_index.calibration import Calibration
from bliss_index.calibration.files import read_calibration
from bliss_index.jobs import JobListener, JobOptions
from bliss_index.jobs.description import MANIFEST_NAME, library_versions
from bliss_index.jobs.numerics import processor
from bliss_index.jobs.state import JobState
from bliss_index.report.verification import directory_kind
from bliss_index.scoring.kept_tables import tables_records
from bliss_index.scoring.scores_directory import read_job, read_plan
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.files import parse_json
from bliss_index.store.manifest import StoreManifest, read_unfinished

_CLIP_DIM = 512


def describe_installation() -> tuple[dict[str, Any], list[str]]:
    """Describe versions, processor, GPUs and the searches that run here.

    Returns
    -------
    JSON-ready facts, and sentences that warn.
    """
    from bliss_index.devices import thread_count
    from bliss_index.search import available_backends
    from bliss_index.search.faiss.probe import probe_gpu
    from bliss_index.search.faiss.runtime import faiss_conflict

    probe = probe_gpu()
    facts: dict[str, Any] = {
        "versions": library_versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "threads": thread_count(None),
        "exact_search": available_backends(),
        "faiss": _faiss(),
        "faiss_gpu": f"{probe.reason}. {probe.remedy}".removesuffix(". "),
        "gpus": _gpus(),
    }
    conflict = faiss_conflict()
    return facts, [] if conflict is None else [conflict]


def describe_directory(path: str | Path) -> dict[str, Any]:
    """Describe a store, calibration or scores directory, or a URI; JSON-ready.

    Raises
    ------
    StoreError, CorruptStoreError
        It is none of these, or is damaged.
    """
    describe = {
        "store": _describe_store,
        "calibration": _describe_calibration,
        "scores": _describe_scores,
    }
    return describe[directory_kind(path)](open_directory(path))


def _describe_calibration(directory: Directory) -> dict[str, Any]:
    calibration = Calibration(*read_calibration(directory))
    manifest = parse_json(directory.read(MANIFEST_NAME), f"{directory.uri}/{MANIFEST_NAME}")
    return {
        "kind": "calibration",
        "model": None if calibration.model is None else calibration.model.to_json(),
        "dim": calibration.dim,
        "classes": {
            name: moments.count
            for name, moments in zip(calibration.classes, calibration.moments, strict=True)
        },
        "shrinkage": calibration.shrinkage,
        "image_weight": calibration.image_weight,
        "lam": calibration.lam,
        "content_hash": calibration.content_hash,
        "kept_tables": {
            record.corpus[:16]: {
                "entries": record.rows,
                "stale": record.calibration != calibration.content_hash,
            }
            for record in tables_records(directory.uri)
        },
        "versions": manifest.get("versions"),
    }


def _describe_store(directory: Directory) -> dict[str, Any]:
    complete = MANIFEST_NAME in directory.names()
    manifest = StoreManifest.read(directory.uri) if complete else read_unfinished(directory)
    facts: dict[str, Any] = {
        "kind": f"{manifest.kind} store",
        "complete": complete,
        "rows": manifest.rows,
        "bad_rows": manifest.bad_rows,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "dim": manifest.dim,
        "dtype": manifest.dtype,
        "model": manifest.model.to_json(),
        "prompt": manifest.prompt,
        "attributes": manifest.attributes,
        "content_hash": manifest.content_hash,
        "versions": manifest.versions,
    }
    if complete and manifest.kind == "text":
        facts["indexes"] = _indexes(directory, manifest)
        facts["prepared_search"] = _prepared(directory, manifest)
    return facts


def _describe_scores(directory: Directory) -> dict[str, Any]:
    job = read_job(directory)
    plan = read_plan(directory, job)
    state = JobState(directory, plan, JobOptions(), JobListener())
    state.find_done(repair=False)
    return {
        "kind": "scores",
        "complete": state.complete,
        "rows": state.files.rows,
        "rows_in_all": plan.rows,
        "bad_rows": state.files.bad_rows,
        "parts": len(plan),
        "parts_done": len(state.files),
        **job.facts,
        "settings": job.settings,
        "versions": job.versions,
    }


def _indexes(directory: Directory, manifest: StoreManifest) -> dict[str, Any]:
    from bliss_index.search.index import index_records
    from bliss_index.store import EmbeddingStore

    return {
        record.kind: {
            "effort": record.effort,
            "recall": None if record.recall is None else record.recall.get("recall"),
            "stale": record.content_hash != manifest.content_hash,
        }
        for record in index_records(EmbeddingStore(directory.uri, manifest))
    }


def _prepared(directory: Directory, manifest: StoreManifest) -> dict[str, Any]:
    from bliss_index.search.prepared import is_current, prepared_records
    from bliss_index.store import EmbeddingStore

    store = EmbeddingStore(directory.uri, manifest)
    return {
        record.kernel: {"stale": not is_current(store, record)}
        for record in prepared_records(store)
    }


def _faiss() -> str:
    from bliss_index.errors import MissingDependencyError
    from bliss_index.search.faiss.runtime import import_faiss

    try:
        return str(import_faiss().__version__)
    except MissingDependencyError as error:
        return f"not available: {error}"


def _gpus() -> list[str]:
    """Every GPU that torch sees: its compute capability, and what searches CLIP's vectors on it."""
    import torch

    if not torch.cuda.is_available():
        return []
    from bliss_index.search.device.engine import choose_engine

    found = []
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        major, minor = torch.cuda.get_device_capability(device)
        runs = choose_engine(device, _CLIP_DIM).describe(device)
        found.append(f"compute capability {major}.{minor}: {runs}")
    return found
