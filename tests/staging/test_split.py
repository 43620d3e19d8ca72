from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from graph_strategies import graphs, problems
from hypothesis import given
from hypothesis import strategies as st

from coralline.graph.compute_graph import ComputeGraph
from coralline.staging import StagingProblem, evaluate
from coralline.staging.orders import priority_order, stack_order
from coralline.staging.split import split_arguments, split_order, split_value


@given(problems(max_nodes=7), st.integers(0, 2**32 - 1))
def test_the_split_is_the_best_of_all_contiguous_ones(problem: StagingProblem, seed: int) -> None:
    problem = replace(problem, children_together=False)
    n, k = problem.graph.n_nodes, problem.n_stages
    order = priority_order(problem.graph, np.random.default_rng(seed).random(n))
    values = []
    for cuts in itertools.combinations(range(1, n), k - 1):
        stage = np.empty(n, np.int64)
        stage[order] = np.searchsorted(cuts, np.arange(n), side="right")
        values.append(evaluate(problem, stage).value)
    found = evaluate(problem, split_order(problem, order)).value
    assert found == pytest.approx(min(values), rel=1e-9, abs=1e-12)
    assert split_value(split_arguments(problem), order) == pytest.approx(found, rel=1e-9, abs=1e-12)


@given(graphs(max_nodes=8), st.integers(0, 2**32 - 1))
def test_orders_put_producers_before_consumers(graph: ComputeGraph, seed: int) -> None:
    priority = np.random.default_rng(seed).random(graph.n_nodes)
    for order in (stack_order(graph), priority_order(graph, priority)):
        position = np.empty(graph.n_nodes, np.int64)
        position[order] = np.arange(graph.n_nodes)
        assert sorted(order.tolist()) == list(range(graph.n_nodes))
        assert (position[graph.edges[:, 0]] < position[graph.edges[:, 1]]).all()


def test_the_stack_order_goes_deep_first_and_leaves_outputs_for_last() -> None:
    # 0 -> 1 -> 2 -> 5,  0 -> 3 (an output),  0 -> 4 -> 5
    graph = ComputeGraph.build(
        "g",
        param_bytes=[0] * 6,
        tensor_bytes=[0] * 6,
        tensor_producer=range(6),
        consumers=[[1, 3, 4], [2], [5], [], [5], []],
    )
    assert stack_order(graph).tolist() == [0, 4, 1, 2, 3, 5]
