from __future__ import annotations

import json
from dataclasses import replace
from time import sleep

import numpy as np
import pytest
from graph_strategies import feasible_stagings, problems, problems_with_options
from hypothesis import given

from coralline.devices.model import MIB, load_device
from coralline.errors import PlanError, UserError
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging import (
    OBJECTIVES,
    Effort,
    Plan,
    Proposal,
    StagingProblem,
    check,
    evaluate,
    lower_bound,
    make_plan,
    planner_names,
)
from coralline.staging import problem as problem_module
from coralline.staging.reduction import reduce_problem


def diamond() -> ComputeGraph:
    return ComputeGraph.build(
        "diamond",
        node_names=["a", "b", "c", "d"],
        param_bytes=[10, 20, 30, 40],
        tensor_bytes=[MIB, MIB, MIB, 2 * MIB],
        tensor_producer=[0, 1, 2, 3],
        consumers=[[1, 2], [3], [3], []],
        compute_ms=[1.0, 2.0, 3.0, 4.0],
    )


def slow_stage_ms(problem: StagingProblem, stage: tuple[int, ...]) -> list[float]:
    """The time of every stage, word by word as the module's docstring has it."""
    graph, hosted = problem.graph, set(problem.host_operators)
    times = []
    for s, device in enumerate(problem.devices):
        mine = [v for v in range(graph.n_nodes) if stage[v] == s]
        on_device = [v for v in mine if v not in hosted]
        ms = device.stage_overhead_ms
        ms += sum(device.node_ms(graph)[v] for v in on_device)
        ms += sum(problem.host_model.node_ms(graph)[v] for v in mine if v in hosted)
        largest = 0
        for t in range(graph.n_tensors):
            home = graph.tensor_producer[t]
            readers = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
            mib = graph.tensor_bytes[t] / MIB
            made_here = home in on_device
            if any(r in on_device for r in readers) or made_here:
                largest = max(largest, graph.tensor_bytes[t])
            if any(r in on_device for r in readers) and not made_here:
                ms += mib * device.in_ms_per_mib
            leaves = graph.tensor_is_output[t] or any(r not in on_device for r in readers)
            if made_here and leaves:
                ms += mib * device.out_ms_per_mib
        cache = device.parameter_cache_bytes
        if problem.activation_cache:
            cache = np.interp(largest, *zip(*device.cache_by_activation, strict=True))
        params = sum(graph.param_bytes[v] for v in on_device)
        ms += max(params - cache, 0) / MIB * device.stream_ms_per_mib
        times.append(ms)
    return times


@given(problems_with_options(max_nodes=5))
def test_evaluate_agrees_with_the_definition(problem: StagingProblem) -> None:
    graph = problem.graph
    for stage in feasible_stagings(problem)[:20]:
        times = slow_stage_ms(problem, stage)
        result = evaluate(problem, stage)
        np.testing.assert_allclose(result.stage_ms, times, rtol=1e-12)
        params = [
            sum(
                int(graph.param_bytes[v])
                for v in range(graph.n_nodes)
                if stage[v] == s and v not in problem.host_operators
            )
            for s in range(problem.n_stages)
        ]
        assert result.param_bytes.tolist() == params
        assert max(params) <= (problem.memory_limit_bytes or max(params))
        crossings = sum(stage[v] - stage[u] for u, v in graph.edges)
        assert result.hop_weighted_crossings == crossings
        value = {"bottleneck": max(times), "latency": sum(times), "peak-memory": max(params)}
        assert result.value == pytest.approx(value[problem.objective], rel=1e-12)
        assert result.key == (result.value, crossings if problem.objective == "peak-memory" else 0)


@given(problems_with_options(max_nodes=6))
def test_a_reduced_problem_has_the_same_plans_at_the_same_values(problem: StagingProblem) -> None:
    try:
        reduced, groups = reduce_problem(problem)
    except PlanError:
        assert not feasible_stagings(problem)
        return
    by_groups = {tuple(np.array(s)[groups].tolist()): s for s in feasible_stagings(reduced)}
    assert set(by_groups) == set(feasible_stagings(problem))
    for stage, of_groups in by_groups.items():
        one, other = evaluate(problem, stage), evaluate(reduced, of_groups)
        np.testing.assert_allclose(one.stage_ms, other.stage_ms, rtol=1e-12)
        np.testing.assert_allclose(one.key, other.key, rtol=1e-12)


@given(problems(max_nodes=5))
def test_no_plan_beats_the_lower_bound(problem: StagingProblem) -> None:
    bound = lower_bound(problem)
    for stage in feasible_stagings(problem):
        assert evaluate(problem, stage).value >= bound * (1 - 1e-12)


