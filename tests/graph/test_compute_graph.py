from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_strategies import graphs
from hypothesis import given

from coralline.errors import UserError
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph


def arguments(**change: Any) -> dict[str, Any]:
    """A chain a -> b -> c, fed by a model input."""
    return {
        "node_names": ["a", "b", "c"],
        "param_bytes": [1, 2, 3],
        "tensor_bytes": [9, 10, 20, 30],
        "tensor_producer": [MODEL_INPUT, 0, 1, 2],
        "consumers": [[0], [1], [2], []],
        **change,
    }


@given(graphs(max_nodes=8))
def test_derived_arrays_agree_with_each_other(graph: ComputeGraph) -> None:
    pairs = {
        (int(graph.tensor_producer[t]), int(v))
        for t, v in zip(graph.consumer_tensor, graph.consumers, strict=True)
        if graph.tensor_producer[t] != MODEL_INPUT
    }
    assert set(map(tuple, graph.edges.tolist())) == pairs
    assert {(u, v) for u, after in enumerate(graph.successors) for v in after} == pairs
    assert {(u, v) for v, before in enumerate(graph.predecessors) for u in before} == pairs
    position = np.argsort(graph.topological_order)
    assert all(position[u] < position[v] for u, v in pairs)
    for v in range(graph.n_nodes):
        before = [graph.level[u] for u in graph.predecessors[v]]
        assert graph.level[v] == max(before, default=-1) + 1
    written = np.zeros(graph.n_nodes, int)
    for t in range(graph.n_tensors):
        if graph.tensor_producer[t] != MODEL_INPUT:
            written[graph.tensor_producer[t]] += graph.tensor_bytes[t]
    assert graph.output_bytes.tolist() == written.tolist()


@given(graphs())
def test_equal_graphs_are_equal_however_their_tensors_were_listed(graph: ComputeGraph) -> None:
    # The order of one node's tensors is its own; nodes may come in any order.
    order = np.lexsort((np.arange(graph.n_tensors), -graph.tensor_producer))
    again = ComputeGraph.build(
        graph.name,
        node_names=graph.node_names,
        ops=graph.ops,
        param_bytes=graph.param_bytes,
        macs=graph.macs,
        compute_ms=graph.compute_ms,
        tensor_bytes=graph.tensor_bytes[order],
        tensor_producer=graph.tensor_producer[order],
        consumers=[
            graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]] for t in order
        ],
        tensor_is_output=graph.tensor_is_output[order],
    )
    assert again == graph and hash(again) == hash(graph)


def test_any_change_makes_another_graph() -> None:
    graph = ComputeGraph.build("g", **arguments())
    for change in (
        {"node_names": ["a", "b", "x"]},
        {"param_bytes": [1, 2, 4]},
        {"tensor_bytes": [9, 10, 20, 31]},
        {"macs": [0, 0, 1]},
        {"tensor_is_output": [False, True, False, True]},
    ):
        assert ComputeGraph.build("g", **arguments(**change)) != graph
    assert graph.with_compute_ms([1.0, 1.0, 1.0]) != graph


def test_arrays_are_read_only() -> None:
    graph = ComputeGraph.build("g", **arguments())
    for array in (graph.param_bytes, graph.tensor_bytes, graph.edges, graph.topological_order):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "node_names": [],
                "param_bytes": [],
                "tensor_bytes": [],
                "tensor_producer": [],
                "consumers": [],
            },
            "has no operators",
        ),
        ({"ops": ["x"]}, "ops has 1 entries for 3 operators"),
        ({"macs": [1, 2]}, "macs has 2 entries for 3 operators"),
        ({"consumers": [[0], [1], [2]]}, "the tensor arrays differ in length"),
        ({"param_bytes": [1, -2, 3]}, r"param_bytes of node 1 \('b'\) is negative"),
        ({"compute_ms": [1, 2, np.inf]}, r"compute_ms of node 2 \('c'\) is infinite"),
        ({"tensor_bytes": [9, 10, -1, 30]}, "tensor 2 has a negative size"),
        ({"tensor_producer": [MODEL_INPUT, 0, 1, 7]}, "tensor 3 names producer 7.*0 to 2"),
        ({"consumers": [[0], [1], [5], []]}, "tensor 2 names consumer 5.*0 to 2"),
        ({"tensor_producer": [MODEL_INPUT, 0, 0, 1]}, r"node 2 \('c'\) writes no tensor"),
        ({"consumers": [[0], [1], [2], [1]]}, "cycle b -> c -> b; remove an edge"),
    ],
)
def test_a_wrong_graph_names_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"graph 'g': .*{message}"):
        ComputeGraph.build("g", **arguments(**change))


def test_a_cycle_is_named_without_what_merely_leads_to_it() -> None:
    with pytest.raises(UserError, match=r"cycle (b -> c -> b|c -> b -> c); "):
        ComputeGraph.build(
            "g",
            node_names=["a", "b", "c", "d"],
            param_bytes=[0] * 4,
            tensor_bytes=[0] * 4,
            tensor_producer=range(4),
            consumers=[[1], [2, 3], [1], []],
        )
