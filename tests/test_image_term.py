"""The image term: the class's mean image beside its text, in every way of scoring."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import run
from test_device_scoring import OnTensors

from bliss_index import BlissDetector, StoreWriter
from bliss_index import calibrate as calibrate_step
from bliss_index.bench.synthetic import clip_like
from bliss_index.calibration import Calibration, calibrate
from bliss_index.errors import CalibrationError, CorruptStoreError, InvalidInputError
from bliss_index.evaluation import weights
from bliss_index.evaluation.detector import Reference
from bliss_index.evaluation.registry import make_detectors
from bliss_index.evaluation.weights import choose_weights
from bliss_index.scoring import ScoreSettings, run_job
from bliss_index.scoring.device_scorer import DeviceScorer
from bliss_index.scoring.native_kernel import score_kernel_available
from bliss_index.scoring.scorer import BlissScorer
from bliss_index.scoring.thresholds import deal, held_out_scores
from bliss_index.search import exact_search
from bliss_index.store import ModelIdentity

MODEL = ModelIdentity("m", None)
K, LAM, DIM, ENTRIES = 4, 0.75, 24, 200
PATHS = ["numpy", "device", *(["native"] if score_kernel_available() else [])]


def data(counts, seed=3):
    rng = np.random.default_rng(seed)
    vocabulary = clip_like(ENTRIES, DIM, "text", seed)
    texts = clip_like(len(counts), DIM, "text", seed + 1)
    labels = np.repeat(np.arange(len(counts)), counts)
    centres = rng.standard_normal((len(counts), DIM))
    rows = centres[labels] + 0.7 * rng.standard_normal((labels.size, DIM))
    images = rng.standard_normal((40, DIM))
    unit = [(r / np.linalg.norm(r, axis=1, keepdims=True)).astype(np.float32)
            for r in (rows, images)]  # fmt: skip
    return unit[0], labels, vocabulary, texts, unit[1]


def scorer_of(path, vocabulary, calibration, lam=LAM):
    if path == "device":
        return DeviceScorer(OnTensors(vocabulary, K), vocabulary, calibration, lam=lam)
    search = exact_search(vocabulary, K)
    return BlissScorer(search, vocabulary, calibration, lam=lam, native=path == "native")


def reference_term(images, normal, labels, vocabulary, classes, shrinkage):
    """J of every class, from the images themselves, one by one, in float64."""
    normal, images = normal.astype(np.float64), images.astype(np.float64)
    of_class = [normal[labels == c] for c in range(classes)]
    means = [rows.mean(axis=0) for rows in of_class]
    units = [mean / np.linalg.norm(mean) for mean in means]

    def to_others(rows):
        return np.array([row @ np.delete(rows, i, axis=0).mean(axis=0) for i, row in
                         enumerate(rows)])  # fmt: skip

    def differ(rows):
        return ((rows - rows.mean(axis=0)) ** 2).sum() / len(rows) > 1e-12

    several = [rows for rows in of_class if len(rows) > 1]
    if several:
        pooled = sum(to_others(rows).sum() for rows in several) / sum(map(len, several))
    else:
        pooled = to_others(normal).mean()
    tau = np.zeros(classes)
    for c, rows in enumerate(of_class):
        others = [unit for o, unit in enumerate(units) if o != c]
        over = others if classes > 1 else vocabulary.astype(np.float64)
        tau[c] = np.mean([(rows @ unit).var() for unit in over])
    there = [c for c in range(classes) if differ(of_class[c])]
    for c in set(range(classes)) - set(there):
        sizes = np.array([len(of_class[o]) for o in there])
        tau[c] = (
            (sizes * tau[there]).sum() / sizes.sum()
            if there
            else np.mean([(normal @ unit).var() for unit in units])
        )
    terms = np.empty((len(images), classes))
    for c, rows in enumerate(of_class):
        length, n = np.linalg.norm(means[c]), len(rows)
        alike = to_others(rows) / length if n > 1 else np.array([pooled / length])
        variance = alike.var()
        if shrinkage:
            variance = (n * variance + shrinkage * tau[c]) / (n + shrinkage)
        terms[:, c] = (alike.mean() - images @ units[c]) / (np.sqrt(variance) + 1e-8)
    return terms


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shrinkage", [0, 10])
@pytest.mark.parametrize("counts", [(5, 3, 50), (60,), (5,), (1, 2, 40), (2,), (1, 1, 1)])
def test_scores_equal_the_formula(path, shrinkage, counts):
    if not shrinkage and min(counts) < 3:
        pytest.skip("refused: see test_what_has_no_deviation_is_refused")
    weight = 0.5
    normal, labels, vocabulary, texts, images = data(counts)
    plain = calibrate([(normal, labels)], texts, shrinkage=shrinkage)
    term = reference_term(images, normal, labels, vocabulary, len(counts), shrinkage)
    without = scorer_of("numpy", vocabulary, plain)
    found = scorer_of(path, vocabulary, replace(plain, image_weight=weight)).score(images)
    inner = without.internal_scores(images) + weight * term
    similarities, ids = without.find(images)
    without.tables.require(ids)
    outer = without.external_scores(similarities, ids)
    total = inner + LAM * outer
    winner = total.argmin(axis=1)
    rows = np.arange(winner.size)
    np.testing.assert_array_equal(found.nearest_class, winner)
    # Unit rows in float32 are of unit norm to 1e-7, which the moments' form of the mean allows for.
    for name, expected in (("anomaly", total), ("internal", inner), ("external", outer)):
        values = getattr(found, name)
        np.testing.assert_allclose(values, expected[rows, winner], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_weight_0_changes_no_bit_and_batches_none(path):
    normal, labels, vocabulary, texts, images = data((5, 90))
    plain = calibrate([(normal, labels)], texts)
    zero = calibrate([(normal, labels)], texts, image_weight=0.0)
    assert zero.content_hash == plain.content_hash
    assert replace(plain, image_weight=1.0).content_hash != plain.content_hash
    one, other = (scorer_of(path, vocabulary, c).score(images) for c in (plain, zero))
    np.testing.assert_array_equal(one.anomaly, other.anomaly)
    scorer = scorer_of(path, vocabulary, replace(plain, image_weight=2.0))
    whole = scorer.score(images)
    pieces = [scorer.score(images[start : start + 7]).anomaly for start in range(0, 40, 7)]
    np.testing.assert_array_equal(whole.anomaly, np.concatenate(pieces))


def test_what_has_no_deviation_is_refused():
    normal, labels, _, texts, _ = data((2, 30))
    with pytest.raises(CalibrationError, match="class '0'.*--shrinkage 10"):
        calibrate([(normal, labels)], texts, image_weight=1)
    calibrate([(normal, labels)], texts, image_weight=1, shrinkage=1)
    for bad in (-1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(InvalidInputError, match="image_weight must be"):
            calibrate([(normal, labels)], texts, image_weight=bad, shrinkage=1)
    opposite = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    with pytest.raises(CalibrationError, match="no direction"):
        calibrate([(opposite, np.zeros(8, int))], np.eye(4)[:1], image_weight=1)


def test_it_is_part_of_the_calibrations_files(tmp_path):
    normal, labels, _, texts, _ = data((5, 30))
    made = replace(calibrate([(normal, labels)], texts, image_weight=1.5), lam=0.25)
    made.save(tmp_path / "c")
    found = Calibration.load(tmp_path / "c")
    assert (found.image_weight, found.lam) == (1.5, 0.25)
    assert found.content_hash == made.content_hash
    assert found.select([1]).image_weight == 1.5
    manifest = tmp_path / "c" / "manifest.json"
    values = json.loads(manifest.read_text())
    for name in ("image_weight", "lam"):
        for bad in ("much", True, -1, float("nan")):
            manifest.write_text(json.dumps({**values, name: bad}))
            with pytest.raises(CorruptStoreError, match=name):
                Calibration.load(tmp_path / "c")
    del values["image_weight"], values["lam"]  # as the first calibrations were written
    manifest.write_text(json.dumps(values))
    assert (Calibration.load(tmp_path / "c").image_weight, found.lam) == (0, 0.25)
    assert Calibration.load(tmp_path / "c").lam == 0.5


def test_held_out_images_are_scored_with_it():
    normal, labels, vocabulary, texts, _ = data((6, 30))
    search = exact_search(vocabulary, K)
    weights = {"shrinkage": 2, "image_weight": 1}
    found = held_out_scores(normal, labels, texts, vocabulary, search, lam=LAM, **weights)
    for fold in range(5):
        rows = deal(labels, 2, 5) == fold
        made = calibrate([(normal[~rows], labels[~rows])], texts, **weights)
        alone = BlissScorer(search, vocabulary, made, lam=LAM).score(normal[rows])
        np.testing.assert_allclose(found[rows], alone.anomaly, rtol=1e-9)


def named_wrongly(share, *, images=12, classes=10, dim=48, seed=0):
    """Classes whose texts lie near their images, but for a share of them, which exchange theirs."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, dim))
    gap = 2 * rng.standard_normal(dim)

    def unit(rows):
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    labels = np.repeat(np.arange(classes), images)
    shape = (labels.size, dim)
    normal, new = (unit(centres[labels] + gap + 0.6 * rng.standard_normal(shape)) for _ in range(2))
    texts = unit(centres - gap + 0.3 * rng.standard_normal((classes, dim)))
    others = rng.standard_normal((300, dim)) - gap
    vocabulary = unit(np.concatenate([others, centres - gap]))
    wrong = np.arange(round(share * classes))
    texts[wrong] = texts[np.roll(wrong, 1)]
    return normal, labels, texts, vocabulary, new


