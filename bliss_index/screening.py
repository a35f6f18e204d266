"""The whole chain in one directory: encode, calibrate, find the threshold, score, report.

Nothing is computed here: the steps are those of the other commands, in their order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.from_store import calibrate_store
from bliss_index.calibration.labels import FOLDERS, ClassNames, Labels, folder_names
from bliss_index.calibration.unlabelled import require_trim
from bliss_index.devices import resolve_device
from bliss_index.encode.encode_work import DEFAULT_MODEL, EncoderSpec, SharedSpec
from bliss_index.encode.image_rows import ImageSource
from bliss_index.encode.image_work import encode_image_store
from bliss_index.encode.images import open_images
from bliss_index.encode.model import ENCODER_DEVICES, Encoder
from bliss_index.encode.spooled_vocabulary import SpooledVocabulary, spool_vocabulary
from bliss_index.encode.text_work import encode_text_store
from bliss_index.errors import InvalidInputError, JobError, MissingDependencyError, listed
from bliss_index.jobs import JobListener, JobOptions
from bliss_index.jobs.description import (
    JobDescription,
    begun_in,
    library_versions,
    require_same,
)
from bliss_index.jobs.job import find_job
from bliss_index.report import ReportOptions, make_report
from bliss_index.report.aggregate import aggregate, read_rows
from bliss_index.report.gallery import PictureFolder, make_pictures
from bliss_index.scoring import ScoresDirectory, ScoreSettings, run_job
from bliss_index.scoring.normal_scores import NormalScores, score_held_out
from bliss_index.scoring.score_inputs import is_store, open_input
from bliss_index.scoring.score_work import MANIFEST_NAME
from bliss_index.scoring.thresholds import rate_kept, threshold_at
from bliss_index.search import exact_search
from bliss_index.storage import open_directory
from bliss_index.storage.cache import cache_folder
from bliss_index.storage.directory import content_sha256, write_json
from bliss_index.storage.files import is_address, json_bytes, parse_json
from bliss_index.store import EmbeddingStore, ModelIdentity, require_same_model
from bliss_index.store.import_work import import_embeddings
from bliss_index.vocabulary import (
    DEFAULT_TEMPLATE,
    clean_entry,
    load_vocabulary,
    require_template,
)

KIND = "screen"
DEFAULT_RATE = 0.01
DEFAULT_TRIM = 0.1
"""Share of photos to leave out where the photos to screen calibrate themselves."""
MOST_ANOMALOUS = 10
_KEPT_WITH = 0.95
_CALIBRATED = "calibrated.json"
_NORMAL_SCORES = "normal-scores.parquet"
_SUMMARY = "summary.json"
_LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".parquet", ".gz")
_LISTED_ROWS = 4096

Watch = Callable[[str, str], AbstractContextManager[JobListener]]
"""Given a step and the verb of what is done, such as "encoded": who hears of its progress."""


@dataclass(frozen=True)
class ScreenSettings:
    """What is screened, and how.

    Attributes
    ----------
    photos : tuple of str
        Folders, tars or tables of images; or one image store; or embeddings, see `embeddings`.
    normal : str, default=None
        Known normal images, of any of these kinds; their first folders are the classes. None where
        the photos themselves calibrate.
    classes : str, default=None
        Names of the normal classes, with commas between them, or a file or text store of names.
        None for all folders of `normal`.
    vocabulary : tuple of str, default=("imagenet",)
        Files of entries and built-in lists, encoded once; or one text store.
    model, pretrained : str, default=None
        The model; by default that of the image store, else the paper's.
    precision, preprocess, batch_size
        As for :class:`bliss_index.encode.encode_work.EncoderSpec`.
    embeddings : bool, default=False
        Photos, and normal images, are embeddings that the model made, in a layout of ``import``.
    template : str
        Prompt for the entries and the class names.
    dtype : str, default="float16"
        Type of stored embeddings.
    trim : float, default=None
        Share of every class to leave out, those farthest from its centre; by default a tenth where
        the photos themselves calibrate, else none.
    shrinkage : float, default=0
        As for :func:`bliss_index.calibration.from_store.calibrate_store`.
    k, lam
        Entries per image, and the weight of the external score.
    false_alarm_rate : float, default=None
        Largest share of normal images to flag; by default 0.01, or the smallest that so few normal
        images allow.
    confidence : float, default=None
        With which the rate is kept; None for a rate that is kept on average.
    images : Path, default=None
        Folder of the photos for the report's pictures; by default `photos`, if it is one folder.
    """

    photos: tuple[str, ...]
    normal: str | None = None
    classes: str | None = None
    vocabulary: tuple[str, ...] = ("imagenet",)
    model: str | None = None
    pretrained: str | None = None
    precision: str = "float32"
    preprocess: str = "model"
    batch_size: int | None = None
    embeddings: bool = False
    template: str = DEFAULT_TEMPLATE
    dtype: str = "float16"
    trim: float | None = None
    shrinkage: float = 0.0
    k: int = 10
    lam: float = 0.5
    false_alarm_rate: float | None = None
    confidence: float | None = None
    images: Path | None = None

    def __post_init__(self) -> None:
        if self.normal is None and self.classes is None:
            raise InvalidInputError(
                "what is normal must be said: --normal FOLDER of known images, whose sub-folders "
                "are the classes, or --classes cat,dog alone"
            )
        require_template(self.template)
        require_trim(self.trim or 0.0)
        ScoreSettings("", "", self.k, self.lam)  # refuses what scoring will not take
        ReportOptions(images=self.images)

    @property
    def share_to_trim(self) -> float:
        """Share of every class to leave out."""
        if self.trim is not None:
            return self.trim
        return DEFAULT_TRIM if self.normal is None else 0.0


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
    most_anomalous : tuple of Anomaly
        The ten highest scores, highest first.
    scores, report : str
        Directory of the scores, and the page; the page is None where what draws it is missing.
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
    most_anomalous: tuple[Anomaly, ...]
    scores: str
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
        ``normal-scores.parquet``, ``scores/``, ``report.html``.
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
        run = _Run(settings, str(output), tuple(devices), threads, options or JobOptions(),
                   watch, say, stack)  # fmt: skip
        run.begin()
        photos = run.embeddings_of(run.photos, "photos")
        normal = run.calibrated(photos)
        return run.scored(photos, normal)


@dataclass(frozen=True)
class _Images:
    """Images to encode, embeddings to import, or a store that is there."""

    location: str
    source: ImageSource | None = None
    store: EmbeddingStore | None = None

    @classmethod
    def open(cls, locations: Sequence[str], embeddings: bool) -> _Images:
        if len(locations) == 1 and (embeddings or is_store(locations[0])):
            found = open_input(locations[0]).source
            return cls(locations[0], store=found if isinstance(found, EmbeddingStore) else None)
        if embeddings:
            raise InvalidInputError(
                f"embeddings are taken from one place, got {len(locations)}: {listed(locations)}; "
                "put their files into one folder"
            )
        return cls(", ".join(map(str, locations)), open_images(locations))

    def rows(self) -> int | None:
        """Number of images; None where it is not known yet."""
        if self.source is not None:
            return self.source.rows()
        return None if self.store is None else self.store.rows

    def folders(self) -> Counter[str] | None:
        """Images by first folder, of a folder or a store; None where it is not known yet."""
        keys: list[str] = []
        if self.store is not None:
            keys = self.store.keys()
        elif self.source is not None:
            for piece in self.source.pieces(_LISTED_ROWS):
                if "files" not in piece.detail:
                    return None
                keys.extend(key for key, *_ in piece.detail["files"])
        else:
            return None
        return Counter(name for name in folder_names(keys) if name is not None)


@dataclass(frozen=True)
class _Run:
    """A run under way."""

    settings: ScreenSettings
    output: str
    devices: tuple[str, ...]
    threads: int | None
    options: JobOptions
    watch: Watch
    say: Callable[[str], None]
    stack: ExitStack
    corpus: dict[str, EmbeddingStore] = field(default_factory=dict)

    @cached_property
    def directory(self) -> Any:
        return open_directory(self.output)

    @cached_property
    def photos(self) -> _Images:
        return _Images.open(self.settings.photos, self.settings.embeddings)

    @cached_property
    def known(self) -> _Images | None:
        normal = self.settings.normal
        return None if normal is None else _Images.open([normal], self.settings.embeddings)

    @cached_property
    def spec(self) -> EncoderSpec:
        settings = self.settings
        name, tag = settings.model, settings.pretrained
        store = self.photos.store or (None if self.known is None else self.known.store)
        if store is not None and name is None:
            name, tag = store.model.name, tag or store.model.pretrained
        named = EncoderSpec.of(name or DEFAULT_MODEL, tag)
        return SharedSpec(
            named.name, named.pretrained, settings.precision, settings.preprocess,
            settings.batch_size,
        )  # fmt: skip

    @cached_property
    def encoding(self) -> JobOptions:
        here = self.options.engine == "local"
        return replace(
            self.options,
            devices=tuple(
                resolve_device(name, among=ENCODER_DEVICES, here=here) for name in self.devices
            ),
        )

    @cached_property
    def encoder(self) -> Encoder:
        return self.spec.load(self.encoding.devices[0])

    @cached_property
    def model(self) -> ModelIdentity:
        """The model of all embeddings."""
        for images in (self.photos, self.known):
            if images is not None and images.store is not None:
                return images.store.model
        return self.encoder.identity

    @cached_property
    def vocabulary(self) -> SpooledVocabulary | EmbeddingStore:
        sources = self.settings.vocabulary
        one = sources[0] if len(sources) == 1 else ""
        if (Path(one).is_dir() or is_address(one)) and is_store(one):
            return EmbeddingStore.open(one, kind="text")
        spooled = spool_vocabulary(sources, self.output)
        return self.stack.enter_context(spooled)

    @cached_property
    def is_calibrated(self) -> bool:
        return _NORMAL_SCORES in self.directory.names()

    @property
    def share(self) -> float:
        return self.settings.share_to_trim

    def begin(self) -> None:
        """Refuse what can be known to fail; then note what the run is of."""
        found = find_job(self.directory, KIND, "'bliss-index screen'")
        begun = self._begun_with()
        if found is not None:
            require_same(found.settings, begun, self.directory.uri)
        if self.is_calibrated:
            require_same(self._read(_CALIBRATED)["settings"], self._calibrating(), self.output)
        else:
            self._require_images()
        entries = self.vocabulary
        size = entries.rows if isinstance(entries, EmbeddingStore) else len(entries)
        if self.settings.k > size:
            raise InvalidInputError(
                f"k = {self.settings.k} must lie between 1 and the {size} entries of "
                f"{listed(self.settings.vocabulary)}; lower k, or give a larger vocabulary"
            )
        self._require_one_model()
        if found is None:
            self.directory.make()
            JobDescription(KIND, begun, None, {}, library_versions(), begun_in()).create(
                self.directory
            )

    def _begun_with(self) -> dict[str, Any]:
        """What decides the embeddings."""
        settings = self.settings
        return {
            "photos": list(map(str, settings.photos)),
            "normal": settings.normal,
            "embeddings": settings.embeddings,
            "model": self.spec.name,
            "pretrained": self.spec.pretrained,
            "precision": settings.precision,
            "preprocess": settings.preprocess,
            "dtype": settings.dtype,
        }

    def _calibrating(self) -> dict[str, Any]:
        """What decides the calibration, the threshold and the scores, beside the embeddings."""
        settings, entries = self.settings, self.vocabulary
        if isinstance(entries, EmbeddingStore):
            what = f"{entries.rows} entries, content hash {entries.content_hash}"
        else:
            what = f"{len(entries)} entries, SHA-256 {entries.sha256}"
        return {
            "classes": settings.classes,
            "vocabulary": what,
            "template": settings.template,
            "trim": self.share,
            "shrinkage": settings.shrinkage,
            "k": settings.k,
            "lam": settings.lam,
            "false-alarm rate": settings.false_alarm_rate,
            "confidence": settings.confidence,
        }

    def _require_images(self) -> None:
        """Refuse images that are missing, or too few for what is asked."""
        images = self.known or self.photos
        for some in (self.photos, images):
            if some.rows() == 0 and some.source is not None:
                passed = ", ".join(f"{n} ({why})" for why, n in some.source.skipped.items())
                raise InvalidInputError(
                    f"{some.location} holds no images; passed over: {passed or 'nothing'}"
                )
        names, counts = self._names(), images.folders() if self.known else None
        rows = images.rows()
        if self.known is not None and names is None and counts is not None:
            if not counts:
                raise InvalidInputError(
                    f"{images.location} has no sub-folders to name the classes; put the images "
                    "of each class into a folder of its name, or give --classes cat,dog"
                )
            names = tuple(sorted(counts))
        if counts and names is not None:
            known = ClassNames(names)
            found = Counter(dict.fromkeys(names, 0))
            for folder, count in counts.items():
                if (number := known.position(folder)) is not None:
                    found[names[number]] += count
            least = 2 if self.settings.shrinkage else 3
            few = [f"{name!r} ({n})" for name, n in found.items() if n < least]
            if few:
                raise InvalidInputError(
                    f"{len(few)} of {len(names)} classes have fewer than {least} images in "
                    f"{images.location}: {listed(few)}; add images, or leave the class out: name "
                    "the others with --classes"
                )
            rows = sum(found.values())
        rate = self.settings.false_alarm_rate
        if rate is not None and rows is not None:
            threshold_at(np.zeros(rows), rate, confidence=self.settings.confidence)

    def _require_one_model(self) -> None:
        models = {}
        for images in (self.photos, self.known):
            if images is not None and images.store is not None:
                models[f"images {images.location}"] = images.store.model
        if isinstance(self.vocabulary, EmbeddingStore):
            models[f"vocabulary {self.vocabulary.path}"] = self.vocabulary.model
        if len(models) < (2 if self.known is None else 3):  # something is to be encoded
            models[f"model {self.spec.name}"] = self.encoder.identity
        elif self.settings.model is not None:
            models["--model"] = ModelIdentity(self.spec.name, self.spec.pretrained)
        (first, one), *others = models.items()
        for name, other in others:
            require_same_model(one, other, first, name)

    def _names(self) -> tuple[str, ...] | None:
        """Names of the classes as given; None where folders or a store or file has them."""
        given = self.settings.classes
        if given is None:
            return None
        if self._is_place(given):
            if Path(given).is_dir() or is_address(given):
                return tuple(EmbeddingStore.open(given, kind="text").texts())
            return load_vocabulary([given]).entries
        names = [name for name in map(clean_entry, given.split(",")) if name]
        if not names or len(set(names)) < len(names):
            raise InvalidInputError(
                f"--classes {given!r} must name different classes, such as cat,dog; got "
                f"{listed(names) or 'none'}"
            )
        return tuple(names)

    @staticmethod
    def _is_place(given: str) -> bool:
        if given.lower().endswith(_LIST_SUFFIXES) or is_address(given):
            return True
        return Path(given).is_dir() and is_store(given)

    def embeddings_of(self, images: _Images, name: str) -> EmbeddingStore:
        """Encode images, or import embeddings; a store is taken as it is."""
        if images.store is not None:
            return images.store
        output = f"{self.output}/{name}"
        settings = self.settings
        if images.source is None:
            with self.watch(f"importing {name}", "imported") as listener:
                imported = import_embeddings(
                    images.location, output, kind="image", dtype=settings.dtype,
                    model=replace(self.encoder.identity, preprocess=None),
                    options=replace(self.encoding, devices=()), listener=listener,
                )  # fmt: skip
            _require_whole(imported.failed, images.location)
        else:
            with self.watch(f"encoding {name}", "encoded") as listener:
                encoded = encode_image_store(
                    self.spec, images.source, output, dtype=settings.dtype,
                    options=self.encoding, listener=listener,
                )  # fmt: skip
            _require_whole(encoded.failed, images.location)
            if images.source.skipped:
                passed = ", ".join(f"{n} ({why})" for why, n in images.source.skipped.items())
                self.say(f"{images.location}: files passed over: {passed}")
        return EmbeddingStore.open(output, kind="image")

    def encoded_vocabulary(self) -> EmbeddingStore:
        """Encode the vocabulary, unless the cache has it: by model, prompt and content."""
        vocabulary = self.vocabulary
        if isinstance(vocabulary, EmbeddingStore):
            return vocabulary
        settings = self.settings
        decides = {
            "model": self.encoder.identity.to_json(),
            "precision": self.encoder.precision,
            "device": self.encoder.settings["device"],
            "template": settings.template,
            "dtype": settings.dtype,
            "entries": vocabulary.sha256,
        }
        name = hashlib.sha256(json_bytes(decides)).hexdigest()[:32]
        place = cache_folder() / "vocabularies" / name
        with self.watch("encoding the vocabulary", "encoded") as listener:
            encoded = encode_text_store(
                self.spec, vocabulary, place, templates=[settings.template],
                dtype=settings.dtype, options=self.encoding, listener=listener,
            )  # fmt: skip
        _require_whole(encoded.failed, str(place))
        where = "encoded into" if encoded.rows_now else "found in"
        self.say(f"vocabulary: {vocabulary.describe()}, {where} the cache: {place}")
        return EmbeddingStore.open(place, kind="text")

    def calibrated(self, photos: EmbeddingStore) -> NormalScores:
        """Learn the normal classes and score their images held out, unless that was done.

        The scores of the held-out images are written last: with them the calibration stands, also
        when photos come in later.
        """
        corpus = self.corpus["corpus"] = self.encoded_vocabulary()
        path = f"{self.output}/{_NORMAL_SCORES}"
        if self.is_calibrated:
            return NormalScores.read(path)
        settings = self.settings
        images = photos if self.known is None else self.embeddings_of(self.known, "normal")
        labels = None
        if self.known is not None and any(folder_names(images.keys())):
            labels = Labels.open(FOLDERS, images)
        texts = self._texts(images, labels)
        assign = labels is None and len(texts.names) > 1
        with self.watch("calibrating", "read") as listener:
            made = calibrate_store(
                images, labels, texts, listener.advanced, assign=assign, trim=self.share,
                shrinkage=settings.shrinkage,
            )  # fmt: skip
        made.calibration.save(f"{self.output}/calibration")
        search = exact_search(corpus.embeddings(), settings.k, threads=self.threads)
        found = score_held_out(
            images, labels, made.calibration, corpus, search, lam=settings.lam,
            confidence=settings.confidence,
        )  # fmt: skip
        found.threshold(self._rate(found))  # refused before the calibration stands
        said = made.notices
        if self.known is None:
            said.insert(0, "the photos to screen are what calibrated: no others were given")
        facts = {
            "settings": self._calibrating(),
            "classes": made.to_json()["classes"],
            "notices": said,
        }
        write_json(self.directory, _CALIBRATED, facts)
        found.write(path)
        return found

    def _texts(self, images: EmbeddingStore, labels: Labels | None) -> ClassTexts:
        settings, given = self.settings, self.settings.classes
        device = self.encoding.devices[0]
        if given is not None and self._is_place(given):
            return ClassTexts.open(given, images.model, template=settings.template, device=device)
        names, source = self._names(), "--classes"
        if names is None:
            if labels is None:
                raise InvalidInputError(
                    f"no key of {images.path} has a folder to name its class; give --classes "
                    "cat,dog"
                )
            names, source = tuple(sorted(set(labels.values) - {None})), f"folders of {images.path}"
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

    def scored(self, photos: EmbeddingStore, normal: NormalScores) -> ScreenResult:
        """Score all photos, and report what was found, unless that was done."""
        settings, scores = self.settings, f"{self.output}/scores"
        rate = self._rate(normal)
        if rate != settings.false_alarm_rate and rate > DEFAULT_RATE:
            self.say(
                f"{normal.scores.size} normal images allow no rate of false alarms below "
                f"{rate:.1%}, which is taken; {DEFAULT_RATE:.0%} needs more of them"
            )
        here = all(name.startswith(("auto", "cpu", "cuda")) for name in self.devices)
        devices = self.devices if here else ("auto",)  # others encode only
        scoring = ScoreSettings(
            str(self.corpus["corpus"].path), f"{self.output}/calibration", settings.k,
            settings.lam, device=devices[0], threads=self.threads, explain=True,
            normal_scores=f"{self.output}/{_NORMAL_SCORES}", false_alarm_rate=rate,
        )  # fmt: skip
        with self.watch("scoring", "scored") as listener:
            done = run_job(
                photos.path, scores, scoring, replace(self.options, devices=devices), listener
            )
        _require_whole(done.failed, scores)
        manifest = content_sha256(open_directory(scores), MANIFEST_NAME)
        report = f"{self.output}/report.html"
        names = self.directory.names()
        found = self._read(_SUMMARY) if _SUMMARY in names else {}
        if found.get("scores_sha256") != manifest or "report.html" not in names:
            report_there = self._report(scores, report)
            found = {"scores_sha256": manifest, **self._found(scores, normal, rate)}
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
            most_anomalous=tuple(
                Anomaly(**{**one, "entries": tuple(map(tuple, one["entries"]))})
                for one in found["most_anomalous"]
            ),
            scores=scores,
            report=report if report_there else None,
            scored_now=done.rows_now,
        )

    def _report(self, scores: str, report: str) -> bool:
        settings = self.settings
        images = settings.images
        if images is None and self.photos.source is not None and len(settings.photos) == 1:
            folder = Path(settings.photos[0])
            images = folder if folder.is_dir() else None
        try:
            make_report(scores, report, ReportOptions(images=images))
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
