from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graph_strategies import feasible_stagings, problems, problems_with_options
from hypothesis import given, settings

from coralline.cli import main as cli
from coralline.devices.model import load_device
from coralline.errors import PlanError, UserError
from coralline.graph import ComputeGraph, synthetic
from coralline.graph.json_format import write_json
from coralline.staging import (
    OBJECTIVES,
    Effort,
    Plan,
    StagingProblem,
    check,
    evaluate,
    make_plan,
)
from coralline.staging.certificate import (
    PROVERS,
    _Prices,
    own_bound,
    own_crossings_bound,
    verify_plan,
)

DEVICE = replace(load_device("edgetpu-usb"), parameter_cache_bytes=2**20)


PCIE = replace(load_device("edgetpu-pcie"), parameter_cache_bytes=2**19)
CHAIN = (DEVICE, PCIE, DEVICE)


def some_problem(objective: str = "bottleneck") -> StagingProblem:
    graph = synthetic.generate("branch", 1, 14, seed=4)[0]
    return StagingProblem(graph, 3, DEVICE, objective)  # type: ignore[arg-type]


def with_options(objective: str = "bottleneck") -> StagingProblem:
    problem = some_problem(objective)
    return replace(
        problem,
        device=CHAIN,
        host_operators=(2, 9),
        memory_limit_bytes=int(problem.graph.param_bytes.sum()),
        activation_cache=True,
    )


def tampered(plan: Plan, **changes: Any) -> Plan:
    return Plan.from_json({**json.loads(json.dumps(plan.to_json())), **changes})


@settings(max_examples=200)
@given(problems_with_options(max_nodes=6))
def test_a_true_plan_passes(problem: StagingProblem) -> None:
    for planner in ("uniform", "topo-dp-orders", "exact-cpsat"):
        try:
            plan = make_plan(problem, planner, Effort(workers=1))
        except PlanError:
            continue
        certificate = verify_plan(tampered(plan), problem.graph, problem.device)
        assert certificate.value == plan.value
        assert certificate.own_bound <= plan.value * (1 + 1e-12)
        assert certificate.crossings == plan.stages["hop_weighted_crossings"]
        assert certificate.crossings_lower_bound == plan.crossings_lower_bound


@settings(max_examples=200)
@given(problems_with_options(max_nodes=5))
def test_no_plan_beats_the_bounds_proven_here(problem: StagingProblem) -> None:
    keys = [evaluate(problem, stage) for stage in feasible_stagings(problem)]
    if not keys:
        return
    free = replace(problem, children_together=False, memory_limit_bytes=None)
    plan = make_plan(free, "uniform")
    prices = _Prices(plan, problem.graph, problem.devices, problem.host_model)
    assert own_bound(prices) <= min(e.value for e in keys) * (1 + 1e-12)
    assert own_crossings_bound(prices) <= min(e.hop_weighted_crossings for e in keys)


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
        ("host_operators", lambda x: x[:-1]),
        ("host_operators", lambda x: []),
        ("host_operators", lambda x: x[::-1]),
        ("host_operators", lambda x: 7),
        ("host", lambda x: None),
        ("host", lambda x: "edgetpu-usb"),
        ("host_digest", lambda x: "0" * 64),
        ("memory_limit_bytes", lambda x: 1),
        ("memory_limit_bytes", lambda x: "much"),
        ("activation_cache", lambda x: not x),
        ("activation_cache", lambda x: 1),
        ("crossings_lower_bound", lambda x: 0),
        ("crossings_lower_bound", lambda x: "few"),
    ],
)
def test_a_changed_field_is_seen(
    objective: str, field: str, wrong: Callable[[Any], object]
) -> None:
    problem = with_options(objective)
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
    problem = with_options()
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
                verify_plan(tampered(plan, stages=stages), problem.graph, CHAIN)
        without = {key: value for key, value in data["stages"].items() if key != name}
        with pytest.raises(UserError, match=rf"stages\.{name} is missing"):
            verify_plan(tampered(plan, stages=without), problem.graph, CHAIN)