def auroc(normal, labels, texts, vocabulary, new, lam, weight):
    """Half of the classes are normal; images of the others are the anomalies."""
    known = labels < 5
    made = calibrate([(normal[known], labels[known])], texts[:5], image_weight=weight)
    search = exact_search(vocabulary, K)
    scores = BlissScorer(search, vocabulary, made, lam=lam).score(new).anomaly
    pairs = scores[~known][:, None] > scores[known][None, :]
    return pairs.mean()


def test_auto_keeps_the_defaults_where_names_work_and_recovers_where_they_do_not():
    search = {}
    for share in (0.0, 1.0):
        normal, labels, texts, vocabulary, new = named_wrongly(share)
        search = exact_search(vocabulary, K)
        found = choose_weights(normal, labels, texts, vocabulary, search)
        before = auroc(normal, labels, texts, vocabulary, new, 0.5, 0.0)
        after = auroc(normal, labels, texts, vocabulary, new, found.lam, found.image_weight)
        if share:
            assert found.image_weight >= 1 and before < 0.8 and after > 0.95
            assert found.auroc > found.auroc_before + 0.1
            assert "are chosen" in str(found)
        else:
            assert before > 0.95 and after >= before - 0.01
        again = choose_weights(normal, labels, texts, vocabulary, search)
        assert again == found


