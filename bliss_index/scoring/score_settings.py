"""What a scoring job computes: everything that decides its output, and nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from bliss_index.calibration import Calibration
from bliss_index.calibration.calibration import require_weight
from bliss_index.devices import resolve_device
from bliss_index.errors import InvalidInputError, StoreError
from bliss_index.scoring.kept_tables import keep_tables, read_tables
from bliss_index.scoring.normal_scores import NormalScores, ScoreIdentity
from bliss_index.scoring.scorer import BlissScorer, Scorer
from bliss_index.search.protocol import TensorSearch
from bliss_index.search.registry import index_names, is_exact, search_names, takes_device
from bliss_index.store import EmbeddingStore, require_same_model

if TYPE_CHECKING:
    from bliss_index.search.exact import ExactSearch
    from bliss_index.search.faiss.search import FaissSearch
    from bliss_index.search.near_index import NearSearch


@dataclass(frozen=True)
class ScoreSettings:
    """Settings of a job.

    Attributes
    ----------
    corpus, calibration
        Directories of the vocabulary and of the normal classes.
    k, lam
        Entries per image, and the weight of the external score; None for the calibration's.
    search
        "auto" takes the fastest exact search, the name of an engine or "faiss" a certain one, and
        the name of a kind of index the corpus's index; see :mod:`bliss_index.search.registry`.
    device
        "auto", "cpu", or a torch device such as "cuda:0".
    threads
        Threads of one process; None for all.
    keep_search
        Whether a search that had to be prepared is kept beside the corpus, and tables that took
        long beside the calibration, for other jobs; see :mod:`bliss_index.search.prepared` and
        :mod:`bliss_index.scoring.kept_tables`.
    explain
        Whether the output names the k entries of every image and what they contributed.
    threshold
        Anomaly score from which an image is flagged; None for no flag.
    normal_scores
        File of scores of held-out normal images, for p-values; None for none.
    false_alarm_rate
        Probability that a normal image is flagged, which takes the place of a threshold; needs
        `normal_scores`.
    """

    corpus: str
    calibration: str
    k: int = 10
    lam: float | None = None
    search: str = "auto"
    device: str = "auto"
    threads: int | None = None
    explain: bool = False
    threshold: float | None = None
    normal_scores: str | None = None
    false_alarm_rate: float | None = None
    keep_search: bool = True

    def __post_init__(self) -> None:
        if self.false_alarm_rate is not None and self.normal_scores is None:
            raise InvalidInputError(
                f"a false-alarm rate of {self.false_alarm_rate} needs the scores of held-out "
                "normal images: --normal-scores, made by 'bliss-index threshold'"
            )
        if self.false_alarm_rate is not None and self.threshold is not None:
            raise InvalidInputError(
                f"give either a threshold ({self.threshold}) or a false-alarm rate "
                f"({self.false_alarm_rate}), not both"
            )
        if self.search not in search_names():
            raise InvalidInputError(
                f"search must be one of {', '.join(search_names())}, got {self.search!r}"
            )
        if self.lam is not None:
            require_weight("lam", self.lam)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InvalidInputError(f"the threshold must be a finite number, got {self.threshold}")
        if self.threads is not None and self.threads < 1:
            raise InvalidInputError(f"threads must be at least 1, got {self.threads}")

    @property
    def is_exact(self) -> bool:
        """Whether the search finds the true top k, however it does it."""
        return is_exact(self.search)

    @property
    def on_gpu(self) -> bool:
        """Whether scores are computed on a GPU, and not only entries found there."""
        on_device = _torch_device(self.device) or ""
        return takes_device(self.search) and on_device.startswith("cuda")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class ScoringInputs:
    """An opened corpus and calibration that belong together."""

    settings: ScoreSettings
    corpus: EmbeddingStore
    calibration: Calibration
    normal: NormalScores | None = None

    @classmethod
    def open(cls, settings: ScoreSettings) -> ScoringInputs:
        """Open both and check that one model made them.

        Raises
        ------
        StoreError, ModelMismatchError, InvalidInputError
            They cannot be read, do not belong together, or the vocabulary has fewer than k entries.
        """
        corpus = EmbeddingStore.open(settings.corpus, kind="text")
        calibration = Calibration.load(settings.calibration)
        if calibration.model is None:
            raise StoreError(f"{settings.calibration} does not say which model made it")
        require_same_model(
            corpus.model,
            calibration.model,
            f"corpus {settings.corpus}",
            f"calibration {settings.calibration}",
        )
        if not 1 <= settings.k <= corpus.rows:
            raise InvalidInputError(
                f"k = {settings.k} must lie between 1 and the {corpus.rows} entries of "
                f"{settings.corpus}; lower k"
            )
        inputs = cls(settings, corpus, calibration)
        if settings.normal_scores is None:
            return inputs
        normal = NormalScores.read(settings.normal_scores)
        identity = ScoreIdentity(
            settings.k, inputs.lam, corpus.content_hash, calibration.content_hash
        )
        normal.require(identity, settings.normal_scores)
        return replace(inputs, normal=normal)

    @property
    def lam(self) -> float:
        """Weight of the external score: the settings', else the calibration's."""
        return self.calibration.lam_for(self.settings.lam)

    @property
    def threshold(self) -> float | None:
        """Anomaly score from which an image is flagged; None for no flags."""
        settings = self.settings
        if self.normal is None or settings.false_alarm_rate is None:
            return settings.threshold
        return self.normal.threshold(settings.false_alarm_rate).value

    def result_settings(self) -> dict[str, Any]:
        """Everything that must not change between the runs of one job."""
        settings = self.settings
        search = "exact" if settings.is_exact else settings.search
        values: dict[str, Any] = {
            "k": settings.k,
            "lam": self.lam,
            "search": search,
            "explain": settings.explain,
            "scores computed on": "GPU" if settings.on_gpu else "processor",
            "threshold": self.threshold,
            "normal scores": None if self.normal is None else self.normal.content_hash,
            "corpus content hash": self.corpus.content_hash,
            "calibration content hash": self.calibration.content_hash,
        }
        if search != "exact":
            values["index sha256"] = self._index_sha256()
        return values

    def chosen(self, queries: npt.NDArray[Any], rows: int) -> tuple[ScoreSettings, str]:
        """Replace the search "auto" by the fastest exact one here; also say why.

        Parameters
        ----------
        queries
            (n, d) images of the job, some hundred.
        rows
            Images to score.
        """
        settings = self.settings
        if settings.search != "auto":
            return settings, ""
        if settings.on_gpu:
            return settings, f"exact search on {_torch_device(settings.device)}"
        from bliss_index.search.choice import choose_search
        from bliss_index.search.prepared import describe_prepared

        choice = choose_search(
            self.corpus.shard(0).embeddings,
            settings.k,
            queries=queries,
            rows=rows,
            size=self.corpus.rows,
            threads=settings.threads,
        )
        reason = choice.reason
        if choice.name == "native":
            reason += f", {describe_prepared(self.corpus, keep=settings.keep_search)}"
        return replace(settings, search=choice.name), reason

    def job_scorer(self) -> Scorer:
        """Prepare what scores a job's images: on a GPU where the settings name one."""
        if not self.settings.on_gpu:
            return self.make_scorer(keep_search=self.settings.keep_search)
        from bliss_index.scoring.device_scorer import DeviceScorer

        search = self._open_search()
        if not isinstance(search, TensorSearch):
            raise InvalidInputError(f"search {search.name!r} does not keep tensors on a GPU")
        return DeviceScorer(search, search.vocabulary, self.calibration, lam=self.lam)

    def make_scorer(self, *, keep_search: bool = False) -> BlissScorer:
        """Prepare the search and the tables; takes memory and time."""
        search = self._open_search(keep_search)
        return BlissScorer(
            search,
            search.vocabulary,
            self.calibration,
            lam=self.lam,
            threads=self.settings.threads,
            before=read_tables(self.settings.calibration, self.calibration, self.corpus),
        )

    def keep_tables(self, scorer: Scorer) -> None:
        """Keep what a finished job computed of the tables, where it pays and that is wanted."""
        if self.settings.keep_search and isinstance(scorer, BlissScorer):
            keep_tables(scorer.tables, self.settings.calibration, self.calibration, self.corpus)

    def _open_search(self, keep: bool = False) -> ExactSearch | FaissSearch | NearSearch:
        settings = self.settings
        if settings.search in index_names():
            from bliss_index.search.index import open_index

            place = "cpu" if settings.device == "auto" else settings.device
            return open_index(
                self.corpus, settings.k, settings.search, place, threads=settings.threads
            )
        device = _torch_device(settings.device) if takes_device(settings.search) else None
        if settings.search in ("auto", "native") and device is None:
            from bliss_index.search.prepared import corpus_search

            return corpus_search(
                self.corpus, settings.k, backend=settings.search, threads=settings.threads,
                keep=keep,
            )  # fmt: skip
        from bliss_index.search.choice import make_exact

        return make_exact(
            settings.search,
            self.corpus.embeddings(),
            settings.k,
            threads=settings.threads,
            device=device,
        )

    def _index_sha256(self) -> str:
        from bliss_index.search.index import index_records

        kind = self.settings.search
        for record in index_records(self.corpus):
            if record.kind == kind:
                return record.sha256
        raise StoreError(
            f"{self.corpus.path} has no {kind} index; build it: "
            f"bliss-index build {Path(self.corpus.path)} --index {kind}"
        )


def _torch_device(device: str) -> str | None:
    """Return a torch device for the search, or None for the processor's own engine."""
    name = resolve_device(device, here=False)
    return None if name == "cpu" else name
