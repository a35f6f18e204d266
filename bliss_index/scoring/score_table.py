"""The columns of the output."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bliss_index.scoring.formulas import Scores
from bliss_index.scoring.score_inputs import InputRows
from bliss_index.scoring.scorer import Scorer
from bliss_index.scoring.thresholds import conformal_p_values


def scores_schema(*, explain: bool, flag: bool, p_values: bool = False) -> pa.Schema:
    """Columns of the output."""
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("anomaly_score", pa.float32()),
        pa.field("nearest_class", pa.string()),
        pa.field("internal_score", pa.float32()),
        pa.field("external_score", pa.float32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
    if flag:
        fields.append(pa.field("flag", pa.bool_()))
    if p_values:
        fields.append(pa.field("p_value", pa.float32()))
    if explain:
        fields.append(pa.field("entries", pa.list_(pa.string())))
        fields.append(pa.field("similarities", pa.list_(pa.float32())))
        fields.append(pa.field("contributions", pa.list_(pa.float32())))
    return pa.schema(fields)


class ScoreTable:
    """Makes the output's columns of scores.

    Parameters
    ----------
    scorer
        That of the job.
    entries
        Vocabulary entries, to name them in the output; None for none of that.
    threshold
        Anomaly score from which on an image is flagged; None for no flags.
    normal_scores
        (n,) scores of held-out normal images, for p-values; None for none.

    Attributes
    ----------
    schema
        Of every table that it makes.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        entries: list[str] | None = None,
        threshold: float | None = None,
        normal_scores: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self._scorer = scorer
        self._entries = None if entries is None else np.asarray(entries, dtype=object)
        self._threshold = threshold
        self._normal_scores = normal_scores
        self._classes = pa.array(scorer.calibration.classes, pa.string())
        self.schema = scores_schema(
            explain=entries is not None,
            flag=threshold is not None,
            p_values=normal_scores is not None,
        )

    def of(self, rows: InputRows, scores: Scores) -> pa.Table:
        """Put rows and the scores of the good ones among them together."""
        good = rows.good
        n = good.size

        def column(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
            if good.all():
                return pa.array(values, kind)
            spread = np.zeros(n, dtype=values.dtype)
            spread[good] = values
            return pa.array(spread, kind, mask=~good)

        def lists(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
            lengths = np.where(good, values.shape[1], 0)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            flat = pa.array(values.reshape(-1), kind)
            mask = None if good.all() else pa.array(~good)
            return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=mask)

        single = np.float32
        columns = [
            rows.keys,
            column(scores.anomaly.astype(single), pa.float32()),
            self._classes.take(column(scores.nearest_class, pa.int64())),
            column(scores.internal.astype(single), pa.float32()),
            column(scores.external.astype(single), pa.float32()),
            rows.status,
            rows.error,
        ]
        if self._threshold is not None:
            columns.append(column(scores.anomaly >= self._threshold, pa.bool_()))
        if self._normal_scores is not None:
            p_values = conformal_p_values(self._normal_scores, scores.anomaly)
            columns.append(column(p_values.astype(single), pa.float32()))
        if self._entries is not None:
            contributions = self._scorer.contributions(scores).astype(single)
            columns.append(lists(self._entries[scores.ids], pa.string()))
            columns.append(lists(scores.similarities, pa.float32()))
            columns.append(lists(contributions, pa.float32()))
        return pa.Table.from_arrays(columns, schema=self.schema)
