"""Executions side by side, and what one cost, in a real SQLite store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_policy, chain, measure, measure_on_host, plan_of

from components.comparing import compare_runs
from components.costing import run_cost
from components.tracking import Execution, PolicyRecord, connected, record, record_failure
from coralline.cli.main import main
from coralline.cost import StepCost
from coralline.errors import UserError
from training.gate import Verdict

PLANS = {planner: plan_of(chain("net", 9), planner) for planner in ("topo-dp", "uniform")}


def execution(name: str, factor: float, **changes: Any) -> Execution:
    """Of two plans on a host that takes `factor` times as long, and on a simulated chain."""
    host = {planner: measure_on_host(plan) for planner, plan in PLANS.items()}
    slowed = [
        replace(
            m,
            id=f"{name}-{m.id}",
            latency_ms=tuple(factor * ms for ms in m.latency_ms),
            wall_s=factor * m.wall_s,
        )
        for m in host.values()
    ]
    simulated = replace(measure(PLANS["topo-dp"]), id=f"{name}-sim")
    return replace(
        Execution(
            id=name,
            pipeline="respect",
            code_version="v1",
            parameters={"seed": 0, "device": "edgetpu-usb"},
            plans=list(PLANS.values()),
            measurements=[*slowed, simulated],
        ),
        **changes,
    )


@pytest.fixture
def store(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite)
    record(execution("20261101-000000-aaaaaa", 1.0), sqlite)
    record(
        execution(
            "20261102-000000-bbbbbb",
            1.5,
            code_version="v2",
            parameters={"seed": 1, "device": "edgetpu-usb"},
        ),
        sqlite,
    )
    return sqlite


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["coralline", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_usual_questions_are_answered(store: str) -> None:
    found = compare_runs(store, ["latest~1", "latest"])
    assert [one["execution"] for one in found["runs"]] == [
        "20261101-000000-aaaaaa",
        "20261102-000000-bbbbbb",
    ]
    boards = {(row["board"], row["stages"]): row for row in found["fastest"]}
    host = boards["host", 3]
    assert host["fastest_run"] == 0
    before, after = host["runs"]
    assert before["planner"] == "topo-dp"
    assert before["throughput_fps"] == pytest.approx(1.5 * after["throughput_fps"])
    assert boards["edgetpu-usb-sim", 3]["runs"][0]["simulated"]

    changes = {(row["board"], row["planner"]): row for row in found["changes"]}
    assert len(changes) == 3
    for planner in PLANS:
        slower = changes["host", planner]
        assert slower["verdict"] == "slower"
        assert slower["ratio"] == pytest.approx(1.5)
        assert slower["low"] < slower["ratio"] < slower["high"]
        assert not slower["simulated"]
    assert changes["edgetpu-usb-sim", "topo-dp"]["verdict"] == "same"

    gaps = {row["planner"]: row["gaps"] for row in found["gaps"]}
    assert gaps["topo-dp"] == [pytest.approx(PLANS["topo-dp"].gap)] * 2
    assert gaps["uniform"][0] > gaps["topo-dp"][0]
    differences = {row["name"]: row["values"] for row in found["differences"]}
    assert differences == {"code_version": ["v1", "v2"], "seed": ["0", "1"]}


def test_runs_have_several_names(store: str) -> None:
    with connected(store) as client:
        experiment = client.get_experiment_by_name("coralline").experiment_id
        [first] = client.search_runs([experiment], "tags.item = 'pipeline' and params.seed = '0'")
    for name in (first.info.run_id, first.info.run_id[:9], "20261101", first.info.run_name):
        assert compare_runs(store, [name, "latest"])["runs"][0]["id"] == first.info.run_id


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nonsense", "latest"], r"no run of a pipeline is called 'nonsense'; .*the newest: "),
        (["2026110", "latest"], r"2026110 means 2 runs; give more of the id"),
        (["latest~2", "latest"], "runs that ended well: 2; name another by its id"),
        (["latest", "latest"], "the same run twice"),
        (["latest"], "give two runs or more"),
    ],
)
def test_a_wrong_name_says_what_to_do(store: str, names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compare_runs(store, names)


def test_an_empty_store_says_what_to_do(sqlite: str) -> None:
    with pytest.raises(UserError, match="coralline pipeline run respect"):
        compare_runs(sqlite, ["latest", "latest~1"])


def test_the_verb_prints_tables_or_one_object(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run(monkeypatch, "compare", "latest~1", "latest") == 0
    text = capsys.readouterr().out
    assert "edgetpu-usb-sim (simulated)" in text
    assert "1.500 (1." in text
    assert "slower" in text
    assert "code_version" in text
    assert run(monkeypatch, "pipeline", "compare", "latest~1", "latest", "--json") == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "coralline.run-comparison/v1"
    assert run(monkeypatch, "compare", "latest", "bad") == 2
    assert capsys.readouterr().err.startswith("coralline: no run of a pipeline is called 'bad'")


def test_what_an_execution_cost(
    sqlite: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite)
    (tmp_path / "report.html").write_text("x" * 1000)
    verdict = Verdict(True, "the first", None, {"gate_gap": 0.2}, 64)
    policy = PolicyRecord(a_policy(tmp_path / "policy.npz"), {}, [], verdict)
    costs = [
        StepCost("train-policy", 1, 0, "2026-11-21T03:00:00+00:00", 4.5, 4.0, 2**30),
        StepCost("solve-labels", 2, 0, "2026-11-21T02:59:00+00:00", 60.0, 58.0, 2**28),
    ]
    artifacts = {"report": tmp_path / "report.html"}
    done = execution("e-1", 1.0, policy=policy, costs=costs, artifacts=artifacts)
    recorded = record(done, sqlite)
    found = run_cost(sqlite, "latest")
    assert found["run"] == recorded.parent
    assert [step["step"] for step in found["steps"]] == ["solve-labels", "train-policy"]
    assert found["steps"][1] == {
        "step": "train-policy",
        "seconds": 4.5,
        "cpu_seconds": 4.0,
        "peak_bytes": 2**30,
    }
    assert found["minutes"] > 1
    # The report, a plan of each child and three measurements, the model with its policy.
    assert found["files"] >= 1 + 4 + 3 + 3
    assert found["bytes"] > 1000 + policy.file.stat().st_size
    assert found["runs"] == 1 + len(recorded.children)
    assert found["lab_jobs"] == 3
    assert run(monkeypatch, "pipeline", "cost", "e-1") == 0
    assert "solve-labels" in capsys.readouterr().out
    record_failure("e-2", "respect", "v1", "dispatch", "no board", sqlite)
    assert run_cost(sqlite, "e-2")["steps"] == []
