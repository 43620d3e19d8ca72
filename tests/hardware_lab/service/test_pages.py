"""The lab's pages: what they say, to whom, and that nothing in them runs but their own script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from fastapi.testclient import TestClient
from page_lab import (
    EVIL,
    MODEL,
    NIGHTS,
    SLOWER,
    PageLab,
    commit_of,
    page_lab,
    sampled,
    spend_nights,
)
from waiting import wait_for

from coralline.errors import DeviceError
from coralline.report.page import number
from hardware_lab.inventory import Demand
from hardware_lab.jobs import JobOptions
from hardware_lab.service.app import Settings, create_app
from hardware_lab.service.gate import COOKIE
from hardware_lab.service.views import running, span


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> PageLab:
    return page_lab(tmp_path_factory.mktemp("pages"))


def client_of(lab: PageLab, **options: str) -> TestClient:
    app = create_app(lab.store, Settings(trusts_all=True))
    return TestClient(app, base_url="http://localhost", follow_redirects=False, **options)


@pytest.fixture(scope="module")
def client(lab: PageLab) -> Iterator[TestClient]:
    with client_of(lab) as client:
        yield client


@pytest.fixture
def own(tmp_path: Path) -> PageLab:
    """A lab that the test may change."""
    return page_lab(tmp_path, measured=False)


def read(client: TestClient, path: str) -> str:
    """A page, once the nights are judged."""
    for _ in range(200):
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        if "being judged" not in answer.text:
            return answer.text
    raise AssertionError("the nights are never judged")


def words(page: str) -> str:
    """What a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


