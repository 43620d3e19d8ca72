"""Staging: pipeline stages over accelerators. Importing the package registers its planners."""

from coralline.staging import baselines, exact, policy, search
from coralline.staging.bounds import lower_bound
from coralline.staging.problem import (
    OBJECTIVES,
    Effort,
    Evaluation,
    Objective,
    Plan,
    Proposal,
    StagingProblem,
    check,
    check_planner,
    evaluate,
    make_plan,
    planner_names,
)

__all__ = [
    "OBJECTIVES",
    "Effort",
    "Evaluation",
    "Objective",
    "Plan",
    "Proposal",
    "StagingProblem",
    "baselines",
    "check",
    "check_planner",
    "compile_planners",
    "evaluate",
    "exact",
    "lower_bound",
    "make_plan",
    "planner_names",
    "policy",
    "search",
]


def compile_planners() -> None:
    """Compile what the planners use into numba's cache, so that no first plan waits for it."""
    from coralline.staging.ideals import compile_search

    policy.load_decoder()
    search.load_search()
    compile_search()
