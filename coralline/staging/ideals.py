"""The exact planner: a search over down-sets, with proof.

A plan is a chain of down-sets {} = D[0] < D[1] < ... < D[K] = V of the graph (sets that hold the
ancestors of their members; also called ideals): D[s] is everything in the first s stages. Real
networks have few down-sets, often V + 1, so a search over them is short where a solver for
integer programmes sees V K binaries.

The search decides whether there is a plan better than a target. It goes stage by stage: from
every D[s] it has, it enumerates the D[s + 1] that leave stage s below the target, taking or
leaving one ready operator at a time, and drops a branch as soon as one of these, counted over
what is decided, reaches its limit:

- stage s: work, tensors in, and tensors out that an operator left behind reads;
- the r stages after it: work left behind, and tensors that must still be sent to it, over r;
- both together, over r + 1. For `latency` this one alone, plus what D[s] cost so far.

Equal down-sets are kept once. One that can take a further operator x is dropped where no
completion loses by moving x forward: work[x] and the transfers that x ends outweigh the
transfers that it begins. Then stages may become empty; the plan found is cut again into K runs,
and where that is not below the target either, the search is repeated without this rule.

A refused target is a lower bound. The first plan comes from splits of orders (coralline.staging.
split); targets just below the best value prove it optimal, and where such a search is too long,
lower ones give what bound they can.
"""

from __future__ import annotations

