from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_strategies import problems_with_options
from hypothesis import given, settings
from numpy.typing import NDArray

from coralline.devices.model import load_device
from coralline.errors import PlanError
from coralline.graph import read_graph
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging import StagingProblem, check, evaluate, make_plan
from coralline.staging.baselines import _longest_runs, _SegmentLatency
from coralline.staging.orders import stack_order
from coralline.staging.reduction import reduce_problem

Ints = NDArray[np.int64]

DATA = Path(__file__).parents[1] / "data" / "respect_graphs"


def chain(param_bytes: list[int]) -> ComputeGraph:
    n = len(param_bytes)
    return ComputeGraph.build(
        "chain",
        param_bytes=param_bytes,
        tensor_bytes=[1] * n,
        tensor_producer=range(n),
        consumers=[*([v] for v in range(1, n)), []],
    )


@pytest.mark.parametrize(
    ("param_bytes", "n_stages", "stage"),
    [
        # average 12 / 3 + 1 = 5
        ([2, 3, 1, 4, 1, 1], 3, [0, 0, 1, 1, 2, 2]),
        ([1, 1, 1, 1, 1, 7], 3, [0, 0, 0, 0, 1, 2]),
        ([9, 1, 1, 1], 3, [0, 1, 1, 2]),
        ([0, 0, 0, 0], 2, [0, 0, 0, 1]),
        ([0, 0, 0], 3, [0, 1, 2]),
    ],
)
def test_the_parameter_count_rule(param_bytes: list[int], n_stages: int, stage: list[int]) -> None:
    problem = StagingProblem(chain(param_bytes), n_stages, load_device("edgetpu-usb"))
    assert list(make_plan(problem, "edgetpu-compiler").stage) == stage


@pytest.mark.parametrize(
    ("name", "n_stages", "peak_mi"),
    # Found by an independent emulation of libcoral's partitioner on these graphs.
    [
        ("xception", 4, 5.9716),
        ("xception", 5, 5.2505),
        ("xception", 6, 4.5356),
        ("resnet50", 4, 7.5269),
        ("resnet50", 5, 7.5269),
        ("resnet50", 6, 5.2744),
    ],
)
def test_the_rule_on_published_graphs(name: str, n_stages: int, peak_mi: float) -> None:
    problem = StagingProblem(
        read_graph(DATA / f"{name}.json"), n_stages, load_device("edgetpu-usb"), "peak-memory"
    )
    assert round(make_plan(problem, "edgetpu-compiler").value / 2**20, 4) == peak_mi


def test_uniform_counts_operators() -> None:
    problem = StagingProblem(chain([1] * 7), 3, load_device("edgetpu-usb"))
    assert make_plan(problem, "uniform").stage == (0, 0, 0, 1, 1, 2, 2)


def test_topo_dp_is_exact_where_only_one_order_exists() -> None:
    problem = StagingProblem(chain([5, 1, 1, 1, 4]), 3, load_device("edgetpu-usb"), "peak-memory")
    assert make_plan(problem, "topo-dp").value == 5


@given(problems_with_options(max_nodes=7))
def test_several_orders_are_never_worse_than_one(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False)
    try:
        one = evaluate(problem, make_plan(problem, "topo-dp").stage).key
    except PlanError:
        return
    assert evaluate(problem, make_plan(problem, "topo-dp-orders").stage).key <= one


@pytest.mark.parametrize(
    ("param_bytes", "n_stages", "stage"),
    [
        ([2, 3, 1, 4, 1, 1], 3, [0, 0, 1, 1, 2, 2]),
        # 9 is nearer to the share of 4 than nothing is; the rest is shared out again.
        ([9, 1, 1, 1], 3, [0, 1, 2, 2]),
        ([1, 1, 1, 9], 3, [0, 0, 1, 2]),
        ([0, 0, 0, 0], 2, [0, 1, 1, 1]),
    ],
)
def test_greedy_shares_what_is_left(
    param_bytes: list[int], n_stages: int, stage: list[int]
) -> None:
    problem = StagingProblem(
        chain(param_bytes), n_stages, load_device("edgetpu-usb"), "peak-memory"
    )
    assert list(make_plan(problem, "greedy").stage) == stage


@settings(max_examples=50)
@given(problems_with_options(max_nodes=6))
def test_segment_latency_is_what_evaluate_says(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False, memory_limit_bytes=None)
    problem, _ = reduce_problem(problem)
    n, k = problem.graph.n_nodes, problem.n_stages
    order = stack_order(problem.graph)
    segment_ms = _SegmentLatency(problem, order)
    for cuts in itertools.combinations(range(1, n), k - 1):
        stage = np.empty(n, np.int64)
        stage[order] = np.searchsorted(cuts, np.arange(n), side="right")
        expected = evaluate(problem, stage).stage_ms
        for s, (begin, end) in enumerate(itertools.pairwise((0, *cuts, n))):
            assert segment_ms(s, begin)[end - begin - 1] == pytest.approx(expected[s], abs=1e-9)


def timed_chain(compute_ms: list[float], tensor_bytes: list[int] | None = None) -> ComputeGraph:
    n = len(compute_ms)
    return ComputeGraph.build(
        "timed",
        param_bytes=[1] * n,
        tensor_bytes=tensor_bytes or [0] * n,
        tensor_producer=range(n),
        consumers=[*([v] for v in range(1, n)), []],
        compute_ms=compute_ms,
    )


FREE = replace(load_device("edgetpu-usb"), stage_overhead_ms=0.0, op_overhead_ms=0.0)


