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
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB
from coralline.errors import PlanError
from coralline.graph.compute_graph import MODEL_INPUT

if TYPE_CHECKING:
    from coralline.graph.compute_graph import ComputeGraph
    from coralline.staging.problem import StagingProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_BISECTIONS = 6
_MAX_PAIRS = 16
MAX_NODES = 4000
"""Above it the closures, V^2 numbers, would take longer than most planners."""

_ROUNDING = 1e-9
"""Share by which sums of times may err."""

_WHOLE = 1e-6
"""What a cut of whole weights may err."""


def lower_bound(problem: StagingProblem) -> float:
    """A bound, in the objective's unit, that no plan of the problem can beat.

    It is infinite where there is obviously no plan.
    """
    from coralline.staging.reduction import reduce_problem

    try:
        reduced, _ = reduce_problem(problem)
    except PlanError:
        return np.inf
    return max(work_bound(reduced), cut_bound(reduced))


def work_bound(problem: StagingProblem) -> float:
    """The bound from an even share of all work and from single operators and stages.

    The work has, for times, the overheads, the model's inputs and outputs (sent and fetched at
    least once by some stage) and the parameters that exceed all caches together. The problem has
    no host operators, here and below.
    """
    if problem.objective == "peak-memory":
        params = problem.param_bytes
        return float(max(-(-int(params.sum()) // problem.n_stages), int(params.max())))
    chain = Room.of(problem, range(problem.n_stages))
    if problem.objective == "latency":
        return chain.total_ms(problem)
    alone = _alone(problem)
    # Every operator is in some stage, and every stage has an operator.
    single = max(alone.min(axis=1).max(), alone.min(axis=0).max())
    return float(max(chain.total_ms(problem) / chain.width, single))


def cut_bound(problem: StagingProblem) -> float:
    """The bound from ancestors, descendants and minimum cuts; 0 for graphs that are too large.

    It is infinite where the memory limit is seen to allow no plan.
    """
    graph, k = problem.graph, problem.n_stages
    if k == 1 or graph.n_nodes > MAX_NODES:
        return 0.0
    least = least_values(problem)
    low = float(least.min(axis=1).max())
    if problem.objective == "peak-memory" or low == np.inf:
        return low
    chain = Room.of(problem, range(k))
    total, crossing = chain.total_ms(problem), chain.crossing_ms(problem)
    moves = Moves(graph.tensor_producer, graph.consumer_tensor, graph.consumers)
    if problem.objective == "latency":
        cuts = _cuts(problem, moves, crossing, *windows(problem, least, np.inf))
        return total + max(cuts, _least_cut(problem, moves, crossing)) * (1 - _ROUNDING)
    low = max(low * (1 - _ROUNDING), work_bound(problem))

    def mean(limit: float) -> float:
        cuts = _cuts(problem, moves, crossing, *windows(problem, least, limit))
        return (total + cuts) / chain.width * (1 - _ROUNDING)

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


def crossings_bound(problem: StagingProblem, value: float = np.inf) -> int:
    """Hop-weighted crossings that every plan of at most this value has, by minimum cuts.

    They are the sum, over the borders between stages, of the weights of the edges that cross.
    """
    graph, k = problem.graph, problem.n_stages
    if k == 1 or graph.n_nodes > MAX_NODES:
        return 0
    first, last = stage_windows(problem, value)
    if (first > last).any():
        return 0
    u, v = graph.edges.T
    moves = Moves(u, np.arange(len(u)), v)
    weight = problem.edge_weight.astype(float)
    anywhere = _least_cut(problem, moves, weight)
    cuts = (
        max(minimum_cut(graph, moves, weight, last < s, first >= s), anywhere) for s in range(1, k)
    )
    return sum(int(np.ceil(cut - _WHOLE)) for cut in cuts)


def stage_windows(problem: StagingProblem, value: float) -> tuple[Ints, Ints]:
    """First and last stage, int64 (V,) each, of every operator in plans of at most this value.

    The first is past the last where an operator fits nowhere, so that there is no such plan.
    """
    return windows(problem, least_values(problem), value)


def windows(problem: StagingProblem, least: Floats, value: float) -> tuple[Ints, Ints]:
    """The windows from what `least_values` says."""
    graph, k = problem.graph, problem.n_stages
    fits = (least < np.inf) & (least <= value * (1 + _ROUNDING))
    somewhere = fits.any(axis=1)
    first = np.where(somewhere, fits.argmax(axis=1), k)
    last = np.where(somewhere, k - 1 - fits[:, ::-1].argmax(axis=1), -1)
    u, v = graph.edges.T
    if (first[u] > first[v]).any() or (last[u] > last[v]).any():
        order = graph.topological_order.tolist()
        for w in order:
            first[w] = max([first[w], *first[list(graph.predecessors[w])]])
        for w in reversed(order):
            last[w] = min([last[w], *last[list(graph.successors[w])]])
    return first, last


def least_values(problem: StagingProblem) -> Floats:
    """float64 (V, K): the least value, by three arguments, with operator v in stage s.

    Stages 0 to s have room for its ancestors, stages s to K - 1 for its descendants, and stage s
    for itself. Infinite where the memory limit forbids it.
    """
    graph, k = problem.graph, problem.n_stages
    order = graph.topological_order
    up = _least_share(problem, order, graph.predecessors, [range(s + 1) for s in range(k)])
    down = _least_share(problem, order[::-1], graph.successors, [range(s, k) for s in range(k)])
    least = np.maximum(up, down)
    return np.maximum(least, _alone(problem).T) if problem.objective == "bottleneck" else least


def _alone(problem: StagingProblem) -> Floats:
    """float64 (K, V): the time of a stage with one operator, but for what it moves."""
    beyond = np.maximum(problem.param_bytes - problem.cache_bytes, 0)
    stream = problem.of_stages("stream_ms_per_mib")[:, None]
    overhead = problem.of_stages("stage_overhead_ms")[:, None]
    return problem.node_ms + beyond / MIB * stream + overhead


@dataclass(frozen=True)
class Room:
    """What some stages can do together, one of which takes T and none more.

    Let base[v] be the time of operator v on the best of these stages' devices, and slow[s] >= 1
    such that stage s needs at least slow[s] base[v] for every operator v. Then what stage s does
    within T has a base of at most T / slow[s], its overhead, transfers and streaming counted
    1 / slow[s]. Summed, with every rate the best of the stages':

        T width >= base + in + out + streaming beyond all caches + overhead

    For the sum of the stages' times the same holds with slow = 1 and the sum in place of T width.

    Attributes:
        width: Sum of 1 / slow.
        overhead: Sum of stage overhead / slow, in ms.
        cache_bytes: The largest caches that any operator leaves, together.
        stream_ms, in_ms, out_ms: Least rate / slow, per MiB.
        base: float64 (V,).
    """

    width: float
    overhead: float
    cache_bytes: float
    stream_ms: float
    in_ms: float
    out_ms: float
    base: Floats

    @staticmethod
    def of(problem: StagingProblem, stages: range) -> Room:
        """The room of these stages."""
        part = slice(stages.start, stages.stop)
        base = problem.node_ms[part].min(axis=0)
        slow = np.ones(len(stages))
        if problem.objective == "bottleneck" and base.any():
            slow = (problem.node_ms[part][:, base > 0] / base[base > 0]).min(axis=1)

        def least(constant: str) -> float:
            return float((problem.of_stages(constant)[part] / slow).min())

        return Room(
            width=float((1 / slow).sum()),
            overhead=float((problem.of_stages("stage_overhead_ms")[part] / slow).sum()),
            cache_bytes=float(problem.cache_bytes[part].max(axis=1).sum()),
            stream_ms=least("stream_ms_per_mib"),
            in_ms=least("in_ms_per_mib"),
            out_ms=least("out_ms_per_mib"),
            base=base,
        )

    def busy_ms(self, params: Floats, base: Floats) -> Floats:
        """T width at least, for sets of operators of so many bytes and so much base."""
        beyond = np.maximum(params - self.cache_bytes, 0)
        return base + beyond / MIB * self.stream_ms + self.overhead

    def total_ms(self, problem: StagingProblem) -> float:
        """T width at least, where these are all stages."""
        graph = problem.graph
        is_input = graph.tensor_producer == MODEL_INPUT
        read = np.diff(graph.consumer_start) > 0
        in_bytes = graph.tensor_bytes[is_input & read].sum()
        out_bytes = graph.tensor_bytes[~is_input & graph.tensor_is_output].sum()
        moved = in_bytes / MIB * self.in_ms + out_bytes / MIB * self.out_ms
        return float(self.busy_ms(problem.param_bytes.sum(), self.base.sum()) + moved)

    def crossing_ms(self, problem: StagingProblem) -> Floats:
        """float64 (T,): what a tensor that crosses a border adds at least."""
        graph = problem.graph
        out = np.where(graph.tensor_is_output, 0.0, self.out_ms)
        read = np.diff(graph.consumer_start) > 0
        inner = graph.tensor_producer != MODEL_INPUT
        return graph.tensor_bytes / MIB * (self.in_ms + out) * (inner & read)


def _least_share(
    problem: StagingProblem,
    order: Ints,
    neighbours: Sequence[Sequence[int]],
    stages: Sequence[range],
) -> Floats:
    """float64 (V, len(stages)): the least value at which these have room for v's closure."""
    n = problem.graph.n_nodes
    closed = np.zeros((n, -(-n // 8)), np.uint8)
    for v in order.tolist():
        for u in neighbours[v]:
            closed[v] |= closed[u]
        closed[v, v >> 3] |= 128 >> (v & 7)
    rooms = [Room.of(problem, part) for part in stages]
    cost = np.stack([problem.param_bytes.astype(float), *(room.base for room in rooms)], axis=1)
    held = np.empty((n, len(rooms) + 1))
    for i in range(0, n, 256):
        block = np.unpackbits(closed[i : i + 256], axis=1, count=n)
        held[i : i + 256] = block.astype(float) @ cost
    params = held[:, 0]
    share = np.zeros((n, len(rooms)))
    for j, (room, part) in enumerate(zip(rooms, stages, strict=True)):
        if problem.objective == "peak-memory":
            share[:, j] = np.ceil(params / len(part))
        elif problem.objective == "bottleneck":
            share[:, j] = room.busy_ms(params, held[:, j + 1]) / room.width
        if problem.memory_limit_bytes is not None:
            share[params > problem.memory_limit_bytes * len(part), j] = np.inf
    return share


class Moves(NamedTuple):
    """Things that move from where they are made to where they are read.

    Attributes:
        producer: int64 (T,).
        thing, reader: int64 (C,): readings.
    """

    producer: Ints
    thing: Ints
    reader: Ints


def _cuts(problem: StagingProblem, moves: Moves, cost: Floats, first: Ints, last: Ints) -> float:
    """The sum of the borders' minimum cuts, each cost, (T,), spread over the borders.

    0 where the windows, int64 (V,) each, allow no plan.
    """
    if (first > last).any():
        return 0.0
    latest = np.zeros(len(cost), np.int64)
    np.maximum.at(latest, moves.thing, last[moves.reader])
    earliest = first[moves.producer]
    borders = np.maximum(latest - earliest, 0)
    share = np.where(borders > 0, cost / np.maximum(borders, 1), 0.0)
    total = 0.0
    for s in range(1, problem.n_stages):
        may_cross = (earliest < s) & (s <= latest)
        total += minimum_cut(
            problem.graph, moves, np.where(may_cross, share, 0.0), last < s, first >= s
        )
    return total


def _least_cut(problem: StagingProblem, moves: Moves, cost: Floats) -> float:
    """The least cut with something on either side; 0 if there are too many ends."""
    graph = problem.graph
    sources = [v for v in range(graph.n_nodes) if not graph.predecessors[v]]
    sinks = [v for v in range(graph.n_nodes) if not graph.successors[v]]
    if len(sources) * len(sinks) > _MAX_PAIRS or set(sources) & set(sinks):
        return 0.0
    node = np.arange(graph.n_nodes)
    return min(
        minimum_cut(graph, moves, cost, node == a, node == b) for a in sources for b in sinks
    )


def minimum_cut(
    graph: ComputeGraph,
    moves: Moves,
    cost: Floats,
    inside: NDArray[np.bool_],
    outside: NDArray[np.bool_],
) -> float:
    """The least cost of what leaves a set of operators closed under ancestors.

    Args:
        cost: float64 (T,).
        inside, outside: bool (V,): operators that must and that cannot be in the set.
    """
    if not inside.any() or not outside.any() or not cost.any():
        return 0.0
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    # Vertices: 0 what is inside, 1 what is outside, the free operators, the things moved.
    free = ~inside & ~outside
    n_free = int(free.sum())
    vertex = np.where(inside, 0, 1)
    vertex[free] = 2 + np.arange(n_free)
    things = np.flatnonzero((cost > 0) & ~outside[moves.producer])
    number = np.full(len(cost), -1)
    number[things] = 2 + n_free + np.arange(len(things))
    # A reader outside the set cuts what it reads from the producer inside; a reader inside the
    # set pulls its predecessors in.
    reading = (number[moves.thing] >= 0) & ~inside[moves.reader]
    u, v = graph.edges.T
    both = free[u] & free[v]
    uncut = np.unique(
        np.concatenate(
            [
                np.stack([number[moves.thing[reading]], vertex[moves.reader[reading]]], 1),
                np.stack([vertex[v[both]], vertex[u[both]]], 1),
            ]
        ),
        axis=0,
    )
    # Whole numbers of 32 bits, rounded down; nothing that must not be cut can be the cheaper.
    scale = 1e9 / cost.sum()
    capacity = np.floor(cost[things] * scale)
    size = 2 + n_free + len(things)
    network = csr_array(
        (
            np.concatenate([capacity, np.full(len(uncut), 2e9)]).astype(np.int32),
            (
                np.concatenate([vertex[moves.producer[things]], uncut[:, 0]]),
                np.concatenate([number[things], uncut[:, 1]]),
            ),
        ),
        shape=(size, size),
    )
    return float(maximum_flow(network, 0, 1).flow_value / scale)
