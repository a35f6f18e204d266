"""The review in a real browser: judge, undo, reload, kill the server, go on; nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

if not all(
    map(find_spec, ("playwright", "starlette", "uvicorn", "duckdb", "jinja2", "matplotlib"))
):
    pytest.skip("playwright or the extra 'review' is not installed", allow_module_level=True)
if shutil.which("chromium") is None:
    pytest.skip("there is no chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright
from review_fixtures import HOSTILE, make_pictures, make_run, served, serving

from bliss_index.review.judgements import Judgements

PREFIX = "/user/ann/proxy/8700"
FLAGS = [f"--{flag}" for flag in ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
         "disable-background-networking", "disable-component-update", "disable-sync",
         "host-resolver-rules=MAP evil.example 127.0.0.1")]  # fmt: skip


expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("BLISS_INDEX_CACHE", str(tmp_path / "cache"))
    make_pictures(tmp_path)
    return tmp_path


@pytest.fixture
def page(chromium):
    """A page that fails the test when a script fails, or when anything is asked for elsewhere."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    made = context.new_page()
    problems = []
    made.on("pageerror", lambda error: problems.append(str(error)))
    made.on("dialog", lambda dialog: problems.append(dialog.message))
    made.on("console", lambda said: "Content Security" in said.text and problems.append(said.text))
    made.on("request", lambda request: None if request.url.startswith("http://127.0.0.1:")
            else problems.append(request.url))  # fmt: skip
    yield made
    context.close()
    assert problems == []


def command(place):
    return (place / "scores", "--images", place / "images", "--person", "ann", "--port", "0")


def tile(page, place):
    return page.locator(f'.tile[data-place="{place}"]')


def verdicts(place):
    return Judgements.read(place / "scores" / "_judgements").verdicts


def opened(page, address):
    page.goto(address)
    expect(tile(page, 0).locator("img")).to_be_visible()


def test_judge_undo_reload_kill_and_go_on(page, place):
    with serving(*command(place)) as (process, address):
        opened(page, address)
        assert "token" not in page.url
        page.keyboard.press("n")  # the first image, and on to the second
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("b")
        page.keyboard.press("s")
        expect(page.locator("#saved")).to_have_text("saved: 1 image, skipped")
        shown = {0: "does not belong", 1: "", 2: "", 3: "belongs", 4: "skipped"}
        for number, text in shown.items():
            expect(tile(page, number).locator(".verdict")).to_have_text(text)
        assert sorted(verdicts(place).values()) == ["belongs", "does_not_belong", "skip"]
        page.keyboard.press("u")
        expect(page.locator("#saved")).to_have_text("undone: 1 image, skipped")
        expect(tile(page, 4).locator(".verdict")).to_have_text("")
        page.keyboard.press("Shift+End")  # a range, to the end
        expect(page.locator("#selected")).to_have_text("55 images selected")
        page.keyboard.press("b")
        expect(page.locator("#saved")).to_have_text("saved: 55 images, belongs")
        page.reload()
        expect(tile(page, 0).locator(".verdict")).to_have_text("does not belong")
        expect(page.locator("#counts")).to_contain_text("56 belongs, 1 does not belong, 0 skipped")
        before = verdicts(place)
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.keyboard.press("n")  # nobody is there to save it
        expect(page.locator("#problem")).to_contain_text("the server does not answer")
        expect(page.locator("#saved")).to_have_text("NOT SAVED: 1")
        expect(tile(page, 0)).to_have_class(re.compile("saving"))
        assert verdicts(place) == before
        page.on("dialog", lambda dialog: dialog.accept())
    page.context.clear_cookies()
    page.close(run_before_unload=False)


