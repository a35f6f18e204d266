"""The commands' steps as functions, under the same names and with the same options.

    from bliss_index import calibrate, score, evaluate, groups, screen, read_scores

    run = screen("photos/all", "run", normal="photos/normal")
    read_scores("run").to_pandas()

Each takes paths or URIs and returns what its command prints with ``--json``, as an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bliss_index.calibration.class_texts import ClassTexts
from bliss_index.calibration.from_store import CalibrationSummary, calibrate_store
from bliss_index.calibration.labels import FOLDERS, Labels
from bliss_index.devices import device_names
from bliss_index.errors import InvalidInputError
from bliss_index.evaluation.from_scores import DEFAULT_RESAMPLES, evaluate_directory
from bliss_index.evaluation.metrics import Metrics
from bliss_index.evaluation.weights import AUTO, with_chosen_weights
from bliss_index.jobs import JobListener, JobOptions, JobSummary
from bliss_index.report.groups import Groups, groups
from bliss_index.scoring import ScoreSettings, run_job
from bliss_index.scoring.scores_directory import read_scores
from bliss_index.screening import ScreenResult, ScreenSettings
from bliss_index.screening import screen as run_screen
from bliss_index.search.prepared import corpus_search
from bliss_index.store import EmbeddingStore, require_same_model
from bliss_index.store.source_reader import ColumnNames

__all__ = [
    "Groups",
    "calibrate",
    "evaluate",
    "groups",
    "read_scores",
    "score",
    "screen",
]


def calibrate(
    images: str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    classes: str | Path | None = None,
    template: str | None = None,
    assign: bool = False,
    trim: float = 0.0,
    shrinkage: float = 0.0,
    image_weight: float | str = 0.0,
    corpus: str | Path | None = None,
    k: int = 10,
    threads: int | None = None,
    device: str = "auto",
    listener: JobListener | None = None,
) -> CalibrationSummary:
    """Learn what images of the normal classes look like, and save it.

    Parameters
    ----------
    images : str or Path
        Image store of normal images.
    out : str or Path
        Directory for the calibration.
    labels : str or Path, default=None
        Their classes: a file, or "folders" for the first folders of the keys. None where there is
        one class, or with `assign`.
    classes : str or Path, default=None
        File of the classes' names, or text store of their prompts; by default the folders.
    template : str, default=None
        Prompt for the names; None for the paper's.
    assign, trim, shrinkage
        As for :func:`bliss_index.calibration.from_store.calibrate_store`.
    image_weight : float or "auto", default=0
        W of :class:`bliss_index.calibration.Calibration`. "auto" chooses it and lambda from the
        calibration images (:func:`bliss_index.evaluation.weights.choose_weights`), for the
        vocabulary `corpus` and `k` entries.
    corpus : str or Path, default=None
        Text store of the vocabulary; needed for "auto", and used for nothing else.
    k : int, default=10
        Entries per image, for "auto".
    threads : int, default=None
        For "auto"; None for all.
    device : str, default="auto"
        On which names are encoded.
    listener : JobListener, optional
        Hears of the progress.

    Returns
    -------
    CalibrationSummary

    Raises
    ------
    InvalidInputError
        The classes have no names, or labels do not fit; or "auto" lacks a corpus or two classes.
    CalibrationError
        A class has too few images.
    ModelMismatchError
        Images and classes are of different models.
    """
    store = EmbeddingStore.open(images, kind="image")
    vocabulary = None
    if image_weight == AUTO:
        if corpus is None:
            raise InvalidInputError(
                "an image weight is chosen for a vocabulary: name it (--corpus), or give a weight"
            )
        vocabulary = EmbeddingStore.open(corpus, kind="text")
        require_same_model(store.model, vocabulary.model, f"images {images}", f"corpus {corpus}")
    given = Labels.open(labels, store)
    if classes is not None:
        texts = ClassTexts.open(classes, store.model, template=template, device=device)
    elif labels == FOLDERS and given is not None:
        texts = ClassTexts.of_names(
            given.names,
            store.model,
            template=template,
            device=device,
            source=f"folders of {images}",
        )
    else:
        raise InvalidInputError(
            "the normal classes need names: --classes FILE, or --labels folders where keys such as "
            "'cat/0001.jpg' say them"
        )
    heard = (listener or JobListener()).advanced
    summary = calibrate_store(
        store, given, texts, heard, assign=assign, trim=trim, shrinkage=shrinkage,
        image_weight=0.0 if vocabulary is not None else float(image_weight),
    )  # fmt: skip
    if vocabulary is not None:
        search = corpus_search(vocabulary, k, threads=threads)
        summary = with_chosen_weights(summary, store, given, vocabulary, search)
    summary.calibration.save(out)
    return summary


def score(
    images: str | Path,
    out: str | Path,
    *,
    corpus: str | Path,
    calibration: str | Path,
    devices: str = "auto",
    embedding_column: str | None = None,
    key_column: str | None = None,
    options: JobOptions | None = None,
    listener: JobListener | None = None,
    **settings: Any,
) -> JobSummary:
    """Score every image; run again, it continues where it stopped.

    Parameters
    ----------
    images : str or Path
        Image store, or embeddings in a layout of ``import``.
    out : str or Path
        Directory for the scores; :func:`read_scores` reads it.
    corpus, calibration : str or Path
        Vocabulary and normal classes.
    devices : str, default="auto"
        As for the command, such as "cpu" or "cuda:0,1".
    embedding_column, key_column : str, default=None
        Of Parquet input.
    options : JobOptions, optional
        How to run: workers, memory, a cluster; its devices are not used.
    listener : JobListener, optional
        Hears of the progress.
    settings
        ``k``, ``lam``, ``search``, ``threads``, ``explain``, ``threshold``, ``normal_scores``,
        ``false_alarm_rate``: as for :class:`bliss_index.scoring.ScoreSettings`.

    Returns
    -------
    JobSummary

    Raises
    ------
    InvalidInputError, StoreError, ModelMismatchError
        What is given does not fit together.
    JobError
        The directory was begun with other settings.
    """
    named = device_names(devices)
    what = ScoreSettings(str(corpus), str(calibration), device=named[0], **settings)
    how = replace(options or JobOptions(), devices=named)
    columns = ColumnNames(embedding_column, key_column)
    return run_job(images, out, what, how, listener, columns)


def evaluate(
    scores: str | Path, labels: str | Path, *, resamples: int = DEFAULT_RESAMPLES
) -> Metrics:
    """Say how well scores tell anomalies from normal images, with 95 % intervals.

    Parameters
    ----------
    scores : str or Path
        Scores directory.
    labels : str or Path
        File of 1 for anomalies and 0 for normal images, or "folders": those named as a normal
        class hold normal images, all others anomalies.
    resamples : int, default=1000
        Bootstrap resamples for the intervals; 0 for none.

    Returns
    -------
    Metrics

    Raises
    ------
    InvalidInputError
        Labels do not fit the scores.
    """
    return evaluate_directory(scores, labels, resamples=resamples)


def screen(
    photos: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    devices: str = "auto",
    threads: int | None = None,
    options: JobOptions | None = None,
    vocabulary: str | Path | Sequence[str | Path] = ("imagenet",),
    **settings: Any,
) -> ScreenResult:
    """Find the photos that do not belong: encode, calibrate, score, group and report.

    Parameters
    ----------
    photos : str, Path or sequence of them
        Folder, tars or tables of images; one image store; or embeddings.
    out : str or Path
        Directory of the run; run again, it continues where it stopped.
    devices : str, default="auto"
        For encoding and scoring.
    threads : int, default=None
        For searching; None for all.
    options : JobOptions, optional
        How jobs run.
    vocabulary : str, Path or sequence of them, default=("imagenet",)
        Files of entries and built-in lists, or one text store.
    settings
        ``normal``, ``classes``, ``model``, ``pretrained``, ``false_alarm_rate``, ``k`` and all
        others of :class:`bliss_index.screening.ScreenSettings`.

    Returns
    -------
    ScreenResult

    Raises
    ------
    BlissError
        As for :func:`bliss_index.screening.screen`.
    """
    normal = settings.pop("normal", None)
    what = ScreenSettings(
        photos=_listed(photos),
        vocabulary=_listed(vocabulary),
        normal=None if normal is None else str(normal),
        **settings,
    )
    return run_screen(what, out, devices=device_names(devices), threads=threads, options=options)


def _listed(places: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    return (str(places),) if isinstance(places, (str, Path)) else tuple(map(str, places))
