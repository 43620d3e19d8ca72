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
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import load_device
from coralline.graph.compute_graph import ComputeGraph
from coralline.staging.problem import (
    Effort,
    Proposal,
    StagingProblem,
    evaluate,
    lower_bound,
)
from coralline.staging.split import (
    LATENCY,
    PEAK,
    compile_split,
    search_orders,
    split_arguments,
    split_order,
)

REFUSED, FOUND, GAVE_UP = 0, 1, 2

_MARGIN = 1e-7
"""A plan must be better by this share to be searched for."""

_ROUNDING = 1e-9
"""Of a refused target, what floating-point sums may err; they err much less."""

_FIRST_STEPS = 50_000
"""Operators taken or left in the first search: about 5 ms."""

_STATE_BYTES = 2**29
"""Bound on the memory of the down-sets held."""


def solve(problem: StagingProblem, effort: Effort) -> Proposal:
    """The optimum, or the best plan and bound when time is up."""
    deadline = perf_counter() + effort.time_limit_s
    arguments = split_arguments(problem)
    n = problem.graph.n_nodes
    order = search_orders(arguments, problem.graph.topological_order, 0, effort.seed)
    stage = split_order(problem, order)
    value = evaluate(problem, stage).value
    bound = lower_bound(problem)
    whole = problem.objective == "peak-memory"
    max_states = _STATE_BYTES // (8 * (n // 64 + 1) + 32)
    relaxed = problem.objective != "latency"
    steps, share, round_ = _FIRST_STEPS, 1.0, 0
    rate = 5e6
    while perf_counter() < deadline and value > bound and not _closed(value, bound):
        highest = value if whole else value * (1 - _MARGIN)
        target = bound + (highest - bound) * share
        if whole:
            target = float(np.ceil(target))
        started = perf_counter()
        allowed = int(min(steps, max((deadline - started) * rate, 1000)))
        outcome, found, used = _search(
            np.array(order), target, relaxed, allowed, max_states, *arguments
        )
        rate = max(used / (perf_counter() - started), 1e5) if used > 10_000 else rate
        if outcome == REFUSED:
            bound = max(bound, target if whole else target * (1 - _ROUNDING))
            share = 1.0
            continue
        if outcome == FOUND:
            start = order_of(problem, found)
            improved = split_order(problem, start)
            improved_value = evaluate(problem, improved).value
            if improved_value < target:
                order, stage, value = start, improved, improved_value
            elif relaxed:
                relaxed = False
            share = 1.0
            continue
        # Too long: better orders first, then lower targets, then more steps.
        round_ += 1
        tries = int(max(min(steps // n, (deadline - perf_counter()) * rate / (20 * n)), 0))
        start = search_orders(arguments, order, tries, effort.seed + round_)
        candidate = split_order(problem, start)
        candidate_value = evaluate(problem, candidate).value
        if candidate_value < value:
            share = 1.0
        else:
            share /= 2
            if share < 1 / 16:
                share = 1.0
                steps *= 4
        if candidate_value <= value:
            order, stage, value = start, candidate, candidate_value
    return Proposal(stage, min(bound, value))


def _closed(value: float, bound: float) -> bool:
    return value * (1 - 2 * _MARGIN) <= bound


def order_of(problem: StagingProblem, stage: NDArray[np.int64]) -> NDArray[np.int64]:
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
    order = np.array(graph.topological_order)
    _search(order, 1.0, True, 1, 1, *split_arguments(problem))


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
def _search(  # type: ignore[no-untyped-def]
    order,
    target,
    relaxed,
    max_steps,
    max_states,
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
    """Decide whether a plan has a value below `target`; for latency find the best such plan.

    Returns:
        REFUSED, FOUND or GAVE_UP; int64 (V,) stages, if found; steps taken.
    """
    n, n_tensors = len(order), len(producer)
    latency = mode == LATENCY
    # A stage costs overhead + in + out + max(sum a, sum b - c).
    if mode == PEAK:
        a, b, c = param_bytes * 1.0, np.zeros(n), 0.0
        send, fetch, overhead = np.zeros(n_tensors), np.zeros(n_tensors), 0.0
    else:
        a, c = node_ms.copy(), stream_ms * cache_bytes
        send, fetch, overhead = in_ms.copy(), out_ms.copy(), overhead_ms
        for t in range(n_tensors):
            # What the caller of the model gets is always fetched: it counts as work.
            if is_output[t]:
                if producer[t] >= 0:
                    a[producer[t]] += fetch[t]
                fetch[t] = 0.0
        b = a + stream_ms * param_bytes
    all_a, all_b = a.sum(), b.sum()

    write_start = np.zeros(n + 1, np.int64)
    read_start = np.zeros(n + 1, np.int64)
    for t in range(n_tensors):
        write_start[producer[t] + 1] = t + 1
        for e in range(consumer_start[t], consumer_start[t + 1]):
            read_start[consumers[e] + 1] += 1
    for v in range(n):
        read_start[v + 1] += read_start[v]
    fill = read_start[:-1].copy()
    read_tensor = np.empty(len(consumers), np.int64)
    parents = np.empty(len(consumers), np.int64)
    for t in range(n_tensors):
        for e in range(consumer_start[t], consumer_start[t + 1]):
            slot = fill[consumers[e]]
            read_tensor[slot] = t
            parents[slot] = producer[t]
            fill[consumers[e]] += 1
    child_start = np.empty(n + 1, np.int64)
    for v in range(n + 1):
        child_start[v] = consumer_start[write_start[v]]
    position = np.empty(n, np.int64)
    for p in range(n):
        position[order[p]] = p
    if not latency:
        above_a, above_b = _closure(order, read_start, parents, a, b)
        below_a, below_b = _closure(order[::-1].copy(), child_start, consumers.copy(), a, b)
    else:
        above_a, above_b, below_a, below_b = a, b, a, b

    # The down-sets held, as bits by position, and a hash table of those of the next stage.
    words = n // 64 + 1
    one = np.uint64(1)
    capacity = 64
    keys = np.zeros((capacity, words), np.uint64)
    came_from = np.full(capacity, -1, np.int64)
    cost_so_far = np.zeros(capacity)
    n_states, first, last = 1, 0, 1
    slots = np.full(4 * capacity, -1, np.int64)
    best_from = -1
    best_key = np.zeros(words, np.uint64)

    state = np.zeros(n, np.int8)  # 0 undecided, 1 taken, 2 left behind
    waits = np.zeros(n, np.int64)
    unread = np.zeros(n_tensors, np.int64)  # readers not taken
    here = np.zeros(n_tensors, np.bool_)  # written in this stage
    read_here = np.zeros(n_tensors, np.int64)
    read_later = np.zeros(n_tensors, np.int64)  # readers left behind
    candidates = np.zeros(words, np.uint64)
    stack = np.empty(n + 1, np.int64)
    taking = np.empty(n + 1, np.bool_)
    trail = np.empty(n, np.int64)
    forced = np.empty(n, np.int64)
    is_forced = np.zeros(n, np.bool_)
    trail_mark = np.empty(n + 2, np.int64)
    saved = np.empty((n + 2, 10))
    steps = 0

    for s in range(n_stages - 1):
        later = n_stages - 1 - s
        for base in range(first, last):
            # From the down-set of this state.
            key = keys[base].copy()
            so_far = cost_so_far[base]
            base_a = base_b = 0.0
            n_taken = 0
            for v in range(n):
                p = position[v]
                waits[v] = 0
                state[v] = np.int8(key[p >> 6] >> np.uint64(p & 63) & one)
                if state[v]:
                    base_a += a[v]
                    base_b += b[v]
                    n_taken += 1
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
            rest_a, rest_b = all_a - base_a, all_b - base_b
            if latency:
                stage_limit = later_limit = np.inf
                both_limit = target - so_far
            else:
                stage_limit, later_limit = target, later * target
                both_limit = (later + 1) * target
            candidates[:] = 0
            n_trail = 0
            depth = 0
            # First the operators that no branch can take or leave.
            feasible = True
            n_forced = 0
            is_forced[:] = False
            for p in range(n):
                v = order[p]
                if state[v] == 1:
                    continue
                if not latency:
                    must = later * overhead + max(below_a[v], below_b[v] - later * c) >= later_limit
                    alone = max(above_a[v] - base_a, above_b[v] - base_b - c)
                    ever = max(above_a[v], above_b[v] - (s + 1) * c) + (s + 1) * overhead
                    cannot = overhead + alone >= target or ever >= (s + 1) * target
                    if must and cannot:
                        feasible = False
                        break
                    for e in range(read_start[v], read_start[v + 1]):
                        # Only rounding can part an operator from its ancestors here.
                        u = parents[e]
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
                            if read_later[t] == 1 and (
                                producer[t] < 0 or state[producer[t]] == 1
                            ):
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
                        stage_cost = (
                            overhead + moved_in + out_now + max(taken_a, taken_b - c)
                        )
                        left = n - n_taken
                        rest_cost = 0.0
                        if left > 0:
                            rest_cost = (
                                later * overhead
                                + sent_now
                                + max(rest_a - taken_a, rest_b - taken_b - later * c)
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
                            best_from = base
                            best_key[:] = key
                            if not latency:
                                return (
                                    FOUND,
                                    _stages(best_from, best_key, keys, came_from, position),
                                    steps,
                                )
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
                                    + max(taken_a + a[x], taken_b + b[x] - c)
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
                            while True:
                                i = slots[slot]
                                if i < 0:
                                    break
                                same = True
                                for w in range(words):
                                    if keys[i, w] != key[w]:
                                        same = False
                                        break
                                if same:
                                    break
                                slot = (slot + one) & mask
                            if i >= 0:
                                if latency and value < cost_so_far[i]:
                                    cost_so_far[i] = value
                                    came_from[i] = base
                            else:
                                if n_states == capacity:
                                    if 2 * capacity > max_states:
                                        return GAVE_UP, state[:0].astype(np.int64), steps
                                    keys = _grown(keys)
                                    came_from = np.append(came_from, came_from)
                                    cost_so_far = np.append(cost_so_far, cost_so_far)
                                    capacity *= 2
                                keys[n_states] = key
                                came_from[n_states] = base
                                cost_so_far[n_states] = value
                                slots[slot] = n_states
                                n_states += 1
                                if 2 * (n_states - last) > len(slots):
                                    slots = np.full(2 * len(slots), -1, np.int64)
                                    mask = np.uint64(len(slots) - 1)
                                    for i in range(last, n_states):
                                        h = np.uint64(1469598103934665603)
                                        for w in range(words):
                                            h = (h ^ keys[i, w]) * np.uint64(0x9E3779B97F4A7C15)
                                            h ^= h >> np.uint64(29)
                                        slot = h & mask
                                        while slots[slot] >= 0:
                                            slot = (slot + one) & mask
                                        slots[slot] = i
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
                    old = saved[depth]
                    moved_in, out_now, out_least = old[0], old[1], old[2]
                    sent_now, sent_least = old[3], old[4]
                    taken_a, taken_b, left_a, left_b = old[5], old[6], old[7], old[8]
                    if depth < n_forced or not taking[depth]:
                        continue
                    taking[depth] = False

                # Decide: take or leave stack[depth].
                steps += 1
                if steps > max_steps:
                    return GAVE_UP, state[:0].astype(np.int64), steps
                v = stack[depth]
                p = position[v]
                old = saved[depth]
                old[0], old[1], old[2] = moved_in, out_now, out_least
                old[3], old[4] = sent_now, sent_least
                old[5], old[6], old[7], old[8] = taken_a, taken_b, left_a, left_b
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
                        for e in range(child_start[w], child_start[w + 1]):
                            if state[consumers[e]] == 0:
                                state[consumers[e]] = 2
                                trail[n_trail] = consumers[e]
                                n_trail += 1
                depth += 1
                floor = overhead + moved_in + out_least + max(taken_a, taken_b - c)
                rest = later * overhead + sent_least + max(left_a, left_b - later * c)
                both = (
                    (later + 1) * overhead
                    + moved_in
                    + out_least
                    + sent_least
                    + max(rest_a, rest_b - (later + 1) * c)
                )
                descend = floor < stage_limit and rest < later_limit and both < both_limit
        first, last = last, n_states
        slots[:] = -1
    if best_from < 0:
        return REFUSED, state[:0].astype(np.int64), steps
    return FOUND, _stages(best_from, best_key, keys, came_from, position), steps


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grown(keys):  # type: ignore[no-untyped-def]
    grown = np.zeros((2 * len(keys), keys.shape[1]), np.uint64)
    grown[: len(keys)] = keys
    return grown


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _stages(base, key, keys, came_from, position):  # type: ignore[no-untyped-def]
    """The stages of the chain of down-sets that ends with `key` after the state `base`."""
    n = len(position)
    n_before = 0
    at = base
    while at > 0:
        n_before += 1
        at = came_from[at]
    stage = np.full(n, n_before + 1, np.int64)
    while True:
        for v in range(n):
            p = position[v]
            if key[p >> 6] >> np.uint64(p & 63) & np.uint64(1):
                stage[v] = n_before
        if base < 0 or n_before == 0:
            return stage
        key = keys[base]
        base = came_from[base]
        n_before -= 1
