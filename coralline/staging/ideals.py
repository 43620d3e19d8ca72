"""The exact planner: a search over down-sets, with proof.

A plan is a chain of down-sets {} = D[0] < D[1] < ... < D[K] = V of the graph (sets that hold the
ancestors of their members; also called ideals): D[s] is everything in the first s stages. Real
networks have few down-sets, often V + 1, so a search over them is short where a solver for
integer programmes sees V K binaries.

The search decides whether there is a plan better than a target. It goes stage by stage: from
every D[s] it has, it enumerates the D[s + 1] that leave stage s below the target, taking or
leaving one operator at a time in a topological order, and drops a branch as soon as one of
these, counted over what is decided, reaches its limit:

- stage s: work, tensors in, and tensors out that an operator left behind reads;
- the r stages after it: work left behind, at what it takes on the fastest of them, and tensors
  that must still be sent to it, over r;
- both together, with the work that is not decided, over r + 1. For `latency` this one alone,
  plus what D[s] cost so far;
- the parameters of stage s, and of the stages after it, over r, against the memory limit.

Equal down-sets are kept once. One that can take a further operator x is dropped where no
completion loses by moving x forward: work[x] and the transfers that x ends outweigh the
transfers that it begins. Then stages may become empty; the plan found is cut again into K runs,
and where that is not below the target either, the search is repeated without this rule.

A refused target is a lower bound. The first plan comes from splits of orders (coralline.staging.
split); targets just below the best value prove it optimal, and where such a search is too long,
lower ones give what bound they can.

For `peak-memory` a second search counts the hop-weighted crossings of plans within the peak that
the first one found: what a border costs are the edges across it, and their sum counts.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from time import perf_counter
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import load_device
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging.bounds import (
    MAX_NODES,
    Moves,
    Room,
    crossings_bound,
    cut_bound,
    least_values,
    minimum_cut,
    windows,
    work_bound,
)
from coralline.staging.problem import Proposal, StagingProblem, evaluate, no_plan, none_found
from coralline.staging.split import (
    INNER,
    SplitArguments,
    search_orders,
    split,
    split_arguments,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

REFUSED, FOUND, GAVE_UP, FULL = 0, 1, 2, 3

_MARGIN = 1e-7
"""A plan must be better by this share to be searched for."""

_ROUNDING = 1e-9
"""Of a refused target, what floating-point sums may err; they err much less."""

_FIRST_STEPS = 20_000
"""Operators taken or left in the first search: about 2 ms."""

_ORDERS_S = 0.2
"""About how long orders are tried before the clock is looked at."""

_FIRST_STATES = 2**12

_STATE_BYTES = 2**29
"""Bound on the memory of the down-sets held."""

UNDECIDED, LEFT, BEFORE, TAKEN = 0, 1, 2, 3

# Columns of `Costs.table`.
OVERHEAD, IN_MS, OUT_MS, STREAM, HOP = 0, 1, 2, 3, 4
LATER, LATER_IN, LATER_IN_MOST, LATER_STREAM, LATER_CACHE, FROM_STREAM, FROM_CACHE = range(5, 12)

# Sums over what is decided, columns of `Space.sums`.
IN, OUT, OPEN, WORK, PARAMS, CACHE, COUNT = 0, 1, 2, 3, 4, 5, 6
LEFT_WORK, LEFT_PARAMS, LEFT_CACHE, FREE = 7, 8, 9, 10


class Costs(NamedTuple):
    """A problem as the search reads it; K stages, V operators, T tensors, C readings.

    Operators are numbered by a topological order. The model's inputs are written by a further
    operator V, which is before all stages.

    Attributes:
        additive: Whether the stages' costs are summed; else the largest counts.
        memory: The most parameters of a stage.
        table: float64 (K, 12), a row for each stage: its rates, as in `SplitArguments`; what a
            unit of `size` costs that is open at its end; and of the stages after it the
            overheads, the least and the largest rate in, the least rate of streaming, the sum
            of the caches; the last two again with the stage itself.
        work, cache: float64 (K, V).
        later: float64 (K, V): the least work of each operator on the stages after.
        first, last: int64 (V,): the first and the last stage where each operator can be.
        write_start, read_start: int64 (V + 1,).
    """

    additive: bool
    memory: float
    table: Floats
    work: Floats
    cache: Floats
    later: Floats
    params: Floats
    size: Floats
    fetch: Floats
    first: Ints
    last: Ints
    producer: Ints
    consumer_start: Ints
    consumers: Ints
    write_start: Ints
    read_start: Ints
    read_tensor: Ints


class Space(NamedTuple):
    """Arrays the search works in; S down-sets of W words, V operators, T tensors.

    Attributes:
        keys: uint64 (S, W): the down-sets held, as bits.
        came_from: int64 (S,): the down-set one stage before.
        cost: float64 (S,): of all stages up to it, or of the largest.
        slots: int64 (4 S,): hash table of the down-sets after the present stage.
        key: uint64 (2, W): the present down-set, and the last border of the plan found.
        state: int8 (V + 1,): UNDECIDED, LEFT behind, BEFORE this stage or TAKEN.
        reads: int64 (T, 2): readers taken in this stage, if it does not write the tensor, and
            readers left behind.
        sums: float64 (V + 2, 11): sums over what is decided, before each decision and after the
            last; and space for another.
        stack: int64 (V, 3): the decisions: operator, whether taken, and length of the trail.
        trail: int64 (V,): operators left behind, each followed by its descendants.
        stop: bool (1,): set from outside to end the search.
    """

    keys: NDArray[np.uint64]
    came_from: Ints
    cost: Floats
    slots: Ints
    key: NDArray[np.uint64]
    state: NDArray[np.int8]
    reads: Ints
    sums: Floats
    stack: Ints
    trail: Ints
    stop: NDArray[np.bool_]


def costs_of(
    problem: StagingProblem, c: SplitArguments, order: Ints, first: Ints, last: Ints
) -> Costs:
    """The problem as the search reads it.

    Args:
        c: The problem's, of its objective or of its crossings.
        order: int64 (V,): a topological order.
        first, last: int64 (V,), by the graph's numbers.
    """
    graph, n, n_stages = problem.graph, problem.graph.n_nodes, problem.n_stages
    position = np.empty(n + 1, np.int64)
    position[order] = np.arange(n)
    position[MODEL_INPUT] = n
    hops = bool(c.balance.any())
    if hops:
        writer, reader = graph.edges.T
        tensor = np.arange(len(writer))
        size, fetch = problem.edge_weight.astype(float), np.zeros(len(writer))
    else:
        writer, reader, tensor = graph.tensor_producer, graph.consumers, graph.consumer_tensor
        size, fetch = c.size, c.fetch
    writer = position[writer]
    by_writer = np.argsort(writer, kind="stable")
    producer = writer[by_writer]
    number = np.empty(len(by_writer), np.int64)
    number[by_writer] = np.arange(len(by_writer))
    tensor, reader = number[tensor], position[reader]
    by_tensor, by_reader = np.argsort(tensor, kind="stable"), np.argsort(reader, kind="stable")
    node = np.arange(n + 1)
    rates, work, cache = c.rates[c.kind], c.work[:, order][c.kind], c.cache[:, order][c.kind]
    table = np.zeros((n_stages, 12))
    table[:, :4], table[:, HOP] = rates, hops
    later = work.copy()
    most = cache.max(axis=1)
    for s in range(n_stages - 1):
        after = rates[s + 1 :]
        table[s, LATER] = after[:, OVERHEAD].sum()
        table[s, LATER_IN], table[s, LATER_IN_MOST] = after[:, IN_MS].min(), after[:, IN_MS].max()
        table[s, LATER_STREAM], table[s, LATER_CACHE] = after[:, STREAM].min(), most[s + 1 :].sum()
        table[s, FROM_STREAM], table[s, FROM_CACHE] = rates[s:, STREAM].min(), most[s:].sum()
        later[s] = work[s + 1 :].min(axis=0)
    return Costs(
        additive=c.additive,
        memory=c.memory,
        table=table,
        work=work,
        cache=cache,
        later=later,
        params=c.params[order],
        size=size[by_writer],
        fetch=fetch[by_writer],
        first=first[order],
        last=last[order],
        producer=producer,
        consumer_start=np.searchsorted(tensor[by_tensor], np.arange(len(producer) + 1)),
        consumers=reader[by_tensor],
        write_start=np.searchsorted(producer, node),
        read_start=np.searchsorted(reader[by_reader], node),
        read_tensor=tensor[by_reader],
    )


def space_for(n: int, n_tensors: int, max_states: int) -> Space:
    """Space for that many operators, tensors and down-sets; a power of 2 of the last."""
    words = (n + 63) // 64
    return Space(
        keys=np.empty((max_states, words), np.uint64),
        came_from=np.empty(max_states, np.int64),
        cost=np.empty(max_states),
        slots=np.empty(4 * max_states, np.int64),
        key=np.empty((2, words), np.uint64),
        state=np.empty(n + 1, np.int8),
        reads=np.empty((n_tensors, 2), np.int64),
        sums=np.empty((n + 2, 11)),
        stack=np.empty((n, 3), np.int64),
        trail=np.empty(n, np.int64),
        stop=np.zeros(1, np.bool_),
    )


class Search:
    """Exact search on one problem, which can be stopped and taken up again.

    Attributes:
        order: A topological order, int64 (V,), that the best plan so far cuts into runs.
        stage: That plan, int64 (V,); None as long as there is none.
        value: Its objective, or its crossings; infinity without a plan.
        bound: Proven.
    """

    def __init__(
        self,
        problem: StagingProblem,
        seed: int = 0,
        order: Ints | None = None,
        within: float | None = None,
    ) -> None:
        """Start from an order, and search for fewest crossings within a peak if one is given."""
        self._problem, self._seed, self._counting = problem, seed, within is not None
        self._peak = within or 0.0
        self._arguments = split_arguments(problem, within)
        self._whole = problem.objective == "peak-memory"
        # A stage more always costs latency: with empty stages it would be another problem.
        self._relaxed = problem.objective != "latency"
        self._steps, self._share = _FIRST_STEPS, 1.0
        self._space: Space | None = None
        self._least: Floats | None = None
        self.order = problem.graph.topological_order
        self.stage: Ints | None = None
        self.value = np.inf
        self.bound = 0.0 if self._counting else work_bound(problem)
        goal = self.bound * (1.0 if self._whole else 1 + _MARGIN)
        self._arguments = self._arguments._replace(goal=goal)
        if order is None:
            self._accept(*search_orders(self._arguments, self.order, 0, seed))
        else:
            self.offer(order)
        if self.stage is not None and _is_only_order(problem.graph, self.order):
            self.bound = self.value

    @property
    def proven(self) -> bool:
        """Whether the plan is proven optimal."""
        return self.value * (1.0 if self._whole else 1 - 2 * _MARGIN) <= self.bound

    def offer(self, order: Ints) -> bool:
        """Split a topological order, int64 (V,); whether that is better than the best plan."""
        return self._accept(order, *split(self._arguments, order, self.value * (1 + _ROUNDING)))

    def _accept(self, order: Ints, stage: Ints, value: float) -> bool:
        if value == np.inf:
            return False
        evaluation = evaluate(self._problem, stage)
        value = evaluation.hop_weighted_crossings if self._counting else evaluation.value
        better = value < self.value
        if value <= self.value:
            self.order, self.stage, self.value = order, stage, value
        return better

    def _improve(self, orders: int, deadline: float) -> bool:
        """Try so many orders near the best plan's; whether one of them gave a better plan."""
        better, some = False, 1
        while orders > 0 and (start := perf_counter()) < deadline:
            some = min(some, orders)
            self._seed += 1
            arguments = (self._arguments, self.order, some, self._seed)
            better |= self._accept(*_interruptible(search_orders, arguments))
            orders -= some
            seconds = (perf_counter() - start) / some
            some = int(min(deadline - start, _ORDERS_S) / seconds) + 1
        return better

    def run(self, deadline: float) -> None:
        """Search until the plan is proven or the deadline, in seconds of `perf_counter`.

        Raises:
            PlanError: No plan keeps to the memory limit.
        """
        while not self.proven and perf_counter() < deadline:
            highest = self.value * (1.0 if self._whole else 1 - _MARGIN)
            target = highest
            if self._share < 1 and highest < np.inf:
                target = self.bound + (highest - self.bound) * self._share
            if self._whole and target < np.inf:
                target = float(np.ceil(target))
            outcome, stage = self._decide(target, deadline)
            if outcome == REFUSED:
                if target == np.inf:
                    raise no_plan(self._problem)
                self.bound = max(self.bound, target * (1.0 if self._whole else 1 - _ROUNDING))
                self._share = min(2 * self._share, 1.0)
            elif stage is not None and self.offer(order_of(self._problem, stage)):
                self._share = 1.0
            elif outcome == FOUND:
                # The plan has empty stages, and cut into K runs it is no better.
                if not self._relaxed:
                    return
                self._relaxed, self._share = False, 1.0
            else:
                # Better orders first, in about as much time, then lower targets, then more steps.
                orders = 2 * self._steps // self._problem.graph.n_nodes + 1
                self._share = 1.0 if self._improve(orders, deadline) else self._share / 2
                if self._share < 0.1:
                    self._share = 1.0
                    self._work_harder()

    def _work_harder(self) -> None:
        """Take more steps; and once what takes longer than most problems."""
        problem = self._problem
        self._steps *= 4
        if self._least is None and problem.graph.n_nodes <= MAX_NODES:
            self._least = least_values(problem)
            bound = crossings_bound(problem, self._peak) if self._counting else cut_bound(problem)
            self.bound = max(self.bound, bound)

    def _decide(self, target: float, deadline: float) -> tuple[int, Ints | None]:
        """Search for a plan below the target: the outcome, and the plan if there is one."""
        problem, graph = self._problem, self._problem.graph
        first, last = self._windows(target)
        costs = costs_of(problem, self._arguments, self.order, first, last)
        if self._least is not None:
            costs.table[:, LATER] += later_cuts(problem, self._counting, first, last)
        n, n_tensors = graph.n_nodes, len(costs.size)
        if self._space is None:
            compile_search()
            self._space = space_for(n, n_tensors, _FIRST_STATES)
        # Stages of one kind can change places: the empty ones come last.
        empty = self._relaxed and len(self._arguments.rates) > 1
        while True:
            space = self._space
            arguments = (costs, space, target, self._relaxed, int(not empty), self._steps)
            if self._steps == _FIRST_STEPS:
                outcome, at = _search(*arguments)
            else:
                outcome, at = _interruptible(_search, arguments, space.stop, deadline)
            states = 8 * len(space.keys)
            row_bytes = space.keys.shape[1] * 8 + 48
            if outcome != FULL or states * row_bytes > _STATE_BYTES:
                break
            self._space = space_for(n, n_tensors, states)
        if at < 0:
            return outcome, None
        borders = [space.key[1]]
        while at > 0:
            borders.append(space.keys[at])
            at = space.came_from[at]
        bits = np.unpackbits(np.stack(borders).view(np.uint8), axis=1, count=n, bitorder="little")
        stage = np.empty(n, np.int64)
        stage[self.order] = len(borders) - bits.sum(axis=0)
        return outcome, stage

    def _windows(self, target: float) -> tuple[Ints, Ints]:
        """The first and the last stage, int64 (V,) each, of every operator below the target."""
        problem = self._problem
        if self._least is None:
            return chain_windows(self._arguments, self.order, target)
        return windows(problem, self._least, self._peak if self._counting else target)


