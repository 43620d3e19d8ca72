from __future__ import annotations

import itertools
from dataclasses import replace
from time import perf_counter

import numpy as np
import pytest
from graph_strategies import feasible_stagings, problems, problems_with_options
from hypothesis import given, settings

from coralline.devices.model import MIB, load_device
from coralline.graph import ComputeGraph, synthetic
from coralline.staging import OBJECTIVES, StagingProblem, evaluate, lower_bound, make_plan
from coralline.staging.bounds import (
    Moves,
    crossings_bound,
    cut_bound,
    minimum_cut,
    stage_windows,
    work_bound,
)
from coralline.staging.reduction import reduce_problem

DEVICE = replace(
    load_device("edgetpu-usb"),
    stage_overhead_ms=0.0,
    op_overhead_ms=0.0,
    in_ms_per_mib=1.0,
    out_ms_per_mib=1.0,
)


@settings(max_examples=300)
@given(problems_with_options(max_nodes=6))
def test_no_plan_beats_a_bound(problem: StagingProblem) -> None:
    stagings = feasible_stagings(problem)
    if not stagings:
        return
    keys = [evaluate(problem, stage).key for stage in stagings]
    best = min(keys)[0] * (1 + 1e-12)
    reduced, groups = reduce_problem(problem)
    assert cut_bound(reduced) <= best
    assert work_bound(reduced) <= lower_bound(problem) <= best
    limit = np.median([value for value, _ in keys])
    first, last = stage_windows(reduced, limit)
    for stage, (value, _) in zip(stagings, keys, strict=True):
        if value <= limit:
            assert (first[groups] <= stage).all() and (stage <= last[groups]).all()
            assert crossings_bound(reduced, limit) <= crossings(problem, stage)


def crossings(problem: StagingProblem, stage: tuple[int, ...]) -> int:
    return evaluate(problem, stage).hop_weighted_crossings


def chain(tensor_bytes: list[int], compute_ms: float = 1.0) -> ComputeGraph:
    n = len(tensor_bytes)
    return ComputeGraph.build(
        "chain",
        param_bytes=[0] * n,
        tensor_bytes=tensor_bytes,
        tensor_producer=range(n),
        consumers=[*([v] for v in range(1, n)), []],
        compute_ms=[compute_ms] * n,
    )


def test_every_border_of_a_chain_pays_its_transfer() -> None:
    problem = StagingProblem(chain([MIB] * 8 + [0], compute_ms=10.0), 3, DEVICE)
    assert work_bound(problem) == pytest.approx(30.0)
    # Two borders at 2 ms each, over three stages; the middle one has 2 of the 4 ms.
    assert cut_bound(problem) == pytest.approx(30 + 4 / 3, rel=1e-3)
    assert make_plan(problem, "topo-dp").value == pytest.approx(32)


def test_the_sum_of_all_stages_pays_the_cheapest_cut() -> None:
    problem = StagingProblem(chain([5 * MIB, 2 * MIB, 3 * MIB, 0]), 2, DEVICE, "latency")
    assert cut_bound(problem) == pytest.approx(4 + 2 * 2)
    assert make_plan(problem, "topo-dp").value == pytest.approx(8)


def closure(start: int, neighbours: tuple[tuple[int, ...], ...]) -> np.ndarray:
    found = np.zeros(len(neighbours), bool)
    waiting = [start]
    while waiting:
        v = waiting.pop()
        found[v] = True
        waiting += neighbours[v]
    return found


@settings(max_examples=60)
@given(problems(max_nodes=5))
def test_minimum_cuts_are_those_of_all_closed_sets(problem: StagingProblem) -> None:
    graph = problem.graph
    n, inner = graph.n_nodes, graph.tensor_producer >= 0
    cost = np.where(inner, graph.tensor_bytes.astype(float), 0.0)
    moves = Moves(graph.tensor_producer, graph.consumer_tensor, graph.consumers)
    u, v = graph.edges.T
    sets = [(bits >> np.arange(n)) & 1 == 1 for bits in range(2**n)]
    costs = []
    for member in sets:
        leaves = np.zeros(graph.n_tensors, bool)
        leaves[graph.consumer_tensor[~member[graph.consumers]]] = True
        closed = not (member[v] & ~member[u]).any()
        costs.append(
            cost[leaves & inner & member[graph.tensor_producer]].sum() if closed else np.inf
        )
    for a, b in itertools.permutations(range(n), 2):
        inside, outside = closure(a, graph.predecessors), closure(b, graph.successors)
        if (inside & outside).any():
            continue
        best = min(c for member, c in zip(sets, costs, strict=True) if member[a] and not member[b])
        assert minimum_cut(graph, moves, cost, inside, outside) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_cuts_close_much_of_the_gap_in_milliseconds(objective: str) -> None:
    graph = synthetic.generate("branch", 1, 1000, seed=9)[0]
    problem = StagingProblem(graph, 4, load_device("edgetpu-usb"), objective)  # type: ignore[arg-type]
    cut_bound(problem)
    start = perf_counter()
    bound = lower_bound(problem)
    assert perf_counter() - start < 1.0
    value = make_plan(problem, "topo-dp-orders").value
    gap, before = value / bound - 1, value / work_bound(problem) - 1
    assert gap <= before
    if objective == "bottleneck":
        assert gap < 0.7 * before
