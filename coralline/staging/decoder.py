"""Running the policy network: what it reads of a problem, the encoder, and decoding plans.

A decoder builds a plan from its first stage to its last. A step either takes a ready operator
into the present stage or closes the stage, so the network always sees what the stage would
cost if it ended here, and what it would cost with each ready operator. All is measured against
a target: the value that the plan should reach. Of what is decoded only the order is kept; it is
split optimally afterwards, which is never worse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from coralline.devices.model import MIB
from coralline.graph.compute_graph import MODEL_INPUT
from coralline.staging.bounds import work_bound
from coralline.staging.policy import CLIP, N_CONTEXT, N_DYNAMIC, Arrays
from coralline.staging.problem import StagingProblem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SPREAD = 0.05
"""Deviation of the logarithm of the targets that samples aim at."""


class Walk(NamedTuple):
    """A problem as the decoder walks it; V nodes, T tensors, C readings.

    Attributes:
        producer: int64 (T,): in rising order.
        write_start: int64 (V + 1,): the first tensor of each node.
        read_start, read_tensor: int64 (V + 1,), (C,): the tensors each node reads.
        consumer_start, consumers: int64 (T + 1,), (C,): the nodes that read each tensor.
        is_output: bool (T,).
        size: float64 (T,): of each tensor, in MiB.
        in_ms, out_ms: float64 (K,): of sending and fetching a MiB, for each stage.
        node_ms, cache_bytes: float64 (K, V): as the problem's.
        param_bytes: float64 (V,).
        overhead_ms, stream_ms: float64 (K,): of each stage, and of a byte beyond its cache.
        memory_limit: Parameters that a stage may hold.
    """

    producer: Ints
    write_start: Ints
    read_start: Ints
    read_tensor: Ints
    consumer_start: Ints
    consumers: Ints
    is_output: NDArray[np.bool_]
    size: Floats
    in_ms: Floats
    out_ms: Floats
    node_ms: Floats
    cache_bytes: Floats
    param_bytes: Floats
    overhead_ms: Floats
    stream_ms: Floats
    memory_limit: float


class Projection(NamedTuple):
    """What decoding needs of the network, once it has read a graph; H wide, M the hidden layer.

    Attributes:
        key, last, chosen: float32 (V + 1, H): a candidate's score has the product of query and
            key; the query takes `last` of the node chosen last and the mean of `chosen` over
            all chosen nodes. Row V: closing the stage for `key`, no node yet for `last`.
        part: float32 (V + 1, M): a candidate's share of the hidden layer.
        graph: float32 (H,): the query's constant part.
        context: float32 (N_CONTEXT, H).
        query: float32 (H, M).
        dynamic: float32 (N_DYNAMIC, M).
        out: float32 (M,).
        target_ms: The value that the network expects of a good plan.
    """

    key: NDArray[np.float32]
    last: NDArray[np.float32]
    chosen: NDArray[np.float32]
    part: NDArray[np.float32]
    graph: NDArray[np.float32]
    context: NDArray[np.float32]
    query: NDArray[np.float32]
    dynamic: NDArray[np.float32]
    out: NDArray[np.float32]
    target_ms: float


@dataclass(frozen=True)
class PolicyInput:
    """What the network reads of a problem of V nodes.

    Attributes:
        features: float32 (V, N_FEATURES): see `policy_input`.
        predecessor_mean, successor_mean: float32 (V, V) sparse: rows average over neighbours.
        walk: For decoding.
        unit_ms: The problem's bound from work on the bottleneck: the unit of the features.
    """

    features: NDArray[np.float32]
    predecessor_mean: csr_array
    successor_mean: csr_array
    walk: Walk
    unit_ms: float

    @property
    def n_steps(self) -> int:
        """Decisions of a decoding: every node and every border."""
        return len(self.features) + len(self.walk.in_ms) - 1


class Record(NamedTuple):
    """What training needs to compute again the probability of S decodings of L steps.

    A step's candidates are the ready nodes and, if it may be closed, the stage, numbered V.

    Attributes:
        context: float32 (S, L, N_CONTEXT).
        previous: int32 (S, L): the node chosen before; V for none.
        taken: int32 (S, L): the candidate chosen; -1 after the end.
        step: int32 (N,): the step, counted through all decodings, of each candidate.
        node: int32 (N,): its number.
        dynamic: float32 (N, N_DYNAMIC): its costs in that step.
        good: bool (N,): whether it is one of those that training speaks of: the chosen one, or
            all that fit the plan that is imitated.
    """

    context: NDArray[np.float32]
    previous: NDArray[np.int32]
    taken: NDArray[np.int32]
    step: NDArray[np.int32]
    node: NDArray[np.int32]
    dynamic: NDArray[np.float32]
    good: NDArray[np.bool_]

    def cut(self, n: int) -> Record:
        """With the first n candidates alone."""
        named = ("step", "node", "dynamic", "good")
        return self._replace(**{name: getattr(self, name)[:n] for name in named})


@dataclass(frozen=True)
class Rollouts:
    """Decodings of one graph; S orders of V nodes.

    Attributes:
        order: int64 (S, V).
        log_probability: float64 (S,): of all decisions together.
        record: If it was asked for.
    """

    order: Ints
    log_probability: Floats
    record: Record | None = None


def policy_input(problem: StagingProblem) -> PolicyInput:
    """The problem as the network reads it.

    Times are in units of the problem's bound from work on the bottleneck and sums in shares, so
    that neither the speed of the device nor the size of the model matters by itself. Features:
    compute time, parameters against the cache, cost of sending the node's tensors across a
    border, cost of those it reads; the first three also against their mean; longest path from
    the start and from the end, counted in nodes and in compute time; work of all ancestors and
    of all descendants as shares and in stages; numbers of neighbours; whether it writes an
    output; and for the whole problem the number of stages, V, parameters against all caches,
    overhead and compute against the bound, mean cost of a border, sending's share of it, and
    what a cache full of parameters would cost to stream.
    """
    graph, k, n = problem.graph, problem.n_stages, problem.graph.n_nodes
    timed = (
        problem if problem.objective == "bottleneck" else replace(problem, objective="bottleneck")
    )
    unit = work_bound(timed) or 1.0
    # Tensors are in the order of their producers.
    by_reader = np.argsort(graph.consumers, kind="stable")
    walk = Walk(
        producer=graph.tensor_producer,
        write_start=np.searchsorted(graph.tensor_producer, np.arange(n + 1)),
        read_start=np.searchsorted(graph.consumers[by_reader], np.arange(n + 1)),
        read_tensor=graph.consumer_tensor[by_reader],
        consumer_start=graph.consumer_start,
        consumers=graph.consumers,
        is_output=graph.tensor_is_output,
        size=graph.tensor_bytes / MIB,
        in_ms=problem.of_stages("in_ms_per_mib"),
        out_ms=problem.of_stages("out_ms_per_mib"),
        node_ms=problem.node_ms,
        cache_bytes=problem.cache_bytes,
        param_bytes=problem.param_bytes.astype(np.float64),
        overhead_ms=problem.of_stages("stage_overhead_ms"),
        stream_ms=problem.of_stages("stream_ms_per_mib") / MIB,
        memory_limit=float(problem.memory_limit_bytes or np.inf),
    )
    # The network reads means over the stages and their devices.
    in_ms, out_ms = walk.in_ms.mean(), walk.out_ms.mean()
    cache, stream_ms = walk.cache_bytes.mean(), walk.stream_ms.mean()
    producer = graph.tensor_producer
    inner = producer != MODEL_INPUT
    # What a border costs that the tensor crosses; an output is fetched in any case.
    border = (in_ms + np.where(inner & ~walk.is_output, out_ms, 0.0)) * walk.size / unit
    is_read = np.diff(graph.consumer_start) > 0
    opens = np.bincount(producer[inner], (border * is_read)[inner], minlength=n)
    reads = np.bincount(graph.consumers, border[graph.consumer_tensor], minlength=n)
    compute = problem.node_ms.mean(axis=0) / unit
    params = problem.param_bytes / max(cache, 1.0)
    u, v = graph.edges.T
    ones = np.ones(len(u), np.float32)
    forward = csr_array((ones, (v, u)), shape=(n, n))
    backward = csr_array((ones, (u, v)), shape=(n, n))
    n_in, n_out = np.diff(forward.indptr), np.diff(backward.indptr)
    # A copy, so that numba compiles for one kind of array alone: processes that compile at the
    # same time may mix up the signatures in its cache and then crash.
    order = np.array(graph.topological_order)
    depth = _depth(order, forward.indptr, forward.indices, compute)
    nodes_down, time_down, nodes_up, time_up = depth / np.maximum(depth.max(axis=1), 1e-9)[:, None]
    share = _share(compute + params * (cache * stream_ms / unit))
    above = _closure(order, forward.indptr, forward.indices, share)
    below = _closure(order[::-1].copy(), backward.indptr, backward.indices, share)
    writes_output = np.bincount(producer[inner], walk.is_output[inner], minlength=n) > 0

    def against_mean(x: NDArray[Any]) -> Floats:
        return np.log1p(x / (x.mean() or 1.0))

    of_graph = [
        k / 8,
        np.log(n) / 8,
        np.log1p(params.sum() / k),
        walk.overhead_ms.mean() / unit,
        compute.sum() / k,
        np.log1p(border.mean()),
        in_ms / max(in_ms + out_ms, 1e-9),
        np.log1p(cache * stream_ms / unit),
    ]
    columns = [
        compute,
        np.minimum(params, 4.0),
        np.log1p(opens),
        np.log1p(reads),
        against_mean(compute),
        against_mean(params),
        against_mean(opens),
        nodes_down,
        nodes_up,
        time_down,
        time_up,
        above,
        below,
        np.minimum(k * above, 8.0),
        np.minimum(k * below, 8.0),
        np.log1p(n_in),
        np.log1p(n_out),
        writes_output,
        *(np.full(n, x) for x in of_graph),
    ]
    return PolicyInput(
        features=np.stack(columns, axis=1).astype(np.float32),
        predecessor_mean=_row_mean(forward, n_in),
        successor_mean=_row_mean(backward, n_out),
        walk=walk,
        unit_ms=unit,
    )


def _row_mean(adjacency: csr_array, degree: NDArray[Any]) -> csr_array:
    mean = adjacency.copy()
    mean.data /= np.repeat(np.maximum(degree, 1), degree).astype(np.float32)
    return mean


def _share(x: Floats) -> Floats:
    total = x.sum()
    return x / total if total > 0 else np.full(len(x), 1 / len(x))


@numba.njit(cache=True, nogil=True)
def _depth(order, start, neighbour, weight):  # type: ignore[no-untyped-def]
    """float64 (4, V): longest path before and behind each node, in nodes and in weight."""
    depth = np.zeros((4, len(order)))
    for v in order:
        for e in range(start[v], start[v + 1]):
            u = neighbour[e]
            depth[0, v] = max(depth[0, v], depth[0, u] + 1)
            depth[1, v] = max(depth[1, v], depth[1, u] + weight[u])
    for v in order[::-1]:
        for e in range(start[v], start[v + 1]):
            u = neighbour[e]
            depth[2, u] = max(depth[2, u], depth[2, v] + 1)
            depth[3, u] = max(depth[3, u], depth[3, v] + weight[v])
    return depth


@numba.njit(cache=True, nogil=True)
def _closure(order, start, neighbour, weight):  # type: ignore[no-untyped-def]
    """float64 (V,): weight of each node and of all that lead to it, by the neighbours before it.

    Sets are bits by place in the order; the weight of eight bits is looked up.
    """
    n = len(order)
    place, sums = np.empty(n, np.int64), np.zeros(n)
    rows = np.zeros((n, (n + 7) // 8), np.uint8)
    table = np.zeros((rows.shape[1], 256))
    for p in range(n):
        bit = 1 << p % 8
        for m in range(bit, 2 * bit):
            table[p // 8, m] = table[p // 8, m - bit] + weight[order[p]]
    for p in range(n):
        v = order[p]
        place[v] = p
        for e in range(start[v], start[v + 1]):
            q = place[neighbour[e]]
            for b in range(q // 8 + 1):
                rows[p, b] |= rows[q, b]
        rows[p, p // 8] |= np.uint8(1 << p % 8)
        for b in range(p // 8 + 1):
            sums[v] += table[b, rows[p, b]]
    return sums


def project(weights: Arrays, inputs: PolicyInput) -> Projection:
    """Run the encoder; what `decode` needs of it."""
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
    mean = h.mean(axis=0)
    zero = np.zeros_like(mean)
    return Projection(
        key=np.vstack([h @ weights["key"], weights["key.close"]]) * np.float32(len(mean) ** -0.5),
        last=np.vstack([h @ weights["query.last"], weights["query.start"]]),
        chosen=np.vstack([h @ weights["query.chosen"], zero]),
        part=np.vstack([h @ weights["hidden.node"], weights["hidden.close"]]),
        graph=mean @ weights["query.graph"] + weights["query.b"],
        **shared_projection(weights),
        target_ms=inputs.unit_ms * float(np.exp(mean @ weights["target.w"] + weights["target.b"])),
    )


def shared_projection(weights: Arrays) -> dict[str, NDArray[np.float32]]:
    """The part of a projection that is the same for all graphs."""
    return {
        "context": weights["query.context"],
        "query": weights["hidden.query"],
        "dynamic": weights["hidden.dynamic"],
        "out": weights["hidden.out"],
    }


def _normal(h: NDArray[np.float32]) -> NDArray[np.float32]:
    centred = h - h.mean(axis=1, keepdims=True)
    deviation: NDArray[np.float32] = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return centred / deviation


def decode(
    inputs: PolicyInput,
    projection: Projection,
    uniform: Floats,
    *,
    n_greedy: int = 0,
    target_ms: Floats | None = None,
    guide: NDArray[np.int64] | None = None,
    record: bool = False,
) -> Rollouts:
    """Decode orders, one for each row of `uniform`.

    Args:
        uniform: float64 (S, n_steps) in [0, 1): the chances of sampling.
        n_greedy: The first so many take the likeliest candidate (the first of equals).
        target_ms: float64 (S,): what each aims at; without it what the network expects.
        guide: int64 (V,): stages of a plan; only candidates that fit it are taken.
        record: Keep what training needs.
    """
    s, n = len(uniform), len(inputs.features)
    if target_ms is None:
        target_ms = np.full(s, projection.target_ms)
    order = np.empty((s, n), np.int64)
    steps = inputs.n_steps if record else 0
    size = 12 * s * steps
    while True:
        log_probability = np.zeros(s)
        kept = Record(
            context=np.zeros((s, steps, N_CONTEXT), np.float32),
            previous=np.full((s, steps), n, np.int32),
            taken=np.full((s, steps), -1, np.int32),
            step=np.empty(size, np.int32),
            node=np.empty(size, np.int32),
            dynamic=np.empty((size, N_DYNAMIC), np.float32),
            good=np.empty(size, np.bool_),
        )
        found = _decode(
            inputs.walk,
            projection,
            uniform,
            n_greedy,
            target_ms,
            np.empty(0, np.int64) if guide is None else guide,
            order,
            log_probability,
            kept,
        )
        if not record:
            return Rollouts(order, log_probability)
        if found <= size:
            return Rollouts(order, log_probability, kept.cut(found))
        size = found


def beam(
    inputs: PolicyInput, projection: Projection, width: int, target_ms: float | None = None
) -> Rollouts:
    """Orders by beam search: in each step the `width` likeliest partial plans are kept.

    Partial plans that put the same operators into the same stages count once, with the
    likeliest order.

    Returns:
        Up to `width` rollouts, the likeliest first.
    """
    target = projection.target_ms if target_ms is None else target_ms
    order, log_probability = _beam(inputs.walk, projection, width, target)
    return Rollouts(order, log_probability)


class _State(NamedTuple):
    """A partial plan; one row a plan."""

    unread: Ints
    """Readers still to come, of each tensor."""
    here: Ints
    """The last stage that has each tensor; -1 for none."""
    made: Ints
    """The stage that made each tensor; -1 for none."""
    waits: Ints
    """Readings still to come before each node is ready."""
    since: Ints
    """The number of nodes taken when each became ready."""
    ready: Ints
    total: NDArray[np.float32]
    """Sum of `chosen` over the nodes taken."""
    at: Floats
    """The numbers below."""


(
    _N_READY,
    _N_TAKEN,
    _STAGE,
    _IN_STAGE,
    _PREVIOUS,
    _COMPUTE,
    _PARAMS,
    _CACHE,
    _IN,
    _OUT,
    _KEPT,
    _LEFT_MS,
    _LEFT_PARAMS,
    _OPEN,
) = range(14)
"""Of the present stage: nodes, compute, parameters, its cache, MiB of tensors in, of tensors
out, and of these the outputs, which are fetched in any case. _LEFT: of nodes not taken, their
compute as if in the last stage. _OPEN: MiB of all tensors that still have a reader."""


@numba.njit(cache=True, nogil=True)
def _new_state(walk, n_rows, width):  # type: ignore[no-untyped-def]
    n, n_tensors = walk.node_ms.shape[1], len(walk.producer)
    return _State(
        np.empty((n_rows, n_tensors), np.int64),
        np.empty((n_rows, n_tensors), np.int64),
        np.empty((n_rows, n_tensors), np.int64),
        np.empty((n_rows, n), np.int64),
        np.empty((n_rows, n), np.int64),
        np.empty((n_rows, n), np.int64),
        np.empty((n_rows, width), np.float32),
        np.empty((n_rows, 14)),
    )


@numba.njit(cache=True, nogil=True)
def _begin(walk, state, row):  # type: ignore[no-untyped-def]
    n = walk.node_ms.shape[1]
    at = state.at[row]
    at[:] = 0.0
    at[_CACHE] = np.inf
    at[_PREVIOUS] = n
    state.here[row] = -1
    state.made[row] = -1
    state.total[row] = 0.0
    state.since[row] = 0
    for t in range(len(walk.producer)):
        state.unread[row, t] = walk.consumer_start[t + 1] - walk.consumer_start[t]
        if walk.producer[t] < 0 and state.unread[row, t] > 0:
            at[_OPEN] += walk.size[t]
    for v in range(n):
        at[_LEFT_MS] += walk.node_ms[-1, v]
        at[_LEFT_PARAMS] += walk.param_bytes[v]
        state.waits[row, v] = 0
        for r in range(walk.read_start[v], walk.read_start[v + 1]):
            if walk.producer[walk.read_tensor[r]] >= 0:
                state.waits[row, v] += 1
        if state.waits[row, v] == 0:
            state.ready[row, int(at[_N_READY])] = v
            at[_N_READY] += 1


@numba.njit(cache=True, nogil=True)
def _stream(walk, stage, param_bytes, cache_bytes):  # type: ignore[no-untyped-def]
    return max(param_bytes - cache_bytes, 0.0) * walk.stream_ms[stage]


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _look(walk, net, state, row, target, context, dynamic, scores, query, hidden):  # type: ignore[no-untyped-def]
    """Score the candidates: the ready nodes in their order, then closing; returns how many.

    Fills context (N_CONTEXT,), and for each candidate a row of dynamic and a score; query (H,)
    and hidden (M,) are room to work in.
    """
    (n_stages, n), width = walk.node_ms.shape, net.key.shape[1]
    at = state.at[row]
    n_ready, n_taken, stage = int(at[_N_READY]), int(at[_N_TAKEN]), int(at[_STAGE])
    previous = int(at[_PREVIOUS])
    later = n_stages - 1 - stage
    after = min(stage + 1, n_stages - 1)
    in_ms, out_ms = walk.in_ms[stage], walk.out_ms[stage]
    streaming = _stream(walk, stage, at[_PARAMS], at[_CACHE])
    load = walk.overhead_ms[stage] + at[_COMPUTE] + at[_IN] * in_ms + streaming
    # What is sure, and what it is if the stage ends here.
    floor, cost = load + at[_KEPT] * out_ms, load + at[_OUT] * out_ms
    full = max(walk.cache_bytes[stage, 0], 1.0)
    context[0] = n_taken / n
    context[1] = stage / n_stages
    context[2] = 1.0 / (later + 1)
    context[3] = min(cost / target, 4.0)
    context[4] = min(floor / target, 4.0)
    context[5] = at[_COMPUTE] / target
    context[6] = min(at[_LEFT_MS] / target / max(later, 0.5), 4.0)
    context[7] = min(at[_PARAMS] / full, 4.0)
    context[8] = min(at[_LEFT_PARAMS] / (full * max(later, 0.5)), 4.0)
    context[9] = min(at[_IN] * in_ms / target, 4.0)
    context[10] = min((at[_OUT] - at[_KEPT]) * out_ms / target, 4.0)
    context[11] = np.log1p(at[_OPEN] * walk.in_ms[after] / target)
    context[12] = np.log(n_ready + 1.0) / 4
    context[13] = 1.0 if at[_IN_STAGE] == 0 else 0.0
    for i in range(width):
        x = net.graph[i] + net.last[previous, i]
        x += state.total[row, i] / np.float32(max(n_taken, 1))
        query[i] = x
    for c in range(len(context)):
        for i in range(width):
            query[i] += context[c] * net.context[c, i]
    base = np.zeros(len(hidden), np.float32)
    for i in range(width):
        query[i] = max(query[i], np.float32(0.0))
        for j in range(len(base)):
            base[j] += query[i] * net.query[i, j]
    n_candidates = n_ready
    if later > 0 and at[_IN_STAGE] > 0 and n - n_taken >= later:
        n_candidates += 1
    for c in range(n_candidates):
        if c < n_ready:
            v = state.ready[row, c]
            # MiB: tensors that it would make leave the stage, or no longer leave; that it
            # would end for good; that it would bring in.
            opens, kept, closes, ends, enters = 0.0, 0.0, 0.0, 0.0, 0.0
            follows = 0.0
            for t in range(walk.write_start[v], walk.write_start[v + 1]):
                if walk.is_output[t]:
                    kept += walk.size[t]
                elif state.unread[row, t] > 0:
                    opens += walk.size[t]
            for r in range(walk.read_start[v], walk.read_start[v + 1]):
                t = walk.read_tensor[r]
                if state.here[row, t] != stage:
                    enters += walk.size[t]
                if state.unread[row, t] == 1:
                    ends += walk.size[t]
                    if state.made[row, t] == stage and not walk.is_output[t]:
                        closes += walk.size[t]
                if walk.producer[t] == previous:
                    follows = 1.0
            held = at[_PARAMS] + walk.param_bytes[v]
            cache = min(at[_CACHE], walk.cache_bytes[stage, v])
            more = walk.node_ms[stage, v] + _stream(walk, stage, held, cache) - streaming
            more += enters * in_ms + kept * out_ms
            opens, closes = opens * out_ms, closes * out_ms
            dynamic[c, 0] = min((cost + more + opens - closes) / target, 4.0)
            dynamic[c, 1] = min((floor + more) / target, 4.0)
            dynamic[c, 2] = min(more / target, 4.0)
            dynamic[c, 3] = min(enters * in_ms / target, 4.0)
            dynamic[c, 4] = min(opens / target, 4.0)
            dynamic[c, 5] = min(closes / target, 4.0)
            dynamic[c, 6] = min(ends * walk.in_ms[after] / target, 4.0)
            dynamic[c, 7] = follows
            dynamic[c, 8] = (n_taken - state.since[row, v]) / n
        else:
            v = n
            dynamic[c] = 0.0
        for j in range(len(hidden)):
            hidden[j] = base[j] + net.part[v, j]
        for d in range(dynamic.shape[1]):
            for j in range(len(hidden)):
                hidden[j] += dynamic[c, d] * net.dynamic[d, j]
        x = np.float32(0.0)
        for i in range(width):
            x += query[i] * net.key[v, i]
        for j in range(len(hidden)):
            x += max(hidden[j], np.float32(0.0)) * net.out[j]
        scores[c] = CLIP * np.tanh(x / CLIP)
    if walk.memory_limit < np.inf:
        fitting = n_candidates - n_ready
        for c in range(n_ready):
            fitting += at[_PARAMS] + walk.param_bytes[state.ready[row, c]] <= walk.memory_limit
        for c in range(n_ready if fitting else 0):
            if at[_PARAMS] + walk.param_bytes[state.ready[row, c]] > walk.memory_limit:
                scores[c] = -np.inf
    return n_candidates


@numba.njit(cache=True, nogil=True)
def _take(walk, net, state, row, candidate):  # type: ignore[no-untyped-def]
    """Go on with a candidate of the last look; returns its number, V for closing."""
    at = state.at[row]
    stage = int(at[_STAGE])
    n_ready = int(at[_N_READY])
    if candidate == n_ready:
        at[_STAGE] += 1
        for i in (_IN_STAGE, _COMPUTE, _PARAMS, _IN, _OUT, _KEPT):
            at[i] = 0.0
        at[_CACHE] = np.inf
        return walk.node_ms.shape[1]
    v = state.ready[row, candidate]
    n_ready -= 1
    state.ready[row, candidate] = state.ready[row, n_ready]
    at[_N_TAKEN] += 1
    at[_IN_STAGE] += 1
    at[_PREVIOUS] = v
    at[_COMPUTE] += walk.node_ms[stage, v]
    at[_PARAMS] += walk.param_bytes[v]
    at[_CACHE] = min(at[_CACHE], walk.cache_bytes[stage, v])
    at[_LEFT_MS] -= walk.node_ms[-1, v]
    at[_LEFT_PARAMS] -= walk.param_bytes[v]
    for i in range(state.total.shape[1]):
        state.total[row, i] += net.chosen[v, i]
    for r in range(walk.read_start[v], walk.read_start[v + 1]):
        t = walk.read_tensor[r]
        if state.here[row, t] != stage:
            at[_IN] += walk.size[t]
            state.here[row, t] = stage
        state.unread[row, t] -= 1
        if state.unread[row, t] == 0:
            at[_OPEN] -= walk.size[t]
            if state.made[row, t] == stage and not walk.is_output[t]:
                at[_OUT] -= walk.size[t]
    for t in range(walk.write_start[v], walk.write_start[v + 1]):
        state.here[row, t] = stage
        state.made[row, t] = stage
        if walk.is_output[t]:
            at[_KEPT] += walk.size[t]
        if walk.is_output[t] or state.unread[row, t] > 0:
            at[_OUT] += walk.size[t]
        if state.unread[row, t] > 0:
            at[_OPEN] += walk.size[t]
        for c in range(walk.consumer_start[t], walk.consumer_start[t + 1]):
            w = walk.consumers[c]
            state.waits[row, w] -= 1
            if state.waits[row, w] == 0:
                state.ready[row, n_ready] = w
                n_ready += 1
                state.since[row, w] = int(at[_N_TAKEN])
    at[_N_READY] = n_ready
    return v


@numba.njit(cache=True, nogil=True)
def _decode(  # type: ignore[no-untyped-def]
    walk,
    net,
    uniform,
    n_greedy,
    target,
    guide,
    order,
    log_probability,
    kept,
):
    n_stages, n = walk.node_ms.shape
    n_steps = n + n_stages - 1
    record = kept.taken.shape[1] > 0
    state = _new_state(walk, len(uniform), net.key.shape[1])
    context = np.zeros(net.context.shape[0], np.float32)
    dynamic = np.zeros((n + 1, net.dynamic.shape[0]), np.float32)
    scores = np.empty(n + 1, np.float64)
    fits = np.ones(n + 1, np.bool_)
    query = np.empty(net.key.shape[1], np.float32)
    hidden = np.empty(len(net.out), np.float32)
    found = 0
    for s in range(len(uniform)):
        _begin(walk, state, s)
        for step in range(n_steps):
            if state.at[s, _N_TAKEN] == n:
                break
            stage, n_ready = int(state.at[s, _STAGE]), int(state.at[s, _N_READY])
            previous = int(state.at[s, _PREVIOUS])
            n_candidates = _look(
                walk, net, state, s, target[s], context, dynamic, scores, query, hidden
            )
            if len(guide):
                done = True
                for c in range(n_ready):
                    fits[c] = guide[state.ready[s, c]] == stage
                    done &= not fits[c]
                fits[n_ready] = done
            pick, mass, fitting = -1, 0.0, 0.0
            for c in range(n_candidates):
                weight = np.exp(scores[c] - CLIP)
                mass += weight
                if fits[c]:
                    fitting += weight
            if s < n_greedy:
                for c in range(n_candidates):
                    if fits[c] and (
                        pick < 0
                        or scores[c] > scores[pick]
                        or (
                            scores[c] == scores[pick]
                            and c < n_ready
                            and state.ready[s, c] < state.ready[s, pick]
                        )
                    ):
                        pick = c
            else:
                left = uniform[s, step] * fitting
                for c in range(n_candidates):
                    if fits[c]:
                        pick = c
                        left -= np.exp(scores[c] - CLIP)
                        if left < 0:
                            break
            log_probability[s] += scores[pick] - CLIP - np.log(mass)
            if record:
                for c in range(n_candidates):
                    if found < len(kept.step):
                        kept.step[found] = s * n_steps + step
                        kept.node[found] = state.ready[s, c] if c < n_ready else n
                        kept.dynamic[found] = dynamic[c]
                        kept.good[found] = fits[c] if len(guide) else c == pick
                    found += 1
                kept.context[s, step] = context
                kept.previous[s, step] = previous
            place = int(state.at[s, _N_TAKEN])
            v = _take(walk, net, state, s, pick)
            if v < n:
                order[s, place] = v
            if record:
                kept.taken[s, step] = v
    return found


@numba.njit(cache=True, nogil=True)
def _mixed(x, y):  # type: ignore[no-untyped-def]
    """A hash of two numbers: the finaliser of SplitMix64 (Steele et al., OOPSLA 2014)."""
    z = np.uint64(x) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(y + 1)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _copy(source, row, target, to):  # type: ignore[no-untyped-def]
    target.unread[to] = source.unread[row]
    target.here[to] = source.here[row]
    target.made[to] = source.made[row]
    target.waits[to] = source.waits[row]
    target.since[to] = source.since[row]
    target.ready[to] = source.ready[row]
    target.total[to] = source.total[row]
    target.at[to] = source.at[row]


@numba.njit(cache=True, nogil=True)
def _beam(walk, net, width, target):  # type: ignore[no-untyped-def]
    n = walk.node_ms.shape[1]
    state = _new_state(walk, width, net.key.shape[1])
    other = _new_state(walk, width, net.key.shape[1])
    order = np.zeros((width, n), np.int64)
    other_order = np.zeros((width, n), np.int64)
    chance, digest = np.zeros(width), np.zeros(width, np.uint64)
    context = np.zeros(net.context.shape[0], np.float32)
    dynamic = np.zeros((n + 1, net.dynamic.shape[0]), np.float32)
    scores = np.empty(n + 1, np.float64)
    query = np.empty(net.key.shape[1], np.float32)
    hidden = np.empty(len(net.out), np.float32)
    size = width * (n + 1)
    new_chance, new_digest = np.empty(size), np.empty(size, np.uint64)
    origin, move = np.empty(size, np.int64), np.empty(size, np.int64)
    _begin(walk, state, 0)
    rows = 1
    while True:
        found = 0
        going = False
        for row in range(rows):
            at = state.at[row]
            if at[_N_TAKEN] == n:
                new_chance[found], new_digest[found] = chance[row], digest[row]
                origin[found], move[found] = row, -1
                found += 1
                continue
            going = True
            n_candidates = _look(
                walk, net, state, row, target, context, dynamic, scores, query, hidden
            )
            mass = 0.0
            for c in range(n_candidates):
                mass += np.exp(scores[c] - CLIP)
            for c in range(n_candidates):
                v = state.ready[row, c] if c < int(at[_N_READY]) else n
                new_chance[found] = chance[row] + scores[c] - CLIP - np.log(mass)
                new_digest[found] = digest[row] ^ _mixed(v, int(at[_STAGE]))
                origin[found], move[found] = row, c
                found += 1
        if not going:
            return order[:rows], chance[:rows]
        kept = 0
        while kept < width:
            i = int(np.argmax(new_chance[:found]))
            if new_chance[i] == -np.inf:
                break
            fresh = True
            for j in range(kept):
                fresh &= digest[j] != new_digest[i]
            if fresh:
                _copy(state, origin[i], other, kept)
                other_order[kept] = order[origin[i]]
                digest[kept], chance[kept] = new_digest[i], new_chance[i]
                if move[i] >= 0:
                    place = int(other.at[kept, _N_TAKEN])
                    v = _take(walk, net, other, kept, move[i])
                    if v < n:
                        other_order[kept, place] = v
                kept += 1
            new_chance[i] = -np.inf
        rows = kept
        state, other = other, state
        order, other_order = other_order, order
