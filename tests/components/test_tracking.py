"""Against a real SQLite store and a real `mlflow server`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_policy, chain, measure, measure_on_host, plan_of

from components import registry, tracking
from components.tracking import Execution, PolicyRecord, record, tracking_uri
from coralline.cost import StepCost
from coralline.errors import DeviceError, UserError
from coralline.graph.json_format import write_json
from training.gate import Verdict


@pytest.fixture(scope="session")
def server(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated, folder / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        try:
            uri = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{uri}/health", timeout=1)
                    break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()
                    time.sleep(0.1)
            yield uri
        finally:
            # Asked to end, it would wait for connections that clients keep open.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def an_execution(folder: Path, **changes: object) -> Execution:
    graph = chain("net", 9)
    plans = [plan_of(graph, planner) for planner in ("topo-dp", "uniform")]
    (folder / "report.html").write_text("<p>report</p>")
    a_policy(folder / "policy.npz")
    policy = PolicyRecord(
        file=folder / "policy.npz",
        parameters={"epochs": 2, "hidden": 16},
        curve=[{"gap": 0.4, "reward": -2.0}, {"gap": 0.2, "reward": float("nan")}],
        verdict=Verdict(True, "the first", None, {"gate_gap": 0.2}, 64),
    )
    return replace(
        Execution(
            id="respect-0001",
            pipeline="respect",
            code_version="0.1.0",
            parameters={"seed": 0, "models": ["net"]},
            plans=plans,
            measurements=[measure(plans[0]), measure_on_host(plans[0])],
            policy=policy,
            costs=[
                StepCost("train-policy", 1, 0, "2026-11-21T03:00:00+00:00", 4.5, 4.0, 2**30),
                StepCost("build-model", 2, 2, None, 9.0, 8.0, 2**29),
            ],
            artifacts={"report": folder / "report.html"},
        ),
        **changes,
    )


@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_an_execution_is_recorded_once(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = request.getfixturevalue(store)
    execution = an_execution(tmp_path)
    first = record(execution, uri)
    assert record(execution, uri) == first
    client = tracking._client(uri)
    runs = client.search_runs([first.experiment_id])
    assert {run.info.run_id for run in runs} == {first.parent, *first.children}
    assert {run.info.status for run in runs} == {"FINISHED"}

    parent = client.get_run(first.parent)
    assert parent.data.params["models"] == '["net"]'
    assert parent.data.params["policy.epochs"] == "2"
    assert [m.value for m in client.get_metric_history(first.parent, "policy_gap")] == [0.4, 0.2]
    assert len(client.get_metric_history(first.parent, "policy_reward")) == 1
    assert parent.data.metrics["seconds/train-policy"] == 4.5
    assert parent.data.metrics["peak_bytes/build-model"] == 2**29
    assert parent.info.start_time == 1795230000000  # of the first step
    folders = {file.path for file in client.list_artifacts(first.parent)}
    assert folders == {"report"}

    simulated, host, unmeasured = map(client.get_run, first.children)
    for run in (simulated, host, unmeasured):
        assert run.data.tags["mlflow.parentRunId"] == first.parent
        assert run.data.tags["code_version"] == "0.1.0"
        assert run.data.tags["graph_digest"] == execution.plans[0].graph_digest
    assert simulated.data.tags["board"] == "edgetpu-usb-sim"
    assert simulated.data.tags["board_kind"] == "edgetpu-sim"
    assert simulated.data.tags["simulated"] == "true"
    assert host.data.tags["simulated"] == "false"
    assert unmeasured.data.tags["board"] == "none"
    assert unmeasured.data.params["planner"] == "uniform"

    measurement = execution.measurements[0]
    metrics = simulated.data.metrics
    for name, value in measurement.summary().items():
        assert metrics[name] == pytest.approx(value, rel=1e-12)
    plan = execution.plans[0]
    assert metrics["bottleneck_ms"] == max(plan.stages["stage_ms"])
    assert metrics["peak_param_bytes"] == max(plan.stages["param_bytes"])
    assert metrics["optimality_gap"] == plan.gap
    assert metrics["solve_seconds"] == plan.solve_seconds
    assert metrics["predicted_over_measured"] == pytest.approx(1, abs=0.2)
    assert metrics["energy_mj_per_inference"] == 12.5
    assert "energy_mj_per_inference" not in host.data.metrics
    assert "predicted_over_measured" not in host.data.metrics
    assert "latency_p50_ms" not in unmeasured.data.metrics

    folder = client.download_artifacts(simulated.info.run_id, "", str(tmp_path))
    assert json.loads((Path(folder) / "plan.json").read_text()) == json.loads(
        json.dumps(plan.to_json())
    )
    kept = json.loads((Path(folder) / "measurement.json").read_text())
    assert tuple(kept["latency_ms"]) == measurement.latency_ms

    assert parent.data.tags["policy_verdict"] == "promoted"
    assert parent.data.tags["policy_version"] == "1"
    assert parent.data.metrics["gate_gap"] == 0.2
    champion = registry.find_champion(client)
    assert champion.version == first.policy_version == 1
    fetched = registry.fetch(client, uri, 1, tmp_path / "fetched")
    assert fetched.read_bytes() == execution.policy.file.read_bytes()
    assert champion.digest == registry.file_digest(fetched)


README = (Path(__file__).parents[2] / "mlflow" / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return [block.split("```")[0].strip() for block in README.split(f"```{kind}\n")[1:]]


def test_the_python_of_the_documentation_works(
    sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = record(an_execution(tmp_path), sqlite)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite)
    write_json(chain("net", 9), tmp_path / "graph.json")
    found: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, found)
    [fastest] = found["fastest"]
    assert fastest.info.run_id == recorded.children[1]
    assert [run.info.run_id for run in found["executions"]] == [recorded.parent]
    assert int(found["champion"].version) == recorded.policy_version
    assert json.loads(found["plan"])["n_stages"] == 4


def test_the_filters_of_the_documentation_find_what_they_say(sqlite: str, tmp_path: Path) -> None:
    graph = chain("resnet50", 9)
    plans = [plan_of(graph, planner, 4) for planner in ("exact", "uniform")]
    execution = an_execution(
        tmp_path,
        id="20261121-093000-1a2b3c",
        code_version="0123456789ab",
        plans=plans,
        measurements=[
            measure(plans[0], stage_busy_ms=((1.0, 1.0),) * 4, transfer_ms=((0.0, 0.0),) * 4),
            measure_on_host(plans[1], started_at="2026-11-24T03:00:00+00:00"),
        ],
        costs=[StepCost("train-policy", 1, 0, None, 61.0, 4.0, 2**30)],
    )
    recorded = record(execution, sqlite)
    tracking.record_failure("20261121-100000-000000", "respect", "v", "dispatch", "no", sqlite)
    parent, simulated, host = recorded.parent, *recorded.children
    client = tracking._client(sqlite)

    def found(query: str) -> set[str]:
        return {run.info.run_id for run in client.search_runs([recorded.experiment_id], query)}

    answers = [found(query) for query in blocks("filter")]
    [failed] = answers[4]
    assert client.get_run(failed).data.tags["error"] == "no"
    assert answers == [
        {host},
        {host},
        {host},  # of the planner `uniform`
        {simulated},
        {failed},
        {parent},
        {parent},
        {parent, simulated, host},
        {host},
        {parent, simulated, host},
    ]
    # Each metric and tag that the tables name is there under that name, in some run.
    runs = client.search_runs([recorded.experiment_id])
    names = {name for run in runs for name in (*run.data.metrics, *run.data.tags)}
    for name in ("board_kind", "measurement", "graph_digest", "latency_p99_ms", "gate_gap"):
        assert name in names
        assert f"`{name}`" in README


def test_a_record_cut_short_is_completed(sqlite: str, tmp_path: Path) -> None:
    execution = an_execution(tmp_path, artifacts={"report": tmp_path / "absent.html"})
    with pytest.raises(OSError, match=r"absent\.html"):
        record(execution, sqlite)
    recorded = record(an_execution(tmp_path), sqlite)
    client = tracking._client(sqlite)
    assert len(client.search_runs([recorded.experiment_id])) == 1 + len(recorded.children)
    assert len(client.get_metric_history(recorded.parent, "policy_gap")) == 2


def test_another_execution_has_its_own_runs_and_shares_the_policy(
    sqlite: str, tmp_path: Path
) -> None:
    first = record(an_execution(tmp_path), sqlite)
    second = record(an_execution(tmp_path, id="respect-0002"), sqlite)
    assert not {first.parent, *first.children} & {second.parent, *second.children}
    assert first.policy_version == second.policy_version == 1


def test_a_failed_execution_says_why_and_may_still_succeed(sqlite: str, tmp_path: Path) -> None:
    execution = an_execution(tmp_path)
    for _ in range(2):
        tracking.record_failure(execution.id, "respect", "older", "dispatch", "no board", sqlite)
    client = tracking._client(sqlite)
    [run] = client.search_runs([client.get_experiment_by_name("coralline").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["failed_step"] == "dispatch"
    assert run.data.tags["error"] == "no board"
    assert run.data.tags["mlflow.note.content"] == "**Failed in dispatch:** no board"

    recorded = record(execution, sqlite)
    assert recorded.parent == run.info.run_id
    again = client.get_run(recorded.parent)
    assert again.info.status == "FINISHED"
    assert again.data.tags["code_version"] == execution.code_version
    assert not {"error", "failed_step"} & set(again.data.tags)
    assert again.data.tags["mlflow.note.content"].startswith("Policy, version 1: promoted")


@pytest.mark.parametrize(("ms", "mine"), [(-1000, False), (1000, True)])
def test_of_two_steps_that_fail_at_once_the_first_makes_the_run(
    sqlite: str, monkeypatch: pytest.MonkeyPatch, ms: int, mine: bool
) -> None:
    make = tracking._create_parent
    runs: list[str] = []

    def make_two(client: Any, experiment_id: str, tags: Any, start: int | None) -> Any:
        other = make(client, experiment_id, tags, int(1000 * time.time()) + ms)
        own = make(client, experiment_id, tags, start)
        runs.extend((own.info.run_id, other.info.run_id))
        return own

    monkeypatch.setattr(tracking, "_create_parent", make_two)
    tracking.record_failure("e-1", "respect", "v", "solve-labels", "no room", sqlite)
    client = tracking._client(sqlite)
    experiment = client.get_experiment_by_name("coralline").experiment_id
    kept = {run.info.run_id for run in client.search_runs([experiment])}
    # The other's is for the other to delete.
    assert kept == (set(runs) if mine else {runs[1]})
    failed = client.get_run(runs[0 if mine else 1])
    assert failed.info.status == "FAILED"
    assert failed.data.tags["failed_step"] == "solve-labels"
    tracking.record_failure("e-1", "respect", "v", "dispatch", "no board", sqlite)
    assert client.get_run(failed.info.run_id).data.tags["failed_step"] == "dispatch"


def test_energy_without_a_source_is_not_logged() -> None:
    plan = plan_of(chain("net", 6))
    unmetered = measure_on_host(plan, energy_mj_per_inference=3.0)
    assert "energy_mj_per_inference" not in tracking.child_metrics(plan, unmetered)
    metered = replace(unmetered, meter="ina219")
    assert tracking.child_metrics(plan, metered)["energy_mj_per_inference"] == 3.0


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CORALLINE_HOME", str(tmp_path))
    assert tracking_uri() == f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"


def test_a_server_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        DeviceError,
        match=r"MLflow at http://127\.0\.0\.1:9: does not answer; .*MLFLOW_TRACKING_URI",
    ):
        record(an_execution(tmp_path), "http://127.0.0.1:9")


def test_a_place_that_mlflow_does_not_know_is_refused() -> None:
    with (
        pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI=gopher://x.*sqlite:///FILE"),
        tracking.connected("gopher://x"),
    ):
        pass
