from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graph_strategies import problems
from hypothesis import given

from coralline.devices.model import load_device
from coralline.graph import read_graph
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging import StagingProblem, evaluate, make_plan
from coralline.staging.baselines import _longest_runs, _SegmentLatency
from coralline.staging.orders import stack_order

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


@given(problems(max_nodes=7))
def test_several_orders_are_never_worse_than_one(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False)
    assert make_plan(problem, "topo-dp-orders").value <= make_plan(problem, "topo-dp").value


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


@given(problems(max_nodes=7))
def test_segment_latency_is_what_evaluate_says(problem: StagingProblem) -> None:
    n = problem.graph.n_nodes
    order = stack_order(problem.graph)
    segment_ms = _SegmentLatency(problem, order)
    for begin in range(n):
        for end in range(begin + 1, n + 1):
            stage = np.empty(n, np.int64)
            stage[order] = (np.arange(n) >= begin).astype(int) * (begin > 0)
            stage[order[end:]] = stage.max() + 1
            k = int(stage.max()) + 1
            whole = replace(problem, n_stages=k, children_together=False)
            expected = evaluate(whole, stage).stage_ms[int(begin > 0)]
            assert segment_ms(begin)[end - begin - 1] == pytest.approx(expected, abs=1e-9)


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
    assert segment_ms(0) == [1, 2, 3, 4]
    assert segment_ms(2) == [11, 12]
    assert _longest_runs(segment_ms, 3, before_last=3, target=2.5) == [1, 3]
    assert _longest_runs(segment_ms, 3, before_last=3, target=0.5) is None


def brute_pipedream(problem: StagingProblem) -> float:
    """The least of PipeDream's cost over all splits of the order, cut by cut."""
    graph, device = problem.graph, problem.device
    order = graph.topological_order.tolist()
    n, k = graph.n_nodes, problem.n_stages
    best = np.inf
    for cuts in itertools.combinations(range(1, n), k - 1):
        ends = (0, *cuts, n)
        costs = [
            sum(problem.node_ms[0, v] for v in order[a:b]) for a, b in itertools.pairwise(ends)
        ]
        for cut in cuts:
            done = set(order[:cut])
            crossing = [
                t
                for t in range(graph.n_tensors)
                if graph.tensor_producer[t] in done
                and any(
                    v not in done
                    for v in graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
                )
            ]
            mib = sum(int(graph.tensor_bytes[t]) for t in crossing) / 2**20
            costs.append(mib * (device.in_ms_per_mib + device.out_ms_per_mib))
        best = min(best, max(costs))
    return best


@given(problems(max_nodes=7))
def test_pipedream_is_the_optimum_of_its_own_cost(problem: StagingProblem) -> None:
    problem = replace(problem, children_together=False)
    graph, device = problem.graph, problem.device
    stage = np.array(make_plan(problem, "pipedream").stage)
    position = np.empty(graph.n_nodes, int)
    position[graph.topological_order] = np.arange(graph.n_nodes)
    costs = [problem.node_ms[0, stage == s].sum() for s in range(problem.n_stages)]
    for s in range(problem.n_stages - 1):
        mib = 0.0
        for t in range(graph.n_tensors):
            readers = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
            home = graph.tensor_producer[t]
            if home != MODEL_INPUT and stage[home] <= s and (stage[readers] > s).any():
                mib += graph.tensor_bytes[t] / 2**20
        costs.append(mib * (device.in_ms_per_mib + device.out_ms_per_mib))
    assert (np.diff(stage[graph.topological_order]) >= 0).all()
    assert max(costs) == pytest.approx(brute_pipedream(problem), abs=1e-9)
