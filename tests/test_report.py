"""The report: its numbers, hostile names, missing pictures, and a size that does not grow."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if not all(map(find_spec, ("jinja2", "matplotlib", "PIL"))):
    pytest.skip("the extra 'report' is not installed", allow_module_level=True)

from command import run
from PIL import Image
from typer.testing import CliRunner

from bliss_index.cli.app import app
from bliss_index.errors import InvalidInputError, MissingDependencyError, StoreError
from bliss_index.evaluation.from_scores import KnownAnomalies
from bliss_index.jobs import Part, Plan
from bliss_index.jobs.description import JobDescription
from bliss_index.jobs.manifest import PartFile, write_manifest
from bliss_index.jobs.record import commit
from bliss_index.report import ReportOptions, make_report
from bliss_index.report.aggregate import aggregate, read_rows
from bliss_index.report.figures import score_histogram
from bliss_index.report.gallery import PictureFolder
from bliss_index.report.groups import groups
from bliss_index.report.histogram import make_histogram
from bliss_index.report.make import in_words, percent
from bliss_index.scoring.score_table import scores_schema
from bliss_index.scoring.score_work import MANIFEST_NAME
from bliss_index.scoring.scores_directory import ScoresDirectory
from bliss_index.storage import open_directory

HOSTILE = "<script>alert('x')</script>\u202e\x00"


def write_scores(
    path: Path, parts, classes, *, threshold: float | None = None, explain=True
) -> Path:
    """Write a scores directory of the rows given: lists of (key, score or None, class)."""
    directory = open_directory(path)
    directory.make()
    settings = {
        "k": 2, "lam": 0.5, "search": "exact", "threshold": threshold, "explain": explain,
    }  # fmt: skip
    plan = Plan.of(Part(i, f"part-{i}", len(rows), "x") for i, rows in enumerate(parts))
    plan.files[0].write(directory)
    facts = {"images": "images", "corpus": "c", "calibration": "n", "classes": list(classes)}
    JobDescription("scores", settings, plan.files[0].name, facts, {"python": "3"}).create(directory)
    records = []
    for index, rows in enumerate(parts):
        scores = [score for _, score, _ in rows]
        good = [score is not None for score in scores]
        values = {
            "key": [key for key, _, _ in rows],
            "anomaly_score": scores,
            "nearest_class": [c if ok else None for (_, _, c), ok in zip(rows, good, strict=True)],
            "internal_score": [None if s is None else 0.75 * s for s in scores],
            "external_score": [None if s is None else 0.5 * s for s in scores],
            "status": ["ok" if ok else "zero_embedding" for ok in good],
            "error": [None if ok else HOSTILE for ok in good],
            "flag": [None if s is None else s >= (threshold or 0) for s in scores],
            "entries": [[HOSTILE, "entry"] if ok else None for ok in good],
            "similarities": [[0.3, 0.2] if ok else None for ok in good],
            "contributions": [[-0.125, 0.25] if ok else None for ok in good],
        }
        schema = scores_schema(explain=explain, flag=threshold is not None)
        table = pa.table({name: values[name] for name in schema.names}, schema=schema)
        content = directory.new_file()
        pq.write_table(table, content.sink)
        status = {"ok": sum(good), "zero_embedding": len(good) - sum(good)}
        records.append(commit(
            directory, plan[index], content, "parquet",
            status={name: count for name, count in status.items() if count}, given="x", seconds=1.0,
        ))  # fmt: skip
    files = [PartFile.of(record) for record in records]
    write_manifest(directory, MANIFEST_NAME, files, {"format": "bliss_index.scores"})
    return path


def random_rows(seed: int, count: int, classes):
    rng = np.random.default_rng(seed)
    rows = [
        (f"{seed}/{i:06}.png", float(np.float32(score)), classes[int(c)])
        for i, (score, c) in enumerate(
            zip(rng.normal(size=count), rng.integers(0, len(classes), count), strict=True)
        )
    ]
    for i in range(0, count, 97):
        rows[i] = (rows[i][0], None, rows[i][2])
    return rows


def test_the_aggregate_is_that_of_all_rows(tmp_path):
    classes = ("a", "b", "c", "never")
    parts = [random_rows(seed, 400, classes[:3]) for seed in (1, 2)]
    directory = ScoresDirectory.open(write_scores(tmp_path / "s", parts, classes, threshold=1.5))
    found = aggregate(directory, most_bad=3)
    rows = [row for part in parts for row in part]
    scored = [(i, s, c) for i, (_, s, c) in enumerate(rows) if s is not None]
    assert found.status == {"ok": len(scored), "zero_embedding": 10}
    assert found.flagged == sum(s >= 1.5 for _, s, _ in scored)
    assert [row.key for row in found.bad] == ["1/000000.png", "1/000097.png", "1/000194.png"]
    assert {c.name for c in found.classes} == {"a", "b", "c"}
    assert [c.images for c in found.classes] == sorted(c.images for c in found.classes)[::-1]
    for summary in found.classes:
        own = np.array([s for _, s, c in scored if c == summary.name], dtype=np.float32)
        assert summary.images == own.size
        assert summary.flagged == (own >= 1.5).sum()
        expected = np.quantile(own, [0.05, 0.5, 0.95])
        np.testing.assert_allclose((summary.low, summary.median, summary.high), expected)
        assert summary.internal == pytest.approx(0.75 * own.mean(dtype=float), rel=1e-5)
        assert summary.external == pytest.approx(0.5 * own.mean(dtype=float), rel=1e-5)
    by_score = sorted(scored, key=lambda row: -row[1])
    assert found.most_anomalous(7) == [i for i, _, _ in by_score[:7]]
    by_distance = sorted(scored, key=lambda row: abs(row[1] - 1.5))
    assert found.borderline(5) == [i for i, _, _ in by_distance[:5]]
    read = read_rows(directory, [799, 3, 401])
    assert [row["key"] for row in read] == [rows[799][0], rows[3][0], rows[401][0]]


def test_equal_scores_come_in_row_order(tmp_path):
    rows = [(str(i), 1.0, "a") for i in range(50)]
    found = aggregate(ScoresDirectory.open(write_scores(tmp_path / "s", [rows], ("a",))), 0)
    assert found.most_anomalous(4) == [0, 1, 2, 3]
    assert found.border == 1.0


def test_hostile_names_are_shown_not_run(tmp_path):
    classes = (HOSTILE, "plain")
    rows = [(f"{HOSTILE}{i}", float(i), HOSTILE) for i in range(5)]
    rows += [("k" * 100_000, 9.0, "plain"), ("bad" + HOSTILE, None, "plain")]
    scores = write_scores(tmp_path / HOSTILE.replace("/", "|").replace("\x00", ""), [rows], classes)
    summary = make_report(scores)
    page = Path(summary.path).read_text(encoding="utf-8")
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == 1 and page.count("<script") == 1  # the page's own, named by its hash
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "alert('x')" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)" in page
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "(100,000 characters)" in page
    assert summary.bytes < 2**20


def test_pictures(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (900, 300), (200, 30, 30)).save(folder / "sub" / "a.png")
    (folder / "broken.png").write_bytes(b"nothing")
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    found = PictureFolder(folder)
    uri, missing = found.find("sub/a.png")
    assert missing == ""
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(content)).size) == 160
    assert found.find("broken.png") == ("", "cannot be decoded: unsupported_type")
    assert found.find("gone.png") == ("", "no such file in the folder of images")
    for key in ("../outside.png", str(tmp_path / "outside.png"), "link.png", ""):
        assert found.find(key) == ("", "its key leads out of the folder of images")
    assert found.find("x\x00y")[1] == "its key is not a path"
    assert found.find("x" * 5000)[1] == "its key is not a path"
    linked = PictureFolder(folder, link=True).find("sub/a.png")[0]
    assert linked == f"file://{folder}/sub/a.png"
    beside = PictureFolder(folder, link=True, page=tmp_path)
    assert beside.find("sub/a.png")[0] == beside.href("sub/a.png") == "images/sub/a.png"
    assert beside.href("link.png") == beside.href("gone.png") == ""
    rows = [("sub/a.png", 2.0, "a"), ("gone.png", 1.0, "a"), ("sub/a.png", 0.5, "a")]
    scores = write_scores(tmp_path / "s", [rows], ("a",))
    summary = make_report(scores, tmp_path / "r.html", ReportOptions(images=folder, gallery=2))
    # Two most anomalous, and the nearest to the 99 % quantile.
    assert (summary.pictures, summary.missing_pictures) == (2, 1)
    page = (tmp_path / "r.html").read_text()
    assert "no such file in the folder of images" in page
    assert page.count('<a href="images/sub/a.png">') == 2
    assert page.index("-0.125") > page.index("+0.250")  # the largest pull first


def test_known_anomalies(tmp_path):
    rows = [(str(i), float(i), "a") for i in range(10)]
    scores = write_scores(tmp_path / "s", [rows], ("a",), threshold=5.0)
    (tmp_path / "l.txt").write_text("0\n" * 6 + "1\n" * 4)
    options = ReportOptions(labels=tmp_path / "l.txt", plots=tmp_path / "plots")
    summary = make_report(scores, tmp_path / "r.html", options)
    page = html.unescape((tmp_path / "r.html").read_text())
    assert re.search(r"AUROC</td><td>1\.0000", page)
    assert "5 (50.00%)" in page
    assert [Path(p).name for p in summary.plots] == ["histogram.png", "classes.png"]
    for plot in summary.plots:
        with Image.open(plot) as image:
            assert image.size[0] == 1400
    (tmp_path / "l.txt").write_text("0\n" * 9)
    with pytest.raises(InvalidInputError, match="9"):
        make_report(scores, tmp_path / "r.html", options)


@pytest.mark.parametrize("explain", [True, False])
@pytest.mark.parametrize(
    "rows", [[("only", 1.0, "a")], [("only", None, "a")], [("x", None, "a")] * 300]
)
def test_few_or_no_scores(tmp_path, rows, explain):
    scores = write_scores(tmp_path / "s", [rows], ("a",), explain=explain)
    summary = make_report(scores)
    page = Path(summary.path).read_text()
    assert summary.rows == len(rows)
    assert ("No image has a score." in page) == (rows[0][1] is None)
    assert ("The first 100 are listed." in page) == (len(rows) == 300)


def test_names_of_any_script(tmp_path):
    """Fonts may lack them; that is no warning to a person, and the page has the names."""
    names = ("\u65e5\u672c\u8a9e", "\u0639\u0631\u0628\u064a", "$x^2_{$")
    rows = [(f"{name}.png", float(i), name) for i, name in enumerate(names)]
    scores = write_scores(tmp_path / "s", [rows], names)
    page = Path(make_report(scores, options=ReportOptions(plots=tmp_path)).path).read_text()
    assert all(page.count(html.escape(name)) >= 2 for name in names)


@pytest.mark.parametrize("threshold", [None, 4.2264, 0.3, -9.0, 30.0])
def test_the_histogram_holds_every_image(rng, tmp_path, threshold):
    """A flagged image far off is to the right of the threshold's line, wherever that is."""
    scores = np.append(rng.normal(size=130), 4.3297)
    rows = [(f"{at}.png", float(score), "cat") for at, score in enumerate(scores)]
    write_scores(tmp_path, [rows], ["cat"], threshold=threshold)
    found = aggregate(ScoresDirectory.open(tmp_path), 5)
    bars = score_histogram(found).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == 131
    if threshold is not None:
        flagged = found.flagged
        ends = np.array([(bar.get_x() + bar.get_width(), bar.get_height()) for bar in bars])
        assert ends[ends[:, 0] > threshold, 1].sum() >= flagged
    anomaly = found.scores > 1
    given = KnownAnomalies(anomaly, np.ones(131, dtype=bool))
    both = score_histogram(found, given).axes[0].patches
    assert sum(bar.get_height() for bar in both) == 131


