from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
from graph_strategies import problems
from hypothesis import given, settings

from coralline.devices.model import DeviceModel, load_device
from coralline.graph import ComputeGraph, synthetic
from coralline.staging import OBJECTIVES, Effort, StagingProblem, evaluate, make_plan
from coralline.staging.exact import formulate
from coralline.staging.ideals import Search, order_of
from coralline.staging.split import search_orders, split_arguments, split_order, split_value

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


@settings(max_examples=50)
@given(problems(max_nodes=7))
def test_bounds_hold_however_early_the_search_ends(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False)
    search = Search(problem)
    first = search.bound
    assert first <= search.value * (1 + 1e-12)
    search.run(perf_counter() + 30)
    assert search.proven
    assert first <= search.bound * (1 + 1e-12)
    assert evaluate(problem, search.stage).value == search.value
    # No solution of the linear programme's rows is better than a proven value.
    if search.value > 0 and problem.objective != "latency":
        assert formulate(problem, search.value) is not None


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
    found = search_orders(arguments, start, 20, seed=1)
    assert split_value(arguments, found) <= split_value(arguments, start)
    stage = split_order(problem, found)
    again = order_of(problem, stage)
    assert split_value(arguments, again) <= split_value(arguments, found) * (1 + 1e-12)
