"""Planners that follow a rule instead of searching.

A rule that does not know of a memory limit is followed all the same; where its plan breaks the
limit, there is none (`none_found`).
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coralline.devices.model import MIB
from coralline.errors import PlanError
from coralline.graph.compute_graph import MODEL_INPUT
from coralline.staging.orders import least_live_order, stack_order
from coralline.staging.problem import (
    Effort,
    Proposal,
    StagingProblem,
    evaluate,
    none_found,
    register,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LATENCY_DIFFERENCE_MS = 1.0
"""libcoral stops where the bounds on the slowest segment are this close (diff_threshold_ns)."""


def _within_limit(problem: StagingProblem, stage: Ints) -> Proposal:
    """The plan.

    Raises:
        PlanError: A stage holds more than the memory limit.
    """
    limit = problem.memory_limit_bytes
    if limit is not None and np.bincount(stage, problem.param_bytes).max() > limit:
        raise none_found(problem)
    return Proposal(stage)


@register("uniform", version="1")
def uniform(problem: StagingProblem, effort: Effort) -> Proposal:
    """The same number of operators in every stage, in topological order."""
    n, k = problem.graph.n_nodes, problem.n_stages
    stage = np.empty(n, np.int64)
    stage[problem.graph.topological_order] = np.arange(n) * k // n
    return _within_limit(problem, stage)


@register("greedy", version="1")
def greedy(problem: StagingProblem, effort: Effort) -> Proposal:
    """One pass over the topological order that fills stages to an even share.

    A stage takes operators until the next one would bring it further from its share of what is
    left, or over the memory limit; they are counted in parameter bytes for `peak-memory` and in
    compute time otherwise, and transfers are not looked at. Where devices differ, shares are
    such that all stages would take the same time.
    """
    order = problem.graph.topological_order
    n, k = problem.graph.n_nodes, problem.n_stages
    limit = np.inf if problem.memory_limit_bytes is None else problem.memory_limit_bytes
    held = _sums(problem.param_bytes[order])
    costs = np.tile(held, (k, 1))
    if problem.objective != "peak-memory":
        costs = np.stack([_sums(ms) for ms in problem.node_ms[:, order]])
    stage = np.full(n, k - 1, np.int64)
    begin = 0
    for s in range(k - 1):
        left = costs[s:, n] - costs[s:, begin]
        share = 1 / (1 / left).sum() if left.all() else 0.0
        ends = np.arange(begin + 1, n - (k - 1 - s) + 1)
        fits = held[ends] - held[begin] <= limit
        if not fits.any():
            raise none_found(problem)
        ends = ends[fits]
        end = int(ends[np.argmin(np.abs(costs[s, ends] - costs[s, begin] - share))])
        stage[order[begin:end]] = s
        begin = end
    return _within_limit(problem, stage)


def _sums(values: NDArray[np.float64 | np.int64]) -> Floats:
    """float64 (N + 1,): sums of the first 0 .. N."""
    return np.concatenate([[0.0], np.cumsum(values)])


def load_split() -> None:
    """Import and compile what finds the best split of an order."""
    from coralline.staging.split import compile_split

    compile_split()


@register("topo-dp", version="1", load=load_split)
def topo_dp(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best split of the graph's own topological order into runs."""
    from coralline.staging.split import split_order

    return Proposal(split_order(problem, problem.graph.topological_order))


