"""Makes a report: reads scores once, draws, renders the page, writes it."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bliss_index.errors import InvalidInputError, MissingDependencyError, StoreError, install_line
from bliss_index.evaluation.from_scores import DEFAULT_RESAMPLES, evaluate_known, read_anomalies
from bliss_index.report.aggregate import Aggregate, aggregate, read_rows
from bliss_index.report.figures import class_distributions, score_histogram, to_png
from bliss_index.report.gallery import Picture, PictureFolder, make_pictures
from bliss_index.report.groups import Flagged, GroupedRows, find_groups, read_grouped_rows
from bliss_index.report.histogram import make_histogram
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage.directory import write_file
from bliss_index.storage.files import is_address

if TYPE_CHECKING:
    import jinja2

DEFAULT_NAME = "_report.html"  # readers of Parquet folders skip names that begin with _
_MOST_BAD = 100
_MOST_CLASSES = 100
_MOST_GROUPS = 24  # with pictures
_MOST_NAMED = 100  # beside these
_MOST_OF_A_KIND = 3
_CANDIDATES = 10_000  # highest scores among which different kinds are looked for
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
    corpus
        Where the vocabulary is now, to group the flagged images; None for where it was.
    groups
        File of groups that were found already; None to find them.
    """

    images: Path | None = None
    link: bool = False
    labels: str | Path | None = None
    gallery: int = 24
    plots: str | Path | None = None
    resamples: int = DEFAULT_RESAMPLES
    title: str | None = None
    corpus: str | None = None
    groups: str | None = None

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
    folder = PictureFolder(options.images, link=options.link, page=_folder_of(output, directory))
    grouped, why_no_groups = _groups(directory, found, options)
    largest = () if grouped is None else grouped.groups.groups[:_MOST_GROUPS]
    listed = [
        _different(found, grouped, options.gallery),
        found.borderline(options.gallery // 2),
        *(list(group.examples) if options.images else [] for group in largest),
    ]
    extremes, border, *thumbnails = _pictures(directory, folder, grouped, listed)
    cards = (*extremes, *border)
    histogram = make_histogram(found, known) if found.scored else None
    page = template.render(
        name=options.title or Path(directory.path).name,
        found=found,
        classes=found.classes[:_MOST_CLASSES],
        histogram=histogram,
        counts_json="" if histogram is None else json.dumps(histogram.counts()),
        groups=None if grouped is None else grouped.groups,
        why_no_groups=why_no_groups,
        shown_groups=list(zip(largest, thumbnails, strict=True)),
        more_groups=() if grouped is None else grouped.groups.groups[_MOST_GROUPS:][:_MOST_NAMED],
        most_of_a_kind=_MOST_OF_A_KIND,
        filter_classes=sorted({card.nearest for card in cards}),
        filter_status=sorted({card.status for card in cards}),
        filter_groups=sorted({card.group for card in cards} - {""}),
        extremes=extremes,
        border=border,
        with_pictures=options.images is not None,
        with_entries=any(picture.entries for picture in extremes),
        lam=directory.job.settings["lam"],
        metrics=[] if metrics is None else metrics.rows(),
        counts=metrics,
        settings=_settings(directory),
        **_script(),
    )
    path = output if output is not None else f"{directory.path}/{DEFAULT_NAME}"
    content = page.encode("utf-8", "replace")
    write_file(path, content)
    written = []
    if options.plots is not None and found.scored:
        plots = {"histogram": score_histogram(found, known), "classes": class_distributions(found)}
        for name, figure in plots.items():
            written.append(f"{options.plots}/{name}.png")
            write_file(written[-1], to_png(figure))
    return ReportSummary(
        str(path), len(content), found.rows,
        *_counted((*cards, *(p for some in thumbnails for p in some))),
        tuple(written), round(time.perf_counter() - began, 2),
    )  # fmt: skip


def _different(found: Aggregate, grouped: GroupedRows | None, count: int) -> list[int]:
    """Rows of the highest scores, of one group only some."""
    if grouped is None:
        return found.most_anomalous(count)
    of_group: Counter[str] = Counter()
    chosen: list[int] = []
    for row in found.most_anomalous(_CANDIDATES):
        group = grouped.name_of(row)
        of_group[group] += 1
        if not group or of_group[group] <= _MOST_OF_A_KIND:
            chosen.append(row)
    return chosen[:count]


def _pictures(
    directory: ScoresDirectory,
    folder: PictureFolder,
    grouped: GroupedRows | None,
    listed: list[list[int]],
) -> list[tuple[Picture, ...]]:
    """Make the pictures of several lists of rows, which are read together."""
    rows = sorted(set().union(*listed))
    values = dict(zip(rows, read_rows(directory, rows), strict=True))
    return [
        make_pictures(
            [values[row] for row in some],
            folder,
            ["" if grouped is None else grouped.name_of(row) for row in some],
        )
        for some in listed
    ]


def _groups(
    directory: ScoresDirectory, found: Aggregate, options: ReportOptions
) -> tuple[GroupedRows | None, str]:
    """Groups of the flagged images, or of the highest scores; or why there are none."""
    if options.groups is not None:
        return read_grouped_rows(options.groups, directory), ""
    if not directory.job.settings.get("explain") or found.border is None:
        return None, ""
    try:
        given = found.border if found.threshold is None else None
        return find_groups(Flagged.open(directory, options.corpus, given)), ""
    except (InvalidInputError, StoreError) as error:
        if options.corpus is not None:
            raise
        return None, str(error)


def _folder_of(output: str | Path | None, directory: ScoresDirectory) -> Path | None:
    """The local folder of the page; None where it is not in one."""
    if is_address(output if output is not None else directory.path):
        return None
    return Path(directory.path) if output is None else Path(output).parent


def _script() -> dict[str, str]:
    """The page's script, which its security policy names by hash."""
    import markupsafe

    text = resources.files("bliss_index.report").joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
    return {"script": markupsafe.Markup(text), "script_sha256": digest}


def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependencyError(
            f"reports need Jinja2 ({error}); {install_line('report')}"
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


def _counted(pictures: tuple[Picture, ...]) -> tuple[int, int]:
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
    return [(name, in_words(value)) for name, value in named.items() if value is not None]


def in_words(value: Any) -> str:
    """Write a setting without the marks of a programming language."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {in_words(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value)) or "none"
    return "none" if value is None else str(value)
