"""The directory of a job's output: begun, locked, tidied."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bliss_index.bulk.inputs import JobInput
from bliss_index.bulk.options import JobOptions
from bliss_index.bulk.part_worker import job_identity
from bliss_index.bulk.records import JOB_NAME, RECORD_FOLDER, JobManifest, new_manifest
from bliss_index.bulk.settings import ScoringInputs
from bliss_index.errors import StoreError
from bliss_index.store.files import DirectoryLock, remove_temporaries


@contextlib.contextmanager
def locked(directory: Path, options: JobOptions) -> Iterator[None]:
    """Keep other jobs out; the tasks of one array share the directory, each has its own part.

    Who has the directory alone also removes what killed jobs left in it.

    Raises
    ------
    OutputError
        Another job has it; its process is named.
    """
    with contextlib.ExitStack() as stack:
        if options.task is None:
            stack.enter_context(DirectoryLock(directory))
            _tidy(directory)  # what a killed job left behind
            stack.callback(_tidy, directory)  # what our own workers did, if they were killed
        else:
            stack.enter_context(DirectoryLock(directory, shared=True))
            name = f".lock-{options.task.replace('/', '-of-')}"
            stack.enter_context(DirectoryLock(directory, name))
        yield


def _tidy(directory: Path) -> None:
    """Remove files that nobody will finish; only while nobody else writes here."""
    for folder in (directory, directory / RECORD_FOLDER):
        if folder.is_dir():
            remove_temporaries(folder)


def begin(directory: Path, images: JobInput, inputs: ScoringInputs) -> JobManifest:
    """Read the job that stands there and check that it is this one, or begin it.

    Raises
    ------
    StoreError
        The directory holds something else.
    JobError
        The job there was begun with other settings; both values are named.
    CorruptStoreError
        Its description is damaged.
    """
    settings = job_identity(inputs, images)
    paths = {"corpus": inputs.settings.corpus, "calibration": inputs.settings.calibration}
    parts = tuple((part.name, part.rows) for part in images.parts)
    wanted = new_manifest(settings, images.location, parts, paths, inputs.calibration.classes)
    if (directory / JOB_NAME).exists():
        found = JobManifest.read(directory)
        found.require_same(wanted, directory)
        return found
    strangers = sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))
    if strangers:
        raise StoreError(
            f"{directory} is not empty and not a scores directory (it holds {strangers[0]!r}); "
            "choose another output"
        )
    wanted.write(directory)
    return wanted
