"""A review under way: what is shown, what was judged, and what that says."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bliss_index.errors import InvalidInputError
from bliss_index.review.catalogue import Catalogue, Filters, Ids
from bliss_index.review.estimates import budget, estimate
from bliss_index.review.inputs import ReviewInputs
from bliss_index.review.judgement_log import (
    DOES_NOT_BELONG,
    SCORED,
    UNFLAGGED,
    VERDICTS,
    Draw,
    JudgementLog,
    PersonalLog,
    read_log,
)
from bliss_index.review.judgements import DISPUTED, Judgements, log_files
from bliss_index.review.proposal import ExtensionProposal
from bliss_index.store.schema import OK

UNJUDGED = "unjudged"
CODES = (UNJUDGED, *VERDICTS, DISPUTED)
"""What an image may be; its position is the image's code."""

_MOST_AT_ONCE = 1_000_000
_MOST_ROWS = 500
_MOST_DRAWN = 10_000
_MOST_COPIES = 20
_MOST_GROUPS = 5
_MOST_EXAMPLES = 12
_KEPT_VIEWS = 6


@dataclass(frozen=True, eq=False)
class View:
    """Images that are shown, in their order: one number for every set of copies."""

    name: str
    ids: Ids
    filters: dict[str, Any]


class ReviewSession:
    """The state of a review, for one person; a context manager.

    Every method may be called from any thread.

    Parameters
    ----------
    inputs : ReviewInputs
        What is reviewed.
    person : str
        Whose judgements are written.

    Raises
    ------
    OutputError
        The log cannot be written, or another process writes it.
    CorruptStoreError
        A log or the scores are damaged.
    MissingDependencyError
        DuckDB is not installed.
    """

    def __init__(self, inputs: ReviewInputs, person: str) -> None:
        self.inputs = inputs
        self._stack = ExitStack()
        self._log = JudgementLog(inputs.judgements, person)
        self._lock = threading.RLock()
        self._proposal = ExtensionProposal(inputs)
        self._views: OrderedDict[str, View] = OrderedDict()
        self._others: dict[Path, tuple[tuple[int, int], PersonalLog]] = {}

    def __enter__(self) -> ReviewSession:
        with ExitStack() as stack:
            stack.enter_context(self._log)
            self.catalogue = Catalogue(
                self.inputs.scores, self.inputs.groups, self.inputs.identical
            )
            stack.callback(self.catalogue.close)
            self._flags, self._groups = self.catalogue.flags_and_groups()
            self._codes = np.zeros(self.catalogue.rows, np.int8)
            self._refresh(force=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def person(self) -> str:
        """Whose judgements are written."""
        return self._log.log.person

    # What people decided

    def _logs(self) -> list[PersonalLog]:
        return [self._log.log, *(log for _, log in self._others.values())]

    @property
    def judgements(self) -> Judgements:
        """All logs, merged."""
        return Judgements.merge(self._logs())

    def _refresh(self, *, force: bool = False) -> None:
        """Read the logs of others, where they have grown."""
        found = {}
        for path in log_files(self.inputs.judgements):
            if path != self._log.path:
                state = path.stat()
                stamp = (state.st_size, state.st_mtime_ns)
                known = self._others.get(path)
                same = known is not None and known[0] == stamp
                found[path] = known if known and same else (stamp, read_log(path))
        if found == self._others and not force:
            return
        self._others = found
        verdicts = self.judgements.verdicts
        self._codes[:] = 0
        self._set_codes(self.catalogue.ids_of("key", list(verdicts)), verdicts.values())

    def _set_codes(self, ids: Ids, verdicts: Iterable[str]) -> None:
        codes = np.fromiter((CODES.index(name) for name in verdicts), np.int8, len(ids))
        self._codes[ids[ids >= 0]] = codes[ids >= 0]

    def _update(self, ids: Ids, keys: Sequence[str]) -> None:
        """Let what was just judged or undone show."""
        if not self._others:
            own = self._log.log.verdicts
            self._codes[ids[ids >= 0]] = [
                own.get(key, -1) + 1 for key, at in zip(keys, ids, strict=True) if at >= 0
            ]
            return
        logs = [
            PersonalLog(log.person, {key: log.verdicts[key] for key in keys if key in log.verdicts})
            for log in self._logs()
        ]
        merged = Judgements.merge(logs).verdicts
        self._set_codes(ids, (merged.get(key, UNJUDGED) for key in keys))

    def judge(self, view: str, ranges: Sequence[tuple[int, int]], verdict: str) -> dict[str, Any]:
        """Judge images by their places in a view; on disk before this returns.

        Parameters
        ----------
        view : str
            Name of the view.
        ranges : sequence of (int, int)
            From the first place to before the second.
        verdict : str
            One of :data:`~bliss_index.review.judgement_log.VERDICTS`.

        Returns
        -------
        dict
            ``images``, with copies; ``places`` judged; and the new ``counts``.

        Raises
        ------
        InvalidInputError
            A place is not in the view, or they are more than a million.
        OutputError
            The log cannot be written: nothing was judged.
        """
        shown = self.view_of(view)
        for first, end in ranges:
            if not 0 <= first < end <= shown.ids.size:
                raise InvalidInputError(
                    f"places {first} to {end} are not in a view of {shown.ids.size} images"
                )
        chosen = np.concatenate([shown.ids[first:end] for first, end in ranges])
        with self._lock:
            ids = self.catalogue.copies.members_of(chosen)
            if ids.size > _MOST_AT_ONCE:
                raise InvalidInputError(
                    f"{ids.size} images at once are more than the {_MOST_AT_ONCE} allowed; narrow "
                    "the view"
                )
            keys = self.catalogue.keys_of(ids)
            self._log.judge(verdict, keys, {"view": shown.filters, "shown": int(chosen.size)})
            self._update(ids, keys)
            return {"images": int(ids.size), "places": int(chosen.size), "counts": self.counts()}

    def undo(self) -> dict[str, Any]:
        """Take back this person's last verdict that stands; ``images`` is 0 where none is left."""
        with self._lock:
            undone = self._log.undo()
            if undone is None:
                return {"images": 0, "verdict": None, "counts": self.counts()}
            verdict, keys = undone
            self._update(self.catalogue.ids_of("key", keys), keys)
            return {"images": len(keys), "verdict": verdict, "counts": self.counts()}

    def counts(self) -> dict[str, int]:
        """Images of every code."""
        found = np.bincount(self._codes, minlength=len(CODES)).tolist()
        return dict(zip(CODES, found, strict=True))

    # What is shown

    def make_view(
        self, filters: Filters, verdict: str | None = None, draw: str | None = None
    ) -> dict[str, Any]:
        """Make a view, which stays as it is while its images are judged.

        Parameters
        ----------
        filters : Filters
            Which images, and their order.
        verdict : str, default=None
            One of :data:`CODES`; None for all.
        draw : str, default=None
            Name of a draw, in whose order the images come then.

        Returns
        -------
        dict
            Its name ``view``; ``shown`` and ``images`` (with copies); of these the ``flagged``,
            the largest ``groups`` with their images, and ``counts`` of every code.

        Raises
        ------
        InvalidInputError
            There is no such group, verdict or draw.
        """
        if verdict is not None and verdict not in CODES:
            raise InvalidInputError(f"verdict {verdict!r} is not one of {', '.join(CODES)}")
        with self._lock:
            self._refresh()
            if draw is None:
                ids = self.catalogue.select(filters)
            else:
                drawn = self.catalogue.ids_of("key", list(self._draw(draw).keys))
                ids = drawn[drawn >= 0]
            if verdict is not None:
                ids = ids[self._codes[ids] == CODES.index(verdict)]
            counts = np.bincount(self._codes[ids], minlength=len(CODES)).tolist()
            asked = {**asdict(filters), "verdict": verdict, "draw": draw}
            made = View(
                secrets.token_hex(6),
                self.catalogue.copies.one_of_each(ids),
                {name: value for name, value in asked.items() if value is not None},
            )
            self._views[made.name] = made
            while len(self._views) > _KEPT_VIEWS:
                self._views.popitem(last=False)
        return {
            "view": made.name,
            "shown": int(made.ids.size),
            "images": int(ids.size),
            "flagged": int(self._flags[ids].sum()),
            "groups": self._groups_of(ids),
            "counts": dict(zip(CODES, counts, strict=True)),
        }

    def _groups_of(self, ids: Ids) -> list[tuple[str, int]]:
        """The groups that most of some images are in, with how many."""
        names = self.catalogue.group_names
        found = np.bincount(self._groups[ids] + 1, minlength=len(names) + 1)[1:]
        first = np.argsort(-found, kind="stable")[:_MOST_GROUPS]
        return [(names[i], int(found[i])) for i in first.tolist() if found[i]]

    def view_of(self, name: str) -> View:
        """Return a view; KeyError where it is no longer kept, so that it must be made again."""
        with self._lock:
            view = self._views[name]
            self._views.move_to_end(name)
            return view

    def rows(self, view: str, first: int, count: int) -> list[dict[str, Any]]:
        """Return what tiles show of some places of a view, at most 500."""
        if first < 0 or not 0 < count <= _MOST_ROWS:
            raise InvalidInputError(f"rows {first}, {count}: ask for 1 to {_MOST_ROWS} at a time")
        ids = self.view_of(view).ids[first : first + count]
        sizes = self.catalogue.copies.size_of(ids).tolist()
        names = self.catalogue.group_names
        found = self.catalogue.look_up(ids)
        for row, size, code in zip(found, sizes, self._codes[ids].tolist(), strict=True):
            number = row.pop("number")
            row.update(group=names[number] if number >= 0 else "", copies=size, verdict=CODES[code])
        return found

    def key_of(self, image: int) -> str:
        """Return the key of an image by its number."""
        if not 0 <= image < self.catalogue.rows:
            raise InvalidInputError(
                f"there is no image {image}; there are {self.catalogue.rows}, counted from 0"
            )
        return self.catalogue.keys_of(np.array([image], np.int32))[0]

    def detail(self, image: int) -> dict[str, Any]:
        """Return all that is known of one image."""
        self.key_of(image)
        one = np.array([image], np.int32)
        (row,) = self.catalogue.look_up(one)
        members = self.catalogue.copies.members_of(one)
        with self._lock:
            said = {
                log.person: VERDICTS[log.verdicts[row["key"]]]
                for log in self._logs() if row["key"] in log.verdicts
            }  # fmt: skip
        return {
            **self.catalogue.scores_of(row["row"]),
            "copies": self.catalogue.keys_of(members[:_MOST_COPIES]),
            "people": said,
            "calibrated": row["calibrated"],
        }

    def facts(self) -> dict[str, Any]:
        """Return what the page shows of the whole, and offers to filter by."""
        catalogue, settings = self.catalogue, self.inputs.scores.job.settings
        with self._lock:
            self._refresh()
            people = sorted(log.person for log in self._logs())
            notes = [note for log in self._logs() for note in log.notes]
        return {
            "name": Path(self.inputs.run or self.inputs.scores.path).resolve().name,
            "catalogue": catalogue.name,
            "person": self.person,
            "people": people,
            "rows": catalogue.rows,
            "counts": self.counts(),
            "threshold": settings.get("threshold"),
            "lam": settings["lam"],
            "pictures": self.inputs.images is not None,
            "extendable": self.inputs.run is not None,
            "notices": [*self.inputs.notices, *notes],
            **self._offered,
        }

    @cached_property
    def _offered(self) -> dict[str, Any]:
        counted = self.catalogue.rows_of
        classes = counted(
            "SELECT nearest, count(*) FROM images WHERE nearest IS NOT NULL GROUP BY ALL "
            "ORDER BY 2 DESC, 1"
        )
        groups = dict(counted("SELECT number, count(*) FROM images WHERE number >= 0 GROUP BY ALL"))
        ((flagged, scored),) = counted(
            f"SELECT count(*) FILTER (flag), count(*) FILTER (status = '{OK}') FROM images"
        )
        return {
            "classes": classes,
            "groups": [[name, groups.get(i, 0)]
                       for i, name in enumerate(self.catalogue.group_names)],
            "flagged": flagged,
            "scored": scored,
            "words": self.catalogue.strongest_words(),
            "budget": budget(self.inputs.normal_scores, self.catalogue.scores()),
        }  # fmt: skip

    # Random samples

    def draw(self, of: str, size: int, threshold: float | None = None) -> dict[str, Any]:
        """Draw images at random, to be judged in that order, and note it.

        Parameters
        ----------
        of : str
            "scored", from all with a score, for thresholds and metrics; or "unflagged", from those
            below the threshold that nobody judged, to bound how many anomalies were missed.
        size : int
            How many, at most 10,000.
        threshold : float, default=None
            That of a draw of unflagged images; None for that of the scores.

        Raises
        ------
        InvalidInputError
            There are no such images, or no threshold.
        OutputError
            The log cannot be written.
        """
        if not 0 < size <= _MOST_DRAWN:
            raise InvalidInputError(f"a draw has 1 to {_MOST_DRAWN} images, got {size}")
        with self._lock:
            self._refresh()
            if of == UNFLAGGED:
                if threshold is None:
                    threshold = self.inputs.scores.job.settings.get("threshold")
                if threshold is None:
                    raise InvalidInputError(
                        "the scores have no flags: say below which anomaly score to draw"
                    )
                ids = self.catalogue.select(Filters(most=threshold))
                ids = ids[self._codes[ids] == 0]
            elif of == SCORED:
                threshold = None
                ids = self.catalogue.select(Filters(least=float("-inf")))
            else:
                raise InvalidInputError(f"{of!r} is not one of {SCORED}, {UNFLAGGED}")
            if not ids.size:
                raise InvalidInputError("there are no images to draw from")
            chosen = np.random.default_rng().choice(ids, min(size, ids.size), replace=False)
            made = self._log.draw(of, int(ids.size), self.catalogue.keys_of(chosen), threshold)
            return self._estimate(made)

    def _draw(self, name: str) -> Draw:
        for log in self._logs():
            for draw in log.draws:
                if draw.name == name:
                    return draw
        raise InvalidInputError(f"there is no draw {name!r}")

    def _estimate(self, draw: Draw) -> dict[str, Any]:
        return {"draw": draw.name, **asdict(estimate(self.judgements, draw))}

    def draws(self) -> list[dict[str, Any]]:
        """Return what every draw says so far, the latest first."""
        with self._lock:
            self._refresh()
            found = sorted(self.judgements.draws, key=lambda draw: draw.time, reverse=True)
            return [self._estimate(draw) for draw in found]

    # A group that is normal, too

    def propose(self, group: str, name: str) -> dict[str, Any]:
        """Begin to make a group a normal class: all is scored again, and compared.

        Parameters
        ----------
        group : str
            Its images become normal, but those judged not to belong.
        name : str
            Of the class: an entry of the vocabulary.

        Raises
        ------
        InvalidInputError, StoreError
            As of :meth:`bliss_index.review.extension.Extension.begin`.
        """
        with self._lock:
            self._refresh()
            ids = self.catalogue.select(Filters(group=group))
            ids = ids[self._codes[ids] != CODES.index(DOES_NOT_BELONG)]
        found = self.catalogue.look_up(ids)
        self._proposal.begin(name, np.array([row["row"] for row in found], np.int64))
        return self.proposal()

    def proposal(self) -> dict[str, Any]:
        """Return what is known of it: its state, and in the end what it changes.

        ``contradicted`` counts images judged not to belong that would no longer be flagged;
        ``examples`` are the first images that would no longer be, and newly be flagged.
        """
        found, of = self._proposal.to_json(), self._proposal.comparison
        if of is not None:
            gone, come = (self.catalogue.ids_of("row", rows) for rows in (of.no_longer, of.newly))
            bad = CODES.index(DOES_NOT_BELONG)
            found["contradicted"] = int((self._codes[gone] == bad).sum())
            found["examples"] = {
                name: [{"id": int(image), "key": self.key_of(int(image))}
                       for image in ids[:_MOST_EXAMPLES]]
                for name, ids in (("no_longer", gone), ("newly", come))
            }  # fmt: skip
        return found

    def accept(self) -> dict[str, Any]:
        """Accept the proposal; errors as of :meth:`ExtensionProposal.accept`."""
        self._proposal.accept()
        return self.proposal()
