"""Nights in a lab's store: found by their labels, judged, accepted."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from builders import chain, measure_on_host, plan_of

from coralline.cli.main import main
from coralline.errors import UserError
from coralline.runtime.measurement import Measurement
from hardware_lab import commits, nights
from hardware_lab.inventory import Demand
from hardware_lab.jobs import Job, JobOptions
from hardware_lab.store import Store
from hardware_lab.trend_page import figure, sentence, write_page
from hardware_lab.trends import Series, Trend

MODEL = Path(__file__).parents[1] / "data" / "small_int8.tflite"
SERIES = Series("small", 3, "host")
MEASURED = measure_on_host(plan_of(chain("small", 12)))


def slower(times: float) -> Measurement:
    return replace(
        MEASURED,
        latency_ms=tuple(times * ms for ms in MEASURED.latency_ms),
        wall_s=times * MEASURED.wall_s,
    )


def submit(store: Store, night: str, commit: str | None = None) -> Job:
    return store.submit(
        MODEL,
        Demand(SERIES.board),
        JobOptions(repetitions=1, warmup=0, labels=nights.labels("nightly", night, SERIES, commit)),
    )


def take(store: Store, job: Job, measurement: Measurement) -> str:
    with store.lock("cpu-here", wait=True) as lock:
        assert lock is not None
        claimed = store.claim(job.demand, "host", "cpu-here", lock, "runner")
        assert claimed is not None
        assert claimed.id == job.id
        store.finish(claimed, replace(measurement, id=job.id))
    return job.id


def spend(store: Store, *times: float) -> list[str]:
    """A night a number, that many times as slow as the sample."""
    done = len(store.jobs())
    return [
        take(store, submit(store, f"n{done + i}", f"c{done + i}"), slower(t))
        for i, t in enumerate(times)
    ]


def verdicts(trend: Trend) -> list[str]:
    return [judged.verdict for judged in trend.nights]


def test_series_are_found_and_judged(where: str) -> None:
    store = Store(where)
    jobs = spend(store, 1, 1, 1, 1.3)
    # What is not of a night, or has not ended, is not looked at.
    store.submit(
        MODEL, Demand("host"), JobOptions(repetitions=1, warmup=0, labels={"nightly": "nightly"})
    )
    submit(store, "later")
    [trend] = nights.read_trends(store)
    assert trend.series == SERIES
    assert verdicts(trend) == ["first", "level", "level", "slower"]
    assert [judged.night.job for judged in trend.nights] == jobs
    assert trend.since is not None
    assert [judged and judged.night.commit for judged in trend.since] == ["c2", "c3"]
    assert nights.read_trends(store, "another") == []
    assert nights.read_trends(store, board="pi") == []
    assert len(nights.read_trends(store, model="small", board="host")) == 1
    assert nights.read_trends(store, model="large") == []


def test_an_accepted_level_is_kept_in_the_lab(where: str) -> None:
    store = Store(where)
    jobs = spend(store, 1, 1, 1.3, 1.3)
    with pytest.raises(UserError, match="say --why"):
        nights.accept(store, jobs[-1], " ")
    with pytest.raises(UserError, match="choose small/3/host"):
        nights.accept(store, "small/9/host", "so be it")
    labels = store.job(jobs[-1]).labels
    store.cancel([submit(store, "away").id], reason="its board was away")
    assert nights.accept(store, str(SERIES), "so be it").id == jobs[-1]
    assert Store(where).job(jobs[-1]).labels == {**labels, "accepted": "so be it"}
    spend(store, 1.3)
    [trend] = nights.read_trends(store)
    assert verdicts(trend) == ["first", "level", "slower", "accepted", "missing", "level"]
    with pytest.raises(UserError, match="not slower"):
        nights.accept(store, str(SERIES), "again")


def test_the_last_measurement_of_a_night_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spend(store, 1)
    loaded = replace(slower(3), environment={"cores_busy_with_others": 2.0})
    take(store, submit(store, "n1"), loaded)
    again = take(store, submit(store, "n1"), MEASURED)
    unmeasured = submit(store, "n1")
    store.cancel([unmeasured.id], reason="its board vanished")
    [trend] = nights.read_trends(store)
    assert verdicts(trend) == ["first", "level"]
    assert trend.latest.night.job == again


def test_a_night_without_a_measurement_says_why(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spend(store, 1)
    store.cancel([submit(store, "n1").id], reason="board 'host' is retired: sold")
    fallen = replace(MEASURED, processor_asked="npu", processor_ran="cpu")
    take(store, submit(store, "n2"), fallen)
    [trend] = nights.read_trends(store)
    assert verdicts(trend) == ["first", "missing", "missing"]
    assert trend.nights[1].night.fault == "board 'host' is retired: sold"
    assert "npu was asked for and cpu ran" in str(trend.latest.night.fault)
    assert trend.latest.night.levels


def test_a_long_history_is_judged_by_its_ends(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # The first nights were faster than those that are left of the many after them.
    jobs = spend(store, *[1.0] * 8, *[1.045] * 6, *[1.09] * 6)
    [trend] = nights.read_trends(store, last=5)
    assert [judged.night.job for judged in trend.nights] == jobs[:7] + jobs[-5:]
    assert trend.latest.red
    nights.accept(store, jobs[14], "so be it")
    [trend] = nights.read_trends(store, last=3)
    assert [judged.night.job for judged in trend.nights] == jobs[14:]
    assert not trend.latest.red


def test_the_worst_series_comes_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for night, factor in (("n0", 1.0), ("n1", 1.3)):
        for board, times in (("calm", 1.0), ("slow", factor), ("slower", factor**2)):
            job = store.submit(
                MODEL,
                Demand(board),
                JobOptions(
                    repetitions=1,
                    warmup=0,
                    labels=nights.labels("nightly", night, replace(SERIES, board=board), None),
                ),
            )
            take(store, job, slower(times))
    gone = nights.labels("nightly", "n1", replace(SERIES, board="gone"), None)
    job = store.submit(MODEL, Demand("gone"), JobOptions(repetitions=1, warmup=0, labels=gone))
    store.cancel([job.id], reason="away")
    found = [trend.series.board for trend in nights.read_trends(store)]
    assert found == ["slower", "slow", "gone", "calm"]


class Reader(HTMLParser):
    """Collects the tags and the addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]


