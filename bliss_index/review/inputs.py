"""What a review works on: a run or its scores, and what belongs to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bliss_index.calibration import Calibration
from bliss_index.errors import BlissError, InvalidInputError, StoreError
from bliss_index.jobs.description import SCREEN_KIND, JobDescription
from bliss_index.report.groups import GroupedRows, read_grouped_rows
from bliss_index.review.identical import IdenticalImages, find_identical
from bliss_index.scoring.normal_scores import NormalScores, ScoreIdentity
from bliss_index.scoring.score_work import MANIFEST_NAME
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage import open_directory
from bliss_index.storage.directory import content_sha256
from bliss_index.storage.files import is_address
from bliss_index.store import EmbeddingStore

JUDGEMENTS = "judgements"


@dataclass(frozen=True)
class ReviewOptions:
    """Where things are that a run or scores do not say.

    Attributes
    ----------
    images : Path, default=None
        Folder of the pictures, keys being paths below it; by default the one that a run screened.
    groups : str, default=None
        File of groups; by default that of a run.
    normal_scores : str, default=None
        Scores of held-out normal images; by default those of a run.
    normal : str, default=None
        Image store that calibrated the scores; by default that of a run.
    judgements : Path, default=None
        Folder of the logs; by default ``judgements`` in the run, or beside the scores.
    """

    images: Path | None = None
    groups: str | None = None
    normal_scores: str | None = None
    normal: str | None = None
    judgements: Path | None = None


@dataclass(frozen=True, eq=False)
class ReviewInputs:
    """A run or scores, opened.

    Attributes
    ----------
    scores : ScoresDirectory
    run : Path or None
        The run that they are of.
    options : ReviewOptions
    notices : list of str
        What is missing, and what does not work without it.
    """

    scores: ScoresDirectory
    run: Path | None
    options: ReviewOptions
    notices: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, target: str | Path, options: ReviewOptions | None = None) -> ReviewInputs:
        """Open a run of ``bliss-index screen``, or a local scores directory.

        Raises
        ------
        StoreError
            It is neither, or its scores are not complete.
        InvalidInputError
            It is in an object store, where no log can grow; or there is no such folder of images.
        CorruptStoreError
            It is damaged.
        """
        if is_address(target):
            raise InvalidInputError(
                f"{target} is an address; judgements are appended to files, which needs a local "
                "directory: copy the scores here first"
            )
        path, options = Path(target), options or ReviewOptions()
        if options.images is not None and not options.images.is_dir():
            raise InvalidInputError(f"{options.images} is not a folder of images")
        run = _run_of(path)
        return cls(ScoresDirectory.open(path if run is None else run / "scores"), run, options)

    @property
    def judgements(self) -> Path:
        """Folder of the logs."""
        if self.options.judgements is not None:
            return self.options.judgements

        if self.run is None:  # readers of Parquet folders skip names that begin with _
            return Path(self.scores.path) / f"_{JUDGEMENTS}"
        run = self.run
        while _is_run(run.absolute().parent):  # with a further class it is in the one before
            run = run.absolute().parent
        return run / JUDGEMENTS

    @cached_property
    def images(self) -> Path | None:
        """Folder of the pictures; None where it is not known."""
        if self.options.images is not None or self.run is None:
            return self.options.images
        job = JobDescription.read(open_directory(self.run))
        folder = job.facts.get("images")
        found = None if folder is None else Path(job.find(str(folder)))
        return found if found is not None and found.is_dir() else None

    @cached_property
    def groups(self) -> GroupedRows | None:
        """Groups of the flagged images; None where there are none."""
        file = self._given_or_of_run(self.options.groups, "groups.parquet")
        return None if file is None else read_grouped_rows(file, self.scores)

    @cached_property
    def normal_scores(self) -> NormalScores | None:
        """Scores of held-out normal images, by which rates become thresholds."""
        file = self._given_or_of_run(self.options.normal_scores, "normal-scores.parquet")
        if file is None:
            return None
        found = NormalScores.read(file)
        found.require(self.identity, file)
        return found

    def _given_or_of_run(self, given: str | None, name: str) -> str | None:
        if given is not None or self.run is None:
            return given
        return str(self.run / name) if (self.run / name).is_file() else None

    @property
    def identity(self) -> ScoreIdentity:
        """What decides these scores, apart from the image."""
        settings = self.scores.job.settings
        return ScoreIdentity(
            int(settings["k"]), float(settings["lam"]), str(settings["corpus content hash"]),
            str(settings["calibration content hash"]),
        )  # fmt: skip

    @property
    def embeddings_place(self) -> str:
        """Where the scored embeddings are now."""
        return self.scores.job.find(self.scores.location)

    @property
    def calibration_place(self) -> str:
        """Where the calibration of the scores is now."""
        if self.run is not None and (self.run / "calibration").is_dir():
            return str(self.run / "calibration")
        return self.scores.job.find(str(self.scores.job.facts.get("calibration")))

    @cached_property
    def identical(self) -> IdenticalImages | None:
        """Images that are shown as one, and those that calibrated; None without embeddings."""
        place = self.embeddings_place
        if is_address(place) or not Path(place).exists():
            self.notices.append(
                f"the embeddings are not at {place}: copies of one image are shown apart, and "
                "which images calibrated is not known"
            )
            return None
        try:
            normal = self.calibrating
            made_of = {
                "scores": content_sha256(self.scores.directory, MANIFEST_NAME),
                "normal": None if normal is None else normal.content_hash,
            }
            return IdenticalImages.kept(made_of, lambda: find_identical(self.scores, place, normal))
        except BlissError as error:
            self.notices.append(f"copies of one image are shown apart: {error}")
            return None

    @cached_property
    def calibrating(self) -> EmbeddingStore | None:
        """The images that calibrated the scores; None where they are not found."""
        calibration, place = self.calibration_place, self.embeddings_place
        if is_address(calibration) or not Path(calibration).exists():
            self.notices.append(
                f"the calibration is not at {calibration}: which images calibrated is not known"
            )
            return None
        expected = dict(Calibration.load(calibration).attributes).get("images")
        of_run = []
        if self.run is not None:
            job = JobDescription.read(open_directory(self.run))
            known = job.settings.get("normal")  # an image store, or a folder of images
            of_run = [str(self.run / "normal"), *([] if known is None else [job.find(str(known))])]
            of_run = [where for where in of_run if not is_address(where)]
        given = [] if self.options.normal is None else [self.options.normal]
        for where in (*given, *of_run, place):
            try:
                store = EmbeddingStore.open(where, kind="image")
            except StoreError:
                if where in given:
                    raise
                continue
            if store.content_hash == expected:
                return store
            if where in given:
                raise StoreError(
                    f"the scores were calibrated with images of content hash {expected}, {where} "
                    f"has {store.content_hash}; give the store that calibrated"
                )
        self.notices.append(
            f"the images that calibrated (content hash {expected}) are not found: name their store "
            "with --normal, so that they do not count as random samples"
        )
        return None


def _run_of(path: Path) -> Path | None:
    """The run that a path names, or whose scores it names."""
    if _is_run(path):
        return path
    above = path.resolve().parent
    return above if path.resolve().name == "scores" and _is_run(above) else None


def _is_run(path: Path) -> bool:
    try:
        return JobDescription.read(open_directory(path)).kind == SCREEN_KIND
    except FileNotFoundError:
        return False
