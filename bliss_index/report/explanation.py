"""Why an image scored as it did: its classes, and the entries that pulled its score."""

from __future__ import annotations

import difflib
import heapq
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from bliss_index.errors import InvalidInputError, JobError, StoreError, listed
from bliss_index.scoring.formulas import Scores
from bliss_index.scoring.score_inputs import InputPart, open_input
from bliss_index.scoring.score_settings import ScoreSettings, ScoringInputs
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage.files import is_address
from bliss_index.store.keys import key_meaning
from bliss_index.store.schema import OK
from bliss_index.store.source_reader import ColumnNames

_READ_ROWS = 8192
_NEAR = 5
"""Keys like one that is not there that a message names, of the first million."""
_LEAST_NEAR = 0.6
_MOST_COMPARED = 1_000_000
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class EntryPull:
    """What one vocabulary entry did to a score.

    Attributes
    ----------
    text, similarity
        The entry, and its raw similarity to the image.
    deviations
        How many standard deviations that is above what normal images of the winning class have.
    contribution
        What it adds to the anomaly score: lambda / k times the deviations.
    """

    text: str
    similarity: float
    deviations: float
    contribution: float


@dataclass(frozen=True)
class ClassTotal:
    """A normal class, and what the image's score is if only that class were normal.

    Attributes
    ----------
    name
        The class.
    anomaly_score, internal_score, external_score
        anomaly = internal + lambda * external.
    image_score
        What the image term adds to the internal score, its weight included; 0 without one.
    """

    name: str
    anomaly_score: float
    internal_score: float
    external_score: float
    image_score: float


