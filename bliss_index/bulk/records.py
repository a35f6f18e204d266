"""What a job remembers between its runs: its settings, and a record for every finished part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bliss_index.errors import CorruptStoreError, JobError, StoreError
from bliss_index.store.files import read_json, write_json
from bliss_index.store.manifest import library_versions, require_format

JOB_NAME = "_job.json"
RECORD_FOLDER = "_records"  # readers of Parquet folders skip names that begin with _
STATISTICS_NAME = "_statistics.json"
SCORES_FORMAT = "bliss_index.scores"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PartRecord:
    """A part that is scored: what went in, what came out.

    Attributes
    ----------
    part, rows, bad_rows
        Name of the input part, its rows, and those among them without a score.
    input_sha256, input_stamp
        What it held.
    bytes, sha256
        Of the output file.
    seconds
        Time until it was done, from its beginning, or from the end of the part before it where
        that was later: those of one process add up to its time.
    status
        Rows by status.
    """

    part: str
    rows: int
    bad_rows: int
    input_sha256: str
    input_stamp: list[Any]
    bytes: int
    sha256: str
    seconds: float
    status: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> PartRecord:
        """Read a record; raise CorruptStoreError naming the file where it is damaged."""
        values = read_json(path)
        try:
            record = cls(**values)
        except TypeError as error:
            raise CorruptStoreError(f"{path} is damaged: {error}; remove it") from error
        kinds = {
            "part": str, "rows": int, "bad_rows": int, "input_sha256": str, "input_stamp": list,
            "bytes": int, "sha256": str, "seconds": (int, float), "status": dict,
        }  # fmt: skip
        for name, kind in kinds.items():
            value = getattr(record, name)
            if not isinstance(value, kind) or isinstance(value, bool):  # type: ignore[arg-type]
                raise CorruptStoreError(f"{path} is damaged: {name!r} is {value!r}; remove it")
        return record

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        write_json(path, asdict(self))


@dataclass(frozen=True)
class JobManifest:
    """The description of a scores directory, as in its ``_job.json``.

    Attributes
    ----------
    settings
        Everything that decides the scores; must not change between runs.
    location
        Where the input was when the job began.
    parts
        Name and rows of every input part, in order.
    paths
        Corpus and calibration, as given.
    classes
        Names of the normal classes.
    versions
        Of the libraries that began the job.
    begun_in
        Working directory in which the job was begun: what relative paths are relative to.
    """

    settings: dict[str, Any]
    location: str
    parts: tuple[tuple[str, int], ...]
    paths: dict[str, str]
    classes: tuple[str, ...]
    versions: dict[str, str]
    begun_in: str = "."

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(rows for _, rows in self.parts)

    def find(self, path: str) -> str:
        """Return where a path of the job is now, also when asked from another directory."""
        if "://" not in path and not Path(path).exists():
            elsewhere = Path(self.begun_in) / path
            if elsewhere.exists():
                return str(elsewhere)
        return path

    def write(self, directory: Path) -> None:
        """Write ``_job.json``."""
        values = {"format": SCORES_FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        values["parts"] = [[name, rows] for name, rows in self.parts]
        write_json(directory / JOB_NAME, values)

    @classmethod
    def read(cls, directory: Path) -> JobManifest:
        """Read ``_job.json``.

        Raises
        ------
        StoreError
            There is none.
        CorruptStoreError
            It is damaged, or was written by a newer version.
        """
        path = directory / JOB_NAME
        if not path.is_file():
            raise StoreError(
                f"{directory} is not a scores directory: it has no {JOB_NAME}. "
                "Make one with 'bliss-index score'."
            )
        values = read_json(path)
        require_format(path, values, SCORES_FORMAT, FORMAT_VERSION)
        try:
            parts = tuple((name, rows) for name, rows in values["parts"])
            for name, rows in parts:
                if not isinstance(name, str) or not isinstance(rows, int) or rows < 0:
                    raise ValueError(f"part {name!r} has {rows!r} rows")
            classes = tuple(values["classes"])
            if not all(isinstance(name, str) for name in classes):
                raise ValueError("class names are no texts")
            settings, paths = values["settings"], values["paths"]
            if not isinstance(settings, dict) or not isinstance(paths, dict):
                raise ValueError("settings and paths must be objects")
            return cls(
                settings, str(values["location"]), parts, paths, classes,
                dict(values["versions"]), str(values.get("begun_in", ".")),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStoreError(f"{path} is damaged: {error!r}") from error

    def require_same(self, other: JobManifest, directory: Path) -> None:
        """Refuse to continue a job with other settings, naming both values."""
        require_same(self.settings, other.settings, directory)


def require_same(begun: dict[str, Any], now: dict[str, Any], directory: str | Path) -> None:
    """Refuse what differs from what a job was begun with, naming both values.

    Raises
    ------
    JobError
        A setting differs.
    """
    for name in sorted({*begun, *now}):
        before, after = begun.get(name), now.get(name)
        if before != after:
            raise JobError(
                f"{directory} was begun with {name} {before!r}, now it is {after!r}; continue "
                "with what it was begun with, or choose another output"
            )


def new_manifest(
    settings: dict[str, Any],
    location: str,
    parts: tuple[tuple[str, int], ...],
    paths: dict[str, str],
    classes: tuple[str, ...],
) -> JobManifest:
    """Describe a job that begins now."""
    try:
        begun_in = str(Path.cwd())
    except OSError:  # it was removed; then all paths are absolute
        begun_in = "."
    return JobManifest(settings, location, parts, paths, classes, library_versions(), begun_in)


def output_name(index: int) -> str:
    """Name of the Parquet file of a part."""
    return f"shard-{index:05d}.parquet"


def record_path(directory: Path, index: int) -> Path:
    """Where the record of a part is."""
    return directory / RECORD_FOLDER / f"shard-{index:05d}.json"
