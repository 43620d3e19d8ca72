"""Staging: pipeline stages over accelerators. Importing the room registers its planners."""

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
    "evaluate",
    "exact",
    "lower_bound",
    "make_plan",
    "planner_names",
    "policy",
    "search",
]