@dataclass(frozen=True)
class Explanation:
    """Why an image scored as it did.

    Attributes
    ----------
    key, status, error
        The image, and why it has no score if it has none.
    anomaly_score, internal_score, external_score, lam
        anomaly = internal + lam * external, of the winning class.
    less_anomalous
        Share of the scored images whose score is lower.
    flag, p_value
        As in the scores; None where they have no such column.
    classes
        The normal classes in order, the winning one first.
    entries
        The k entries, the most similar first.
    """

    key: str
    status: str
    error: str | None
    anomaly_score: float | None
    internal_score: float | None
    external_score: float | None
    lam: float
    less_anomalous: float | None
    flag: bool | None
    p_value: float | None
    classes: tuple[ClassTotal, ...]
    entries: tuple[EntryPull, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def explain_image(
    scores: str | Path,
    key: str,
    *,
    images: str | None = None,
    corpus: str | None = None,
    calibration: str | None = None,
    columns: ColumnNames | None = None,
    classes: int = 5,
) -> Explanation:
    """Explain the score of one image; its embedding is read again from where the job read it.

    Parameters
    ----------
    scores
        Directory of a complete job.
    key
        The image; where several rows of one part have this key, the first of them.
    images, corpus, calibration
        Where they are now; by default where the job read them, if that is no address.
    columns
        Of Parquet input.
    classes
        How many of the normal classes to list.

    Raises
    ------
    InvalidInputError
        No row has this key, or rows of several parts have it; or an address must be named.
    StoreError
        The images, the corpus or the calibration are gone, or are no longer those of the job.
    """
    directory = ScoresDirectory.open(scores)
    part, row, found = _find(directory, key)
    if found["status"] != OK:
        return _unscored(directory, found)
    embedding = _read_embedding(directory, part, row, found["key"], images, columns)
    inputs = _open_inputs(directory, embedding, corpus, calibration)
    scorer = inputs.make_scorer()
    result = scorer.score(embedding)
    _require_same_score(found, float(result.anomaly[0]), images or directory.location)
    return Explanation(
        **_common(directory, found),
        anomaly_score=float(result.anomaly[0]),
        internal_score=float(result.internal[0]),
        external_score=float(result.external[0]),
        less_anomalous=_share_below(directory, found["anomaly_score"]),
        classes=_class_totals(scorer, result, embedding, directory.classes, classes),
        entries=_entry_pulls(scorer, result, inputs.corpus.texts()),
    )


def _common(directory: ScoresDirectory, found: dict[str, Any]) -> dict[str, Any]:
    """What an explanation says of every image, whether it has a score or not."""
    return {
        "key": found["key"], "status": found["status"], "error": found["error"],
        "lam": float(directory.job.settings["lam"]),
        "flag": found.get("flag"), "p_value": found.get("p_value"),
    }  # fmt: skip


def _unscored(directory: ScoresDirectory, found: dict[str, Any]) -> Explanation:
    return Explanation(
        **_common(directory, found), anomaly_score=None, internal_score=None,
        external_score=None, less_anomalous=None, classes=(), entries=(),
    )  # fmt: skip


def _require_same_score(found: dict[str, Any], now: float, location: str) -> None:
    """Refuse an embedding that does not give the score on record: it is another image."""
    before = found["anomaly_score"]
    if abs(now - before) > _TOLERANCE * max(1.0, abs(before)):
        raise StoreError(
            f"{found['key']!r} was scored {before:.6f}, now it scores {now:.6f}: {location} is "
            "not what was scored; give the original with --images"
        )


def _class_totals(
    scorer: BlissScorer,
    result: Scores,
    embedding: npt.NDArray[Any],
    names: tuple[str, ...],
    most: int,
) -> tuple[ClassTotal, ...]:
    """Scores of the image for each class alone, the smallest first."""
    inner = scorer.internal_scores(embedding)[0]
    outer = scorer.external_scores(result.similarities, result.ids)[0]
    total = inner + scorer.lam * outer
    image = scorer.image_scores(embedding)[0]
    order = np.argsort(total, kind="stable")[:most]
    return tuple(
        ClassTotal(names[c], *(float(part[c]) for part in (total, inner, outer, image)))
        for c in order
    )


def _entry_pulls(scorer: BlissScorer, result: Scores, texts: list[str]) -> tuple[EntryPull, ...]:
    """What each of the k entries did to the score, the most similar first."""
    columns = (
        result.ids[0], result.similarities[0],
        scorer.deviations(result)[0], scorer.contributions(result)[0],
    )  # fmt: skip
    return tuple(
        EntryPull(texts[entry], similarity, deviations, share)
        for entry, similarity, deviations, share in zip(*(c.tolist() for c in columns), strict=True)
    )


def _find(directory: ScoresDirectory, key: str) -> tuple[int, int, dict[str, Any]]:
    """Return the part and row of a key, and its row in the scores.

    Where no row has the key as it is, the only one that means the same, or whose last names are
    the key's, is taken.
    """
    places = []
    for part, table in enumerate(directory.iter_tables(["key"])):
        row = pc.index(table.column("key"), key).as_py()
        if row >= 0:
            places.append((part, row))
    if not places:
        return _find(directory, _meant(directory, key))
    if len(places) > 1:
        named = listed([f"row {row} of {directory.plan[part].name}" for part, row in places])
        raise InvalidInputError(
            f"{len(places)} parts of {directory.path} have an image {key!r}: {named}; it is not "
            "clear which is meant. Score them under different keys"
        )
    part, row = places[0]
    return part, row, directory.read(directory.files[part]).slice(row, 1).to_pylist()[0]


def _meant(directory: ScoresDirectory, key: str) -> str:
    """The key of the row that a person means by another writing of it, or by its end."""
    meaning = key_meaning(key)
    ends, near = dict[str, bool](), list[tuple[float, str]]()
    compared = difflib.SequenceMatcher(b=meaning, autojunk=False)
    rows = 0
    for table in directory.iter_tables(["key"]):
        for own in table.column("key").to_pylist():
            means = key_meaning(own)
            if means == meaning or means.endswith(f"/{meaning}"):
                ends[own] = means == meaning
            rows += 1
            if own in ends or rows > _MOST_COMPARED:
                continue
            compared.set_seq1(means)
            least = near[0][0] if len(near) == _NEAR else _LEAST_NEAR
            if compared.real_quick_ratio() > least and compared.quick_ratio() > least:
                found = (compared.ratio(), own)
                if found[0] > least:
                    (heapq.heappushpop if len(near) == _NEAR else heapq.heappush)(near, found)
    same = [own for own, is_same in ends.items() if is_same]
    if len(same or ends) == 1:
        return next(iter(same or ends))
    what = f"none of the {directory.rows} rows of {directory.path} is {key!r}"
    if ends:
        raise InvalidInputError(f"{what}, and {len(ends)} end like it: {listed(list(ends))}")
    if near:
        alike = [repr(own) for _, own in sorted(near, reverse=True)]
        raise InvalidInputError(f"{what}; near to it are {listed(alike)}")
    first = next((table.column("key")[0] for table in directory.iter_tables(["key"])
                  if table.num_rows), None)  # fmt: skip
    raise InvalidInputError(f"{what}; the first is {first and first.as_py()!r}")


def _read_embedding(
    directory: ScoresDirectory,
    part: int,
    row: int,
    key: str,
    images: str | None,
    columns: ColumnNames | None,
) -> npt.NDArray[Any]:
    """Read the embedding of an image from where the images are now: (1, d)."""
    source = open_input(_place(directory, "images", images), columns)
    planned = directory.plan[part]
    try:
        return _read_row(source.find(planned), row, key)
    except JobError as error:
        raise StoreError(
            f"{source.location} has no part {planned.name}, from which {key!r} was scored: it is "
            "not what was scored; give the original with --images"
        ) from error


def _place(directory: ScoresDirectory, what: str, given: str | None) -> str:
    """Where images, corpus or calibration are: as given, else where the job read them."""
    recorded = str(directory.job.facts.get(what))
    if given is None and is_address(recorded):
        raise InvalidInputError(
            f"the {what} of {directory.path} is at {recorded}, it says; what a file names is not "
            f"contacted: name it yourself with --{what} {recorded}"
        )
    return given or directory.job.find(recorded)


def _read_row(part: InputPart, row: int, key: str) -> npt.NDArray[Any]:
    """Read the embedding of one row: (1, d)."""
    start = 0
    for rows in part.read(_READ_ROWS):
        if row < start + len(rows.keys):
            here = row - start
            found = rows.keys[here].as_py()
            if found != key:
                raise StoreError(
                    f"row {row} of {part.name} is {found!r}, it was {key!r} when it was scored; "
                    "give the original images with --images"
                )
            return rows.embeddings[here : here + 1]
        start += len(rows.keys)
    raise StoreError(f"{part.name} has {start} rows, {key!r} was scored from row {row}")


def _open_inputs(
    directory: ScoresDirectory,
    queries: npt.NDArray[Any],
    corpus: str | None,
    calibration: str | None,
) -> ScoringInputs:
    """Open the job's corpus and calibration, and check that they are still the same."""
    recorded = directory.job.settings
    search = "auto" if recorded["search"] == "exact" else recorded["search"]
    settings = ScoreSettings(
        _place(directory, "corpus", corpus),
        _place(directory, "calibration", calibration),
        recorded["k"],
        recorded["lam"],
        search,
        device="cpu",
    )
    inputs = ScoringInputs.open(settings)
    now = inputs.result_settings()
    for name in ("corpus content hash", "calibration content hash"):
        if now[name] != recorded[name]:
            raise StoreError(
                f"{directory.path} was made with {name} {recorded[name]}, now it is {now[name]}"
            )
    chosen, _ = inputs.chosen(queries, 1)
    return replace(inputs, settings=chosen)


def _share_below(directory: ScoresDirectory, score: float) -> float:
    below = scored = 0
    for table in directory.iter_tables(["anomaly_score"]):
        column = table.column("anomaly_score")
        scored += len(column) - column.null_count
        below += pc.sum(pc.less(column, score)).as_py() or 0
    return below / scored