def conclude(problem: StagingProblem, search: Search, deadline: float) -> Proposal:
    """Run a search to its end or the deadline, in seconds of `perf_counter`.

    For `peak-memory` a search for the fewest crossings follows.

    Raises:
        PlanError: No plan keeps to the memory limit, or none was found in time.
    """
    search.run(deadline)
    if search.stage is None:
        raise none_found(problem)
    if problem.objective != "peak-memory":
        return Proposal(search.stage, search.bound)
    crossings = Search(problem, 0, search.order, within=search.value)
    crossings.run(deadline)
    stage = search.stage if crossings.stage is None else crossings.stage
    return Proposal(stage, search.bound, int(np.ceil(crossings.bound)))


def _is_only_order(graph: ComputeGraph, order: Ints) -> bool:
    """Whether each operator of a topological order needs the one before it."""
    u, v = graph.edges.T
    n = graph.n_nodes
    return bool(np.isin(order[:-1] * n + order[1:], u * n + v).all())


def order_of(problem: StagingProblem, stage: Ints) -> Ints:
    """A topological order, int64 (V,), with the stages one after the other."""
    rank = np.empty(len(stage), np.int64)
    rank[problem.graph.topological_order] = np.arange(len(stage))
    return np.lexsort((rank, stage))


@cache
def compile_search() -> None:
    """Compile the search, or load it from numba's cache; the first problem in need of it does."""
    graph = ComputeGraph.build(
        "one", param_bytes=[0], tensor_bytes=[0], tensor_producer=[0], consumers=[[]]
    )
    problem = StagingProblem(graph, 1, load_device("edgetpu-usb"))
    zero = np.zeros(1, np.int64)
    costs = costs_of(problem, split_arguments(problem), zero, zero, zero)
    _search(costs, space_for(1, 1, 1), 1.0, True, 1, 1)


