"""Lower bounds on every plan of a problem.

`work_bound` shares out the work. `cut_bound` adds what every plan must move. Let a plan have K
stages and let D_s, s = 1 .. K - 1, be the operators before the s-th border between stages; D_s
contains the ancestors of its operators. A tensor crosses border s when its producer is in D_s
and a reader is not. One that crosses any border is fetched once and sent once or more: that
costs c_t, its out + in ms (in alone if it is an output of the model, which is fetched in any
case). Tensors that the model is given count as 0.

**Cuts.** Spread each c_t over the borders: c_ts >= 0 with sum_s c_ts <= c_t. Then

    transfers >= sum_t c_t [t crosses some border] >= sum_s sum_t c_ts [t crosses s]
              >= sum_s mincut_s

where mincut_s is the least sum_t c_ts [t crosses s] over all sets that D_s may be, which a
maximum flow finds. No order of the operators enters: it holds for every plan.

**What D_s may be.** In a plan whose slowest stage takes T or less, operator v and its ancestors
are in the stages up to v's, so these have room for them at T each: that gives the first stage
of v. Its descendants give the last. An operator whose last stage is before border s is in D_s,
one whose first stage is after it is not. c_t is spread evenly over the borders that t may cross
at T. If f(T) is all work plus these cuts, divided by K, a plan of value T or less has value f(T)
or more, and any other has more than T; so min(T, f(T)) is a bound, whatever T is. Bisection
looks for a good T.

**Sum of all stages.** Here no T limits a stage. But D_1 is neither empty nor everything, so it
has an operator without predecessors and lacks one without successors: the smallest of the
minimum cuts between such pairs is a bound on the transfers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB
from coralline.graph.compute_graph import MODEL_INPUT

if TYPE_CHECKING:
    from coralline.staging.problem import StagingProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BISECTIONS = 6
_MAX_PAIRS = 16
_MAX_NODES = 4000
"""Above it the closures, V^2 numbers, would take longer than most planners."""

_ROUNDING = 1e-9
"""Share by which sums of times may err."""


def lower_bound(problem: StagingProblem) -> float:
    """A bound, in the objective's unit, that no plan of the problem can beat."""
    return max(work_bound(problem), cut_bound(problem))


