"""Planners that follow a rule instead of searching."""

from __future__ import annotations

import numpy as np

from coralline.staging.orders import stack_order
from coralline.staging.problem import Effort, Proposal, StagingProblem, register


@register("uniform", version="1")
def uniform(problem: StagingProblem, effort: Effort) -> Proposal:
    """The same number of operators in every stage, in topological order."""
    n, k = problem.graph.n_nodes, problem.n_stages
    stage = np.empty(n, np.int64)
    stage[problem.graph.topological_order] = np.arange(n) * k // n
    return Proposal(stage)


def load_split() -> None:
    """Import and compile what finds the best split of an order."""
    from coralline.staging.split import compile_split

    compile_split()


@register("topo-dp", version="1", load=load_split)
def topo_dp(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best split of the graph's own topological order into runs."""
    from coralline.staging.split import split_order

    return Proposal(split_order(problem, problem.graph.topological_order))


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
    graph, k = problem.graph, problem.n_stages
    order = stack_order(graph)
    average = int(graph.param_bytes.sum()) // k + 1
    first_output = next(i for i, v in enumerate(order) if not graph.successors[v])
    before_last = max(first_output, k - 1)
    stage = np.full(graph.n_nodes, k - 1, np.int64)
    i = 0
    for segment in range(k - 1):
        # Each of the segments between this one and the last needs an operator.
        end = before_last - (k - 2 - segment)
        begin, held = i, 0
        while i < end and (i == begin or held + graph.param_bytes[order[i]] <= average):
            held += int(graph.param_bytes[order[i]])
            stage[order[i]] = segment
            i += 1
    return Proposal(stage)
