from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graph_strategies import feasible_stagings, problems
from hypothesis import given, settings

from coralline.cli import main as cli
from coralline.devices.model import load_device
from coralline.errors import PlanError, UserError
from coralline.graph import ComputeGraph, synthetic
from coralline.graph.json_format import write_json
from coralline.staging import OBJECTIVES, Plan, StagingProblem, evaluate, make_plan
from coralline.staging.certificate import PROVERS, own_bound, verify_plan

DEVICE = replace(load_device("edgetpu-usb"), parameter_cache_bytes=2**20)


def some_problem(objective: str = "bottleneck") -> StagingProblem:
    graph = synthetic.generate("branch", 1, 14, seed=4)[0]
    return StagingProblem(graph, 3, DEVICE, objective)  # type: ignore[arg-type]


def tampered(plan: Plan, **changes: Any) -> Plan:
    return Plan.from_json({**json.loads(json.dumps(plan.to_json())), **changes})


@given(problems(max_nodes=6))
def test_a_true_plan_passes(problem: StagingProblem) -> None:
    for planner in ("uniform", "topo-dp-orders"):
        try:
            plan = make_plan(problem, planner)
        except PlanError:
            continue
        certificate = verify_plan(tampered(plan), problem.graph, problem.device)
        assert certificate.value == plan.value
        assert certificate.own_bound <= plan.value * (1 + 1e-12)


@given(problems(max_nodes=5))
def test_no_plan_beats_the_bound_proven_here(problem: StagingProblem) -> None:
    stagings = feasible_stagings(problem)
    if not stagings:
        return
    best = min(evaluate(problem, stage).value for stage in stagings)
    plan = make_plan(replace(problem, children_together=False), "uniform")
    assert own_bound(problem.graph, problem.device, plan) <= best * (1 + 1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("graph_name", lambda x: x + "x"),
        ("graph_digest", lambda x: "0" * 64),
        ("n_stages", lambda x: x + 1),
        ("n_stages", lambda x: x - 1),
        ("n_stages", lambda x: 10**9),
        ("device", lambda x: "edgetpu-pcie"),
        ("device_digest", lambda x: "0" * 64),
        ("simulated", lambda x: not x),
        ("simulated", lambda x: 1),
        ("objective", lambda x: OBJECTIVES[OBJECTIVES.index(x) - 1]),
        ("objective", lambda x: "joy"),
        ("objective", lambda x: []),
        ("children_together", lambda x: 0),
        ("planner", lambda x: ""),
        ("planner_version", lambda x: 2),
        ("stage", lambda x: x[:-1]),
        ("stage", lambda x: [*x[:-1], 7]),
        ("stage", lambda x: x[::-1]),
        ("stage", lambda x: [0] * len(x)),
        ("value", lambda x: x * (1 - 1e-6)),
        ("value", lambda x: x * (1 + 1e-6)),
        ("value", lambda x: None),
        ("value", lambda x: str(x)),
        ("value", lambda x: float("nan")),
        ("unit", lambda x: "s"),
        ("lower_bound", lambda x: x * 3),
        ("lower_bound", lambda x: x * 0.9),
        ("lower_bound", lambda x: -1.0),
        ("gap", lambda x: x / 2),
        ("gap", lambda x: None),
        ("gap", lambda x: "small"),
        ("proven_optimal", lambda x: not x),
        ("proven_optimal", lambda x: "yes"),
        ("solve_seconds", lambda x: -1.0),
        ("solve_seconds", lambda x: "1"),
        ("stages", lambda x: []),
        ("stages", lambda x: {**x, "joy": [1, 2, 3]}),
    ],
)
def test_a_changed_field_is_seen(
    objective: str, field: str, wrong: Callable[[Any], object]
) -> None:
    problem = some_problem(objective)
    plan = make_plan(problem, "uniform")
    assert plan.gap > 0  # type: ignore[operator]
    changes = {field: wrong(plan.to_json()[field])}
    # What is no plan at all is refused when it is read.
    with pytest.raises(UserError, match=r"the plan is wrong: |the plan's `"):
        verify_plan(tampered(plan, **changes), problem.graph, problem.device)


def test_the_tampering_tests_leave_no_field_out() -> None:
    (marks,) = [m for m in test_a_changed_field_is_seen.pytestmark if "field" in m.args[0]]  # type: ignore[attr-defined]
    assert {field for field, _ in marks.args[1]} == set(Plan.__dataclass_fields__)


