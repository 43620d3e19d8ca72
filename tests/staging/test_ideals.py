from __future__ import annotations

import signal
import threading
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
from graph_strategies import feasible_stagings, problems, problems_with_options
from hypothesis import HealthCheck, given, settings

from coralline.devices.model import DeviceModel, load_device
from coralline.errors import PlanError
from coralline.graph import ComputeGraph, synthetic
from coralline.staging import OBJECTIVES, Effort, StagingProblem, evaluate, ideals, make_plan
from coralline.staging.exact import formulate
from coralline.staging.ideals import Search, chain_windows, order_of
from coralline.staging.orders import stack_order
from coralline.staging.reduction import reduce_problem
from coralline.staging.split import (
    search_orders,
    split,
    split_arguments,
    split_order,
    split_value,
)

USB = load_device("edgetpu-usb")
SMALL_CACHE = replace(USB, parameter_cache_bytes=2**20)
SLOW_LINK = replace(USB, in_ms_per_mib=30.0, out_ms_per_mib=60.0)


@pytest.mark.parametrize("device", [USB, SMALL_CACHE, SLOW_LINK], ids=["usb", "cache", "link"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", synthetic.family_names())
def test_cp_sat_finds_the_same_optimum(family: str, objective: str, device: DeviceModel) -> None:
    for number, graph in enumerate(synthetic.generate(family, 3, 12, seed=3)):
        problem = StagingProblem(graph, 2 + number, device, objective, number == 0)
        mine, other = (make_plan(problem, p, Effort(workers=1)) for p in ("exact", "exact-cpsat"))
        assert mine.proven_optimal and other.proven_optimal
        assert mine.value == pytest.approx(other.value, rel=2e-6)


def two_models(n: int) -> ComputeGraph:
    """Two chains of n operators side by side, without an edge between them."""
    rng = np.random.default_rng(0)
    return ComputeGraph.build(
        "two",
        param_bytes=rng.integers(0, 2**20, 2 * n),
        macs=rng.integers(10**7, 10**9, 2 * n),
        tensor_bytes=rng.integers(0, 2**18, 2 * n),
        tensor_producer=range(2 * n),
        consumers=[[v + 1] if v + 1 not in (n, 2 * n) else [] for v in range(2 * n)],
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_parts_without_an_edge_between_them(objective: str) -> None:
    problem = StagingProblem(two_models(20), 4, USB, objective)
    mine, other = (make_plan(problem, p) for p in ("exact", "exact-cpsat"))
    assert mine.proven_optimal and mine.value == pytest.approx(other.value, rel=2e-6)


def test_more_words_than_one() -> None:
    """Down-sets of 70 operators are kept in two words."""
    problem = StagingProblem(two_models(35), 3, USB, "bottleneck")
    mine, other = (make_plan(problem, p) for p in ("exact", "exact-cpsat"))
    assert mine.proven_optimal and mine.value == pytest.approx(other.value, rel=2e-6)


@pytest.mark.parametrize("first_steps", [ideals._FIRST_STEPS, 3], ids=["at-once", "in-many-steps"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems_with_options(max_nodes=6))
def test_every_objective_and_option_is_solved_as_by_trying_all_plans(
    problem: StagingProblem, first_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ideals, "_FIRST_STEPS", first_steps)
    keys = [evaluate(problem, stage).key for stage in feasible_stagings(problem)]
    if not keys:
        with pytest.raises(PlanError, match=r"no plan|alone|groups"):
            make_plan(problem, "exact")
        return
    value, crossings = min(keys)
    plan = make_plan(problem, "exact")
    assert plan.value == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert plan.lower_bound <= value * (1 + 1e-12)
    assert plan.proven_optimal or value == 0
    if problem.objective == "peak-memory":
        assert plan.stages["hop_weighted_crossings"] == crossings
        assert plan.crossings_proven


@settings(max_examples=50)
@given(problems(max_nodes=7))
def test_bounds_hold_however_early_the_search_ends(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False)
    search = Search(problem)
    first = search.bound
    assert first <= search.value * (1 + 1e-12)
    search.run(perf_counter() + 30)
    assert search.proven and search.stage is not None
    assert first <= search.bound * (1 + 1e-12)
    assert evaluate(problem, search.stage).value == search.value
    # No solution of the linear programme's rows is better than a proven value.
    if search.value > 0 and problem.objective != "latency":
        assert formulate(problem, search.value) is not None


@given(problems_with_options(max_nodes=7))
def test_the_windows_of_one_order_keep_every_plan(problem: StagingProblem) -> None:
    with suppress(PlanError):
        problem, _ = reduce_problem(problem)
        order = stack_order(problem.graph)
        arguments = split_arguments(problem)
        for stage in feasible_stagings(problem):
            first, last = chain_windows(arguments, order, evaluate(problem, stage).value)
            assert (first <= stage).all() and (np.array(stage) <= last).all()


def test_a_long_search_ends_at_an_interrupt() -> None:
    graph = synthetic.generate("respect", 1, 200, seed=1)[0]
    problem = StagingProblem(graph, 6, USB, "latency")
    make_plan(problem, "exact", Effort(time_limit_s=0.0))  # compiles before the clock starts
    # CP-SAT leaves the system's handler behind, which ends the process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    timer = threading.Timer(1.0, signal.pthread_kill, [main, signal.SIGINT])
    start = perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        make_plan(problem, "exact", Effort(time_limit_s=60.0))
    assert perf_counter() - start < 10


@pytest.mark.parametrize("objective", ["bottleneck", "latency"])
def test_a_search_that_stops_has_a_valid_bound(objective: str) -> None:
    graph = synthetic.generate("respect", 3, 80, seed=2)[2]
    problem = StagingProblem(graph, 6, USB, objective)
    short, long = (make_plan(problem, "exact", Effort(time_limit_s=t)) for t in (0.05, 1.0))
    assert 0 < short.lower_bound <= long.value
    assert short.lower_bound <= long.lower_bound * (1 + 1e-9)
    assert long.value <= short.value


def test_auto_is_as_good_as_its_parts() -> None:
    graph = synthetic.generate("respect", 3, 80, seed=2)[2]
    problem = StagingProblem(graph, 6, USB)
    make_plan(problem, "policy")  # compiles the decoder before the clock starts
    auto = make_plan(problem, "auto", Effort(time_limit_s=10))
    assert auto.value <= make_plan(problem, "policy").value
    assert auto.lower_bound <= auto.value and auto.solve_seconds < 12
    easy = replace(problem, graph=two_models(20))
    assert make_plan(easy, "auto").stage == make_plan(easy, "exact").stage


@given(problems(max_nodes=7))
def test_searching_orders_never_loses(problem: StagingProblem) -> None:
    arguments, start = split_arguments(problem), problem.graph.topological_order
    found, stage, value = search_orders(arguments, start, 20, seed=1)
    assert value == split_value(arguments, found) == split(arguments, found)[1]
    assert split_value(arguments, found) <= split_value(arguments, start)
    stage = split_order(problem, found)
    again = order_of(problem, stage)
    assert split_value(arguments, again) <= split_value(arguments, found) * (1 + 1e-12)


@given(problems_with_options(max_nodes=6))
def test_a_graph_with_one_order_needs_no_search(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False, host_operators=())
    graph = problem.graph
    n = graph.n_nodes
    # A chain through all operators leaves only the graph's own order.
    order = graph.topological_order
    chain = ComputeGraph.build(
        "chain",
        param_bytes=graph.param_bytes,
        macs=graph.macs,
        tensor_bytes=graph.tensor_bytes[-n:],
        tensor_producer=order,
        consumers=[[w] for w in order[1:].tolist()] + [[]],
    )
    problem = replace(problem, graph=chain)
    search = Search(problem)
    keys = [evaluate(problem, stage).key for stage in feasible_stagings(problem)]
    assert search.proven == bool(keys)
    if keys:
        assert search.value == pytest.approx(min(keys)[0], rel=1e-9, abs=1e-12)
