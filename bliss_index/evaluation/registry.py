"""Every detector by name: the one list that the command line, messages and protocols read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from bliss_index.errors import InvalidInputError

if TYPE_CHECKING:
    from bliss_index.evaluation.detector import Detector

DETECTORS = {
    "bliss": "bliss_index.evaluation.bliss:Bliss",
    "label": "bliss_index.evaluation.bliss:LabelTerm",
    "raw": "bliss_index.evaluation.detectors:RawSimilarity",
    "mcm": "bliss_index.evaluation.detectors:MaximumConceptMatching",
    "neglabel": "bliss_index.evaluation.detectors:NegLabel",
    "knn": "bliss_index.evaluation.detectors:NearestImages",
}
"""Where each is defined, "module:class", imported when it is used."""


def make_detectors(names: str | Sequence[str], *, lam: float | None = None) -> list[Detector]:
    """Make detectors by name.

    Parameters
    ----------
    names
        Such as "bliss,mcm", or with settings, "bliss:lam=1:k=5,mcm:temperature=0.01"; a detector
        with settings is called by all of that in tables.
    lam
        lambda of BLISS where its name does not set it.

    Raises
    ------
    InvalidInputError
        A detector or setting is not known (those that are get listed), or a value has another type.
    """
    listed = [n.strip() for n in (names.split(",") if isinstance(names, str) else names)]
    if not listed:
        raise InvalidInputError(f"no detector is named; known are {', '.join(DETECTORS)}")
    return [_make_detector(name, lam) for name in dict.fromkeys(listed)]


def _make_detector(text: str, lam: float | None) -> Detector:
    name, *assignments = text.split(":")
    if name not in DETECTORS:
        raise InvalidInputError(f"unknown detector {name!r}; known are {', '.join(DETECTORS)}")
    made = resolve_name(DETECTORS[name])
    default = made()
    known = {f.name: type(getattr(default, f.name)) for f in fields(default) if f.name != "name"}
    settings: dict[str, Any] = {} if lam is None or name != "bliss" else {"lam": lam}
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key not in known:
            raise InvalidInputError(
                f"detector {name!r} has no setting {key!r}; it has {', '.join(known) or 'none'}"
            )
        try:
            settings[key] = known[key](value)
        except ValueError as error:
            raise InvalidInputError(
                f"setting {key!r} of detector {name!r} must be of type {known[key].__name__}, got "
                f"{value!r}"
            ) from error
    detector: Detector = made(**settings, name=text)
    return detector