def test_areas_are_those_of_all_pairs():
    totals = np.random.default_rng(0).integers(0, 6, (80, 4)).astype(float)  # with many ties
    labels = np.arange(80) % 4
    found = weights._left_out_areas(totals, labels, np.arange(4))
    for c in range(4):
        scores = np.delete(totals, c, axis=1).min(axis=1)
        anomalies, normal = scores[labels == c][:, None], scores[labels != c][None, :]
        pairs = (anomalies > normal) + 0.5 * (anomalies == normal)
        assert found[c] == pytest.approx(pairs.mean())


def test_auto_scores_as_many_images_of_every_class_as_it_may(monkeypatch):
    normal, labels, texts, vocabulary, _ = named_wrongly(0.0)
    search = exact_search(vocabulary, K)
    for most, scored in ((10_000, 120), (55, 50), (3, 20)):  # five of each; two at the least
        monkeypatch.setattr(weights, "_MOST_IMAGES", most)
        assert choose_weights(normal, labels, texts, vocabulary, search).images == scored
    monkeypatch.setattr(weights, "_MOST_PAIRS", 700)
    monkeypatch.setattr(weights, "_MOST_IMAGES", 10_000)
    assert choose_weights(normal, labels, texts, vocabulary, search).images == 70
    monkeypatch.setattr(weights, "_MOST_CLASSES", 4)
    assert choose_weights(normal, labels, texts, vocabulary, search).classes == 4