def test_the_slider_knows_how_many_lie_above_every_edge(rng, tmp_path):
    scores = np.append(rng.normal(size=300), [9.0, -7.0]).astype(np.float32)
    rows = [(f"{at}.png", float(score), "cat") for at, score in enumerate(scores)]
    write_scores(tmp_path, [rows], ["cat"], threshold=0.75)
    found = aggregate(ScoresDirectory.open(tmp_path), 0)
    drawn = make_histogram(found)
    edges = np.array(drawn.edges)
    assert edges[drawn.start] == 0.75 and 60 < len(edges) < 100
    assert sum(drawn.total.bars) == 302 == drawn.total.above[0]
    for edge, above in zip(edges[1:], drawn.total.above[1:], strict=True):
        assert above == (scores.astype(np.float64) >= edge).sum()
    assert drawn.total.above[drawn.start] == found.flagged
    anomaly, known = scores > 0, np.arange(302) % 3 > 0
    both = make_histogram(found, KnownAnomalies(anomaly, known))
    assert [s.images for s in both.series] == [(known & ~anomaly).sum(), (known & anomaly).sum()]
    assert both.counts()["known"]["anomalies"][drawn.start] == (known & (scores >= 0.75)).sum()
    page = html.unescape(Path(make_report(tmp_path).path).read_text())
    assert json.dumps(drawn.counts()) in page


