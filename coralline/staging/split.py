"""The best contiguous split of one topological order into stages, by dynamic programming.

For every start i of a stage the cost of the stage [i, j) is extended from j to j + 1 in time
proportional to the tensors touched, so all costs take O(V (V + C)) and the programme
O(V^2 K), for V operators, C tensor readings and K stages.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB, load_device
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging.problem import StagingProblem

BOTTLENECK, LATENCY, PEAK = 0, 1, 2
_MODE = {"bottleneck": BOTTLENECK, "latency": LATENCY, "peak-memory": PEAK}


def split_order(problem: StagingProblem, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The optimal stages, int64 (V,), among those that cut `order` into K runs.

    Args:
        order: int64 (V,): a topological order of the problem's graph.
    """
    # A copy, since the kernel is compiled apart for arrays that are read-only.
    stage, _ = _split(np.array(order, np.int64), np.inf, *split_arguments(problem))
    return stage


def split_value(arguments: tuple[Any, ...], order: NDArray[np.int64]) -> float:
    """The objective of `split_order`, for callers that try many orders of one problem.

    Args:
        arguments: `split_arguments` of the problem.
    """
    return float(_split(np.array(order, np.int64), np.inf, *arguments)[1])


def search_orders(
    arguments: tuple[Any, ...], order: NDArray[np.int64], steps: int, seed: int
) -> NDArray[np.int64]:
    """A topological order, int64 (V,), whose best split is at least as good as that of `order`.

    Local search: the order in which a few operators are due is changed at random, the order is
    made topological by taking the ready operator that is due first, and it stays if its split
    is not worse. Before the first step a breadth-first and a depth-first order are tried.

    Args:
        arguments: `split_arguments` of the problem.
        steps: Orders to try.
    """
    return _search_orders(np.array(order, np.int64), steps, seed, *arguments)


@cache
def compile_split() -> None:
    """Compile the kernel, or load it from numba's cache."""
    graph = ComputeGraph.build(
        "one", param_bytes=[0], tensor_bytes=[0], tensor_producer=[0], consumers=[[]]
    )
    problem = StagingProblem(graph, 1, load_device("edgetpu-usb"))
    split_order(problem, graph.topological_order)
    search_orders(split_arguments(problem), graph.topological_order, 0, 0)


def split_arguments(problem: StagingProblem) -> tuple[Any, ...]:
    """The problem as the compiled kernel reads it."""
    graph, device = problem.graph, problem.devices[0]
    return (
        problem.n_stages,
        _MODE[problem.objective],
        problem.node_ms[0],
        graph.param_bytes,
        graph.tensor_producer,
        graph.consumer_start,
        graph.consumers,
        graph.tensor_is_output,
        graph.tensor_bytes / MIB * device.in_ms_per_mib,
        graph.tensor_bytes / MIB * device.out_ms_per_mib,
        float(device.stage_overhead_ms),
        float(device.parameter_cache_bytes),
        float(device.stream_ms_per_mib / MIB),
    )


@numba.njit(cache=True, nogil=True)
def _split(  # type: ignore[no-untyped-def]
    order,
    upper,
    n_stages,
    mode,
    node_ms,
    param_bytes,
    producer,
    consumer_start,
    consumers,
    is_output,
    in_ms,
    out_ms,
    overhead_ms,
    cache_bytes,
    stream_ms,
):
    n, n_tensors = len(order), len(producer)
    position = np.empty(n, np.int64)
    for p in range(n):
        position[order[p]] = p

    # Reading tensor t at position p brings it into the stage [i, j) when i is past both its
    # producer and its previous reader: `after` is the larger of the two.
    n_reads = len(consumers)
    read_start = np.zeros(n + 1, np.int64)
    for c in range(n_reads):
        read_start[position[consumers[c]] + 1] += 1
    for p in range(n):
        read_start[p + 1] += read_start[p]
    fill = read_start[:-1].copy()
    read_after = np.empty(n_reads, np.int64)
    read_ms = np.empty(n_reads, np.float64)
    # Leaving: a tensor is fetched from its producer's stage until its last reader joins it.
    leaves_ms = np.zeros(n, np.float64)
    close_start = np.zeros(n + 1, np.int64)
    last = np.full(n_tensors, -1, np.int64)
    for t in range(n_tensors):
        lo, hi = consumer_start[t], consumer_start[t + 1]
        at = np.empty(hi - lo, np.int64)
        for c in range(lo, hi):
            at[c - lo] = position[consumers[c]]
        at.sort()
        previous = position[producer[t]] if producer[t] >= 0 else -1
        for p in at:
            slot = fill[p]
            read_after[slot] = previous
            read_ms[slot] = in_ms[t]
            fill[p] += 1
            previous = p
        if producer[t] >= 0:
            if is_output[t] or hi > lo:
                leaves_ms[position[producer[t]]] += out_ms[t]
            if not is_output[t] and hi > lo:
                last[t] = previous
                close_start[previous + 1] += 1
    for p in range(n):
        close_start[p + 1] += close_start[p]
    fill = close_start[:-1].copy()
    close_producer = np.empty(close_start[n], np.int64)
    close_ms = np.empty(close_start[n], np.float64)
    for t in range(n_tensors):
        if last[t] >= 0:
            slot = fill[last[t]]
            close_producer[slot] = position[producer[t]]
            close_ms[slot] = out_ms[t]
            fill[last[t]] += 1

    best = np.full((n_stages + 1, n + 1), np.inf)
    came_from = np.full((n_stages + 1, n + 1), -1, np.int64)
    best[0, 0] = 0.0
    for i in range(n):
        compute = overhead_ms
        params = 0.0
        moved = 0.0
        for p in range(i, n):
            v = order[p]
            compute += node_ms[v]
            params += param_bytes[v]
            for r in range(read_start[p], read_start[p + 1]):
                if read_after[r] < i:
                    moved += read_ms[r]
            moved += leaves_ms[p]
            for c in range(close_start[p], close_start[p + 1]):
                if close_producer[c] >= i:
                    moved -= close_ms[c]
            if mode == PEAK:
                floor = cost = params
            else:
                floor = compute + max(params - cache_bytes, 0.0) * stream_ms
                cost = floor + moved
            # Both parts of the floor only grow with p.
            if mode != LATENCY and floor > min(best[n_stages, n], upper):
                break
            for s in range(min(n_stages, i + 1)):
                before = best[s, i]
                value = before + cost if mode == LATENCY else max(before, cost)
                if value < best[s + 1, p + 1]:
                    best[s + 1, p + 1] = value
                    came_from[s + 1, p + 1] = i

    stage = np.empty(n, np.int64)
    end = n
    for s in range(n_stages, 0, -1):
        start = came_from[s, end]
        for p in range(start, end):
            stage[order[p]] = s - 1
        end = start
    return stage, best[n_stages, n]


