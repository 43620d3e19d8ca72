"""Staging problems without special rules that have the same plans at the same values.

`children_together` is contracted away: what must share a stage becomes one node. Host operators
become accelerator operators without parameters. What they write comes from the host, as the
model's inputs do; what they read is fetched in any case, as the model's outputs are; empty
tensors keep the precedences.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coralline.errors import PlanError
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph

if TYPE_CHECKING:
    from coralline.staging.problem import StagingProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Costs:
    """What a problem's operators and edges cost, where graph and devices do not say it.

    Attributes:
        node_ms, cache_bytes: float64 (K, V), as the properties of `StagingProblem`.
        edge_weight: int64 (E,), likewise.
    """

    node_ms: Floats
    cache_bytes: Floats
    edge_weight: Ints


def reduce_problem(problem: StagingProblem) -> tuple[StagingProblem, Ints]:
    """A problem without `children_together` and host operators, and each operator's node in it.

    Returns:
        The problem, and int64 (V,) into its nodes.

    Raises:
        PlanError: With the children together there are fewer groups than stages.
    """
    graph = problem.graph
    groups = np.arange(graph.n_nodes)
    if not problem.children_together and not problem.host_operators:
        return problem, groups
    node_ms, cache_bytes, weight = problem.node_ms, problem.cache_bytes, problem.edge_weight
    merged = without_host(graph, problem.on_host) if problem.host_operators else graph
    if problem.children_together:
        groups = sibling_groups(graph)
        merged = contract(merged, groups)
        if merged.n_nodes < problem.n_stages:
            raise PlanError(
                f"with all children of a node in one stage {graph.name!r} has only "
                f"{merged.n_nodes} groups for {problem.n_stages} stages; ask for fewer stages"
            )
        by_group = np.argsort(groups, kind="stable")
        start = np.searchsorted(groups[by_group], np.arange(merged.n_nodes))
        node_ms = np.add.reduceat(node_ms[:, by_group], start, axis=1)
        cache_bytes = np.minimum.reduceat(cache_bytes[:, by_group], start, axis=1)
        u, v = groups[graph.edges.T]
        number = np.searchsorted(
            merged.edges @ [merged.n_nodes, 1], (u * merged.n_nodes + v)[u != v]
        )
        weight = np.bincount(number, weight[u != v], minlength=len(merged.edges)).astype(np.int64)
    reduced = replace(
        problem,
        graph=merged,
        children_together=False,
        host_operators=(),
        host=None,
        costs=Costs(node_ms, cache_bytes, weight),
    )
    return reduced, groups


def without_host(graph: ComputeGraph, on_host: NDArray[np.bool_]) -> ComputeGraph:
    """The graph as the accelerators see it: nodes and edges are the same, tensors are not.

    Args:
        on_host: bool (V,).
    """
    size: list[int] = []
    producer: list[int] = []
    consumers: list[list[int]] = []
    is_output: list[bool] = []

    def add(made_by: int, n_bytes: int, readers: list[int], given: bool) -> None:
        producer.append(made_by)
        size.append(n_bytes)
        consumers.append(readers)
        is_output.append(given)

    for t in range(graph.n_tensors):
        made_by, n_bytes = int(graph.tensor_producer[t]), int(graph.tensor_bytes[t])
        readers = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
        hosted = readers[on_host[readers]].tolist()
        others = readers[~on_host[readers]].tolist()
        given = bool(graph.tensor_is_output[t])
        if made_by == MODEL_INPUT:
            add(MODEL_INPUT, n_bytes, others, given)
        elif on_host[made_by]:
            add(MODEL_INPUT, n_bytes, others, False)
            add(made_by, 0, hosted + others, given)
        else:
            add(made_by, n_bytes, others, given or bool(hosted))
            if hosted:
                add(made_by, 0, hosted, False)
    return ComputeGraph.build(
        graph.name,
        node_names=graph.node_names,
        ops=graph.ops,
        param_bytes=np.where(on_host, 0, graph.param_bytes),
        macs=graph.macs,
        compute_ms=graph.compute_ms,
        tensor_bytes=size,
        tensor_producer=producer,
        consumers=consumers,
        tensor_is_output=is_output,
    )


def sibling_groups(graph: ComputeGraph) -> NDArray[np.int64]:
    """int64 (V,): a group number for each node such that all children of a node share one.

    Groups that would depend on each other in a cycle are joined. Groups are numbered in a
    topological order of the contracted graph.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [(c[0], w) for c in graph.successors if len(c) > 1 for w in c[1:]]
    n = graph.n_nodes
    group = np.arange(n)
    if pairs:
        a, b = np.array(pairs).T
        joined = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
        _, group = connected_components(joined, directed=False)
    u, v = graph.edges.T
    m = int(group.max()) + 1
    quotient = coo_array((np.ones(len(u), np.int8), (group[u], group[v])), shape=(m, m))
    _, strong = connected_components(quotient.tocsr(), directed=True, connection="strong")
    group = strong[group]
    contracted = contract(graph, group)
    rank = np.empty(contracted.n_nodes, np.int64)
    rank[contracted.topological_order] = np.arange(contracted.n_nodes)
    return rank[group]


def contract(graph: ComputeGraph, group: NDArray[np.int64]) -> ComputeGraph:
    """The graph in which each group of nodes, numbered from 0, is one node.

    Tensors that stay inside a group and are no outputs are dropped, except that a group keeps
    at least one tensor. `compute_ms` is the sum where every member has one; operator types
    are lost.
    """
    m = int(group.max()) + 1
    producer = np.where(
        graph.tensor_producer == MODEL_INPUT, MODEL_INPUT, group[graph.tensor_producer]
    )
    readers: list[Iterable[int]] = []
    for t in range(graph.n_tensors):
        nodes = graph.consumers[graph.consumer_start[t] : graph.consumer_start[t + 1]]
        readers.append(set(group[nodes].tolist()) - {int(producer[t])})
    first = {int(p): t for t, p in reversed(list(enumerate(producer)))}
    keep = [
        t
        for t in range(graph.n_tensors)
        if readers[t] or graph.tensor_is_output[t] or first[int(producer[t])] == t
    ]
    size = np.where(
        [bool(readers[t]) or graph.tensor_is_output[t] for t in keep], graph.tensor_bytes[keep], 0
    )
    names = [""] * m
    for node in range(graph.n_nodes - 1, -1, -1):
        names[group[node]] = graph.node_names[node]
    return ComputeGraph.build(
        graph.name,
        node_names=names,
        ops=[""] * m,
        param_bytes=np.bincount(group, weights=graph.param_bytes, minlength=m),
        macs=np.bincount(group, weights=graph.macs, minlength=m),
        compute_ms=np.bincount(group, weights=graph.compute_ms, minlength=m),
        tensor_bytes=size,
        tensor_producer=producer[keep],
        consumers=[readers[t] for t in keep],
        tensor_is_output=graph.tensor_is_output[keep],
    )