def _interruptible(function, arguments, stop=None, deadline=np.inf):  # type: ignore[no-untyped-def]
    """Call compiled code in a thread, so that Ctrl-C comes through.

    Args:
        stop: bool (1,): set to end the call at the deadline, in seconds of `perf_counter`, or at
            an interrupt; without it the call is short.
    """
    stop = np.zeros(1, np.bool_) if stop is None else stop
    stop[0] = False
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(function, *arguments)
        try:
            left = max(deadline - perf_counter(), 0.0)
            return future.result(left if left < np.inf else None)
        except TimeoutError:
            pass
        finally:
            stop[0] = True
        return future.result()


def later_cuts(problem: StagingProblem, counting: bool, first: Ints, last: Ints) -> Floats:
    """float64 (K,): what crosses the borders after the stage that follows each costs at least.

    Of transfers only those count that operators surely begin after stage s: what is written
    earlier may be paid for. A transfer is spread over the borders that it may cross; a crossing
    counts at each of them.

    Args:
        counting: Whether hop-weighted crossings are the cost.
        first, last: int64 (V,): the stages where each operator can be.
    """
    graph, n_stages = problem.graph, problem.n_stages
    cuts = np.zeros(n_stages)
    if (first > last).any():
        return cuts
    if counting:
        u, v = graph.edges.T
        moves = Moves(u, np.arange(len(u)), v)
    else:
        moves = Moves(graph.tensor_producer, graph.consumer_tensor, graph.consumers)
    latest = np.zeros(len(moves.producer), np.int64)
    np.maximum.at(latest, moves.thing, last[moves.reader])
    for s in range(n_stages - 2):
        if counting:
            cost, earliest = problem.edge_weight.astype(float), first[moves.producer]
            borders = np.ones(len(cost))
        else:
            cost = Room.of(problem, range(s + 1, n_stages)).crossing_ms(problem)
            cost[first[moves.producer] <= s] = 0.0
            earliest = first[moves.producer]
            borders = np.maximum(latest - earliest, 1)
        for border in range(s + 2, n_stages):
            may_cross = (earliest < border) & (border <= latest)
            share = np.where(may_cross, cost / borders, 0.0)
            cuts[s] += minimum_cut(graph, moves, share, last < border, first >= border)
    return cuts * (1 - _ROUNDING)


