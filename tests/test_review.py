"""The review without a browser: views, verdicts, samples, and who may ask for what."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

if not all(map(find_spec, ("starlette", "uvicorn", "duckdb", "jinja2", "matplotlib", "PIL"))):
    pytest.skip("the extras 'review' and 'report' are not installed", allow_module_level=True)

from command import run
from PIL import Image
from review_fixtures import HOSTILE, TOKEN, ask, make_pictures, make_with_copies, post
from scipy import stats

from bliss_index.errors import BlissError, CorruptStoreError, InvalidInputError, OutputError
from bliss_index.report.groups import groups
from bliss_index.review import session as session_module
from bliss_index.review.catalogue import Catalogue, Copies, Filters
from bliss_index.review.identical import find_identical
from bliss_index.review.inputs import ReviewInputs, ReviewOptions
from bliss_index.review.judgement_log import BELONGS, DOES_NOT_BELONG, SKIP, JudgementLog
from bliss_index.review.judgements import DISPUTED, Judgements
from bliss_index.review.pictures import Thumbnails
from bliss_index.review.server import listen, make_app
from bliss_index.review.session import ReviewSession
from bliss_index.scoring import ScoresDirectory
from bliss_index.scoring.normal_scores import NormalScores
from bliss_index.scoring.thresholds import share_interval
from bliss_index.store import EmbeddingStore


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def of_kinds(job_of_kinds, tmp_path):
    """Inputs of the job of kinds, with groups."""
    scores, file = job_of_kinds.folder / "scores", tmp_path / "groups.parquet"
    groups(scores, out=file)
    options = ReviewOptions(groups=str(file), judgements=tmp_path / "logs")
    return ReviewInputs.open(scores, options)


@pytest.fixture
def review(of_kinds):
    with ReviewSession(of_kinds, "ann") as session:
        yield session


def table_of(directory):
    """Rows of scores, in the order that the review numbers them."""
    rows = [{**row, "row": i} for i, row in enumerate(directory.table().to_pylist())]
    return sorted(rows, key=lambda r: (r["anomaly_score"] is None, -(r["anomaly_score"] or 0),
                                       r["row"]))  # fmt: skip


def test_views_have_the_rows_of_a_plain_filter(of_kinds):
    rows = table_of(of_kinds.scores)
    catalogue = Catalogue(of_kinds.scores, of_kinds.groups)
    group_of = {row: of_kinds.groups.name_of(row) for row in range(90)}
    name, word = of_kinds.groups.groups.groups[1].name, rows[0]["entries"][0]
    pulls = {
        i: row["contributions"][row["entries"].index(word)]
        for i, row in enumerate(rows) if row["entries"] and word in row["entries"]
    }  # fmt: skip
    middle = float(np.median(list(pulls.values())))
    score = [np.nan if r["anomaly_score"] is None else r["anomaly_score"] for r in rows]
    for filters, keep in (
        (Filters(), lambda i, r: True),
        (Filters(group=name), lambda i, r: group_of[r["row"]] == name),
        (Filters(group=""), lambda i, r: group_of[r["row"]] == ""),
        (Filters(nearest_class="dog"), lambda i, r: r["nearest_class"] == "dog"),
        (Filters(status="flagged"), lambda i, r: r["flag"]),
        (Filters(status="unflagged"), lambda i, r: r["flag"] is False),
        (Filters(status="unscored"), lambda i, r: r["status"] != "ok"),
        (Filters(least=score[9]), lambda i, r: score[i] >= score[9]),
        (Filters(most=score[9]), lambda i, r: score[i] < score[9]),
        (Filters(least=score[50], most=score[9], nearest_class="cat"),
         lambda i, r: score[50] <= score[i] < score[9] and r["nearest_class"] == "cat"),
        (Filters(text="1"), lambda i, r: "1" in r["key"]),
        (Filters(text="%"), lambda i, r: False),
        (Filters(word=word), lambda i, r: i in pulls),
        (Filters(word=word, pull=middle), lambda i, r: pulls.get(i, -9) >= middle),
        (Filters(word=word, status="flagged"), lambda i, r: i in pulls and r["flag"]),
        (Filters(word="nothing"), lambda i, r: False),
    ):  # fmt: skip
        expected = [i for i, row in enumerate(rows) if keep(i, row)]
        assert catalogue.select(filters).tolist() == expected, filters
        found = catalogue.look_up(catalogue.select(filters))
        assert [one["key"] for one in found] == [rows[i]["key"] for i in expected]
    assert catalogue.select(Filters(order="lowest")).tolist() == list(range(90))[::-1]
    by_input = [rows[i]["row"] for i in catalogue.select(Filters(order="input")).tolist()]
    assert by_input == list(range(90))
    assert 0 < len(pulls) < 90 and any(score[i] is np.nan for i in range(90))
    for i, row in enumerate(rows):
        assert catalogue.scores_of(row["row"])["contributions"] == row["contributions"]
        assert catalogue.keys_of(np.array([i, 3], np.int32)) == [row["key"], rows[3]["key"]]
    totals: dict[str, float] = {}
    for row in rows:
        for entry, pull in zip(*(row[n] or () for n in ("entries", "contributions")), strict=True):
            if row["flag"]:
                totals[entry] = totals.get(entry, 0) + pull
    words = catalogue.strongest_words()
    expected = sorted(totals, key=lambda w: (-totals[w], w))
    assert [w for w, _, _ in words] == expected[:100] and len(words) > 20
    for bad in (lambda: Filters(status="x"), lambda: Filters(order="x"), lambda: Filters(pull=1),
                lambda: catalogue.select(Filters(group="nothing"))):  # fmt: skip
        with pytest.raises(InvalidInputError):
            bad()


def test_the_database_is_kept_and_is_of_these_scores(of_kinds, job_of_kinds, tmp_path):
    first = Catalogue(of_kinds.scores, of_kinds.groups)
    (kept,) = (tmp_path / "cache" / "review").iterdir()
    stamp = kept.stat().st_mtime_ns
    first.close()
    Catalogue(of_kinds.scores, of_kinds.groups).close()
    assert kept.stat().st_mtime_ns == stamp
    Catalogue(of_kinds.scores, None).close()
    assert len(list((tmp_path / "cache" / "review").iterdir())) == 2
    kept.write_bytes(b"nothing")
    with pytest.raises(CorruptStoreError, match="remove it"):
        Catalogue(of_kinds.scores, of_kinds.groups)
    kept.unlink()
    Catalogue(of_kinds.scores, of_kinds.groups).close()
    shutil.copytree(job_of_kinds.folder / "scores", tmp_path / "scores")
    file = next((tmp_path / "scores").glob("part-00000001.*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(CorruptStoreError, match="part-00000001"):
        Catalogue(ScoresDirectory.open(tmp_path / "scores"))
    assert list((tmp_path / "cache" / "review").iterdir()) == []


@pytest.fixture(scope="module")
def with_copies(tmp_path_factory):
    return make_with_copies(tmp_path_factory.mktemp("copies"))


def test_copies_and_calibration_images_are_found(with_copies):
    scores = ScoresDirectory.open(with_copies / "scores")
    normal = EmbeddingStore.open(with_copies / "normal")
    found = find_identical(scores, str(with_copies / "images"), normal)
    # Rows without an embedding are no copies; 30 is near to 29.
    assert found.rows.tolist() == [2, 5, 17, 19, 20, 29, 30, 33]
    assert found.first.tolist() == [2, 2, 2, 19, 19, 29, 29, 2]
    assert found.calibrated.tolist() == [3, 19, 20]
    alone = find_identical(scores, str(with_copies / "images"), None)
    assert alone.calibrated is None and alone.rows.tolist() == found.rows.tolist()


def test_what_was_compared_is_kept_in_the_cache(with_copies, tmp_path, monkeypatch):
    options = ReviewOptions(normal=str(with_copies / "normal"))

    def found():
        return ReviewInputs.open(with_copies / "scores", options).identical

    first = found()
    (kept,) = (tmp_path / "cache" / "review").glob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr("bliss_index.review.inputs.find_identical", None)
        again = found()
    for name, values in vars(first).items():
        assert np.array_equal(values, vars(again)[name])
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert found().rows.tolist() == first.rows.tolist()
    alone = ReviewInputs.open(with_copies / "scores").identical
    assert alone.calibrated is None and alone.rows.tolist() == first.rows.tolist()


def test_copies_are_shown_as_one_and_judged_once(with_copies, tmp_path):
    options = ReviewOptions(normal=str(with_copies / "normal"), judgements=tmp_path)
    with ReviewSession(ReviewInputs.open(with_copies / "scores", options), "ann") as session:
        made = session.make_view(Filters())
        assert (made["shown"], made["images"]) == (35, 40)
        rows = session.rows(made["view"], 0, 35)
        sizes = {row["row"]: row["copies"] for row in rows}
        assert sizes[2] == 4 and sizes[19] == 2 and sum(sizes.values()) == 40
        place = [row["row"] for row in rows].index(2)
        answer = session.judge(made["view"], [(place, place + 1)], DOES_NOT_BELONG)
        assert (answer["images"], answer["places"]) == (4, 1)
        keys = scores_keys(with_copies)
        expected = {keys[row] for row in (2, 5, 17, 33)}
        assert set(Judgements.read(tmp_path).verdicts) == expected
        assert session.make_view(Filters(), DOES_NOT_BELONG)["images"] == 4
        assert session.make_view(Filters(), "unjudged")["shown"] == 34
        assert set(session.detail(rows[place]["id"])["copies"]) == expected
        assert session.detail(rows[place]["id"])["calibrated"] is False
        (calibrated,) = (row["id"] for row in rows if row["row"] == 3)
        assert session.detail(calibrated)["calibrated"] is True
        assert session.undo()["images"] == 4 and session.counts()[DOES_NOT_BELONG] == 0


def scores_keys(folder):
    return ScoresDirectory.open(folder / "scores").table(["key"]).column("key").to_pylist()


def test_one_of_each_set_of_copies_where_it_first_comes(rng):
    ids = np.flatnonzero(rng.random(200) < 0.4).astype(np.int32)
    of_set = rng.integers(0, 25, ids.size)
    leaders = np.array([ids[of_set == one].min() for one in of_set], np.int32)
    sizes = np.array([(of_set == one).sum() for one in of_set], np.int32)
    copies = Copies(200, ids, leaders, sizes)
    leader, size = dict(zip(ids.tolist(), leaders.tolist(), strict=True)), {}
    for one, count in zip(ids.tolist(), sizes.tolist(), strict=True):
        size[one] = count
    for _ in range(30):
        some = rng.permutation(200)[: rng.integers(0, 200)].astype(np.int32)
        expected = list(dict.fromkeys(leader.get(one, one) for one in some.tolist()))
        assert copies.one_of_each(some).tolist() == expected
        assert copies.size_of(some).tolist() == [size.get(one, 1) for one in some.tolist()]
        chosen = {leader.get(one, one) for one in some.tolist()}
        members = sorted({one for one in range(200) if leader.get(one, one) in chosen})
        assert copies.members_of(some).tolist() == members


def test_verdicts_on_images_ranges_groups_and_views(review, tmp_path):
    name = review.catalogue.group_names[0]
    whole = review.make_view(Filters())
    group = review.make_view(Filters(group=name))
    review.judge(whole["view"], [(3, 4)], BELONGS)
    review.judge(whole["view"], [(10, 20), (30, 31)], SKIP)
    answer = review.judge(group["view"], [(0, group["shown"])], DOES_NOT_BELONG)
    assert answer["images"] == group["shown"]
    rows = review.rows(whole["view"], 0, 90)
    for place, row in enumerate(rows):
        expected = (
            DOES_NOT_BELONG if row["group"] == name
            else BELONGS if place == 3
            else SKIP if 10 <= place < 20 or place == 30
            else "unjudged"
        )  # fmt: skip
        assert row["verdict"] == expected
    by_key = {row["key"]: row["verdict"] for row in rows if row["verdict"] != "unjudged"}
    assert Judgements.read(tmp_path / "logs").verdicts == by_key
    for bad in ([(0, 91)], [(5, 5)], [(-1, 3)]):
        with pytest.raises(InvalidInputError, match="not in a view of 90"):
            review.judge(whole["view"], bad, SKIP)
    with pytest.raises(InvalidInputError, match="'maybe' is not one of"):
        review.judge(whole["view"], [(0, 1)], "maybe")
    assert [review.undo()["images"] for _ in range(4)] == [group["shown"], 11, 1, 0]
    assert review.counts()["unjudged"] == 90


def test_a_word_is_dropped_after_a_look_at_what_it_pulls(review, tmp_path):
    rows = table_of(review.inputs.scores)
    word = rows[0]["entries"][0]
    pulled = [r for r in rows if r["entries"] and word in r["entries"]
              and r["contributions"][r["entries"].index(word)] >= 0.05]  # fmt: skip
    made = review.make_view(Filters(word=word, pull=0.05))
    group_of = review.inputs.groups.name_of
    named = Counter(filter(None, (group_of(r["row"]) for r in pulled)))
    assert made["images"] == len(pulled) > 3
    assert made["flagged"] == sum(r["flag"] for r in pulled) > 0
    assert sorted(made["groups"]) == sorted(named.most_common(5))
    review.judge(made["view"], [(0, made["shown"])], DOES_NOT_BELONG)
    said = Judgements.read(tmp_path / "logs").verdicts
    assert said == {r["key"]: DOES_NOT_BELONG for r in pulled}
    last = json.loads((tmp_path / "logs" / "ann.jsonl").read_text().splitlines()[-1])
    assert last["why"]["view"] == {"word": word, "pull": 0.05, "order": "score"}


def test_a_view_stays_as_it_is_while_it_is_judged(review):
    made = review.make_view(Filters(), "unjudged")
    for _ in range(3):
        review.judge(made["view"], [(0, 1)], BELONGS)
    assert review.rows(made["view"], 0, 1)[0]["verdict"] == BELONGS
    assert review.make_view(Filters(), "unjudged")["shown"] == 89
    for _ in range(session_module._KEPT_VIEWS):
        review.make_view(Filters())
    with pytest.raises(KeyError):
        review.rows(made["view"], 0, 1)


def test_many_images_at_once_are_bounded(review, monkeypatch):
    monkeypatch.setattr(session_module, "_MOST_AT_ONCE", 50)
    made = review.make_view(Filters())
    with pytest.raises(InvalidInputError, match="90 images at once.*50 allowed"):
        review.judge(made["view"], [(0, 90)], BELONGS)
    assert review.counts()["unjudged"] == 90
    with pytest.raises(InvalidInputError, match="1 to 500"):
        review.rows(made["view"], 0, 501)


def test_several_people(of_kinds, tmp_path):
    with ReviewSession(of_kinds, "ann") as ann, ReviewSession(of_kinds, "ben") as ben:
        for session, verdict in ((ann, BELONGS), (ben, DOES_NOT_BELONG)):
            made = session.make_view(Filters())
            session.judge(made["view"], [(0, 1)], verdict)
            session.judge(made["view"], [(1 + (session is ben), 2 + (session is ben))], SKIP)
        for session in (ann, ben):
            made = session.make_view(Filters())
            got = [row["verdict"] for row in session.rows(made["view"], 0, 4)]
            assert got == [DISPUTED, SKIP, SKIP, "unjudged"]
            assert session.facts()["people"] == ["ann", "ben"]
        assert ann.detail(0)["people"] == {"ann": BELONGS, "ben": DOES_NOT_BELONG}
        ben.undo(), ben.undo()
        assert ann.make_view(Filters(), BELONGS)["shown"] == 1
        with pytest.raises(OutputError, match="--person"), ReviewSession(of_kinds, "ann"):
            pass


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 100), (3, 100), (50, 100), (100, 100)])
def test_intervals_are_clopper_pearsons(count, n):
    low, high = share_interval(count, n, 0.9)
    assert low == pytest.approx(stats.beta.ppf(0.05, count, n - count + 1) if count else 0)
    assert high == pytest.approx(stats.beta.ppf(0.95, count + 1, n - count) if count < n else 1)


def test_intervals_hold_the_share_as_often_as_they_say():
    for share, n in ((0.01, 60), (0.2, 45), (0.5, 20)):
        chances = stats.binom.pmf(np.arange(n + 1), n, share)
        held = [low <= share <= high for low, high in (share_interval(c, n) for c in range(n + 1))]
        assert chances[held].sum() >= 0.95
    for count, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(InvalidInputError, match="0 <= count <= n"):
            share_interval(count, n)


def test_an_audit_bounds_what_was_missed(review):
    unflagged = review.make_view(Filters(status="unflagged"))
    review.judge(unflagged["view"], [(0, 2)], BELONGS)
    made = review.draw("unflagged", 10)
    assert made["population"] == unflagged["images"] - 2 and made["low"] is None
    view = review.make_view(Filters(), draw=made["draw"])
    rows = review.rows(view["view"], 0, 10)
    assert all(row["flag"] is False and row["verdict"] == "unjudged" for row in rows)
    review.judge(view["view"], [(0, 1)], DOES_NOT_BELONG)
    review.judge(view["view"], [(5, 6)], DOES_NOT_BELONG)  # out of order: it does not count yet
    (found,) = review.draws()
    assert (found["judged"], found["do_not_belong"]) == (1, 1)
    review.judge(view["view"], [(1, 5)], BELONGS)
    review.judge(view["view"], [(6, 10)], SKIP)
    (found,) = review.draws()
    assert (found["judged"], found["belong"], found["do_not_belong"], found["undecided"]) == (
        10, 4, 2, 4,
    )  # fmt: skip
    population = found["population"]
    low, high = stats.beta.ppf(0.025, 2, 9), stats.beta.ppf(0.975, 7, 4)
    assert found["low"] == max(2, int(np.ceil(low * population)))
    assert found["high"] == min(population - 4, int(high * population))
    for bad in (lambda: review.draw("x", 5), lambda: review.draw("scored", 0),
                lambda: review.draw("unflagged", 5, -99.0)):  # fmt: skip
        with pytest.raises(InvalidInputError):
            bad()


def test_draws_are_uniform_and_of_what_they_say(review):
    counts = np.zeros(90)
    for _ in range(200):
        keys = review.draw("scored", 20)["draw"]
        ids = review.catalogue.ids_of("key", list(review._draw(keys).keys))
        assert len(set(ids.tolist())) == 20
        counts[ids] += 1
    scored = review.catalogue.select(Filters(least=float("-inf")))
    assert counts.sum() == counts[scored].sum() == 4000 and scored.size == 88
    # Each is drawn with probability 20/88: chi-square, corrected for draws without replacement.
    expected = 4000 / 88
    statistic = ((counts[scored] - expected) ** 2).sum() / expected / (1 - 20 / 88)
    assert 50 < statistic < 140
    assert review.draw("scored", 10_000)["drawn"] == 88


def test_a_budget_counts_what_a_threshold_flags(of_kinds, tmp_path):
    rng = np.random.default_rng(2)
    normal = NormalScores(rng.normal(size=400), of_kinds.identity, 5)
    normal.write(tmp_path / "normal.parquet")
    options = ReviewOptions(
        normal_scores=str(tmp_path / "normal.parquet"), judgements=tmp_path / "l"
    )
    with ReviewSession(ReviewInputs.open(of_kinds.scores.path, options), "ann") as session:
        steps = session.facts()["budget"]
    scores = of_kinds.scores.table(["anomaly_score"]).column(0).drop_null().to_numpy()
    assert len(steps) > 10
    for step in steps:
        assert step["threshold"] == normal.threshold(step["rate"]).value
        assert step["images"] == (scores >= np.float32(step["threshold"])).sum()
    assert all(a["rate"] < b["rate"] and a["images"] < b["images"] for a, b in pairwise(steps))
    other = NormalScores(normal.scores, type(normal.identity)(3, 0.5, "x", "y"), 5)
    other.write(tmp_path / "other.parquet")
    options = ReviewOptions(normal_scores=str(tmp_path / "other.parquet"))
    with pytest.raises(InvalidInputError, match="was made with k 3"):
        _ = ReviewInputs.open(of_kinds.scores.path, options).normal_scores


@pytest.fixture
def pictured(tmp_path):
    """An application over pictures with hostile names."""
    scores = make_pictures(tmp_path / "made")
    options = ReviewOptions(images=tmp_path / "made" / "images")
    with ReviewSession(ReviewInputs.open(scores, options), "ann") as session:
        yield make_app(session, TOKEN, hosts=("hub.example.org",)), session


READS = ("/", "/page.js", "/grid.js", "/page.css", "/icon.svg", "/facts", "/view", "/draws",
         "/rows?view=x&first=0&count=1", "/image?id=0", "/picture?id=0")  # fmt: skip


def test_nothing_is_said_to_other_hosts_or_without_the_token(pictured):
    app, _ = pictured
    for path in READS:
        for host in ("evil.example", "127.0.0.1.evil.example", "", "evil.example:8700", "0.0.0.0",
                     "[::2]:8700", "localhost.", "127.0.0.1:8700:1"):  # fmt: skip
            status, _, body = ask(app, path, host=host)
            assert status == 403 and b"not served under" in body, (path, host)
        for token in ("", "wrong", "a-toke", "a-token "):
            assert ask(app, path, token=token.strip() and token + "x")[0] == 403
            assert ask(app, path + ("&" if "?" in path else "?") + f"token={token}x")[0] == 403
        for host in ("localhost:9", "127.0.0.1", "[::1]:8700", "LOCALHOST:1", "hub.example.org"):
            assert ask(app, path, host=host)[0] in (200, 410), (path, host)
    status, headers, _ = ask(app, f"/?token={TOKEN}", token="")
    assert status == 200
    assert headers["set-cookie"] == f"bliss_review={TOKEN}; HttpOnly; SameSite=Strict"


def test_nothing_is_changed_for_other_pages(pictured, tmp_path):
    app, session = pictured
    view = ask(app, "/view")[2]["view"]
    values = {"view": view, "ranges": [[0, 1]], "verdict": "skip"}
    for headers in (
        {"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"}, {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
    ):  # fmt: skip
        for path in ("/judge", "/undo", "/draw"):
            assert post(app, path, values, headers=headers)[0] == 403, headers
    assert ask(app, "/judge")[0] == 405 and post(app, "/facts", {})[0] == 405
    assert session.counts()["skip"] == 0
    headers = {"origin": "http://localhost:8700", "sec-fetch-site": "same-origin"}
    assert post(app, "/judge", values, headers=headers)[0] == 200
    assert session.counts()["skip"] == 1


def test_every_answer_forbids_what_is_from_elsewhere(pictured):
    app, session = pictured
    whole = f"/picture?id=0&of={session.catalogue.name}"
    for path in (*READS, "/nothing", whole):
        _, headers, _ = ask(app, path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        kept = "private, max-age=600" if path == whole else "no-store"
        assert headers["cache-control"] == kept


def test_the_page_names_no_other_place():
    folder = Path(session_module.__file__).parent
    for name in ("page.html", "page.js", "grid.js", "page.css", "icon.svg"):
        text = (folder / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace(" // ", "  ").replace("\n// ", "\n").replace("  //", "")
        for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
            assert word not in text
    page = (folder / "page.html").read_text()
    assert 'style="' not in page and " on" not in page.replace(" on judging", "").split("<body>")[0]


def test_pictures_are_below_the_folder_and_made_here(pictured, tmp_path):
    app, _ = pictured
    view = ask(app, "/view?order=input")[2]["view"]
    catalogue = ask(app, "/facts")[2]["catalogue"]

    def picture(row, of=catalogue):
        return f"/picture?id={row['id']}&of={of}"

    rows = ask(app, f"/rows?view={view}&first=0&count=60")[2]
    for row in rows:
        status, headers, body = ask(app, picture(row))
        if row["key"] in ("../outside.png", "gone.png"):
            reason = "leads out" if ".." in row["key"] else "no such file"
            assert status == 404 and reason in body["error"]
        else:
            assert status == 200 and headers["content-type"] == "image/jpeg"
            assert body[:3] == b"\xff\xd8\xff"
    assert {row["key"] for row in rows} >= {name.replace("/", "|") for name in HOSTILE}
    kept = list((tmp_path / "cache" / "thumbnails").rglob("*.jpg"))
    assert len(kept) == 58
    assert ask(app, picture(rows[10], "other"))[0] == 410  # a picture of other scores
    changed = tmp_path / "made" / "images" / rows[10]["key"]
    changed.write_bytes(b"<svg onload=alert(1)>")
    status, _, body = ask(app, picture(rows[10]))
    assert status == 404 and "cannot be decoded" in body["error"]
    changed.unlink()
    changed.symlink_to(tmp_path / "made" / "outside.png")
    assert "leads out" in ask(app, picture(rows[10]))[2]["error"]


def test_thumbnails_take_no_more_room_than_they_may_and_those_seen_last_stay(tmp_path):
    images, kept = tmp_path / "images", tmp_path / "cache" / "thumbnails"
    images.mkdir()
    rng = np.random.default_rng(0)
    for n in range(40):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(images / f"{n}.png")
    first = Thumbnails(images).find("0.png", 240)[0]
    limit = 24 * len(first)
    (kept / "00").mkdir(exist_ok=True)
    mine = kept / "00" / "mine.jpg"
    mine.write_bytes(bytes(2 * limit))  # of somebody else: neither counted nor removed

    def files():
        return {p: p.stat().st_size for p in kept.rglob("*.jpg") if p != mine}

    small = Thumbnails(images, limit)
    (seen,) = files()  # of 0.png, which is looked at again and again
    most = 0
    for n in range(1, 40):
        for path in files():  # as if an hour had passed, whatever the clock's steps
            found = path.stat()
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 3_600_000_000_000))
        assert seen in files() and small.find("0.png", 240)[0] == first
        assert small.find(f"{n}.png", 240)[0][:3] == b"\xff\xd8\xff"
        most = max(most, sum(files().values()))
    assert limit / 2 < most <= limit and mine.exists()
    before = files()
    assert small.find("39.png", 240)[0] and files() == before  # the last are there still
    assert small.find("1.png", 240)[0] and len(files()) <= len(before) + 1  # and others made again
    seen.unlink()  # another server's doing
    assert small.find("0.png", 240)[0] == first
    # One that begins with more than it may have removes what is too much.
    assert len(files()) > 17
    assert Thumbnails(images, 17 * len(first)).find("2.png", 240)[0]
    assert sum(files().values()) <= 17 * len(first)


def test_what_makes_no_sense_is_an_error_that_says_so(pictured):
    app, session = pictured
    view = ask(app, "/view")[2]["view"]
    for path in (
        "/view?status=x", "/view?color=red", "/view?least=x", "/view?least=nan", "/view?pull=1",
        "/view?verdict=x", "/view?draw=x", "/view?group=x", "/rows?view=x", "/image",
        "/image?id=-1", "/image?id=60", "/image?id=99999999999", "/image?id=%C2%B2",
        f"/picture?id=0&size=huge&of={session.catalogue.name}",
        f"/rows?view={view}&first=0&count=501", f"/rows?view={view}&first=0&count=0",
    ):  # fmt: skip
        status, _, body = ask(app, path)
        assert status == 400 and len(body["error"]) > 10, path
    assert ask(app, "/rows?view=x&first=0&count=1")[0] == 410
    for values in (
        {}, [], {"view": view}, {"view": view, "ranges": [], "verdict": "skip"},
        {"view": view, "ranges": [[0]], "verdict": "skip"},
        {"view": view, "ranges": [[0, True]], "verdict": "skip"},
        {"view": view, "ranges": [["0", "1"]], "verdict": "skip"},
        {"view": view, "ranges": [[0, 1]], "verdict": "<b>"},
        {"view": view, "ranges": [[0, 10**30]], "verdict": "skip"},
    ):  # fmt: skip
        assert post(app, "/judge", values)[0] == 400, values
    assert ask(app, "/judge", "POST", body=b"{" * 100_000)[0] == 400
    assert ask(app, "/judge", "POST", body=b" " * (2 << 20))[0] == 400
    for values in ({"of": "scored", "size": "9"}, {"of": "scored", "size": 1e9},
                   {"of": "x", "size": 5},
                   {"of": "scored", "size": 5, "threshold": "x"}):  # fmt: skip
        assert post(app, "/draw", values)[0] == 400, values
    assert session.counts()["unjudged"] == 60


def test_a_full_disk_is_said_and_nothing_counts(pictured, monkeypatch):
    app, session = pictured
    view = ask(app, "/view")[2]["view"]

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    values = {"view": view, "ranges": [[0, 1]], "verdict": "skip"}
    status, _, body = post(app, "/judge", values)
    assert status == 507 and "free some space" in body["error"]
    assert session.counts()["skip"] == 0
    monkeypatch.undo()


def test_only_this_machine_is_listened_to():
    with listen(0) as one:
        assert one.getsockname()[0] == "127.0.0.1"
        with pytest.raises(OutputError, match="--port 0"):
            listen(one.getsockname()[1])
        with listen() as other:
            assert other.getsockname()[1] >= 8700


def test_what_a_review_is_of(of_kinds, job_of_kinds, tmp_path):
    scores = job_of_kinds.folder / "scores"
    assert ReviewInputs.open(scores).judgements == scores / "_judgements"
    for target in ("s3://bucket/scores", tmp_path / "nothing"):
        with pytest.raises(BlissError):
            ReviewInputs.open(target)
    with pytest.raises(InvalidInputError, match="is not a folder of images"):
        ReviewInputs.open(scores, ReviewOptions(images=tmp_path / "x"))
    _, err = run("review", scores, "--person", "../x", "--judgements", tmp_path / "j", code=1)
    assert "--person ann" in err and not (tmp_path / "j").exists()
    shutil.copytree(scores, tmp_path / "run" / "scores")
    facts = {"format": "bliss_index.job", "format_version": 2, "kind": "screen", "plan": None,
             "settings": {"photos": [str(tmp_path)]}, "facts": {"images": str(tmp_path)},
             "versions": {}, "begun_in": "."}  # fmt: skip
    (tmp_path / "run" / "_job.json").write_text(json.dumps(facts))
    for target in (tmp_path / "run", tmp_path / "run" / "scores"):
        found = ReviewInputs.open(target)
        assert found.judgements == tmp_path / "run" / "judgements" and found.images == tmp_path
    with JudgementLog(found.judgements, "ann") as log:
        log.judge(BELONGS, ["a key that is not there any more"])
    with ReviewSession(found, "ben") as session:
        assert session.counts()["unjudged"] == 90
        assert any("--normal" in notice or "embeddings" in notice
                   for notice in session.facts()["notices"])  # fmt: skip


def test_what_is_not_installed_is_named(of_kinds):
    for name in ("uvicorn", "duckdb"):
        script = (
            f"import sys; sys.modules[{name!r}] = None; from bliss_index.cli.app import run; "
            f"sys.argv = ['bliss-index', 'review', {of_kinds.scores.path!r}, '--judgements', "
            f"{str(of_kinds.judgements)!r}]; run()"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 1, done.stderr
        assert "pip install 'bliss-index[review]'" in done.stderr
        assert "Traceback" not in done.stderr
