"""The lab's pages in a browser, at the widths of a desk and of a phone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
import uvicorn
from browser import DESKTOP, PHONE, Browser
from page_lab import EVIL, MODEL, PageLab, page_lab, sampled

from coralline.runtime.child import Progress, Stop, never
from coralline.runtime.measurement import Measurement
from hardware_lab import runner
from hardware_lab.boards import Task
from hardware_lab.inventory import Demand, Inventory
from hardware_lab.jobs import JobOptions
from hardware_lab.runner import Runner
from hardware_lab.service.app import Settings, create_app
from hardware_lab.store import Store


@contextmanager
def served(store: Store) -> Iterator[str]:
    """The address of a service of the lab."""
    app = create_app(store, Settings(trusts_all=True))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    """At a desk, in the light, with nothing open."""
    one_browser.size(*DESKTOP)
    one_browser.dark(False)
    one_browser.scripts(True)
    one_browser.open("about:blank")
    one_browser.complaints.clear()
    return one_browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> PageLab:
    return page_lab(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def site(lab: PageLab) -> Iterator[str]:
    with served(lab.store) as address:
        yield address


def look(browser: Browser, url: str) -> None:
    """Open a page, once the nights are judged."""
    browser.open(url)
    browser.wait(
        lambda: "being judged" not in browser.eval("document.body.innerText"), "the nights"
    )


SIDEWAYS = """[...document.querySelectorAll("body *")].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !e.closest(".scroll");
}).map((e) => e.outerHTML.slice(0, 120))"""

# WCAG 2.1, 1.4.3: text stands out from what is behind it by 4.5 to 1, large text by 3 to 1.
FAINT = """(() => {
  const rgba = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const over = (top, below) => top.slice(0, 3).map(
    (c, i) => c * (top[3] ?? 1) + below[i] * (1 - (top[3] ?? 1)));
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => c.map((v) => linear(v / 255)).reduce(
    (sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.getClientRects().length) continue;
    if (e.closest("title, .skip")) continue;
    const style = getComputedStyle(e);
    const below = behind(e);
    const ink = over(rgba(e.closest("svg") ? style.fill : style.color), below);
    const [a, b] = [light(ink), light(below)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) faint.push([walker.currentNode.data.trim(), ratio, style.color]);
  }
  return faint;
})()"""


@pytest.mark.parametrize("size", [DESKTOP, PHONE, (360, 740)], ids=["desk", "phone", "small"])
def test_pages_fit(
    size: tuple[int, int], browser: Browser, lab: PageLab, site: str, tmp_path: Path
) -> None:
    browser.size(*size)
    for path in lab.paths:
        look(browser, site + path)
        assert browser.eval("document.documentElement.scrollWidth") <= size[0], path
        assert browser.eval(SIDEWAYS) == [], path
        assert browser.eval("document.querySelector('h1').innerText.length") > 1
        assert browser.picture(tmp_path / "page.png").stat().st_size > 10_000
    assert browser.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out(dark: bool, browser: Browser, lab: PageLab, site: str) -> None:
    browser.dark(dark)
    papers = set()
    for path in lab.paths:
        look(browser, site + path)
        browser.eval("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert browser.eval(FAINT) == [], path
        papers.add(browser.eval("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 1
    assert (papers == {"rgb(255, 255, 255)"}) != dark
    browser.eval("document.querySelector('h1').style.color = 'rgb(128 128 128 / 50%)'")
    assert len(browser.eval(FAINT)) == 1


def test_charts_fill_their_figure(browser: Browser, lab: PageLab, site: str) -> None:
    for size in (DESKTOP, PHONE):
        browser.size(*size)
        look(browser, f"{site}/jobs/{lab.ids['metered']}")
        plots = browser.eval(
            "[...document.querySelectorAll('.plot > svg')].map((e) => {"
            "const [inner, figure] = [e.getBoundingClientRect(), e.closest('figure')"
            ".getBoundingClientRect()]; return [inner.width / figure.width, inner.height]; })"
        )
        assert len(plots) == 4
        assert all(0.7 < share <= 1 and height > 150 for share, height in plots)
        # Text is as large on a phone as on a desk.
        sizes = browser.eval(
            "[...document.querySelectorAll('.plot text')].map("
            "(e) => e.getBoundingClientRect().height)"
        )
        assert min(sizes) > 11


def test_pages_work_without_scripts(browser: Browser, lab: PageLab, site: str) -> None:
    browser.size(*PHONE)
    browser.scripts(False)
    browser.open(f"{site}/jobs?state=failed")
    assert "it broke" in browser.text()
    assert EVIL in browser.text()


def test_the_keyboard_reaches_the_content_first(browser: Browser, site: str) -> None:
    browser.open(site)
    browser.press("Tab")
    assert browser.eval("document.activeElement.innerText") == "Skip to the content"
    assert browser.eval("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("Enter")
    assert browser.eval("document.activeElement.id") == "main"


class Stepper:
    """A board that does a step of a job when it is told to."""

    name = kind = resource = "stepper"
    steps = 4

    def __init__(self) -> None:
        self.step = Event()

    def check(self, stop: Stop = never) -> str:
        return "steps"

    def measure(self, task: Task, on_progress: Progress | None = None) -> Measurement:
        assert on_progress is not None
        for done in range(self.steps):
            on_progress(done, self.steps)
            while not self.step.wait(0.05):
                assert not task.stop()
            self.step.clear()
        return sampled(id=task.id, board=self.name)


def test_a_running_job_moves_and_its_result_appears(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BEAT_S", 0.1)
    store, board, over = Store(tmp_path / "lab"), Stepper(), Event()
    worker = Thread(
        target=Runner(store, Inventory({"stepper": board}, {"stepper": {}})).run, args=(over,)
    )
    job = store.submit(MODEL, Demand("stepper"), JobOptions(repetitions=1024, warmup=0))
    browser.size(*PHONE)
    with served(store) as site:
        browser.open(f"{site}/jobs/{job.id}")
        browser.eval("window.same = true")
        worker.start()

        def share() -> str | None:
            found = browser.eval("document.querySelector('progress')?.value ?? null")
            return None if found is None else f"{found:.0f}"

        try:
            for expected in ("0", "25", "50", "75"):
                browser.wait(lambda expected=expected: share() == expected, f"{expected} %")
                if expected != "0":
                    said = browser.eval("document.querySelector('.progress').innerText")
                    assert "left" in said
                board.step.set()
            browser.wait(
                lambda: browser.eval("document.querySelectorAll('figure.chart').length") == 3,
                "the charts",
            )
        finally:
            over.set()
            worker.join()
        assert browser.eval("window.same") is True  # the page was never loaded anew
        assert browser.eval("document.title").startswith("small_int8.tflite, done")
        assert browser.eval("document.querySelector('main').dataset.refreshS") == ""
    assert browser.complaints == []


def test_what_is_written_or_opened_survives_an_update(browser: Browser, tmp_path: Path) -> None:
    lab = page_lab(tmp_path, measured=False)
    with served(lab.store) as site:
        browser.open(f"{site}/boards/pi")
        browser.eval("document.querySelector('#set').open = true")
        browser.eval("document.querySelector('input[name=why]').focus()")
        browser.eval("document.querySelector('input[name=why]').value = 'a new'")
        browser.eval("document.querySelector('main').dataset.refreshS = '0.2'")
        browser.eval("document.dispatchEvent(new Event('visibilitychange'))")
        lab.store.health.set("pi", "maintenance", "somebody else says so")
        browser.wait(lambda: "somebody else" in browser.text(), "the news")
        assert browser.eval("document.querySelector('#set').open") is True
        assert browser.eval("document.querySelector('input[name=why]').value") == "a new"
        assert browser.eval("document.activeElement.name") == "why"


def test_a_lab_that_is_gone_is_noticed(browser: Browser, tmp_path: Path) -> None:
    lab = page_lab(tmp_path, measured=False)
    with served(lab.store) as site:
        browser.open(site)
        assert browser.eval("document.querySelector('#connection').hidden") is True
        browser.eval("document.querySelector('main').dataset.refreshS = '0.1'")
        browser.eval("document.dispatchEvent(new Event('visibilitychange'))")
    browser.wait(lambda: not browser.eval("document.querySelector('#connection').hidden"), "word")
    assert "Overview" in browser.text()


def test_signing_in_with_a_browser(browser: Browser, tmp_path: Path) -> None:
    lab = page_lab(tmp_path, measured=False)
    token = lab.store.tokens.add("root", "admin")
    browser.size(*PHONE)
    with served(lab.store) as site:
        path = f"/jobs/{lab.ids['second']}"
        browser.open(site + path)
        assert browser.eval("location.pathname") == "/sign-in"
        assert browser.eval(FAINT) == []
        browser.submit("form.sign-in", {"token": token})
        assert browser.eval("location.pathname") == path
        assert browser.eval("document.cookie") == ""
        assert "root (admin)" in browser.text()
        # Another site's link does not bring the cookie, and leads here all the same.
        browser.open(f"data:text/html,<a href='{site}/jobs'>jobs</a>")
        browser.eval("document.querySelector('a').click()")
        browser.wait(lambda: browser.eval("location.pathname") == "/jobs", "the jobs")
        browser.open(site + path)
        browser.submit("form[action$=cancel]", {})
        assert "cancelled (by root)" in browser.text()
        browser.submit("form[action='/sign-out']", {})
        assert browser.eval("location.pathname") == "/sign-in"
    assert browser.complaints == []
