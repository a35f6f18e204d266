"""Another normal class: of the images of a group, with all that follows from it, to be compared.

What is made has the parts of a run: the images that calibrate with their labels, the calibration,
scores of held-out images, scores of everything by stored embeddings, groups. It becomes a run when
it is accepted; until then a new one may take its place.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bliss_index.calibration import Calibration
from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.from_store import calibrate_store, numbers_of_rows
from bliss_index.calibration.labels import FOLDERS, NO_CLASS, Labels
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.jobs.description import SCREEN_KIND, JobDescription, begun_in, library_versions
from bliss_index.report.groups import groups, open_corpus
from bliss_index.review.inputs import ReviewInputs
from bliss_index.scoring import ScoresDirectory, ScoreSettings, run_job
from bliss_index.scoring.normal_scores import NormalScores, score_held_out
from bliss_index.scoring.score_inputs import is_store, open_input
from bliss_index.scoring.thresholds import rate_kept
from bliss_index.search.prepared import corpus_search
from bliss_index.storage import open_directory
from bliss_index.storage.files import make_directory, write_json
from bliss_index.store import EmbeddingStore, StoreWriter

FEWEST = 3
_READ_ROWS = 8192
_NAME = "extended-"
_MARK = "proposal.json"
LABELS = "labels.csv"


@dataclass(frozen=True)
class ClassEffect:
    """What a further class changes.

    Attributes
    ----------
    name : str
        The class.
    images : int
        That calibrate it.
    threshold : tuple of float
        Before and after, for the same rate of false alarms.
    flagged : tuple of int
        Images flagged before and after.
    no_longer, newly : (n,) int64 arrays
        Rows that are flagged before or after only, the highest earlier, or later, score first.
    groups : tuple of (str, int, int)
        Groups of before, with the images that were flagged and those that still are.
    """

    name: str
    images: int
    threshold: tuple[float, float]
    flagged: tuple[int, int]
    no_longer: npt.NDArray[np.int64]
    newly: npt.NDArray[np.int64]
    groups: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, eq=False)
class Extension:
    """A run with one normal class more than another.

    Attributes
    ----------
    inputs : ReviewInputs
        The run.
    name : str
        The class, an entry of the vocabulary.
    rows : (n,) int64 array
        Rows of the scores whose images become normal, in order.
    folder : Path
        Where it is made.
    """

    inputs: ReviewInputs
    name: str
    rows: npt.NDArray[np.int64]
    folder: Path

    @classmethod
    def begin(cls, inputs: ReviewInputs, name: str, rows: npt.NDArray[np.int64]) -> Extension:
        """Refuse what cannot be done, then make a folder for the rest.

        Raises
        ------
        InvalidInputError
            There is no run, no threshold, such a class already, no such entry, or too few images.
        StoreError
            The vocabulary, the calibration or its images are gone, or are not those of the scores.
        """
        if inputs.run is None:
            raise InvalidInputError(
                f"{inputs.scores.path} is not part of a run of 'bliss-index screen', in which a "
                "further class is kept; calibrate and score again with it"
            )
        if inputs.normal_scores is None or inputs.scores.job.settings.get("threshold") is None:
            raise InvalidInputError(
                "a further class needs flags, and scores of held-out normal images to find their "
                "threshold again"
            )
        if rows.size < FEWEST:
            raise InvalidInputError(
                f"a class needs at least {FEWEST} images, got {rows.size}; take a larger group"
            )
        made = cls(inputs, name, rows, _free(inputs.run))
        if name in made.calibration.classes:
            raise InvalidInputError(f"{name!r} is a normal class already; name another entry")
        _ = made.entry, made.known
        make_directory(made.folder)
        write_json(made.folder / _MARK, {"class": name, "images": int(rows.size)})
        return made

    @cached_property
    def corpus(self) -> EmbeddingStore:
        """The vocabulary of the scores."""
        return open_corpus(self.inputs.scores, None)

    @cached_property
    def calibration(self) -> Calibration:
        """The calibration of the scores."""
        place = self.inputs.calibration_place
        found = Calibration.load(place)
        expected = self.inputs.scores.job.settings["calibration content hash"]
        if found.content_hash != expected:
            raise StoreError(
                f"the scores were made with a calibration of content hash {expected}, {place} has "
                f"{found.content_hash}; score again"
            )
        return found

    @cached_property
    def entry(self) -> npt.NDArray[np.float32]:
        """(1, d) text embedding of the class."""
        texts = self.corpus.texts()
        prompt = dict(self.calibration.attributes).get("prompt")
        if self.name not in texts:
            raise InvalidInputError(
                f"{self.name!r} is no entry of the vocabulary, which has the text embeddings; name "
                "the class by an entry, such as the group's name"
            )
        if self.corpus.prompt != prompt:
            raise InvalidInputError(
                f"the classes were encoded with the prompt {prompt!r}, the vocabulary with "
                f"{self.corpus.prompt!r}; calibrate again with the class among --classes"
            )
        place = texts.index(self.name)
        row = self.corpus.embeddings()[place : place + 1].astype(np.float64)
        return np.asarray(row / np.linalg.norm(row), dtype=np.float32)

    @cached_property
    def known(self) -> tuple[EmbeddingStore, npt.NDArray[np.int64]]:
        """The images that calibrated, and the class of each."""
        store = self.inputs.calibrating
        attributes = dict(self.calibration.attributes)
        labels = attributes.get("labels")
        if store is None:
            raise StoreError(f"the images that calibrated are missing: {self.inputs.notices[-1]}")
        if labels == LABELS and self.inputs.run is not None:
            labels = str(self.inputs.run / LABELS)  # it is an extension itself
        elif labels not in (None, FOLDERS):
            raise InvalidInputError(
                f"the labels that calibrated were in a file {labels!r} elsewhere; calibrate again "
                "with a further class among them"
            )
        found = numbers_of_rows(
            store, Labels.open(labels, store), self.calibration.classes,
            self.calibration.class_embeddings, assign=bool(attributes.get("labels_assigned")),
            trim=float(attributes.get("trimmed_share") or 0.0),
        )  # fmt: skip
        return store, found.numbers

    @property
    def location(self) -> str:
        """Where the scored embeddings are."""
        return self.inputs.embeddings_place

    def make(self, say: Callable[[str], None]) -> ClassEffect:
        """Calibrate, hold out, score and group; then compare.

        Parameters
        ----------
        say : callable
            Hears the name of each step.

        Raises
        ------
        BlissError
            As of these steps.
        """
        say("calibrating")
        before, calibration = self.inputs.normal_scores, self.calibration
        if before is None:
            raise InvalidInputError("there are no scores of held-out normal images")
        self._write_normal()
        normal = EmbeddingStore.open(self.folder / "normal", kind="image")
        labels = Labels.read(self.folder / LABELS)
        texts = ClassTexts(
            (*calibration.classes, self.name),
            np.concatenate([np.asarray(calibration.class_embeddings, np.float32), self.entry]),
            self.corpus.model, "the calibration and the vocabulary", self.corpus.prompt,
        )  # fmt: skip
        made = calibrate_store(
            normal, labels, texts, shrinkage=calibration.shrinkage,
            image_weight=calibration.image_weight,
        )  # fmt: skip
        made.calibration.save(self.folder / "calibration")
        say("scoring held-out normal images")
        identity, settings = before.identity, self.inputs.scores.job.settings
        search = corpus_search(self.corpus, identity.k)
        held_out = score_held_out(
            normal, labels, made.calibration, self.corpus, search, lam=identity.lam,
            confidence=before.confidence,
        )  # fmt: skip
        held_out.write(self.folder / "normal-scores.parquet")
        say("scoring everything")
        run_job(
            self.location,
            self.folder / "scores",
            ScoreSettings(
                str(self.corpus.path), str(self.folder / "calibration"), identity.k, identity.lam,
                explain=bool(settings["explain"]),
                normal_scores=str(self.folder / "normal-scores.parquet"),
                false_alarm_rate=_rate_of(before, float(settings["threshold"])),
            ),
        )  # fmt: skip
        if settings["explain"]:
            say("grouping")
            groups(self.folder / "scores", self.corpus.path, out=self.folder / "groups.parquet")
        write_json(
            self.folder / "calibrated.json",
            {"settings": {"class added": self.name}, "classes": made.to_json()["classes"],
             "notices": made.notices},
        )  # fmt: skip
        say("comparing")
        return self._compare()

    def _write_normal(self) -> None:
        """Write the images that calibrate from now on, with their labels."""
        store, numbers = self.known
        kept = numbers != NO_CLASS
        if is_store(self.location) and (
            EmbeddingStore.open(self.location).content_hash == store.content_hash
        ):
            kept[self.rows] = False  # they were of another class
        names = [*self.calibration.classes, self.name]
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["key", "label"])
        with StoreWriter(
            self.folder / "normal", kind="image", model=store.model, dim=store.dim,
            dtype=store.dtype,
        ) as writer:  # fmt: skip
            for shard in store.iter_shards():
                own = np.flatnonzero(kept[shard.start : shard.start + shard.rows] & shard.good)
                keys = [f"normal/{shard.keys[row]}" for row in own.tolist()]
                classes = numbers[shard.start + own].tolist()
                writer.append(keys, shard.embeddings[own])
                lines.writerows(zip(keys, (names[c] for c in classes), strict=True))
            for some, embeddings in self._added():
                keys = [f"added/{key}" for key in some]
                writer.append(keys, embeddings)
                lines.writerows((key, self.name) for key in keys)
        (self.folder / LABELS).write_text(text.getvalue(), encoding="utf-8")

    def _added(self) -> Iterator[tuple[list[str], npt.NDArray[Any]]]:
        """Keys and embeddings of the images that become normal."""
        directory, source, start = self.inputs.scores, open_input(self.location), 0
        for planned, file in zip(directory.plan, directory.files, strict=True):
            end = start + file.rows
            begin, last = np.searchsorted(self.rows, [start, end])
            at = start
            for batch in source.find(planned).read(_READ_ROWS) if last > begin else ():
                own = self.rows[np.isin(self.rows, np.arange(at, at + len(batch.good)))] - at
                own = own[batch.good[own]]
                yield batch.keys.take(own).to_pylist(), batch.embeddings[own]
                at += len(batch.good)
            start = end

    def _compare(self) -> ClassEffect:
        after = ScoresDirectory.open(self.folder / "scores")
        (old, was), (new, now) = map(_scores_and_flags, (self.inputs.scores, after))
        gone, come = np.flatnonzero(was & ~now), np.flatnonzero(now & ~was)
        grouped = self.inputs.groups
        found = []
        if grouped is not None:
            for number, group in enumerate(grouped.groups.groups):
                rows = grouped.rows[grouped.numbers == number]
                found.append((group.name, int(was[rows].sum()), int(now[rows].sum())))
        thresholds = (
            float(directory.job.settings["threshold"]) for directory in (self.inputs.scores, after)
        )
        before_, after_ = thresholds
        return ClassEffect(
            self.name, int(self.rows.size), (before_, after_), (int(was.sum()), int(now.sum())),
            gone[np.argsort(-old[gone], kind="stable")],
            come[np.argsort(-new[come], kind="stable")], tuple(found),
        )  # fmt: skip

    def accept(self) -> None:
        """Make it a run of its own, which is reviewed like any other."""
        run = self.inputs.run
        if run is None:
            raise InvalidInputError("there is no run")
        begun = JobDescription.read(open_directory(run))
        photos = [begun.find(str(place)) for place in begun.settings.get("photos") or []]
        images = begun.facts.get("images")
        facts = {} if images is None else {
            "images": str(Path(begun.find(str(images))).absolute())
        }  # fmt: skip
        JobDescription(
            SCREEN_KIND,
            {**begun.settings, "photos": [str(Path(p).absolute()) for p in photos]},
            None, {**facts, "extends": str(run.absolute()), "class": self.name},
            library_versions(), begun_in(),
        ).create(open_directory(self.folder))  # fmt: skip


def _free(run: Path) -> Path:
    """The next folder for an extension; what was only proposed, and not accepted, gives way."""
    taken = [0]
    for path in run.glob(f"{_NAME}*"):
        number = re.fullmatch(rf"{_NAME}(\d+)", path.name)
        if number is None:
            continue
        if (path / _MARK).is_file() and not (path / "_job.json").exists():
            shutil.rmtree(path)
        else:
            taken.append(int(number[1]))
    return run / f"{_NAME}{max(taken) + 1}"


def _rate_of(normal: NormalScores, threshold: float) -> float:
    """The rate of false alarms that a threshold was made for."""
    if normal.confidence is not None:
        return rate_kept(normal.scores, threshold, normal.confidence)
    above = int((normal.scores >= threshold).sum())
    return (above + 1) / (normal.scores.size + 1)


def _scores_and_flags(
    directory: ScoresDirectory,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    table = directory.table(["anomaly_score", "flag"])
    scores = table.column("anomaly_score").to_numpy().astype(np.float64)
    flags = table.column("flag").fill_null(False).to_numpy()
    return scores, np.array(flags, dtype=bool)
