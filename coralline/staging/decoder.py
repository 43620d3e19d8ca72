"""Running the policy network: what it reads of a problem, the encoder, and decoding orders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from coralline.devices.model import MIB
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging.bounds import work_bound
from coralline.staging.policy import CLIP, N_CONTEXT, N_DYNAMIC, Arrays
from coralline.staging.problem import StagingProblem


@dataclass(frozen=True)
class PolicyInput:
    """What the network reads of a problem; V nodes, T tensors, C readings.

    Attributes:
        features: float32 (V, N_FEATURES): see `policy_input`.
        predecessor_mean, successor_mean: float32 (V, V) sparse: rows average over neighbours.
        tensors: The arrays that `decode` walks.
    """

    features: NDArray[np.float32]
    predecessor_mean: csr_array
    successor_mean: csr_array
    tensors: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Rollouts:
    """Orders of one graph; S orders of V nodes.

    Attributes:
        order: int64 (S, V).
        log_probability: float64 (S,): of the order under the policy at temperature 1.
        context: float32 (S, V, N_CONTEXT): the sums in each step's query.
        dynamic: float32 (S, V, V, N_DYNAMIC): for each step and ready node, what depends on the
            choices so far. Empty unless recorded, as is `ready`.
        ready: bool (S, V, V): which nodes each step could choose.
    """

    order: NDArray[np.int64]
    log_probability: NDArray[np.float64]
    context: NDArray[np.float32]
    dynamic: NDArray[np.float32]
    ready: NDArray[np.bool_]


def policy_input(problem: StagingProblem) -> PolicyInput:
    """The problem as the network reads it.

    Times are in units of the problem's bound from work on the bottleneck and sums in shares, so
    that neither the speed of the device nor the size of the model matters by itself. Features:
    compute time, parameters against the cache, cost of sending the node's tensors across a
    border, cost of those it reads; the first three also against their mean; longest path from
    the start and from the end, counted in nodes and in compute time; numbers of neighbours;
    whether it writes an output; and for the whole problem the number of stages, V, parameters
    against all caches, overhead and compute against the bound, mean cost of a border.
    """
    graph, device, k = problem.graph, problem.devices[0], problem.n_stages
    n = graph.n_nodes
    scale = work_bound(replace(problem, objective="bottleneck")) or 1.0
    mib = graph.tensor_bytes / MIB / scale
    in_ms, out_ms = mib * device.in_ms_per_mib, mib * device.out_ms_per_mib
    producer = graph.tensor_producer
    inner = producer != MODEL_INPUT
    # What a border costs that the tensor crosses; an output is fetched in any case.
    border = in_ms + np.where(inner & ~graph.tensor_is_output, out_ms, 0.0)
    is_read = np.diff(graph.consumer_start) > 0
    opens = np.bincount(producer[inner], (border * is_read)[inner], minlength=n)
    reads = np.bincount(graph.consumers, border[graph.consumer_tensor], minlength=n)
    compute = problem.node_ms[0] / scale
    params = graph.param_bytes / max(device.parameter_cache_bytes, 1)
    u, v = graph.edges.T
    ones = np.ones(len(u), np.float32)
    forward = csr_array((ones, (v, u)), shape=(n, n))
    backward = csr_array((ones, (u, v)), shape=(n, n))
    # Copies, so that both calls of the compiled function have one signature: processes that
    # compile at the same time may mix up the signatures in numba's cache and then crash.
    order = np.array(graph.topological_order)
    nodes_down, time_down = _depth(order, forward.indptr, forward.indices, compute)
    nodes_up, time_up = _depth(order[::-1].copy(), backward.indptr, backward.indices, compute)
    n_in, n_out = np.diff(forward.indptr), np.diff(backward.indptr)
    writes_output = np.bincount(producer[inner], graph.tensor_is_output[inner], minlength=n) > 0

    def against_mean(x: NDArray[Any]) -> NDArray[np.float64]:
        return np.log1p(x / (x.mean() or 1.0))

    of_graph = [
        k / 8,
        np.log(n) / 8,
        np.log1p(params.sum() / k),
        device.stage_overhead_ms / scale,
        compute.sum() / k,
        np.log1p(border.mean()),
    ]
    columns = [
        compute,
        np.minimum(params, 4.0),
        np.log1p(opens),
        np.log1p(reads),
        against_mean(compute),
        against_mean(params),
        against_mean(opens),
        nodes_down / (nodes_down.max() or 1.0),
        nodes_up / (nodes_up.max() or 1.0),
        time_down / (time_down.max() or 1.0),
        time_up / (time_up.max() or 1.0),
        np.log1p(n_in),
        np.log1p(n_out),
        writes_output,
        *(np.full(n, x) for x in of_graph),
    ]
    return PolicyInput(
        features=np.stack(columns, axis=1).astype(np.float32),
        predecessor_mean=_row_mean(forward, n_in),
        successor_mean=_row_mean(backward, n_out),
        tensors=(*_tensor_walk(graph), border, _share(compute), _share(params), np.array([k])),
    )


def _row_mean(adjacency: csr_array, degree: NDArray[Any]) -> csr_array:
    mean = adjacency.copy()
    mean.data /= np.repeat(np.maximum(degree, 1), degree).astype(np.float32)
    return mean


def _share(x: NDArray[np.float64]) -> NDArray[np.float64]:
    total = x.sum()
    return x / total if total > 0 else np.full(len(x), 1 / len(x))


def _tensor_walk(graph: ComputeGraph) -> tuple[NDArray[Any], ...]:
    """Which tensors each node writes and reads, and who reads each tensor, as row starts."""
    n = graph.n_nodes
    # Tensors are in the order of their producers.
    write_start = np.searchsorted(graph.tensor_producer, np.arange(n + 1))
    by_reader = np.argsort(graph.consumers, kind="stable")
    read_start = np.searchsorted(graph.consumers[by_reader], np.arange(n + 1))
    return (
        graph.tensor_producer,
        write_start,
        read_start,
        graph.consumer_tensor[by_reader],
        graph.consumer_start,
        graph.consumers,
    )


@numba.njit(cache=True, nogil=True)
def _depth(order, start, neighbour, weight):  # type: ignore[no-untyped-def]
    """Longest path that ends before each node, in nodes and in weight."""
    nodes, weighted = np.zeros(len(order)), np.zeros(len(order))
    for v in order:
        for e in range(start[v], start[v + 1]):
            u = neighbour[e]
            nodes[v] = max(nodes[v], nodes[u] + 1)
            weighted[v] = max(weighted[v], weighted[u] + weight[u])
    return nodes, weighted


def project(weights: Arrays, inputs: PolicyInput) -> tuple[NDArray[np.float32], ...]:
    """Run the encoder; what `decode` needs of it.

    Returns:
        keys, last, chosen: float32 (V, H): scores are products with keys; the query takes
            `last` of the node chosen last and the mean of `chosen` over all chosen nodes.
        graph, start: float32 (H,): the query's constant part, and `last` of the first step.
        context, dynamic: float32 (N_CONTEXT, H) and (H, N_DYNAMIC).
    """
    h = _normal(np.maximum(inputs.features @ weights["input.w"] + weights["input.b"], 0.0))
    layer = 0
    while f"layer{layer}.b" in weights:
        update = (
            h @ weights[f"layer{layer}.self"]
            + (inputs.predecessor_mean @ h) @ weights[f"layer{layer}.predecessors"]
            + (inputs.successor_mean @ h) @ weights[f"layer{layer}.successors"]
            + h.mean(axis=0) @ weights[f"layer{layer}.graph"]
            + weights[f"layer{layer}.b"]
        )
        h = _normal(h + np.maximum(update, 0.0))
        layer += 1
    return (
        h @ weights["key"] / np.float32(np.sqrt(h.shape[1])),
        h @ weights["query.last"],
        h @ weights["query.chosen"],
        h.mean(axis=0) @ weights["query.graph"] + weights["query.b"],
        weights["query.start"],
        weights["query.context"],
        weights["dynamic"],
    )


def _normal(h: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = h - h.mean(axis=1, keepdims=True)
    deviation: NDArray[np.float32] = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return centred / deviation


def decode(
    inputs: PolicyInput,
    projected: tuple[NDArray[np.float32], ...],
    uniform: NDArray[np.float64],
    *,
    n_greedy: int = 0,
    record: bool = False,
) -> Rollouts:
    """Decode orders, one for each row of `uniform`, float64 (S, V) in [0, 1).

    Args:
        projected: From `project`.
        n_greedy: The first so many orders take the likeliest node (the first of equals).
        record: Keep what training needs to compute the orders' probability again.
    """
    s, n = uniform.shape
    kept = n if record else 0
    order = np.empty((s, n), np.int64)
    log_probability = np.zeros(s)
    context = np.empty((s, n, N_CONTEXT), np.float32)
    dynamic = np.zeros((s, kept, n, N_DYNAMIC), np.float32)
    ready = np.zeros((s, kept, n), np.bool_)
    _decode(
        *inputs.tensors,
        *(np.ascontiguousarray(p, np.float32) for p in projected),
        uniform,
        n_greedy,
        order,
        log_probability,
        context,
        dynamic,
        ready,
    )
    return Rollouts(order, log_probability, context, dynamic, ready)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _decode(  # type: ignore[no-untyped-def]
    producer,
    write_start,
    read_start,
    read_tensor,
    consumer_start,
    consumers,
    border,
    compute_share,
    param_share,
    n_stages,
    keys,
    last,
    chosen,
    graph,
    start,
    context_weight,
    dynamic_weight,
    uniform,
    n_greedy,
    order,
    log_probability,
    context,
    dynamic,
    ready,
):
    n, h = keys.shape
    k = n_stages[0]
    two_pi = 2 * np.pi
    record = ready.shape[1] > 0
    waits = np.empty(n, np.int64)
    unread = np.empty(len(producer), np.int64)
    since = np.empty(n, np.int64)
    candidates = np.empty(n, np.int64)
    scores = np.empty(n, np.float64)
    query = np.empty(h, np.float32)
    dyn = np.empty(dynamic_weight.shape[1], np.float32)
    slope = np.empty(dynamic_weight.shape[1], np.float32)
    total = np.empty(h, np.float32)
    for s in range(len(uniform)):
        open_cost = 0.0
        for t in range(len(producer)):
            unread[t] = consumer_start[t + 1] - consumer_start[t]
            if producer[t] < 0 and unread[t] > 0:
                open_cost += border[t]
        n_ready = 0
        for v in range(n):
            waits[v] = 0
            for r in range(read_start[v], read_start[v + 1]):
                if producer[read_tensor[r]] >= 0:
                    waits[v] += 1
            since[v] = 0
            if waits[v] == 0:
                candidates[n_ready] = v
                n_ready += 1
        total[:] = 0.0
        computed = stored = 0.0
        previous = -1
        for step in range(n):
            ctx = context[s, step]
            ctx[0] = step / n
            ctx[1] = computed
            ctx[2] = stored
            ctx[3] = np.log1p(open_cost)
            ctx[4] = np.sin(two_pi * k * computed)
            ctx[5] = np.cos(two_pi * k * computed)
            ctx[6] = np.sin(two_pi * k * stored)
            ctx[7] = np.cos(two_pi * k * stored)
            for i in range(h):
                x = graph[i] + (start[i] if previous < 0 else last[previous, i])
                x += total[i] / max(step, 1)
                for c in range(len(ctx)):
                    x += ctx[c] * context_weight[c, i]
                query[i] = max(x, np.float32(0.0))
            for d in range(len(dyn)):
                slope[d] = 0.0
                for i in range(h):
                    slope[d] += query[i] * dynamic_weight[i, d]
            top = -np.inf
            for c in range(n_ready):
                v = candidates[c]
                opens = np.float32(0.0)
                for t in range(write_start[v], write_start[v + 1]):
                    if unread[t] > 0:
                        opens += border[t]
                closes = np.float32(0.0)
                follows = np.float32(0.0)
                for r in range(read_start[v], read_start[v + 1]):
                    t = read_tensor[r]
                    if unread[t] == 1:
                        closes += border[t]
                    if previous >= 0 and producer[t] == previous:
                        follows = np.float32(1.0)
                dyn[0] = np.log1p(opens)
                dyn[1] = np.log1p(closes)
                dyn[2] = follows
                dyn[3] = (step - since[v]) / n
                x = np.float32(0.0)
                for i in range(h):
                    x += query[i] * keys[v, i]
                for d in range(len(dyn)):
                    x += slope[d] * dyn[d]
                scores[c] = CLIP * np.tanh(x / CLIP)
                top = max(top, scores[c])
                if record:
                    ready[s, step, v] = True
                    dynamic[s, step, v] = dyn
            mass = 0.0
            for c in range(n_ready):
                mass += np.exp(scores[c] - top)
            pick = -1
            if s < n_greedy:
                for c in range(n_ready):
                    if scores[c] == top and (pick < 0 or candidates[c] < candidates[pick]):
                        pick = c
            else:
                left = uniform[s, step] * mass
                for c in range(n_ready):
                    pick = c
                    left -= np.exp(scores[c] - top)
                    if left < 0:
                        break
            log_probability[s] += scores[pick] - top - np.log(mass)
            v = candidates[pick]
            n_ready -= 1
            candidates[pick] = candidates[n_ready]
            order[s, step] = v
            for r in range(read_start[v], read_start[v + 1]):
                t = read_tensor[r]
                unread[t] -= 1
                if unread[t] == 0:
                    open_cost -= border[t]
            for t in range(write_start[v], write_start[v + 1]):
                if unread[t] > 0:
                    open_cost += border[t]
                for c in range(consumer_start[t], consumer_start[t + 1]):
                    w = consumers[c]
                    waits[w] -= 1
                    if waits[w] == 0:
                        candidates[n_ready] = w
                        n_ready += 1
                        since[w] = step + 1
            computed += compute_share[v]
            stored += param_share[v]
            for i in range(h):
                total[i] += chosen[v, i]
            previous = v