from functools import cache
from time import perf_counter
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB, load_device
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging.bounds import work_bound
from coralline.staging.problem import StagingProblem, evaluate
from coralline.staging.split import (
    compile_split,
    search_orders,
    split_arguments,
    split_order,
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

_STEPS_PER_SECOND = 1e7
"""A guess for the first search under a time limit."""

_FIRST_STATES = 2**12

_STATE_BYTES = 2**29
"""Bound on the memory of the down-sets held."""


class Costs(NamedTuple):
    """A problem as the search reads it; V operators, T tensors, C readings.

    A stage costs overhead + tensors in + tensors out + max(sum of a, sum of b - free).

    Attributes:
        free: What the parameters in one cache would cost to stream.
        a, b: float64 (V,): work without and with streaming of all parameters; fetching the
            model's outputs is work of their producers.
        send, fetch: float64 (T,).
        write_start: int64 (V + 1,): the first tensor of each operator.
        read_start, read_tensor: int64 (V + 1,), (C,): the tensors each operator reads.
        above_a, above_b, below_a, below_b: float64 (V,): `a` and `b` over each operator and
            all its ancestors, or descendants.
    """

    n_stages: int
    latency: bool
    overhead: float
    free: float
    a: Floats
    b: Floats
    send: Floats
    fetch: Floats
    producer: Ints
    consumer_start: Ints
    consumers: Ints
    write_start: Ints
    read_start: Ints
    read_tensor: Ints
    above_a: Floats
    above_b: Floats
    below_a: Floats
    below_b: Floats


class Space(NamedTuple):
    """Arrays the search works in; S down-sets of W words, V operators, T tensors.

    Attributes:
        keys: uint64 (S, W): the down-sets held, as bits by position in the order.
        came_from: int64 (S,): the down-set one stage before.
        cost: float64 (S,): of all stages up to it.
        slots: int64 (4 S,): hash table of the down-sets after the present stage.
        key, candidates: uint64 (W,): the present down-set, and the ready operators.
        state: int8 (V,): 0 undecided, 1 taken, 2 left behind.
        waits: int64 (V,): tensors read whose producer is not taken.
        unread: int64 (T,): readers not taken.
        here: bool (T,): written in the present stage.
        read_here, read_later: int64 (T,): readers taken in this stage, and left behind.
        stack, taking, saved, mark: What to undo.
        trail: int64 (V,): operators left behind, each followed by its descendants.
        forced, is_forced: (V,): operators that every branch takes.
        stage: int64 (V,): the plan found.
    """

    keys: NDArray[np.uint64]
    came_from: Ints
    cost: Floats
    slots: Ints
    key: NDArray[np.uint64]
    candidates: NDArray[np.uint64]
    state: NDArray[np.int8]
    waits: Ints
    unread: Ints
    here: NDArray[np.bool_]
    read_here: Ints
    read_later: Ints
    stack: Ints
    taking: NDArray[np.bool_]
    saved: Floats
    mark: Ints
    trail: Ints
    forced: Ints
    is_forced: NDArray[np.bool_]
    position: Ints
    stage: Ints


def costs_of(problem: StagingProblem) -> Costs:
    """The problem as the search reads it."""
    graph, device = problem.graph, problem.devices[0]
    params = graph.param_bytes.astype(float)
    send = graph.tensor_bytes / MIB * device.in_ms_per_mib
    fetch = graph.tensor_bytes / MIB * device.out_ms_per_mib
    overhead, stream = float(device.stage_overhead_ms), device.stream_ms_per_mib / MIB
    given = graph.tensor_is_output & (graph.tensor_producer != MODEL_INPUT)
    n, producer = graph.n_nodes, np.array(graph.tensor_producer)
    a = problem.node_ms[0] + np.bincount(producer[given], weights=fetch[given], minlength=n)
    fetch[given] = 0.0
    b, free = a + stream * params, stream * device.parameter_cache_bytes
    if problem.objective == "peak-memory":
        a, b, overhead, free = params, np.zeros(n), 0.0, 0.0
        send, fetch = np.zeros(len(send)), np.zeros(len(fetch))
    consumer_start, consumers = np.array(graph.consumer_start), np.array(graph.consumers)
    write_start = np.searchsorted(producer, np.arange(n + 1))
    by_reader = np.argsort(consumers, kind="stable")
    read_start = np.searchsorted(consumers[by_reader], np.arange(n + 1))
    read_tensor = graph.consumer_tensor[by_reader]
    order = np.array(graph.topological_order)
    above = _closure(order, read_start, producer[read_tensor], a, b)
    below = _closure(order[::-1].copy(), consumer_start[write_start], consumers, a, b)
    return Costs(
        n_stages=problem.n_stages,
        latency=problem.objective == "latency",
        overhead=overhead,
        free=free,
        a=a,
        b=b,
        send=send,
        fetch=fetch,
        producer=producer,
        consumer_start=consumer_start,
        consumers=consumers,
        write_start=write_start,
        read_start=read_start,
        read_tensor=read_tensor,
        above_a=above[0],
        above_b=above[1],
        below_a=below[0],
        below_b=below[1],
    )


def space_for(n: int, n_tensors: int, max_states: int) -> Space:
    """Space for that many operators, tensors and down-sets; a power of 2 of the last."""
    words = (n + 63) // 64
    return Space(
        keys=np.empty((max_states, words), np.uint64),
        came_from=np.empty(max_states, np.int64),
        cost=np.empty(max_states),
        slots=np.empty(4 * max_states, np.int64),
        key=np.empty(words, np.uint64),
        candidates=np.empty(words, np.uint64),
        state=np.empty(n, np.int8),
        waits=np.empty(n, np.int64),
        unread=np.empty(n_tensors, np.int64),
        here=np.empty(n_tensors, np.bool_),
        read_here=np.empty(n_tensors, np.int64),
        read_later=np.empty(n_tensors, np.int64),
        stack=np.empty(n + 1, np.int64),
        taking=np.empty(n + 1, np.bool_),
        saved=np.empty((n + 1, 9)),
        mark=np.empty(n + 1, np.int64),
        trail=np.empty(n, np.int64),
        forced=np.empty(n, np.int64),
        is_forced=np.empty(n, np.bool_),
        position=np.empty(n, np.int64),
        stage=np.empty(n, np.int64),
    )


class Search:
    """Exact search on one problem, which can be stopped and taken up again.

    Attributes:
        stage: The best plan so far, int64 (V,).
        value: Its objective.
        bound: Proven.
    """

    def __init__(self, problem: StagingProblem, seed: int = 0) -> None:
        self._problem, self._seed = problem, seed
        self._arguments = split_arguments(problem)
        self._whole = problem.objective == "peak-memory"
        # A stage more always costs latency: with empty stages it would be another problem.
        self._relaxed = problem.objective != "latency"
        self._steps, self._share = _FIRST_STEPS, 1.0
        self._rate = _STEPS_PER_SECOND
        self._costs: Costs | None = None
        self._space: Space
        self.bound = work_bound(problem)
        self.value = np.inf
        start = perf_counter()
        self.offer(search_orders(self._arguments, problem.graph.topological_order, 0, seed))
        self._seconds_per_order = (perf_counter() - start) / 4

    @property
    def proven(self) -> bool:
        """Whether the plan is proven optimal."""
        return self.value * (1 - 2 * _MARGIN) <= self.bound

    def offer(self, order: Ints) -> bool:
        """Split a topological order, int64 (V,); whether that is better than the best plan."""
        stage = split_order(self._problem, order)
        value = evaluate(self._problem, stage).value
        better = value < self.value
        if value <= self.value:
            self._order, self.stage, self.value = order, stage, value
        return better

    def improve(self, steps: int) -> bool:
        """Try `steps` orders near the best plan's; whether one of them gave a better plan."""
        self._seed += 1
        return self.offer(search_orders(self._arguments, self._order, steps, self._seed))

    def run(self, deadline: float) -> None:
        """Search until the plan is proven or the deadline, in seconds of `perf_counter`."""
        while not self.proven and (left := deadline - perf_counter()) > 0:
            highest = self.value * (1.0 if self._whole else 1 - _MARGIN)
            target = self.bound + (highest - self.bound) * self._share
            if self._whole:
                target = float(np.ceil(target))
            outcome = self._decide(target, int(min(self._steps, left * self._rate)))
            if outcome == REFUSED:
                self.bound = max(self.bound, target * (1.0 if self._whole else 1 - _ROUNDING))
                self._share = 1.0
            elif outcome == FOUND:
                if not self.offer(order_of(self._problem, self._space.stage)):
                    if not self._relaxed:
                        return
                    # The plan has empty stages, and cut into K runs it is no better.
                    self._relaxed = False
                self._share = 1.0
            else:
                # Better orders first, then lower targets, then more steps.
                n = self._problem.graph.n_nodes
                most = max(deadline - perf_counter(), 0.0) / self._seconds_per_order
                if self.improve(int(min(self._steps // (4 * n) + 1, most))):
                    self._share = 1.0
                else:
                    self._share /= 2
                if self._share < 0.1:
                    self._share = 1.0
                    self._steps *= 4

    def _decide(self, target: float, steps: int) -> int:
        if self._costs is None:
            self._costs = costs_of(self._problem)
            self._space = self._space_for(_FIRST_STATES)
        while True:
            start = perf_counter()
            order = np.array(self._order)
            outcome, used = _search(
                self._costs, self._space, order, target, self._relaxed, max(steps, 1)
            )
            if used > _FIRST_STEPS / 2:
                self._rate = used / (perf_counter() - start)
            states = 8 * len(self._space.keys)
            row_bytes = self._space.keys.shape[1] * 8 + 48
            if outcome != FULL or states * row_bytes > _STATE_BYTES:
                return outcome
            self._space = self._space_for(states)

    def _space_for(self, max_states: int) -> Space:
        graph = self._problem.graph
        return space_for(graph.n_nodes, graph.n_tensors, max_states)


def order_of(problem: StagingProblem, stage: Ints) -> Ints:
    """A topological order, int64 (V,), with the stages one after the other."""
    rank = np.empty(len(stage), np.int64)
    rank[problem.graph.topological_order] = np.arange(len(stage))
    return np.lexsort((rank, stage))


@cache
def compile_search() -> None:
    """Compile the search, or load it from numba's cache."""
    compile_split()
    graph = ComputeGraph.build(
        "one", param_bytes=[0], tensor_bytes=[0], tensor_producer=[0], consumers=[[]]
    )
    problem = StagingProblem(graph, 1, load_device("edgetpu-usb"))
    _search(costs_of(problem), space_for(1, 1, 1), np.zeros(1, np.int64), 1.0, True, 1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _closure(sequence, start, neighbours, a, b):  # type: ignore[no-untyped-def]
    """Sums of `a` and `b` over each node and all that is reached from it; -1 is no neighbour."""
    n = len(sequence)
    words = n // 64 + 1
    one = np.uint64(1)
    reached = np.zeros((n, words), np.uint64)
    sum_a, sum_b = a.copy(), b.copy()
    for v in sequence:
        row = reached[v]
        single = -1
        for e in range(start[v], start[v + 1]):
            u = neighbours[e]
            if u < 0:
                continue
            if single == -1:
                single = u
            elif single != u:
                single = -2
            for w in range(words):
                row[w] |= reached[u, w]
        if single >= 0:
            sum_a[v] += sum_a[single]
            sum_b[v] += sum_b[single]
        elif single == -2:
            for w in range(words):
                if row[w] != 0:
                    for i in range(64):
                        if row[w] >> np.uint64(i) & one:
                            sum_a[v] += a[64 * w + i]
                            sum_b[v] += b[64 * w + i]
        row[v // 64] |= one << np.uint64(v % 64)
    return sum_a, sum_b


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _search(c, space, order, target, relaxed, max_steps):  # type: ignore[no-untyped-def]
    """Decide whether a plan has a value below `target`; for latency find the best such plan.

    Args:
        c: Costs.
        space: Space to work in; its `stage` is the plan, if one is found.

    Returns:
        REFUSED, FOUND, GAVE_UP or FULL; steps taken.
    """
    n_stages, latency, overhead, free = c.n_stages, c.latency, c.overhead, c.free
    a, b, send, fetch = c.a, c.b, c.send, c.fetch
    producer, consumer_start, consumers = c.producer, c.consumer_start, c.consumers
    write_start, read_start, read_tensor = c.write_start, c.read_start, c.read_tensor
    above_a, above_b, below_a, below_b = c.above_a, c.above_b, c.below_a, c.below_b
    keys, came_from, cost_so_far, slots = space.keys, space.came_from, space.cost, space.slots
    n, n_tensors, words = len(order), len(producer), keys.shape[1]
    one = np.uint64(1)
    position = space.position
    for p in range(n):
        position[order[p]] = p
    for w in range(words):
        keys[0, w] = 0
    came_from[0] = -1
    cost_so_far[0] = 0.0
    n_states, first, last = 1, 0, 1
    found = False
    key, candidates = space.key, space.candidates
    state, waits = space.state, space.waits
    unread, here, read_here, read_later = (
        space.unread,
        space.here,
        space.read_here,
        space.read_later,
    )
    stack, taking, saved = space.stack, space.taking, space.saved
    trail, trail_mark, forced, is_forced = space.trail, space.mark, space.forced, space.is_forced
    steps = 0

    for s in range(n_stages - 1):
        later = n_stages - 1 - s
        for i in range(len(slots)):
            slots[i] = -1
        for base in range(first, last):
            for w in range(words):
                key[w] = keys[base, w]
                candidates[w] = 0
            so_far = cost_so_far[base]
            base_a = base_b = rest_a = rest_b = 0.0
            n_taken = 0
            for v in range(n):
                p = position[v]
                waits[v] = 0
                is_forced[v] = False
                state[v] = 0
                if key[p >> 6] >> np.uint64(p & 63) & one:
                    state[v] = 1
                    base_a += a[v]
                    base_b += b[v]
                    n_taken += 1
                else:
                    rest_a += a[v]
                    rest_b += b[v]
            n_base = n_taken
            # Sums over what is decided: in, out; sent later and fetched from here at least
            # once because of operators left behind; the same if the stage ended now.
            moved_in = out_now = out_least = sent_now = sent_least = 0.0
            taken_a = taken_b = left_a = left_b = 0.0
            for t in range(n_tensors):
                home = producer[t] < 0 or state[producer[t]] == 1
                here[t] = False
                read_here[t] = read_later[t] = unread[t] = 0
                for e in range(consumer_start[t], consumer_start[t + 1]):
                    w = consumers[e]
                    if state[w] != 1:
                        unread[t] += 1
                        if not home:
                            waits[w] += 1
                if home and unread[t] > 0:
                    sent_now += send[t]
            if latency:
                stage_limit = later_limit = np.inf
                both_limit = target - so_far
            else:
                stage_limit, later_limit = target, later * target
                both_limit = (later + 1) * target
            n_trail = 0
            depth = 0
            # First the operators that no branch can take or leave.
            feasible = True
            n_forced = 0
            for p in range(n):
                v = order[p]
                if state[v] == 1:
                    continue
                if not latency:
                    must = (
                        later * overhead + max(below_a[v], below_b[v] - later * free) >= later_limit
                    )
                    alone = max(above_a[v] - base_a, above_b[v] - base_b - free)
                    ever = max(above_a[v], above_b[v] - (s + 1) * free) + (s + 1) * overhead
                    cannot = overhead + alone >= target or ever >= (s + 1) * target
                    if must and cannot:
                        feasible = False
                        break
                    for e in range(read_start[v], read_start[v + 1]):
                        # Only rounding can part an operator from its ancestors here.
                        u = producer[read_tensor[e]]
                        must = must and (u < 0 or state[u] == 1 or is_forced[u])
                    is_forced[v] = must
                    if must:
                        forced[n_forced] = v
                        n_forced += 1
                    elif cannot:
                        state[v] = 2
                        left_a += a[v]
                        left_b += b[v]
                        for r in range(read_start[v], read_start[v + 1]):
                            t = read_tensor[r]
                            read_later[t] += 1
                            if read_later[t] == 1 and (producer[t] < 0 or state[producer[t]] == 1):
                                sent_least += send[t]
                if waits[v] == 0 and state[v] == 0:
                    candidates[p >> 6] |= one << np.uint64(p & 63)
            if not feasible:
                continue
            trail_mark[0] = 0
            descend = True
            while True:
                if descend:
                    # Which operator to decide next: a forced one, or the first ready one.
                    pick = -1
                    if depth < n_forced:
                        pick = position[forced[depth]]
                    else:
                        for w in range(words):
                            if candidates[w]:
                                bits = candidates[w]
                                i = 0
                                while not bits & np.uint64(255):
                                    bits >>= np.uint64(8)
                                    i += 8
                                while not bits & one:
                                    bits >>= one
                                    i += 1
                                pick = 64 * w + i
                                break
                    if pick >= 0:
                        stack[depth] = order[pick]
                        taking[depth] = True
                    else:
                        # Everything is decided: the next down-set.
                        stage_cost = overhead + moved_in + out_now + max(taken_a, taken_b - free)
                        left = n - n_taken
                        rest_cost = 0.0
                        if left > 0:
                            rest_cost = (
                                later * overhead
                                + sent_now
                                + max(rest_a - taken_a, rest_b - taken_b - later * free)
                            )
                        keep = (
                            n_taken > n_base
                            and stage_cost < stage_limit
                            and rest_cost < later_limit
                            and stage_cost + rest_cost < both_limit
                            and (relaxed or left >= later)
                        )
                        if keep and (later == 1 or left == 0):
                            # What is left is the last stage, and its cost exact.
                            found = True
                            _write_stages(space, base)
                            if not latency:
                                return FOUND, steps
                            target = so_far + stage_cost + rest_cost
                            both_limit = target - so_far
                            keep = False
                        if keep and relaxed:
                            for d in range(depth):
                                if taking[d]:
                                    continue
                                x = stack[d]
                                gain = a[x]
                                more_in = 0.0
                                less_out = 0.0
                                for r in range(read_start[x], read_start[x + 1]):
                                    t = read_tensor[r]
                                    if unread[t] == 1:
                                        gain += send[t]
                                    if here[t]:
                                        if unread[t] == 1:
                                            less_out += fetch[t]
                                    elif read_here[t] == 0:
                                        more_in += send[t]
                                for t in range(write_start[x], write_start[x + 1]):
                                    if unread[t] > 0:
                                        gain -= send[t]
                                        less_out -= fetch[t]
                                longer = (
                                    overhead
                                    + moved_in
                                    + more_in
                                    + out_now
                                    - less_out
                                    + max(taken_a + a[x], taken_b + b[x] - free)
                                )
                                if gain >= 0 and longer < stage_limit:
                                    keep = False
                                    break
                        if keep:
                            value = so_far + stage_cost
                            h = np.uint64(1469598103934665603)
                            for w in range(words):
                                h = (h ^ key[w]) * np.uint64(0x9E3779B97F4A7C15)
                                h ^= h >> np.uint64(29)
                            mask = np.uint64(len(slots) - 1)
                            slot = h & mask
                            i = slots[slot]
                            while i >= 0:
                                same = True
                                for w in range(words):
                                    same = same and keys[i, w] == key[w]
                                if same:
                                    break
                                slot = (slot + one) & mask
                                i = slots[slot]
                            if i < 0:
                                i = n_states
                                if i == len(keys):
                                    return FULL, steps
                                n_states += 1
                                slots[slot] = i
                                for w in range(words):
                                    keys[i, w] = key[w]
                                came_from[i] = base
                                cost_so_far[i] = value
                            elif latency and value < cost_so_far[i]:
                                cost_so_far[i] = value
                                came_from[i] = base
                        descend = False
                        continue
                else:
                    # Undo the last decision; leave behind what was taken, or go further back.
                    if depth == 0:
                        break
                    depth -= 1
                    v = stack[depth]
                    p = position[v]
                    bit = one << np.uint64(p & 63)
                    if taking[depth]:
                        key[p >> 6] ^= bit
                        state[v] = 0
                        n_taken -= 1
                        for t in range(write_start[v], write_start[v + 1]):
                            here[t] = False
                            for e in range(consumer_start[t], consumer_start[t + 1]):
                                w = consumers[e]
                                if waits[w] == 0:
                                    q = position[w]
                                    candidates[q >> 6] &= ~(one << np.uint64(q & 63))
                                waits[w] += 1
                        for r in range(read_start[v], read_start[v + 1]):
                            t = read_tensor[r]
                            unread[t] += 1
                            if not here[t]:
                                read_here[t] -= 1
                    else:
                        while n_trail > trail_mark[depth]:
                            n_trail -= 1
                            w = trail[n_trail]
                            state[w] = 0
                            for r in range(read_start[w], read_start[w + 1]):
                                read_later[read_tensor[r]] -= 1
                    candidates[p >> 6] |= bit
                    moved_in, out_now = saved[depth, 0], saved[depth, 1]
                    out_least, sent_now = saved[depth, 2], saved[depth, 3]
                    sent_least, taken_a = saved[depth, 4], saved[depth, 5]
                    taken_b, left_a = saved[depth, 6], saved[depth, 7]
                    left_b = saved[depth, 8]
                    if depth < n_forced or not taking[depth]:
                        continue
                    taking[depth] = False

                # Decide: take or leave stack[depth].
                steps += 1
                if steps > max_steps:
                    return GAVE_UP, steps
                v = stack[depth]
                p = position[v]
                saved[depth, 0], saved[depth, 1] = moved_in, out_now
                saved[depth, 2], saved[depth, 3] = out_least, sent_now
                saved[depth, 4], saved[depth, 5] = sent_least, taken_a
                saved[depth, 6], saved[depth, 7] = taken_b, left_a
                saved[depth, 8] = left_b
                candidates[p >> 6] &= ~(one << np.uint64(p & 63))
                trail_mark[depth] = n_trail
                if taking[depth]:
                    key[p >> 6] |= one << np.uint64(p & 63)
                    state[v] = 1
                    n_taken += 1
                    taken_a += a[v]
                    taken_b += b[v]
                    for r in range(read_start[v], read_start[v + 1]):
                        t = read_tensor[r]
                        unread[t] -= 1
                        if not here[t]:
                            if read_here[t] == 0:
                                moved_in += send[t]
                            read_here[t] += 1
                        if unread[t] == 0:
                            sent_now -= send[t]
                            if here[t]:
                                out_now -= fetch[t]
                    for t in range(write_start[v], write_start[v + 1]):
                        here[t] = True
                        if unread[t] > 0:
                            out_now += fetch[t]
                            sent_now += send[t]
                            if read_later[t] > 0:
                                out_least += fetch[t]
                                sent_least += send[t]
                        for e in range(consumer_start[t], consumer_start[t + 1]):
                            w = consumers[e]
                            waits[w] -= 1
                            if waits[w] == 0 and state[w] == 0:
                                q = position[w]
                                candidates[q >> 6] |= one << np.uint64(q & 63)
                else:
                    state[v] = 2
                    trail[n_trail] = v
                    n_trail += 1
                    next_ = trail_mark[depth]
                    while next_ < n_trail:
                        w = trail[next_]
                        next_ += 1
                        left_a += a[w]
                        left_b += b[w]
                        for r in range(read_start[w], read_start[w + 1]):
                            t = read_tensor[r]
                            read_later[t] += 1
                            if read_later[t] == 1:
                                if here[t]:
                                    out_least += fetch[t]
                                    sent_least += send[t]
                                elif producer[t] < 0 or state[producer[t]] == 1:
                                    sent_least += send[t]
                        for e in range(
                            consumer_start[write_start[w]], consumer_start[write_start[w + 1]]
                        ):
                            if state[consumers[e]] == 0:
                                state[consumers[e]] = 2
                                trail[n_trail] = consumers[e]
                                n_trail += 1
                depth += 1
                floor = overhead + moved_in + out_least + max(taken_a, taken_b - free)
                rest = later * overhead + sent_least + max(left_a, left_b - later * free)
                both = (
                    (later + 1) * overhead
                    + moved_in
                    + out_least
                    + sent_least
                    + max(rest_a, rest_b - (later + 1) * free)
                )
                descend = floor < stage_limit and rest < later_limit and both < both_limit
        first, last = last, n_states
    return FOUND if found else REFUSED, steps


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _write_stages(space, base):  # type: ignore[no-untyped-def]
    """The plan that ends with the down-set `space.key`, reached from the state `base`."""
    stage, position, one = space.stage, space.position, np.uint64(1)
    last = 1
    at = base
    while at > 0:
        last += 1
        at = space.came_from[at]
    for v in range(len(stage)):
        stage[v] = last
        p = position[v]
        if space.key[p >> 6] >> np.uint64(p & 63) & one:
            stage[v] = last - 1
    while base > 0:
        last -= 1
        for v in range(len(stage)):
            p = position[v]
            if space.keys[base, p >> 6] >> np.uint64(p & 63) & one:
                stage[v] = last - 1
        base = space.came_from[base]
