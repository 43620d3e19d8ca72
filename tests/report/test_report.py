from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from builders import chain, measure, measure_on_host, plan_of

from coralline.devices.check import Figure, Prediction, summarise
from coralline.devices.model import MIB, load_device
from coralline.errors import UserError
from coralline.report import PolicySummary, ReportInput, write_report
from coralline.report.page import duration, number
from coralline.report.record import cases, predicted_over_measured, with_shared_bounds
from coralline.staging import StagingProblem, evaluate

NETS = [chain("alpha", 12, seed=1), chain("beta<&>", 30, seed=2)]
PLANNERS = ["topo-dp", "edgetpu-compiler", "uniform"]
PUBLISHED = Figure("edgetpu-usb", "latency_ms", "a_net", 224, 1, 20.0, "a paper", fitted=False)


def an_input() -> ReportInput:
    plans = [plan_of(net, p, k) for net in NETS for k in (2, 3) for p in PLANNERS]
    return ReportInput(
        title="Pipeline respect",
        created_at="2026-11-21T03:00:00+00:00",
        parameters={"models": ["alpha", "beta"], "seed": 0},
        graphs={net.digest: net for net in NETS},
        plans=plans,
        measurements=[m for plan in plans for m in (measure(plan), measure_on_host(plan))],
        devices={"edgetpu-usb": load_device("edgetpu-usb")},
        policy=PolicySummary(
            recipe={"epochs": 2, "hidden": 16},
            curve=[
                {"epoch": 0, "sampled_gap": 0.6, "greedy_gap": 0.5, "seconds": 1.0},
                {"epoch": 1, "sampled_gap": 0.4, "greedy_gap": 0.25, "seconds": 2.0},
            ],
            methods=[
                {
                    "method": "policy greedy",
                    "seconds": 0.0021,
                    "all": {"graphs": 64, "mean": 0.123, "median": 0.1, "p90": 0.2},
                }
            ],
        ),
        device_checks=[summarise(load_device("edgetpu-usb"), [Prediction(PUBLISHED, 26.0)])],
        provenance={"code_version": "0.1.0"},
    )


@pytest.fixture(scope="module")
def record() -> ReportInput:
    return an_input()


@pytest.fixture(scope="module")
def page(record: ReportInput, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(record, tmp_path_factory.mktemp("report") / "deep" / "report.html")


class Tables(HTMLParser):
    """The rows of every sortable table, as the texts of their cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._into = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "caption":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "caption"):
            self._into = tag
            if tag == "td":
                self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "caption"):
            self._into = ""

    def handle_data(self, data: str) -> None:
        if self._into == "caption":
            self.tables[data] = self._rows
        if self._into == "td":
            self._rows[-1][-1] += data


def rows_of(page: Path, caption: str) -> list[list[str]]:
    tables = Tables(page.read_text()).tables
    found = next(rows for name, rows in tables.items() if name.startswith(caption))
    return [row for row in found if row]


def test_the_tables_hold_the_numbers_of_the_input(record: ReportInput, page: Path) -> None:
    rows = rows_of(page, "Every plan:")
    plans = {(p.graph_name, str(p.n_stages), p.planner): p for p in record.plans}
    assert len(rows) == len(plans)
    for model, stages, planner, objective, value, bound, gap, memory, seconds in rows:
        plan = plans.pop((model, stages, planner))
        assert objective == "bottleneck"
        assert value == f"{number(plan.value)} ms simulated"
        assert float(bound.split()[0].replace(",", "")) >= plan.lower_bound * 0.99
        assert bound.endswith("simulated")
        assert gap.endswith("%") or gap == "optimal"
        assert memory == f"{number(max(plan.stages['param_bytes']) / MIB)} MiB"
        assert seconds == duration(plan.solve_seconds)
    assert not plans


def test_every_simulated_number_says_so_and_no_other_does(record: ReportInput, page: Path) -> None:
    rows = rows_of(page, "Every plan on every board")
    found = {
        (m.model, str(m.plan["n_stages"]), m.plan["planner"], m.board): m
        for m in record.measurements
    }
    assert len(rows) == len(found)
    for row in rows:
        m = found[(row[0], row[1], row[2], row[3])]
        word = " simulated" if m.simulated else ""
        p50, p90, p99 = (m.latency_percentile_ms(p) for p in (50, 90, 99))
        times = (p50, p90, p99, m.first_inference_ms)
        assert row[4:8] == [f"{number(ms)} ms{word}" for ms in times]
        assert row[8] == f"{number(m.throughput_fps)} fps{word}"
        assert row[9] == ("12.5 mJ simulated" if m.simulated else "–")


def test_energy_without_a_source_is_not_shown(record: ReportInput, tmp_path: Path) -> None:
    unmetered = replace(record.measurements[1], energy_mj_per_inference=77.7)
    page = write_report(replace(record, measurements=[unmetered]), tmp_path / "r.html")
    assert [row[9] for row in rows_of(page, "Every plan on every board")] == ["–"]


def test_the_device_model_carries_its_error(record: ReportInput, page: Path) -> None:
    assert record.device_checks[0].label + "." in page.read_text()
    rows = rows_of(page, "Device model edgetpu-usb against")
    expected = ["a_net 224", "1", "20.0 ms", "26.0 ms simulated", "+30 %", "held out", "a paper"]
    assert rows == [expected]


def test_the_policy_stands_beside_other_ways_to_plan(page: Path) -> None:
    rows = rows_of(page, "Gap to the labels")
    assert rows == [["policy greedy", "64", "12.3 %", "10.0 %", "20.0 %", "2.10 ms"]]
    text = page.read_text()
    assert "greedy gap" in text
    assert "sampled gap" in text


def test_the_headline_names_the_best_plan_and_its_lead(record: ReportInput, page: Path) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page.read_text()))
    for case in cases(record):
        values = {plan.planner: plan.value for plan in case.plans}
        assert case.best.value == min(values.values())
        less = 100 * (1 - case.best.value / values["edgetpu-compiler"])
        if less >= 0.05:
            assert f"{number(less)} % less than the edgetpu-compiler rule" in text


def test_a_bound_proven_by_one_planner_serves_all() -> None:
    exact = replace(plan_of(NETS[0], "topo-dp"), planner="exact", proven_optimal=False)
    exact = exact.with_bound(exact.value)
    other = plan_of(NETS[0], "topo-dp")
    elsewhere = plan_of(NETS[0], "topo-dp", stages=2)
    shared = with_shared_bounds([exact, other, elsewhere])
    assert [plan.proven_optimal for plan in shared] == [True, True, elsewhere.proven_optimal]
    assert shared[1].lower_bound == exact.value
    assert shared[2] == elsewhere


def test_a_prediction_is_compared_with_its_own_device_only() -> None:
    plan = plan_of(NETS[0])
    assert predicted_over_measured(plan, measure(plan)) == pytest.approx(1, abs=0.2)
    on_host = measure_on_host(plan)
    assert predicted_over_measured(plan, on_host) is None
    problem = StagingProblem(NETS[0], plan.n_stages, load_device("host-cpu"))
    ratio = predicted_over_measured(plan, on_host, NETS[0])
    assert ratio == evaluate(problem, plan.stage).value / on_host.measured_bottleneck_ms
    assert predicted_over_measured(plan, replace(on_host, board_kind="ssh"), NETS[0]) is None


@pytest.mark.parametrize(
    "missing",
    [
        {"measurements": ()},
        {"policy": None},
        {"graphs": {}},
        {"devices": {}},
        {"device_checks": ()},
        {"policy": PolicySummary(recipe={}, curve=[])},
        {"plans": (), "measurements": ()},
        {"plans": ()},
    ],
)
def test_a_missing_piece_leaves_a_page(
    missing: dict[str, object], record: ReportInput, tmp_path: Path
) -> None:
    small = replace(record, plans=record.plans[:3], measurements=record.measurements[:2])
    page = write_report(replace(small, **missing), tmp_path / "r.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert ('id="measurements"' in page) == ("measurements" not in missing)
    assert ('id="policy"' in page) == (missing.get("policy", True) is not None)


def test_measurements_bring_their_own_plans(record: ReportInput, tmp_path: Path) -> None:
    small = replace(record, plans=record.plans[:3], measurements=record.measurements[:6])
    whole = write_report(small, tmp_path / "a.html")
    alone = write_report(replace(small, plans=()), tmp_path / "b.html")
    assert rows_of(alone, "Every plan:") == rows_of(whole, "Every plan:")


def test_the_page_loads_nothing_and_escapes_names(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)[^"']*""", text)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "beta&lt;&amp;&gt;" in text
    assert "beta<&" not in text


