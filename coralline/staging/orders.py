"""Topological orders of a graph."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from coralline.graph.compute_graph import ComputeGraph


def stack_order(graph: ComputeGraph) -> NDArray[np.int64]:
    """int64 (V,): libcoral's order, depth first with a stack.

    Operators without successors go to the bottom of the stack, so the model's outputs come as
    late as possible. libcoral meets the successors of an operator in the order of a hash map;
    here they are pushed by rising number. Source: `TopologicalSort` in
    https://github.com/google-coral/libcoral, coral/tools/partitioner/utils.cc.
    """
    waiting = [len(p) for p in graph.predecessors]
    stack = [v for v in range(graph.n_nodes) if waiting[v] == 0]
    # What goes below the stack comes up again in the order in which it went there.
    bottom: deque[int] = deque()
    order = []
    while stack or bottom:
        v = stack.pop() if stack else bottom.popleft()
        order.append(v)
        for w in graph.successors[v]:
            waiting[w] -= 1
            if waiting[w] == 0:
                (stack if graph.successors[w] else bottom).append(w)
    return np.array(order, np.int64)


def priority_order(graph: ComputeGraph, priority: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64 (V,): the topological order that takes the smallest ready priority, float64 (V,)."""
    key = priority.tolist()
    waiting = [len(p) for p in graph.predecessors]
    ready = [(key[v], v) for v in range(graph.n_nodes) if waiting[v] == 0]
    heapify(ready)
    order = []
    while ready:
        _, v = heappop(ready)
        order.append(v)
        for w in graph.successors[v]:
            waiting[w] -= 1
            if waiting[w] == 0:
                heappush(ready, (key[w], w))
    return np.array(order, np.int64)