def test_flags_are_those_of_the_scores_even_where_float32_rounds_up(tmp_path):
    threshold = 1 + 1e-9  # as float32 it is 1, which is not flagged
    write_scores(tmp_path, [[("a", 1.0, "cat"), ("b", 2.0, "cat")]], ["cat"], threshold=threshold)
    found = aggregate(ScoresDirectory.open(tmp_path), 0)
    assert found.flagged == 1 == found.classes[0].flagged == ScoresDirectory.open(tmp_path).flagged


def test_groups_come_first_and_galleries_show_different_kinds(job_of_kinds, tmp_path):
    found = groups(job_of_kinds.folder / "scores", out=tmp_path / "g.parquet")
    for options in (ReportOptions(gallery=40), ReportOptions(groups=str(tmp_path / "g.parquet"))):
        make_report(job_of_kinds.folder / "scores", tmp_path / "r.html", options)
        page = html.unescape((tmp_path / "r.html").read_text())
        for one in found.groups:
            assert f"<bdi>{one.name}</bdi></h3> \N{EN DASH} {one.images} image" in page
        assert page.index("What the flagged images show") < page.index("<h2>Scores")
        gallery = page.split("<h2>Most anomalous")[1].split("<h2>Borderline")[0]
        shown = Counter(re.findall(r'data-group="([^"]+)"', gallery))
        assert max(shown.values()) <= 3 and len(shown) > 2
        assert set(re.findall(r"<option>(.*?)</option>", page)) > set(shown) | {"flagged"}
    at = job_of_kinds.folder / "flagless"
    make_report(at, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "What the highest scores show" in page
    lost = write_scores(tmp_path / "lost", [[("k", 1.0, "a")]], ("a",))
    assert "Not grouped: " in Path(make_report(lost).path).read_text()
    with pytest.raises(StoreError):
        make_report(lost, options=ReportOptions(corpus=str(tmp_path / "gone")))


def test_intervals_are_those_of_evaluate(rng, tmp_path):
    rows = [(str(i), float(v), "a") for i, v in enumerate(rng.normal(size=60))]
    scores = write_scores(tmp_path / "s", [rows], ("a",))
    (tmp_path / "l.txt").write_text(
        "".join(f"{int(v > 0.3)}\n" for _, v, _ in rows[:-5]) + "0\n" * 5
    )
    done = CliRunner(env={"COLUMNS": "200"}).invoke(
        app, ["evaluate", str(scores), "--labels", str(tmp_path / "l.txt")]
    )
    options = ReportOptions(labels=tmp_path / "l.txt")
    page = Path(make_report(scores, tmp_path / "r.html", options).path).read_text()
    intervals = re.findall(r"\d\.\d{4} to \d\.\d{4}", page)
    assert len(intervals) > 2 and all(interval in done.output for interval in intervals)


def test_settings_are_words():
    assert in_words({"a": True, "b": [1, {"c": None}]}) == "a: yes, b: 1, c: none"
    assert in_words({}) == in_words(()) == "none" and in_words(0.5) == "0.5"


def test_small_shares_are_not_nothing():
    assert [percent(s) for s in (0, 1e-6, 0.5e-4, 0.0001, 0.5)] == [
        "0.00%", "0.0001%", "0.005%", "0.01%", "50.00%",
    ]  # fmt: skip


def test_what_is_below_a_picture_adds_up(tmp_path):
    scores = write_scores(tmp_path / "s", [[("k", 2.0, "a")]], ("a",))
    page = html.unescape(Path(make_report(scores).path).read_text())
    assert re.search(
        r"2\.0000</strong>.*\s*<small>= internal 1\.5000 \+ 0\.5 \u00d7 external 1", page
    )
    assert "the vocabulary entries that move its score most" in page


def test_its_size_does_not_grow_with_the_rows(tmp_path):
    classes = tuple(f"class {i}" for i in range(300))
    sizes = []
    for count in (2_000, 60_000):
        rows = random_rows(count, count, classes)
        scores = write_scores(tmp_path / str(count), [rows], classes, explain=False)
        sizes.append(make_report(scores).bytes)
    assert (
        "The 100 classes nearest to most images, of 300."
        in (tmp_path / "60000" / "_report.html").read_text()
    )
    assert max(sizes) < 2**20
    assert abs(sizes[1] - sizes[0]) < 60_000


def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="is not a scores directory"):
        make_report(tmp_path)
    with pytest.raises(InvalidInputError, match="is not a folder of images"):
        ReportOptions(images=tmp_path / "gone")
    with pytest.raises(InvalidInputError, match="between 0 and 500, got 501"):
        ReportOptions(gallery=501)
    scores = write_scores(tmp_path / "s", [[("k", 1.0, "a")]], ("a",))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'bliss-index\[report\]'"):
        make_report(scores)


def test_the_command(tmp_path):
    scores = write_scores(tmp_path / "s", [[("k", 1.0, "a"), ("l", 2.0, "a")]], ("a",))
    out, _ = run("report", scores, "--json")
    summary = json.loads(out)
    assert summary["rows"] == 2
    assert Path(summary["path"]) == scores / "_report.html"
