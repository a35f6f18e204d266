"""Scores with their reasons in words: as a table, in a notebook, as a plot."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.errors import InvalidInputError, MissingDependencyError, install_line
from bliss_index.scoring.formulas import Scores

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

_SHOWN_ROWS = 20
_SHOWN_ENTRIES = 3


@dataclass(frozen=True, eq=False)
class ExplainedScores(Scores):
    """Scores of n images, and what made them.

    Attributes
    ----------
    classes : tuple of str
        Names of the normal classes; ``nearest_class`` counts them.
    entries : (n, k) array of str
        Vocabulary entries most similar to each image; ``similarities`` and ``ids`` go with them.
    contributions : (n, k) float64 array
        What each entry adds to the anomaly score; the sum is lambda times ``external``.
    threshold : float
        From above which an image is an anomaly.
    """

    classes: tuple[str, ...]
    entries: npt.NDArray[Any]
    contributions: npt.NDArray[np.float64]
    threshold: float

    def __len__(self) -> int:
        return int(self.anomaly.size)

    @property
    def nearest_names(self) -> list[str]:
        """Name of every image's nearest class."""
        return [self.classes[c] for c in self.nearest_class.tolist()]

    def to_arrow(self) -> pa.Table:
        """Return a row for every image, with the columns of a scores directory.

        ``anomaly_score, nearest_class, internal_score, external_score, flag, entries,
        similarities, contributions``.
        """
        return pa.table(
            {
                "anomaly_score": self.anomaly,
                "nearest_class": pa.array(self.nearest_names, pa.string()),
                "internal_score": self.internal,
                "external_score": self.external,
                "flag": self.anomaly > self.threshold,
                "entries": pa.array(self.entries.tolist(), pa.list_(pa.string())),
                "similarities": pa.array(self.similarities.tolist(), pa.list_(pa.float32())),
                "contributions": pa.array(self.contributions.tolist(), pa.list_(pa.float64())),
            }
        )

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table of :meth:`to_arrow` as a DataFrame; MissingDependencyError without."""
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                f"a DataFrame needs pandas ({error}); pip install pandas, or take to_arrow()"
            ) from error
        return self.to_arrow().to_pandas()

    def reasons(self, row: int, most: int = _SHOWN_ENTRIES) -> list[tuple[str, float]]:
        """Return the entries that moved a score most, with what they add, the largest first."""
        order = np.argsort(-np.abs(self.contributions[row]), kind="stable")[:most]
        return [(str(self.entries[row, j]), float(self.contributions[row, j])) for j in order]

    def __repr__(self) -> str:
        return (
            f"ExplainedScores({len(self)} images, {(self.anomaly > self.threshold).sum()} flagged)"
        )

    def _repr_html_(self) -> str:
        """Show the first rows in a notebook."""
        head = "".join(
            f"<th>{name}</th>" for name in ("", "score", "nearest class", "what pulled it")
        )
        lines = []
        for row in range(min(len(self), _SHOWN_ROWS)):
            pulls = ", ".join(f"{text} {pull:+.3f}" for text, pull in self.reasons(row))
            flag = " (anomaly)" if self.anomaly[row] > self.threshold else ""
            cells = (str(row), f"{self.anomaly[row]:.4f}{flag}", self.nearest_names[row], pulls)
            lines.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        more = f"<p>{len(self):,} images</p>" if len(self) > _SHOWN_ROWS else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def plot(self, row: int = 0, axes: Axes | None = None) -> Axes:
        """Draw what the entries of one image add to its score, the largest on top.

        Parameters
        ----------
        row : int, default=0
            The image.
        axes : matplotlib Axes, default=None
            Where to draw; by default in a figure of its own.

        Raises
        ------
        InvalidInputError
            There is no such row.
        MissingDependencyError
            matplotlib is not installed.
        """
        if not 0 <= row < len(self):
            raise InvalidInputError(f"row must lie between 0 and {len(self) - 1}, got {row}")
        pulls = self.reasons(row, self.contributions.shape[1])[::-1]
        if axes is None:
            try:
                from matplotlib.figure import Figure
            except ImportError as error:
                raise MissingDependencyError(
                    f"plots need matplotlib ({error}); {install_line('report')}"
                ) from error
            axes = Figure(figsize=(6.0, 0.8 + 0.28 * len(pulls)), layout="constrained").subplots()
        axes.barh(range(len(pulls)), [pull for _, pull in pulls])
        axes.set_yticks(range(len(pulls)), [text.replace("$", r"\$") for text, _ in pulls])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("adds to the anomaly score")
        axes.set_title(
            f"{self.anomaly[row]:.3f} = internal {self.internal[row]:.3f} "
            f"{self.contributions[row].sum():+.3f}, nearest to {self.nearest_names[row]}"
        )
        return axes