@register("topo-dp-orders", version="1", load=load_split)
def topo_dp_orders(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best split of four orders: the graph's own, depth first, by level, least live bytes.

    Raises:
        PlanError: None of them has a split within the memory limit.
    """
    from coralline.staging.split import split_order

    graph = problem.graph
    orders = (
        graph.topological_order,
        stack_order(graph),
        np.argsort(graph.level, kind="stable"),
        least_live_order(graph),
    )
    stages = []
    for order in orders:
        with suppress(PlanError):
            stages.append(split_order(problem, order))
    if not stages:
        raise none_found(problem)
    return Proposal(min(stages, key=lambda stage: evaluate(problem, stage).key))


@register("pipedream", version="1")
def pipedream(problem: StagingProblem, effort: Effort) -> Proposal:
    """PipeDream's dynamic programme over layers, for inference, one level, no replication.

        A(j, m) = min over i of max( A(i, m - 1), transfer(i), compute(i + 1 .. j) )

    It takes transfers to overlap with compute, so the slowest of all computations and transfers
    counts and their sum within a stage does not; whatever the problem's objective is, that is
    what it minimises. Source: Narayanan et al., SOSP 2019, section 3.1, and
    optimizer/optimizer_graph_hierarchical.py of https://github.com/msr-fiddle/pipedream.

    What differs: the layers are the operators in topological order where the authors' program
    takes the antichains of the graph, of which wide graphs have too many; a transfer is what the
    host fetches and sends, once, for all tensors open between i and i + 1, where training moves
    the activations and their gradients; the memory limit is on parameters alone, without the
    activations stashed for training; and each stage may have a device of its own.
    """
    graph, k = problem.graph, problem.n_stages
    n, order = graph.n_nodes, graph.topological_order
    position = np.empty(n, np.int64)
    position[order] = np.arange(n)
    inner = graph.tensor_producer != MODEL_INPUT
    written = position[graph.tensor_producer[inner]]
    read = written.copy()
    number = np.cumsum(inner) - 1
    reading = inner[graph.consumer_tensor]
    np.maximum.at(read, number[graph.consumer_tensor[reading]], position[graph.consumers[reading]])
    mib = graph.tensor_bytes[inner] / MIB
    # What is open after i: written at i or earlier, read later.
    opened = np.bincount(written, mib, minlength=n) - np.bincount(read, mib, minlength=n)
    open_mib = np.maximum(np.cumsum(opened), 0.0)
    in_ms, out_ms = problem.of_stages("in_ms_per_mib"), problem.of_stages("out_ms_per_mib")
    before = np.stack([_sums(ms) for ms in problem.node_ms[:, order]])
    held = _sums(problem.param_bytes[order])
    limit = np.inf if problem.memory_limit_bytes is None else problem.memory_limit_bytes

    # least[j], came[m][j]: the first j operators on m stages, and where the last one begins.
    least = np.where(held <= limit, before[0], np.inf)
    least[0] = np.inf
    came = []
    for s in range(1, k):
        previous, least = least, np.full(n + 1, np.inf)
        begins = np.zeros(n + 1, np.int64)
        transfer = open_mib * (out_ms[s - 1] + in_ms[s])
        reached = np.concatenate([[np.inf], np.maximum(previous[1:], transfer)])
        for j in range(1, n + 1):
            slowest = np.maximum(reached[:j], before[s, j] - before[s, :j])
            slowest[held[j] - held[:j] > limit] = np.inf
            begins[j] = np.argmin(slowest)
            least[j] = slowest[begins[j]]
        came.append(begins)
    if least[n] == np.inf:
        raise none_found(problem)
    stage = np.zeros(n, np.int64)
    end = n
    for s in range(k - 1, 0, -1):
        begin = int(came[s - 1][end])
        stage[order[begin:end]] = s
        end = begin
    return Proposal(stage)


@register("edgetpu-compiler", version="1")
def edgetpu_compiler(problem: StagingProblem, effort: Effort) -> Proposal:
    """The documented parameter-count rule of Coral's compiler and libcoral.

    Operators are taken in libcoral's depth-first order. A segment is closed just before its
    parameters would exceed total / K + 1 bytes; every later segment keeps at least one
    operator, the model's first output stays in the last segment, and the last segment takes
    the rest. Source: `ParameterCountBasedPartitioner` in
    https://github.com/google-coral/libcoral, coral/tools/partitioner.

    libcoral stops with a failed check where a single operator exceeds the average, or where
    fewer than K - 1 operators come before the first output. Here a segment takes at least one
    operator, and the first output may then lie in an earlier segment.
    """
    return _within_limit(problem, _by_parameter_count(problem, stack_order(problem.graph)))


def _by_parameter_count(problem: StagingProblem, order: Ints) -> Ints:
    graph, k = problem.graph, problem.n_stages
    param_bytes = problem.param_bytes
    average = int(param_bytes.sum()) // k + 1
    before_last = _operators_before_last(problem, order)
    stage = np.full(graph.n_nodes, k - 1, np.int64)
    i = 0
    for segment in range(k - 1):
        # Each of the segments between this one and the last needs an operator.
        end = before_last - (k - 2 - segment)
        begin, held = i, 0
        while i < end and (i == begin or held + param_bytes[order[i]] <= average):
            held += int(param_bytes[order[i]])
            stage[order[i]] = segment
            i += 1
    return stage


def _operators_before_last(problem: StagingProblem, order: Ints) -> int:
    """How many operators of the order come before the last segment's own ones, at most."""
    successors = problem.graph.successors
    first_output = next(i for i, v in enumerate(order) if not successors[v])
    return max(first_output, problem.n_stages - 1)


@register("libcoral-profiling", version="1")
def libcoral_profiling(problem: StagingProblem, effort: Effort) -> Proposal:
    """libcoral's bisection on the latency that every segment should meet.

    It starts from the parameter-count rule, whose fastest and slowest segments are the bounds.
    For the mean of the bounds every segment but the last takes the longest run of operators,
    in libcoral's depth-first order, that is no slower; a segment is shortened where the ones
    after it cannot follow. If the last segment, which takes the rest, is fast enough, the mean
    becomes the upper bound, else the lower one, until they differ by LATENCY_DIFFERENCE_MS or
    less. It balances latency whatever the problem's objective is. Source:
    `BisectPartition` and `ProfilingBasedPartitioner` in
    https://github.com/google-coral/libcoral, coral/tools/partitioner.

    What differs: libcoral compiles every candidate and times its segments on attached Edge TPUs,
    which are equal; here the device model of its stage says how long a segment takes, so nothing
    is profiled. Where libcoral
    leaves everything as it is (bounds close from the start) or gives up (nothing better found),
    this returns the segments of the parameter-count rule. As there, the model's first output
    stays in the last segment unless too few operators come before it.
    """
    k = problem.n_stages
    order = stack_order(problem.graph)
    before_last = _operators_before_last(problem, order)
    segment_ms = _SegmentLatency(problem, order)
    start = _by_parameter_count(problem, order)
    ends = np.cumsum(np.bincount(start)).tolist()
    times = [segment_ms(s, a)[b - a - 1] for s, (a, b) in enumerate(pairwise([0, *ends]))]
    lower, upper = min(times), max(times)
    best = None
    while upper - lower > LATENCY_DIFFERENCE_MS:
        target = (lower + upper) / 2
        ends = _longest_runs(segment_ms, k, before_last, target)
        last = segment_ms(k - 1, ends[-1])[-1] if ends is not None else np.inf
        if last < target:
            best, upper = ends, target
        else:
            if last < upper:
                best, upper = ends, last
            lower = target
    if best is None:
        return _within_limit(problem, start)
    stage = np.empty(len(order), np.int64)
    stage[order] = np.searchsorted(best, np.arange(len(order)), side="right")
    return _within_limit(problem, stage)


def _longest_runs(
    segment_ms: _SegmentLatency, k: int, before_last: int, target: float
) -> list[int] | None:
    """Where the first k - 1 segments end, at least one of them."""
    ends: list[int] = []
    # The end from which each open segment goes on looking, and what is known not to work.
    limits = [before_last - (k - 2)]
    failed = set()
    while len(ends) < k - 1:
        s, begin = len(ends), ends[-1] if ends else 0
        times = segment_ms(s, begin)
        end = next(
            (
                end
                for end in range(limits[-1], begin, -1)
                if times[end - begin - 1] <= target and (s, end) not in failed
            ),
            None,
        )
        if end is not None:
            ends.append(end)
            limits.append(before_last - (k - 3 - s))
        elif ends:
            failed.add((s - 1, ends[-1]))
            limits.pop()
            limits[-1] = ends.pop() - 1
        else:
            return None
    return ends


class _SegmentLatency:
    """The time of every stage with any run of an order, as its device model has it."""

    def __init__(self, problem: StagingProblem, order: Ints) -> None:
        self._problem, self._order = problem, order.tolist()
        graph = problem.graph
        self._written: list[list[int]] = [[] for _ in self._order]
        self._read: list[list[int]] = [[] for _ in self._order]
        for t, v in enumerate(graph.tensor_producer.tolist()):
            if v != MODEL_INPUT:
                self._written[v].append(t)
        for t, v in zip(graph.consumer_tensor.tolist(), graph.consumers.tolist(), strict=True):
            self._read[v].append(t)
        self._n_readers = np.diff(graph.consumer_start).tolist()
        self._is_output = graph.tensor_is_output.tolist()
        self._mib = (graph.tensor_bytes / MIB).tolist()
        # Stages on equal devices share what is known.
        self._first = [problem.devices.index(device) for device in problem.devices]
        self._known: dict[tuple[int, int], list[float]] = {}

    def __call__(self, s: int, begin: int) -> list[float]:
        """The times, in ms, of stage s with the runs from `begin` of 1, 2, ... operators."""
        key = self._first[s], begin
        if key not in self._known:
            self._known[key] = self._times(*key)
        return self._known[key]

    def _times(self, s: int, begin: int) -> list[float]:
        problem, device = self._problem, self._problem.devices[s]
        node_ms, cache_bytes = problem.node_ms[s].tolist(), problem.cache_bytes[s].tolist()
        param_bytes = problem.param_bytes.tolist()
        busy, params, cache = device.stage_overhead_ms, 0, np.inf
        inside: dict[int, int] = {}
        times = []
        for v in self._order[begin:]:
            for t in self._read[v]:
                if t not in inside:
                    # Sent here once; not made here, so never fetched from here.
                    busy += self._mib[t] * device.in_ms_per_mib
                    inside[t] = -1
                elif inside[t] > 0:
                    inside[t] -= 1
                    if inside[t] == 0 and not self._is_output[t]:
                        busy -= self._mib[t] * device.out_ms_per_mib
            for t in self._written[v]:
                inside[t] = self._n_readers[t]
                if inside[t] or self._is_output[t]:
                    busy += self._mib[t] * device.out_ms_per_mib
            busy += node_ms[v]
            params += param_bytes[v]
            cache = min(cache, cache_bytes[v])
            times.append(busy + max(params - cache, 0) / MIB * device.stream_ms_per_mib)
        return times