def test_profiling_bisects_on_the_latency_of_a_segment() -> None:
    # By count of parameters 2 + 2 + 2: 20, 2 and 2 ms. Targets 11 (met by 1 + 4 + 1, since
    # the last segment must hold the last operator), 6.5 (not met: the first operator takes 10),
    # 8.75, 9.875, 10.4375 (met).
    problem = StagingProblem(timed_chain([10, 10, 1, 1, 1, 1]), 3, FREE)
    assert make_plan(problem, "edgetpu-compiler").stage == (0, 0, 0, 1, 1, 2)
    assert make_plan(problem, "libcoral-profiling").stage == (0, 1, 2, 2, 2, 2)


def test_profiling_leaves_a_balanced_split_alone_and_evens_others_out() -> None:
    problem = StagingProblem(timed_chain([1.0, 1.2, 1.5, 1.0]), 4, FREE)
    assert make_plan(problem, "libcoral-profiling").stage == (0, 1, 2, 3)
    problem = replace(problem, graph=timed_chain([5, 1, 1, 5]), n_stages=2)
    assert make_plan(problem, "edgetpu-compiler").stage == (0, 0, 0, 1)
    assert make_plan(problem, "libcoral-profiling").stage == (0, 0, 1, 1)


def test_profiling_takes_the_longest_run_and_shortens_it_where_the_next_cannot_follow() -> None:
    # On its own operator 2 must fetch a large tensor, so 0-1 and then 2 is too slow, though
    # 0-1 is fast enough: the first segment gives operator 1 back.
    mib = 2**20
    graph = timed_chain([1, 1, 1, 1], [0, mib, 0, 0])
    device = replace(FREE, in_ms_per_mib=10.0, out_ms_per_mib=0.0)
    problem = StagingProblem(graph, 3, device)
    segment_ms = _SegmentLatency(problem, stack_order(graph))
    assert segment_ms(0, 0) == [1, 2, 3, 4]
    assert segment_ms(0, 2) == [11, 12]
    assert _longest_runs(segment_ms, 3, before_last=3, target=2.5) == [1, 3]
    assert _longest_runs(segment_ms, 3, before_last=3, target=0.5) is None


def pipedream_cost(problem: StagingProblem, stage: Ints) -> float:
    """What PipeDream minimises, of a split of the order; infinite over the memory limit."""
    graph, devices = problem.graph, problem.devices
    held = np.bincount(stage, problem.param_bytes)
    if problem.memory_limit_bytes is not None and held.max() > problem.memory_limit_bytes:
        return np.inf
    costs = [problem.node_ms[s, stage == s].sum() for s in range(problem.n_stages)]
    for s in range(problem.n_stages - 1):
        mib = 0.0
        for t in range(graph.n_tensors):
            readers = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
            home = graph.tensor_producer[t]
            if home != MODEL_INPUT and stage[home] <= s and (stage[readers] > s).any():
                mib += graph.tensor_bytes[t] / 2**20
        costs.append(mib * (devices[s].out_ms_per_mib + devices[s + 1].in_ms_per_mib))
    return max(costs)


@given(problems_with_options(max_nodes=7))
def test_pipedream_is_the_optimum_of_its_own_cost(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False)
    try:
        problem, _ = reduce_problem(problem)
        stage = np.array(make_plan(problem, "pipedream").stage)
    except PlanError as error:
        assert re.search("found no plan|no plan keeps|alone has", str(error))
        stage = None
    n, order = problem.graph.n_nodes, problem.graph.topological_order
    best = np.inf
    for cuts in itertools.combinations(range(1, n), problem.n_stages - 1):
        split = np.empty(n, np.int64)
        split[order] = np.searchsorted(cuts, np.arange(n), side="right")
        best = min(best, pipedream_cost(problem, split))
    if stage is None:
        assert best == np.inf
        return
    assert (np.diff(stage[order]) >= 0).all()
    assert pipedream_cost(problem, stage) == pytest.approx(best, abs=1e-9)


WITHIN = ("edgetpu-compiler", "greedy", "libcoral-profiling", "pipedream", "uniform")


@given(problems_with_options(max_nodes=7))
def test_a_rule_that_breaks_the_memory_limit_says_so(problem: StagingProblem) -> None:
    free = replace(problem, memory_limit_bytes=None)
    for planner in WITHIN:
        try:
            plan = make_plan(problem, planner)
        except PlanError as error:
            if "found no plan" in str(error) and planner not in ("greedy", "pipedream"):
                with pytest.raises(PlanError, match=r"holds .* the limit is"):
                    check(problem, make_plan(free, planner).stage)
            else:
                assert re.search("found no plan|no plan keeps|alone has|groups", str(error))
            continue
        assert check(problem, plan.stage).tolist() == list(plan.stage)


def test_greedy_gives_slow_devices_less_and_keeps_to_the_limit() -> None:
    slow = replace(FREE, macs_per_ms={kind: x / 3 for kind, x in FREE.macs_per_ms.items()})
    graph = replace(chain([1] * 8), macs=np.full(8, 10**9))
    problem = StagingProblem(graph, 2, (FREE, slow))
    assert make_plan(problem, "greedy").stage == (0, 0, 0, 0, 0, 0, 1, 1)
    limited = replace(problem, memory_limit_bytes=5)
    assert make_plan(limited, "greedy").stage == (0, 0, 0, 0, 0, 1, 1, 1)


def test_counting_operators_may_break_the_limit_where_another_rule_does_not() -> None:
    problem = StagingProblem(chain([5, 3, 1, 1]), 2, FREE, "peak-memory", memory_limit_bytes=6)
    assert make_plan(problem, "greedy").stage == (0, 1, 1, 1)
    with pytest.raises(PlanError, match="this planner found no plan that keeps each of 2 stages"):
        make_plan(problem, "uniform")
