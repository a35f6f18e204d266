"""The steps of a screen, in their order, and what they found."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.from_store import calibrate_store
from bliss_index.calibration.labels import FOLDERS, Labels, folder_names
from bliss_index.encode.image_rows import passed_over
from bliss_index.encode.image_work import encode_image_store
from bliss_index.encode.spooled_vocabulary import SpooledVocabulary
from bliss_index.encode.text_work import encode_text_store
from bliss_index.errors import (
    CorruptStoreError,
    InvalidInputError,
    JobError,
    MissingDependencyError,
    OutputError,
)
from bliss_index.evaluation.weights import AUTO, with_chosen_weights
from bliss_index.jobs import JobListener, JobOptions
from bliss_index.jobs.description import (
    SCREEN_KIND,
    JobDescription,
    begun_in,
    library_versions,
    require_same,
)
from bliss_index.jobs.job import find_job
from bliss_index.report import ReportOptions, make_report
from bliss_index.report.aggregate import aggregate, read_rows
from bliss_index.report.gallery import PictureFolder, make_pictures
from bliss_index.report.groups import Group, groups
from bliss_index.scoring import ScoresDirectory, ScoreSettings, run_job
from bliss_index.scoring.normal_scores import NormalScores, score_held_out
from bliss_index.scoring.score_work import MANIFEST_NAME
from bliss_index.scoring.thresholds import rate_kept
from bliss_index.screening.inputs import ScreenImages, ScreenInputs
from bliss_index.screening.settings import DEFAULT_RATE, ScreenSettings
from bliss_index.search.prepared import corpus_search
from bliss_index.storage import Directory, open_directory
from bliss_index.storage.cache import cache_folder
from bliss_index.storage.directory import content_sha256, write_json
from bliss_index.storage.files import json_bytes, make_directory, parse_json
from bliss_index.store import EmbeddingStore
from bliss_index.store.import_work import import_embeddings
from bliss_index.vocabulary import prompt_templates

MOST_ANOMALOUS = 10
_KEPT_WITH = 0.95
_CALIBRATED = "calibrated.json"
_NORMAL_SCORES = "normal-scores.parquet"
_GROUPS = "groups.parquet"
_REPORT = "report.html"
_SUMMARY = "summary.json"

Watch = Callable[[str, str], AbstractContextManager[JobListener]]
"""Given a step and the verb of what is done, such as "encoded": who hears of its progress."""


@dataclass(frozen=True)
class Anomaly:
    """A photo that stands out: its score, and the entries that pulled it most, with their pull."""

    key: str
    anomaly_score: float
    nearest_class: str
    entries: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ScreenResult:
    """What was found.

    Attributes
    ----------
    output : str
        Directory of the run.
    rows, status
        Photos, and how many there are of each status; only those that are "ok" have a score.
    classes : dict of str to int
        Normal classes, and the images that each was calibrated with.
    notices : tuple of str
        What calibration left out, assigned or trimmed, and its warnings.
    threshold, false_alarm_rate : float
        Photos are flagged from this score on; the share of normal ones among those is at most the
        rate, on average or with the confidence that was asked for.
    rate_kept : float
        False-alarm rate that the threshold keeps with 95 % probability.
    flagged : int
        Photos at or above the threshold.
    groups : tuple of Group
        What the flagged photos show, the largest group first.
    most_anomalous : tuple of Anomaly
        The ten highest scores, highest first.
    scores, groups_file, report : str
        Directory of the scores; a Parquet file with the group of every flagged photo; and the
        page, which is None where what draws it is missing.
    scored_now : int
        Photos that this call scored: the others were scored before.
    """

    output: str
    rows: int
    status: dict[str, int]
    classes: dict[str, int]
    notices: tuple[str, ...]
    threshold: float
    false_alarm_rate: float
    rate_kept: float
    flagged: int
    groups: tuple[Group, ...]
    most_anomalous: tuple[Anomaly, ...]
    scores: str
    groups_file: str
    report: str | None
    scored_now: int

    @property
    def scored(self) -> int:
        """Photos with a score."""
        return self.status.get("ok", 0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def screen(
    settings: ScreenSettings,
    output: str | Path,
    *,
    devices: Sequence[str] = ("auto",),
    threads: int | None = None,
    options: JobOptions | None = None,
    watch: Watch = lambda step, done: nullcontext(JobListener()),
    say: Callable[[str], None] = lambda text: None,
) -> ScreenResult:
    """Find the photos that do not belong; run again, it continues where it stopped.

    A finished run is left as it is. Photos that came in since are encoded and scored, with the
    calibration and the threshold that the run has.

    Parameters
    ----------
    settings : ScreenSettings
        What to screen.
    output : str or Path
        Directory of the run: ``photos/`` and ``normal/`` (embeddings), ``calibration/``,
        ``normal-scores.parquet``, ``scores/``, ``groups.parquet``, ``report.html``.
    devices : sequence of str, default=("auto",)
        For encoding and scoring.
    threads : int, default=None
        For searching; None for all.
    options : JobOptions, optional
        How jobs run; its devices are not used.
    watch, say : callable
        Who hears of the progress of a step, and of sentences.

    Returns
    -------
    ScreenResult

    Raises
    ------
    InvalidInputError, StoreError, EncoderError, ModelMismatchError
        Something is missing or does not fit together; whatever can be known beforehand is refused
        before anything is made.
    JobError
        The run was begun with other settings, or a part of a step failed.
    CalibrationError
        A class has too few images.
    OutputError
        The output cannot be written.
    """
    with ExitStack() as stack:
        inputs = ScreenInputs(settings, str(output), tuple(devices), options or JobOptions(), stack)
        run = _Run(settings, str(output), inputs, threads, watch, say)
        run.begin()
        corpus = run.encoded_vocabulary()
        photos = run.embeddings_of(inputs.photos, "photos")
        normal = run.calibrated(photos, corpus)
        return run.scored(photos, corpus, normal)


@dataclass(frozen=True)
class _Run:
    """A run under way."""

    settings: ScreenSettings
    output: str
    inputs: ScreenInputs
    threads: int | None
    watch: Watch
    say: Callable[[str], None]

    @cached_property
    def directory(self) -> Directory:
        return open_directory(self.output)

    @cached_property
    def is_calibrated(self) -> bool:
        return _NORMAL_SCORES in self.directory.names()

    def begin(self) -> None:
        """Refuse what can be known to fail; then note what the run is of."""
        inputs = self.inputs
        found = find_job(self.directory, SCREEN_KIND, "'bliss-index screen'")
        begun = inputs.encoding_settings()
        if found is not None:
            require_same(found.settings, begun, self.directory.uri)
        if self.is_calibrated:
            before = self._read(_CALIBRATED)["settings"]
            try:
                require_same(before, inputs.calibration_settings(), self.directory.uri)
            except JobError as error:
                raise JobError(f"{error}: {self._advice()}") from None
        else:
            inputs.require_images()
        inputs.require_entries()
        inputs.require_one_model(calibrated=self.is_calibrated)
        if not isinstance(inputs.vocabulary, EmbeddingStore):
            self._cached(inputs.vocabulary)  # refused where the cache cannot be written
        if found is None:
            self.directory.make()
            folder = self._images()
            facts = {} if folder is None else {"images": str(folder)}
            job = JobDescription(SCREEN_KIND, begun, None, facts, library_versions(), begun_in())
            job.create(self.directory)

    def _advice(self) -> str:
        """How to try other settings without encoding again."""
        known, photos = self.inputs.known, self.inputs.photos
        places = [str(self.output + "/photos" if photos.store is None else photos.location)]
        if known is not None:
            where = f"{self.output}/normal" if known.store is None else known.location
            places.append(f"--normal {shlex.quote(where)}")
        folder = self._images()
        if folder is not None:
            places.append(f"--images {shlex.quote(str(folder))}")
        places[0] = shlex.quote(places[0])
        return (
            "to try others without encoding again, screen the embeddings of this run: "
            f"bliss-index screen {' '.join(places)} --out {shlex.quote(self.output + '-2')}, with "
            "these settings"
        )

    def embeddings_of(self, images: ScreenImages, name: str) -> EmbeddingStore:
        """Encode images, or import embeddings; a store is taken as it is."""
        if images.store is not None:
            return images.store
        output = f"{self.output}/{name}"
        settings = self.settings
        if images.source is None:
            with self.watch(f"importing {name}", "imported") as listener:
                imported = import_embeddings(
                    images.location, output, kind="image", dtype=settings.dtype,
                    model=replace(self.inputs.encoder.identity, preprocess=None),
                    options=replace(self.inputs.encoding, devices=()), listener=listener,
                )  # fmt: skip
            _require_whole(imported.failed, images.location)
        else:
            with self.watch(f"encoding {name}", "encoded") as listener:
                encoded = encode_image_store(
                    self.inputs.spec, images.source, output, dtype=settings.dtype,
                    options=self.inputs.encoding, listener=listener,
                )  # fmt: skip
            _require_whole(encoded.failed, images.location)
            if images.source.skipped:
                self.say(f"{images.location}: files passed over: {passed_over(images.source)}")
        return EmbeddingStore.open(output, kind="image")

    def encoded_vocabulary(self) -> EmbeddingStore:
        """Encode the vocabulary, unless the cache has it: by model, prompt and content."""
        vocabulary = self.inputs.vocabulary
        if isinstance(vocabulary, EmbeddingStore):
            return vocabulary
        settings, place = self.settings, self._cached(vocabulary)
        templates = prompt_templates(settings.template)
        try:
            with self.watch("encoding the vocabulary", "encoded") as listener:
                encoded = encode_text_store(
                    self.inputs.spec, vocabulary, place, templates=templates,
                    dtype=settings.dtype, options=self.inputs.encoding, listener=listener,
                )  # fmt: skip
            _require_whole(encoded.failed, str(place))
            store = EmbeddingStore.open(place, kind="text")
            for index in range(len(store.shards)):
                store.check_hash(index)
        except CorruptStoreError as error:
            raise CorruptStoreError(
                f"the cache of vocabularies is damaged: {error}. Remove {place} and run the same "
                "command again, which encodes it anew"
            ) from error
        where = "encoded into" if encoded.rows_now else "found in"
        self.say(f"vocabulary: {vocabulary.describe()}, {where} the cache: {place}")
        return store

    def _cached(self, vocabulary: SpooledVocabulary) -> Path:
        """Where the cache has a vocabulary: by model, prompt and content; makes the folder.

        Raises
        ------
        OutputError
            The cache cannot be written.
        """
        encoder = self.inputs.encoder
        decides = {
            "model": encoder.identity.to_json(),
            "precision": encoder.precision,
            "device": encoder.settings["device"],
            "template": self.settings.template,
            "dtype": self.settings.dtype,
            "entries": vocabulary.sha256,
        }
        folder = cache_folder() / "vocabularies"
        try:
            make_directory(folder)
        except OutputError as error:
            raise OutputError(
                f"vocabularies are kept in {folder}, which fails: {error}. BLISS_INDEX_CACHE names "
                "another folder"
            ) from error
        return folder / hashlib.sha256(json_bytes(decides)).hexdigest()[:32]

    def calibrated(self, photos: EmbeddingStore, corpus: EmbeddingStore) -> NormalScores:
        """Learn the normal classes and score their images held out, unless that was done.

        The scores of the held-out images are written last: with them the calibration stands, also
        when photos come in later.
        """
        path = f"{self.output}/{_NORMAL_SCORES}"
        if self.is_calibrated:
            return NormalScores.read(path)
        settings = self.settings
        images = (
            photos if self.inputs.known is None else self.embeddings_of(self.inputs.known, "normal")
        )
        labels = None
        if self.inputs.known is not None and any(folder_names(images.keys())):
            labels = Labels.open(FOLDERS, images)
        texts = self._texts(images, labels)
        assign = labels is None and len(texts.names) > 1
        with self.watch("calibrating", "read") as listener:
            chosen = settings.image_weight == AUTO
            made = calibrate_store(
                images, labels, texts, listener.advanced, assign=assign,
                trim=settings.share_to_trim, shrinkage=settings.shrinkage,
                image_weight=0.0 if chosen else float(settings.image_weight),
            )  # fmt: skip
        search = corpus_search(corpus, settings.k, threads=self.threads, keep=True)
        if chosen:
            made = with_chosen_weights(made, images, labels, corpus, search)
        made.calibration.save(f"{self.output}/calibration")
        found = score_held_out(
            images, labels, made.calibration, corpus, search, lam=settings.lam,
            confidence=settings.confidence,
        )  # fmt: skip
        found.threshold(self._rate(found))  # refused before the calibration stands
        said = made.notices
        if self.inputs.known is None:
            said.insert(0, "the photos to screen are what calibrated: no others were given")
        facts = {
            "settings": self.inputs.calibration_settings(),
            "classes": made.to_json()["classes"],
            "notices": said,
        }
        write_json(self.directory, _CALIBRATED, facts)
        found.write(path)
        return found

    def _texts(self, images: EmbeddingStore, labels: Labels | None) -> ClassTexts:
        settings, given = self.settings, self.settings.classes
        device = self.inputs.encoding.devices[0]
        if given is not None and self.inputs.is_place(given):
            return ClassTexts.open(given, images.model, template=settings.template, device=device)
        names, source = self.inputs.class_names(), "--classes"
        if names is None:
            if labels is None:
                raise InvalidInputError(
                    f"no key of {images.path} has a folder to name its class; give --classes "
                    "cat,dog"
                )
            names, source = labels.names, f"folders of {images.path}"
        return ClassTexts.of_names(
            names, images.model, template=settings.template, device=device, source=source
        )

    def _rate(self, normal: NormalScores) -> float:
        """The false-alarm rate as asked, or one that the images allow."""
        if self.settings.false_alarm_rate is not None:
            return self.settings.false_alarm_rate
        few, sure = normal.scores.size, normal.confidence
        least = 1 / (few + 1) if sure is None else 1 - (1 - sure) ** (1 / few)
        return max(DEFAULT_RATE, least)

    def scored(
        self, photos: EmbeddingStore, corpus: EmbeddingStore, normal: NormalScores
    ) -> ScreenResult:
        """Score all photos, and report what was found, unless that was done."""
        settings, scores = self.settings, f"{self.output}/scores"
        rate = self._rate(normal)
        if rate != settings.false_alarm_rate and rate > DEFAULT_RATE:
            self.say(
                f"{normal.scores.size} normal images allow no rate of false alarms below "
                f"{rate:.1%}, which is taken; {DEFAULT_RATE:.0%} needs more of them"
            )
        here = all(name.startswith(("auto", "cpu", "cuda")) for name in self.inputs.devices)
        devices = self.inputs.devices if here else ("auto",)  # others encode only
        scoring = ScoreSettings(
            str(corpus.path), f"{self.output}/calibration", settings.k,
            settings.lam, device=devices[0], threads=self.threads, explain=True,
            normal_scores=f"{self.output}/{_NORMAL_SCORES}", false_alarm_rate=rate,
        )  # fmt: skip
        with self.watch("scoring", "scored") as listener:
            done = run_job(
                photos.path,
                scores,
                scoring,
                replace(self.inputs.options, devices=devices),
                listener,
            )
        _require_whole(done.failed, scores)
        manifest = content_sha256(open_directory(scores), MANIFEST_NAME)
        report, grouped = f"{self.output}/{_REPORT}", f"{self.output}/{_GROUPS}"
        names = self.directory.names()
        found = self._read(_SUMMARY) if _SUMMARY in names else {}
        there = {_REPORT, _GROUPS} <= names.keys()
        if found.get("scores_sha256") != manifest or not there:
            listed = groups(scores, corpus.path, out=grouped).groups
            report_there = self._report(scores, report, grouped)
            found = {
                "scores_sha256": manifest,
                "groups": [asdict(group) for group in listed],
                **self._found(scores, normal, rate),
            }
            write_json(self.directory, _SUMMARY, found)
        else:
            report_there = True
        calibrated = self._read(_CALIBRATED)
        return ScreenResult(
            output=self.output,
            rows=found["rows"],
            status=found["status"],
            classes=calibrated["classes"],
            notices=tuple(calibrated["notices"]),
            threshold=found["threshold"],
            false_alarm_rate=rate,
            rate_kept=found["rate_kept"],
            flagged=found["flagged"],
            groups=tuple(map(Group.from_json, found["groups"])),
            most_anomalous=tuple(
                Anomaly(**{**one, "entries": tuple(map(tuple, one["entries"]))})
                for one in found["most_anomalous"]
            ),
            scores=scores,
            groups_file=grouped,
            report=report if report_there else None,
            scored_now=done.rows_now,
        )

    def _images(self) -> Path | None:
        """Folder of the photos, where they are in one."""
        settings = self.settings
        if settings.images is not None or len(settings.photos) != 1:
            return settings.images
        folder = Path(settings.photos[0])
        return folder if self.inputs.photos.source is not None and folder.is_dir() else None

    def _report(self, scores: str, report: str, grouped: str) -> bool:
        images = self._images()
        try:
            title = Path(self.output).name
            options = ReportOptions(images=images, title=title, groups=grouped)
            make_report(scores, report, options)
        except MissingDependencyError as error:
            self.say(f"no report.html: {error}")
            return False
        return True

    def _found(self, scores: str, normal: NormalScores, rate: float) -> dict[str, Any]:
        directory = ScoresDirectory.open(scores)
        found = aggregate(directory, 0)
        first = read_rows(directory, found.most_anomalous(MOST_ANOMALOUS))
        threshold = normal.threshold(rate).value
        return {
            "rows": found.rows,
            "status": found.status,
            "threshold": threshold,
            "rate_kept": rate_kept(normal.scores, threshold, _KEPT_WITH),
            "flagged": found.flagged,
            "most_anomalous": [
                asdict(Anomaly(one.key, one.score, one.nearest, one.entries))
                for one in make_pictures(first, PictureFolder(None))
            ],
        }

    def _read(self, name: str) -> dict[str, Any]:
        return parse_json(self.directory.read(name), f"{self.output}/{name}")


def _require_whole(failed: Sequence[tuple[str, str]], what: str) -> None:
    """Refuse to go on with a step of which parts failed."""
    if failed:
        name, reason = failed[0]
        raise JobError(
            f"{len(failed)} parts of {what} failed, the first is {name}: {reason}; run the same "
            "command again to try them once more"
        )
