"""Measures this machine: how fast searching, scoring and encoding are, and the whole job."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.bench.paired import Paired, Way, seconds_of
from bliss_index.bench.synthetic import clip_like
from bliss_index.calibration import Calibration, calibrate
from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.jobs import JobListener, Record
from bliss_index.jobs.blas import one_blas_thread
from bliss_index.scoring import JobOptions, ScoreSettings, run_job
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.search.choice import make_exact
from bliss_index.search.exact import available_backends
from bliss_index.search.native.backend import load_native
from bliss_index.search.protocol import TopKSearch
from bliss_index.search.registry import FAISS, NEAR, UNAVAILABLE
from bliss_index.storage.files import make_directory
from bliss_index.store import ModelIdentity, StoreWriter

MODEL = ModelIdentity("synthetic", None)
_ROWS = 65536
_IMAGES_PER_CLASS = 200
_QUERIES = 4096
_ROUND_SECONDS = 0.5
_ROUNDS = 7
_JOB_SECONDS = 12.0
_LEAST_JOB_ROWS = _ROWS
_MOST_JOB_ROWS = 16 * _ROWS
_TEXTS, _PICTURES = 256, 48
_PICTURE_SIZE = (500, 375)
_RECALL = 0.95
_LEAST_APPROXIMATE, _MOST_APPROXIMATE = 1000, 200_000

Notify = Callable[[str], None]


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes
    ----------
    entries, classes, dim, k
        Vocabulary entries W, normal classes C, length of an embedding d, entries per image.
    images
        Images of the whole job; None for as many as take about 12 seconds.
    threads
        Of search and scoring; None for all.
    model, pretrained
        Encoder to measure, with random weights where no tag is given; no model, no encoding.
    folder
        Where to write the job's input and output; None for the system's temporary folder.
    """

    entries: int = 20_000
    classes: int = 10
    dim: int = 512
    k: int = 10
    images: int | None = None
    threads: int | None = None
    model: str | None = None
    pretrained: str | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("entries", "classes", "dim", "k"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.k > self.entries:
            raise InvalidInputError(f"k = {self.k} is more than the {self.entries} entries")


@dataclass(frozen=True)
class Approximate:
    """What an approximate index would do at this size.

    Attributes
    ----------
    kind
        Of the FAISS index.
    recall
        Share of the k best entries that it finds, on image queries that had no part in tuning it.
    rate
        Queries per second, measured in turn with the fastest exact search.
    gain
        That rate, divided by the exact search's.
    """

    kind: str
    recall: float
    rate: float
    gain: float


@dataclass(frozen=True)
class BenchReport:
    """Rates of this machine, per second.

    Attributes
    ----------
    settings
        What was measured.
    search
        Queries per second of every exact search that is installed, on data in memory; all find the
        same entries.
    search_unavailable
        Those that are not, and why.
    scoring
        Images per second of search and everything after it, on data in memory, with the fastest.
    job
        Images per second of the whole job, from mapped shards to committed Parquet; once it runs.
    job_images, job_start_seconds
        Images of that job, and what starting it took.
    encoding
        Texts and images per second of the encoder.
    approximate
        The near search, tuned on images; None without the native engine, and where building one
        takes too long.
    first_rows_seconds
        When that job's first part was committed, from its start.
    facts
        Versions and hardware.
    """

    settings: BenchSettings
    search: dict[str, float]
    search_unavailable: dict[str, str]
    scoring: float
    job: float
    job_images: int
    job_start_seconds: float
    encoding: dict[str, float] = field(default_factory=dict)
    approximate: Approximate | None = None
    first_rows_seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fastest(self) -> str:
        """Name of the fastest search."""
        return max(self.search, key=lambda name: self.search[name])

    def job_seconds(self, images: float) -> float:
        """Expected seconds of a job of so many images."""
        return self.job_start_seconds + images / self.job

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        values = asdict(self)
        values["seconds_for_100_million_images"] = round(self.job_seconds(1e8))
        return values


def run_bench(settings: BenchSettings, notify: Notify | None = None) -> BenchReport:
    """Measure with synthetic data of CLIP's shape; takes one to two minutes by default.

    Rounds of what is compared alternate, and medians are reported.

    Parameters
    ----------
    settings
        What to measure.
    notify
        Called with what is being done.

    Raises
    ------
    InvalidInputError
        Sizes do not fit each other.
    OutputError, JobError
        The temporary folder cannot be written, or memory does not suffice.
    """
    from bliss_index.report.information import describe_installation

    tell = notify or (lambda text: None)
    if settings.folder is not None:
        make_directory(Path(settings.folder))
    with tempfile.TemporaryDirectory(prefix="bliss-bench-", dir=settings.folder) as folder:
        encoding = {}
        if settings.model is not None:  # first: a model that does not load is said at once
            tell(f"encoding texts and images with {settings.model}")
            encoding = measure_encoding(Path(folder), settings.model, settings.pretrained)
        tell(f"drawing {settings.entries} entries of dimension {settings.dim}")
        entries = clip_like(settings.entries, settings.dim, "text", 1).astype(np.float16)
        calibration = make_calibration(settings.classes, settings.dim)
        queries = clip_like(_QUERIES, settings.dim, "image", 4).astype(np.float16)
        tell("measuring exact searches")
        searches, unavailable = open_searches(entries, settings)
        with one_blas_thread():
            rates = paired_rates({name: s.search for name, s in searches.items()}, queries)
            fastest = max(rates, key=lambda name: rates[name])
            tell(f"measuring scoring by {fastest} search")
            scorer = BlissScorer(searches[fastest], entries, calibration, threads=settings.threads)
            scoring = paired_rates({"scoring": scorer.score}, queries)["scoring"]
            approximate = measure_approximate(entries, queries, searches[fastest], settings, tell)
        del searches, scorer
        job_rate, job_images, start, first = measure_job(
            Path(folder), settings, entries, calibration, fastest, scoring, tell
        )
    facts, _ = describe_installation()
    return BenchReport(
        settings,
        {name: round(rate, 1) for name, rate in rates.items()},
        unavailable,
        round(scoring, 1),
        job_rate,
        job_images,
        start,
        {name: round(rate, 2) for name, rate in encoding.items()},
        approximate,
        first,
        facts,
    )


def make_calibration(classes: int, dim: int) -> Calibration:
    """Calibrate synthetic classes of 200 images each."""
    images = clip_like(_IMAGES_PER_CLASS * classes, dim, "image", 2)
    labels = np.arange(len(images)) % classes
    return calibrate([(images, labels)], clip_like(classes, dim, "text", 3), model=MODEL)


def open_searches(
    entries: npt.NDArray[Any], settings: BenchSettings
) -> tuple[dict[str, TopKSearch], dict[str, str]]:
    """Prepare every exact search that is installed; also say why others are not."""
    searches: dict[str, TopKSearch] = {}
    unavailable: dict[str, str] = {}
    for name, state in {**available_backends(), FAISS: ""}.items():
        if state.startswith(UNAVAILABLE):
            unavailable[name] = state
            continue
        try:
            searches[name] = make_exact(name, entries, settings.k, threads=settings.threads)
        except MissingDependencyError as error:
            unavailable[name] = str(error)
    return searches, unavailable


def measure_approximate(
    entries: npt.NDArray[Any],
    queries: npt.NDArray[Any],
    exact: TopKSearch,
    settings: BenchSettings,
    tell: Notify,
) -> Approximate | None:
    """Build an approximate index, tune it on images, and compare it with the exact search."""
    if not _LEAST_APPROXIMATE <= len(entries) <= _MOST_APPROXIMATE:
        return None
    from bliss_index.search.near_index import NearSearch
    from bliss_index.search.tuning import tune_index

    if load_native()[0] is None:
        return None
    tell(f"measuring an approximate search of recall {_RECALL}")
    index = NearSearch(entries, settings.k, threads=settings.threads)
    tuned = tune_index(index, queries, _RECALL, settings.k, threads=settings.threads)
    search = index.replace(effort=tuned.parameter)
    rates = paired_rates({"exact": exact.search, NEAR: search.search}, queries)
    return Approximate(
        NEAR, round(tuned.recall, 4), round(rates[NEAR], 1), round(rates[NEAR] / rates["exact"], 3)
    )


def paired_rates(
    ways: Mapping[str, Callable[[npt.NDArray[Any]], Any]], queries: npt.NDArray[Any]
) -> dict[str, float]:
    """Measure rows per second of several functions of the same rows, in alternating rounds.

    Parameters
    ----------
    ways
        Functions by name.
    queries
        (n, d) rows; slow functions get the first of them only, for about half a second a round.

    Returns
    -------
    Medians over the rounds.
    """
    fitted = {name: Way.on_rows(way, queries, _ROUND_SECONDS) for name, way in ways.items()}
    paired = Paired(fitted)
    paired.run(_ROUNDS)
    return {name: 1 / seconds for name, seconds in paired.medians().items()}


def measure_job(
    folder: Path,
    settings: BenchSettings,
    entries: npt.NDArray[Any],
    calibration: Calibration,
    search: str,
    expected: float,
    tell: Notify,
) -> tuple[float, int, float, float]:
    """Run the whole job on stores in a folder.

    Returns
    -------
    Images per second once it runs, the number of images, the seconds it took to start, and those
    until its first part was there.
    """
    images = settings.images
    if images is None:
        images = int(min(_MOST_JOB_ROWS, max(_LEAST_JOB_ROWS, _JOB_SECONDS * expected)))
    tell(f"writing {images} images for the whole job")
    names = [f"entry {i}" for i in range(settings.entries)]
    with StoreWriter(folder / "corpus", kind="text", model=MODEL, dim=settings.dim) as writer:
        writer.append(names, entries, texts=names)
    calibration.save(folder / "calibration")
    with StoreWriter(folder / "images", kind="image", model=MODEL, dim=settings.dim) as writer:
        for start in range(0, images, _ROWS):
            rows = clip_like(min(_ROWS, images - start), settings.dim, "image", 1000 + start)
            writer.append([f"{i:09}" for i in range(start, start + len(rows))], rows)
    tell("scoring them")
    job = ScoreSettings(
        str(folder / "corpus"), str(folder / "calibration"), k=settings.k, search=search,
        device="auto" if search == "cuda" else "cpu", threads=settings.threads,
    )  # fmt: skip
    clock = _Clock()
    began = time.perf_counter()
    run_job(folder / "images", folder / "scores", job, JobOptions(), clock)
    seconds = time.perf_counter() - began
    waited = round(max(0.0, seconds - clock.seconds), 2)
    return round(images / clock.seconds, 1), images, waited, round(clock.first - began, 2)


def measure_encoding(folder: Path, model: str, pretrained: str | None) -> dict[str, float]:
    """Texts and images per second of an encoder, on words and on noisy JPEGs of 500 x 375."""
    from PIL import Image

    from bliss_index.encode import load_encoder
    from bliss_index.encode.image_work import encode_image_store
    from bliss_index.encode.images import open_images
    from bliss_index.encode.random_weights import save_random_model
    from bliss_index.vocabulary import load_vocabulary, render_prompts

    if pretrained is None and ":" not in model and model != "bliss-tiny":
        (folder / "model").mkdir()
        save_random_model(model, folder / "model")
        model = f"local-dir:{folder / 'model'}"
    encoder = load_encoder(model, pretrained)
    words = load_vocabulary(["imagenet"]).entries[:_TEXTS]
    prompts = render_prompts(words)
    encoder.encode_text(prompts[:_PICTURES])
    texts = len(prompts) / seconds_of(lambda: encoder.encode_text(prompts))
    pictures = folder / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(_PICTURES):
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize(_PICTURE_SIZE)
        picture.save(pictures / f"{number:03}.jpg", quality=90)
    source = open_images(pictures)
    began = time.perf_counter()
    encode_image_store(encoder, source, folder / "encoded")
    return {"texts": texts, "images": _PICTURES / (time.perf_counter() - began)}


class _Clock(JobListener):
    """Adds up what parts took, and remembers when the first was there."""

    seconds = 0.0
    first = 0.0

    def finished_part(self, record: Record) -> None:
        self.seconds += record.seconds
        self.first = self.first or time.perf_counter()