def test_a_changed_cost_of_any_stage_is_named() -> None:
    problem = some_problem()
    plan = make_plan(problem, "uniform")
    data = plan.to_json()
    for name, costs in data["stages"].items():
        for s in range(len(costs) if isinstance(costs, list) else 1):
            stages = json.loads(json.dumps(data["stages"]))
            if isinstance(costs, list):
                stages[name][s] += 1
            else:
                stages[name] += 1
            with pytest.raises(UserError, match=rf"stages\.{name}\[{s}\] is .*, should be"):
                verify_plan(tampered(plan, stages=stages), problem.graph, DEVICE)
        without = {key: value for key, value in data["stages"].items() if key != name}
        with pytest.raises(UserError, match=rf"stages\.{name} is missing"):
            verify_plan(tampered(plan, stages=without), problem.graph, DEVICE)


def test_a_moved_operator_is_seen() -> None:
    problem = some_problem()
    plan = make_plan(problem, "uniform")
    for v in range(problem.graph.n_nodes):
        stage = list(plan.stage)
        stage[v] = (stage[v] + 1) % 3
        with pytest.raises(UserError, match="the plan is wrong: "):
            verify_plan(tampered(plan, stage=stage), problem.graph, DEVICE)


def test_children_in_several_stages_are_seen() -> None:
    graph = ComputeGraph.build(
        "fork",
        param_bytes=[1, 2, 3],
        tensor_bytes=[4, 5, 6],
        tensor_producer=[0, 1, 2],
        consumers=[[1, 2], [], []],
    )
    plan = make_plan(StagingProblem(graph, 2, DEVICE), "uniform")
    assert plan.stage == (0, 0, 1)
    assert verify_plan(plan, graph, DEVICE).value == plan.value
    with pytest.raises(UserError, match="stage of the children of 'n0' is not one"):
        verify_plan(tampered(plan, children_together=True), graph, DEVICE)


def test_measured_times_change_the_numbers() -> None:
    problem = some_problem()
    plan = make_plan(problem, "uniform")
    timed = problem.graph.with_compute_ms([5.0] * problem.graph.n_nodes)
    with pytest.raises(UserError, match="value is"):
        verify_plan(plan, timed, DEVICE)


def claim(plan: Plan, bound: float) -> Plan:
    return replace(plan, lower_bound=0.0).with_bound(bound)


def test_a_proof_can_be_asked_of_another_planner() -> None:
    problem = some_problem()
    plan = make_plan(problem, "exact-cpsat")
    assert plan.proven_optimal
    word = verify_plan(plan, problem.graph, DEVICE)
    assert word.bound_rests_on == "the planner's word" and word.own_bound < plan.lower_bound
    again = verify_plan(plan, problem.graph, DEVICE, prove_s=30)
    assert again.prover == again.bound_rests_on != "exact-cpsat"
    for planner in PROVERS:
        by_other = replace(plan, planner=planner)
        certificate = verify_plan(by_other, problem.graph, DEVICE, prove_s=30)
        assert certificate.prover in set(PROVERS) - {planner}
        assert certificate.bound_rests_on == certificate.prover


def test_a_bound_that_a_better_plan_refutes_is_wrong() -> None:
    problem = some_problem()
    plan = claim(make_plan(problem, "uniform"), 1e9)
    assert plan.proven_optimal
    certificate = verify_plan(plan, problem.graph, DEVICE)
    assert certificate.bound_rests_on == "the planner's word"
    with pytest.raises(UserError, match=r"lower_bound is .*, but exact.* found a plan of"):
        verify_plan(plan, problem.graph, DEVICE, prove_s=30)


@settings(max_examples=20)
@given(problems(max_nodes=5))
def test_an_exact_plan_is_proven_again(problem: StagingProblem) -> None:
    try:
        plan = make_plan(problem, "exact-cpsat")
    except PlanError:
        return
    certificate = verify_plan(plan, problem.graph, problem.device, prove_s=30)
    assert certificate.bound_rests_on in {"this check", *PROVERS} - {"exact-cpsat"}


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["coralline", *argv])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_the_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    graph = synthetic.generate("branch", 1, 14, seed=4)[0]
    model, file = tmp_path / "graph.json", tmp_path / "plan.json"
    write_json(graph, model)
    plan = make_plan(StagingProblem(graph, 3, load_device("edgetpu-usb")), "topo-dp")
    file.write_text(json.dumps(plan.to_json()))
    assert run(monkeypatch, "verify", str(file), "--model", str(model), "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "coralline.certificate/v1"
    assert data["value"] == plan.value and data["prover"] is None
    assert run(monkeypatch, "verify", str(file), "--model", str(model), "--prove", "20") == 0
    out = capsys.readouterr().out
    assert "the plan is feasible and its numbers hold (simulated device)" in out
    assert re.search(r"proven again .* by exact", out)

    file.write_text(json.dumps({**plan.to_json(), "value": 1.0}))
    assert run(monkeypatch, "verify", str(file), "--model", str(model)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert f"{file}: the plan is wrong: value is 1.0, should be" in captured.err
