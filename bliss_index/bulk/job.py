"""The job: what is to be done, who does it, and what it came to."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.bulk.devices import require_devices
from bliss_index.bulk.inputs import InputPart, JobInput, open_input
from bliss_index.bulk.memory import MemoryPlan, plan_memory
from bliss_index.bulk.records import (
    JOB_NAME,
    RECORD_FOLDER,
    STATISTICS_NAME,
    JobManifest,
    PartRecord,
    new_manifest,
    output_name,
    record_path,
)
from bliss_index.bulk.settings import ScoreSettings, ScoringInputs, named_device
from bliss_index.bulk.workers import (
    PartResult,
    PartWorker,
    WorkerTask,
    job_identity,
    score_in_processes,
)
from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    JobError,
    ModelMismatchError,
    OutputError,
    StoreError,
)
from bliss_index.store import require_same_model
from bliss_index.store.files import DirectoryLock, make_directory, remove_temporaries, write_json
from bliss_index.store.source_part import ColumnNames

ENGINES = ("local", "ray")
_SAMPLE_ROWS = 512


@dataclass(frozen=True)
class JobOptions:
    """How a job runs. Nothing here changes its output.

    Attributes
    ----------
    workers
        Processes; 1 scores within this one.
    devices
        Devices that the workers take in turn, such as "cuda:0", "cuda:1".
    engine
        "local" processes, or "ray".
    task
        "i/n": score only the parts whose number is i modulo n, beside the other tasks of an array.
    memory
        Budget in bytes for all processes; None for 80 % of what is available.
    max_bad_fraction
        Share of bad rows above which the job stops.
    columns
        Of Parquet input.
    """

    workers: int = 1
    devices: tuple[str, ...] = ()
    engine: str = "local"
    task: str | None = None
    memory: int | None = None
    max_bad_fraction: float = 1.0
    columns: ColumnNames = field(default_factory=ColumnNames)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InvalidInputError(f"workers must be at least 1, got {self.workers}")
        if self.engine not in ENGINES:
            raise InvalidInputError(f"engine must be {' or '.join(ENGINES)}, got {self.engine!r}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise InvalidInputError(
                f"max_bad_fraction must lie between 0 and 1, got {self.max_bad_fraction}"
            )
        self.task_numbers()

    def task_numbers(self) -> tuple[int, int]:
        """Return i and n of the task; 0 and 1 without one."""
        if self.task is None:
            return 0, 1
        match = re.fullmatch(r"(\d+)/(\d+)", self.task)
        if match is None or int(match[1]) >= int(match[2]):
            raise InvalidInputError(
                f"task must be i/n with i from 0 to n - 1, such as 0/8, got {self.task!r}"
            )
        return int(match[1]), int(match[2])


@dataclass(frozen=True)
class JobSummary:
    """What a run of a job did, and where the job stands.

    Attributes
    ----------
    output
        Directory of the scores.
    rows, bad_rows, status
        Rows scored so far, those among them without a score, and rows by status.
    parts, parts_done, parts_earlier
        Input parts, those done, and those that an earlier run had done.
    rows_now, seconds, rows_per_second
        Of this run; the time includes opening and preparing everything.
    failed
        Name and reason of the parts that could not be scored.
    complete
        Whether every part is done.
    """

    output: str
    rows: int
    bad_rows: int
    status: dict[str, int]
    parts: int
    parts_done: int
    parts_earlier: int
    rows_now: int
    seconds: float
    rows_per_second: float
    failed: tuple[tuple[str, str], ...]
    complete: bool

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


class JobListener:
    """Hears how a job goes; every method may be overridden."""

    def planned(self, plan: MemoryPlan, rows: int, rows_done: int) -> None:
        """Called once, before scoring starts."""

    def advanced(self, rows: int) -> None:
        """Called when rows were scored."""

    def finished_part(self, record: PartRecord) -> None:
        """Called when a part is committed."""

    def notice(self, text: str) -> None:
        """Called with what should be known."""


def run_job(
    location: str | Path,
    output: str | Path,
    settings: ScoreSettings,
    options: JobOptions | None = None,
    listener: JobListener | None = None,
) -> JobSummary:
    """Score every image of an input; run again, continue where it stopped.

    Parameters
    ----------
    location
        An image store, or embeddings in any layout that ``import`` reads.
    output
        Directory for the scores: one Parquet file per input part.
    settings
        What to compute.
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
        The output was begun with other settings, an input part changed after it was scored, too
        many rows are bad, or memory does not suffice.
    StoreError, ModelMismatchError, InvalidInputError, OutputError
        A device is not there; inputs do not belong together or cannot be read; the output cannot
        be written, or another job is writing it.
    """
    options = options or JobOptions()
    listener = listener or JobListener()
    began = time.perf_counter()
    if options.engine == "local":  # Ray's nodes have devices of their own
        require_devices(options.devices or (settings.device,))
    # Decided here, once: a process of the job may see other devices than this one.
    settings = replace(
        settings,
        threads=_threads_of_one(settings, options),
        device=named_device(settings.device),
    )
    inputs = ScoringInputs.open(settings)
    images = open_input(location, options.columns)
    _require_compatible(images, inputs)
    directory = Path(output)
    make_directory(directory)
    with _locked(directory, options):
        manifest = _begin(directory, images, inputs)
        make_directory(directory / RECORD_FOLDER)
        state = _State(directory, images, options, listener)
        state.find_done()
        plan = plan_memory(
            entries=inputs.corpus.rows,
            dim=inputs.corpus.dim,
            item_bytes=2 if inputs.corpus.dtype == "float16" else 4,
            classes=len(inputs.calibration.classes),
            k=settings.k,
            threads=settings.threads or 1,
            workers=options.workers,
            budget=options.memory,
            on_gpu=settings.on_gpu,
        )
        listener.planned(plan, manifest.rows, state.rows)
        state.require_few_bad()
        pending = state.pending()
        if pending:
            queries = _sample(images.parts[pending[0]])
            settings, reason = inputs.chosen(queries, manifest.rows - state.rows)
            if reason:
                listener.notice(reason)
        task = WorkerTask(
            str(location), options.columns, str(directory), settings, plan.batch_rows,
            manifest.settings,
        )  # fmt: skip
        with contextlib.closing(_results(task, pending, options, listener)) as results:
            for result in results:
                state.take(result)
                state.require_few_bad()
        summary = state.summary(time.perf_counter() - began)
        if options.task is None:
            write_json(directory / STATISTICS_NAME, summary.to_json())
        return summary


class _State:
    """Which parts of a job are done."""

    def __init__(
        self, directory: Path, images: JobInput, options: JobOptions, listener: JobListener
    ) -> None:
        self._directory = directory
        self._images = images
        self._options = options
        self._listener = listener
        self._records: dict[int, PartRecord] = {}
        self._failed: dict[int, str] = {}
        self._earlier = 0
        self._rows_now = 0

    @property
    def rows(self) -> int:
        return sum(record.rows for record in self._records.values())

    def find_done(self) -> None:
        """Read the records of earlier runs, and check that they still hold."""
        for index, part in enumerate(self._images.parts):
            path = record_path(self._directory, index)
            if not path.exists():
                continue
            try:
                record = PartRecord.read(path)
            except CorruptStoreError as error:
                self._listener.notice(f"{error}; part {part.name} is scored again")
                continue
            output = self._directory / output_name(index)
            size = output.stat().st_size if output.exists() else None
            if size != record.bytes:
                self._listener.notice(
                    f"{output.name} has {size} bytes, its record says {record.bytes}; "
                    f"part {part.name} is scored again"
                )
                continue
            if part.stamp() != record.input_stamp and part.sha256() != record.input_sha256:
                raise JobError(
                    f"{part.name} was scored with SHA-256 {record.input_sha256}, now it has "
                    f"{part.sha256()}: it was replaced since. Remove {path} to score it again, or "
                    "choose another output"
                )
            self._records[index] = record
        self._earlier = len(self._records)

    def pending(self) -> list[int]:
        """Return the numbers of the parts that this run shall score."""
        mine, tasks = self._options.task_numbers()
        return [
            index
            for index in range(len(self._images.parts))
            if index not in self._records and index % tasks == mine
        ]

    def take(self, result: PartResult) -> None:
        """Note what became of a part.

        Raises
        ------
        OutputError
            It could not be written.
        """
        if result.stops:
            raise OutputError(result.reason)
        if result.record is None:
            self._failed[result.index] = result.reason
            self._listener.notice(
                f"{self._images.parts[result.index].name} failed: {result.reason}"
            )
            return
        self._records[result.index] = result.record
        self._rows_now += result.record.rows
        self._listener.finished_part(result.record)

    def require_few_bad(self) -> None:
        """Stop the job when more rows are bad than was allowed."""
        bad = sum(record.bad_rows for record in self._records.values())
        share = bad / self.rows if self.rows else 0.0
        if share > self._options.max_bad_fraction:
            raise JobError(
                f"{bad} of {self.rows} rows are bad ({share:.2%}), --max-bad-fraction allows "
                f"{self._options.max_bad_fraction:.2%}; look at 'status' and 'error' in "
                f"{self._directory}. What is done is kept."
            )

    def summary(self, seconds: float) -> JobSummary:
        """Sum up."""
        status: Counter[str] = Counter()
        for record in self._records.values():
            status.update(record.status)
        return JobSummary(
            output=str(self._directory),
            rows=self.rows,
            bad_rows=sum(record.bad_rows for record in self._records.values()),
            status=dict(sorted(status.items())),
            parts=len(self._images.parts),
            parts_done=len(self._records),
            parts_earlier=self._earlier,
            rows_now=self._rows_now,
            seconds=round(seconds, 3),
            rows_per_second=round(self._rows_now / seconds, 1) if seconds > 0 else 0.0,
            failed=tuple(
                (self._images.parts[index].name, reason)
                for index, reason in sorted(self._failed.items())
            ),
            complete=len(self._records) == len(self._images.parts),
        )


def _results(
    task: WorkerTask, pending: Sequence[int], options: JobOptions, listener: JobListener
) -> Generator[PartResult, None, None]:
    if not pending:
        return
    devices = options.devices or (task.settings.device,)
    if options.engine == "ray":
        from bliss_index.bulk.ray_engine import score_with_ray

        yield from score_with_ray(
            task, pending, workers=options.workers, listener=listener.advanced
        )
    elif options.workers > 1 or len(devices) > 1:
        yield from score_in_processes(
            task,
            pending,
            workers=max(options.workers, len(devices)),
            devices=devices,
            progress=listener.advanced,
            notify=listener.notice,
        )
    else:
        settings = replace(task.settings, device=devices[0])
        worker = PartWorker(
            replace(task, settings=settings), progress=listener.advanced, notify=listener.notice
        )
        for index in pending:
            yield worker.score(index)


def _sample(part: InputPart) -> npt.NDArray[Any]:
    """Return a few hundred good images of a part; none where it is damaged."""
    try:
        for rows in part.read(_SAMPLE_ROWS):
            return np.asarray(rows.good_embeddings)
    except CorruptStoreError:
        pass  # scoring the part will say so
    return np.empty((0, 0))


def _threads_of_one(settings: ScoreSettings, options: JobOptions) -> int:
    from bliss_index.search.exact import thread_count

    return max(1, thread_count(settings.threads) // options.workers)


def _require_compatible(images: JobInput, inputs: ScoringInputs) -> None:
    if images.model is not None:
        require_same_model(
            images.model,
            inputs.corpus.model,
            f"images {images.location}",
            f"corpus {inputs.corpus.path}",
        )
    if images.dim != inputs.corpus.dim:
        raise ModelMismatchError(
            f"images {images.location} have dimension {images.dim}, corpus {inputs.corpus.path} "
            f"has {inputs.corpus.dim}; were they encoded by the same model?"
        )


@contextlib.contextmanager
def _locked(directory: Path, options: JobOptions) -> Iterator[None]:
    """Keep other jobs out; the tasks of one array share the directory, each has its own part."""
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


def _begin(directory: Path, images: JobInput, inputs: ScoringInputs) -> JobManifest:
    """Read the job that stands there and check that it is this one, or begin it."""
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