@pytest.mark.parametrize(("errors", "taken"), [(1.9, False), (2.1, True)])
def test_auto_wants_a_gain_of_two_standard_errors(monkeypatch, errors, taken):
    normal, labels, texts, vocabulary, _ = named_wrongly(0.0)
    grid = [(lam, weight) for lam in weights.LAMS for weight in weights.IMAGE_WEIGHTS]
    asked = iter(grid)
    spread = np.resize([0.01, -0.01], 10)  # of ten classes, whose mean is 0
    gain = errors * spread.std(ddof=1) / np.sqrt(10)

    def areas(totals, labels, left_out):
        return 0.5 + (gain + spread if next(asked) == (0.75, 2.0) else np.zeros(10))

    monkeypatch.setattr(weights, "_left_out_areas", areas)
    found = choose_weights(normal, labels, texts, vocabulary, exact_search(vocabulary, K))
    assert (found.lam, found.image_weight) == ((0.75, 2.0) if taken else (0.5, 0.0))
    assert found.auroc_before == 0.5 and found.auroc == pytest.approx(0.5 + taken * gain)
    assert found.standard_error == pytest.approx(gain / errors)


def test_auto_needs_classes_to_tell_apart():
    normal, labels, vocabulary, texts, _ = data((30,))
    search = exact_search(vocabulary, K)
    with pytest.raises(InvalidInputError, match="needs two classes"):
        choose_weights(normal, labels, texts, vocabulary, search)
    normal, labels, vocabulary, texts, _ = data((30, 3))
    with pytest.raises(InvalidInputError, match=r"4 or more\), of 2 1 have them.*shrinkage"):
        choose_weights(normal, labels, texts, vocabulary, exact_search(vocabulary, K))
    choose_weights(normal, labels, texts, vocabulary, exact_search(vocabulary, K), shrinkage=5)


def test_the_detector_and_the_evaluation_take_it():
    normal, labels, texts, vocabulary, new = named_wrongly(1.0)
    detector = BlissDetector(vocabulary, texts, k=K, image_weight=2.0).fit(normal, labels)
    made = calibrate([(normal, labels)], texts, image_weight=2.0)
    search = exact_search(vocabulary, K)
    expected = BlissScorer(search, vocabulary, made, lam=0.5).score(new).anomaly
    np.testing.assert_array_equal(detector.anomaly_score(new), expected)
    auto = BlissDetector(vocabulary, texts, k=K, image_weight="auto").fit(normal, labels)
    chosen = choose_weights(normal, labels, texts, vocabulary, search)
    assert auto.calibration_.image_weight == chosen.image_weight
    assert auto.calibration_.lam == chosen.lam
    scorer = BlissScorer(
        search, vocabulary, replace(made, image_weight=chosen.image_weight), lam=chosen.lam
    )
    np.testing.assert_array_equal(auto.anomaly_score(new), scorer.score(new).anomaly)
    with pytest.raises(InvalidInputError, match="image_weight must be"):
        BlissDetector(vocabulary, texts, image_weight="much").fit(normal, labels)
    reference = Reference(texts, normal, labels, vocabulary, search)
    (fitted,) = (d.fit(reference) for d in make_detectors("bliss:image_weight=2"))
    from bliss_index.evaluation.detector import ImageBlock

    scores = fitted.score_runs(ImageBlock(new, reference), [range(10)])
    np.testing.assert_allclose(scores[0], expected, rtol=1e-9)


@pytest.fixture
def stores(tmp_path):
    normal, labels, texts, vocabulary, new = named_wrongly(1.0)
    names = [f"class {c}" for c in range(10)]
    for name, rows, words in (("corpus", vocabulary, None), ("classes", texts, names)):
        words = words or [f"w{i}" for i in range(len(rows))]
        with StoreWriter(
            tmp_path / name, kind="text", model=MODEL, dim=48, dtype="float32"
        ) as writer:
            writer.append(words, rows, texts=words)
    for name, rows in (("normal", normal), ("new", new)):
        with StoreWriter(
            tmp_path / name, kind="image", model=MODEL, dim=48, dtype="float32"
        ) as writer:
            writer.append([f"{c}/{i}.jpg" for i, c in enumerate(labels)], rows)
    (tmp_path / "labels.txt").write_text("".join(f"{names[c]}\n" for c in labels))
    return tmp_path, (normal, labels, texts, vocabulary, new)


