"""Runs any work: plans it, does what is missing, finishes it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bliss_index.devices import resolve_device
from bliss_index.errors import CorruptStoreError, JobError, StoreError, listed
from bliss_index.jobs.description import (
    JOB_NAME,
    MANIFEST_NAME,
    JobDescription,
    begun_in,
    library_versions,
    require_format,
    require_same,
)
from bliss_index.jobs.listener import JobListener
from bliss_index.jobs.manifest import Files, is_written, write_manifest
from bliss_index.jobs.options import JobOptions
from bliss_index.jobs.part import Part, Plan
from bliss_index.jobs.record import Record
from bliss_index.jobs.state import JobState, JobSummary, remove_leftovers
from bliss_index.jobs.stopping import sigterm_noted
from bliss_index.jobs.task import Run, WorkerTask
from bliss_index.jobs.work import Outcome, Work
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.directory import write_json
from bliss_index.storage.files import parse_json
from bliss_index.storage.locks import locked


def run(
    work: Work,
    output: str | Path,
    options: JobOptions | None = None,
    listener: JobListener | None = None,
) -> JobSummary:
    """Do a work; run again, it continues where it stopped.

    Parameters
    ----------
    work
        What is to be done.
    output
        Directory for the results: a file a part, records, at the end the manifest.
    options
        How to run.
    listener
        Hears of progress.

    Returns
    -------
    The summary. Parts that failed are in it, and are tried again by the next run.

    Raises
    ------
    JobError
        The output was begun with other settings, the input changed after it was done, too many
        rows are bad, or memory does not suffice.
    StoreError
        The directory holds something else.
    OutputError
        It cannot be written, or another job is writing it.
    SystemExit
        SIGTERM came and something is left to do; the parts under way were finished. With code 143.
    """
    options = options or JobOptions()
    listener = listener or JobListener()
    began = time.perf_counter()
    directory = open_directory(output)
    found = find_job(directory, work.kind, work.command)  # before anything is created
    if options.engine == "local":  # Ray's nodes have devices of their own
        for name in options.devices:
            resolve_device(name)
    settings = work.settings()
    if found is not None:
        complete = work.manifest_name in directory.names()
        require_same(found.settings, settings, directory.uri, work.incidental if complete else ())
    plan = None
    if found is None or options.task is None:
        plan = Plan.of(work.parts(), getattr(directory, "path", None))
    directory.make()
    with locked(directory, options.task):
        if found is None and plan is not None:
            found = _begin(directory, work, settings, plan)
        if found is None or found.plan is None:
            raise JobError(f"{directory.uri} was not begun by a job; choose another output")
        kept = Plan.read(directory, found.plan)
        if plan is not None and plan.files[0].name != kept.files[0].name:
            kept = _extended(directory, work, kept, plan, listener)
        state = JobState(directory, kept, options, listener)
        state.find_done()
        if plan is not None:
            _require_same_input(work, plan, kept, state)
        memory = work.memory(options.processes, options.memory)
        listener.planned(memory, kept.rows, state.files.rows)
        state.require_few_bad()
        pending = state.pending()
        if pending:
            work = work.prepared(
                [kept[index] for index in pending[:1]], kept.rows - state.files.rows,
                memory.batch_rows, listener.notice,
            )  # fmt: skip
        with sigterm_noted() as stopped:
            given = Run(
                WorkerTask(work, directory.uri, settings), kept, pending, options, listener,
                state.note_death, stopped,
            )  # fmt: skip
            with contextlib.closing(_outcomes(given)) as outcomes:
                for outcome in outcomes:
                    state.take(outcome)
                    state.require_few_bad()
            if stopped() and state.taken < len(pending):
                raise SystemExit(128 + signal.SIGTERM)
        if options.task is None and state.complete:
            finish(directory, work, state.files)
        summary = state.summary(time.perf_counter() - began)
        if options.task is None and work.statistics_name:
            write_json(directory, work.statistics_name, summary.to_json())
        return summary


def find_job(directory: Directory, kind: str, command: str) -> JobDescription | None:
    """Return the job that stands in a directory, None in an empty or missing one.

    Raises
    ------
    StoreError
        The directory holds something else; nothing of it was touched.
    CorruptStoreError
        The description is damaged.
    """
    try:
        found = JobDescription.read(directory)
    except CorruptStoreError as error:
        if isinstance(error.__cause__, PermissionError):
            directory.make()  # says what is not permitted
        raise
    except FileNotFoundError:
        names = directory.names()
        if JOB_NAME in names:  # another runner has begun it since
            return find_job(directory, kind, command)
        if MANIFEST_NAME in names:  # a calibration, or of an earlier format
            values = parse_json(directory.read(MANIFEST_NAME), f"{directory.uri}/{MANIFEST_NAME}")
            require_format(f"{directory.uri}/{MANIFEST_NAME}", values, f"bliss_index.{kind}")
        others = sorted(name for name in directory.everything() if not _may_stay(name))
        if JOB_NAME in others:
            return find_job(directory, kind, command)
        if others:
            what = "a store" if kind == "store" else f"a {kind} directory"
            raise StoreError(
                f"{directory.uri} is not empty and not {what} (it holds {others[0]!r}); choose "
                "another output"
            ) from None
        return None
    if found.kind != kind:
        raise StoreError(
            f"{directory.uri} holds {found.kind}, {command} makes {kind}; choose another output"
        )
    return found


def _may_stay(name: str) -> bool:
    # Hidden files are ours (lock, temporaries) or the file system's; a plan comes before its job.
    return name.startswith(".") or name == "_plan"


def _begin(
    directory: Directory, work: Work, settings: dict[str, Any], plan: Plan
) -> JobDescription:
    plan.files[0].write(directory)
    wanted = JobDescription(
        work.kind, settings, plan.files[0].name, work.facts(), library_versions(), begun_in()
    )
    if wanted.create(directory):
        return wanted
    found = JobDescription.read(directory)  # of another task, or of another job that was faster
    if found.kind != work.kind:
        raise StoreError(f"{directory.uri} holds {found.kind} now; choose another output")
    require_same(found.settings, settings, directory.uri)
    return found


def _extended(
    directory: Directory, work: Work, kept: Plan, now: Plan, listener: JobListener
) -> Plan:
    """Put parts that came in behind the others; name what is gone.

    Raises
    ------
    JobError
        Something is not what was planned.
    """
    growth = work.grown(kept, now)
    more = Plan.of(growth.parts, getattr(directory, "path", None), first=len(kept))
    for names, what in ((growth.removed, "are gone"), (growth.stale, "have changed")):
        if names:
            listener.notice(
                f"{len(names)} of what was planned {what} since, their rows stay as they were: "
                f"{listed(names)}"
            )
    if growth.changed:
        raise JobError(
            f"{directory.uri} was begun with other input: {len(growth.changed)} have changed since "
            f"they were planned: {listed(growth.changed)}; restore them, or choose another output"
        )
    if not len(more):
        return kept
    if not kept.add(directory, more):
        raise JobError(f"{directory.uri} was extended by another job; run the same command again")
    listener.notice(f"the input has grown by {more.rows} rows in {len(more)} parts")
    return Plan([*kept.files, *more.files])


def _require_same_input(work: Work, now: Plan, kept: Plan, state: JobState) -> None:
    """Refuse parts that were done and are not what they were; touched files may stay the same."""
    if now.files[0].name == kept.files[0].name and len(kept.files) == 1:
        return
    done = {part.name: part.index for part in kept if part.index in state.files}
    for part in now:
        index = done.get(part.name)
        if index is None or kept[index].fingerprint == part.fingerprint:
            continue
        record = Record.read(state.directory, index)
        if reason := work.is_same(replace(part, index=index), record):
            raise JobError(f"{reason}; choose another output, or restore it")


def _outcomes(run: Run) -> Generator[Outcome, None, None]:
    if not run.pending:
        return
    if run.options.engine == "ray":
        from bliss_index.jobs.ray_engine import run_on_ray

        yield from run_on_ray(run)
    elif run.options.processes > 1:
        from bliss_index.jobs.processes import run_in_processes

        yield from run_in_processes(run)
    else:
        listener = run.listener
        worker = run.task.open(run.devices[0], listener.advanced, listener.notice)
        yield from worker.run(run.begun())


def finish(directory: Directory, work: Work, files: Files) -> None:
    """Write the manifest of all files; does nothing where it stands already.

    That of a source that has grown is replaced: until then, readers see what was whole before.
    """
    remove_leftovers(directory, files)
    if not is_written(directory, work.manifest_name, files):
        write_manifest(directory, work.manifest_name, files, work.manifest(directory, files))


def missing_part(directory: Directory, plan: Plan) -> Part | None:
    """The first part without a record."""
    for part in plan:
        try:
            Record.read(directory, part.index)
        except FileNotFoundError:
            return part
        except CorruptStoreError:
            continue
    return None