@numba.njit(cache=True, nogil=True)
def _search_orders(  # type: ignore[no-untyped-def]
    order,
    steps,
    seed,
    n_stages,
    mode,
    node_ms,
    param_bytes,
    producer,
    consumer_start,
    consumers,
    is_output,
    in_ms,
    out_ms,
    overhead_ms,
    cache_bytes,
    stream_ms,
):
    np.random.seed(seed)
    n = len(order)
    first_read = np.zeros(n + 1, np.int64)
    waits = np.zeros(n, np.int64)
    for t in range(len(producer)):
        if producer[t] >= 0:
            # Tensors are in the order of their producers.
            first_read[producer[t] + 1] = consumer_start[t + 1]
            for c in range(consumer_start[t], consumer_start[t + 1]):
                waits[consumers[c]] += 1
        else:
            first_read[0] = consumer_start[t + 1]
    due = np.empty(n, np.float64)
    level = np.zeros(n, np.float64)
    for p in range(n):
        v = order[p]
        due[v] = p
        for c in range(first_read[v], first_read[v + 1]):
            level[consumers[c]] = max(level[consumers[c]], level[v] + 1)
    best_order, best, trial = order, np.inf, due
    for step in range(-3, steps):
        depth_first = step == -1
        if step == -2:
            trial = level
        elif step >= 0:
            trial = due.copy()
            reach = n * 0.5 ** (8 * np.random.random())
            for _ in range(1 + np.random.randint(4)):
                trial[np.random.randint(n)] += reach * np.random.normal()
        found = _due_order(trial, depth_first, first_read, consumers, waits)
        _, value = _split(
            found,
            best,
            n_stages,
            mode,
            node_ms,
            param_bytes,
            producer,
            consumer_start,
            consumers,
            is_output,
            in_ms,
            out_ms,
            overhead_ms,
            cache_bytes,
            stream_ms,
        )
        if value < best or (value == best and step >= 0):
            best_order, best = found, value
            for p in range(n):
                due[found[p]] = p
    return best_order


@numba.njit(cache=True, nogil=True)
def _due_order(due, depth_first, first_read, consumers, all_waits):  # type: ignore[no-untyped-def]
    """The topological order of the ready node that is due first, or was ready last."""
    n = len(due)
    waits = all_waits.copy()
    ready = np.empty(n, np.int64)
    n_ready = 0
    for v in range(n):
        if waits[v] == 0:
            ready[n_ready] = v
            n_ready += 1
    order = np.empty(n, np.int64)
    for p in range(n):
        pick = n_ready - 1
        if not depth_first:
            for i in range(n_ready):
                x, y = ready[i], ready[pick]
                if due[x] < due[y] or (due[x] == due[y] and x < y):
                    pick = i
        v = ready[pick]
        n_ready -= 1
        ready[pick] = ready[n_ready]
        order[p] = v
        for c in range(first_read[v], first_read[v + 1]):
            w = consumers[c]
            waits[w] -= 1
            if waits[w] == 0:
                ready[n_ready] = w
                n_ready += 1
    return order
