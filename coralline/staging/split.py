"""The best contiguous split of one topological order into stages, by dynamic programming.

For every start i of a stage the cost of the stage [i, j) is extended from j to j + 1 in time
proportional to the tensors touched, so all costs take O(V (V + C)) and the programme
O(V^2 K), for V operators, C tensor readings and K stages. It is far less where a bound is
known: a start is left out when no split up to it is within the bound, and a stage is extended no
further than its work allows. Without a bound, a first pass that looks at about 8 K borders, at
equal distances, finds one.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB, load_device
from coralline.graph.compute_graph import MODEL_INPUT, ComputeGraph
from coralline.staging.problem import StagingProblem, none_found

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""For functions that only compiled ones call: wrappers for Python take long to compile."""


class SplitArguments(NamedTuple):
    """A problem as the compiled functions read it; V operators, T tensors, C readings, E edges.

    Stages on equal devices are of one kind; there are D kinds. A stage costs

        overhead + work + in + out + stream * (parameters beyond its cache) + balance

    where balance sums over all operators up to its end. The largest cost of a stage counts, or
    the sum of all.

    Attributes:
        kind: int64 (K,): of each stage.
        additive: Whether the sum counts.
        memory: The most parameters of a stage, in bytes.
        goal: Value at which nothing better is looked for.
        rates: float64 (D, 4): overhead; in and out for each unit of `size` and `fetch`; stream
            for each byte.
        work, cache: float64 (D, V); fetching the model's outputs is work of their producers.
        params, balance: float64 (V,).
        least: float64 (V,): the least work of each operator on any stage.
        pace: float64 (V,): what the first pass shares out evenly.
        opens: float64 (V,): what is fetched if no reader of an operator's tensors is in its stage.
        size, fetch: float64 (T,).
        write_start: int64 (V + 1,): the first tensor of each operator.
        read_start, read_tensor: int64 (V + 1,), (C,): the tensors each operator reads.
        next_start, next: int64 (V + 1,), (E,): the successors of each operator.
        waits: int64 (V,): numbers of predecessors.
    """

    kind: Ints
    additive: bool
    memory: float
    goal: float
    rates: Floats
    work: Floats
    cache: Floats
    params: Floats
    balance: Floats
    least: Floats
    pace: Floats
    opens: Floats
    size: Floats
    fetch: Floats
    write_start: Ints
    read_start: Ints
    read_tensor: Ints
    next_start: Ints
    next: Ints
    waits: Ints


def split_order(problem: StagingProblem, order: Ints) -> Ints:
    """The optimal stages, int64 (V,), among those that cut `order` into K runs.

    For `peak-memory`, those with the fewest crossings among the ones with the least peak.

    Args:
        order: int64 (V,): a topological order of the problem's graph.

    Raises:
        PlanError: None of them keeps to the memory limit.
    """
    stage, value = split(split_arguments(problem), order)
    if value == np.inf:
        raise none_found(problem)
    if problem.objective == "peak-memory":
        stage, _ = split(split_arguments(problem, within=value), order)
    return stage


def split_value(arguments: SplitArguments, order: Ints) -> float:
    """The objective of `split_order`, for callers that try many orders of one problem.

    For `peak-memory` it is the peak alone; infinity where no split keeps to the memory limit.

    Args:
        arguments: `split_arguments` of the problem.
    """
    return split(arguments, order)[1]


def split(arguments: SplitArguments, order: Ints, upper: float = np.inf) -> tuple[Ints, float]:
    """The optimal stages, int64 (V,), of those that cut `order` into K runs, and their value.

    The value is infinity, and the stages mean nothing, where none keeps to the memory limit or
    none has a value of `upper` or less.
    """
    # A copy, since the kernel is compiled apart for arrays that are read-only.
    stage, value = _split(np.array(order, np.int64), upper, arguments)
    return stage, float(value)


def search_orders(
    arguments: SplitArguments, order: Ints, steps: int, seed: int
) -> tuple[Ints, Ints, float]:
    """A topological order, int64 (V,), at least as good as `order`; its best split, and value.

    Local search: the order in which a few operators are due is changed at random, the order is
    made topological by taking the ready operator that is due first, and it stays if its split
    is not worse. Before the first step a breadth-first and a depth-first order are tried.

    Args:
        arguments: `split_arguments` of the problem.
        steps: Orders to try.
    """
    draws = np.random.default_rng(seed).random((steps, 11))
    found, stage, value = _search_orders(np.array(order, np.int64), draws, arguments)
    return found, stage, float(value)