def test_the_page_says_all_and_loads_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spend(store, 1, 1, 1.3)
    store.cancel([submit(store, "n3").id], reason="<script>alert(1)</script>")
    [trend] = nights.read_trends(store)
    shown = {**trend.to_json(), "commits": ["abc Make it <b>slow</b>"]}
    page = write_page("T", "2026-11-21T02:00:00+00:00", [shown], {"lab": "x"}, tmp_path / "p.html")
    text = page.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.tags.count("svg") == 1
    assert reader.tags.count("script") == 1
    assert "b" not in reader.tags
    assert reader.addresses == ["data:,"]
    assert text.index("To look at") < text.index(">missing<")


def test_the_figure_shows_each_night(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spend(store, 1, 1, 1, 1.3, 1.3)
    marked = replace(MEASURED, environment={"throttle_events": 3})
    take(store, submit(store, "n5"), marked)
    store.cancel([submit(store, "n6").id], reason="away")
    [trend] = nights.read_trends(store)
    drawn = figure(trend.to_json())
    assert drawn.count("<circle") == 6
    assert drawn.count('<g class="red"') == 2
    assert drawn.count('<g class="idle"') == 1
    assert drawn.count('<path class="none"') == 1
    assert "2 times" not in sentence(trend.to_json())
    for x in re.findall(r'c[xy]="([\d.-]+)"', drawn):
        assert 0 <= float(x) <= 340
    alone = nights.read_trends(store)[0].to_json()
    nothing = {**alone, "nights": [alone["nights"][-1]]}
    assert "nothing measured yet" in figure(nothing)


def test_sentences(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spend(store, 1)
    assert (
        sentence(nights.read_trends(store)[0].to_json()) == "no good night before to compare with"
    )
    spend(store, 1.3)
    [trend] = nights.read_trends(store)
    said = sentence(json.loads(json.dumps(trend.to_json())))
    assert said.startswith("median latency is 1.300 times that of the last good nights (99 %")
    assert "at commit c1 (last good: " in said


def test_the_verbs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["coralline", "lab", *words, "--lab", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert told("trend") == 2
    assert "has no night of 'nightly' like that" in capsys.readouterr().err
    jobs = spend(Store(tmp_path), 1, 1, 1.3)
    page = tmp_path / "page.html"
    assert told("trend", "--model", "small", "--out", str(page)) == 0
    printed = capsys.readouterr().out
    assert "slower    small/3/host (night 3): median latency is 1.300 times" in printed
    assert "since the night of " in printed
    assert "median latency" in page.read_text()
    assert told("accept", jobs[0], "--why", "so be it", "--name", "another") == 2
    assert told("accept", jobs[2], "--why", "so be it", "--json") == 0
    assert json.loads(capsys.readouterr().out)["job"]["labels"]["accepted"] == "so be it"
    assert told("trend", "--json") == 0
    [trend] = json.loads(capsys.readouterr().out)["trends"]
    assert trend["verdict"] == "accepted"
    assert not trend["red"]


def test_commits_between_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(commits.COMMIT, raising=False)
    assert commits.current_commit(tmp_path) is None

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "One")
    one = commits.current_commit(tmp_path)
    git("commit", "--quiet", "--allow-empty", "-m", "Two")
    two = commits.current_commit(tmp_path)
    (tmp_path / "file").write_text("changed")
    assert two is not None
    assert commits.current_commit(tmp_path) == two + commits.DIRTY
    [line] = commits.commits_between(tmp_path, one, two + commits.DIRTY)
    assert line.endswith(" Two")
    assert commits.commits_between(tmp_path, two, two) == []
    assert commits.commits_between(tmp_path, None, two) == []
    assert commits.commits_between(tmp_path, "--output=x", two) == []
    assert not (tmp_path / "x..").exists()
    monkeypatch.setenv(commits.COMMIT, "v1.2")
    assert commits.current_commit(tmp_path) == "v1.2"