def test_after_a_kill_everything_is_there_and_can_be_undone(page, place):
    with serving(*command(place)) as (process, address):
        opened(page, address)
        for key in "nbn":
            page.keyboard.press(key)
        expect(page.locator("#saved")).to_have_text("saved: 1 image, does not belong")
        expect(page.locator("#counts")).to_contain_text("1 belongs, 2 does not belong")
        process.send_signal(signal.SIGKILL)
    with serving(*command(place)) as (process, address):
        opened(page, address)
        expect(page.locator("#counts")).to_contain_text("1 belongs, 2 does not belong")
        for left in (2, 1, 0):
            page.keyboard.press("u")
            expect(page.locator("#saved")).to_contain_text("undone: 1 image")
            assert len(verdicts(place)) == left
            expect(page.locator("#saved")).not_to_have_text("x")
            page.locator("#saved").evaluate("element => { element.textContent = ''; }")
        page.keyboard.press("u")
        expect(page.locator("#saved")).to_have_text("nothing to undo")


def pass_time(page, milliseconds):
    """Run the page's timers ahead; what they ask for is answered in between."""
    for _ in range(5):
        page.clock.run_for(milliseconds // 5)
        page.wait_for_timeout(50)


@pytest.mark.parametrize("status", [410, 500, 0])
def test_what_fails_is_asked_for_a_few_times_only(page, place, status):
    with served(place / "scores", place / "images") as address:
        page.clock.install()
        opened(page, address)
        asked = []

        def fail(route):
            asked.append(route.request.url)
            if status:
                route.fulfill(status=status, json={"error": "it failed"})
            else:
                route.abort()

        page.route("**/rows?*", fail)
        page.route("**/picture?*", fail)
        page.locator("#clear").click()
        expect(page.locator("#problem")).to_be_visible()
        pass_time(page, 1500)
        page.keyboard.press("ArrowRight")
        pass_time(page, 300)
        many = len(asked)
        assert 0 < many < 40
        pass_time(page, 1500)
        assert len(asked) == many  # nothing goes on by itself
        page.unroute("**/rows?*")
        page.locator("#retry").click()
        expect(tile(page, 0).locator(".caption")).to_be_visible()


def test_the_address_for_programs(page, place):
    process = subprocess.Popen(
        [sys.executable, "-m", "bliss_index", "review", *map(str, command(place)), "--json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(process.stdout.readline())
        said = json.loads("".join(lines))
        assert said["images"] == 60
        opened(page, said["address"])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_arrows_only_navigate_and_the_view_is_kept_over_a_reload(page, place):
    with served(place / "scores", place / "images") as address:
        opened(page, address)
        for key in ("ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "End", "Home", "PageDown"):
            page.keyboard.press(key)
        expect(page.locator("#counts")).to_contain_text("0 belongs, 0 does not belong, 0 skipped")
        assert verdicts(place) == {}
        page.select_option("select[name=nearest_class]", "dog")
        expect(page.locator("#says")).to_contain_text("20 images shown")
        page.reload()
        expect(page.locator("#says")).to_contain_text("20 images shown")
        assert page.locator("select[name=nearest_class]").input_value() == "dog"
        page.keyboard.press("a")
        page.keyboard.press("n")
        expect(page.locator("#saved")).to_have_text("saved: 20 images, does not belong")
        assert set(verdicts(place).values()) == {"does_not_belong"} and len(verdicts(place)) == 20
        page.locator("#clear").click()
        expect(page.locator("#says")).to_contain_text(
            "60 images shown, 30 flagged; at first 20 does"
        )
        page.select_option("select[name=verdict]", "unjudged")
        expect(page.locator("#says")).to_contain_text("40 images shown")


def test_hostile_keys_classes_and_words_are_only_text(page, place):
    with served(place / "scores", place / "images") as address:
        opened(page, address)
        for number, name in enumerate(HOSTILE):
            key = name.replace("/", "|").replace("\u202e", "\ufffd")
            caption = tile(page, number).locator(".caption div").first
            assert caption.evaluate("element => element.textContent") == key
            page.keyboard.press("Home")
            for _ in range(number):
                page.keyboard.press("ArrowRight")
            expect(page.locator("#facts dd").first).to_have_text(key)
            expect(page.locator("#entries td").first).not_to_be_empty()
        texts = page.locator("select[name=nearest_class] option").all_text_contents()
        assert f"{HOSTILE[0]} (39)" in texts
        page.locator("#word-panel summary").click()
        expect(page.locator("#pulls li").first).to_be_visible()
        assert (
            page.locator("#pulls script, #facts script, .tile script, .tile img[onerror]").count()
            == 0
        )
        assert page.title() == "scores: review"


def test_words_budget_and_samples(page, place):
    with served(place / "scores", place / "images") as address:
        opened(page, address)
        page.locator("#word-panel summary").click()
        page.locator("#pulls button", has_text="entry").click()
        expect(page.locator("#says")).to_contain_text("59 images shown")  # all with a score
        page.fill("input[name=pull]", "0.3")
        expect(page.locator("#says")).to_contain_text("0 images shown")
        page.locator("#clear").click()
        expect(page.locator("#budget-none")).to_be_visible()
        page.locator("#draw-panel summary").click()
        page.fill("#draw-size", "5")
        page.locator("#draw-unflagged").click()
        expect(page.locator("#says")).to_contain_text("at first none judged; in the order of")
        page.locator("#grid").focus()
        for _ in range(5):
            page.keyboard.press("b")
        expect(page.locator("#draws li")).to_contain_text("5 judged, 0 do not belong")
        # All 5 of 30 belong: at most 1 - 0.025^(1/5) of them do not, 15 of 30.
        expect(page.locator("#draws strong")).to_have_text("0 to 15 of them do not belong (95 %)")


def test_a_group_becomes_normal_after_its_changes_were_seen(page, place):
    run = make_run(place / "of run")
    with served(run) as address:
        opened(page, address)
        page.locator("#budget").evaluate(
            "slider => { slider.value = slider.max; slider.dispatchEvent(new Event('input')); }"
        )
        expect(page.locator("#budget-says")).to_contain_text("72 images of 95 to look at")
        page.locator("#normal-panel summary").click()
        page.locator("#normal-try").click()
        expect(page.locator("#normal-says")).to_contain_text("no longer", timeout=60_000)
        assert page.locator("#normal-gone img").count() == 12
        assert not (run / "extended-1" / "_job.json").exists()
        page.locator("#normal-accept").click()
        command = f"bliss-index review {run / 'extended-1'}"
        expect(page.locator("#normal-says")).to_contain_text(command)
        assert (run / "extended-1" / "_job.json").exists()
        page.locator("#grid").focus()
        page.keyboard.press("g")  # the group of the first image
        expect(page.locator("#says")).to_contain_text("at first none judged")
        page.keyboard.press("n")
        expect(page.locator("#saved")).to_contain_text("does not belong")
        judged = Judgements.read(run / "judgements").verdicts
        assert len(judged) > 1 and set(judged.values()) == {"does_not_belong"}
        if folder := os.environ.get("BLISS_INDEX_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/review-normal.png")


def test_without_the_token_or_under_another_name_there_is_nothing(chromium, page, place):
    with served(place / "scores", place / "images") as address:
        answer = page.goto(address.partition("?")[0])
        assert answer.status == 403 and "token" in page.content()
        rebound = chromium.new_page()  # a name of somebody else's that leads to this machine
        answer = rebound.goto(address.replace("127.0.0.1", "evil.example"))
        assert answer.status == 403 and "not served under" in rebound.content()
        rebound.close()


def test_ten_million_tiles(page, place):
    many = 10_000_000
    view = {"view": "x", "shown": many, "images": many, "flagged": 0, "groups": [], "counts": {}}

    def rows(route):
        values = {k: int(v) for k, v in re.findall(r"(first|count)=(\d+)", route.request.url)}
        last = min(many, values["first"] + values["count"])
        route.fulfill(json=[
            {"id": n, "row": n, "key": f"image {n}", "score": 1.0, "nearest": "a", "status": "ok",
             "group": "", "copies": 1, "verdict": "unjudged", "flag": False}
            for n in range(values["first"], last)
        ])  # fmt: skip

    page.route("**/view?*", lambda route: route.fulfill(json=view))
    page.route("**/rows?*", rows)
    page.route("**/image?*", lambda route: route.fulfill(status=400, json={"error": "none"}))

    def in_sight():
        return page.evaluate(
            "() => { const box = document.getElementById('grid').getBoundingClientRect(); return "
            "[...document.querySelectorAll('.tile')].filter((tile) => { const own = "
            "tile.getBoundingClientRect(); return own.bottom > box.top && own.top < box.bottom; })"
            ".map((tile) => Number(tile.dataset.place)); }"
        )

    def first():
        return min(in_sight())

    with served(place / "scores", place / "images") as address:
        page.goto(address)
        expect(tile(page, 0)).to_contain_text("image 0")
        page.keyboard.press("End")
        expect(tile(page, many - 1)).to_contain_text("image 9999999")
        assert max(in_sight()) == many - 1 and page.locator(".tile").count() < 100
        for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
            page.keyboard.press(key)
        columns = page.evaluate("Math.round(document.getElementById('sheet').clientWidth / 184)")
        expect(page.locator(".tile.focus")).to_have_attribute(
            "data-place", str(many - 2 - 2 * columns)
        )
        page.keyboard.press("Home")
        expect(tile(page, 0)).to_contain_text("image 0")
        page.evaluate("document.getElementById('grid').scrollTop = 3e6")  # as the bar is dragged
        page.wait_for_timeout(300)
        middle = first()
        assert 0.49 * many < middle < 0.51 * many
        expect(tile(page, middle)).to_contain_text(f"image {middle}")
        before = middle
        page.mouse.move(400, 500)
        for _ in range(4):  # by small steps no row is passed over
            page.mouse.wheel(0, 190)
            page.wait_for_timeout(250)
            now = first()
            assert 0 <= now - before <= 2 * columns
            before = now
        assert middle < before < middle + 8 * columns
        page.evaluate("document.getElementById('grid').scrollTop = 0")
        expect(tile(page, 0)).to_contain_text("image 0")


def proxy(port):
    """A server on another port that hands what is below a prefix on, as Jupyter's does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith(PREFIX):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            path = self.path.removeprefix(PREFIX)
            with closing(HTTPConnection("127.0.0.1", port)) as inner:
                inner.request(self.command, path, body, dict(self.headers))
                answer = inner.getresponse()
                content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # it ends when all its answers have
    server.handle_error = lambda *_: None  # the browser may have had enough of a picture
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_behind_a_proxy_everything_is_relative(page, place):
    with served(place / "scores", place / "images") as address:
        port, token = re.search(r":(\d+)/(.*)", address).groups()
        server = proxy(int(port))
        opened(page, f"http://127.0.0.1:{server.server_port}{PREFIX}/{token}")
        page.keyboard.press("n")
        expect(page.locator("#saved")).to_have_text("saved: 1 image, does not belong")
        page.reload()
        expect(tile(page, 0).locator(".verdict")).to_have_text("does not belong")
        expect(page.locator("#large")).to_be_visible()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits(page, place, width):
    with served(place / "scores", place / "images") as address:
        page.set_viewport_size({"width": width, "height": 800})
        opened(page, address)
        scroll = page.evaluate("document.documentElement.scrollWidth")
        assert scroll <= width
        for name in ("belongs", "does_not_belong", "skip"):
            page.locator(f'footer [data-verdict="{name}"]').click()
        expect(page.locator("#counts")).to_contain_text("1 belongs, 1 does not belong, 1 skipped")
        if folder := os.environ.get("BLISS_INDEX_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/review-{width}.png")
