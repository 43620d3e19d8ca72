"""Planners that search over topological orders, each order split optimally.

An order comes from one key an operator by list scheduling: of the ready operators the one with
the smallest key goes next. The order is then split by dynamic programming
(coralline.staging.split), so a search only has to look for keys.
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
from coralline.staging.bounds import work_bound
from coralline.staging.problem import Effort, Proposal, StagingProblem, register
from coralline.staging.split import _split as split_kernel
from coralline.staging.split import compile_split, split_arguments, split_order

Floats = NDArray[np.float64]

STEPS = 10_000
"""Orders that `annealing` tries; as many as `brkga` does."""

HOT, COLD = 0.01, 0.0003
"""Temperatures at the start and the end, as shares of the first plan's value."""

POPULATION, GENERATIONS = 100, 100
"""The larger setting (brkga-10000) of Archer et al."""

ELITES, MUTANTS, BIAS = 20, 10, 0.7
"""Within the ranges that Goncalves and Resende recommend (Journal of Heuristics 17, 2011,
table 1): elites 10 to 25 % of the population, mutants 10 to 30 %, bias 0.5 to 0.8."""

_CHECK_S = 0.02
"""About how long compiled code runs before it looks at the clock."""


@cache
def load_search() -> None:
    """Compile what searches, or load it from numba's cache."""
    compile_split()
    graph = ComputeGraph.build(
        "one", param_bytes=[0], tensor_bytes=[0], tensor_producer=[0], consumers=[[]]
    )
    problem = StagingProblem(graph, 1, load_device("edgetpu-usb"))
    instance = _Instance(problem)
    value = float(instance.values(np.zeros((1, 1)))[0])
    nothing = np.zeros(0), np.zeros((0, 4))
    _anneal(np.zeros(1), value, np.zeros(1), value, *nothing, *instance.kernel)
    instance.order(np.zeros(1))


@register("annealing", version="1", load=load_search)
def annealing(problem: StagingProblem, effort: Effort) -> Proposal:
    """Simulated annealing (Kirkpatrick et al., Science 220, 1983) over the operators' keys.

    It starts from the graph's own order. A step moves one operator forwards or backwards in the
    order by up to some reach, drawn from the whole length down to a 256th of it, as far as its
    neighbours let it; a worse order is kept with probability exp(-worsening / temperature). The
    temperature falls geometrically over STEPS steps, faster if the time limit needs it.
    """
    start = perf_counter()
    instance = _Instance(problem)
    n = problem.graph.n_nodes
    rng = np.random.default_rng(effort.seed)
    keys = np.empty(n)
    keys[problem.graph.topological_order] = np.arange(n) / n
    best_keys = keys.copy()
    value = best = float(instance.values(keys[None])[0])
    # Until an order fits into the memory limit, all are equal.
    scale = best if best < np.inf else work_bound(problem)
    done, batch = 0, 1
    while done < STEPS:
        begin = perf_counter()
        spent = (begin - start) / effort.time_limit_s if effort.time_limit_s > 0 else np.inf
        if spent >= 1 or best == 0:
            break
        batch = min(batch, STEPS - done)
        progress = np.maximum((done + np.arange(batch)) / STEPS, spent)
        temperature = scale * HOT * (COLD / HOT) ** progress
        value, best = _anneal(
            keys, value, best_keys, best, temperature, rng.random((batch, 4)), *instance.kernel
        )
        done += batch
        batch = _next_batch(batch, perf_counter() - begin)
    return Proposal(split_order(problem, instance.order(best_keys)))


@register("brkga", version="1", load=load_search)
def brkga(problem: StagingProblem, effort: Effort) -> Proposal:
    """SliceGraph under a biased random-key genetic algorithm, after Archer et al., ICML 2024.

    A chromosome is one key in [0, 1] an operator; Kahn's algorithm with the keys as priorities
    makes the order and dynamic programming its best slices (arXiv 2311.03703). The authors
    publish no program: population and number of generations are theirs, the other constants
    are common ones.

    The genetic algorithm itself is here because the kept library that has one, pymoo (0.6.2,
    Apache-2.0), brings 22 MiB and five packages and spends 10 ms a generation on its own
    bookkeeping, more than all 80 orders of a generation take on most models.
    """
    deadline = perf_counter() + effort.time_limit_s
    instance = _Instance(problem)
    n = problem.graph.n_nodes
    rng = np.random.default_rng(effort.seed)
    keys = rng.random((POPULATION, n))
    # One plan there must be, whatever the time.
    values = np.full(POPULATION, np.inf)
    values[0] = instance.values(keys[:1])[0]
    new, batch = 1, 1
    for generation in range(GENERATIONS):
        while new < POPULATION and (begin := perf_counter()) < deadline:
            part = slice(new, min(new + batch, POPULATION))
            values[part] = instance.values(keys[part])
            new = part.stop
            batch = _next_batch(batch, perf_counter() - begin)
        rank = np.argsort(values, kind="stable")
        keys, values = keys[rank], values[rank]
        if new < POPULATION or generation == GENERATIONS - 1:
            break
        children = POPULATION - ELITES - MUTANTS
        elite = keys[rng.integers(0, ELITES, children)]
        other = keys[rng.integers(ELITES, POPULATION, children)]
        keys[ELITES:-MUTANTS] = np.where(rng.random((children, n)) < BIAS, elite, other)
        keys[-MUTANTS:] = rng.random((MUTANTS, n))
        values[ELITES:] = np.inf
        new = ELITES
    return Proposal(split_order(problem, instance.order(keys[0])))