def test_figures_are_described_and_share_no_ids(page: Path) -> None:
    text = page.read_text()
    drawn = re.findall(r"<svg[^>]*>", text)
    # For each of 4 cases bars, cut and latencies; gaps; learning curve.
    assert len(drawn) == 3 * 4 + 2
    assert all('role="img"' in tag and re.search(r'aria-label="[^"]{20,}"', tag) for tag in drawn)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)"]+)\)', text)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    captions = len(re.findall("<caption>", text))
    assert captions == len(re.findall("<table", text))


def test_the_figures_are_files_too(record: ReportInput, tmp_path: Path) -> None:
    small = replace(record, plans=record.plans[:3], measurements=record.measurements[:6])
    write_report(small, tmp_path / "r.html", tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert len(names) == 3 + 2
    assert {"planners.svg", "policy.svg", "alpha-2-edgetpu-usb-bottleneck-cut.svg"} <= names
    for path in (tmp_path / "figures").iterdir():
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_an_unwritable_place_is_named(record: ReportInput, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(replace(record, plans=(), measurements=()), tmp_path / "file" / "r.html")


def _chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is needed to look at the report; apt-get install chromium")
        pytest.skip("chromium is not installed")
    return found


def _browse(page: Path, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        _chromium(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={home}",
    ]
    command += ["--enable-logging=stderr", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_a_browser_shows_the_page_without_complaint(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    shown = _browse(page, tmp_path, f"--screenshot={picture}", "--window-size=1280,3000")
    assert "CONSOLE" not in shown.stderr
    assert picture.stat().st_size > 50_000


def test_a_click_sorts_a_table_by_number(page: Path, tmp_path: Path) -> None:
    click = """<script>
    const heads = [...document.querySelectorAll("#plans th button")];
    heads.find((b) => b.textContent === "value").click();
    </script></body>"""
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", click))
    shown = _browse(clicked, tmp_path / "home", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    assert 'aria-sort="ascending"' in shown.stdout
    sorted_page = tmp_path / "sorted.html"
    sorted_page.write_text(shown.stdout)
    before = [float(row[4].split()[0]) for row in rows_of(page, "Every plan:")]
    after = [float(row[4].split()[0]) for row in rows_of(sorted_page, "Every plan:")]
    assert after == sorted(before) != before


def test_numbers_are_short_and_plain() -> None:
    assert [number(v) for v in (0, 0.00123, 1.2345, 12.345, 1234.5, 1e6)] == [
        "0",
        "0.00123",
        "1.23",
        "12.3",
        "1,234",
        "1,000,000",
    ]