@pytest.mark.parametrize("wrong", [None, -1, 0.5, 10**6, "few"])
def test_a_changed_bound_on_crossings_is_seen(wrong: object) -> None:
    problem = some_problem("peak-memory")
    plan = make_plan(problem, "exact-cpsat")
    assert plan.crossings_proven
    with pytest.raises(UserError, match=r"the plan is wrong: crossings_lower_bound .*; make it"):
        verify_plan(tampered(plan, crossings_lower_bound=wrong), problem.graph, DEVICE)


def test_crossings_are_proven_again_or_refuted() -> None:
    problem = some_problem("peak-memory")
    plan = make_plan(problem, "exact-cpsat")
    word = verify_plan(plan, problem.graph, DEVICE)
    assert word.crossings_bound_rests_on == "the planner's word"
    again = verify_plan(replace(plan, planner="exact"), problem.graph, DEVICE, prove_s=30)
    assert again.prover == again.crossings_bound_rests_on == "exact-cpsat"
    stages = [
        stage
        for stage in feasible_stagings_near(plan)
        if evaluate(problem, stage).value == plan.value
    ]
    worst = max(stages, key=lambda stage: evaluate(problem, stage).key)
    costs = evaluate(problem, worst)
    assert costs.hop_weighted_crossings > again.crossings
    bold = tampered(
        plan,
        planner="exact",
        stage=list(worst),
        stages=costs.to_json(),
        crossings_lower_bound=costs.hop_weighted_crossings,
    )
    with pytest.raises(UserError, match=r"crossings_lower_bound is .* but exact-cpsat found a"):
        verify_plan(bold, problem.graph, DEVICE, prove_s=30)


def feasible_stagings_near(plan: Plan) -> list[tuple[int, ...]]:
    """The plans that differ from this one in up to two operators."""
    problem = some_problem(plan.objective)
    found = []
    for u, v in itertools.combinations(range(len(plan.stage)), 2):
        for s, t in itertools.product(range(plan.n_stages), repeat=2):
            stage = list(plan.stage)
            stage[u], stage[v] = s, t
            with contextlib.suppress(PlanError):
                check(problem, stage)
                found.append(tuple(stage))
    return found


def test_a_moved_operator_is_seen() -> None:
    problem = with_options()
    plan = make_plan(problem, "uniform")
    for v in range(problem.graph.n_nodes):
        stage = list(plan.stage)
        stage[v] = (stage[v] + 1) % 3
        with pytest.raises(UserError, match="the plan is wrong: "):
            verify_plan(tampered(plan, stage=stage), problem.graph, CHAIN)


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


def test_the_verb_finds_the_devices_of_a_chain_and_the_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    graph = synthetic.generate("branch", 1, 14, seed=4)[0]
    model, file = tmp_path / "graph.json", tmp_path / "plan.json"
    write_json(graph, model)
    problem = StagingProblem(
        graph,
        2,
        (load_device("edgetpu-usb"), load_device("edgetpu-pcie")),
        "peak-memory",
        host_operators=(1, 4),
        memory_limit_bytes=int(graph.param_bytes.sum()),
    )
    plan = make_plan(problem, "exact-cpsat")
    file.write_text(json.dumps(plan.to_json()))
    assert run(monkeypatch, "verify", str(file), "--model", str(model), "--prove", "20") == 0
    out = capsys.readouterr().out
    assert re.search(rf"crossings +{plan.crossings_lower_bound}, none at this value has", out)
    verify = ("verify", str(file), "--model", str(model))
    assert run(monkeypatch, *verify, "--device", "edgetpu-pcie,edgetpu-usb") == 2
    assert "device is 'edgetpu-usb,edgetpu-pcie', should be" in capsys.readouterr().err
    assert run(monkeypatch, *verify, "--host-device", "edgetpu-usb") == 2
    assert "host is 'host-cpu', should be 'edgetpu-usb'" in capsys.readouterr().err