def work_bound(problem: StagingProblem) -> float:
    """The bound from an even share of all work and from the largest single operator.

    The work has, for times, the overhead, the model's inputs and outputs (sent and fetched at
    least once by some stage) and the parameters that exceed all caches together.
    """
    graph, device, k = problem.graph, problem.devices[0], problem.n_stages
    params = graph.param_bytes
    if problem.objective == "peak-memory":
        return float(max(-(-int(params.sum()) // k), int(params.max())))
    total = _total_ms(problem)
    if problem.objective == "latency":
        return total
    beyond = np.maximum(params - device.parameter_cache_bytes, 0)
    single = problem.node_ms[0] + beyond / MIB * device.stream_ms_per_mib
    return float(max(total / k, single.max() + device.stage_overhead_ms))


def _total_ms(problem: StagingProblem) -> float:
    graph, device, k = problem.graph, problem.devices[0], problem.n_stages
    is_input = graph.tensor_producer == MODEL_INPUT
    read = np.diff(graph.consumer_start) > 0
    in_bytes = graph.tensor_bytes[is_input & read].sum()
    out_bytes = graph.tensor_bytes[~is_input & graph.tensor_is_output].sum()
    beyond = max(int(graph.param_bytes.sum()) - k * device.parameter_cache_bytes, 0)
    return float(
        problem.node_ms[0].sum()
        + in_bytes / MIB * device.in_ms_per_mib
        + out_bytes / MIB * device.out_ms_per_mib
        + beyond / MIB * device.stream_ms_per_mib
        + k * device.stage_overhead_ms
    )


def crossings_bound(problem: StagingProblem) -> int:
    """Hop-weighted crossings that every plan has at least.

    Each of the K - 1 borders has operators on both sides; in a connected graph an edge crosses.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = problem.graph
    if problem.n_stages == 1 or not len(graph.edges):
        return 0
    u, v = graph.edges.T
    joined = coo_array((np.ones(len(u), np.int8), (u, v)), shape=(graph.n_nodes,) * 2)
    parts, _ = connected_components(joined, directed=False)
    return (problem.n_stages - 1) * int(problem.edge_weight.min()) if parts == 1 else 0


def cut_bound(problem: StagingProblem) -> float:
    """The bound from ancestors, descendants and minimum cuts; 0 for graphs that are too large."""
    graph, k = problem.graph, problem.n_stages
    if k == 1 or graph.n_nodes > _MAX_NODES:
        return 0.0
    if problem.objective == "latency":
        return _total_ms(problem) + _least_cut(problem)
    order = graph.topological_order
    up = _least_share(problem, order, graph.predecessors)
    down = _least_share(problem, order[::-1], graph.successors)
    # In whatever stage s, 0 .. K - 1, operator v is: its ancestors are in s + 1 stages.
    low = float(np.maximum(up, down[:, ::-1]).min(axis=1).max())
    if problem.objective == "peak-memory":
        return low
    low = max(low * (1 - _ROUNDING), work_bound(problem))
    total = _total_ms(problem)

    def mean(limit: float) -> float:
        fits = limit * (1 + _ROUNDING)
        first, last = (up > fits).sum(axis=1), k - 1 - (down > fits).sum(axis=1)
        return (total + _cuts(problem, first, last)) / k * (1 - _ROUNDING)

    best, high = low, mean(low)
    for _ in range(_BISECTIONS):
        if high <= best * (1 + _ROUNDING):
            break
        limit = (best + high) / 2
        reached = mean(limit)
        if reached >= limit:
            best = limit
        else:
            best, high = max(best, reached), limit
    return best


def _least_share(
    problem: StagingProblem, order: Ints, neighbours: Sequence[Sequence[int]]
) -> Floats:
    """float64 (V, K): the least value at which j + 1 stages have room for what v comes with."""
    graph, device, k = problem.graph, problem.devices[0], problem.n_stages
    n = graph.n_nodes
    closed = np.zeros((n, -(-n // 8)), np.uint8)
    for v in order.tolist():
        for u in neighbours[v]:
            closed[v] |= closed[u]
        closed[v, v >> 3] |= 128 >> (v & 7)
    cost = np.stack([graph.param_bytes.astype(float), problem.node_ms[0]], axis=1)
    held = np.empty((n, 2))
    for i in range(0, n, 256):
        block = np.unpackbits(closed[i : i + 256], axis=1, count=n)
        held[i : i + 256] = block.astype(float) @ cost
    stages = np.arange(1, k + 1)
    params, ms = held[:, :1], held[:, 1:]
    if problem.objective == "peak-memory":
        return np.ceil(params / stages)
    beyond = np.maximum(params - stages * device.parameter_cache_bytes, 0)
    busy = ms + beyond / MIB * device.stream_ms_per_mib
    return busy / stages + device.stage_overhead_ms


def _crossing_ms(problem: StagingProblem) -> Floats:
    """float64 (T,): what a tensor that crosses a border costs at least."""
    graph, device = problem.graph, problem.devices[0]
    out = np.where(graph.tensor_is_output, 0.0, device.out_ms_per_mib)
    read = np.diff(graph.consumer_start) > 0
    inner = graph.tensor_producer != MODEL_INPUT
    return graph.tensor_bytes / MIB * (device.in_ms_per_mib + out) * (inner & read)


def _cuts(problem: StagingProblem, first: Ints, last: Ints) -> float:
    """The sum of the borders' minimum cuts, in ms, for first and last stages, int64 (V,) each."""
    graph = problem.graph
    crossing = _crossing_ms(problem)
    latest = np.zeros(graph.n_tensors, np.int64)
    np.maximum.at(latest, graph.consumer_tensor, last[graph.consumers])
    earliest = first[graph.tensor_producer]
    borders = np.maximum(latest - earliest, 0)
    share = np.where(borders > 0, crossing / np.maximum(borders, 1), 0.0)
    total = 0.0
    for s in range(1, problem.n_stages):
        may_cross = (earliest < s) & (s <= latest)
        total += _minimum_cut(problem, np.where(may_cross, share, 0.0), last < s, first >= s)
    return total


def _least_cut(problem: StagingProblem) -> float:
    """The least cut, in ms, with something on either side; 0 if there are too many ends."""
    graph = problem.graph
    sources = [v for v in range(graph.n_nodes) if not graph.predecessors[v]]
    sinks = [v for v in range(graph.n_nodes) if not graph.successors[v]]
    if len(sources) * len(sinks) > _MAX_PAIRS or set(sources) & set(sinks):
        return 0.0
    node = np.arange(graph.n_nodes)
    crossing = _crossing_ms(problem)
    cuts = (_minimum_cut(problem, crossing, node == a, node == b) for a in sources for b in sinks)
    return min(cuts) * (1 - _ROUNDING)


def _minimum_cut(
    problem: StagingProblem,
    cost: Floats,
    inside: NDArray[np.bool_],
    outside: NDArray[np.bool_],
) -> float:
    """The least cost of the tensors that leave a set of operators closed under ancestors.

    Args:
        cost: float64 (T,).
        inside, outside: bool (V,): operators that must and that cannot be in the set.
    """
    graph = problem.graph
    if not inside.any() or not outside.any() or not cost.any():
        return 0.0
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    # Vertices: 0 what is inside, 1 what is outside, the free operators, the tensors.
    free = ~inside & ~outside
    n_free = int(free.sum())
    vertex = np.where(inside, 0, 1)
    vertex[free] = 2 + np.arange(n_free)
    tensors = np.flatnonzero((cost > 0) & ~outside[graph.tensor_producer])
    number = np.full(graph.n_tensors, -1)
    number[tensors] = 2 + n_free + np.arange(len(tensors))
    # A reader outside the set cuts its tensor from the producer inside; a reader inside the
    # set pulls its predecessors in.
    reading = (number[graph.consumer_tensor] >= 0) & ~inside[graph.consumers]
    u, v = graph.edges.T
    both = free[u] & free[v]
    uncut = np.unique(
        np.concatenate(
            [
                np.stack(
                    [number[graph.consumer_tensor[reading]], vertex[graph.consumers[reading]]], 1
                ),
                np.stack([vertex[v[both]], vertex[u[both]]], 1),
            ]
        ),
        axis=0,
    )
    # Whole numbers of 32 bits, rounded down; nothing that must not be cut can be the cheaper.
    scale = 1e9 / cost.sum()
    capacity = np.floor(cost[tensors] * scale)
    size = 2 + n_free + len(tensors)
    network = csr_array(
        (
            np.concatenate([capacity, np.full(len(uncut), 2e9)]).astype(np.int32),
            (
                np.concatenate([vertex[graph.tensor_producer[tensors]], uncut[:, 0]]),
                np.concatenate([number[tensors], uncut[:, 1]]),
            ),
        ),
        shape=(size, size),
    )
    return float(maximum_flow(network, 0, 1).flow_value / scale)
