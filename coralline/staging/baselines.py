"""Planners that follow a rule instead of searching."""

from __future__ import annotations

import numpy as np

from coralline.staging.problem import Effort, Proposal, StagingProblem, register


@register("uniform", version="1")
def uniform(problem: StagingProblem, effort: Effort) -> Proposal:
    """The same number of operators in every stage, in topological order."""
    n, k = problem.graph.n_nodes, problem.n_stages
    stage = np.empty(n, np.int64)
    stage[problem.graph.topological_order] = np.arange(n) * k // n
    return Proposal(stage)


@register("topo-dp", version="1")
def topo_dp(problem: StagingProblem, effort: Effort) -> Proposal:
    """The best split of the graph's own topological order into runs."""
    from coralline.staging.split import split_order

    return Proposal(split_order(problem, problem.graph.topological_order))