@cache
def compile_split() -> None:
    """Compile the kernel, or load it from numba's cache."""
    graph = ComputeGraph.build(
        "one", param_bytes=[0], tensor_bytes=[0], tensor_producer=[0], consumers=[[]]
    )
    problem = StagingProblem(graph, 1, load_device("edgetpu-usb"))
    arguments = split_arguments(problem)
    split(arguments, search_orders(arguments, graph.topological_order, 0, 0)[0])


def split_arguments(problem: StagingProblem, within: float | None = None) -> SplitArguments:
    """The problem as the compiled functions read it.

    Args:
        within: Count the hop-weighted crossings instead of the objective, and allow a stage
            this many bytes of parameters.
    """
    graph, n = problem.graph, problem.graph.n_nodes
    params = problem.param_bytes.astype(float)
    limit = problem.memory_limit_bytes
    producer = graph.tensor_producer
    inner, read = producer != MODEL_INPUT, np.diff(graph.consumer_start) > 0
    u, v = graph.edges.T
    if problem.objective == "peak-memory":
        kind, rates, cache = (
            np.zeros(problem.n_stages, np.int64),
            np.zeros((1, 4)),
            np.zeros((1, n)),
        )
        work = params[None] if within is None else np.zeros((1, n))
        size = fetch = np.zeros(graph.n_tensors)
        pace = params
    else:
        devices = [id(device) for device in problem.devices]
        _, first, kind = np.unique(devices, return_index=True, return_inverse=True)
        names = ("stage_overhead_ms", "in_ms_per_mib", "out_ms_per_mib", "stream_ms_per_mib")
        rates = np.stack([problem.of_stages(name)[first] for name in names], axis=1)
        rates[:, 3] /= MIB
        size = graph.tensor_bytes / MIB
        given = inner & graph.tensor_is_output
        fetch = np.where(given | ~inner, 0.0, size)
        given_size = np.bincount(producer[given], size[given], minlength=n)
        work = problem.node_ms[first] + rates[:, 2:3] * given_size
        cache = problem.cache_bytes[first]
        pace = work.min(axis=0)
    balance = np.zeros(n)
    if within is not None:
        weight = problem.edge_weight
        balance += np.bincount(u, weight, minlength=n) - np.bincount(v, weight, minlength=n)
    by_reader = np.argsort(graph.consumers, kind="stable")
    node = np.arange(n + 1)
    opens = fetch * (inner & read)
    return SplitArguments(
        kind=kind,
        additive=problem.objective == "latency" or within is not None,
        memory=min(np.inf if x is None else float(x) for x in (limit, within)),
        goal=-np.inf,
        rates=rates,
        work=work,
        cache=cache,
        params=params,
        balance=balance,
        least=work.min(axis=0),
        pace=pace,
        opens=np.bincount(producer[inner], opens[inner], minlength=n).astype(float),
        size=size,
        fetch=fetch,
        write_start=np.searchsorted(producer, node),
        read_start=np.searchsorted(graph.consumers[by_reader], node),
        read_tensor=graph.consumer_tensor[by_reader],
        next_start=np.searchsorted(u, node),
        next=v.copy(),
        waits=np.bincount(v, minlength=n),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _split(order, upper, c):  # type: ignore[no-untyped-def]
    """The best stages, int64 (V,), of value `upper` or less, and their value; else infinity."""
    n, n_stages, n_reads = len(order), len(c.kind), len(c.read_tensor)
    # Reading tensor t at position p brings it into the stage [i, p] when i is past both its
    # producer and its previous reader: `after` is the larger of the two. A tensor is fetched
    # from the stage of its producer, at position `home`, until its last reader joins it.
    start = np.empty(n + 1, np.int64)
    tensor = np.empty(n_reads, np.int64)
    after = np.empty(n_reads, np.int64)
    home = np.empty(n_reads, np.int64)
    written = np.full(len(c.size), -1)
    seen = np.full(len(c.size), -1)
    cut = np.empty(n)
    ahead = np.empty(n + 1)
    passed = np.empty(n + 1)
    slot, balance = 0, 0.0
    for p in range(n):
        v = order[p]
        start[p] = slot
        for r in range(c.read_start[v], c.read_start[v + 1]):
            t = c.read_tensor[r]
            tensor[slot] = t
            after[slot] = seen[t]
            seen[t] = p
            slot += 1
        for t in range(c.write_start[v], c.write_start[v + 1]):
            written[t] = seen[t] = p
        balance += c.balance[v]
        cut[p] = balance
    start[n] = slot
    ahead[n] = passed[n] = 0.0
    for p in range(n - 1, -1, -1):
        ahead[p] = ahead[p + 1] + c.least[order[p]]
        passed[p] = passed[p + 1] + c.pace[order[p]]
        for r in range(start[p], start[p + 1]):
            t = tensor[r]
            home[r] = written[t] if seen[t] == p else -1

    best = np.empty((n_stages + 1, n + 1))
    came_from = np.zeros((n_stages + 1, n + 1), np.int64)
    stage, value = np.zeros(n, np.int64), np.inf
    coarse = upper == np.inf and n > 16 * n_stages
    per = 8 * n_stages / passed[0]
    while True:
        best[:] = np.inf
        best[0, 0] = 0.0
        for i in range(n):
            upper = min(upper, best[n_stages, n])
            if upper <= c.goal:
                break
            least = np.inf
            for s in range(n_stages):
                room = upper - best[s, i] if c.additive else (n_stages - s) * upper
                if best[s, i] <= upper and ahead[i] <= room:
                    least = min(least, best[s, i])
            if least == np.inf:
                continue
            for k in range(len(c.rates)):
                in_ms, out_ms, stream = c.rates[k, 1], c.rates[k, 2], c.rates[k, 3]
                work, cache = c.rates[k, 0], np.inf
                params = moved_in = moved_out = 0.0
                for p in range(i, n):
                    v = order[p]
                    work += c.work[k, v]
                    params += c.params[v]
                    cache = min(cache, c.cache[k, v])
                    moved_out += c.opens[v]
                    for r in range(start[p], start[p + 1]):
                        if after[r] < i:
                            moved_in += c.size[tensor[r]]
                        if home[r] >= i:
                            moved_out -= c.fetch[tensor[r]]
                    # All but what is moved out only grows with p.
                    floor = work + in_ms * moved_in + stream * max(params - cache, 0.0)
                    least_all = least + floor + ahead[p + 1] if c.additive else floor
                    if params > c.memory or least_all > upper:
                        break
                    if coarse and p < n - 1 and int(passed[p] * per) == int(passed[p + 1] * per):
                        continue
                    cost = floor + out_ms * moved_out + cut[p]
                    if cost > upper:
                        continue
                    for s in range(min(n_stages, i + 1)):
                        before = best[s, i]
                        total = before + cost if c.additive else max(before, cost)
                        if c.kind[s] == k and total < best[s + 1, p + 1] and total <= upper:
                            best[s + 1, p + 1] = total
                            came_from[s + 1, p + 1] = i
        if best[n_stages, n] < value:
            value = best[n_stages, n]
            end = n
            for s in range(n_stages, 0, -1):
                for p in range(came_from[s, end], end):
                    stage[order[p]] = s - 1
                end = came_from[s, end]
        if not coarse or value <= c.goal:
            return stage, value
        # Now only something better is looked for.
        coarse = False
        upper = value * (1 - 1e-9)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _search_orders(order, draws, c):  # type: ignore[no-untyped-def]
    n = len(order)
    due = np.empty(n)
    level = np.zeros(n)
    for p in range(n):
        v = order[p]
        due[v] = p
        for e in range(c.next_start[v], c.next_start[v + 1]):
            w = c.next[e]
            level[w] = max(level[w], level[v] + 1)
    best, trial, stage = np.inf, due, order
    for step in range(-3, len(draws)):
        if best <= c.goal:
            break
        if step == -2:
            trial = level
        elif step >= 0:
            trial = due.copy()
            reach = n * 0.5 ** (8 * draws[step, 0])
            for i in range(1, 2 + int(4 * draws[step, 1])):
                trial[int(n * draws[step, 2 * i])] += reach * (3 * draws[step, 2 * i + 1] - 1.5)
            # What is due earlier needs its ancestors by then; descendants wait in any case.
            for p in range(n - 1, -1, -1) if draws[step, 10] < 0.5 else range(0):
                v = order[p]
                for e in range(c.next_start[v], c.next_start[v + 1]):
                    trial[v] = min(trial[v], trial[c.next[e]])
        found = _due_order(trial, step == -1, c)
        found_stage, value = _split(found, best, c)
        if value < best or (value == best and step >= 0):
            order, stage, best = found, found_stage, value
            for p in range(n):
                due[found[p]] = p
    return order, stage, best


@numba.njit(cache=True, nogil=True, error_model="numpy", **INNER)
def _due_order(due, depth_first, c):  # type: ignore[no-untyped-def]
    """The topological order of the ready node that is due first, or was ready last."""
    n = len(due)
    waits = c.waits.copy()
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
        for e in range(c.next_start[v], c.next_start[v + 1]):
            w = c.next[e]
            waits[w] -= 1
            if waits[w] == 0:
                ready[n_ready] = w
                n_ready += 1
    return order
