"""One command for the whole chain: the separate steps' bytes, resumed after every kill."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import run
from job_fixtures import result

from bliss_index.calibration import Calibration
from bliss_index.demo.scenes import draw_scene, scene_vocabulary
from bliss_index.errors import (
    BlissError,
    CorruptStoreError,
    EncoderError,
    JobError,
    ModelMismatchError,
    OutputError,
    StoreError,
)
from bliss_index.review.inputs import ReviewInputs
from bliss_index.scoring import ScoresDirectory, verify_scores
from bliss_index.scoring.normal_scores import NormalScores
from bliss_index.store import EmbeddingStore, ModelIdentity, StoreWriter

pytestmark = pytest.mark.skipif(find_spec("open_clip") is None, reason="open_clip is missing")
CLASSES = ("castle", "cat")
MODEL = ["--model", "bliss-tiny"]
WITH_REPORT = find_spec("jinja2") is not None and find_spec("matplotlib") is not None


def draw(folder, kind, numbers, seed):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        scene = draw_scene(np.random.default_rng([seed, number]), kind, size=32)
        scene.image.save(folder / f"{kind} {number:03}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Known images in folders, photos to screen, and words; a cache of its own."""
    folder = tmp_path_factory.mktemp("screen")
    for seed, kind in enumerate(CLASSES):
        draw(folder / "known" / kind, kind, range(12), seed)
        draw(folder / "photos", kind, range(4), 10 + seed)
    draw(folder / "photos" / "2026", "bicycle", range(3), 20)
    (folder / "photos" / "broken.png").write_bytes(b"no image")
    (folder / "photos" / "notes.txt").write_text("no image")
    (folder / "words.txt").write_text("\n".join(scene_vocabulary()[:150]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLISS_INDEX_CACHE", str(folder / "cache"))
        yield folder


def arguments(place, out, *more):
    return ["screen", place / "photos", "--vocabulary", place / "words.txt", *MODEL,
            "--out", out, *more]  # fmt: skip


def settings(place, **more):
    from bliss_index.screening import ScreenSettings

    given = {
        "photos": (str(place / "photos"),), "normal": str(place / "known"),
        "vocabulary": (str(place / "words.txt"),), "model": "bliss-tiny",
    }  # fmt: skip
    return ScreenSettings(**{**given, **more})


def screened(place, out, say=lambda text: None, **more):
    from bliss_index.screening import screen

    return screen(settings(place, **more), out, say=say)


@pytest.fixture(scope="module")
def whole(place):
    """An uninterrupted run by the command, and what it printed."""
    out, err = run(*arguments(place, place / "run", "--normal", place / "known"), "--json", code=3)
    return place / "run", json.loads(out), err


@pytest.mark.slow
def test_it_is_the_separate_steps_byte_for_byte(place, whole, tmp_path):
    folder, found, _ = whole
    words = [place / "words.txt", *MODEL, "--out", "corpus"]
    run("encode-text", *words, cwd=tmp_path)
    run("encode-images", place / "known", *MODEL, "--out", "normal", cwd=tmp_path)
    run("encode-images", place / "photos", *MODEL, "--out", "photos", cwd=tmp_path, code=3)
    run("calibrate", "normal", "--labels", "folders", "--out", "calibration", cwd=tmp_path)
    chosen = ["--corpus", "corpus", "--calibration", "calibration"]
    run("threshold", "normal", *chosen, "--labels", "folders", "--out", "normal.parquet",
        cwd=tmp_path)  # fmt: skip
    rate = str(found["false_alarm_rate"])
    run("score", "photos", *chosen, "--explain", "--normal-scores", "normal.parquet",
        "--false-alarm-rate", rate, "--out", "scores", cwd=tmp_path, code=3)  # fmt: skip
    for name in ("normal", "photos", "scores"):
        mine = {n: c for n, c in result(folder / name).items() if n.startswith("part-")}
        theirs = {n: c for n, c in result(tmp_path / name).items() if n.startswith("part-")}
        assert mine == theirs and mine, name
    calibrations = [Calibration.load(at / "calibration") for at in (folder, tmp_path)]
    assert calibrations[0].content_hash == calibrations[1].content_hash
    assert (folder / "normal-scores.parquet").read_bytes() == (
        tmp_path / "normal.parquet"
    ).read_bytes()
    assert verify_scores(folder / "scores").ok


def test_what_it_says(place, whole):
    folder, found, err = whole
    table = ScoresDirectory.open(folder / "scores").table()
    assert found["rows"] == table.num_rows == 12
    assert found["status"]["ok"] == 11 == sum(found["status"].values()) - 1
    assert found["classes"] == {"castle": 12, "cat": 12}
    normal = NormalScores.read(folder / "normal-scores.parquet")
    assert found["false_alarm_rate"] == 1 / 25  # of 24 images; 1 % would need 99
    assert "24 normal images allow no rate of false alarms below 4.0%" in err
    assert found["threshold"] == normal.threshold(1 / 25).value
    assert found["flagged"] == sum(filter(None, table.column("flag").to_pylist()))
    assert found["flagged"] == sum(group["images"] for group in found["groups"])
    grouped = pq.read_table(folder / "groups.parquet").to_pylist()
    assert [one["row"] for one in grouped] == [
        row for row, flag in enumerate(table.column("flag").to_pylist()) if flag
    ]
    rows = sorted(filter(lambda r: r["anomaly_score"] is not None, table.to_pylist()),
                  key=lambda r: -r["anomaly_score"])[:10]  # fmt: skip
    assert [one["key"] for one in found["most_anomalous"]] == [row["key"] for row in rows]
    for one, row in zip(found["most_anomalous"], rows, strict=True):
        pulls = dict(zip(row["entries"], row["contributions"], strict=True))
        assert all(pulls[text] == pull for text, pull in one["entries"])
        largest = max(pulls.values(), key=abs)
        assert one["entries"][0][1] == largest
    assert "files passed over: 1 (no image extension: " in err
    assert "encoded into the cache" in err
    assert "1 of 12 photos have no score" in err
    assert "fewer than 10" not in err
    if WITH_REPORT:
        assert found["report"] == str(folder / "report.html")
        page = (folder / "report.html").read_text()
        assert f"<title>Anomaly scores: {folder.name}</title>" in page
        assert "data:image/jpeg" in page and "bicycle" in page


def test_other_commands_say_which_directory_of_a_run_they_take(whole):
    folder, found, _ = whole
    for command in (["info"], ["verify"]):
        _, err = run(*command, folder, code=1)
        assert f"name a directory in it: {folder}/scores" in err
    key = found["most_anomalous"][0]["key"]
    _, err = run("explain", folder, key, code=1)
    assert f"its scores are in {folder}/scores; name that directory" in err
    out, _ = run("explain", folder / "scores", key)
    assert f"{found['most_anomalous'][0]['anomaly_score']:.4f}" in out


def test_a_finished_run_is_left_as_it_is(place, whole):
    folder, found, _ = whole

    def stamps():
        return {p: p.stat().st_mtime_ns for p in folder.rglob("*")
                if p.is_file() and p.name != "_statistics.json"}  # fmt: skip

    before = stamps()
    out, err = run(*arguments(place, folder, "--normal", place / "known"), code=3)
    assert stamps() == before
    assert "was complete already" in err and "found in the cache" in err
    assert "The most anomalous photos" in out and "flagged" in out and "castle 12, cat 12" in out
    assert found["most_anomalous"][0]["key"] in out
    assert f"bliss-index explain {folder}/scores KEY" in err


def test_photos_that_came_in_are_encoded_and_scored_only(place, whole, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "photos")
    shutil.copytree(place / "known", tmp_path / "known")
    more = {"photos": (str(tmp_path / "photos"),), "normal": str(tmp_path / "known")}
    first = screened(place, tmp_path / "r", **more)
    kept = result(tmp_path / "r" / "calibration")
    scores = ScoresDirectory.open(tmp_path / "r" / "scores").table()
    draw(tmp_path / "photos" / "2025", "anchor", range(2), 30)
    draw(tmp_path / "known" / "cat", "cat", range(100, 103), 31)  # too late to calibrate
    said = []
    second = screened(place, tmp_path / "r", said.append, **more)
    assert (first.rows, second.rows, second.scored_now) == (12, 14, 2)
    assert second.threshold == first.threshold
    assert result(tmp_path / "r" / "calibration") == kept
    assert ScoresDirectory.open(tmp_path / "r" / "scores").table().slice(0, 12).equals(scores)
    if WITH_REPORT:
        assert "2025/anchor 000.png" in (tmp_path / "r" / "report.html").read_text()
    assert screened(place, tmp_path / "r", **more).scored_now == 0


KILLED = """
    import os, signal, sys
    from contextlib import contextmanager
    from bliss_index.screening import run as screening
    from bliss_index.jobs import JobListener
    from bliss_index.screening import ScreenSettings, screen

    photos, known, words, out, where = sys.argv[1:]

    def die(*arguments, **more):
        os.kill(os.getpid(), signal.SIGKILL)

    class Deadly(JobListener):
        def finished_part(self, record):
            die()

    @contextmanager
    def watch(step, done):
        yield Deadly() if step == where else JobListener()

    def dies_after(owner, name):
        before = getattr(owner, name)
        def then(*arguments, **more):
            before(*arguments, **more)
            die()
        setattr(owner, name, then)

    if where == "calibration saved":
        from bliss_index.calibration import Calibration
        dies_after(Calibration, "save")
    elif where == "held out":
        dies_after(screening, "score_held_out")
    elif where == "classes noted":
        dies_after(screening, "write_json")
    elif where == "threshold":
        dies_after(screening.NormalScores, "write")
    elif where == "groups":
        dies_after(screening, "groups")
    elif where == "before the report":
        screening.make_report = die
    elif where == "report":
        dies_after(screening, "make_report")
    elif where == "begun":
        dies_after(screening.JobDescription, "create")
    settings = ScreenSettings((photos,), normal=known, vocabulary=(words,), model="bliss-tiny")
    screen(settings, out, watch=watch)
"""
STEPS = [
    "begun", "encoding photos", "encoding the vocabulary", "encoding normal", "calibration saved",
    "held out", "classes noted", "threshold", "scoring", "groups", "before the report",
    "report",
]  # fmt: skip


@pytest.fixture(scope="module")
def large(place, tmp_path_factory):
    """Images enough for two parts of every kind, and an uninterrupted run on them."""
    folder = tmp_path_factory.mktemp("large")
    for kind in CLASSES:
        draw(folder / "known" / kind, kind, range(70), 40)
    for name in ("castle", "cat", "bicycle"):
        draw(folder / "photos" / name, name, range(45), 50)
    shutil.copy(place / "words.txt", folder)
    screened(folder, folder / "run")
    (folder / "run").rename(folder / "whole")
    expected = result(folder / "whole")
    parts = [sum(n.startswith(f"{at}/part-") for n in expected) for at in ("photos", "normal")]
    assert parts == [2, 2]
    return folder, expected, result(place / "cache" / "vocabularies")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_killed_in_any_step_and_continued(place, large, tmp_path, monkeypatch, step):
    folder, expected, vocabularies = large
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    shutil.rmtree(folder / "run", ignore_errors=True)
    names = [folder / name for name in ("photos", "known", "words.txt", "run")]
    killed = subprocess.run(
        [sys.executable, script, *names, step], capture_output=True, check=False, timeout=300
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert not (folder / "run" / "summary.json").exists()
    found = screened(folder, folder / "run")
    assert found.rows == 135
    now = result(folder / "run")
    assert sorted(now) == sorted(expected)
    assert [n for n in now if now[n] != expected[n] and n != "report.html"] == []
    made = result(tmp_path / "cache" / "vocabularies")
    assert made and made.items() <= vocabularies.items()
    if WITH_REPORT:
        pages = [files["report.html"].decode() for files in (now, expected)]
        cache = str(tmp_path / "cache")
        assert pages[0].replace(cache, str(place / "cache")) == pages[1]


@pytest.mark.slow
def test_worker_processes_make_the_same_bytes(place, whole, tmp_path):
    folder, _, _ = whole
    run(*arguments(place, tmp_path / "r", "--normal", place / "known"), "--workers", 2,
        "--devices", "cpu", code=3)  # fmt: skip
    for name in ("photos", "normal", "scores"):
        theirs = {n: c for n, c in result(folder / name).items() if n.startswith("part-")}
        mine = {n: c for n, c in result(tmp_path / "r" / name).items() if n.startswith("part-")}
        assert mine == theirs, name


def test_photos_of_which_none_can_be_decoded(place, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no image")
    given = ["screen", tmp_path / "photos", *MODEL, "--vocabulary", place / "words.txt"]
    known = ["--normal", place / "known", "--classes", "cat,castle"]
    out, err = run(*given, *known, "--out", tmp_path / "r", code=3)
    assert "flagged          0 of 0" in out and "most anomalous" not in out
    assert "1 of 1 photos have no score" in err
    _, err = run(*given, "--classes", "cat", "--out", tmp_path / "s", code=1)
    assert "calibration images" in err


def test_photos_alone_calibrate_assigned_and_trimmed(place, tmp_path):
    found = screened(place, tmp_path / "r", normal=None, classes="castle, cat", trim=0.2)
    assert found.notices[0] == "the photos to screen are what calibrated: no others were given"
    assert "11 images without a label were given the class nearest to them" in found.notices
    left = 11 - sum(found.classes.values())
    assert f"{left} images are left out as the farthest from their class" in found.notices
    assert left in (1, 2)
    calibration = Calibration.load(tmp_path / "r" / "calibration")
    assert calibration.attributes["trimmed_share"] == 0.2
    assert calibration.classes == ("castle", "cat")


def test_one_class_needs_no_folders(place, tmp_path):
    found = screened(place, tmp_path / "r", normal=str(place / "known" / "cat"), classes="cat")
    assert found.classes == {"cat": 12}
    assert not any("left out" in notice for notice in found.notices)


def test_classes_choose_among_the_folders(place, tmp_path):
    found = screened(place, tmp_path / "r", classes="cat")
    assert found.classes == {"cat": 12}
    assert "12 images of other labels are left out: 'castle' (12)" in found.notices


def test_the_vocabulary_is_encoded_once_for_all_runs(place, whole, tmp_path):
    said = []
    screened(place, tmp_path / "a", said.append, classes="cat")
    assert any("found in the cache" in text for text in said)
    said.clear()
    screened(place, tmp_path / "b", said.append, classes="cat", template="a picture of a {}")
    assert any("encoded into the cache" in text for text in said)


def test_a_damaged_cache_is_named_and_removing_it_helps(place, whole, tmp_path, monkeypatch):
    shutil.copytree(place / "cache", tmp_path / "cache")
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))
    said = []
    found = screened(place, tmp_path / "a", said.append)
    (cached,) = [text.rpartition("cache: ")[2] for text in said if "the cache: " in text]
    part = sorted(Path(cached).glob("part-*"))[0]
    content = bytearray(part.read_bytes())
    content[-2000] ^= 1
    part.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=f"{part.name}.*Remove {cached} and run"):
        screened(place, tmp_path / "b")
    shutil.rmtree(cached)
    again = screened(place, tmp_path / "b")
    assert again.most_anomalous == found.most_anomalous
    assert screened(place, tmp_path / "a").scored_now == 0  # the same bytes were encoded anew


def test_a_cache_that_cannot_be_written_is_refused_first(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="file/vocabularies.*BLISS_INDEX_CACHE names another"):
        screened(place, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_stores_and_embeddings_instead_of_photos(place, whole, tmp_path):
    folder, found, _ = whole
    stores = {"photos": (str(folder / "photos"),), "normal": str(folder / "normal")}
    again = screened(place, tmp_path / "stores", model=None, **stores)
    assert again.threshold == found["threshold"] and again.flagged == found["flagged"]
    assert not (tmp_path / "stores" / "photos").exists()
    store = EmbeddingStore.open(folder / "photos")
    np.save(tmp_path / "photos.npy", store.embeddings())
    imported = screened(
        place, tmp_path / "npy", photos=(str(tmp_path / "photos.npy"),), normal=None,
        classes="cat", embeddings=True,
    )  # fmt: skip
    assert imported.status == {"ok": 11, "zero_embedding": 1}
    assert imported.classes == {"cat": 10}  # a tenth trimmed


def test_stores_of_everything_need_no_model(place, whole, tmp_path):
    """What an unknown model made is screened, as long as nothing is to be encoded."""
    folder, _, _ = whole
    model = ModelIdentity("somebody's", "own")
    given = {}
    (tmp_path / "names.txt").write_text("castle\ncat\n")
    run("encode-text", tmp_path / "names.txt", *MODEL, "--out", tmp_path / "names")
    run("encode-text", place / "words.txt", *MODEL, "--out", tmp_path / "words")
    sources = {"photos": folder / "photos", "normal": folder / "normal",
               "names": tmp_path / "names", "words": tmp_path / "words"}  # fmt: skip
    for name, path in sources.items():
        store = EmbeddingStore.open(path)
        given[name] = str(tmp_path / f"{name}-store")
        with StoreWriter(
            given[name], kind=store.kind, model=model, dim=store.dim, dtype=store.dtype
        ) as writer:
            texts = {"texts": store.texts()} if store.kind == "text" else {}
            good = np.concatenate([shard.good for shard in store.iter_shards()])
            keys = [key for key, fine in zip(store.keys(), good, strict=True) if fine]
            writer.append(keys, store.embeddings()[good], **texts)
    stores = {"model": None, "photos": (given["photos"],), "normal": given["normal"]}
    found = screened(place, tmp_path / "r", **stores, classes=given["names"],
                     vocabulary=(given["words"],))  # fmt: skip
    assert found.classes == {"castle": 12, "cat": 12}
    with pytest.raises(EncoderError, match="unknown model \"somebody's\"|somebody's"):
        screened(place, tmp_path / "s", **stores, vocabulary=(given["words"],))
    with pytest.raises(ModelMismatchError, match="model name"):
        screened(place, tmp_path / "s", **stores, classes=given["names"],
                 vocabulary=(str(tmp_path / "words"),))  # fmt: skip
    assert not (tmp_path / "s").exists()


def test_another_setting_is_refused(place, whole):
    folder, _, _ = whole
    with pytest.raises(JobError, match="begun with dtype 'float16', now it is 'float32'"):
        screened(place, folder, dtype="float32")
    with pytest.raises(JobError, match="begun with k 10, now it is 5"):
        screened(place, folder, k=5)


def test_other_settings_are_tried_as_the_refusal_says(place, whole):
    """Without encoding again: the embeddings of the first run are screened."""
    folder, _, _ = whole
    with pytest.raises(JobError) as refused:
        screened(place, folder, k=5)
    advice = re.search(r"bliss-index (screen .*), with these settings", str(refused.value))
    words = shlex.split(advice.group(1))
    given = {name: words[words.index(name) + 1] for name in ("--normal", "--images", "--out")}
    found = screened(
        place, given["--out"], photos=(words[1],), normal=given["--normal"], k=5, model=None,
        images=Path(given["--images"]),
    )  # fmt: skip
    assert given["--out"] == f"{folder}-2" and found.rows == 12 and found.report is not None
    assert {p.name for p in Path(given["--out"]).iterdir()} & {"photos", "normal"} == set()
    page = Path(found.report).read_text()
    assert "data:image/jpeg" in page and len(found.groups) == page.count('<section class="group">')
    # A review of either run knows the pictures and the images that calibrated.
    for run_ in (folder, Path(given["--out"])):
        inputs = ReviewInputs.open(run_)
        assert inputs.images == Path(given["--images"]) == place / "photos"
        assert (
            inputs.calibrating.content_hash == EmbeddingStore.open(folder / "normal").content_hash
        )
        assert inputs.notices == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"normal": None}, "--normal FOLDER of known images.*or --classes cat,dog alone"),
        ({"photos": ("nowhere",)}, "'nowhere' does not exist"),
        ({"normal": "nowhere"}, "'nowhere' does not exist"),
        ({"vocabulary": ("nowhere.txt",)}, "'nowhere.txt' is neither a file nor built in"),
        ({"vocabulary": ("few.txt",)}, "k = 10 must lie between 1 and the 2 entries"),
        ({"model": "nope"}, "unknown model 'nope'"),
        ({"classes": "cat,cat"}, "must name different classes"),
        ({"classes": "cat,dog"}, "1 of 2 classes have fewer than 3 images in .*: 'dog' \\(0\\)"),
        ({"normal": "flat"}, "flat has no sub-folders to name the classes"),
        (
            {"photos": ("empty",)},
            "empty holds no images; passed over: 1 \\(no image .*: notes.txt\\)",
        ),
        ({"false_alarm_rate": 0.01}, "needs at least 99 held-out normal images, got 24"),
        ({"trim": 0.5}, "share to trim must be at least 0 and below 0.5, got 0.5"),
        ({"template": "a photo"}, "it must have exactly one, written {}"),
        ({"photos": ("a.npy", "b.npy"), "embeddings": True}, "from one place, got 2"),
    ],
)
def test_refused_before_anything_is_made(place, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    draw(tmp_path / "flat", "cat", range(3), 60)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(BlissError, match=message):
        screened(place, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_left_alone(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not empty and not a screen directory"):
        screened(place, tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]
