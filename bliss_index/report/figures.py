"""Plots of a report, for papers and for the page."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from bliss_index.errors import MissingDependencyError, install_line
from bliss_index.evaluation.from_scores import KnownAnomalies
from bliss_index.report.aggregate import Aggregate
from bliss_index.report.histogram import histogram_edges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CLASSES = 30
_NAME_LENGTH = 28
_DPI = 200
_OTHER_SCRIPTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR",
    "WenQuanYi Zen Hei", "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic",
    "Microsoft YaHei", "Malgun Gothic", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI",
    "Arial Unicode MS",
)  # fmt: skip
_NORMAL, _ANOMALY, _BORDER = "#4878a8", "#d1603d", "#333333"


def score_histogram(found: Aggregate, given: KnownAnomalies | None = None) -> Figure:
    """Histogram of the scores with the threshold, split by what is known of the images.

    Parameters
    ----------
    found
        The scores; at least one.
    given
        Which images are known to be anomalies or normal.
    """
    figure, axes = _subplots(7.0, 3.2)
    known = found.known.astype(np.float64)
    edges, _ = histogram_edges(found)
    low, high = float(edges[0]), float(edges[-1])
    if given is None:
        axes.hist(np.clip(known, low, high), edges, color=_NORMAL)
    else:
        normal, anomalies = given.known & ~given.anomaly, given.known & given.anomaly
        for rows, name, colour, hatch in (
            (normal, "normal", _NORMAL, None), (anomalies, "anomalies", _ANOMALY, "///"),
        ):  # fmt: skip
            values = found.scores[rows].astype(np.float64)
            values = np.clip(values[~np.isnan(values)], low, high)
            axes.hist(
                values,
                edges,
                color=colour,
                alpha=0.6,
                hatch=hatch,
                label=f"{name} ({values.size:,})",
            )
    if found.threshold is not None:
        label = f"threshold {found.threshold:.4g}"
        axes.axvline(found.threshold, color=_BORDER, linestyle="--", linewidth=1, label=label)
    if given is not None or found.threshold is not None:
        axes.legend(frameon=False, loc="upper right")  # 'best' warns of many bars
    axes.set_xlabel("anomaly score (outermost bars hold all images beyond)")
    axes.set_ylabel("images")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def class_distributions(found: Aggregate) -> Figure:
    """Score quantiles of the classes nearest to most images: 5 %, median, 95 %."""
    classes = found.classes[:_MOST_CLASSES]
    figure, axes = _subplots(7.0, 1.0 + 0.24 * max(4, len(classes)))
    places = np.arange(len(classes))[::-1]
    axes.hlines(places, [c.low for c in classes], [c.high for c in classes], _NORMAL, linewidth=3)
    axes.plot([c.median for c in classes], places, "o", color=_BORDER, markersize=4)
    axes.set_yticks(places, [shortened(c.name) for c in classes], fontfamily=font_families())
    axes.set_ylim(-0.7, len(classes) - 0.3)
    if found.threshold is not None:
        axes.axvline(found.threshold, color=_BORDER, linestyle="--", linewidth=1)
    axes.set_xlabel("anomaly score: 5 % to 95 % of images, and median")
    return figure


def to_png(figure: Figure) -> bytes:
    """Draw a figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A script that no font here has is drawn as boxes; the page's table has the names.
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": ""})
    return buffer.getvalue()


def font_families() -> list[str]:
    """matplotlib's own font, and after it those installed here that know other scripts."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _OTHER_SCRIPTS if name in installed)]


def shortened(name: str) -> str:
    """A name that fits beside an axis, without what matplotlib takes for formulas."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    if len(plain) > _NAME_LENGTH:
        plain = plain[: _NAME_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return plain.replace("$", r"\$")


def _subplots(width: float, height: float) -> tuple[Figure, Any]:
    """Make a figure that no window system knows of, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            f"plots need matplotlib ({error}); {install_line('report')}"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