def test_a_tensor_is_sent_once_to_each_later_stage_and_fetched_once() -> None:
    device = load_device("edgetpu-usb")
    problem = StagingProblem(diamond(), 3, device, "latency")
    result = evaluate(problem, [0, 1, 1, 2])
    assert result.in_bytes.tolist() == [0, MIB, 2 * MIB]
    assert result.out_bytes.tolist() == [MIB, 2 * MIB, 2 * MIB]
    assert result.hop_weighted_crossings == 4
    spread = evaluate(problem, [0, 1, 2, 2])
    assert spread.in_bytes.tolist() == [0, MIB, 2 * MIB]
    assert spread.out_bytes.tolist() == [MIB, MIB, 2 * MIB]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ([0, 0, 0], "one whole stage number for each of its 4 operators"),
        ([0.0, 0.0, 1.0, 1.0], "one whole stage number"),
        ([0, 0, 5, 1], r"node 2 \('c'\) is in stage 5 of 0 to 1"),
        ([1, 0, 1, 1], "the edge 'a' -> 'b' goes backwards, from stage 1 to stage 0"),
        ([0, 0, 0, 0], "stage 1 is empty"),
    ],
)
def test_check_names_what_is_wrong(stage: list[float], message: str) -> None:
    problem = StagingProblem(diamond(), 2, load_device("edgetpu-usb"))
    with pytest.raises(PlanError, match=message):
        check(problem, stage)


def test_check_knows_the_rule_on_children() -> None:
    problem = StagingProblem(diamond(), 2, load_device("edgetpu-usb"), children_together=True)
    with pytest.raises(PlanError, match="the children of 'a' are in several stages"):
        check(problem, [0, 0, 1, 1])
    with pytest.raises(PlanError, match="only 3 groups for 4 stages; ask for fewer"):
        make_plan(replace(problem, n_stages=4), "uniform")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_stages": 0}, "0 stages: a pipeline has at least 1"),
        ({"n_stages": 5}, "5 stages for 4 operators of 'diamond'"),
        ({"objective": "speed"}, "choose bottleneck, peak-memory, latency"),
    ],
)
def test_a_problem_without_sense_is_refused(change: dict[str, object], message: str) -> None:
    problem = StagingProblem(diamond(), 2, load_device("edgetpu-usb"))
    with pytest.raises(UserError, match=message):
        replace(problem, **change)


def test_an_unknown_planner_is_refused_with_the_names() -> None:
    problem = StagingProblem(diamond(), 2, load_device("edgetpu-usb"))
    with pytest.raises(UserError, match=r"choose one of .*exact-cpsat"):
        make_plan(problem, "magic")


RULES = (
    *("edgetpu-compiler", "greedy", "libcoral-profiling", "pipedream", "topo-dp"),
    *("topo-dp-orders", "uniform"),
)


@given(problems(max_nodes=7))
def test_every_rule_gives_a_feasible_plan_with_a_valid_bound(problem: StagingProblem) -> None:
    for planner in RULES:
        try:
            plan = make_plan(problem, planner)
        except PlanError as error:
            assert problem.children_together and "groups" in str(error)
            continue
        assert plan.value == evaluate(problem, plan.stage).value
        assert plan.lower_bound <= plan.value
        assert plan.graph_digest == problem.graph.digest
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_loading_libraries_is_not_time_to_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_module, "_PLANNERS", {})

    @problem_module.register("slow-to-load", version="1", load=lambda: sleep(0.2))
    def planner(problem: StagingProblem, effort: Effort) -> Proposal:
        return Proposal(np.array([0, 0, 1, 1]))

    plan = make_plan(StagingProblem(diamond(), 2, load_device("edgetpu-usb")), "slow-to-load")
    assert plan.solve_seconds < 0.2


def test_the_planners_are_registered_by_name() -> None:
    assert {"annealing", "brkga", "exact-cpsat", "exact-milp", *RULES} <= set(planner_names())
    assert OBJECTIVES == ("bottleneck", "peak-memory", "latency")


def test_a_plan_file_that_lacks_something_is_refused() -> None:
    plan = make_plan(StagingProblem(diamond(), 2, load_device("edgetpu-usb")), "uniform")
    data = plan.to_json()
    with pytest.raises(UserError, match="`schema` must be"):
        Plan.from_json({**data, "schema": "coralline.plan/v9"})
    with pytest.raises(UserError, match="`schema` must be"):
        Plan.from_json([data])
    with pytest.raises(UserError, match="lacks graph_digest, stage"):
        Plan.from_json({k: v for k, v in data.items() if k not in ("graph_digest", "stage")})
    with pytest.raises(UserError, match="`stage` must be a list of whole numbers"):
        Plan.from_json({**data, "stage": [0, 0.5, 1, 1]})
    with pytest.raises(UserError, match="`value` must be a number"):
        Plan.from_json({**data, "value": float("nan")})


def test_a_plan_belongs_to_its_graph() -> None:
    graph = diamond()
    plan = make_plan(StagingProblem(graph, 2, load_device("edgetpu-usb")), "uniform")
    plan.check_graph(graph)
    # Measured times change what a plan is worth, not what it fits.
    plan.check_graph(graph.with_compute_ms([1.0, 2.0, 3.0, 5.0]))
    other = replace(graph, macs=graph.macs + 1)
    with pytest.raises(UserError, match=r"made for 'diamond'.*not for 'diamond'.*schedule"):
        plan.check_graph(other)