def chain_windows(c: SplitArguments, order: Ints, target: float) -> tuple[Ints, Ints]:
    """First and last stages, int64 (V,) each, from what one order shows at once.

    Where no edge passes over an operator, no sink comes before it and no source after it, all
    before it are its ancestors and all after it its descendants. So they are of whatever comes
    after and before it.
    """
    n, n_stages = len(order), len(c.kind)
    node = np.arange(n)
    position = np.empty(n, np.int64)
    position[order] = node
    is_source, is_sink = c.waits[order] == 0, np.diff(c.next_start)[order] == 0
    reach = np.zeros(n, np.int64)
    if len(c.next):
        writes = np.flatnonzero(np.diff(c.next_start))
        reach[position[writes]] = np.maximum.reduceat(position[c.next], c.next_start[writes])
    passed = np.concatenate([[0], np.maximum.accumulate(reach)[:-1]]) > node
    early = np.cumsum(is_sink) - is_sink > 0
    late = np.cumsum(is_source[::-1])[::-1] - is_source > 0
    alone = ~(passed | early | late)
    ends = []
    for way in (slice(None), slice(None, None, -1)):
        # Sums over each operator and all up to the last such one before it.
        kind, one = c.kind[way], alone[way]
        amounts = np.concatenate([np.minimum.accumulate(c.work[kind], axis=0), c.params[None]])
        amounts = amounts[:, order[way]]
        total = np.where(one, np.cumsum(amounts, axis=1), 0.0)
        before = np.maximum.accumulate(total, axis=1)
        held = np.where(one, before, before + amounts)
        rates, stages = c.rates[kind], np.arange(1, n_stages + 1)[:, None]
        cache = np.cumsum(c.cache[kind].max(axis=1))[:, None]
        stream = np.minimum.accumulate(rates[:, STREAM])[:, None]
        overhead = np.cumsum(rates[:, OVERHEAD])[:, None]
        need = held[:-1] + stream * np.maximum(held[-1] - cache, 0.0) + overhead
        fits = held[-1] <= stages * c.memory
        if not c.additive:
            fits &= need <= stages * target * (1 + _ROUNDING)
        ends.append(np.where(fits.any(axis=0), fits.argmax(axis=0), n_stages)[way][position])
    return ends[0], n_stages - 1 - ends[1]


