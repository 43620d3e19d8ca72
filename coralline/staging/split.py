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

_BOTTLENECK, _LATENCY, _PEAK = 0, 1, 2
_MODE = {"bottleneck": _BOTTLENECK, "latency": _LATENCY, "peak-memory": _PEAK}


def split_order(problem: StagingProblem, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The optimal stages, int64 (V,), among those that cut `order` into K runs.

    Args:
        order: int64 (V,): a topological order of the problem's graph.
    """
    # A copy, since the kernel is compiled apart for arrays that are read-only.
    stage, _ = _split(np.array(order, np.int64), *split_arguments(problem))
    return stage


def split_value(arguments: tuple[Any, ...], order: NDArray[np.int64]) -> float:
    """The objective of `split_order`, for callers that try many orders of one problem.

    Args:
        arguments: `split_arguments` of the problem.
    """
    return float(_split(np.array(order, np.int64), *arguments)[1])


@cache
def compile_split() -> None:
    """Compile the kernel, or load it from numba's cache."""
    graph = ComputeGraph.build(
        "one", param_bytes=[0], tensor_bytes=[0], tensor_producer=[0], consumers=[[]]
    )
    problem = StagingProblem(graph, 1, load_device("edgetpu-usb"))
    split_order(problem, graph.topological_order)


def split_arguments(problem: StagingProblem) -> tuple[Any, ...]:
    """The problem as the compiled kernel reads it."""
    graph, device = problem.graph, problem.device
    return (
        problem.n_stages,
        _MODE[problem.objective],
        problem.node_ms,
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
            if mode == _PEAK:
                floor = cost = params
            else:
                floor = compute + max(params - cache_bytes, 0.0) * stream_ms
                cost = floor + moved
            # Both parts of the floor only grow with p.
            if mode != _LATENCY and floor > best[n_stages, n]:
                break
            for s in range(min(n_stages, i + 1)):
                before = best[s, i]
                value = before + cost if mode == _LATENCY else max(before, cost)
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
