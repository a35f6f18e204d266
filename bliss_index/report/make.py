"""Makes a report: reads scores once, draws, renders the page, writes it."""

from __future__ import annotations

import base64
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bliss_index.errors import InvalidInputError, MissingDependencyError
from bliss_index.evaluation.from_scores import evaluate_known, read_anomalies
from bliss_index.report.aggregate import aggregate, read_rows
from bliss_index.report.figures import class_distributions, score_histogram, to_png
from bliss_index.report.gallery import Picture, PictureFolder, make_pictures
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage.directory import write_file

if TYPE_CHECKING:
    import jinja2

DEFAULT_NAME = "_report.html"  # readers of Parquet folders skip names that begin with _
_MOST_BAD = 100
_MOST_CLASSES = 100
_TEXT_LENGTH = 160


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes
    ----------
    images
        Folder of the images, keys being paths below it; None for a report without pictures.
    link
        Refer to the image files instead of embedding thumbnails.
    labels
        File of what is known: 1 = anomaly, 0 = normal. None for nothing.
    gallery
        Number of the most anomalous images to show, and of borderline ones.
    plots
        Directory for the plots as PNG; None for none.
    resamples
        Bootstrap resamples of the metrics' intervals.
    title
        What the scores are called; None for the name of their directory.
    """

    images: Path | None = None
    link: bool = False
    labels: str | Path | None = None
    gallery: int = 24
    plots: str | Path | None = None
    resamples: int = 200
    title: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.gallery <= 500:
            raise InvalidInputError(f"gallery must lie between 0 and 500, got {self.gallery}")
        if self.images is not None and not self.images.is_dir():
            raise InvalidInputError(f"{self.images} is not a folder of images")


@dataclass(frozen=True)
class ReportSummary:
    """What was written.

    Attributes
    ----------
    path, bytes
        The page.
    rows, pictures, missing_pictures
        Rows it sums up, pictures it shows, and images it could not show.
    plots
        PNG files.
    seconds
        Time it took.
    """

    path: str
    bytes: int
    rows: int
    pictures: int
    missing_pictures: int
    plots: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def make_report(
    scores: str | Path, output: str | Path | None = None, options: ReportOptions | None = None
) -> ReportSummary:
    """Write a page about a scores directory: one file that opens anywhere, without a server.

    Memory is 8 bytes a row, and some more for the part being read.

    Parameters
    ----------
    scores
        Directory of a complete job.
    output
        HTML file, or its URI; ``_report.html`` in the directory by default.
    options
        What to show.

    Raises
    ------
    MissingDependencyError
        Jinja2 or matplotlib are not installed.
    StoreError, CorruptStoreError
        The job is not complete, or its files are damaged.
    InvalidInputError
        Labels do not fit.
    OutputError
        The page cannot be written.
    """
    began = time.perf_counter()
    options = options or ReportOptions()
    template = _template()
    directory = ScoresDirectory.open(scores)
    found = aggregate(directory, _MOST_BAD)
    known = metrics = None
    if options.labels is not None:
        known = read_anomalies(directory, options.labels)
        metrics = evaluate_known(directory, known, resamples=options.resamples)
    plots: dict[str, bytes] = {}
    if found.scored:
        plots["histogram"] = to_png(score_histogram(found, known))
        plots["classes"] = to_png(class_distributions(found))
    folder = PictureFolder(options.images, link=options.link)
    extremes = make_pictures(read_rows(directory, found.most_anomalous(options.gallery)), folder)
    border = make_pictures(read_rows(directory, found.borderline(options.gallery // 2)), folder)
    page = template.render(
        name=options.title or Path(directory.path).name,
        found=found,
        classes=found.classes[:_MOST_CLASSES],
        plots={name: _data_uri(content) for name, content in plots.items()},
        extremes=extremes,
        border=border,
        with_pictures=options.images is not None,
        with_entries=any(picture.entries for picture in extremes),
        lam=directory.job.settings["lam"],
        metrics=[] if metrics is None else metrics.rows(),
        counts=metrics,
        settings=_settings(directory),
    )
    path = output if output is not None else f"{directory.path}/{DEFAULT_NAME}"
    content = page.encode("utf-8", "replace")
    write_file(path, content)
    written = []
    if options.plots is not None:
        for name, drawn in plots.items():
            written.append(f"{options.plots}/{name}.png")
            write_file(written[-1], drawn)
    return ReportSummary(
        str(path), len(content), found.rows, *_shown((*extremes, *border)), tuple(written),
        round(time.perf_counter() - began, 2),
    )  # fmt: skip


def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            f"reports need Jinja2 ({error}); pip install 'bliss-index[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bliss_index.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["readable"] = readable
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["fixed"] = lambda value: "" if value is None else f"{value:.4f}"
    environment.filters["percent"] = percent
    return environment.get_template("template.html.j2")


def percent(share: float) -> str:
    """Write a share; a small one does not look like none."""
    return f"{share:.2%}" if share == 0 or share >= 0.0001 else f"{100 * share:.1g}%"


def readable(text: str) -> str:
    """Shorten a text, and show what cannot be seen or turns the text around it."""
    start = text[:_TEXT_LENGTH]
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in start)
    if len(text) <= _TEXT_LENGTH:
        return shown
    return f"{shown}\N{HORIZONTAL ELLIPSIS} ({len(text):,} characters)"


def _shown(pictures: tuple[Picture, ...]) -> tuple[int, int]:
    shown = sum(1 for picture in pictures if picture.source)
    return shown, len(pictures) - shown


def _settings(directory: ScoresDirectory) -> list[tuple[str, str]]:
    job = directory.job
    named = {
        "images": directory.location,
        "corpus": job.facts.get("corpus"),
        "calibration": job.facts.get("calibration"),
        **{name: value for name, value in job.settings.items() if value is not None},
        "parts": len(directory.files),
        "normal classes": len(directory.classes),
        **{f"version of {name}": value for name, value in job.versions.items()},
    }
    return [(name, str(value)) for name, value in named.items()]


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
