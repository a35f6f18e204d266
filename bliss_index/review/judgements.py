"""The judgements of several people, merged; and which of them are a random sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bliss_index.errors import StoreError
from bliss_index.review.judgement_log import (
    LOG_SUFFIX,
    NO_VERDICT,
    SCORED,
    SKIP,
    VERDICTS,
    Draw,
    PersonalLog,
    read_log,
)

DISPUTED = "disputed"
"""People disagree: neither verdict counts."""


@dataclass(frozen=True, eq=False)
class Judgements:
    """The logs of all people, merged: the same logs give the same verdicts in any order.

    A verdict counts where all who judged an image agree. Who skipped it has no opinion; it counts
    as skipped where everybody did. Where people disagree it is disputed.

    Attributes
    ----------
    verdicts : dict of str to str
        By key: one of :data:`VERDICTS`, or :data:`DISPUTED`.
    people : tuple of str
        Names, in order.
    draws : tuple of Draw
        Of all people, by person and number.
    notes : tuple of str
        Lines that were passed over.
    """

    verdicts: dict[str, str]
    people: tuple[str, ...]
    draws: tuple[Draw, ...]
    notes: tuple[str, ...]

    @classmethod
    def merge(cls, logs: Iterable[PersonalLog]) -> Judgements:
        """Merge logs."""
        ordered = sorted(logs, key=lambda log: log.person)
        codes: dict[str, int] = {}
        for log in ordered:
            if not codes:
                codes = dict(log.verdicts)
                continue
            for key, code in log.verdicts.items():
                codes[key] = _agreed(codes.get(key, NO_VERDICT), code)
        names = (*VERDICTS, "", DISPUTED)
        return cls(
            {key: names[code] for key, code in codes.items()},
            tuple(log.person for log in ordered),
            tuple(draw for log in ordered for draw in log.draws),
            tuple(note for log in ordered for note in log.notes),
        )

    @classmethod
    def read(cls, folder: str | Path) -> Judgements:
        """Read and merge all logs of a folder.

        Raises
        ------
        StoreError
            It holds none.
        CorruptStoreError
            A log is damaged, or was written by a newer version.
        """
        files = log_files(Path(folder))
        if not files:
            raise StoreError(
                f"{folder} holds no judgements (NAME{LOG_SUFFIX}); 'bliss-index review' writes "
                "them into the folder 'judgements' of a run"
            )
        return cls.merge(map(read_log, files))

    @property
    def counts(self) -> dict[str, int]:
        """Keys of each verdict, those that are disputed last."""
        found = Counter(self.verdicts.values())
        return {name: found[name] for name in (*VERDICTS, DISPUTED)}

    def judged(self, draw: Draw) -> tuple[str, ...]:
        """Verdicts of the drawn images up to the first that has none.

        Only these are a random sample: who judges the images of a draw out of their order may have
        chosen them.
        """
        found = []
        for key in draw.keys:
            if (verdict := self.verdicts.get(key)) is None:
                break
            found.append(verdict)
        return tuple(found)

    def random_sample(self) -> dict[str, str]:
        """Verdicts of images that were drawn from all with a score, as far as they are judged.

        Images that somebody looked at because of their scores are not in it: they would make a
        threshold or a metric wrong.
        """
        found: dict[str, str] = {}
        for draw in self.draws:
            if draw.of == SCORED:
                found.update(zip(draw.keys, self.judged(draw), strict=False))
        return found


def _agreed(one: int, other: int) -> int:
    """What two people say together, by position; the last position is a dispute."""
    without = (VERDICTS.index(SKIP), NO_VERDICT)
    if one == other or other == NO_VERDICT:
        return one
    if one in without:
        return other
    return one if other in without else len(VERDICTS) + 1


def log_files(folder: Path) -> list[Path]:
    """The logs of a folder, by name."""
    return sorted(folder.glob(f"*{LOG_SUFFIX}")) if folder.is_dir() else []
