"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from bulk_fixtures import Job, make_job, make_job_of_kinds, outputs

from bliss_index.devices import find_gpu
from bliss_index.scoring import run_job

if find_gpu()[0] is None:  # Triton's kernels then run on CPU tensors; read when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """What lives as long as the tests do is not looked through for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Ctrl-C means what it means at a terminal, also where the tests run in the background.

    A shell starts background commands with SIGINT ignored, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240717)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of real CLIP embeddings, named by BLISS_INDEX_REALDATA; tests skip without it."""
    folder = os.environ.get("BLISS_INDEX_REALDATA")
    if not folder or not Path(folder, "text_vitb32.npz").is_file():
        pytest.skip("BLISS_INDEX_REALDATA does not name a folder with real embeddings")
    return Path(folder)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A small job of the bulk engine, for the tests of one module."""
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Job) -> dict[str, bytes]:
    """The files of an uninterrupted run of the job."""
    summary = run_job(job.images, job.folder / "whole", job.settings())
    assert summary.complete
    return outputs(job.folder / "whole")


@pytest.fixture(scope="session")
def job_of_kinds(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Scores of images of several kinds; not to be changed."""
    return make_job_of_kinds(tmp_path_factory.mktemp("kinds"))