def scores_of(directory):
    return pq.read_table(directory).column("anomaly_score").to_numpy()


def test_commands_steps_and_jobs_agree(stores):
    here, (normal, labels, texts, vocabulary, new) = stores
    common = [str(here / "normal"), "--classes", str(here / "classes"), "--labels",
              str(here / "labels.txt")]  # fmt: skip
    stdout, stderr = run("calibrate", *common, "--out", here / "auto", "--image-weight", "auto",
               "--corpus", here / "corpus", "-k", K, "--json")  # fmt: skip
    chosen = choose_weights(normal, labels, texts, vocabulary, exact_search(vocabulary, K))
    said = json.loads(stdout)
    assert (said["lam"], said["image_weight"]) == (chosen.lam, chosen.image_weight)
    assert said["weights"]["auroc"] == pytest.approx(chosen.auroc)
    assert "are chosen" in stderr
    step = calibrate_step(
        here / "normal", here / "step", labels=here / "labels.txt", classes=here / "classes",
        image_weight="auto", corpus=here / "corpus", k=K,
    )  # fmt: skip
    assert step.calibration.content_hash == Calibration.load(here / "auto").content_hash
    made = calibrate([(normal, labels)], texts, image_weight=chosen.image_weight)
    expected = BlissScorer(exact_search(vocabulary, K), vocabulary, made, lam=chosen.lam)
    expected = expected.score(new).anomaly.astype(np.float32)
    files = ("--corpus", here / "corpus", "--calibration", here / "auto", "-k", K)
    run("score", here / "new", *files, "--out", here / "scores")
    np.testing.assert_allclose(scores_of(here / "scores"), expected, rtol=1e-6)
    # The same bytes in other processes, and lambda as it is asked for.
    settings = ScoreSettings(str(here / "corpus"), str(here / "auto"), K)
    summary = run_job(here / "new", here / "again", settings)
    assert summary.complete
    np.testing.assert_array_equal(scores_of(here / "again"), scores_of(here / "scores"))
    run("score", here / "new", *files, "--lam", 0.125, "--out", here / "other")
    assert not np.array_equal(scores_of(here / "other"), scores_of(here / "scores"))
    stdout, _ = run("explain", here / "scores", "3/40.jpg", "--json")
    explained = json.loads(stdout)
    assert explained["lam"] == chosen.lam
    run("threshold", here / "normal", *files, "--labels", here / "labels.txt", "--out",
               here / "t.parquet")  # fmt: skip
    run("score", here / "new", *files, "--normal-scores", here / "t.parquet",
               "--false-alarm-rate", 0.05, "--out", here / "flagged")  # fmt: skip
    run("verify", here / "flagged")
    winner = explained["classes"][0]
    term = reference_term(new[40:41], normal, labels, vocabulary, 10, 0)[0]
    c = int(winner["name"].removeprefix("class "))
    assert winner["image_score"] == pytest.approx(chosen.image_weight * term[c], rel=1e-5)
    stdout, _ = run("explain", here / "scores", "3/40.jpg")
    assert "label term" in stdout and "image term" in stdout
    stdout, _ = run("info", here / "auto", "--json")
    assert json.loads(stdout)["image_weight"] == chosen.image_weight


def test_auto_without_a_corpus_and_nonsense_are_refused(stores):
    here, _ = stores
    common = [str(here / "normal"), "--classes", str(here / "classes"), "--labels",
              str(here / "labels.txt"), "--out", str(here / "c")]  # fmt: skip
    _, stderr = run("calibrate", *common, "--image-weight", "auto", code=1)
    assert "--corpus" in stderr
    for bad in ("much", "-1", "nan"):
        _, stderr = run("calibrate", *common, f"--image-weight={bad}", code=1)
        assert "image" in stderr and "weight" in stderr
    assert not (here / "c").exists()
