from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from graph_strategies import graphs, problems_with_options
from hypothesis import given
from hypothesis import strategies as st

from coralline.devices.model import load_device
from coralline.errors import PlanError
from coralline.graph import synthetic
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging import OBJECTIVES, Objective, StagingProblem, evaluate
from coralline.staging.orders import priority_order, stack_order
from coralline.staging.reduction import reduce_problem
from coralline.staging.split import _split, split_arguments, split_order, split_value


@given(problems_with_options(max_nodes=7), st.integers(0, 2**32 - 1))
def test_the_split_is_the_best_of_all_contiguous_ones(problem: StagingProblem, seed: int) -> None:
    problem = replace(problem, children_together=False)
    problem, _ = reduce_problem(problem)
    n, k = problem.graph.n_nodes, problem.n_stages
    order = priority_order(problem.graph, np.random.default_rng(seed).random(n))
    keys = [(np.inf, 0)]
    for cuts in itertools.combinations(range(1, n), k - 1):
        stage = np.empty(n, np.int64)
        stage[order] = np.searchsorted(cuts, np.arange(n), side="right")
        with suppress(PlanError):
            keys.append(evaluate(problem, stage).key)
    value, crossings = min(keys)
    found = split_value(split_arguments(problem), order)
    assert found == pytest.approx(value, rel=1e-8, abs=1e-12)
    if value == np.inf:
        with pytest.raises(PlanError, match="limit"):
            split_order(problem, order)
    else:
        split = evaluate(problem, split_order(problem, order))
        assert split.value == pytest.approx(value, rel=1e-8, abs=1e-12)
        assert split.key[1] == crossings


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_long_orders_split_as_well_with_a_bound_as_without(objective: Objective) -> None:
    """The first pass over few borders, and the bound it gives, lose nothing."""
    for seed, graph in enumerate(synthetic.generate("cell", 3, 200, seed=1)):
        device = load_device("edgetpu-usb")
        limit = int(graph.param_bytes.sum() / 4) + int(graph.param_bytes.max())
        for memory in (None, limit):
            problem = StagingProblem(graph, 6, device, objective, memory_limit_bytes=memory)
            order = priority_order(graph, np.random.default_rng(seed).random(200))
            arguments = split_arguments(problem)
            stage, value = _split(order, np.inf, arguments)
            assert evaluate(problem, stage).value == pytest.approx(value, rel=1e-12)
            # With a bound above every value there is no first pass.
            assert _split(order, 1e300, arguments)[1] == pytest.approx(value, rel=1e-8)


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