class Elements(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_overview_tells_of_boards_queue_and_ends(lab: PageLab, client: TestClient) -> None:
    page = words(read(client, "/"))
    assert re.search(r"lost bad for \d+ s no answer <script>", page)
    assert re.search(r"sim simulated good for \d+ s a device model runs small_int8.tflite", page)
    assert re.search(r"pi good for \d+ s LiteRT, 4 cores edgetpu 2 usb3 ssh, on host-a, seen", page)
    assert "resting maintenance" in page
    # What needs attention is first, then what works.
    assert page.index("lost bad") < page.index("sim simulated") < page.index("resting maint")
    rows = re.findall(r"/jobs/([0-9a-f]{16})", read(client, "/").split('id="queue"')[1])
    assert rows[:2] == [lab.ids["first"], lab.ids["second"]]
    assert "in 60 min" in page
    assert f"it broke {EVIL}" in page


def test_jobs_are_found_and_paged(own: PageLab) -> None:
    with client_of(own) as client:
        for i in range(120):
            own.store.submit(
                MODEL,
                Demand("pi"),
                JobOptions(repetitions=1, warmup=0, group="many", labels={"odd": str(i % 2)}),
            )

        def walk(path: str) -> list[str]:
            seen = []
            while path:
                page = read(client, path)
                seen += re.findall(r'<th scope="row"><a href="/jobs/([0-9a-f]+)"', page)
                older = re.search(r'rel="next" href="([^"]+)"', page)
                path = unescape(older[1]) if older else ""
            return seen

        many = walk("/jobs?group=many")
        assert len(many) == len(set(many)) == 120
        assert many == [job.id for job in own.store.jobs(group="many")][::-1]
        assert len(walk("/jobs?label=odd%3D1&state=queued")) == 60
        assert walk("/jobs?board=sim") == [own.ids["running"]]
        assert walk("/jobs?state=failed") == [own.ids["failed"]]
        assert walk("/jobs?group=none") == []
        assert client.get("/jobs?state=lost").status_code == 400
        assert client.get("/jobs?label=odd").status_code == 400


def test_a_job_shows_its_numbers_with_their_intervals(lab: PageLab, client: TestClient) -> None:
    page = read(client, f"/jobs/{lab.ids['plain']}")
    told = sampled().statistics()
    said = words(page)
    for name in ("p50", "p90", "p99"):
        row = [f"{told[name][key]:.3f}" for key in ("value", "low", "high", "at_most")]
        assert f"{name} {' '.join(row)}" in said
        assert f"{name} {number(told[name]['value'])} ms" in said
    assert f"last minute over first, by their medians: {told['drift']['value']:.3f}" in said.lower()
    assert "first minute" in said and "last minute" in said
    assert "simulated" not in said
    assert "cpu: a processor" in said
    # Histogram, distribution, and over time; stages.
    assert len(re.findall('<figure class="chart">', page)) == 3
    assert len(re.findall('<svg class="strip', page)) == 2


def test_the_histogram_holds_every_sample(client: TestClient, lab: PageLab) -> None:
    page = read(client, f"/jobs/{lab.ids['plain']}")
    bars = re.findall(r'<rect class="bar series-0"[^>]*height="([\d.]+)%"', page)
    top = float(re.findall(r'<text class="y"[^>]*>([\d,]+)</text>', page)[-1].replace(",", ""))
    assert len(bars) > 20
    assert top > 0


def test_simulated_numbers_say_so(lab: PageLab, client: TestClient) -> None:
    page = read(client, f"/jobs/{lab.ids['simulated']}")
    figures = re.findall(r"<dd>.*?</dd>", page, re.DOTALL)
    assert len(figures) == 4
    assert all('<span class="sim">simulated</span>' in figure for figure in figures)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == 3 and all("simulated" in caption for caption in captions)
    assert "Simulated: from a device model" in page


def test_energy_and_power_are_shown_with_their_windows(lab: PageLab, client: TestClient) -> None:
    page = read(client, f"/jobs/{lab.ids['metered']}")
    said = words(page)
    assert "power meter hub (INA226) at usb-vbus" in said
    assert re.search(r"pipeline full 18 ± [\d.]+ 12 ± [\d.]+ 3\.000", said)
    assert "Means: idle 1.000 W, alone 3.000 W, full 3.000 W" in said
    windows = re.findall(r'<text class="within"[^>]*>(idle|alone|full)<', page)
    assert windows == ["idle", "alone", "full"]
    link = re.search(r'href="(/jobs/[0-9a-f]+/files/power\.parquet)"', page)
    assert link is not None
    answer = client.get(link[1])
    assert answer.content[:4] == b"PAR1"
    assert answer.headers["content-disposition"] == 'attachment; filename="power.parquet"'
    assert "no meter" in words(read(client, f"/jobs/{lab.ids['plain']}"))


def test_a_trace_that_is_gone_hides_nothing_else(lab: PageLab, client: TestClient) -> None:
    page = read(client, f"/jobs/{lab.ids['lacking']}")
    assert "The power trace cannot be shown" in page
    assert "Not stored: disk full" in page
    assert len(re.findall('<figure class="chart">', page)) == 3


def test_a_comparison_shows_both_plans_and_their_ratio(lab: PageLab, client: TestClient) -> None:
    page = read(client, f"/jobs/{lab.ids['compared']}")
    said = words(page)
    assert re.search(r"latency p50, ms [\d.]+ [\d.]+ 1\.100 1\.080 1\.120 yes", said)
    assert re.search(r"throughput, inferences/s [\d.]+ [\d.]+ 1\.000 0\.900 1\.100 no", said)
    assert len(re.findall('<li class="series-[01]">[AB]</li>', page)) == 2 * 3


def test_other_ends_of_jobs_say_why(lab: PageLab, client: TestClient) -> None:
    assert "npu was asked for and cpu ran" in read(client, f"/jobs/{lab.ids['invalid']}")
    assert escape("it broke <script>") in read(client, f"/jobs/{lab.ids['failed']}")
    reported = words(read(client, f"/jobs/{lab.ids['reported']}"))
    assert "p50 3.90 ms" in reported and "reported without samples" in reported
    assert "1 jobs are before it" in read(client, f"/jobs/{lab.ids['second']}")


def test_a_board_shows_its_history(lab: PageLab, client: TestClient) -> None:
    page = words(read(client, "/boards/lost"))
    log = page[page.index("steps to recover it, the last first") :]
    assert log.index("bad") < log.index("looping")
    assert "no answer <script>" in log
    assert "address pi.local" in words(read(client, "/boards/pi"))
    assert client.get("/boards/nobody").status_code == 404
    nightly = words(read(client, "/boards/pi-nights"))
    assert "Trends nightly" in nightly and "slower" in nightly


def test_trends_tell_what_is_slower_by_how_much_and_since_when(client: TestClient) -> None:
    page = words(read(client, "/trends"))
    assert "1 of 1 series of nightly need a look" in page
    good, bad = NIGHTS - SLOWER - 1, NIGHTS - SLOWER
    assert re.search(
        rf"1\.3\d\d times .* interval 1\.\d+ to 1\.\d+\), since .*{commit_of(bad)[:10]}", page
    )
    page = read(client, "/trends/a_net%2F2%2Fpi-nights?nightly=nightly")
    said = words(page)
    assert "(last good: " in said and f"commit {good:010x}"[:17] in said
    assert len(re.findall('<g class="dot slower">', page)) == 3 * SLOWER
    rows = re.findall(r"\d{4}-\d\d-\d\d (slower|level|first) ", said)
    assert rows == ["slower"] * SLOWER + ["level"] * (bad - 1) + ["first"]
    assert client.get("/trends/a_net%2F9%2Fpi").status_code == 404
    assert client.get("/trends/a_net%2F2%2Fpi-nights?nightly=none").status_code == 404
    assert "No night has been measured" in read(client, "/trends?nightly=none")


def test_a_new_night_is_judged_when_somebody_looks(own: PageLab) -> None:
    with client_of(own) as client:
        assert "No night has been measured" in read(client, "/trends")
        spend_nights(own, 0, 2)
        for path in ("/trends", "/boards/pi-nights"):
            wait_for(lambda path=path: "level" in words(read(client, path)))
        spend_nights(own, NIGHTS - 1, NIGHTS)
        wait_for(lambda: "1 of 1 series" in words(read(client, "/trends")))


def test_every_link_leads_to_a_page(lab: PageLab, client: TestClient) -> None:
    gone = f"/jobs/{lab.ids['lacking']}/files/power.parquet"
    assert client.get(gone).status_code == 404
    seen, todo = {gone}, ["/", *lab.paths]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = client.get(path)
        assert answer.status_code == 200, path
        if not answer.headers.get("content-type", "").startswith("text/html"):
            continue
        for tag, attributes in Elements(read(client, path)).found:
            found = attributes.get("href") or attributes.get("src") or ""
            if tag in ("a", "link", "script") and not found.startswith(("#", "data:")):
                assert found.startswith("/"), found
                todo.append(found)
    assert f"/boards/{quote(EVIL, safe='')}" in seen


def test_names_and_causes_are_never_run(lab: PageLab, client: TestClient) -> None:
    paths = [*lab.paths, f"/boards/{quote(EVIL, safe='')}", f"/jobs?{urlencode({'group': EVIL})}"]
    shown = 0
    for path in [*paths, f"/sign-in?{urlencode({'next': EVIL})}"]:
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        shown += unescape(answer.text).count(EVIL)
        for tag, attributes in Elements(answer.text).found:
            assert tag != "img"
            if tag == "script":
                assert str(attributes["src"]).startswith("/assets/lab.js?v=")
            assert not {name for name in attributes if name.startswith("on") or name == "style"}
            for name in ("href", "src", "action"):
                assert str(attributes.get(name, "/")).startswith(("/", "#", "data:,"))
    assert shown > 10


def test_pages_are_sane_for_screen_readers(lab: PageLab, client: TestClient) -> None:
    for path in lab.paths:
        elements = Elements(read(client, path)).found
        tags = [tag for tag, _ in elements]
        assert tags.count("h1") == tags.count("main") == 1, path
        assert tags.count("caption") == tags.count("table"), path
        ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(ids) == len(set(ids)), path
        for tag, attributes in elements:
            if tag == "th":
                assert attributes.get("scope") in ("col", "row"), path
            if tag == "svg" and attributes.get("role") == "img":
                assert len(str(attributes["aria-label"])) > 20, path
            if tag in ("nav", "progress"):
                assert attributes.get("aria-label"), path
            if tag == "section":
                assert attributes.get("aria-label") or attributes["aria-labelledby"] in ids, path


def test_assets_are_named_by_their_content(client: TestClient) -> None:
    page = read(client, "/")
    for name in ("css", "js"):
        found = re.search(rf'"(/assets/lab\.{name}\?v=[0-9a-f]+)"', page)
        assert found is not None
        answer = client.get(found[1])
        assert "immutable" in answer.headers["cache-control"]
    assert client.get("/assets/base.html.j2").status_code == 404


def test_what_is_not_there_is_said_in_a_page(client: TestClient) -> None:
    for path in ("/jobs/0123", "/boards/x", "/trends/x"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "Not here" in answer.text


def test_a_lab_that_does_not_answer_is_said_in_a_page(
    own: PageLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise DeviceError("the database does not answer", retryable=True)

    with client_of(own) as client:
        monkeypatch.setattr(own.store, "jobs", gone)
        answer = client.get("/")
        assert answer.status_code == 503
        assert "the database does not answer" in answer.text
        assert "content-security-policy" in answer.headers


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page)
    assert found is not None
    return found[1]


def sign_in(client: TestClient, token: str, then: str = "/") -> None:
    page = client.get("/sign-in", params={"next": then}).text
    form = {"csrf": csrf_of(page), "token": token, "next": then}
    answer = client.post("/sign-in", data=form)
    assert answer.status_code == 303, answer.text
    assert answer.headers["location"] == then


def test_with_tokens_one_signs_in(own: PageLab) -> None:
    token = own.store.tokens.add("ann", "submit")
    with client_of(own) as client:
        for path in own.paths:
            answer = client.get(path)
            assert answer.status_code == 303
            assert answer.headers["location"] == f"/sign-in?{urlencode({'next': path})}"
        page = client.get("/sign-in").text
        refused = client.post("/sign-in", data={"csrf": csrf_of(page), "token": "clab_x_y"})
        assert refused.status_code == 401
        assert "not valid" in refused.text and "set-cookie" not in refused.headers
        sign_in(client, token, "/jobs?state=done")
        assert "ann" in client.get("/").text
        # What a browser sends by itself opens pages, and not the API.
        assert client.get("/api/v1/jobs").status_code == 401
        out = client.post("/sign-out", data={"csrf": csrf_of(client.get("/").text)})
        assert out.status_code == 303
        assert client.get("/").status_code == 303


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(own: PageLab) -> None:
    token = own.store.tokens.add("ann", "submit")
    app = create_app(own.store, Settings())
    with TestClient(app, base_url="https://lab.example", follow_redirects=False) as client:
        form = {"csrf": csrf_of(client.get("/sign-in").text), "token": token}
        cookie = client.post("/sign-in", data=form).headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}={token};")
        assert {"HttpOnly", "SameSite=strict", "Secure", "Path=/"} <= set(cookie.split("; "))


def test_signing_in_leads_nowhere_else(own: PageLab) -> None:
    token = own.store.tokens.add("ann", "submit")
    with client_of(own) as client:
        for then in ("https://x.example/", "//x.example", "/\\x.example", "javascript:alert(1)"):
            page = client.get("/sign-in", params={"next": then}).text
            form = {"csrf": csrf_of(page), "token": token, "next": then}
            assert client.post("/sign-in", data=form).headers["location"] == "/"


def test_an_administrator_cancels_and_sets_health(own: PageLab) -> None:
    token = own.store.tokens.add("root", "admin")
    path = f"/jobs/{own.ids['second']}"
    with client_of(own) as client:
        sign_in(client, token)
        csrf = csrf_of(client.get(path).text)
        assert client.post(f"{path}/cancel", data={"csrf": csrf}).headers["location"] == path
        job = own.store.job(own.ids["second"])
        assert (job.state, job.error) == ("cancelled", "cancelled (by root)")
        form = {"csrf": csrf, "state": "retired", "why": "too old"}
        answer = client.post(f"/boards/{quote(EVIL, safe='')}/health", data=form)
        assert answer.status_code == 303
        assert client.get(answer.headers["location"]).status_code == 200
        health = own.store.health.known()[EVIL]
        assert (health.state, health.cause) == ("retired", "too old (by root)")
        for wrong in ({"why": " "}, {"state": "good"}):
            answer = client.post("/boards/pi/health", data={**form, **wrong})
            assert answer.status_code == 400
        assert own.store.health.known()["pi"].state == "good"


def test_others_change_nothing(own: PageLab) -> None:
    token = own.store.tokens.add("ann", "submit")
    path = f"/jobs/{own.ids['second']}"
    with client_of(own) as client:
        sign_in(client, token)
        page = client.get(path).text
        assert "Cancel this job" not in page
        assert "Set its health" not in client.get("/boards/pi").text
        form = {"csrf": csrf_of(page), "state": "bad", "why": "x"}
        assert client.post(f"{path}/cancel", data=form).status_code == 403
        assert client.post("/boards/pi/health", data=form).status_code == 403
    assert own.store.job(own.ids["second"]).state == "queued"
    assert own.store.health.known()["pi"].state == "good"


def test_a_form_of_another_site_changes_nothing(own: PageLab) -> None:
    path = f"/jobs/{own.ids['second']}/cancel"
    with client_of(own) as client:
        csrf = csrf_of(client.get("/boards/pi").text)
        for form in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": "é"}):
            answer = client.post(path, data=form)
            assert answer.status_code == 403
            assert "reload" in answer.text
        # Nobody but this machine is trusted without a token, whatever it has read.
        elsewhere = {"Origin": "https://evil.example"}
        assert client.post(path, data={"csrf": csrf}, headers=elsewhere).status_code == 401
        assert client.post(path, content=b"\xff", headers={}).status_code in (400, 403)
        assert client.post(path, data={"csrf": csrf, "x": "y" * 20_000}).status_code == 413
        assert own.store.job(own.ids["second"]).state == "queued"
        assert client.post(path, data={"csrf": csrf}).status_code == 303
    # The proof is of one browser: it is worth nothing with another's cookie.
    with client_of(own) as client:
        client.cookies.set(COOKIE, own.store.tokens.add("root", "admin"))
        path = f"/jobs/{own.ids['first']}/cancel"
        assert client.post(path, data={"csrf": csrf}).status_code == 403


def test_a_running_job_tells_how_long_it_takes_at_most(own: PageLab) -> None:
    job = replace(own.store.job(own.ids["running"]), started_at="2026-01-01T00:00:00+00:00")
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + 60

    def told(**changes: object) -> tuple[float | None, float | None]:
        found = running(replace(job, **changes), now)
        assert found.elapsed_s == 60
        return found.share, found.left_s

    assert told() == (None, None)
    assert told(progress=(0, 10)) == (0, None)
    assert told(progress=(5, 20)) == (25, 180)
    # Each of two modes ends after 40 s, or sooner.
    assert told(progress=(1, 1000), seconds=40.0) == (75, 20)
    assert told(progress=(900, 1000), seconds=40.0) == (90, pytest.approx(60 / 9))
    assert told(progress=(1, 1000), seconds=1.0) == (99, 0)
    assert told(progress=(1, 1000), seconds=40.0, against="b") == (37.5, 100)


def test_lengths_of_time_are_short() -> None:
    assert [span(s) for s in (0.2, 59, 119, 120, 7199, 7200, 172_799, 172_800)] == [
        "0 s",
        "59 s",
        "119 s",
        "2 min",
        "120 min",
        "2 h",
        "48 h",
        "2 d",
    ]
