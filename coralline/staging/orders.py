"""Topological orders of a graph."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph


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


def least_live_order(graph: ComputeGraph) -> NDArray[np.int64]:
    """int64 (V,): the topological order that keeps few bytes of tensors alive.

    Of the ready operators it takes the one after which the fewest bytes are still to be read:
    what the operator writes for others opens, what it reads as the last reader closes. Between
    equal ones the smaller number goes first.
    """
    producer, size = graph.tensor_producer.tolist(), graph.tensor_bytes.tolist()
    readers = [
        set(graph.consumers[a:b].tolist()) if v != MODEL_INPUT else set()
        for v, a, b in zip(
            producer, graph.consumer_start[:-1], graph.consumer_start[1:], strict=True
        )
    ]
    read: list[list[int]] = [[] for _ in range(graph.n_nodes)]
    growth = [0] * graph.n_nodes
    for t, waiting_for in enumerate(readers):
        for v in waiting_for:
            read[v].append(t)
        if waiting_for:
            growth[producer[t]] += size[t]
        if len(waiting_for) == 1:
            growth[next(iter(waiting_for))] -= size[t]
    waiting = [len(p) for p in graph.predecessors]
    ready = [(growth[v], v) for v in range(graph.n_nodes) if waiting[v] == 0]
    heapify(ready)
    done = [False] * graph.n_nodes
    order = []
    while ready:
        _, v = heappop(ready)
        # Growth only falls, so the first entry of an operator that comes up is the valid one.
        if done[v]:
            continue
        done[v] = True
        order.append(v)
        for t in read[v]:
            readers[t].discard(v)
            if len(readers[t]) == 1:
                (w,) = readers[t]
                growth[w] -= size[t]
                if waiting[w] == 0:
                    heappush(ready, (growth[w], w))
        for w in graph.successors[v]:
            waiting[w] -= 1
            if waiting[w] == 0:
                heappush(ready, (growth[w], w))
    return np.array(order, np.int64)