@numba.njit(cache=True, nogil=True, error_model="numpy", **INNER)
def _take(c, space, s, v, sums):  # type: ignore[no-untyped-def]
    """Put an operator whose predecessors are before or in stage s into it."""
    space.state[v] = TAKEN
    space.key[0, v >> 6] ^= np.uint64(1) << np.uint64(v & 63)
    sums[WORK] += c.work[s, v]
    sums[PARAMS] += c.params[v]
    sums[CACHE] = min(sums[CACHE], c.cache[s, v])
    sums[COUNT] += 1
    sums[FREE] -= min(c.work[s, v], c.later[s, v])
    for r in range(c.read_start[v], c.read_start[v + 1]):
        t = c.read_tensor[r]
        if space.state[c.producer[t]] != TAKEN:
            if space.reads[t, 0] == 0:
                sums[IN] += c.size[t]
            space.reads[t, 0] += 1
    for t in range(c.write_start[v], c.write_start[v + 1]):
        if space.reads[t, 1] > 0:
            sums[OUT] += c.fetch[t]
            sums[OPEN] += c.size[t]


@numba.njit(cache=True, nogil=True, error_model="numpy", **INNER)
def _leave(c, space, s, v, sums, n_trail):  # type: ignore[no-untyped-def]
    """Leave an operator and its descendants to the stages after s; the trail's new length."""
    space.state[v] = LEFT
    space.trail[n_trail] = v
    at = n_trail
    n_trail += 1
    while at < n_trail:
        w = space.trail[at]
        at += 1
        sums[LEFT_WORK] += c.later[s, w]
        sums[LEFT_PARAMS] += c.params[w]
        sums[LEFT_CACHE] = min(sums[LEFT_CACHE], c.cache[s + 1, w])
        sums[FREE] -= min(c.work[s, w], c.later[s, w])
        for r in range(c.read_start[w], c.read_start[w + 1]):
            t = c.read_tensor[r]
            space.reads[t, 1] += 1
            if space.reads[t, 1] == 1:
                home = space.state[c.producer[t]]
                if home == TAKEN:
                    sums[OUT] += c.fetch[t]
                if home >= BEFORE:
                    sums[OPEN] += c.size[t]
        for e in range(c.consumer_start[c.write_start[w]], c.consumer_start[c.write_start[w + 1]]):
            x = c.consumers[e]
            if space.state[x] == UNDECIDED:
                space.state[x] = LEFT
                space.trail[n_trail] = x
                n_trail += 1
    return n_trail