def _next_batch(batch: int, seconds: float) -> int:
    """How many orders to try before the next look at the clock."""
    return max(int(batch * min(_CHECK_S / max(seconds, 1e-6), 4.0)), 1)


class _Instance:
    """A problem as the compiled functions read it."""

    def __init__(self, problem: StagingProblem) -> None:
        graph = problem.graph
        u, v = graph.edges.T
        # Edges are sorted by producer.
        self._edges = (
            np.searchsorted(u, np.arange(graph.n_nodes + 1)),
            v.copy(),
            np.bincount(v, minlength=graph.n_nodes),
        )
        self.kernel: tuple[Any, ...] = (*self._edges, split_arguments(problem))

    def order(self, keys: Floats) -> NDArray[np.int64]:
        """int64 (V,): the topological order of the keys, float64 (V,)."""
        return _list_order(np.array(keys), *self._edges)

    def values(self, keys: Floats) -> Floats:
        """float64 (P,): what the best splits of P sets of keys, (P, V), are worth."""
        return _values(np.array(keys), *self.kernel)


@numba.njit(cache=True, nogil=True)
def _list_order(keys, start, successor, n_predecessors):  # type: ignore[no-untyped-def]
    n = len(keys)
    waits = n_predecessors.copy()
    heap = np.empty(n, np.int64)
    size = 0
    order = np.empty(n, np.int64)
    for v in range(n):
        if waits[v] == 0:
            size = _push(heap, size, v, keys)
    for p in range(n):
        v = heap[0]
        order[p] = v
        size -= 1
        last = heap[size]
        hole = 0
        while 2 * hole + 1 < size:
            child = 2 * hole + 1
            if child + 1 < size and keys[heap[child + 1]] < keys[heap[child]]:
                child += 1
            if keys[last] <= keys[heap[child]]:
                break
            heap[hole] = heap[child]
            hole = child
        heap[hole] = last
        for e in range(start[v], start[v + 1]):
            w = successor[e]
            waits[w] -= 1
            if waits[w] == 0:
                size = _push(heap, size, w, keys)
    return order


@numba.njit(cache=True, nogil=True)
def _push(heap, size, v, keys):  # type: ignore[no-untyped-def]
    hole = size
    while hole > 0:
        above = (hole - 1) // 2
        if keys[heap[above]] <= keys[v]:
            break
        heap[hole] = heap[above]
        hole = above
    heap[hole] = v
    return size + 1


@numba.njit(cache=True, nogil=True)
def _values(keys, start, successor, n_predecessors, arguments):  # type: ignore[no-untyped-def]
    values = np.empty(len(keys))
    for i in range(len(keys)):
        order = _list_order(keys[i], start, successor, n_predecessors)
        values[i] = split_kernel(order, np.inf, arguments)[1]
    return values


@numba.njit(cache=True, nogil=True)
def _anneal(  # type: ignore[no-untyped-def]
    keys,
    value,
    best_keys,
    best,
    temperature,
    uniform,
    start,
    successor,
    n_predecessors,
    arguments,
):
    n = len(keys)
    for step in range(len(temperature)):
        v = int(uniform[step, 0] * n)
        old = keys[v]
        keys[v] += (2 * uniform[step, 1] - 1) * 0.5 ** (8 * uniform[step, 2])
        order = _list_order(keys, start, successor, n_predecessors)
        found = split_kernel(order, np.inf, arguments)[1]
        kept = found <= value
        if not kept and found < np.inf:
            kept = uniform[step, 3] < np.exp((value - found) / temperature[step])
        if kept:
            value = found
            # The order's own positions, so that a reach means the same all the way.
            for i in range(n):
                keys[order[i]] = i / n
            if found < best:
                best = found
                best_keys[:] = keys
        else:
            keys[v] = old
    return value, best
