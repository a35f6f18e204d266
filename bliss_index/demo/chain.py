"""A screen of scenes drawn here, with the embedded model: from pictures to AUROC."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from bliss_index.calibration import Calibration
from bliss_index.demo.scenes import OBJECT_KINDS, draw_scene, scene_vocabulary
from bliss_index.encode.encode_work import EncoderSpec
from bliss_index.encode.text_work import encode_text_store
from bliss_index.errors import MissingDependencyError, OutputError
from bliss_index.evaluation.metrics import evaluate_scores
from bliss_index.report import ReportOptions, make_report
from bliss_index.scoring import ScoresDirectory
from bliss_index.scoring.formulas import label_scores, raw_scores
from bliss_index.screening import ScreenResult, ScreenSettings, screen
from bliss_index.storage.files import atomic_file, make_directory, read_json, write_json
from bliss_index.store import EmbeddingStore
from bliss_index.vocabulary import DEFAULT_TEMPLATE, load_vocabulary

MODEL = "bliss-tiny"
T = TypeVar("T")
_SETTINGS_NAME = "demo.json"
_NORMAL_CLASSES = 6
_OTHER_CLASSES = 12


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where everything is.

    Attributes
    ----------
    auroc
        By detector.
    images, anomalies
        Test images, and how many of them are of no normal class.
    classes
        The normal classes.
    scores
        Directory of the scores.
    files
        What to look at, and where.
    seconds
        Time of the whole.
    """

    auroc: dict[str, float]
    images: int
    anomalies: int
    classes: tuple[str, ...]
    scores: str
    files: dict[str, str]
    seconds: float


def run_demo(
    output: str | Path,
    *,
    images_per_class: int = 40,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> DemoResult:
    """Draw scenes, screen them and evaluate the scores; what exists already is kept.

    Parameters
    ----------
    output
        Directory for everything.
    images_per_class
        Scenes of every class, for calibration and for test each.
    seed
        Of the drawing.
    say
        Called with a sentence at every step.

    Raises
    ------
    OutputError
        The output holds a demo with other settings.
    """
    began = time.perf_counter()
    folder = Path(output)
    _begin(folder, {"images_per_class": images_per_class, "seed": seed})
    normal, others = _choose_kinds(seed)
    say(f"drawing scenes; normal are: {', '.join(normal)}")
    _draw(folder / "images" / "calibration", normal, images_per_class, seed + 1)
    _draw(folder / "images" / "test", [*normal, *others], images_per_class, seed + 2)
    corpus, vocabulary_file = _encode_vocabulary(folder)
    settings = ScreenSettings(
        photos=(str(folder / "images" / "test"),),
        normal=str(folder / "images" / "calibration"),
        vocabulary=(str(corpus),),
        model=MODEL,
    )
    say(f"screening with {MODEL} and {EmbeddingStore.open(corpus).rows} vocabulary entries")
    found = screen(settings, folder / "screen", say=say)
    say(f"{found.scored} images scored, {found.flagged} flagged")
    test = EmbeddingStore.open(folder / "screen" / "photos", kind="image")
    calibration = Calibration.load(folder / "screen" / "calibration")
    scores = Path(found.scores)
    anomaly_of = _by_key(test, lambda kind: int(kind not in normal))
    _write_labels(folder / "test-anomalies.csv", anomaly_of)
    auroc = _compare(scores, test, calibration, anomaly_of)
    write_json(folder / "auroc.json", auroc)
    report = _write_report(folder, found, say)
    files = {
        **({} if report is None else {"the report, to open in a browser": str(report)}),
        "the images": str(folder / "images" / "test"),
        "scores, one row an image, with the entries that made them": str(scores),
        "the texts that every image was compared with": str(vocabulary_file),
        "AUROC of the three detectors": str(folder / "auroc.json"),
    }
    seconds = round(time.perf_counter() - began, 1)
    return DemoResult(
        auroc, test.rows, sum(anomaly_of.values()), normal, str(scores), files, seconds
    )


def _begin(folder: Path, settings: dict[str, int]) -> None:
    """Note the settings; refuse others before images of both are mixed."""
    make_directory(folder)
    file = folder / _SETTINGS_NAME
    if not file.exists():
        write_json(file, settings)
    elif (found := read_json(file)) != settings:
        raise OutputError(
            f"{folder} holds a demo made with {found}, asked for is {settings}; choose another "
            "--out, or remove it first"
        )


def _choose_kinds(seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the kinds of scene that are normal, and others that are not."""
    kinds = np.random.default_rng(seed).permutation(OBJECT_KINDS).tolist()
    last = _NORMAL_CLASSES + _OTHER_CLASSES
    return tuple(kinds[:_NORMAL_CLASSES]), tuple(kinds[_NORMAL_CLASSES:last])


def _encode_vocabulary(folder: Path) -> tuple[Path, Path]:
    """Encode the words about scenes; return the corpus and the file of words."""
    words, corpus = folder / "vocabulary.txt", folder / "corpus"
    with atomic_file(words) as sink:
        sink.write("".join(f"{line}\n" for line in scene_vocabulary()).encode())
    entries = load_vocabulary([words]).entries
    encode_text_store(EncoderSpec(MODEL), entries, corpus, templates=[DEFAULT_TEMPLATE])
    return corpus, words


def _compare(
    scores: Path, test: EmbeddingStore, calibration: Calibration, anomaly_of: Mapping[str, int]
) -> dict[str, float]:
    """AUROC of BLISS, of raw similarity and of the label term, on the same images."""
    table = ScoresDirectory.open(scores).table(["key", "anomaly_score"])
    anomaly = [anomaly_of[key] for key in table.column("key").to_pylist()]
    images = test.embeddings()
    compared = {
        "BLISS": table.column("anomaly_score").to_numpy(),
        "raw similarity to the nearest label": raw_scores(images, calibration),
        "label term alone": label_scores(images, calibration),
    }
    return {name: evaluate_scores(values, anomaly).auroc for name, values in compared.items()}


def _write_report(folder: Path, found: ScreenResult, say: Callable[[str], None]) -> Path | None:
    """Write the report, unless what draws it is not installed."""
    report = folder / "report.html"
    options = ReportOptions(
        images=folder / "images" / "test",
        labels=folder / "test-anomalies.csv",
        title="drawn scenes",
        groups=found.groups_file,
    )
    try:
        make_report(found.scores, report, options)
    except MissingDependencyError as error:
        say(f"no report.html: {error}")
        return None
    return report


def _draw(folder: Path, kinds: Sequence[str], count: int, seed: int) -> None:
    for number, kind in enumerate(kinds):
        make_directory(folder / kind)
        for image in range(count):
            path = folder / kind / f"{image:03}.png"
            if not path.exists():
                scene = draw_scene(np.random.default_rng([seed, number, image]), kind=kind)
                with atomic_file(path) as sink:
                    picture = io.BytesIO()
                    scene.image.save(picture, format="PNG")
                    sink.write(picture.getvalue())


def _by_key(store: EmbeddingStore, label: Callable[[str], T]) -> dict[str, T]:
    """Label every row by the folder that its image is in."""
    keys = store.keys()
    return {key: label(key.split("/")[0]) for key in keys}


def _write_labels(path: Path, label_of: Mapping[str, str | int]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", "label"])
        writer.writerows(label_of.items())