@numba.njit(cache=True, nogil=True, error_model="numpy", **INNER)
def _stage_cost(row, sums):  # type: ignore[no-untyped-def]
    moved = row[IN_MS] * sums[IN] + row[OUT_MS] * sums[OUT] + row[HOP] * sums[OPEN]
    stream = row[STREAM] * max(sums[PARAMS] - sums[CACHE], 0.0)
    return row[OVERHEAD] + sums[WORK] + moved + stream


@numba.njit(cache=True, nogil=True, error_model="numpy", **INNER)
def _can_move(c, space, s, x, sums, target):  # type: ignore[no-untyped-def]
    """Whether an operator left behind can as well be in stage s, whatever comes after."""
    row, longer = c.table[s], space.sums[len(space.sums) - 1]
    longer[:] = sums
    ended = begun = 0.0
    for r in range(c.read_start[x], c.read_start[x + 1]):
        t = c.read_tensor[r]
        here = space.state[c.producer[t]] == TAKEN
        if space.reads[t, 1] == 1:
            ended += c.size[t]
            if here:
                longer[OUT] -= c.fetch[t]
        if not here and space.reads[t, 0] == 0:
            longer[IN] += c.size[t]
    for t in range(c.write_start[x], c.write_start[x + 1]):
        if c.consumer_start[t + 1] > c.consumer_start[t]:
            begun += c.size[t]
            longer[OUT] += c.fetch[t]
    rate = row[LATER_IN] if ended > begun else row[LATER_IN_MOST]
    if c.later[s, x] + (ended - begun) * (rate + row[HOP]) < 0:
        return False
    longer[WORK] += c.work[s, x]
    longer[PARAMS] += c.params[x]
    longer[CACHE] = min(sums[CACHE], c.cache[s, x])
    return longer[PARAMS] <= c.memory and (c.additive or _stage_cost(row, longer) < target)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _search(c, space, target, relaxed, least, max_steps):  # type: ignore[no-untyped-def]
    """Decide whether a plan has a value below `target`, and look for the best such plan.

    If costs add up it is the best; else better ones may be missed by moving operators forward
    up to a target that is not the last.

    Args:
        c: Costs.
        space: Space to work in; its `key` has the last border of the plan, if one is found.
        relaxed: Whether a stage may become empty by moving operators forward.
        least: Of operators that a stage takes.

    Returns:
        REFUSED, FOUND, GAVE_UP or FULL; the down-set before the last border of the plan, or -1.
    """
    n_stages, n = c.work.shape
    words = space.keys.shape[1]
    one = np.uint64(1)
    state, stack, keys, slots = space.state, space.stack, space.keys, space.slots
    keys[0] = 0
    space.came_from[0] = -1
    space.cost[0] = 0.0
    n_states, first, end, found, steps = 1, 0, 1, -1, 0
    state[n] = BEFORE
    for s in range(n_stages - 1):
        later, row = n_stages - 1 - s, c.table[s]
        slots[:] = -1
        for base in range(first, end):
            so_far = space.cost[base]
            sums = space.sums[0]
            sums[:] = 0.0
            sums[CACHE] = sums[LEFT_CACHE] = np.inf
            space.key[0] = keys[base]
            space.reads[:] = 0
            to_place, rest_params = 0, 0.0
            for v in range(n):
                state[v] = UNDECIDED
                if keys[base, v >> 6] >> np.uint64(v & 63) & one:
                    state[v] = BEFORE
                else:
                    to_place += 1
                    rest_params += c.params[v]
                    sums[FREE] += min(c.work[s, v], c.later[s, v])
            spill = row[FROM_STREAM] * max(rest_params - row[FROM_CACHE], 0.0)
            # First the operators that every branch takes or leaves.
            n_trail = 0
            for v in range(n):
                if state[v] == UNDECIDED and c.first[v] > s:
                    n_trail = _leave(c, space, s, v, sums, n_trail)
            for v in range(n):
                if state[v] == UNDECIDED and c.last[v] <= s:
                    ready = True
                    for r in range(c.read_start[v], c.read_start[v + 1]):
                        home = state[c.producer[c.read_tensor[r]]]
                        ready = ready and home >= BEFORE
                    if ready:
                        _take(c, space, s, v, sums)
            depth = v = 0
            while True:
                sums = space.sums[depth]
                cost = _stage_cost(row, sums)
                room = sums[LEFT_CACHE] if later == 1 else row[LATER_CACHE]
                stream = row[LATER_STREAM] * max(sums[LEFT_PARAMS] - room, 0.0)
                rest = row[LATER] + row[LATER_IN] * sums[OPEN] + sums[LEFT_WORK] + stream
                spilt = row[STREAM] * max(sums[PARAMS] - sums[CACHE], 0.0) + stream
                both = cost + rest + sums[FREE] + max(spill - spilt, 0.0)
                keep = sums[PARAMS] <= c.memory and sums[LEFT_PARAMS] <= later * c.memory
                if c.additive:
                    keep = keep and so_far + both < target
                else:
                    keep = keep and max(so_far, cost) < target
                    keep = keep and rest < later * target and both < (later + 1) * target
                if keep:
                    # The first operator that is not decided has no predecessor that is not.
                    while v < n and state[v] != UNDECIDED:
                        v += 1
                    if v < n:
                        stack[depth, 0], stack[depth, 1], stack[depth, 2] = v, 1, n_trail
                        depth += 1
                        space.sums[depth] = sums
                        _take(c, space, s, v, space.sums[depth])
                        steps += 1
                        if steps > max_steps or (steps & 255 == 0 and space.stop[0]):
                            return GAVE_UP, found
                        continue
                    # Everything is decided: the next down-set.
                    left = to_place - sums[COUNT]
                    keep = sums[COUNT] >= least and (relaxed or left >= later)
                    if keep and (later == 1 or left == 0):
                        # What is left is the last stage, and its cost exact.
                        found = base
                        space.key[1] = space.key[0]
                        target = so_far + both if c.additive else max(so_far, cost, rest)
                        keep = False
                    for d in range(depth):
                        if keep and relaxed and stack[d, 1] == 0:
                            keep = not _can_move(c, space, s, stack[d, 0], sums, target)
                    if keep:
                        h = np.uint64(1469598103934665603)
                        for w in range(words):
                            h = (h ^ space.key[0, w]) * np.uint64(0x9E3779B97F4A7C15)
                            h ^= h >> np.uint64(29)
                        slot = np.int64(h & np.uint64(len(slots) - 1))
                        i = slots[slot]
                        while i >= 0:
                            same = True
                            for w in range(words):
                                same = same and keys[i, w] == space.key[0, w]
                            if same:
                                break
                            slot = (slot + 1) & (len(slots) - 1)
                            i = slots[slot]
                        if i < 0:
                            if n_states == len(keys):
                                return FULL, found
                            i = slots[slot] = n_states
                            n_states += 1
                            keys[i] = space.key[0]
                            space.cost[i] = np.inf
                        value = so_far + cost if c.additive else max(so_far, cost)
                        if value < space.cost[i]:
                            space.cost[i] = value
                            space.came_from[i] = base
                # Undo decisions up to the last that took an operator, and leave that behind.
                while depth > 0:
                    v = stack[depth - 1, 0]
                    if stack[depth - 1, 1]:
                        state[v] = UNDECIDED
                        space.key[0, v >> 6] ^= one << np.uint64(v & 63)
                        for r in range(c.read_start[v], c.read_start[v + 1]):
                            t = c.read_tensor[r]
                            if state[c.producer[t]] != TAKEN:
                                space.reads[t, 0] -= 1
                        if c.last[v] > s:
                            stack[depth - 1, 1] = 0
                            space.sums[depth] = space.sums[depth - 1]
                            n_trail = _leave(c, space, s, v, space.sums[depth], n_trail)
                            break
                    else:
                        while n_trail > stack[depth - 1, 2]:
                            n_trail -= 1
                            w = space.trail[n_trail]
                            state[w] = UNDECIDED
                            for r in range(c.read_start[w], c.read_start[w + 1]):
                                space.reads[c.read_tensor[r], 1] -= 1
                    depth -= 1
                if depth == 0:
                    break
        first, end = end, n_states
    return REFUSED if found < 0 else FOUND, found
